"""`search.py approximate`: memory, time to build, latency and recall of each type of index, and of its peers.

Every row of the table is built by one process and served by another. What came out is kept in `approximate.json` of the
folder `--work`, as soon as it is known: an interrupted run goes on where it stopped, and a later one with the same
options prints the whole table at once.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
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
from worker import OwnPages

#: Queries that are asked one at a time, and nearest rows that are wanted of each. The first 1,000 were looked at when
#: the ways of search were chosen: these are others.
ASKED, K = slice(1000, 2000), 10
#: Percent of the rows that conditions keep, and queries that each is measured with.
KEPT, KEPT_QUERIES = (50, 10, 1), 100
#: Vectors that exact search looks at in all for its row, which says how many queries it is asked.
EXACTLY = 100_000_000
#: Types whose graph of many vectors takes hours to build and more memory than there is, as those of peers do.
GRAPHS = ("hnsw", "faiss-hnsw", "usearch", "hnswlib")
#: Peers, and what each needs to be installed (requirements/search.txt). `faiss-ivfpq48` has codes of 48 bytes, and
#: `+` behind it scores its candidates by the whole vectors, as our types do.
PEERS = {
    "faiss-hnsw": "faiss", "faiss-ivfpq48": "faiss", "faiss-ivfpq48+": "faiss", "faiss-ivfpq64": "faiss",
    "faiss-ivfpq64+": "faiss", "usearch": "usearch", "hnswlib": "hnswlib",
}  # fmt: skip
#: Cells of IVF-PQ, as `binary` has them, and vectors a cell that it is trained with.
CELLS, TRAINED = 4096, 48
#: Neighbours of a vector in graphs.
NEIGHBORS = 32
#: How wide peers are searched until they find enough, candidates that are scored by whole vectors, and queries that
#: it is chosen with; who finds no more than this share by a wider search has found what it can.
WIDTHS, CANDIDATES, CHOSEN_BY, NO_MORE = (8, 16, 32, 64, 128, 256, 512, 1024), (50, 100, 200, 400), 200, 0.002


def approximate_options(commands: Any) -> None:
    parser = commands.add_parser("approximate", help="types of index against each other and their peers")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--types", nargs="*", default=["exact", "int8", "binary", "ivf", "hnsw"])
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--graphs-to", type=int, default=1_000_000, help="vectors above which no graph is built [10^6]")
    parser.add_argument("--recall", type=float, default=0.99, help="as of bge search [0.99]")
    parser.add_argument("--ef-construction", type=int, default=200, help="of the graphs of peers [200]")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cold", action="store_true", help="also with the vectors out of the system's cache")
    parser.add_argument("--work", type=Path, default=Path("build/search"), help="where vectors and indexes are kept")
    parser.add_argument("--again", nargs="*", default=[], metavar="INDEX", help="types and peers to measure again")
    parser.set_defaults(run=approximate_search)
    for name, run in (
        ("make-vectors", make_vectors), ("make-type", make_type), ("serve-type", serve_type),
        ("make-peer", make_peer), ("serve-peer", serve_peer),
    ):  # fmt: skip
        child = commands.add_parser(name, help="used by approximate, in a process of its own")
        child.add_argument("folder", type=Path)
        child.add_argument("kind")
        child.add_argument("queries", type=Path)
        child.add_argument("--recall", type=float, default=0.99)
        child.add_argument("--ef-construction", type=int, default=200)
        child.add_argument("--threads", type=int, default=2)
        child.add_argument("--cold", action="store_true")
        child.set_defaults(run=run)


def approximate_search(args: argparse.Namespace) -> int:
    from search import real_vectors

    if missing := {PEERS[kind] for kind in args.peers if importlib.util.find_spec(PEERS[kind]) is None}:
        raise SystemExit(
            f"not installed: {', '.join(sorted(missing))}; pip install -r benchmarks/requirements/search.txt, or name "
            "other --peers"
        )
    args.work.mkdir(parents=True, exist_ok=True)
    _, queries, what = real_vectors(args.work)
    files = args.work / "asked.npy"
    np.save(files, queries[ASKED])
    print(f"{what}; all vectors are copies of these with noise, cosine 0.8 to 0.9; {len(queries[ASKED]):,} real "
          f"queries, one at a time; best {K}; {args.threads} threads; {disk(args.work)}")  # fmt: skip
    print(f"{'vectors':>10} {'index':<14} {'build, s':>8} {'CPU, s':>7} {'own MB':>7} {'on disk':>8} {'resident':>8} "
          f"{'vectors':>8} {'ms':>7} {'CPU ms':>7} {'cold ms':>7} {'recall':>7}  "
          f"{f'recall, ms where {KEPT} % are kept':<38}  searched with")  # fmt: skip
    known = Known(args.work / "approximate.json", args)
    for size in args.sizes:
        folder = args.work / f"copies-{size}"
        truth = truth_file(folder, queries[ASKED])
        there = lambda truth=truth: truth.exists()  # noqa: E731
        made = known.row(size, "vectors", "make-vectors", there, folder, str(size), files)
        print_row(size, "vectors", made)
        for kind in args.types:
            if kind in GRAPHS and size > args.graphs_to:
                continue
            there = lambda folder=folder, kind=kind: type_of(folder) == kind  # noqa: E731
            print_row(size, kind, known.both(size, kind, "type", there, folder, files))
        for kind in args.peers:
            if kind in GRAPHS and size > args.graphs_to:
                continue
            there = lambda folder=folder, kind=kind: peer_file(folder, kind).exists()  # noqa: E731
            print_row(size, kind, known.both(size, kind, "peer", there, folder, files))
    return 0


class Known:
    """What has been measured, in a file.

    Args:
        path: The file.
        args: Options of the run.
    """

    def __init__(self, path: Path, args: argparse.Namespace) -> None:
        self._path, self._args = path, args
        self._rows: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def both(self, size: int, kind: str, what: str, there: Callable[[], bool], folder: Path, files: Path) -> Any:
        """What it took to make an index and to serve it."""
        built = kind.removesuffix("+")  # The one index of a peer is served in two ways.
        served = self._key(size, kind, f"serve-{what}")
        # What is served need not be there any more.
        is_there = there if served not in self._rows or kind in self._args.again else lambda: True
        made = self.row(size, built, f"make-{what}", is_there, folder, built, files)
        return made | self.row(size, kind, f"serve-{what}", lambda: True, folder, kind, files)

    def row(
        self, size: int, name: str, step: str, there: Callable[[], bool], folder: Path, kind: str, files: Path
    ) -> dict[str, Any]:  # fmt: skip
        """What a step printed: measured now unless it is known and what it made is there."""
        key = self._key(size, name, step)
        if key not in self._rows or name in self._args.again or not there():
            found = child(step, folder, kind, files, self._args)
            self._rows[key] = self._rows.get(key, {}) | found
            working = self._path.with_suffix(".tmp")
            working.write_text(json.dumps(self._rows, indent=1))
            working.replace(self._path)
        return dict(self._rows[key])

    def _key(self, size: int, name: str, step: str) -> str:
        args = self._args
        graph = f", efConstruction {args.ef_construction}" if name in GRAPHS and step.endswith("peer") else ""
        how = f", {args.threads} threads, recall {args.recall}{graph}{', cold' if args.cold else ''}"
        return f"{size} {name}, {step}" + ("" if step == "make-vectors" else how)


def print_row(size: int, kind: str, row: dict[str, Any]) -> None:
    def shown(name: str, digits: int = 0) -> str:
        return f"{row[name]:,.{digits}f}" if row.get(name) is not None else "-"

    kept = "  ".join(f"{recall:.3f} {ms:.1f}" for recall, ms in row.get("kept", []))
    how = "; ".join(row[name] for name in ("plan", "how") if row.get(name))
    print(f"{size:10,} {kind:<14} {shown('build'):>8} {shown('cpu'):>7} {shown('own'):>7} {shown('disk'):>8} "
          f"{shown('resident'):>8} {shown('mapped'):>8} {shown('ms', 2):>7} {shown('cpu_ms', 2):>7} "
          f"{shown('cold', 2):>7} {shown('recall', 4):>7}  {kept:<38}  {how}", flush=True)  # fmt: skip


def child(command: str, folder: Path, kind: str, queries: Path, args: argparse.Namespace) -> dict[str, Any]:
    """What a step of its own process printed: memory is that of this step alone."""
    line = [sys.executable, str(Path(__file__).with_name("search.py")), command, str(folder), kind, str(queries),
            "--threads", str(args.threads), "--recall", str(args.recall),
            "--ef-construction", str(args.ef_construction)]  # fmt: skip
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
    from search import real_vectors

    set_threads(args.threads)
    documents, _, _ = real_vectors(args.folder.parent)
    row: dict[str, Any] = {}
    start, before = time.perf_counter(), cpu()
    if not (args.folder / "index.json").exists():
        with OwnPages(every=0.005) as pages:
            write_copies(documents, int(args.kind), args.folder)
        row |= {"build": time.perf_counter() - start, "cpu": cpu() - before, "own": pages.grown_mb}
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

    set_threads(args.threads)
    start, before = time.perf_counter(), cpu()
    with OwnPages(every=0.005) as pages:
        with_type(args.folder, args.kind, recall=None if args.kind == "exact" else args.recall)
    row = {"build": time.perf_counter() - start, "cpu": cpu() - before, "own": pages.grown_mb}
    files = [each for each in args.folder.rglob("index*") if each.name != "index.json"]
    print(json.dumps(row | {"disk": sum(each.stat().st_size for each in files) / 1e6}))
    return 0


def type_of(folder: Path) -> str:
    """The type of an index that is there."""
    return str(json.loads((folder / "index.json").read_text())["index_type"])


def serve_type(args: argparse.Namespace) -> int:
    """Answer queries one at a time from a type of index."""
    from bgekit.search import SearchIndex

    set_threads(args.threads)
    index, row = SearchIndex.load(args.folder), dict[str, Any]()
    queries = np.load(args.queries)
    truth = np.load(truth_file(args.folder, queries))
    asked = queries[: max(EXACTLY // len(index), 20)] if args.kind == "exact" else queries

    def nearest(where: str | None = None) -> Callable[[Any], Any]:
        return lambda one: index.nearest(one, K, where)[1]

    if args.cold:
        forget(args.folder / "vectors.npy")
        row["cold"], _, _ = one_by_one(asked[:100] if args.kind != "exact" else asked[:3], nearest())
    for _ in range(2):  # The second time all that is needed is in memory.
        row["ms"], row["cpu_ms"], found = one_by_one(asked, nearest())
    row["recall"] = recall(found, truth["all"][: len(asked)])
    row |= resident_mb()
    row["kept"] = []
    for percent in KEPT:
        where = f"part < {percent}"
        index.nearest(queries[:1], K, where)  # The condition itself is computed once.
        ms, _, found = one_by_one(asked[:KEPT_QUERIES], nearest(where))
        row["kept"].append((recall(found, truth[str(percent)][: len(found)]), ms))
    if tuning := index.describe()["measured"]:
        row["how"] = ", ".join(f"{name} {tuning['points'][0][name]}" for name in ("width", "candidates"))
    elif len(asked) < len(queries):
        row["how"] = f"{len(asked)} queries"
    print(json.dumps(row))
    return 0


# Peers. Each gets the vectors in blocks, and lies in a file, from which it is loaded as a whole to be served.


def peer_file(folder: Path, kind: str) -> Path:
    """The file of an index of a peer."""
    return folder / f"peer-{kind.removesuffix('+')}"


def make_peer(args: argparse.Namespace) -> int:
    """Build an index of a peer over the same vectors, and write it."""
    set_threads(args.threads)
    vectors = np.load(args.folder / "vectors.npy", mmap_mode="r")
    start, before = time.perf_counter(), cpu()
    with OwnPages(every=0.005) as pages:
        plan = built_peer(args, vectors)
    row = {"build": time.perf_counter() - start, "cpu": cpu() - before, "own": pages.grown_mb, "plan": plan}
    print(json.dumps(row | {"disk": peer_file(args.folder, args.kind).stat().st_size / 1e6}))
    return 0


def built_peer(args: argparse.Namespace, vectors: Any) -> str:
    """Build and write it; returns how it was built."""
    count, width = vectors.shape
    file = str(peer_file(args.folder, args.kind))

    def blocks() -> Iterator[tuple[int, Any]]:
        for first in range(0, count, 1 << 16):
            yield first, np.ascontiguousarray(vectors[first : first + (1 << 16)])

    if args.kind == "usearch":
        from usearch.index import Index

        graph = Index(ndim=width, metric="ip", dtype="f32", connectivity=NEIGHBORS, expansion_add=args.ef_construction)
        for first, block in blocks():
            graph.add(np.arange(first, first + len(block)), block, threads=args.threads)
        graph.save(file)
    elif args.kind == "hnswlib":
        import hnswlib

        graph = hnswlib.Index(space="ip", dim=width)
        graph.init_index(max_elements=count, ef_construction=args.ef_construction, M=NEIGHBORS)
        for first, block in blocks():
            graph.add_items(block, np.arange(first, first + len(block)), num_threads=args.threads)
        graph.save_index(file)
    else:
        import faiss

        cells = min(CELLS, count // 39)
        plan = f"HNSW{NEIGHBORS},Flat" if args.kind == "faiss-hnsw" else f"IVF{cells},PQ{args.kind[-2:]}"
        index = faiss.index_factory(width, plan, faiss.METRIC_INNER_PRODUCT)
        if args.kind == "faiss-hnsw":
            index.hnsw.efConstruction = args.ef_construction
        else:
            rows = np.sort(np.random.default_rng(0).permutation(count)[: cells * TRAINED])
            index.train(np.ascontiguousarray(vectors[rows]))
        for _, block in blocks():
            index.add(block)
        faiss.write_index(index, file)
        if args.kind != "faiss-hnsw":
            return plan
    return f"M {NEIGHBORS}, efConstruction {args.ef_construction}"


def serve_peer(args: argparse.Namespace) -> int:
    """Answer queries one at a time from an index of a peer, as wide as it takes to find enough of the nearest.

    How wide is chosen by some of the queries that it is measured with: an advantage that our types do not have.
    """
    set_threads(args.threads)
    queries = np.load(args.queries)
    truth = np.load(truth_file(args.folder, queries))["all"]
    search = opened_peer(args)
    best: tuple[float, int, int] = (-1.0, 0, 0)
    for candidates in CANDIDATES if args.kind.endswith("+") else (K,):
        before = -1.0
        for width in WIDTHS:
            _, _, found = one_by_one(queries[:CHOSEN_BY], lambda one, w=width, c=candidates: search(one, w, c))
            reached = recall(found, truth[:CHOSEN_BY])
            if reached > best[0]:
                best = reached, width, candidates
            if reached >= args.recall or reached < before + NO_MORE:
                break
            before = reached
        if best[0] >= args.recall:
            break
    _, width, candidates = best
    row: dict[str, Any] = {"how": f"width {width}" + (f", candidates {candidates}" if candidates > K else "")}
    if args.cold and args.kind.endswith("+"):
        forget(args.folder / "vectors.npy")
        row["cold"], _, _ = one_by_one(queries[:100], lambda one: search(one, width, candidates))
    for _ in range(2):
        row["ms"], row["cpu_ms"], found = one_by_one(queries, lambda one: search(one, width, candidates))
    row["recall"] = recall(found, truth)
    print(json.dumps(row | resident_mb()))
    return 0


def opened_peer(args: argparse.Namespace) -> Callable[[Any, int, int], Any]:
    """What finds the nearest rows [1, K] of a query [1, d] by so wide a search, and of so many candidates."""
    file = str(peer_file(args.folder, args.kind))
    if args.kind == "usearch":
        from usearch.index import Index

        graph = Index.restore(file)

        def by_usearch(one: Any, width: int, _: int) -> Any:
            graph.expansion_search = width
            return graph.search(one[0], K).keys[None].astype(np.int64)

        return by_usearch
    if args.kind == "hnswlib":
        import hnswlib

        vectors = np.load(args.folder / "vectors.npy", mmap_mode="r")
        graph = hnswlib.Index(space="ip", dim=vectors.shape[1])
        graph.load_index(file)

        def by_hnswlib(one: Any, width: int, _: int) -> Any:
            graph.set_ef(max(width, K))
            return graph.knn_query(one, K, num_threads=1)[0].astype(np.int64)

        return by_hnswlib
    import faiss

    index, vectors = faiss.read_index(file), np.load(args.folder / "vectors.npy", mmap_mode="r")

    def by_faiss(one: Any, width: int, candidates: int) -> Any:
        if args.kind == "faiss-hnsw":
            index.hnsw.efSearch = width
        else:
            index.nprobe = width
        rows = index.search(one, candidates)[1]
        if candidates == K:
            return rows
        rows = np.sort(rows[0][rows[0] >= 0])
        return rows[np.argsort(-(vectors[rows] @ one[0]))[:K]][None]

    return by_faiss


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
    """Resident megabytes of this process: its own with all files that it maps, and those of the whole vectors apart."""
    found = {"resident": 0.0, "mapped": 0.0}
    name = ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        parts = line.split()
        if "-" in parts[0] and not parts[0].endswith(":"):
            name = Path(parts[5]).name if len(parts) > 5 and parts[5].startswith("/") else ""
        elif parts[0] == "Rss:":
            found["mapped" if name == "vectors.npy" else "resident"] += int(parts[1]) * 1024 / 1e6
    return found
