"""Search over stored vectors, see benchmarks/README.md.

python benchmarks/search.py exact --sizes 100000 1000000 --k 10 100 1000 --queries 1 1000 --least 1.0
python benchmarks/search.py approximate --sizes 1000000
python benchmarks/search.py updates --sizes 100000 1000000
"""

from __future__ import annotations

import argparse
import gzip
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from given import Given
from search_approximate import approximate_options
from search_updates import updates_options
from worker import OwnPages

from bgekit.data import Record
from bgekit.inference import encode_to_shards, load_shards
from bgekit.search import SearchIndex, index_shards

SHARED = Path(__file__).resolve().parents[2] / "shared"
#: Collections whose documents and queries are encoded, and characters of a document.
COLLECTIONS = ("MSMARCODev600Retrieval", "MLQuestions", "SciFact", "Cranfield")
CHARACTERS = 600
#: Length of the noise in a copy of a vector, which then has a cosine of 0.8 to 0.9 to the original.
NOISE = (0.484, 0.75)
#: Who searches exactly.
PEERS = ("bgekit", "faiss", "numpy")
#: Scores nearer to each other than this count as equal.
TIE = 1e-6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for add in (exact_options, memory_options, updates_options, approximate_options):
        add(commands)
    args = parser.parse_args()
    return int(args.run(args))


# Vectors that are searched.


def real_vectors(work: Path) -> tuple[Any, Any, str]:
    """Vectors of documents and of queries, and what they are; encoded once and kept in a folder."""
    model = SHARED / "models" / "bge-small-en-v1.5"
    files = [work / "documents.npy", work / "queries.npy"]
    if not all(file.exists() for file in files):
        if not (model.is_dir() and (SHARED / "data").is_dir()):
            centres = np.random.default_rng(0).standard_normal((20_000, 384), dtype=np.float32)
            queries = centres[:2000] + np.random.default_rng(1).standard_normal((2000, 384), dtype=np.float32)
            return unit(centres), unit(queries), "random vectors (there is no shared data)"
        from bgekit import FlagModel

        encoder = FlagModel(str(model))
        documents = [f"{each['title']} {each['text']}".strip()[:CHARACTERS] for each in lines("corpus")]
        asked = [each["text"] for each in lines("queries")][:2500]
        for file, vectors in zip(
            files,
            (encoder.encode_corpus(documents, convert_to_numpy=True), encoder.encode_queries(asked)),
            strict=True,
        ):
            np.save(file, np.asarray(vectors))
    documents, queries = (np.load(file) for file in files)
    what = f"{len(documents):,} texts of {', '.join(COLLECTIONS)} by bge-small-en-v1.5"
    return documents, queries[np.random.default_rng(2).permutation(len(queries))], what


def lines(part: str) -> Iterator[Any]:
    """The lines of a part of all collections."""
    for collection in COLLECTIONS:
        plain = SHARED / "data" / collection / f"{part}.jsonl"
        packed = plain.with_suffix(".jsonl.gz")
        with plain.open(encoding="utf-8") if plain.exists() else gzip.open(packed, "rt", encoding="utf-8") as file:
            yield from map(json.loads, file)


def unit(vectors: Any) -> Any:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def with_copies(documents: Any, first: int, count: int) -> Any:
    """Rows of an endless list of vectors: the documents, then copies of them with noise."""
    rows = np.arange(first, first + count)
    random = np.random.default_rng(first)
    vectors = documents[rows % len(documents)].copy()
    copies = rows >= len(documents)
    noise = unit(random.standard_normal((count, documents.shape[1]), dtype=np.float32))
    vectors[copies] += (noise * random.uniform(*NOISE, (count, 1)).astype(np.float32))[copies]
    return unit(vectors)


def index_of(documents: Any, size: int, work: Path) -> Path:
    """An exact index of so many vectors, with texts and metadata; kept in a folder."""
    folder = work / f"index-{size}"
    if not folder.exists():
        model = Given(
            "given", documents.shape[1],
            lambda texts: with_copies(documents, int(texts[0].split()[-1]), len(texts)),
        )  # fmt: skip
        words = "a passage of about as many characters as those that people search for have, give or take some, " * 4
        records = (
            Record(f"d{row}", f"{words}{row}", metadata={"year": 1990 + row % 40, "lang": "en"}) for row in range(size)
        )
        with tempfile.TemporaryDirectory(dir=work) as place:
            encode_to_shards(model, records, f"{place}/shards", shard_size=1 << 14, store_texts=True)
            index_shards(load_shards(f"{place}/shards"), folder)
    return folder


