"""`bge index`, as it is called, and `bge search FILES --index DIR`, which brings an index up to date."""

from __future__ import annotations

import io
import json

import pytest

from bgekit.cli.main import main

TEXTS = ["the cat is small", "a dog runs fast by the river", "python code and class", "a mountain and a tree house"]


@pytest.fixture
def bge(capsys, monkeypatch):
    def call(*arguments, stdin="", code=0):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(stdin.encode()))))
        assert main([*map(str, arguments)]) == code
        output = capsys.readouterr()
        return output.out if code == 0 and output.out else output.err

    return call


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def corpus(tmp_path):
    rows = [{"_id": f"d{row}", "text": text, "year": 2020 + row} for row, text in enumerate(TEXTS)]
    return write(tmp_path / "docs.jsonl", rows)


@pytest.fixture
def index(bge, corpus, tiny_bert, tmp_path):
    folder = tmp_path / "index"
    bge("search", corpus, "--model", tiny_bert, "--index", folder, "--keep", "year", "-q", "x", "--no-progress")
    return folder


def info(bge, index):
    return json.loads(bge("index", "info", index, "--json"))


def ids(bge, index, *more):
    found = json.loads(bge("search", "--index", index, "-q", "a dog", "-k", "50", "--json", "--no-progress", *more))
    return {hit["id"]: hit.get("metadata") for hit in found["results"]}


def test_documents_come_and_go(bge, index, tmp_path):
    known = info(bge, index)
    assert (known["rows"], known["documents"], known["columns"]) == (4, 4, {"year": "int64"})
    more = write(tmp_path / "more.jsonl", [{"id": "d1", "text": "a bird"}, {"id": "new", "text": TEXTS[0], "year": 1}])
    said = bge("index", "add", index, more, "--no-progress")
    assert "added 2 texts, of which 2 were encoded" in said and "1 of documents that were there are replaced" in said
    assert ids(bge, index) == {"d0": {"year": 2020}, "d1": {"year": None}, "d2": {"year": 2022}, "d3": {"year": 2023},
                               "new": {"year": 1}}  # fmt: skip
    (tmp_path / "gone.txt").write_text("d0\nd2\n\n")
    assert "would remove 2 documents (d0, d2)" in bge(
        "index", "remove", index, "--ids", tmp_path / "gone.txt", "--dry-run"
    )
    assert info(bge, index)["rows"] == 5
    assert f"{index} holds 3 texts now" in bge("index", "remove", index, "--ids", tmp_path / "gone.txt")
    assert "removed 1 document (new)" in bge("index", "remove", index, "--where", "year < 2000")
    assert "removed 0 documents" in bge("index", "remove", index, "--where", "year < 2000")
    known = info(bge, index)
    assert (known["rows"], known["documents"], known["deleted"], known["segments"]) == (2, 2, 4, 2)
    shown = bge("index", "info", index)
    assert "holds     2 texts; 4 removed ones take space until it is compacted" in shown
    assert "metadata  year (int64)" in shown
    assert "holds 2 texts in" in bge("index", "compact", index)
    assert "nothing to compact" in bge("index", "compact", index)
    known = info(bge, index)
    assert (known["rows"], known["deleted"], known["segments"]) == (2, 0, 1)
    assert set(ids(bge, index)) == {"d1", "d3"}


def test_the_recall_that_is_wanted_is_measured_kept_and_shown(bge, tiny_bert, tmp_path):
    words = [
        f"{first} {second} {number}"
        for first in ("cat", "dog", "tree")
        for second in ("fast", "small")
        for number in range(50)
    ]
    corpus, index = write(tmp_path / "docs.jsonl", [{"text": text} for text in words]), tmp_path / "index"
    bge("search", corpus, "--model", tiny_bert, "--index", index, "--index-type", "int8", "--recall", "0.8", "-q", "x",
        "--no-progress")  # fmt: skip
    measured = info(bge, index)["measured"]
    assert measured["wanted"] == 0.8 and all(point["recall"] >= 0.8 for point in measured["points"])
    assert "80.0% wanted; found " in bge("index", "info", index)
    # Of an index that is there it is only measured again.
    files = {file: file.stat().st_mtime_ns for file in index.glob("index.int8")}
    bge("search", "--index", index, "--recall", "0.95", "-q", "x", "--no-progress")
    assert info(bge, index)["measured"]["wanted"] == 0.95
    assert files == {file: file.stat().st_mtime_ns for file in index.glob("index.int8")} != {}
    assert "recall must be at least 0.5 and less than 1" in bge(
        "search", "--index", index, "--recall", "1.5", "-q", "x", code=1
    )
    exact = ("search", corpus, "--model", tiny_bert, "--index", tmp_path / "exact", "-q", "x", "--recall", "0.9")
    assert "an exact index finds all of the nearest: leave out --recall" in bge(*exact, "--no-progress", code=1)


