"""`bge eval` as a user runs it."""

import csv
import json
from pathlib import Path

import pytest
import torch

from bgekit.cli.main import main
from bgekit.networks import loading
from precisions import needs_int8


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    from conftest import make_tiny

    return str(make_tiny(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    folder = tmp_path / "animals"
    (folder / "qrels").mkdir(parents=True)
    words = ["cat", "dog", "bird", "tree", "house", "river"]
    lines = [json.dumps({"_id": f"d{i}", "title": word, "text": f"the {word} is here"}) for i, word in enumerate(words)]
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    queries = [json.dumps({"_id": f"q{i}", "text": f"a {word}"}) for i, word in enumerate(words)]
    (folder / "queries.jsonl").write_text("\n".join(queries))
    rows = ["query-id\tcorpus-id\tscore", *(f"q{i}\td{i}\t1" for i in range(len(words)))]
    (folder / "qrels" / "test.tsv").write_text("\n".join(rows))
    return folder


def pairs(folder: Path) -> Path:
    folder.mkdir()
    with (folder / "test.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sentence1", "sentence2", "score"])
        writer.writerows([f"the cat {i}", f"a dog {i % 3}", i % 5] for i in range(12))
    return folder


def run(*arguments: str) -> int:
    return main(["eval", *map(str, arguments), "--fp32", "--no-progress"])


def test_own_data_in_one_command(model, beir, tmp_path, capsys):
    out = tmp_path / "out"
    given = ("--data", beir, pairs(tmp_path / "pairs"), "--model", model, "--output", out)
    assert run(*given) == 0
    content = json.loads((out / "results.json").read_text())
    assert [(r["model"], r["task"], r["split"], r["main_metric"]) for r in content["results"]] == [
        (model, "animals", "test", "ndcg_at_10"), (model, "pairs", "test", "cosine_spearman"),
    ]  # fmt: skip
    assert content["comparisons"] == []
    shown = capsys.readouterr().out
    assert "animals" in shown and f"{content['results'][0]['main_score']:.2f}" in shown
    assert {path.name for path in out.iterdir()} >= {"results.json", "report.md", "report.html", "per_item.jsonl"}
    capsys.readouterr()
    assert run(*given) == 0
    assert "2 of 2 scores came from its cache" in capsys.readouterr().out


def test_the_last_sentence_says_what_came_out(model, beir, tmp_path, capsys):
    assert run("--data", beir, "--model", model) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("animals nDCG@10 ") and last.endswith("next: the same command with --output DIR keeps the "
                                                                 "scores and writes a report")  # fmt: skip
    assert run("--data", beir, pairs(tmp_path / "pairs"), "--model", model, "--output", tmp_path / "out") == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("mean over 2 tasks ") and f"; written to {tmp_path / 'out'}: report.html, " in last
    assert "next: the same command with a second --model" in last
    assert run("--data", beir, "--model", model, "--compare", "instruction") == 0
    assert "; next: " in capsys.readouterr().out.splitlines()[-1]


def test_compare_instruction_is_one_command(model, beir, tmp_path):
    out = tmp_path / "out"
    assert (
        run("--data", beir, "--model", model, "--compare", "instruction", "--query-instruction", "find: ", "-o", out)
        == 0
    )
    content = json.loads((out / "results.json").read_text())
    assert [r["setting"].get("instruction", "own") for r in content["results"]] == ["own", None]
    (comparison,) = content["comparisons"]
    name = Path(model).name
    assert (comparison["a"], comparison["b"]) == (name, f"{name} [no instruction]")
    assert {result["model"] for result in content["results"]} == {model}
    assert isinstance(comparison["p_value"], float)


def test_compare_dimension_and_precision(model, beir, tmp_path):
    assert (
        run("--data", beir, "--model", model, "--compare", "dimension", "--dimensions", "16", "8", "-o", tmp_path / "a")
        == 0
    )
    results = json.loads((tmp_path / "a" / "results.json").read_text())["results"]
    assert [r["setting"]["dimension"] for r in results] == [16, 8]


@needs_int8
def test_compare_precision(model, beir, tmp_path):
    assert (
        main(["eval", "--data", str(beir), "-m", model, "--compare", "precision", "-o", str(tmp_path / "b"), "--quiet"])
        == 0
    )
    results = json.loads((tmp_path / "b" / "results.json").read_text())["results"]
    assert {r["setting"]["precision"] for r in results} >= {"float32", "int8"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--data", "nowhere"], "nowhere"),
        ([], "--data"),
        (["--benchmark", "nope", "--data-root", "."], "nope"),
        (["--data", "{beir}", "--dimensions", "3"], "--compare dimension"),
        (["--data", "{beir}", "--split", "train"], "train"),
        (["--data", "{beir}", "--tasks", "other"], "other"),
        (["--data", "{beir}", "--rerank-top-k", "3"], "--reranker"),
        (["--data", "{beir}", "--keep-vectors"], "--output"),
    ],
)
def test_bad_requests_end_with_one_line(model, beir, capsys, arguments, says):
    assert run(*(argument.format(beir=beir) for argument in arguments), "--model", model) == 1
    error = capsys.readouterr().err
    assert says in error and "Traceback" not in error


