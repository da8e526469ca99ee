"""What can be known at the start is said before a model is loaded: every command here names one that is not there."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bgekit.cli.main import main

#: An error about this model would mean that it was looked for first.
MODEL = ("--model", "/nowhere/model", "--quiet")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    """A working folder with inputs for every verb."""
    monkeypatch.chdir(tmp_path)
    rows = [{"query": f"query {n}", "pos": [f"passage {n}"], "neg": [f"other {n}"]} for n in range(6)]
    _write("train.jsonl", rows)
    _write("docs.jsonl", [{"_id": f"d{n}", "text": f"passage {n}"} for n in range(6)])
    _write("other_field.jsonl", [{"_id": "1", "body": "passage"}])
    _write("groups.jsonl", [{"query": "q", "passages": ["a", "b"]}])
    _write("scored.jsonl", [{"sentence1": f"a {n}", "sentence2": f"b {n}", "score": n % 5} for n in range(12)])
    Path("beir/qrels").mkdir(parents=True)
    _write("beir/corpus.jsonl", [{"_id": f"d{n}", "title": "", "text": f"passage {n}"} for n in range(6)])
    _write("beir/queries.jsonl", [{"_id": f"q{n}", "text": f"query {n}"} for n in range(6)])
    Path("beir/qrels/test.tsv").write_text(
        "query-id\tcorpus-id\tscore\n" + "".join(f"q{n}\td{n}\t1\n" for n in range(6))
    )
    _write("unjudged/corpus.jsonl", [{"_id": "d0", "title": "", "text": "passage"}])
    _write("unjudged/queries.jsonl", [{"_id": "q0", "text": "query"}])
    Path("file").write_text("no folder")
    Path("full/config.json").parent.mkdir()
    Path("full/config.json").write_text("{}")
    return tmp_path


def _write(name: str, rows: list[dict]) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def missing(monkeypatch) -> Callable[[str], None]:
    """Makes a package look as if it was not installed."""

    def hide(package: str) -> None:
        for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, package, None)

    return hide


def said(capsys, *arguments: str) -> str:
    """The error that a command ends with."""
    assert main([*arguments]) == 1
    error = capsys.readouterr().err
    assert "/nowhere/model" not in error, "the model was looked for before the check"
    return error


@pytest.mark.parametrize(
    ("package", "extra", "command"),
    [
        ("pytrec_eval", "eval", "eval --data beir"),
        ("scipy", "eval", "eval --data scored.jsonl"),
        ("matplotlib", "eval", "eval --data beir --output out"),
        ("scipy", "eval", "calibrate --data scored.jsonl"),
        ("matplotlib", "eval", "calibrate --data scored.jsonl --output out"),
        ("faiss", "faiss", "search docs.jsonl -q word --index-type hnsw"),
        ("faiss", "faiss", "mine --input train.jsonl --output mined.jsonl --index ivf"),
        ("matplotlib", "train", "finetune --train-data train.jsonl --output-dir out"),
        ("peft", "lora", "finetune --train-data train.jsonl --output-dir out --use-lora"),
        ("pytrec_eval", "eval", "finetune --train-data train.jsonl --output-dir out --eval-data beir"),
        (
            "pytrec_eval",
            "eval",
            "finetune-reranker --train-data train.jsonl --output-dir out --eval-data beir --first-stage /nowhere/model",
        ),
        ("matplotlib", "train", "pretrain --train-data docs.jsonl --output-dir out"),
    ],
)
def test_a_missing_extra_is_named_before_a_model_is_loaded(folder, missing, capsys, package, extra, command):
    missing(package)
    verb, *rest = command.split()
    model = [part for part in MODEL if part != "--quiet"] if verb in TRAINERS else MODEL
    assert f"bgekit[{extra}]" in said(capsys, verb, *rest, *model)


TRAINERS = ("finetune", "finetune-reranker", "pretrain")


@pytest.mark.parametrize(("package", "extra"), [("accelerate", "train"), ("pytrec_eval", "eval")])
def test_a_recipe_asks_for_all_extras_before_its_first_stage(folder, missing, capsys, package, extra):
    Path("recipe.yaml").write_text("""\
stages:
  copies:
    verb: dedup
    arguments: {input: train.jsonl}
  tuned:
    verb: finetune
    arguments: {train_data: "${copies}", model: /nowhere/model}
  scores:
    verb: eval
    arguments: {data: beir, model: "${tuned}"}
