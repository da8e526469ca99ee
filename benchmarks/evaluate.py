"""Speed and memory of evaluation, see benchmarks/README.md.

python benchmarks/evaluate.py scifact --data ../shared/data/SciFact --model ../shared/models/bge-small-en-v1.5
python benchmarks/evaluate.py vectors --sizes 100000 300000 1000000
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from worker import OwnPages, status_mib

DIMENSION, QUERIES = 384, 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    scifact = commands.add_parser("scifact", help="a retrieval task end to end, against sentence-transformers and mteb")
    scifact.add_argument("--data", required=True)
    scifact.add_argument("--model", required=True)
    scifact.add_argument("--rounds", type=int, default=1)
    vectors = commands.add_parser("vectors", help="exact search over synthetic vectors: time and memory")
    vectors.add_argument("--sizes", type=int, nargs="+", default=[100_000, 300_000, 1_000_000])
    peer = commands.add_parser("peer", help="one process of the others")
    peer.add_argument("name")
    peer.add_argument("arguments", nargs="*")
    args = parser.parse_args()
    if args.command == "scifact":
        against_mteb(args)
    elif args.command == "vectors":
        many_vectors(args)
    else:
        print(json.dumps(PEERS[args.name](*args.arguments)))


def against_mteb(args: argparse.Namespace) -> None:
    """Whole processes, from the start of Python to the score, interleaved."""
    found: dict[str, list[dict[str, Any]]] = {"bgekit": [], "mteb": []}
    for number in range(args.rounds):
        for name in found:
            found[name].append(timed(name, args.model, args.data))
            print(f"round {number + 1}, {name}: {found[name][-1]}", flush=True)
    seconds = {name: statistics.median(each["seconds"] for each in rounds) for name, rounds in found.items()}
    print(f"{'':32} {'seconds':>8} {'ndcg@10':>8} {'peak, MiB':>10}")
    titles = {"bgekit": "bge eval", "mteb": "sentence-transformers and mteb"}
    for name, rounds in found.items():
        print(f"{titles[name]:32} {seconds[name]:8.1f} {rounds[0]['score']:8.2f} {rounds[0]['peak']:10,.0f}")
    print(f"bge eval is {seconds['mteb'] / seconds['bgekit']:.2f} times as fast")


def many_vectors(args: argparse.Namespace) -> None:
    """The same task with more and more documents; then the search alone against faiss and the matrix rate."""
    print(f"{'documents':>10} {'seconds':>8} {'of them search':>14} {'memory, MiB':>12}")
    for size in args.sizes:
        row = timed("vectors", str(size))
        print(f"{size:10,} {row['total']:8.1f} {row['search']:14.1f} {row['anonymous']:12,.0f}", flush=True)
    row = timed("search", str(max(args.sizes)))
    print(
        f"search alone, {max(args.sizes):,} vectors in memory, {QUERIES} queries, best 1,000: {row['bgekit']:.1f} s; "
        f"faiss IndexFlatIP {row['faiss']:.1f} s; the matrix product alone {row['product']:.1f} s"
    )


def timed(*arguments: str) -> dict[str, Any]:
    start = time.perf_counter()
    process = subprocess.run(
        [sys.executable, __file__, "peer", *arguments], stdout=subprocess.PIPE, text=True, check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"},
    )  # fmt: skip
    return json.loads(process.stdout.splitlines()[-1]) | {"seconds": time.perf_counter() - start}


def peer_bgekit(model: str, data: str) -> dict[str, Any]:
    from bgekit.evaluation import evaluate

    report = evaluate(model, data, progress=False)
    return {"score": report.results[0].main_score, "peak": status_mib("VmHWM")}


def peer_mteb(model: str, data: str) -> dict[str, Any]:
    """The defaults of both packages; the data is handed over in memory, as there may be no hub."""
    import mteb
    from sentence_transformers import SentenceTransformer

    from bgekit.evaluation import read_tasks
    from bgekit.evaluation.benchmarks.mteb_bridge import local_mteb_task
    from bgekit.models.card_reading import read_card

    loaded = SentenceTransformer(model, device="cpu")
    # mteb looks the instruction up in the model's prompts, which BGE's own folders lack.
    loaded.prompts = {"query": read_card(Path(model)).prompt("query").prefix, "document": ""}
    task = local_mteb_task(read_tasks(data)[0])
    result = mteb.evaluate(loaded, task, cache=None, overwrite_strategy="always")
    return {"score": 100 * result.task_results[0].get_score(), "peak": status_mib("VmHWM")}


def peer_vectors(size: str) -> dict[str, Any]:
    """A retrieval task whose documents' vectors come from their numbers."""
    from bgekit.data.records import Record
    from bgekit.evaluation import JudgedModel
    from bgekit.evaluation.tasks.retrieval import Corpus, RetrievalTask

    count = int(size)
    ids = [f"d{number}" for number in range(count)]
    corpus = Corpus(ids, lambda: (Record(id, id) for id in ids), f"synthetic {count}")
    queries = {f"q{number}": f"q{number}" for number in range(QUERIES)}
    qrels = {query: {f"d{count // QUERIES * number}": 1} for number, query in enumerate(queries)}
    task = RetrievalTask(name="synthetic", queries=queries, corpus=corpus, qrels=qrels)
    model = synthetic_embedder()
    with tempfile.TemporaryDirectory() as folder, OwnPages() as memory:
        judged = JudgedModel(model, folder=Path(folder), progress=False)
        start = time.perf_counter()
        with judged.corpus(corpus.read(), corpus.digest, "retrieval", task.name):
            made = time.perf_counter()
        task.score(judged)
        end = time.perf_counter()
    return {"total": end - start, "search": end - made, "anonymous": memory.peak_mib}


def peer_search(size: str) -> dict[str, Any]:
    import faiss
    import numpy as np

    from bgekit.inference.similarity import unit
    from bgekit.search.nearest import QUERIES as PART
    from bgekit.search.nearest import nearest

    random = np.random.default_rng(0)
    vectors = unit(random.standard_normal((int(size), DIMENSION), dtype=np.float32))
    queries = unit(random.standard_normal((QUERIES, DIMENSION), dtype=np.float32))
    blocks = [(first, vectors[first : first + 1024]) for first in range(0, len(vectors), 1024)]
    start = time.perf_counter()
    for first in range(0, QUERIES, PART):
        nearest(queries[first : first + PART], lambda: blocks, 1000, cosine=False)
    ours = time.perf_counter() - start
    start = time.perf_counter()
    for first in range(0, QUERIES, PART):
        for _, block in blocks:
            queries[first : first + PART] @ block.T
    product = time.perf_counter() - start
    index = faiss.IndexFlatIP(DIMENSION)
    index.add(vectors)
    start = time.perf_counter()
    index.search(queries, 1000)
    return {"bgekit": ours, "product": product, "faiss": time.perf_counter() - start}


def synthetic_embedder() -> Any:
    import numpy as np
    from given import Given

    def vectors_of(texts: list[str]) -> Any:
        seed = int.from_bytes(hashlib.sha256(texts[0].encode()).digest()[:8], "little")
        return np.random.default_rng(seed).standard_normal((len(texts), DIMENSION), dtype=np.float32)

    return Given("synthetic", DIMENSION, vectors_of)


PEERS = {"bgekit": peer_bgekit, "mteb": peer_mteb, "vectors": peer_vectors, "search": peer_search}

if __name__ == "__main__":
    main()
