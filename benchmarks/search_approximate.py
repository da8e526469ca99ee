"""`search.py approximate`: memory, time to build, latency and recall of each type of index, and of its peers."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

#: Queries that are asked one at a time, and nearest rows that are wanted of each. The first 1,000 were looked at when
#: the ways of search were chosen: these are others.
ASKED, K = slice(1000, 2000), 10
#: Percent of the rows that conditions keep, and queries that each is measured with.
KEPT, KEPT_QUERIES = (50, 10, 1), 100
#: Widths that a graph of a peer is searched with until it finds enough.
WIDTHS = (16, 32, 64, 128, 256, 512, 1024)
PEERS = ("faiss-hnsw", "faiss-ivfpq", "usearch")


def approximate_options(commands: Any) -> None:
    parser = commands.add_parser("approximate", help="types of index against each other and their peers")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--types", nargs="*", default=["exact", "int8", "binary", "ivf", "hnsw"])
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--recall", type=float, help="as of bge search [0.99]")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cold", action="store_true", help="also with the vectors out of the system's cache")
    parser.add_argument("--work", type=Path, default=Path("build/search"), help="where vectors and indexes are kept")
    parser.set_defaults(run=approximate_search)
    for name, run in (
        ("make-vectors", make_vectors), ("make-type", make_type), ("serve-type", serve_type), ("make-peer", make_peer)
    ):  # fmt: skip
        child = commands.add_parser(name, help="used by approximate, in a process of its own")
        child.add_argument("folder", type=Path)
        child.add_argument("kind")
        child.add_argument("queries", type=Path)
        child.add_argument("--recall", type=float)
        child.add_argument("--threads", type=int, default=2)
        child.add_argument("--cold", action="store_true")
        child.set_defaults(run=run)


def approximate_search(args: argparse.Namespace) -> int:
    from search import real_vectors

    args.work.mkdir(parents=True, exist_ok=True)
    _, queries, what = real_vectors(args.work)
    files = args.work / "asked.npy"
    np.save(files, queries[ASKED])
    print(f"{what}; all vectors are copies of these with noise, cosine 0.8 to 0.9; {len(queries[ASKED]):,} real "
          f"queries, one at a time; best {K}; {args.threads} threads; {disk(args.work)}")  # fmt: skip
    print(f"{'vectors':>10} {'index':<11} {'build, s':>8} {'CPU, s':>7} {'own MB':>7} {'on disk':>8} {'resident':>8} "
          f"{'vectors':>8} {'ms':>7} {'CPU ms':>7} {'cold ms':>7} {'recall':>7}  "
          f"recall, ms where {KEPT} % are kept")  # fmt: skip
    for size in args.sizes:
        folder = args.work / f"copies-{size}"
        made = child("make-vectors", folder, str(size), files, args)
        if made["made"]:
            print_row(size, "vectors", made)
        for kind in args.types:
            made = child("make-type", folder, kind, files, args)
            print_row(size, kind, made | child("serve-type", folder, kind, files, args))
        for kind in args.peers:
            print_row(size, kind, child("make-peer", folder, kind, files, args))
    return 0


def print_row(size: int, kind: str, row: dict[str, Any]) -> None:
    def shown(name: str, digits: int = 0) -> str:
        return f"{row[name]:,.{digits}f}" if row.get(name) is not None else "-"

    kept = "  ".join(f"{recall:.3f} {ms:.1f}" for recall, ms in row.get("kept", []))
    print(f"{size:10,} {kind:<11} {shown('build'):>8} {shown('cpu'):>7} {shown('own'):>7} {shown('disk'):>8} "
          f"{shown('resident'):>8} {shown('mapped'):>8} {shown('ms', 2):>7} {shown('cpu_ms', 2):>7} "
          f"{shown('cold', 2):>7} {shown('recall', 4):>7}  {kept}", flush=True)  # fmt: skip


def child(command: str, folder: Path, kind: str, queries: Path, args: argparse.Namespace) -> dict[str, Any]:
    """What a step of its own process printed: memory is that of this step alone."""
    line = [sys.executable, str(Path(__file__).with_name("search.py")), command, str(folder), kind, str(queries),
            "--threads", str(args.threads)]  # fmt: skip
    line += [] if args.recall is None else ["--recall", str(args.recall)]
    line += ["--cold"] if args.cold else []
    done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def disk(folder: Path) -> str:
    """How fast the disk under a folder writes and reads, roughly."""
    file, block = folder / "disk.tmp", os.urandom(1 << 24)
    start = time.perf_counter()
    with file.open("wb") as writing:
        for _ in range(16):
            writing.write(block)
        os.fsync(writing.fileno())
    middle = time.perf_counter()
    forget(file)
    with file.open("rb") as reading:
        while reading.read(1 << 24):
            pass
    end = time.perf_counter()
    file.unlink()
    return f"disk writes {256 / (middle - start):,.0f} MB/s and reads {256 / (end - middle):,.0f} MB/s"


def forget(file: Path) -> None:
    """Put a file out of the system's cache."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# What is searched.


