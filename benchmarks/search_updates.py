"""What it costs to keep an index up to date: CPU time and bytes of adding, removing and synchronising a small part.

python benchmarks/search.py updates --sizes 100000 1000000 --types exact --share 0.01

An index is built of texts with ready-made vectors (a model that only looks them up, and whose own time is left out).
New documents, 1 % of its size, are added eight times, of which one merges segments; as many as at one time are replaced
and removed; and the input as a whole, with 1 % of its texts changed, is synchronised. Times are CPU times of the
process, in one run, beside those of the build; bytes are what the process handed to the system, temporary files
included, and what the change left.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from given import Given

from bgekit.data import Record
from bgekit.inference import encode_to_shards, load_shards
from bgekit.search import SearchIndex, index_records, index_shards

#: Texts are about as long as passages of MS MARCO.
WORDS = "the of a to and in is for with on as are by from at or an be this that it".split()
#: Times that documents are added: the last one merges what they left.
ADDITIONS = 8
TAILS = [" ".join(WORDS[(own * (at + 7)) % 21] for at in range(100)) for own in range(997)]


def ready(dimension: int) -> Given:
    """A model whose vectors are there: `12: some words` has the vector 12 of a few."""
    few = np.random.default_rng(0).normal(size=(8192, dimension)).astype(np.float32)
    few /= np.linalg.norm(few, axis=1, keepdims=True)

    def vectors_of(texts: list[str]) -> npt.NDArray[np.float32]:
        numbers = np.array([int(text.partition(":")[0]) for text in texts])
        # Each its own: a little of another vector, by the number.
        vectors = few[numbers % 8192] + 0.3 * few[(numbers // 8192 + 1) % 8192]
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors.astype(np.float32)

    return Given("ready", dimension, vectors_of)


def records(numbers: Iterable[int], offset: int = 0) -> Iterator[Record]:
    """Documents with texts and metadata; those of another offset have other texts."""
    for number in numbers:
        text = f"{number + offset}: {TAILS[(number + offset) % 997]}"
        yield Record(f"doc-{number:09d}", text, metadata={"year": 1990 + number % 35, "lang": ("en", "fr")[number % 2]})


def written() -> int:
    """Bytes that the process has handed to the system."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["wchar"])


def measured(model: Given, do: Callable[[], Any]) -> tuple[float, int, Any]:
    """CPU seconds without the model's own, and bytes written."""
    start, own, before = time.process_time(), model.seconds, written()
    found = do()
    return time.process_time() - start - (model.seconds - own), written() - before, found


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def report(place: Path, size: int, index_type: str, share: float, dimension: int) -> float:
    """Print the costs for one index; returns the time of adding as a share of the build's."""
    model, part, folder = ready(dimension), max(1, round(size * share)), place / "index"
    encode_to_shards(model, records(range(size)), place / "shards", store_texts=True)
    alone, _, _ = measured(
        model, lambda: index_shards(load_shards(place / "shards"), place / "alone", index_type=index_type)
    )
    shutil.rmtree(place / "alone")
    shutil.rmtree(place / "shards")
    build, bytes_, (index, _) = measured(
        model, lambda: index_records(model, records(range(size)), folder, index_type=index_type)
    )
    print(f"\n{size:,} texts of {dimension} dimensions, {index_type}; changes of {share:.1%}", flush=True)
    print(f"{'':38}{'CPU s':>8}{'of build':>10}{'MB written':>12}{'MB left':>9}")

    def line(name: str, seconds: float, written_: float, left: float) -> None:
        print(f"{name:38}{seconds:8.2f}{seconds / build:10.2%}{written_ / 1e6:12.1f}{left / 1e6:9.1f}", flush=True)

    line("build", build, bytes_, size_of(folder))
    line("  of encoded shards alone", alone, 0, 0)
    costs = []
    for number in range(ADDITIONS):
        rows = range(size + number * part, size + (number + 1) * part)
        seconds, bytes_, made = measured(model, lambda rows=rows: index.add(model, records(rows)))
        assert made.added == part == made.encoded
        costs.append((seconds, bytes_, made.bytes_written))
    added, bytes_, left = np.mean(costs, axis=0)
    line(f"add new documents, mean of {ADDITIONS} times", added, bytes_, left)
    print(f"{'':38}{added / alone:18.2%} of the build from shards")
    some = range(0, size, max(size // part, 1))
    seconds, bytes_, made = measured(model, lambda: index.add(model, records(some, offset=10 * size)))
    assert made.removed == len(some)
    line("replace documents", seconds, bytes_, made.bytes_written)
    before = size_of(folder)
    seconds, bytes_, made = measured(model, lambda: index.remove([f"doc-{number:09d}" for number in rows]))
    assert made.rows == part
    index.remove([f"doc-{number:09d}" for number in range(size, rows[0])])
    line("remove documents", seconds, bytes_, max(size_of(folder) - before, 0))
    chosen = set(some)
    texts = (next(records([number], 20 * size if number in chosen else 0)) for number in range(size))
    seconds, bytes_, (_, made) = measured(model, lambda: index_records(model, texts, folder))
    assert made.texts - made.kept == len(some)
    line("synchronise the whole input", seconds, bytes_, 0)
    index = SearchIndex.load(folder)
    seconds, bytes_, made = measured(model, index.compact)
    line("compact", seconds, bytes_, made.bytes_written)
    print(
        json.dumps({"size": size, "type": index_type, "add_share": added / build, "add_share_of_shards": added / alone})
    )
    return added / build


def updates_options(commands: Any) -> None:
    """The command `updates` of search.py."""
    updates = commands.add_parser("updates", help="adding, removing and synchronising beside a build")
    updates.add_argument("--sizes", type=int, nargs="+", default=[100_000, 1_000_000], help="texts of each index")
    updates.add_argument("--types", nargs="+", default=["exact"], help="types of index")
    updates.add_argument("--share", type=float, default=0.01, help="part that changes [0.01]")
    updates.add_argument("--dimension", type=int, default=384)
    updates.add_argument(
        "--most", type=float, default=0.03, help="exit with 1 where adding costs a larger part of a build"
    )
    updates.add_argument("--place", help="folder for the files [a temporary one]")
    updates.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure; 1 where adding costs too much."""
    worst = 0.0
    for size in args.sizes:
        for index_type in args.types:
            with tempfile.TemporaryDirectory(dir=args.place) as place:
                worst = max(worst, report(Path(place), size, index_type, args.share, args.dimension))
    print(f"adding took at most {worst:.2%} of a build's CPU time")
    return int(worst > args.most)
