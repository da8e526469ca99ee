"""The same numbers from our task code and from the mteb package on the same data. As a program, on real data:

python tests/evaluation/test_mteb_equality.py ../shared/data [--model MODEL] [--fresh]

Both sides see the very same vectors: what is compared is the protocols. (With --fresh each text is encoded anew for
each side. A vector then differs in its last bits with the texts beside it in a batch, so scores do, too.) mteb rounds
the means of ranking metrics to five digits; `evaluate_mteb` gives the means of its unrounded values of the queries.
It computes similarities of pairs in the type of the vectors, we in float64: as float32 its rounding makes ties that
move a rank correlation by about 1e-6, so for pairs it gets the same vectors as float64 (--float32 leaves them).
"""

import argparse
import os
import time
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from bgekit.data.records import Record
from bgekit.evaluation.judged_model import JudgedModel
from bgekit.evaluation.tasks.bitext import BitextTask
from bgekit.evaluation.tasks.classification import ClassificationTask
from bgekit.evaluation.tasks.clustering import ClusteringTask
from bgekit.evaluation.tasks.pairs import PairClassificationTask, StsTask
from bgekit.evaluation.tasks.reranking import RerankingGroup, RerankingTask
from bgekit.evaluation.tasks.retrieval import Corpus, RetrievalTask
from bgekit.evaluation.tasks.summarization import SummarizationTask, SummaryGroup
from bgekit.inference.model import Embedder
from bgekit.inference.pipeline import Encoded
from bgekit.models.card import ModelCard, Prompt

TOLERANCE = 1e-6
TOPICS = [
    "cat dog bird horse fish", "river sea lake rain snow", "python code class loop test", "bread rice soup tea milk"
]  # fmt: skip
TOPICS = [topic.split() for topic in TOPICS]

#: A task of each kind that has local data: folder and split.
REAL = {
    "retrieval": ("SciFact", "test"),
    "reranking": ("MSMARCODev600Reranking", "dev"),
    "sts": ("STSBenchmark", "test"),
    "pair_classification": ("Ocnli", "validation"),
    "classification": ("AmazonCounterfactualClassification-en", "test"),
    "bitext": ("Tatoeba-cmn-eng", "test"),
    "clustering": ("THUCNewsTitlesClustering", "test"),
}


class Words(Embedder):
    """Vectors without a model: the sum of a random vector of each word, and a little of the text's own."""

    dimension = 24
    precision = "float32"
    fingerprint = "0" * 64

    def __init__(self):
        self.card = ModelCard(
            name="words", pooling="mean", normalize=True, max_length=512, dimension=24,
            prompts={"query": Prompt("find "), "document": Prompt()},
        )  # fmt: skip

    def _compute(self, blocks, prompt, max_length, batch_size):
        for texts in blocks:
            vectors = [self._vector(prompt.prefix + text) for text in texts]
            yield Encoded(np.stack(vectors).astype(np.float32), len(texts))

    def _vector(self, text):
        parts = [_random(word) for word in text.split()]
        vector = np.sum(parts, axis=0) + 0.5 * _random(text)
        return vector / np.linalg.norm(vector)


class Remembering(Embedder):
    """Another embedder that encodes each text with each prompt once."""

    def __init__(self, inner):
        self.inner, self.card, self.known = inner, inner.card, {}

    dimension = property(lambda self: self.inner.dimension)
    precision = property(lambda self: self.inner.precision)
    fingerprint = property(lambda self: self.inner.fingerprint)

    def _compute(self, blocks, prompt, max_length, batch_size):
        for texts in blocks:
            missing = [text for text in texts if (prompt, text) not in self.known]
            if missing:
                for encoded in self.inner._compute([missing], prompt, max_length, batch_size):
                    self.known |= {
                        (prompt, text): vector for text, vector in zip(missing, encoded.vectors, strict=True)
                    }
            yield Encoded(np.stack([self.known[prompt, text] for text in texts]), len(texts))


def _random(text):
    seed = int.from_bytes(text.encode()[-16:], "little") % 2**63
    return np.random.default_rng(seed).standard_normal(24)