def make_vectors(args: argparse.Namespace) -> int:
    """Write the vectors, and what is nearest to each query; both are kept."""
    from search import own_pages, real_vectors

    set_threads(args.threads)
    documents, _, _ = real_vectors(args.folder.parent)
    row: dict[str, Any] = {"made": not (args.folder / "index.json").exists()}
    start, before = time.perf_counter(), cpu()
    if row["made"]:
        with own_pages() as most:
            write_copies(documents, int(args.kind), args.folder)
        row |= {"build": time.perf_counter() - start, "cpu": cpu() - before, "own": most[0] / 1e6}
        row["disk"] = sum(each.stat().st_size for each in args.folder.rglob("*")) / 1e6
    write_truth(args.folder, np.load(args.queries))
    print(json.dumps(row))
    return 0


def write_copies(documents: Any, size: int, folder: Path) -> None:
    """An exact index of so many copies with ids and a column `part`, without texts."""
    from bgekit.files import OutputFolder
    from bgekit.search.segments import commit, write_segment
    from bgekit.search.storage import Facts, Stored, columns_of
    from search import with_copies

    class Copies(Stored):
        count, dimension = size, documents.shape[1]
        metadata = None

        def blocks(self, rows: int = 4096) -> Iterator[tuple[int, Any]]:
            for first in range(0, size, 4096):
                yield first, with_copies(documents, len(documents) + first, min(4096, size - first))

        def vectors(self, rows: Any) -> Any:
            raise NotImplementedError

        def part_blocks(self, name: str) -> Iterator[Any]:
            return iter(())

        def lines(self) -> Iterator[bytes]:
            for row in range(size):
                yield b'{"id": "%d"}\n' % row

        def line(self, row: int) -> bytes:
            return b'{"id": "%d"}\n' % row

    schema = pa.schema([("part", pa.int64())])

    def parts() -> Iterator[Any]:
        for first in range(0, size, 1 << 16):
            rows = np.arange(first, min(first + (1 << 16), size))
            yield pa.table({"part": pa.array(rows * 7919 % 100)}, schema=schema)

    card = {"name": "copies", "similarity": "cosine", "normalize": True, "dimension": documents.shape[1]}
    settings = {"dtype": "float32", "kind": "document", "max_length": 512, "store_texts": False}
    with OutputFolder(folder) as output:
        segment = write_segment(output, "", Copies(), chunked=False, metadata=(schema, parts()))
        facts = Facts("exact", size, documents.shape[1], card, "copies", "float32", settings, None,
                      {**segment.metadata, "columns": columns_of(schema)} if segment.metadata else None,
                      segments=(segment,))  # fmt: skip
        commit(output, facts)


def write_truth(folder: Path, queries: Any) -> None:
    """The nearest rows of each query, by exact search; of all rows, and of those that conditions keep."""
    from bgekit.search import SearchIndex
    from bgekit.search.build import with_type

    if truth_file(folder, queries).exists():
        return
    with_type(folder, "exact")
    index = SearchIndex.load(folder)
    found = {"all": index.nearest(queries, K)[1]}
    for percent in KEPT:
        found[str(percent)] = index.nearest(queries[:KEPT_QUERIES], K, f"part < {percent}")[1]
    np.savez(truth_file(folder, queries), **found)


def truth_file(folder: Path, queries: Any) -> Path:
    """Where the nearest rows of these queries are kept."""
    return folder / f"truth-{hashlib.sha256(queries.tobytes()).hexdigest()[:12]}.npz"


# Steps, each in a process of its own.


def make_type(args: argparse.Namespace) -> int:
    """Build a type of index."""
    from bgekit.search.build import with_type
    from search import own_pages

    set_threads(args.threads)
    start, before = time.perf_counter(), cpu()
    with own_pages() as most:
        with_type(args.folder, args.kind, recall=args.recall)
    row = {"build": time.perf_counter() - start, "cpu": cpu() - before, "own": most[0] / 1e6}
    files = [each for each in args.folder.rglob("index*") if each.name != "index.json"]
    print(json.dumps(row | {"disk": sum(each.stat().st_size for each in files) / 1e6}))
    return 0


