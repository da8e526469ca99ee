"""`bge rerank`, and the second stage of `bge search`, as they are called."""

from __future__ import annotations

import io
import json

import pytest

from bgekit import FlagModel, FlagReranker
from bgekit.cli.main import main
from bgekit.data.records import Record
from bgekit.errors import ArgumentError
from bgekit.search.build import index_records

TEXTS = ["the cat is small", "a dog runs fast by the river", "python code and class", "a mountain and a tree house"]


@pytest.fixture
def bge(capsys, monkeypatch):
    def call(*arguments, stdin=""):
        stream = io.TextIOWrapper(io.BufferedReader(io.BytesIO(stdin.encode())))
        monkeypatch.setattr("sys.stdin", stream)
        code = main([*map(str, arguments), "--no-progress"])
        output = capsys.readouterr()
        return code, output.out, output.err

    return call


@pytest.fixture(scope="module")
def reranker(tiny_reranker):
    return FlagReranker(tiny_reranker)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answers(out):
    return [json.loads(line) for line in out.splitlines()]


def test_queries_with_passages(bge, tiny_reranker, reranker, tmp_path):
    rows = [
        {"query": "cat", "passages": TEXTS, "qid": 7},
        {"query": "dog", "docs": [{"id": "x", "text": TEXTS[0], "title": "Cats"}, {"_id": 5, "content": TEXTS[1]}]},
        {"query": "none", "documents": []},
    ]
    code, out, err = bge("rerank", "--model", tiny_reranker, "--fp32", write(tmp_path / "in.jsonl", rows))
    assert (code, err) == (0, "")
    first, second, third = answers(out)
    expected = reranker.rank("cat", TEXTS)
    assert (first["qid"], first["query"], list(first)[-1]) == (7, "cat", "results")
    assert [hit["rank"] for hit in first["results"]] == [1, 2, 3, 4]
    assert [(hit["index"], hit["text"]) for hit in first["results"]] == [(hit.index, hit.text) for hit in expected]
    assert [hit["score"] for hit in first["results"]] == pytest.approx([hit.score for hit in expected], abs=1e-5)
    assert {hit["id"]: hit["text"] for hit in second["results"]} == {"x": TEXTS[0], 5: TEXTS[1]}
    titled = {hit["id"]: (hit.get("title"), hit["score"]) for hit in second["results"]}
    score = reranker.compute_score(("dog", f"Cats {TEXTS[0]}"))
    assert titled["x"] == ("Cats", pytest.approx(score, abs=1e-5)) and titled[5][0] is None
    assert third == {"query": "none", "results": []}


def test_top_k_and_normalize(bge, tiny_reranker, tmp_path):
    file = write(tmp_path / "in.jsonl", [{"query": "cat", "passages": TEXTS}])
    code, out, _ = bge("rerank", "--model", tiny_reranker, file, "--top-k", 2, "--normalize", "--dtype", "float32")
    assert code == 0
    (answer,) = answers(out)
    assert len(answer["results"]) == 2
    assert 1 > answer["results"][0]["score"] >= answer["results"][1]["score"] > 0


def test_texts_of_a_file_for_queries(bge, tiny_reranker, reranker, tmp_path):
    corpus = write(tmp_path / "docs.jsonl", [{"_id": f"d{row}", "text": text} for row, text in enumerate(TEXTS)])
    code, out, _ = bge("rerank", "--model", tiny_reranker, "--fp32", corpus, "-q", "cat", "dog", "-k", 3)
    assert code == 0
    for query, answer in zip(("cat", "dog"), answers(out), strict=True):
        expected = reranker.rank(query, TEXTS, top_k=3)
        assert answer["query"] == query
        assert [hit["id"] for hit in answer["results"]] == [f"d{hit.index}" for hit in expected]


