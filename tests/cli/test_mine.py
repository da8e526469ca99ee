"""`bge mine`, `bge score` and `bge dedup`, as they are called."""

from __future__ import annotations

import datetime
import importlib
import json

import pytest

from bgekit.cli.main import main


@pytest.fixture
def bge(capsys):
    def call(*arguments):
        code = main([*map(str, arguments), "--no-progress"])
        return code, capsys.readouterr().err

    return call


@pytest.fixture
def data(tmp_path, texts):
    passages = texts(60, longest=12)
    files = {
        "train.jsonl": [{"query": f"{text[:20]} ?", "pos": [text], "neg": []} for text in passages[:10]],
        "pool.jsonl": [{"text": text} for text in [*passages, *map(str.upper, passages[:10])]],
        "pairs.jsonl": [
            {"sentence1": "a cat", "sentence2": "an animal", "label": "entailment"},
            {"sentence1": "a cat", "sentence2": "a dog", "label": "contradiction"},
            {"sentence1": "a cat", "sentence2": "a small cat", "label": "neutral"},
        ],
    }
    for name, rows in files.items():
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def read(path):
    return [json.loads(line) for line in path.open()]


def test_mine(bge, data, tiny_bert):
    code, err = bge("mine", "--model", tiny_bert, "--input", data / "train.jsonl", "--output", data / "out.jsonl",
                    "--candidate-pool", data / "pool.jsonl", "--range", "5-40", "--negatives", 6, "--fp32",
                    "--near-duplicates")  # fmt: skip
    assert code == 0
    rows = read(data / "out.jsonl")
    for row in rows:
        assert len(row["neg"]) == len(row["neg_scores"]) == 6
        assert row["pos"][0].casefold() not in [text.casefold() for text in row["neg"]]
    report = json.loads((data / "out.report.json").read_text())
    page = (data / "out.report.html").read_text("utf-8")
    assert f"{report['negatives']:,} negatives were mined for {report['rows']:,} rows." in page
    assert page.count("<details") >= len(report["samples"]) and "/bge" not in page.partition("path of")[0]
    assert report["negatives"] == 60
    assert "negatives           60 mined" in err
    assert "positive  " in err
    assert sorted(path.name for path in data.iterdir() if "out" in path.name) == [
        "out.jsonl",
        "out.report.html",
        "out.report.json",
    ]


def test_names_of_upstream_and_any_batch_size(bge, data, tiny_bert):
    common = [
        "--input-file", data / "train.jsonl", "--candidate-pool", data / "pool.jsonl", "--range-for-sampling", "2-30",
        "--negative-number", 5, "--query-instruction-for-retrieval", "find: ", "--fp32",
    ]  # fmt: skip
    for name, more in (("a", ()), ("b", ("--batch-size", 3)), ("c", ("--seed", 1))):
        code, _ = bge(
            "mine", "--model-name-or-path", tiny_bert, "--output-file", data / f"{name}.jsonl", *common, *more
        )
        assert code == 0
    negatives = {name: [row["neg"] for row in read(data / f"{name}.jsonl")] for name in "abc"}
    assert negatives["a"] == negatives["b"]
    assert negatives["a"] != negatives["c"]