# bge search --index-type exact


def exact_options(commands: Any) -> None:
    exact = commands.add_parser("exact", help="SearchIndex.nearest against faiss IndexFlatIP and numpy")
    exact.add_argument("--sizes", type=int, nargs="+", default=[100_000, 1_000_000])
    exact.add_argument("--k", type=int, nargs="+", default=[10, 100, 1000])
    exact.add_argument("--queries", type=int, nargs="+", default=[1, 1000])
    exact.add_argument("--least", type=float, default=0.0, help="exit with 1 below so many times the speed of faiss")
    exact.add_argument("--peers", nargs="+", choices=("faiss", "numpy"), default=["faiss", "numpy"])
    exact.add_argument("--rounds", type=int, default=5, help="timed calls of each, in turns [5]")
    exact.add_argument("--threads", type=int, help="threads of all [those of torch]")
    exact.add_argument("--work", type=Path, default=Path("build/search"), help="where vectors and indexes are kept")
    exact.set_defaults(run=exact_search)


def exact_search(args: argparse.Namespace) -> int:
    import faiss
    import torch

    if "faiss" not in args.peers and args.least:
        raise SystemExit("--least compares with faiss: leave it among --peers")
    if args.threads:
        torch.set_num_threads(args.threads)
    logging.getLogger("bgekit").setLevel(logging.ERROR)  # It is not known whose vectors these are.
    threads = torch.get_num_threads()
    faiss.omp_set_num_threads(threads)
    args.work.mkdir(parents=True, exist_ok=True)
    documents, queries, what = real_vectors(args.work)
    print(f"{what}; beyond these, copies with noise, cosine 0.8 to 0.9; {threads} threads; medians of {args.rounds}")
    print(f"{'vectors':>10} {'queries':>7} {'k':>5} {'bgekit, ms':>10} {'faiss, ms':>10} {'numpy, ms':>10} "
          f"{'times faiss':>11} {'CPU':>5} {'furthest':>9}")  # fmt: skip
    worst, wrong = float("inf"), 0.0
    for size in args.sizes:
        index = SearchIndex.load(index_of(documents, size, args.work))
        vectors = np.load(index.folder / "vectors.npy", mmap_mode="r")
        flat = faiss.IndexFlatIP(vectors.shape[1])
        flat.add(np.ascontiguousarray(vectors))
        for warm in (1, 9):
            index.nearest(queries[:warm], 10)
            flat.search(queries[:warm], 10)
        for number in args.queries:
            asked = np.ascontiguousarray(queries[:number])
            for k in args.k:
                contenders: dict[str, Callable[[], Any]] = {
                    "bgekit": partial(index.nearest, asked, k), "faiss": partial(flat.search, asked, k),
                    "numpy": partial(by_numpy, vectors, asked, k),
                }  # fmt: skip
                contenders = {name: contenders[name] for name in ("bgekit", *args.peers)}
                wall, cpu, found = in_turns(contenders, args.rounds)
                wall, cpu = ({name: each.get(name, float("nan")) for name in PEERS} for each in (wall, cpu))
                ratio, of_cpu = wall["faiss"] / wall["bgekit"], cpu["faiss"] / cpu["bgekit"]
                off = furthest(vectors, asked, k, *found["bgekit"])
                worst, wrong = min(worst, ratio), max(wrong, off)
                print(f"{size:10,} {number:7,} {k:5,} {wall['bgekit']:10.1f} {wall['faiss']:10.1f} "
                      f"{wall['numpy']:10.1f} {ratio:11.2f} {of_cpu:5.2f} {off:9.1e}", flush=True)  # fmt: skip
        del flat
        print_hits(index, queries, args.rounds)
        print_memory(index.folder, args.work / "queries.npy", threads)
    if wrong > TIE:
        print(f"a score differs by {wrong:.1e} from that of sorting all scores in float64")
        return 1
    if worst < args.least:
        print(f"{worst:.2f} times the speed of faiss, asked for were {args.least}")
        return 1
    return 0


