#!/usr/bin/env bash
# faiss-cpu 1.15.1: an IVF index that is read with IO_FLAG_MMAP starts up to 32 threads for every search.
#
# `read_index(file, IO_FLAG_MMAP)` makes the cells `OnDiskInvertedLists`, whose `prefetch_nthread` is 32. Every search then
# starts as many threads as it looks into cells, 32 at most, to read these cells ahead. That is meant for cells that come
# from a disk. Where they are in the system's cache, as they are after a while, nothing is gained, and a query costs
# several times its CPU time. The same index read as a whole into memory starts none. `prefetch_nthread` is reached by `downcast_InvertedLists(ivf.invlists)`;
# bgekit sets it to 0.
#
# Threads are counted by the kernel (`processes` of /proc/stat, which counts what other programs start, too), so this runs
# on Linux. Seen on 2026-11-30 (200,000 vectors of 64 in 512 cells, 300 queries one at a time, 64 cells each; 2 cores):
#
#   as a whole in memory: 0 threads a query
#   mapped: 32 threads a query
#   mapped, prefetch_nthread = 0: 0 threads a query
#   a mapped index starts 32 threads for a query: still so
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q --no-compile "numpy==2.4.6" "packaging==25.0" "faiss-cpu==1.15.1"

cat > "$work/search.py" <<'PYTHON'
import sys
import time

import faiss
import numpy as np

file = sys.argv[1]
random = np.random.default_rng(0)
vectors = random.standard_normal((200_000, 64)).astype(np.float32)
index = faiss.index_factory(64, "IVF512,Flat", faiss.METRIC_INNER_PRODUCT)
index.cp.niter = 4
index.train(vectors[:30_000])
index.add(vectors)
faiss.write_index(index, file)
queries = vectors[:300]


def started() -> int:
    line = next(each for each in open("/proc/stat") if each.startswith("processes"))
    return int(line.split()[1])


def threads_of_a_query(name: str, flags: int, prefetch: int | None = None) -> int:
    index = faiss.read_index(file, flags)
    index.nprobe = 64
    if prefetch is not None:
        faiss.downcast_InvertedLists(index.invlists).prefetch_nthread = prefetch
    for query in queries[:20]:  # What OpenMP starts once.
        index.search(query[None], 10)
    before, start = started(), time.process_time()
    for query in queries:
        index.search(query[None], 10)
    found, used = (started() - before) / len(queries), (time.process_time() - start) / len(queries)
    print(f"{name}: {found:.0f} threads a query", flush=True)
    print(f"  ({1e3 * used:.2f} ms of CPU time)", file=sys.stderr)
    return round(found)


seen = [
    threads_of_a_query("as a whole in memory", 0),
    threads_of_a_query("mapped", faiss.IO_FLAG_MMAP),
    threads_of_a_query("mapped, prefetch_nthread = 0", faiss.IO_FLAG_MMAP, 0),
]
sys.exit(0 if seen[1] >= 32 and max(seen[0], seen[2]) <= 2 else 1)
PYTHON

if "$work/venv/bin/python" "$work/search.py" "$work/index.faiss"; then
    echo "a mapped index starts 32 threads for a query: still so"
else
    echo "a mapped index starts 32 threads for a query: no longer so"
    exit 1
fi
