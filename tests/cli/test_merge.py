"""`bge merge`: options, tables, errors."""

import json

import pytest

from bgekit.cli.main import main


@pytest.fixture(scope="module")
def pair(make_model):
    return [str(make_model("bert", seed=1, name="model-a")), str(make_model("bert", seed=2, name="model-b"))]


def test_weights(pair, tmp_path, capsys):
    assert main(["merge", "--models", *pair, "--weights", "0.5", "0.5", "--output", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert pair[0] in shown
    assert "0.5000" in shown
    assert (tmp_path / "out" / "config.json").exists()


def test_data(pair, tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    rows = [{"query": word, "pos": [word + " text"], "neg": ["river", "tree"]} for word in ("cat", "dog", "house")]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["merge", "--models", *pair, "--data", str(file), "--output", str(tmp_path / "out")]
    assert main([*command, "--temperature", "0.5", "--neg-number", "2"]) == 0
    assert "loss" in capsys.readouterr().out
    content = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert content["examples"]["temperature"] == 0.5
    assert len(content["examples"]["losses"]) == 2
    assert sum(model["weight"] for model in content["models"]) == pytest.approx(1)


@pytest.fixture
def task(tmp_path):
    """A small retrieval task; skips where the extra eval is missing."""
    pytest.importorskip("pytrec_eval")
    pytest.importorskip("matplotlib")
    folder = tmp_path / "task"
    (folder / "qrels").mkdir(parents=True)
    words = ["cat", "dog", "house", "river", "tree", "bird"]
    for name, suffix in (("queries", ""), ("corpus", " text passage")):
        lines = [json.dumps({"_id": str(n), "text": word + suffix}) for n, word in enumerate(words)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    judged = "".join(f"{n}\t{n}\t1\n" for n in range(len(words)))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    return str(folder)


def test_search(pair, task, tmp_path, capsys):
    command = ["merge", "--models", *pair, "--eval-data", task, "--search-points", "3"]
    assert main([*command, "--output", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert shown.count("*") == 1
    content = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert [trial["weights"] for trial in content["search"]["trials"]] == [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]
    best = max(trial["score"] for trial in content["search"]["trials"])
    chosen = [model["weight"] for model in content["models"]]
    assert {"weights": chosen, "score": best} in [
        {"weights": trial["weights"], "score": trial["score"]} for trial in content["search"]["trials"]
    ]
    assert (tmp_path / "out" / "merge.png").stat().st_size > 1000
    assert "<svg" in (tmp_path / "out" / "merge.html").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "task"]


@pytest.mark.parametrize("more", [(), ("--no-progress",)])
def test_a_search_says_how_far_it_is(pair, task, tmp_path, capsys, monkeypatch, more):
    from bgekit.display import terminal

    monkeypatch.setattr(terminal, "_EVERY", 0.0)  # A line for each step instead of one every 30 seconds.
    command = ["merge", "-m", *pair, "--eval-data", task, "--search-points", "2", "-o", str(tmp_path / "out"), *more]
    assert main(command) == 0
    assert ("task: documents: " in capsys.readouterr().err) == (not more)


def test_search_of_rerankers(pair, make_reranker, task, tmp_path, capsys):
    models = [str(make_reranker("bert", seed=seed)) for seed in (1, 2)]
    command = ["merge", "--models", *models, "--eval-data", task, "--search-points", "2", "--output"]
    assert main([*command, str(tmp_path / "out")]) == 1
    assert "--first-stage" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "out"), "--first-stage", pair[0], "--rerank-top-k", "3"]) == 0
    content = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert content["model_type"] == "reranker"
    assert len(content["search"]["trials"]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "task"]


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--weights", "0.5", "0.4"], "sum to 0.9"),
        (["--weights", "0.5", "0.5", "--data", "x.jsonl"], "choose one"),
        (["--temperature", "2"], "--temperature goes with --data"),
        (["--search-points", "3"], "--search-points goes with --eval-data"),
        (["--density", "0.5"], "--density does nothing for the method average"),
        (["--method", "ties"], "needs a base (--base)"),
        (["--normalize"], "--normalize-weights goes with --weights"),
        (["--max-input-length", "9"], "--max-length goes with --data"),
        (["--eval-split", "dev"], "--split goes with --eval-data"),
    ],
)
def test_errors(pair, tmp_path, capsys, extra, words):
    assert main(["merge", "--models", *pair, "--output", str(tmp_path / "out"), *extra]) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