def test_damaged_data_names_file_and_line(model, beir, capsys, tmp_path):
    (beir / "corpus.jsonl").write_text('{"_id": "d0", "text": "fine"}\n{"_id": "d1", "text": 3}\n')
    assert run("--data", beir, "--model", model, "-o", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert "corpus.jsonl" in error and "2" in error
    assert not (tmp_path / "out" / "results.json").exists()


def test_the_published_table_without_a_model(capsys):
    assert main(["eval", "--benchmark", "mteb-en", "--table"]) == 0
    assert "bge-large-en-v1.5" in capsys.readouterr().out
    assert main(["eval", "--table"]) == 0
    shown = capsys.readouterr().out
    assert "bge-large-en-v1.5" in shown and "bge-large-zh-v1.5" in shown


def test_a_reranker_is_compared_with_its_first_stage(model, beir, tmp_path, make_reranker):
    reranker = make_reranker("bert")
    out = tmp_path / "out"
    assert run("--data", beir, "--model", model, "--reranker", reranker, "--rerank-top-k", "3", "-o", out) == 0
    content = json.loads((out / "results.json").read_text())
    assert [result["setting"].get("rerank_top_k") for result in content["results"]] == [None, 3]
    assert len(content["comparisons"]) == 1


def test_a_reranker_is_measured_only_where_there_are_passages(model, beir, tmp_path, make_reranker, capsys):
    out, data = tmp_path / "out", pairs(tmp_path / "pairs")
    assert run("--data", beir, data, "--model", model, "--reranker", make_reranker("bert"), "-o", out) == 0
    content = json.loads((out / "results.json").read_text())
    assert [(result["task"], "reranker" in result["setting"]) for result in content["results"]] == [
        ("animals", False), ("animals", True), ("pairs", False),
    ]  # fmt: skip
    assert [comparison["task"] for comparison in content["comparisons"]] == ["animals"]
    assert "not measured with a reranker: pairs" in capsys.readouterr().out
    assert run("--data", data, "--model", model, "--reranker", make_reranker("bert")) == 1
    assert "a reranker cannot be measured on pairs (sts)" in capsys.readouterr().err


@needs_int8
def test_a_reranker_behind_every_precision(model, beir, tmp_path, make_reranker):
    arguments = ["--data", beir, "-m", model, "--compare", "precision", "--reranker", make_reranker("bert")]
    assert main(["eval", *map(str, arguments), "-o", str(tmp_path / "out"), "--quiet"]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert [("reranker" in r["setting"], r["setting"].get("note")) for r in results] == [
        (reranked, note) for note in (None, "float32", "int8") for reranked in (False, True)
    ]


def test_precisions_of_a_cpu_that_has_one(model, beir, monkeypatch, capsys):
    monkeypatch.setattr(loading, "has_fast_int8", lambda: False)
    monkeypatch.setattr(loading, "cpu_has_fast_bfloat16", lambda: False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert main(["eval", "--data", str(beir), "--model", model, "--compare", "precision"]) == 1
    assert "nothing to compare: this CPU is fast in float32 alone" in capsys.readouterr().err


def test_modes_are_compared_in_one_command(model, beir, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("--data", beir, "--model", model, "--modes", "dense", "bm25", "hybrid", "--output", out) == 0
    results = json.loads((out / "results.json").read_text())["results"]
    assert [result["mode"] for result in results] == ["dense", "bm25", "hybrid"]
    assert [result["setting"].get("fused") for result in results] == [None, None, ["dense", "bm25"]]
    name = Path(model).name
    shown = capsys.readouterr().out
    assert all(f"{name} [{mode}]" in shown for mode in ("dense", "bm25", "hybrid"))
    assert "hybrid is cross-fitted" in shown


def test_hybrid_alone_is_of_vectors_and_words(model, beir, tmp_path):
    assert run("--data", beir, "--model", model, "--modes", "hybrid", "--output", tmp_path) == 0
    (result,) = json.loads((tmp_path / "results.json").read_text())["results"]
    assert (result["mode"], result["setting"]["fused"]) == ("hybrid", ["dense", "bm25"])


def test_weights_are_those_of_a_file_and_of_the_model_alone(model, beir, tmp_path, capsys):
    from conftest import make_tiny

    weights = tmp_path / "weights.json"
    arguments = ["calibrate", "--hybrid", "--data", beir, "--model", model, "--output", weights, "--fp32", "--quiet"]
    assert main(list(map(str, arguments))) == 0
    assert run("--data", beir, "--model", model, "--modes", "hybrid", "--weights", weights) == 0
    assert "fitted on these very queries" in capsys.readouterr().out
    other = make_tiny(tmp_path / "other", seed=1)
    assert run("--data", beir, "--model", other, "--modes", "hybrid", "--weights", weights) == 1
    assert "were fitted for another model than" in capsys.readouterr().err
    assert run("--data", beir, "--model", model, "--modes", "hybrid", "--weights", tmp_path / "none.json") == 1
    assert "does not exist: bge calibrate --hybrid writes fitted weights" in capsys.readouterr().err
    assert run("--data", beir, "--model", model, "--weights", weights) == 1
    assert "--weights goes with --modes hybrid" in capsys.readouterr().err