def test_judgements_keep_texts_out(bge, data):
    pool = [{"_id": f"d{number}", "text": f"text {number}"} for number in range(9)]
    rows = [{"query": "q", "query_id": 7, "pos": ["text 0"]}, {"query": "Q", "pos": ["text 1"]}]
    for name, lines in (("in.jsonl", rows), ("ids.jsonl", pool), ("queries.jsonl", [{"_id": "x", "text": "q"}])):
        (data / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (data / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n7\td3\t1\n7\td4\t0\n")
    (data / "x.trec").write_text("x 0 d5 2\n")
    common = ["mine", "--random", "--input", data / "in.jsonl", "--candidate-pool", data / "ids.jsonl",
              "--negatives", 9, "--overwrite", "--output", data / "o.jsonl"]  # fmt: skip
    assert bge(*common, "--qrels", data / "qrels.tsv", data / "x.trec", "--queries", data / "queries.jsonl")[0] == 0
    for row in read(data / "o.jsonl"):
        assert sorted(row["neg"]) == [f"text {number}" for number in (2, 4, 6, 7, 8)]
    code, err = bge(*common, "--qrels", data / "gone.tsv")
    assert code == 1 and "gone.tsv" in err
    code, err = bge(*common, "--queries", data / "queries.jsonl")
    assert code == 1 and "judgements" in err


def test_candidates_from_documents(bge, data):
    notes = data / "notes"
    (notes / "drafts").mkdir(parents=True)
    (notes / "a.md").write_text("# One\n\nfirst text\n\n# Two\n\nsecond text\n")
    (notes / "b.csv").write_text("text^year\nthird text^2020\n")
    (notes / "c.rst").write_text("fourth text")
    (notes / "drafts" / "d.md").write_text("not this")
    common = ["mine", "--random", "--input", data / "train.jsonl", "--output", data / "o.jsonl", "--negatives", 9,
              "--candidate-pool", notes, "--exclude", "drafts/", "--overwrite", "--no-fill"]  # fmt: skip
    assert bge(*common, "--records", "section", "--delimiter", "^")[0] == 0
    assert {tuple(sorted(row["neg"])) for row in read(data / "o.jsonl")} == {
        ("# One\n\nfirst text", "# Two\n\nsecond text", "third text")
    }
    assert bge(*common, "--include", "*.rst")[0] == 0
    assert all(row["neg"] == ["fourth text"] for row in read(data / "o.jsonl"))
    code, err = bge(
        "mine", "--random", "--input", data / "train.jsonl", "--output", data / "2.jsonl", "--records", "file"
    )
    assert code == 1 and "--records is for --candidate-pool, which is not given" in err


def test_random_and_labelled_pairs(bge, data):
    assert (
        bge("mine", "--random", "--input", data / "train.jsonl", "--output", data / "r.jsonl", "--negatives", 3)[0] == 0
    )
    assert all(len(row["neg"]) == 3 for row in read(data / "r.jsonl"))
    code, err = bge("mine", "--labelled-pairs", "--input", data / "pairs.jsonl", "--output", data / "p.jsonl")
    assert code == 0
    assert read(data / "p.jsonl") == [{"query": "a cat", "pos": ["an animal"], "neg": ["a dog"]}]
    assert "1 of label neutral" in err
    bge("mine", "--labelled-pairs", "--input", data / "pairs.jsonl", "--output", data / "p.jsonl", "--overwrite",
        "--negative-label", "contradiction", "neutral")  # fmt: skip
    assert read(data / "p.jsonl")[0]["neg"] == ["a dog", "a small cat"]


def test_score(bge, data, tiny_reranker):
    (data / "in.jsonl").write_text(
        json.dumps({"query": "a cat", "pos": ["a dog"], "neg": ["the river", "a tree"]}) + "\n"
    )
    code, err = bge("score", "--reranker", tiny_reranker, "--input", data / "in.jsonl", "--output", data / "out.jsonl")
    assert code == 0
    assert "1 of 1 rows scored; " in err
    last = err.splitlines()[-1]
    assert f"wrote {data / 'out.jsonl'}; next: bge finetune --model MODEL --train-data {data / 'out.jsonl'} " in last
    assert ("in 1 a negative scores as high as a positive" in last) == any(
        score >= row["pos_scores"][0] for row in read(data / "out.jsonl") for score in row["neg_scores"]
    )
    (row,) = read(data / "out.jsonl")
    assert (len(row["pos_scores"]), len(row["neg_scores"])) == (1, 2)
    code, err = bge("score", "--reranker", tiny_reranker, "--input", data / "out.jsonl", "--output", data / "2.jsonl")
    assert "1 had scores and keep them" in err


def test_mine_with_a_reranker(bge, data, tiny_bert, tiny_reranker):
    code, _ = bge("mine", "--model", tiny_bert, "--input", data / "train.jsonl", "--output", data / "out.jsonl",
                  "--reranker", tiny_reranker, "--max-reranker-score", 100, "--range", "0-8",
                  "--negatives", 2)  # fmt: skip
    assert code == 0
    assert all(len(row["neg"]) == 2 for row in read(data / "out.jsonl"))


def test_names_of_newer_scripts_of_upstream(bge, data, tiny_bert, tiny_reranker, monkeypatch):
    from bgekit import FlagModel, FlagReranker

    made = []
    for kind in (FlagModel, FlagReranker):

        def spy(self, name, kind=kind, start=kind.__init__, **options):
            made.append((kind, options))
            start(self, name, **options)

        monkeypatch.setattr(kind, "__init__", spy)
    lengths = ["--reranker-max-length", 40, "--reranker-query-max-length", 12]
    code, _ = bge(
        "mine", "--embedder-name-or-path", tiny_bert, "--input-file", data / "train.jsonl", "--output-file",
        data / "out.jsonl", "--range-for-sampling", "0-8", "--negative-number", 2, "--embedder-query-max-length", 10,
        "--embedder-passage-max-length", 20, "--reranker-name-or-path", tiny_reranker, "--max-reranker-score", 100,
        *lengths,
    )  # fmt: skip
    assert code == 0
    score = ["score", "--reranker-name-or-path", tiny_reranker, "--reranker-batch-size", 4, *lengths]
    code, _ = bge(*score, "--input-file", data / "out.jsonl", "--output-file", data / "2.jsonl", "--overwrite-scores")
    assert code == 0
    (_, embedder), (_, judge), (_, teacher) = made
    assert (embedder["query_max_length"], embedder["passage_max_length"]) == (10, 20)
    for reranker in (judge, teacher):
        assert (reranker["max_length"], reranker["query_max_length"]) == (40, 12)


def test_dedup(bge, data):
    (data / "in.jsonl").write_text('{"query": "Q", "pos": ["a"], "x": 1}\n{"query": "q", "pos": ["A "]}\n')
    code, err = bge("dedup", "--input", data / "in.jsonl", "--output", data / "out.jsonl", "--near-duplicates")
    assert code == 0
    assert read(data / "out.jsonl") == [{"query": "Q", "pos": ["a"], "x": 1}]
    assert "1 copies" in err
    assert "line 2 is like line 1" in err
    assert f"wrote the 1 others to {data / 'out.jsonl'}; next: bge mine --model MODEL" in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--range", "ten"), "--range is FIRST-LAST"),
        (("--range", "10-10"), "is empty"),
        ((), "--model is needed"),
        (("--random", "--miner", "bm25"), "one of the two"),
        (("--random", "--margin", "0.1"), "need a model"),
        (("--negative-label", "0"), "--labelled-pairs"),
        (
            ("--random", "--reranker", "m", "--max-reranker-score", "1", "--candidate-pool", "missing.jsonl"),
            "missing.jsonl",
        ),
    ],
)
def test_wrong_usage(bge, data, arguments, message, monkeypatch):
    monkeypatch.setattr("bgekit.cli.options.load_reranker", lambda *_: __import__("contextlib").nullcontext(None))
    code, err = bge("mine", "--input", data / "train.jsonl", "--output", data / "out.jsonl", *arguments)
    assert code == 1
    assert message in err


