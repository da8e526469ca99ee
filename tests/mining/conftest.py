"""Small corpora in files, and what was mined from them."""

from __future__ import annotations

import json

import pytest

from bgekit.mining.mining import Mining, mine
from bgekit.mining.negatives import Choice, Guards


@pytest.fixture
def write(tmp_path):
    def lines(name, rows):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return lines


def read(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.fixture
def mined(tmp_path, write, embedder):
    """Mine rows: `mined(rows, pool=[...], range=(0, 5), margin=0.1)` -> (rows, report)."""

    def run(rows, pool=None, *, models=None, range=(10, 210), name="out.jsonl", advance=None, reranker=None, **options):
        guards = {key: options.pop(key) for key in list(options) if key in Guards.__dataclass_fields__}
        choice = {key: options.pop(key) for key in list(options) if key in Choice.__dataclass_fields__}
        task = Mining(
            input=write("in.jsonl", rows),
            output=str(tmp_path / name),
            pool=(write("pool.jsonl", [{"text": text} for text in pool]),) if pool is not None else (),
            choice=Choice(first=range[0], last=range[1], guards=Guards(**guards), **choice),
            **options,
        )
        report = mine(task, [embedder()] if models is None else models, advance=advance, reranker=reranker)
        return read(task.output), report

    return run
