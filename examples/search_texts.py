"""Search texts of your own by meaning: python search_texts.py [MODEL]."""

import sys

from bgekit import FlagModel

MODEL = sys.argv[1] if len(sys.argv) > 1 else "BAAI/bge-small-en-v1.5"

PASSAGES = [
    "csv.reader iterates over the lines of a file and returns each as a list of strings.",
    "Bread needs flour, water, salt and time.",
    "json.loads turns a JSON document into Python objects.",
    "The river rises in the mountains and reaches the sea after a thousand kilometres.",
]
QUESTIONS = ["how do I read a table from a text file", "what is in a loaf"]


def main() -> None:
    # Pooling, unit length and the instruction that BGE models want before queries come from the model's card.
    model = FlagModel(MODEL)
    passages = model.encode_corpus(PASSAGES)
    scores = model.similarity(model.encode_queries(QUESTIONS), passages)
    for question, row in zip(QUESTIONS, scores, strict=True):
        print(question)
        for number in row.argsort()[::-1][:2]:
            print(f"  {row[number]:.3f}  {PASSAGES[number]}")


if __name__ == "__main__":
    main()