""")
    missing(package)
    assert f"bgekit[{extra}]" in said(capsys, "recipe", "run", "recipe.yaml", "--work", "work")
    assert not Path("work/copies.jsonl").exists()


@pytest.mark.parametrize(
    "command",
    [
        "merge --models /nowhere/model /nowhere/other --output out --eval-data beir",
        "merge --models /nowhere/model /nowhere/other --output out --eval-data beir --model-type reranker "
        "--first-stage /nowhere/model",
    ],
)
def test_merging_by_validation_asks_for_its_extra_first(folder, missing, capsys, command):
    missing("pytrec_eval")
    assert "bgekit[eval]" in said(capsys, *command.split())


@pytest.mark.parametrize(
    ("command", "wrong"),
    [
        ("encode docs.jsonl -o file/out", "file/out"),
        ("encode other_field.jsonl -o out", "--text-field"),
        ("search docs.jsonl -q word --index file/out", "file/out"),
        ("search other_field.jsonl -q word", "--text-field"),
        ("eval --data beir --output file/out", "file/out"),
        ("eval --data beir --output file", "file"),
        ("eval --data unjudged", "unjudged"),
        ("eval --data unjudged --reranker /nowhere/model", "unjudged"),
        ("eval --data scored.jsonl --reranker /nowhere/model", "reranker"),
        ("eval --data beir --split dev --compare dimension", "dev"),
        ("calibrate --data beir --output file/out", "file/out"),
        ("calibrate --data scored.jsonl --save full", "full"),
        ("calibrate --data scored.jsonl --precision 1.5", "precision"),
        ("calibrate --data scored.jsonl --confidence 2", "confidence"),
        ("calibrate --data unjudged", "unjudged"),
        ("calibrate --texts other_field.jsonl", "no field text"),
        ("mine --input train.jsonl --output file/out.jsonl", "file/out.jsonl"),
        ("mine --input train.jsonl --output mined.jsonl --work-folder file", "file"),
        ("mine --input train.jsonl --output mined.jsonl --candidate-pool other_field.jsonl", "text"),
        ("mine --input train.jsonl --output mined.jsonl --max-reranker-score 1", "reranker"),
        ("mine --input train.jsonl --output mined.jsonl --reranker /nowhere/model", "--max-reranker-score"),
        ("mine --input train.jsonl --output mined.jsonl --shares 1 2 3", "shares"),
        ("score --input train.jsonl --output file/out.jsonl", "file/out.jsonl"),
        ("rerank other_field.jsonl -q word", "--text-field"),
        ("finetune --train-data train.jsonl --output-dir file/out", "file/out"),
        ("finetune --train-data train.jsonl --output-dir out --eval-data unjudged", "unjudged"),
        ("finetune-reranker --train-data train.jsonl --output-dir file/out", "file/out"),
        ("pretrain --train-data docs.jsonl --output-dir file/out", "file/out"),
    ],
)
def test_what_is_wrong_shows_before_a_model_is_loaded(folder, capsys, command, wrong):
    verb, *rest = command.split()
    model = [part for part in MODEL if part != "--quiet"] if verb in TRAINERS else MODEL
    assert wrong in said(capsys, verb, *rest, *model)


@pytest.mark.parametrize(
    ("command", "wrong"),
    [
        ("merge --models /nowhere/model /nowhere/other --output full", "full"),
        ("merge --models /nowhere/model /nowhere/other --output file/out", "file/out"),
        ("merge --models /nowhere/model /nowhere/other --output out --eval-data unjudged", "unjudged"),
        ("dedup --input train.jsonl --output file/out.jsonl", "file/out.jsonl"),
    ],
)
def test_merging_and_dedup_look_at_their_files_first(folder, capsys, command, wrong):
    assert wrong in said(capsys, *command.split())


@pytest.mark.parametrize(
    ("command", "there"),
    [
        ("mine --input train.jsonl --output out.jsonl --model /nowhere/model", "out.jsonl"),
        ("mine --random --input train.jsonl --output out.jsonl", "out.jsonl"),
        ("mine --labelled-pairs --input pairs.jsonl --output out.jsonl", "out.jsonl"),
        ("score --input train.jsonl --output out.jsonl --model /nowhere/model", "out.jsonl"),
        ("dedup --input train.jsonl --output out.jsonl", "out.jsonl"),
        ("map docs.jsonl --output out.parquet --model /nowhere/model", "out.parquet"),
        ("map docs.jsonl --output new.parquet --plot out.png --model /nowhere/model", "out.png"),
        ("calibrate --data scored.jsonl --output out --model /nowhere/model", "out/calibration.json"),
        ("merge --models /nowhere/model /nowhere/other --output full", "full"),
        ("calibrate --data scored.jsonl --save full --model /nowhere/model", "full"),
    ],
)
def test_what_is_there_is_replaced_only_where_that_is_asked_for(folder, capsys, command, there):
    for name in ("out.jsonl", "out.parquet", "out.png", "out/calibration.json"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("of an earlier run")
    _write("pairs.jsonl", [{"sentence1": "a", "sentence2": "b", "label": 1}])
    assert f"{there} exists; pass --overwrite to replace " in said(capsys, *command.split())
    if not Path(there).is_dir():
        assert Path(there).read_text() == "of an earlier run"


@pytest.mark.parametrize("command", ["dedup --input train.jsonl", "mine --random --input train.jsonl --negatives 1"])
def test_what_is_there_is_replaced_where_that_is_asked_for(folder, capsys, command):
    Path("out.jsonl").write_text("of an earlier run")
    assert main([*command.split(), "--output", "out.jsonl", "--overwrite", "--quiet"]) == 0
    assert len(Path("out.jsonl").read_text().splitlines()) == 6