def test_bad_lines(bge, data):
    (data / "bad.jsonl").write_text('{"query": "q", "pos": ["p"]}\n{"query": "q", "pos": "p"}\n')
    for verb in (("mine", "--random"), ("dedup",), ("score", "--reranker", "none")):
        code, err = bge(*verb, "--input", data / "bad.jsonl", "--output", data / "out.jsonl")
        assert code == 1
        assert "bad.jsonl, line 2: pos must be a list of strings" in err


@pytest.mark.parametrize(
    "more", [["--negatives", 3], ["--keep-existing"], ["--reranker", "r"], ["--work-folder", "w"], ["--model", "m"]]
)
def test_what_labelled_pairs_do_not_use_is_an_error(bge, data, more):
    code, err = bge("mine", "--labelled-pairs", "--input", data / "pairs.jsonl", "--output", data / "p.jsonl", *more)
    assert code == 1
    assert f"so {more[0]} is not used" in err
    assert not (data / "p.jsonl").exists()


@pytest.mark.parametrize("verb", [["mine", "--random"], ["dedup"]])
def test_a_threshold_of_nothing_is_an_error(bge, data, verb):
    code, err = bge(*verb, "--input", data / "train.jsonl", "--output", data / "o.jsonl", "--near-threshold", 0.5)
    assert code == 1
    assert "goes with --near-duplicates" in err


def test_what_json_has_no_form_for_is_found_before_anything_is_done(bge, tmp_path):
    table = pytest.importorskip("pyarrow").table({"query": ["q"], "pos": [["p"]], "day": [datetime.date(2026, 1, 1)]})
    importlib.import_module("pyarrow.parquet").write_table(table, tmp_path / "in.parquet")
    code, err = bge("mine", "--random", "--input", tmp_path / "in.parquet", "--output", tmp_path / "o.jsonl")
    assert code == 1
    assert "in.parquet, line 1: Object of type date" in err
