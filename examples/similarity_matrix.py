"""How alike are some sentences? A matrix, and the pairs that say the same: python similarity_matrix.py [MODEL].

Sentences are compared with each other, not looked up by a question, so none gets an instruction: `encode`, not
`encode_queries`.
"""

import sys

import numpy as np

from bgekit import FlagModel

MODEL = sys.argv[1] if len(sys.argv) > 1 else "BAAI/bge-small-en-v1.5"

SENTENCES = [
    "The shop opens at nine.",
    "Opening time of the store is 9 a.m.",
    "The train was late again.",
    "Once more the train did not come on time.",
    "Penguins cannot fly.",
]


def main() -> None:
    model = FlagModel(MODEL)
    vectors = model.encode(SENTENCES)  # [5, dimension]
    scores = model.similarity(vectors, vectors)  # [5, 5], cosine
    print("     " + "".join(f"{number:>7}" for number in range(len(SENTENCES))))
    for number, row in enumerate(scores):
        print(f"{number:>5}" + "".join(f"{score:7.3f}" for score in row) + f"  {SENTENCES[number]}")

    # Scores of BGE models lie close together: compare them with each other, not with a fixed number.
    np.fill_diagonal(scores, -1)
    for number, other in enumerate(scores.argmax(axis=1)):
        print(f"nearest to {number}: {other} ({scores[number, other]:.3f})")


if __name__ == "__main__":
    main()
