"""`bge finetune-reranker` from a bare encoder to a cross-encoder that puts passages in order."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from bgekit import FlagReranker
from bgekit.cli.main import main
from conftest import check_modes, read_readme

pytestmark = pytest.mark.usefixtures("quick_figures")
PAIRS = [("cat", "bird"), ("dog", "tree"), ("house", "river"), ("mountain", "blue"), ("red", "walk"), ("read", "learn")]


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> str:
    from conftest import make_tiny

    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return str(make_tiny(tmp_path_factory.mktemp("start") / "tiny", **still))


@pytest.fixture
def rows(tmp_path: Path) -> str:
    lines = [
        {
            "query": f"a {q} {n}",
            "pos": [f"the {p} {n}"],
            "neg": [f"the {other} {n}" for _, other in PAIRS if other != p],
        }
        for n in range(6)
        for q, p in PAIRS
    ]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def finetune(start: str, rows: str, output: Path, *more: str) -> int:
    return main([
        "finetune-reranker", "--model", start, "--train-data", rows, "--output-dir", str(output),
        "--per-device-train-batch-size", "5", "--train-group-size", "4", "--learning-rate", "2e-3",
        "--logging-steps", "5", "--report-to", "none", "--cache-path", str(output.parent / "cache"),
        "--disable-tqdm", "true", "--use-cpu", "--max-len", "64", *more,
    ])  # fmt: skip


@pytest.mark.draws
def test_it_learns_to_put_the_right_passage_first(start, rows, tmp_path, monkeypatch):
    output = tmp_path / "out"
    # 36 rows in batches of 5: the last one is short, which upstream trains wrongly.
    assert finetune(start, rows, output, "--num-train-epochs", "6", "--save-strategy", "no") == 0
    with FlagReranker(output) as reranker:
        right = 0
        for query, passage in PAIRS:
            found = reranker.rank(f"a {query} 1", [f"the {other} 1" for _, other in PAIRS])
            right += found[0].text == f"the {passage} 1"
    assert right >= 4
    facts = json.loads((output / "training.json").read_text())
    losses = [row["loss"] for row in facts["history"] if "loss" in row]
    assert losses[-1] < losses[0]
    assert facts["findings"] == {}
    check_modes(output)
    text, front = read_readme(output, monkeypatch)
    assert "Fine-tuned from `tiny` on 36 rows by bgekit." in text and "| train.jsonl | 36 |" in text
    assert "| `--train-group-size` | `4` |" in text and "![Curves of the training run](training.png)" in text
    assert str(tmp_path) not in text and start not in text and "base_model" not in front


@pytest.mark.parametrize(
    "given",
    [
        ["--learning-rate", "0.1", "--max-steps", "40"],
        ["--optim", "sgd", "--learning-rate", "1e-12", "--max-steps", "12"],
    ],
)
def test_a_collapsed_reranker_is_a_finding(tiny_bert, rows, tmp_path, given, caplog, tiny_reranker):
    start = str(tiny_bert)  # With dropout.
    if "sgd" in given:  # A head that gives one score to everything, and stays so.
        from safetensors.torch import load_file, save_file

        start = str(shutil.copytree(tiny_reranker, tmp_path / "constant"))
        weights = load_file(f"{start}/model.safetensors")
        weights["classifier.weight"].zero_()
        save_file(weights, f"{start}/model.safetensors", metadata={"format": "pt"})
    assert finetune(start, rows, tmp_path / "out", "--save-strategy", "no", *given) == 0
    assert "collapsed" in json.loads((tmp_path / "out" / "training.json").read_text())["findings"]["collapse"]
    assert caplog.text.count("it has collapsed") == 1


def test_the_gradient_cache_and_resuming_change_nothing(start, rows, tmp_path):
    from safetensors.numpy import load_file

    steps = ["--max-steps", "6", "--optim", "sgd"]
    assert finetune(start, rows, tmp_path / "whole", *steps, "--save-strategy", "no") == 0
    assert finetune(start, rows, tmp_path / "chunks", *steps, "--save-strategy", "no", "--grad-cache-chunk", "3") == 0
    broken = tmp_path / "broken"
    assert finetune(start, rows, broken, *steps, "--save-strategy", "steps", "--save-steps", "2") == 0
    for name in ("checkpoint-4", "checkpoint-6"):
        (broken / name / "checkpoint_whole.json").unlink()
    again = ["--save-strategy", "no", "--resume-from-checkpoint", "true"]
    assert finetune(start, rows, broken, *steps, *again) == 0
    whole, chunks, resumed = (
        load_file(tmp_path / name / "model.safetensors") for name in ("whole", "chunks", "broken")
    )
    for name, value in whole.items():
        assert np.allclose(value, chunks[name], atol=1e-4), name
        assert np.array_equal(value, resumed[name]), name


@pytest.mark.draws
def test_validation_is_of_what_the_first_stage_finds(start, rows, tmp_path, capsys):
    data = tmp_path / "eval.jsonl"
    # What the first stage finds without fail, and two steps from a new head do not.
    lines = [{"query": f"a {q} 9", "positive": [f"a {q} 9"], "negative": ["an it", "some tree"]} for q, p in PAIRS]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    output = tmp_path / "out"
    more = ["--eval-data", str(data), "--max-steps", "2", "--save-strategy", "no"]
    assert finetune(start, rows, output, *more) == 2
    assert finetune(start, rows, output, *more, "--first-stage", start, "--overwrite-output-dir") == 0
    assert finetune(start, rows, tmp_path / "other", "--first-stage", start) == 2
    assert finetune(start, rows, tmp_path / "other", "--pooling", "cls") == 2
    assert "--pooling is for --first-stage" in capsys.readouterr().err
    data.write_text(
        '{"sentence1": "a", "sentence2": "b", "score": 1}\n{"sentence1": "a", "sentence2": "c", "score": 0}\n'
    )
    assert finetune(start, rows, tmp_path / "other", *more, "--first-stage", start) == 1
    error = capsys.readouterr().err
    assert "a reranker cannot be measured on" in error and "(sts)" in error
    assert not list((tmp_path / "other").glob("*"))
    facts = json.loads((output / "training.json").read_text())
    evaluated = [row for row in facts["history"] if "eval_score" in row]
    assert evaluated[0] == facts["history"][0] and [row["step"] for row in evaluated] == [0, 2]
    assert {row["eval_first_stage_score"] for row in evaluated} == {100.0}
    best = max(row["eval_score"] for row in evaluated)
    assert best < 100
    assert f"is {best:.2f} at best" in facts["findings"]["first stage"]
    assert "and 100.00 without a reranker" in facts["findings"]["first stage"]
    readme = (output / "README.md").read_text()
    assert "| score | before | after | first stage alone |" in readme and ": MAP |" in readme


@pytest.mark.parametrize(
    ("line", "more", "says"),
    [
        ({"query": "a", "pos": ["b"]}, [], "no row has negatives"),
        ({"query": "a", "pos": ["b"], "score": 0.5}, [], "scored pairs"),
        ({"query": "a", "pos": ["b"], "neg": ["B ", "A"]}, [], "no row has negatives that are none of its positives"),
        ({"query": "a", "pos": ["b"], "neg": ["c"]}, ["--train-group-size", "1"], "at least 2"),
        ({"query": "a", "pos": ["b"], "neg": ["c"]}, ["--max-len", "9999"], "64 tokens"),
        ({"query": "a", "pos": ["b"], "neg": ["c"]}, ["--passage-max-len", "128"], "together as --max-len"),
        ({"query": "a", "pos": ["b"], "neg": ["c"]}, ["--rerank-top-k", "0"], "--rerank-top-k must be at least 1"),
        ({"query": "a", "pos": ["b"], "neg": ["c"]}, ["--grad-cache-chunk", "0"], "--grad-cache-chunk must be"),
    ],
)
def test_what_teaches_a_reranker_nothing_is_refused(start, tmp_path, capsys, line, more, says):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(line) + "\n")
    usage = says.startswith("--") or "--max-len" in says  # The rest only rows and model show.
    assert finetune(start, str(path), tmp_path / "out", *more) == (2 if usage else 1)
    assert says in capsys.readouterr().err
