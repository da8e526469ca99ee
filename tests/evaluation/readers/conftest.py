"""Trees of small data files."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CORPUS = [
    {"_id": "d1", "title": "A", "text": "about a"},
    {"_id": "d2", "title": "", "text": "about b"},
    {"_id": "d3", "text": "about c"},
]
QUERIES = [{"_id": "q1", "text": "what is a"}, {"_id": "q2", "text": "what is b"}]
QRELS = "query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td2\t0\nq2\td2\t2\n"

Tree = Callable[..., Path]


def jsonl(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Writes files below a folder `Data`: a text, bytes, one object (.json) or rows each; `.gz` is gzipped."""

    def write(files: dict[str, Any]) -> Path:
        root = tmp_path / "Data"
        for name, content in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(content) if isinstance(content, dict) else content
            text = jsonl(text) if isinstance(text, list) else text
            data = text if isinstance(text, bytes) else text.encode()
            path.write_bytes(gzip.compress(data) if name.endswith(".gz") and not isinstance(text, bytes) else data)
        return root

    return write


@pytest.fixture
def beir(tree: Tree) -> Tree:
    """BEIR's layout, with some of its files replaced or (None) left out."""

    def write(**changes: Any) -> Path:
        files = {"corpus.jsonl": CORPUS, "queries.jsonl": QUERIES, "qrels/test.tsv": QRELS}
        files |= {name.replace("__", "/").replace("_jsonl", ".jsonl").replace("_tsv", ".tsv"): content
                  for name, content in changes.items()}  # fmt: skip
        return tree({name: content for name, content in files.items() if content is not None})

    return write