def in_turns(contenders: dict[str, Callable[[], Any]], rounds: int, pause: float = 0.05) -> tuple[Any, Any, Any]:
    """Median milliseconds and CPU time of each, and what it found; a round gives each one turn, in changing order.

    The pause before a turn is for the threads of another one's OpenMP, which spin for milliseconds after their work.
    Where both have the same threads there should be none: after a pause the second thread may begin 10 ms late.
    """
    wall: dict[str, list[float]] = {name: [] for name in contenders}
    cpu: dict[str, list[float]] = {name: [] for name in contenders}
    found = {}
    for number in range(rounds):
        names = list(contenders)
        for name in names if number % 2 else reversed(names):
            # numpy takes long: one round is enough where it is.
            if name == "numpy" and number > 0 and wall[name][0] > 2000:
                continue
            time.sleep(pause)
            start, start_cpu = time.perf_counter(), time.process_time()
            found[name] = contenders[name]()
            wall[name].append(1000 * (time.perf_counter() - start))
            cpu[name].append(1000 * (time.process_time() - start_cpu))
    medians = [{name: statistics.median(times) for name, times in each.items()} for each in (wall, cpu)]
    return *medians, found


def by_numpy(vectors: Any, queries: Any, k: int) -> tuple[Any, Any]:
    """All products of some queries, of which the best are sorted."""
    scores, rows = [], []
    step = max(1, (1 << 26) // len(vectors))
    for first in range(0, len(queries), step):
        products = queries[first : first + step] @ vectors.T
        best = np.argpartition(-products, k - 1, axis=1)[:, :k]
        own = np.take_along_axis(products, best, axis=1)
        order = np.argsort(-own, axis=1, kind="stable")
        scores.append(np.take_along_axis(own, order, axis=1))
        rows.append(np.take_along_axis(best, order, axis=1))
    return np.concatenate(scores), np.concatenate(rows)


def furthest(vectors: Any, queries: Any, k: int, scores: Any, rows: Any, most: int = 20) -> float:
    """How far scores are at most from those of sorting all in float64, at each rank and of each row."""
    off = 0.0
    wide = queries[:most].astype(np.float64)
    every = np.concatenate([wide @ vectors[at : at + 8192].astype(np.float64).T for at in range(0, len(vectors), 8192)],
                           axis=1)  # fmt: skip
    for own, there, all_scores in zip(scores, rows, every, strict=False):
        if len(set(there.tolist())) < k:
            return float("inf")
        best = -np.sort(-all_scores)[:k]
        off = max(off, float(np.abs(own - best).max()), float(np.abs(own - all_scores[there]).max()))
    return off


def print_hits(index: SearchIndex, queries: Any, rounds: int) -> None:
    """What texts and metadata cost."""
    one = queries[:1]
    wall, _, _ = in_turns(
        {"nearest": lambda: index.nearest(one, 10), "search": lambda: index.search(one, 10)}, 10 * rounds, pause=0
    )
    print(f"{'':10} one query, k = 10: search with texts and metadata {wall['search']:.1f} ms, "
          f"nearest {wall['nearest']:.1f} ms, {wall['search'] / wall['nearest']:.2f} times")  # fmt: skip
    for number in (1, 100):
        some = queries[:number]
        wall, _, _ = in_turns(
            {
                "nearest": lambda some=some: index.nearest(some, 1000),
                "search": lambda some=some: index.search(some, 1000),
            },
            min(rounds, 3),
        )
        each = 1000 * (wall["search"] - wall["nearest"]) / (1000 * number)
        print(f"{'':10} {number} queries, k = 1,000: search {wall['search']:.1f} ms, nearest {wall['nearest']:.1f} ms: "
              f"{each:.1f} microseconds a hit", flush=True)  # fmt: skip


def print_memory(folder: Path, queries: Path, threads: int) -> None:
    """The memory of a process of its own that searches, beyond the mapped vectors."""
    run = subprocess.run(
        [sys.executable, __file__, "memory", str(folder), str(queries), "--threads", str(threads)],
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    print(f"{'':10} memory of 1,000 queries, k = 1,000, beyond the vectors: {json.loads(run.stdout)['mb']:.0f} MB",
          flush=True)  # fmt: skip


def memory_options(commands: Any) -> None:
    memory = commands.add_parser("memory", help="used by exact: own pages that 1,000 queries with k = 1,000 take")
    memory.add_argument("index", type=Path)
    memory.add_argument("queries", type=Path)
    memory.add_argument("--threads", type=int)
    memory.set_defaults(run=memory_of_search)


def memory_of_search(args: argparse.Namespace) -> int:
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    logging.getLogger("bgekit").setLevel(logging.ERROR)
    index, queries = SearchIndex.load(args.index), np.load(args.queries)[:1000]
    small = torch.ones(64, 64, dtype=torch.bfloat16)
    torch.mm(small, small)  # What libraries take once.
    start = time.perf_counter()
    with OwnPages(every=0.005) as pages:
        index.nearest(queries, 1000)
    print(json.dumps({"mb": pages.grown_mb, "seconds": time.perf_counter() - start}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
