"""A teacher's scores, whole or in pieces."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import bgekit.mining.teacher as teacher_module
from bgekit.errors import DataError, OutputError
from bgekit.mining.teacher import score

ROWS = [{"query": f"q{n}", "pos": [f"p{n}"], "neg": ["n" * k for k in range(1, n % 3 + 1)], "x": n} for n in range(11)]


class Lengths:
    fingerprint = "lengths"

    def __init__(self, stop_after=None):
        self.calls, self.stop_after = 0, stop_after

    def compute_score(self, pairs, *, normalize, show_progress):
        if self.calls == self.stop_after:
            raise KeyboardInterrupt
        self.calls += 1
        return [len(query) + len(passage) / 10 for query, passage in pairs]


@pytest.fixture(autouse=True)
def groups(monkeypatch):
    monkeypatch.setattr(teacher_module, "GROUP", 2)


def test_scores(write, tmp_path):
    output = tmp_path / "out.jsonl"
    counts = score(Lengths(), write("in.jsonl", ROWS), str(output))
    rows = [json.loads(line) for line in output.open()]
    assert counts.scored == counts.rows == 11
    for source, row in zip(ROWS, rows, strict=True):
        size = len(row["query"])
        assert row == {**source, "pos_scores": [round(size + len(row["pos"][0]) / 10, 6)],
                       "neg_scores": [size + len(text) / 10 for text in row["neg"]]}  # fmt: skip
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["in.jsonl", "out.jsonl"]


@pytest.mark.parametrize("torn", [b"", b'{"query": "q6", "po', b'{"query": "q6", "pos": []}\n'])
def test_goes_on(write, tmp_path, torn):
    file, whole, broken = write("in.jsonl", ROWS), tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    score(Lengths(), file, str(whole))
    with pytest.raises(KeyboardInterrupt):
        score(Lengths(stop_after=3), file, str(broken))
    assert not broken.exists()
    partial = Path(f"{broken}.partial")
    with partial.open("ab") as part:
        part.write(torn)
    again = Lengths()
    counts = score(again, file, str(broken))
    assert (counts.resumed, again.calls) == (6, 3)
    assert broken.read_bytes() == whole.read_bytes()
    assert not partial.exists()


def test_another_run_is_refused(write, tmp_path):
    file, output = write("in.jsonl", ROWS), str(tmp_path / "out.jsonl")
    with pytest.raises(KeyboardInterrupt):
        score(Lengths(stop_after=1), file, output)
    with pytest.raises(OutputError, match=r"another run \(normalize differ"):
        score(Lengths(), file, output, normalize=True)


def test_scores_that_are_there(write, tmp_path):
    rows = [
        {"query": "q", "pos": ["p"], "neg": [], "pos_scores": [7.0]},
        {"query": "q", "pos": ["p"], "score": 0.5},
        ROWS[0],
    ]
    file, output = write("in.jsonl", rows), tmp_path / "out.jsonl"
    counts = score(Lengths(), file, str(output))
    assert (counts.scored, counts.had_scores, counts.scored_pairs) == (1, 1, 1)
    assert [json.loads(line) for line in output.open()][:2] == rows[:2]
    assert score(Lengths(), file, str(output), overwrite_scores=True).had_scores == 0
    assert json.loads(output.open().readline())["pos_scores"] == [1.1]


def test_bad_input(write, tmp_path):
    with pytest.raises(DataError, match=r"in.jsonl, line 2: pos\[0\] must be a string"):
        score(Lengths(), write("in.jsonl", [ROWS[0], {"query": "q", "pos": [3]}]), str(tmp_path / "out"))


def test_a_run_that_finished_nothing_binds_nobody(write, tmp_path):
    file, output = write("in.jsonl", ROWS), str(tmp_path / "out.jsonl")
    for stop in (0, 1):
        with pytest.raises(KeyboardInterrupt):
            score(Lengths(stop_after=stop), file, output)
        other = Lengths()
        other.fingerprint = "another"
        if stop:  # A group is finished, and must not be mixed with another teacher's.
            with pytest.raises(OutputError, match="was begun by another run"):
                score(other, file, output)
        else:
            assert score(other, file, output).scored == len(ROWS)
            Path(output).unlink()


def test_the_input_in_another_encoding(write, tmp_path):
    file, output = write("in.jsonl", ROWS), str(tmp_path / "out.jsonl")
    row = {"query": "哪里", "pos": ["这里是答案"], "neg": []}
    Path(file).write_bytes(json.dumps(row, ensure_ascii=False).encode("gbk"))
    with pytest.raises(DataError, match="--encoding gb18030"):
        score(Lengths(), file, output)
    score(Lengths(), file, output, encoding="gb18030")
    assert json.loads(Path(output).read_text(encoding="utf-8"))["pos"] == row["pos"]