def serve_type(args: argparse.Namespace) -> int:
    """Answer queries one at a time from a type of index."""
    from bgekit.search import SearchIndex

    set_threads(args.threads)
    queries = np.load(args.queries)
    truth = np.load(truth_file(args.folder, queries))
    row: dict[str, Any] = {"cold": None}
    index = SearchIndex.load(args.folder)
    if args.cold:
        forget(args.folder / "vectors.npy")
        few = queries[:100] if args.kind != "exact" else queries[:3]
        row["cold"], _, _ = one_by_one(few, lambda asked: index.nearest(asked, K)[1])
    for _ in range(2):  # The second time all that is needed is in memory.
        row["ms"], row["cpu_ms"], found = one_by_one(queries, lambda asked: index.nearest(asked, K)[1])
    row["recall"] = recall(found, truth["all"])
    resident = resident_mb()
    row["mapped"] = resident.pop("vectors.npy", 0.0)
    row["resident"] = sum(resident.values())
    row["kept"] = []
    for percent in KEPT:
        where = f"part < {percent}"
        index.nearest(queries[:1], K, where)  # The condition itself is computed once.
        ms, _, found = one_by_one(queries[:KEPT_QUERIES], lambda asked, where=where: index.nearest(asked, K, where)[1])
        row["kept"].append((recall(found, truth[str(percent)]), ms))
    print(json.dumps(row))
    return 0


def make_peer(args: argparse.Namespace) -> int:
    """Build an index of a peer over the same vectors, and ask it one at a time."""
    import faiss

    from search import own_pages

    set_threads(args.threads)
    queries, vectors = np.load(args.queries), np.load(args.folder / "vectors.npy", mmap_mode="r")
    truth = np.load(truth_file(args.folder, queries))["all"]
    start, before = time.perf_counter(), cpu()
    count, width = vectors.shape
    with own_pages() as most:
        if args.kind == "usearch":
            from usearch.index import Index

            graph = Index(ndim=width, metric="ip", dtype="f32", connectivity=32, expansion_add=100)
            for first in range(0, count, 1 << 16):
                block = np.ascontiguousarray(vectors[first : first + (1 << 16)])
                graph.add(np.arange(first, first + len(block)), block, threads=args.threads)
        else:
            cells = min(4096, count // 39)
            plan = "HNSW32,Flat" if args.kind == "faiss-hnsw" else f"IVF{cells},PQ48"
            index = faiss.index_factory(width, plan, faiss.METRIC_INNER_PRODUCT)
            if args.kind == "faiss-hnsw":
                index.hnsw.efConstruction = 100
            else:
                rows = np.sort(np.random.default_rng(0).permutation(count)[: cells * 48])
                index.train(np.ascontiguousarray(vectors[rows]))
            for first in range(0, count, 1 << 16):
                index.add(np.ascontiguousarray(vectors[first : first + (1 << 16)]))
    row: dict[str, Any] = {"build": time.perf_counter() - start, "cpu": cpu() - before, "own": most[0] / 1e6}

    def ask(asked: Any) -> Any:
        return graph.search(asked[0], K).keys[None] if args.kind == "usearch" else index.search(asked, K)[1]

    for width_of_search in WIDTHS:
        if args.kind == "usearch":
            graph.expansion_search = width_of_search
        elif args.kind == "faiss-hnsw":
            index.hnsw.efSearch = width_of_search
        else:
            index.nprobe = width_of_search
        row["ms"], row["cpu_ms"], found = one_by_one(queries, ask)
        row["recall"] = recall(found, truth)
        if row["recall"] >= (args.recall or 0.99):
            break
    resident = resident_mb()
    row["mapped"] = resident.pop("vectors.npy", 0.0)
    print(json.dumps(row | {"resident": sum(resident.values())}))
    return 0


def set_threads(threads: int) -> None:
    import logging

    import torch

    torch.set_num_threads(threads)
    with contextlib.suppress(ImportError):
        import faiss

        faiss.omp_set_num_threads(threads)
    logging.getLogger("bgekit").setLevel(logging.ERROR)  # It is not known whose vectors these are.


def one_by_one(queries: Any, ask: Callable[[Any], Any]) -> tuple[float, float, Any]:
    """Median milliseconds of a query, wall and CPU time, and the rows that were found."""
    times, used, found = [], [], []
    for at in range(len(queries)):
        start, before = time.perf_counter(), time.process_time()
        found.append(ask(queries[at : at + 1])[0])
        times.append(time.perf_counter() - start)
        used.append(time.process_time() - before)
    return statistics.median(times) * 1000, statistics.median(used) * 1000, np.array(found)


def recall(found: Any, truth: Any) -> float:
    return float(np.mean([np.isin(own, one).sum() / max((own >= 0).sum(), 1)
                          for own, one in zip(truth, found, strict=True)]))  # fmt: skip


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def resident_mb() -> dict[str, float]:
    """Resident megabytes of this process, by the file that they map, "" for its own."""
    found: dict[str, float] = {}
    name = ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        parts = line.split()
        if "-" in parts[0] and not parts[0].endswith(":"):
            name = Path(parts[5]).name if len(parts) > 5 and parts[5].startswith("/") else ""
        elif parts[0] == "Rss:":
            found[name] = found.get(name, 0.0) + int(parts[1]) * 1024 / 1e6
    return found
