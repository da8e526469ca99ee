from __future__ import annotations

import json

import pytest

from bgekit.cli.main import main

RECIPE = """\
about: Two stages.
variables: {file: train.jsonl}
stages:
  clean: {verb: dedup, arguments: {input: "${file}"}}
  mined: {verb: mine, arguments: {input: "${clean}", random: true, negatives: 1}}
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "two.yaml").write_text(RECIPE)
    rows = ({"query": f"q {n}", "pos": [f"p {n}"], "neg": []} for n in range(5))
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_dry_run_and_run(recipe, capsys):
    assert main(["recipe", "run", "two.yaml", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert lines[0].split() == ["stage", "verb", "inputs", "output", "status", "why"]
    assert lines[1].split() == ["clean", "dedup", "train.jsonl", "runs/two/clean.jsonl", "missing", "never", "run"]
    assert "bge dedup --input train.jsonl --output runs/two/.recipe/clean/clean.jsonl" in lines
    assert not (recipe / "runs").exists()
    assert main(["recipe", "run", "two.yaml"]) == 0
    out, err = capsys.readouterr()
    assert "[1/2] clean: missing (never run)" in err and "[2/2] mined: done" in err
    assert "written to runs/two: report.md, report.html, report.json" in out
    assert main(["recipe", "run", "two.yaml"]) == 0
    assert "[2/2] mined: cached" in capsys.readouterr().err
    assert main(["recipe", "run", "two.yaml", "--stages", "clean", "--work", "other", "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    assert (recipe / "other" / "clean.jsonl").exists() and not (recipe / "other" / "mined.jsonl").exists()


def test_errors_are_one_line(recipe, capsys):
    assert main(["recipe", "run", "two.yaml", "--dry-run", "--set", "file=none.jsonl"]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("stage")  # The plan is shown all the same.
    assert err == "bge: error: two.yaml: line 4, stage clean: input none.jsonl: there is no such file or folder\n"
    assert main(["recipe", "run", "two.yaml", "--set", "file"]) == 1
    assert "--set is NAME=VALUE" in capsys.readouterr().err
    assert main(["recipe", "run", "none.yaml"]) == 1
    assert "there is no recipe none.yaml" in capsys.readouterr().err
    (recipe / "train.jsonl").write_text("{}\n")
    assert main(["recipe", "run", "two.yaml"]) == 1
    err = capsys.readouterr().err
    assert "train.jsonl, line 1" in err
    assert err.splitlines()[-1].startswith("bge: error: stage clean failed with exit code 1")