def synthetic(kind):
    """A small task in which right answers are likely but not certain."""
    random = np.random.default_rng(7)

    def text(topic, words=5):
        pool = TOPICS[topic] if random.random() < 0.7 else [word for words in TOPICS for word in words]
        return " ".join(random.choice(pool, words))

    topics = random.integers(0, 4, 60).tolist()
    alike = [random.random() < 0.5 for _ in topics]
    first = [text(topic) for topic in topics]
    second = [text(topic if same else (topic + 1) % 4) for topic, same in zip(topics, alike, strict=True)]
    if kind == "retrieval":
        records = [Record(f"d{i}", text(i % 4, 8)) for i in range(80)]
        qrels = {f"q{i}": {f"d{j}": 1 + j % 2 for j in range(i % 4, 80, 12)} for i in range(20)}
        return RetrievalTask(
            name="Retrieval", queries={query: text(i % 4, 3) for i, query in enumerate(qrels)}, qrels=qrels,
            corpus=Corpus([record.id for record in records], lambda: iter(records), "0" * 64),
        )  # fmt: skip
    if kind == "reranking":
        groups = [
            RerankingGroup(text(t, 3), [text(t) for _ in range(1 + i % 3)], [text((t + j) % 4) for j in range(5)])
            for i, t in enumerate(topics[:20])
        ]
        return RerankingTask(name="Reranking", groups=groups, query_instruction=True)
    if kind == "sts":
        return StsTask(
            name="Sts", first=first, second=second, scores=[3.0 * same + float(random.integers(0, 3)) for same in alike]
        )
    if kind == "pair_classification":
        return PairClassificationTask(name="Pairs", first=first, second=second, labels=list(map(int, alike)))
    if kind == "classification":
        train = [(text(i % 4), "abcd"[i % 4]) for i in range(120)]
        test = [(text(topic), "abcd"[topic]) for topic in topics]
        return ClassificationTask(
            name="Classes", train_texts=[t for t, _ in train], train_labels=[label for _, label in train],
            texts=[t for t, _ in test], labels=[label for _, label in test],
        )  # fmt: skip
    if kind == "clustering":
        sets = [([text(topic) for topic in topics], ["abcd"[topic] for topic in topics]) for _ in range(3)]
        return ClusteringTask(name="Clusters", sets=sets)
    if kind == "bitext":
        # The same words in another order, one of them replaced.
        moved = [" ".join([*sorted(line.split())[1:], text(0, 1)]) for line in first]
        return BitextTask(name="Bitext", first=first, second=moved)
    groups = [
        SummaryGroup("", [text(t) for _ in range(3)], [text(t) for _ in range(6)], random.integers(1, 6, 6).tolist())
        for t in topics[:12]
    ]
    return SummarizationTask(name="Summaries", groups=groups)


def both(task, embedder, *, exact=True):
    """Metrics from our code and from mteb's."""
    from bgekit.evaluation.benchmarks.mteb_bridge import MtebEncoder, evaluate_mteb, local_mteb_task

    ours = task.score(JudgedModel(embedder, progress=False))
    dtype = np.float64 if exact and task.kind in ("sts", "pair_classification", "summarization") else np.float32
    theirs = evaluate_mteb(local_mteb_task(task), MtebEncoder(embedder, dtype=dtype), task.split, task.main_metric)
    return dict(ours.metrics), dict(theirs.metrics)


KINDS = [*REAL, "summarization"]


@pytest.mark.parametrize("kind", KINDS)
def test_synthetic_data_scores_alike(kind):
    pytest.importorskip("mteb")
    task = synthetic(kind)
    ours, theirs = both(task, Remembering(Words()))
    assert 0.05 < ours[task.main_metric] < 0.999  # neither hopeless nor trivial, so that differences would show
    shared = ours.keys() & theirs.keys()
    assert task.main_metric in shared and len(shared) >= 2
    for name in shared:
        assert ours[name] == pytest.approx(theirs[name], abs=TOLERANCE), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", REAL)
def test_real_data_scores_alike(kind, shared_path, minilm):
    pytest.importorskip("mteb")
    from bgekit import FlagModel
    from bgekit.evaluation.readers.detect import read_tasks

    folder, split = REAL[kind]
    (task,) = read_tasks(shared_path("data", folder), split=split)
    with FlagModel(minilm) as model:
        ours, theirs = both(task, Remembering(model))
    assert ours[task.main_metric] == pytest.approx(theirs[task.main_metric], abs=TOLERANCE)


def main():
    from bgekit import FlagModel
    from bgekit.evaluation.readers.detect import read_tasks

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the data sets")
    parser.add_argument("--model", default="packaged:all-MiniLM-L6-v2")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--fresh", action="store_true", help="encode anew for each side")
    parser.add_argument("--float32", action="store_true", help="give mteb float32 vectors of pairs, too")
    args = parser.parse_args()
    print(f"{'task':40} {'metric':16} {'ours':>12} {'mteb':>12} {'difference':>11}  shared metrics within 1e-6")
    worst = 0.0
    with FlagModel(args.model) as model:
        for kind in args.kinds:
            task = synthetic(kind)
            if kind in REAL:
                folder, split = REAL[kind]
                (task,) = read_tasks(args.data / folder, split=split)
            start = time.perf_counter()
            ours, theirs = both(task, model if args.fresh else Remembering(model), exact=not args.float32)
            a, b = ours[task.main_metric], theirs[task.main_metric]
            shared = ours.keys() & theirs.keys()
            alike = sum(abs(ours[name] - theirs[name]) <= TOLERANCE for name in shared)
            worst = max(worst, abs(a - b))
            told = f"{task.name} ({task.split})" if kind in REAL else f"{task.name} (synthetic)"
            print(
                f"{told:40} {task.main_metric:16} {a:12.8f} {b:12.8f} {a - b:+11.1e}  {alike} of {len(shared)}"
                f"  ({time.perf_counter() - start:.0f} s)",
                flush=True,
            )
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    raise SystemExit(main())