def test_ids_from_rows_and_standard_input(bge, index, corpus):
    said = bge("index", "remove", index, "--ids", "-", stdin="d0\nx\n", code=1)
    assert "has no documents of 1 of the ids: 'x'. Nothing was removed; --ignore-missing removes the others" in said
    assert info(bge, index)["rows"] == 4
    assert "removed 1 document (d0); 1 ids are not there" in bge(
        "index", "remove", index, "--ids", "-", "--ignore-missing", stdin="d0\nx\n"
    )
    bge("index", "remove", index, "--ids", corpus, "--ignore-missing")
    assert info(bge, index)["rows"] == 0


def test_files_synchronise(bge, index, corpus, tmp_path):
    asked = ("--index", index, "-q", "x", "--no-progress")
    more = write(tmp_path / "more.jsonl", [{"id": "new", "text": "a bird"}])
    bge("index", "add", index, more, "--no-progress")
    rows = [json.loads(line) for line in corpus.read_text().splitlines()]
    rows[0]["text"] = "the cat is large"
    write(corpus, rows[:3])
    bge("search", corpus, *asked)
    assert set(ids(bge, index)) == {"d0", "d1", "d2"}
    corpus.rename(tmp_path / "moved.jsonl")
    bge("search", tmp_path / "moved.jsonl", *asked)
    assert set(ids(bge, index, "--where", "year > 2020")) == {"d1", "d2"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--chunk"], "are not split into passages, and --chunk splits them"),
        (["--max-length", "30"], "was made with --max-length 64, and --max-length 30 was given"),
        (["--text-field", "title"], "no field title"),
        (["--model", "OTHER"], "cannot take vectors of"),
        (["--truncate-dim", "8"], "Leave out --truncate-dim"),
    ],
)
def test_what_contradicts_the_index(bge, index, corpus, make_model, arguments, message):
    other = str(make_model("bert", seed=1, name="other")) if "OTHER" in arguments else ""
    arguments = [other if argument == "OTHER" else argument for argument in arguments]
    assert message in bge("index", "add", index, corpus, *arguments, "--no-progress", code=1)
    assert info(bge, index)["generation"] == 0


def test_passages(bge, tmp_path, tiny_bert):
    (tmp_path / "a.txt").write_text("the cat is small. " * 30)
    index = tmp_path / "index"
    bge("search", tmp_path / "a.txt", "--model", tiny_bert, "--chunk-size", 16, "--index", index, "-q", "x",
        "--no-progress")  # fmt: skip
    (tmp_path / "b.txt").write_text("a dog runs. " * 30)
    for option, value, kept in (("--chunk-size", 20, 16), ("--chunk-overlap", 3, 2)):
        said = bge("index", "add", index, tmp_path / "b.txt", option, value, code=1)
        assert f"was made with {option} {kept}, and {option} {value} was given" in said
    assert "--no-chunk does not split" in bge("index", "add", index, tmp_path / "b.txt", "--no-chunk", code=1)
    bge("index", "add", index, tmp_path / "b.txt", "--no-progress")
    known = info(bge, index)
    assert known["rows"] > known["documents"] == 2
    assert "passages of 2 documents" in bge("index", "info", index)
    assert "passages of at most 16 tokens, sharing 2" in bge("index", "info", index)


def test_records_of_standard_input_need_ids(bge, index):
    said = bge("index", "add", index, "-", "--no-progress", stdin="a bird\n", code=1)
    assert "standard input, line 1: the record has no id" in said
    bge("index", "add", index, "-", "--format", "jsonl", "--no-progress", stdin='{"id": "x", "text": "a bird"}\n')
    assert info(bge, index)["rows"] == 5


def test_mistakes(bge, index, corpus, tmp_path, tiny_bert):
    vectors = tmp_path / "vectors"
    bge("encode", corpus, "-o", vectors, "--model", tiny_bert, "--store-texts", "--no-progress")
    assert "holds encoded shards, and documents are added" in bge("index", "add", index, vectors, code=1)
    assert "bge search" in bge("index", "info", vectors, code=1)
    assert "does not exist" in bge("index", "info", tmp_path / "nowhere", code=1)
    assert "is neither an index" in bge("index", "compact", tmp_path, code=1)
    assert "where: there is no column yaer" in bge("index", "remove", index, "--where", "yaer = 1", code=1)
    for arguments in (["index"], ["index", "remove", index], ["index", "drop", index]):
        with pytest.raises(SystemExit):
            main([str(each) for each in arguments])