def test_results_of_a_search(bge, tiny_bert, tiny_reranker, reranker, tmp_path):
    corpus = write(tmp_path / "docs.jsonl", [{"_id": f"d{row}", "text": text} for row, text in enumerate(TEXTS)])
    found = bge("search", corpus, "--model", tiny_bert, "-q", "cat", "--json", "-k", 3)[1]
    code, out, _ = bge("rerank", "--model", tiny_reranker, "--fp32", stdin=found)
    assert code == 0
    before, after = answers(found)[0]["results"], answers(out)[0]["results"]
    retrieved = {hit["id"]: hit["score"] for hit in before}
    assert {hit["id"]: hit["retrieval_score"] for hit in after} == retrieved
    expected = reranker.rank("cat", [hit["text"] for hit in before])
    assert [hit["text"] for hit in after] == [hit.text for hit in expected]
    direct = bge(
        "search", corpus, "--model", tiny_bert, "-q", "cat", "--json", "-k", 2, "--fp32", "--reranker", tiny_reranker,
        "--rerank-top-k", 3,
    )  # fmt: skip
    assert direct[0] == 0
    (answer,) = answers(direct[1])
    assert [hit["id"] for hit in answer["results"]] == [hit["id"] for hit in after[:2]]
    assert [hit["rank"] for hit in answer["results"]] == [1, 2]
    for hit, same in zip(answer["results"], after, strict=False):
        assert hit["score"] == pytest.approx(same["score"], abs=1e-5)
        assert hit["retrieval_score"] == pytest.approx(retrieved[hit["id"]], abs=0.01)


def test_what_a_reranker_prints_another_one_reads_the_same(bge, tiny_reranker, tmp_path):
    passages = [{"id": "x", "title": "Cats", "text": TEXTS[0], "score": 0.7, "rank": 1}, TEXTS[1]]
    file = write(tmp_path / "in.jsonl", [{"query": "cat", "passages": passages}])
    _, first, _ = bge("rerank", "--model", tiny_reranker, "--fp32", file)
    _, second, _ = bge("rerank", "--model", tiny_reranker, "--fp32", stdin=first)
    before, after = ({hit["text"]: hit for hit in answers(out)[0]["results"]} for out in (first, second))
    assert {text: hit["score"] for text, hit in after.items()} == {text: hit["score"] for text, hit in before.items()}
    assert [hit.get("title") for hit in after.values()] == [hit.get("title") for hit in before.values()]
    # That of the first stage stays; of a passage without one the first reranker is the first stage.
    assert after[TEXTS[0]]["retrieval_score"] == before[TEXTS[0]]["retrieval_score"] == 0.7
    assert after[TEXTS[1]]["retrieval_score"] == before[TEXTS[1]]["score"]


def test_fields_of_passages_can_be_named(bge, tiny_reranker, reranker, tmp_path):
    passage = {"key": "k", "body": TEXTS[0], "heading": "Cats", "text": "something else", "lang": "en"}
    file = write(tmp_path / "in.jsonl", [{"query": "cat", "passages": [passage]}])
    call = ["rerank", "--model", tiny_reranker, "--fp32", file, "--text-field", "body", "--id-field", "key"]
    for title, text in (("heading", f"Cats {TEXTS[0]}"), ("", TEXTS[0])):
        code, out, _ = bge(*call, "--title-field", title)
        (hit,) = answers(out)[0]["results"]
        assert (code, hit["id"], hit["text"], hit["lang"]) == (0, "k", TEXTS[0], "en")
        assert hit.get("title") == ("Cats" if title else None)
        assert hit["score"] == pytest.approx(reranker.compute_score(("cat", text)), abs=1e-5)
    for option, name in (("--text-field", "no"), ("--id-field", "nor")):
        code, out, err = bge(*call, option, name)
        assert (code, out) == (1, "")
        assert f"in.jsonl, line 1: passages[0] has no field {name}" in err


