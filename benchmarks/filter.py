"""The cost of a condition on metadata: `search(..., where=...)` against the same search without one.

    .venv/bin/python benchmarks/filter.py                        # 1,000,000 vectors of 384 dimensions, exact search
    .venv/bin/python benchmarks/filter.py --types hnsw ivf --vectors 200000

Vectors are random points around centres, one to a row of a temporary index on disk that is built by way of `bge
encode`'s shards. Conditions keep 1 to 100 % of the rows, whichever they are, and no condition is used twice, so that
parsing it and marking the rows is part of each time. Every timed search with a condition is followed by the same one
without. Medians count. Of approximate indexes the recall is that of exact search over the same rows.

It exits with 1 if exact search with a condition that keeps 10 % takes more than 1.3 times the time without.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from given import Given

from bgekit.data import Record
from bgekit.inference import encode_to_shards, load_shards
from bgekit.search import SearchIndex, index_shards
from bgekit.search.build import with_type

#: Rows kept by a condition on the column `part`, in percent.
KEPT = (1, 2, 3, 5, 10, 20, 50, 90, 100)
#: The most that a condition may cost at 10 %, in times of the search without one.
LIMIT = 1.3
TOP_K = 10


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--types", nargs="+", choices=("exact", "hnsw", "ivf"), default=["exact"])
    parser.add_argument("--rounds", type=int, default=9, help="timed searches of each kind [9]")
    parser.add_argument("--queries", type=int, default=1, help="queries per search [1]")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bgekit-filter-") as place:
        start = time.perf_counter()
        folder = build(Path(place), args.vectors, args.dimension)
        print(f"{args.vectors:,} vectors of {args.dimension} dimensions, built in {time.perf_counter() - start:.0f} s")
        worst = 0.0
        for index_type in args.types:
            start = time.perf_counter()
            with_type(folder, index_type)
            if index_type != "exact":
                print(f"{index_type} built in {time.perf_counter() - start:.0f} s")
            worst = max(worst, report(SearchIndex.load(folder), args.rounds, args.queries))
    if worst > LIMIT:
        print(f"a condition that keeps 10 % costs {worst:.2f} times the search without one; the limit is {LIMIT}")
    return int(worst > LIMIT)


def report(index: SearchIndex, rounds: int, queries: int) -> float:
    """Print the times of an index; returns the ratio that is limited, 0 for approximate indexes."""
    kind, limited = index.facts.index_type, 0.0
    print(f"\n{kind}, {queries} queries per search, best {TOP_K}, median of {rounds}")
    print(f"{'kept':>6} {'with, ms':>10} {'without, ms':>12} {'ratio':>7} {'recall':>8}")
    centres = centres_of(index.dimension)
    for percent in KEPT:
        times: dict[str, list[float]] = {"with": [], "without": []}
        found, wanted = 0, 0
        for number in range(-1, rounds):  # The first is a warm-up.
            random = np.random.default_rng([percent, number + 1])
            asked = around(centres, random, queries)
            where = f"part < {percent} and price >= {-1 - number}"
            start = time.perf_counter()
            hits = index.search(asked, TOP_K, where=where)
            middle = time.perf_counter()
            index.search(asked, TOP_K)
            end = time.perf_counter()
            if number >= 0:
                times["with"].append(middle - start)
                times["without"].append(end - middle)
            if kind != "exact":
                best = exactly(index, asked, where)
                found += sum(len({hit.id for hit in one} & known) for one, known in zip(hits, best, strict=True))
                wanted += sum(map(len, best))
        own, other = (statistics.median(times[name]) * 1000 for name in ("with", "without"))
        recall = f"{found / wanted:8.1%}" if wanted else f"{'':8}"
        print(f"{percent:5} % {own:9.1f} {other:12.1f} {own / other:7.2f} {recall}", flush=True)
        if percent == 10 and kind == "exact":
            limited = own / other
    return limited


def exactly(index: SearchIndex, queries: Any, where: str) -> list[set[str]]:
    """Ids of the best rows that a condition keeps, by all of their scores."""
    from bgekit.search.where import Where

    rows = np.flatnonzero(Where(where).rows(index.metadata))
    scores = queries @ index.stored.vectors(rows).T
    return [{str(rows[at]) for at in np.argpartition(-each, TOP_K)[:TOP_K]} for each in scores]


def build(place: Path, count: int, dimension: int) -> Path:
    """An index of random vectors with metadata."""
    parts = np.random.default_rng(1).integers(0, 100, count)
    prices = np.random.default_rng(2).random(count)
    records = (
        Record(str(row), str(row), metadata={"part": int(parts[row]), "price": float(prices[row]), "lang": "en"})
        for row in range(count)
    )
    encode_to_shards(synthetic_embedder(dimension), records, place / "shards", shard_size=1 << 14)
    return index_shards(load_shards(place / "shards"), place / "index").folder


def centres_of(dimension: int) -> Any:
    return np.random.default_rng(0).standard_normal((1000, dimension), dtype=np.float32)


def around(centres: Any, random: np.random.Generator, count: int) -> Any:
    """Vectors of length 1 around some of the centres."""
    noise = random.standard_normal((count, centres.shape[1]), dtype=np.float32)
    vectors = centres[random.integers(0, len(centres), count)] + 1.5 * noise
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def synthetic_embedder(width: int) -> Given:
    """An embedder whose vectors come from the number that a block of texts begins with."""
    centres = centres_of(width)
    return Given(
        "synthetic", width, lambda texts: around(centres, np.random.default_rng(int(texts[0])), len(texts))
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
