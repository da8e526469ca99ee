#!/usr/bin/env bash
# faiss-cpu 1.13.2 and 1.14.2: what `max_codes` of an IVF index counts when a selector leaves rows out.
#
# `SearchParametersIVF(nprobe, max_codes, sel)` ends the visit of cells after so many codes. Up to 1.13.2 every code of a
# cell counts, selected or not; from 1.14.2 on only those that the selector lets pass. The same call on the same index
# looks into a few cells in one release and into nearly all in the other, and where few rows are selected its recall is
# another one, without a word. bgekit asks for 1.14, because it stops after as many rows that meet a condition.
#
# Seen on 2026-11-29 (20,000 vectors in 100 cells, a tenth selected, max_codes 1,000, all cells allowed):
#
#   faiss 1.13.2: 5.5 cells and 1000 codes a query, recall@10 among the selected 0.318
#   faiss 1.14.2: 94.2 cells and 1000 codes a query, recall@10 among the selected 0.937
#   max_codes counts what a selector leaves out in 1.13.2 and does not in 1.14.2: still so
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q --no-compile "numpy==2.4.6" "packaging==25.0"
for version in 1.13.2 1.14.2; do
    "$work/venv/bin/python" -m pip install -q --no-compile --no-deps --target "$work/$version" "faiss-cpu==$version"
done

cat > "$work/search.py" <<'PYTHON'
import sys

import faiss
import numpy as np

random = np.random.default_rng(0)
vectors = random.standard_normal((20_000, 32)).astype(np.float32)
vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
queries = vectors[:100] + 0.3 * random.standard_normal((100, 32)).astype(np.float32)
index = faiss.index_factory(32, "IVF100,Flat", faiss.METRIC_INNER_PRODUCT)
index.train(vectors)
index.add(vectors)

selected = np.zeros(len(vectors), dtype=bool)
selected[::10] = True
bits = np.packbits(selected, bitorder="little")
options = faiss.SearchParametersIVF()
options.nprobe, options.max_codes, options.sel = 100, 1000, faiss.IDSelectorBitmap(bits)
faiss.cvar.indexIVF_stats.reset()
_, found = index.search(queries, 10, params=options)
cells = faiss.cvar.indexIVF_stats.nlist / len(queries)
codes = faiss.cvar.indexIVF_stats.ndis / len(queries)

scores = queries @ vectors.T
scores[:, ~selected] = -9
best = np.argsort(-scores, axis=1)[:, :10]
recall = np.mean([len(set(own) & set(there)) / 10 for own, there in zip(best.tolist(), found.tolist())])
print(f"faiss {faiss.__version__}: {cells:.1f} cells and {codes:.0f} codes a query, "
      f"recall@10 among the selected {recall:.3f}")
sys.exit(0 if (cells < 10) == (sys.argv[1] == "all") else 1)
PYTHON

cd "$work"
if PYTHONPATH="$work/1.13.2" "$work/venv/bin/python" search.py all \
    && PYTHONPATH="$work/1.14.2" "$work/venv/bin/python" search.py selected; then
    echo "max_codes counts what a selector leaves out in 1.13.2 and does not in 1.14.2: still so"
else
    echo "max_codes counts otherwise now"
    exit 1
fi