def test_bad_lines_can_be_left_out(bge, tiny_reranker, tmp_path):
    good = [json.dumps({"query": query, "passages": TEXTS}) for query in ("cat", "dog", "bird")]
    file = tmp_path / "in.jsonl"
    bad = json.dumps({"query": "a", "docs": [{"text": 3}]})
    file.write_text("\n".join(["nonsense", good[0], bad, good[1], "[1]", '{"query": 3}', good[2]]))
    code, out, err = bge("rerank", "--model", tiny_reranker, file, "--on-error", "skip")
    assert code == 0
    assert [answer["query"] for answer in answers(out)] == ["cat", "dog", "bird"]
    assert [f"in.jsonl, line {line}:" in err for line in range(1, 8)] == [True, False, True, False, True, True, False]
    code, _, err = bge("rerank", "--model", tiny_reranker, file)
    assert code == 1
    assert "in.jsonl, line 1: not valid JSON" in err and "--on-error skip" in err


def test_windows(bge, tiny_reranker, tmp_path):
    file = write(tmp_path / "in.jsonl", [{"query": "cat", "passages": ["the cat is small " * 40]}])
    cut = bge("rerank", "--model", tiny_reranker, file)
    assert "1 of 1 pairs were too long" in cut[2]
    whole = bge("rerank", "--model", tiny_reranker, file, "--windows", "--verbose")
    assert "1 of 1 passages were long" in whole[2]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"passages": ["a"]}, "line 2: query must be a string, not null"),
        ({"query": "a"}, "line 2: there is no field passages, docs"),
        ({"query": "a", "docs": "a"}, "line 2: docs must be a list"),
        ({"query": "a", "docs": ["a", 3]}, "docs[1] must be a string or an object"),
        ({"query": "a", "results": [{"id": "x", "text": None}]}, "--store-texts"),
        ({"query": "a", "docs": [{"text": "a", "title": 3}]}, "docs[0]: title must be a string"),
        ([1], "line 2"),
    ],
)
def test_bad_lines_are_named(bge, tiny_reranker, tmp_path, row, message):
    file = write(tmp_path / "in.jsonl", [{"query": "cat", "passages": TEXTS}, row])
    code, _, err = bge("rerank", "--model", tiny_reranker, file)
    assert code == 1
    assert message in err
    assert "in.jsonl" in err


def test_mistakes(bge, tiny_bert, tiny_reranker, tmp_path):
    for arguments, message in (
        (["--model", tiny_reranker, "-q", "cat"], "before -q"),
        (["--model", tiny_bert, write(tmp_path / "a.jsonl", [{"query": "a", "docs": []}])], "is not a reranker"),
        (["--model", tiny_reranker, tmp_path / "nothing.jsonl"], "cannot read"),
        (["--model", tiny_reranker, tmp_path / "a.jsonl", "--format", "csv"], "--format csv goes with -q"),
    ):
        code, out, err = bge("rerank", *arguments)
        assert (code, out) == (1, "")
        assert message in err
    assert bge("rerank", "--model", tiny_reranker) == (0, "", "")


def test_ask_with_a_reranker(tiny_bert, reranker, tmp_path):
    model = FlagModel(tiny_bert, use_fp16=False)
    records = [Record(str(row), text) for row, text in enumerate(TEXTS)]
    index, _ = index_records(model, iter(records), tmp_path / "index")
    plain = index.ask(model, ["cat", "dog"], 4)
    found = index.ask(model, ["cat", "dog"], 2, reranker=reranker)
    for query, hits, before in zip(("cat", "dog"), found, plain, strict=True):
        assert [hit.text for hit in hits] == [hit.text for hit in reranker.rank(query, TEXTS, top_k=2)]
        assert {hit.id: hit.retrieval_score for hit in hits}.items() <= {hit.id: hit.score for hit in before}.items()
    with pytest.raises(ArgumentError, match="rerank_top_k"):
        index.ask(model, ["cat"], reranker=reranker, rerank_top_k=0)
