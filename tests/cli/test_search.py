"""`bge search`, as it is called."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import get_args

import pytest

from bgekit.cli import options
from bgekit.cli.main import main
from bgekit.cli.search import readable
from bgekit.display.terminal import wrapped
from bgekit.search.index import Hit
from bgekit.search.modes import Mode

TEXTS = ["the cat is small", "a dog runs fast by the river", "python code and class", "a mountain and a tree house"]


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "docs.jsonl"
    path.write_text("".join(json.dumps({"_id": f"d{row}", "text": text}) + "\n" for row, text in enumerate(TEXTS)))
    return str(path)


@pytest.fixture
def bge(capsys, monkeypatch):
    def call(*arguments, stdin=""):
        given = stdin if isinstance(stdin, bytes) else stdin.encode()
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(given))))
        code = main(["search", *map(str, arguments), "--no-progress"])
        output = capsys.readouterr()
        return code, output.out, output.err

    return call


def answers(out):
    return [json.loads(line) for line in out.splitlines()]


def test_files(bge, corpus, tiny_bert):
    code, out, err = bge(corpus, "--model", tiny_bert, "-q", *TEXTS[:2], "-k", 2, "--json")
    assert code == 0
    assert [answer["query"] for answer in answers(out)] == TEXTS[:2]
    for row, answer in enumerate(answers(out)):
        assert [hit["rank"] for hit in answer["results"]] == [1, 2]
        first = answer["results"][0]
        assert (first["id"], first["text"]) == (f"d{row}", TEXTS[row])
        assert first["score"] == pytest.approx(1, abs=0.01)
        assert "passage" not in first
    assert "encoded 4 texts" in err
    assert "--index DIR" in err


def test_readable(bge, corpus, tiny_bert, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    code, out, _ = bge(corpus, "--model", tiny_bert, "-q", TEXTS[1], "--top-k", 1)
    assert code == 0
    assert out.splitlines() == [f"? {TEXTS[1]}", out.splitlines()[1], f"     {TEXTS[1]}", ""]
    assert out.splitlines()[1].split()[::2] == ["1", "d1"]


def test_an_index_is_kept_and_needs_no_model(bge, corpus, tiny_bert, tmp_path):
    index = tmp_path / "index"
    assert "encoded 4" in bge(corpus, "--model", tiny_bert, "--index", index, "-q", "x")[2]
    code, _, err = bge(corpus, "--model", tiny_bert, "--index", index, "-q", "x")
    assert code == 0
    assert "encoded" not in err
    for arguments in (["--index", index], [index]):
        code, out, err = bge(*arguments, "-q", TEXTS[2], "--json")
        assert code == 0
        assert answers(out)[0]["results"][0]["id"] == "d2"


def test_lines_of_standard_input_are_questions(bge, corpus, tiny_bert):
    code, out, _ = bge(corpus, "--model", tiny_bert, "--json", stdin=f"{TEXTS[0]}\n\n{TEXTS[3]}\n")
    assert code == 0
    assert [answer["results"][0]["id"] for answer in answers(out)] == ["d0", "d3"]


def test_shards(bge, corpus, tiny_bert, tmp_path):
    shards, index = str(tmp_path / "shards"), str(tmp_path / "index")
    assert main(["encode", corpus, "-o", shards, "--model", str(tiny_bert), "--store-texts", "--no-progress"]) == 0
    bge()  # Take what was printed.
    for arguments in ([], ["--index", index]):
        code, out, _ = bge(shards, *arguments, "-q", TEXTS[2], "--json")
        assert code == 0
        assert answers(out)[0]["results"][0]["text"] == TEXTS[2]
    assert bge("--index", index, "-q", "x", "--json")[0] == 0


@pytest.mark.parametrize("index_type", ["hnsw", "ivf"])
def test_approximate(bge, corpus, tiny_bert, tmp_path, index_type):
    pytest.importorskip("faiss", reason="approximate indexes need the extra faiss")
    index = tmp_path / "index"
    code, out, err = bge(
        corpus, "--model", tiny_bert, "--index", index, "--index-type", index_type, "-q", TEXTS[0], "--json"
    )
    assert code == 0
    assert index_type in err
    assert answers(out)[0]["results"][0]["id"] == "d0"
    assert "exact" in bge("--index", index, "--index-type", "exact", "-q", "x")[2]


def test_modes(bge, corpus, tiny_bert, tmp_path):
    index = tmp_path / "index"
    code, out, err = bge(corpus, "--model", tiny_bert, "--index", index, "--mode", "hybrid", "-q", TEXTS[1], "--json")
    assert code == 0 and answers(out)[0]["results"][0]["id"] == "d1"
    assert "hybrid of dense and bm25 by reciprocal ranks (k = 60), as the index has no fitted weights" in err
    asked = ("-q", TEXTS[2].split()[-1], "unheard", "--model", "NO/MODEL")
    code, out, err = bge("--index", index, "--mode", "bm25", *asked)
    assert code == 0 and "  d2\n" in out and "nothing: no text has a word of it" in out and "by words (bm25)" in err
    assert main(["index", "info", str(index)]) == 0
    run = tmp_path / "run.trec"
    assert bge("--index", index, "--mode", "hybrid", "-q", *TEXTS[:2], "-o", run, "-k", 1)[0] == 0
    rows = [line.split()[:4] for line in run.read_text().splitlines()]
    assert rows == [["1", "Q0", "d0", "1"], ["2", "Q0", "d1", "1"]]


def test_words_come_to_an_index_that_lacks_them(bge, corpus, tiny_bert, tmp_path):
    index, vectors = tmp_path / "index", tmp_path / "vectors"
    bge(corpus, "--model", tiny_bert, "--index", index, "-q", "x")
    for mode in ("bm25", "hybrid"):
        code, _, err = bge("--index", index, "--mode", mode, "-q", "x")
        assert code == 1 and "--parts bm25" in err
    assert bge("--index", index, "--mode", "bm25", "--parts", "bm25", "-q", TEXTS[0])[0] == 0
    code, _, err = bge(corpus, "--index", index, "--mode", "bm25", "-q", TEXTS[0])
    assert code == 0 and "encoded" not in err
    encode = ["encode", corpus, "-o", str(vectors), "--model", str(tiny_bert), "--store-texts", "--no-progress"]
    assert main(encode) == 0
    code, out, _ = bge(vectors, "--mode", "bm25", "-q", TEXTS[3])
    assert code == 0 and "  d3\n" in out
    for asked in ([corpus, "--model", tiny_bert], ["--index", index]):
        code, out, err = bge(*asked, "--mode", "lexical", "-q", "x")
        assert (code, out) == (1, "") and "lexical" in err and "Traceback" not in err


def test_modes_of_a_model_with_heads(bge, corpus, tiny_bert, tmp_path):
    import torch

    model, index, vectors = tmp_path / "model", tmp_path / "index", tmp_path / "vectors"
    shutil.copytree(tiny_bert, model)
    torch.manual_seed(0)
    for name, width in (("sparse_linear", 1), ("colbert_linear", 32)):
        torch.save({"weight": torch.randn(width, 32), "bias": torch.ones(width)}, model / f"{name}.pt")
    build = (corpus, "--model", model, "--index", index, "--parts", "multi-vector", "--mode", "hybrid", "-q", TEXTS[0])
    code, out, err = bge(*build, "--json")
    assert code == 0 and answers(out)[0]["results"][0]["id"] == "d0"
    assert "hybrid of dense, lexical and multi-vector by" in err
    assert "encoded" not in bge(*build)[2]
    found = {}
    for mode in ("lexical", "multi-vector", "hybrid"):
        code, out, err = bge("--index", index, "--mode", mode, "-q", TEXTS[1], "--json")
        found[mode] = answers(out)[0]["results"]
        assert code == 0 and found[mode][0]["id"] == "d1"
    encode = ["encode", corpus, "-o", vectors, "--model", model, "--store-texts", "--outputs", "dense", "sparse"]
    assert main([*map(str, encode), "--no-progress"]) == 0
    bge()
    code, out, err = bge(vectors, "--mode", "lexical", "-q", TEXTS[1], "--json")
    assert code == 0 and answers(out)[0]["results"] == found["lexical"]
    code, out, err = bge(vectors, "--mode", "multi-vector", "-q", TEXTS[1], "--json")
    assert "encoded now" in err
    rounded = pytest.approx(found["multi-vector"][0]["score"], abs=1e-3)
    assert answers(out)[0]["results"][0]["score"] == rounded


def test_chunks(bge, tiny_bert, tmp_path):
    path = tmp_path / "long.jsonl"
    long = "the cat is small. " * 30 + "python code and class."
    path.write_text(json.dumps({"id": "long", "text": long}) + "\n" + json.dumps({"id": "b", "text": "a bird"}) + "\n")
    code, out, err = bge(path, "--model", tiny_bert, "--chunk", "--chunk-size", 16, "-q", "python code", "--json")
    assert code == 0
    (answer,) = answers(out)
    assert sorted(hit["id"] for hit in answer["results"]) == ["b", "long"]
    assert all(hit["text"] in long for hit in answer["results"] if hit["id"] == "long")
    assert all(isinstance(hit["passage"], int) for hit in answer["results"])
    assert re.search(r"encoded [\d,]+ passages in ", err)


def test_no_instruction(bge, corpus, tiny_bert):
    instructed = ["--query-instruction", "embedding vector search query: "]
    scores = [
        answers(bge(corpus, "--model", tiny_bert, *instructed, *more, "-q", TEXTS[0], "--json", "-k", 1)[1])[0]
        for more in ([], ["--no-instruction"])
    ]
    assert scores[0]["results"][0]["score"] < 0.999
    assert scores[1]["results"][0]["score"] == pytest.approx(1, abs=0.005)


def test_quiet(bge, corpus, tiny_bert):
    assert bge(corpus, "--model", tiny_bert, "-q", "x", "--quiet")[2] == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to search"),
        (["-q", "x", "CORPUS"], "name it before -q"),
        (["CORPUS", "-q", "x"], "--model is needed"),
        (["FOLDER", "-q", "x"], "--model is needed"),
        (["FOLDER", "--model", "MODEL", "-q", "x"], "has no files to read"),
        (["CORPUS", "SHARDS", "--model", "MODEL", "-q", "x"], "give it alone"),
        (["--index", "NOWHERE", "-q", "x"], "does not exist"),
        (["--index", "NOWHERE", "--chunk", "-q", "x"], "--chunk when they are encoded"),
        (["NOFILE", "--model", "MODEL", "-q", "x"], "cannot read"),
        (["-", "--model", "MODEL"], "must come with -q"),
        (["CORPUS", "--model", "MODEL", "-q", " "], "question (-q) is empty"),
    ],
)
def test_mistakes(bge, corpus, tiny_bert, tmp_path, arguments, message):
    (tmp_path / "folder").mkdir()
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "manifest.json").write_text('{"format": "bgekit shards"}')
    places = {
        "CORPUS": corpus, "MODEL": tiny_bert, "FOLDER": tmp_path / "folder", "SHARDS": tmp_path / "shards",
        "NOWHERE": tmp_path / "nowhere", "NOFILE": tmp_path / "no.jsonl",
    }  # fmt: skip
    code, out, err = bge(*[places.get(argument, argument) for argument in arguments])
    assert (code, out) == (1, "")
    assert message in err
    assert len(err.splitlines()) == 1


def test_another_model(bge, corpus, tiny_bert, make_model, tmp_path):
    bge(corpus, "--model", tiny_bert, "--index", tmp_path / "index", "-q", "x")
    other = make_model("bert", seed=1, name="other")
    code, _, err = bge("--index", tmp_path / "index", "--model", other, "-q", "x")
    assert code == 1
    assert "cannot be searched with" in err


def test_the_same_model_used_otherwise_is_told_the_option(bge, corpus, tiny_bert, tmp_path):
    bge(corpus, "--model", tiny_bert, "--index", tmp_path / "index", "-q", "x")
    for given, advice in (
        (("--truncate-dim", "8"), "Leave out --truncate-dim"), (("--no-normalize",), "Leave out --no-normalize"),
        (("--pooling", "max"), "Give --pooling cls"),
        (("--passage-instruction", "passage: "), "Give --passage-instruction"),
    ):  # fmt: skip
        code, _, err = bge("--index", tmp_path / "index", "-q", "x", *given)
        assert code == 1
        assert "with other settings" in err and advice in err and "cannot be searched" not in err


def test_questions_in_another_encoding(bge, corpus, tiny_bert, tmp_path):
    bge(corpus, "--model", tiny_bert, "--index", tmp_path / "index", "-q", "x")
    questions = "向量检索\n模型\n".encode("gbk")
    code, _, err = bge("--index", tmp_path / "index", "--json", stdin=questions)
    assert code == 1 and "--encoding gb18030 reads it" in err
    code, out, _ = bge("--index", tmp_path / "index", "--json", "--encoding", "gbk", stdin=questions)
    assert code == 0
    assert [json.loads(line)["query"] for line in out.splitlines()] == ["向量检索", "模型"]


def test_wrapping():
    assert wrapped("one two three four", 9, lines=2) == ["one two", "three…"]
    assert wrapped("one two", 9, lines=2) == ["one two"]
    assert wrapped("中文模型向量检索", 8, lines=2) == ["中文模型", "向量检索"]
    assert wrapped("中文模型向量检索样例", 8, lines=2) == ["中文模型", "向量检…"]
    assert wrapped("x" * 30, 10, lines=3) == ["x" * 10] * 3
    assert wrapped("", 10, lines=2) == []


def test_documents_cannot_steer_the_terminal():
    shown = readable("q\x1b[2J", [Hit(1, 0.5, "a\nb", "x\x1b]0;title\x07 \ud800 y\r\n" * 9, 2)], 60)
    assert not set(shown) & set("\x1b\x07\r\ud800")
    assert shown.splitlines()[1] == "  1  0.500  a b  (passage 3)"
    assert len(shown.splitlines()) == 4 + 1 - 1
    assert all(len(line) <= 60 for line in shown.splitlines())


@pytest.fixture
def notes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes" / "sub").mkdir(parents=True)
    for name, text in zip(("a.md", "b.txt", "sub/c.html", "sub/d.md"), TEXTS, strict=True):
        (tmp_path / "notes" / name).write_text(f"# tree\n\n{text}\n" if name.endswith("md") else text)
    return tmp_path / "notes"


def best(out):
    return answers(out)[0]["results"][0]


def test_a_folder_of_documents(bge, notes, tiny_bert):
    code, out, err = bge("notes", "--model", tiny_bert, "-q", TEXTS[2], "--json")
    assert code == 0
    assert (best(out)["id"], best(out)["text"]) == ("sub/c.html", TEXTS[2])
    assert {hit["id"] for hit in answers(out)[0]["results"]} == {"a.md", "b.txt#0", "sub/c.html", "sub/d.md"}
    assert "encoded 4 texts" in err
    code, out, _ = bge("notes", "--model", tiny_bert, "-q", f"tree {TEXTS[0]}", "--json", "--records", "section")
    assert (best(out)["id"], best(out)["text"]) == ("a.md#tree", f"tree {TEXTS[0]}")


def test_passages_of_documents(bge, notes, tiny_bert):
    code, out, err = bge("notes", "--model", tiny_bert, "--chunk", "-q", f"tree {TEXTS[3]}", "--json")
    assert code == 0
    assert (best(out)["id"], best(out)["passage"], best(out)["text"]) == ("sub/d.md", 0, f"tree {TEXTS[3]}")
    assert "4 passages" in err
    # Plain text, too, is now cut as a file.
    assert {hit["id"] for hit in answers(out)[0]["results"]} == {"a.md", "b.txt", "sub/c.html", "sub/d.md"}


def test_an_index_of_a_folder_sees_what_changes(bge, notes, tiny_bert):
    def built(*more):
        code, _, err = bge("notes", "--model", tiny_bert, "--index", "notes/idx", "-q", "x", *more)
        assert code == 0
        return "encoded" in err

    assert built()
    assert not built()
    (notes / "new.md").write_text("a new file")
    assert built()
    assert not built()
    (notes / "new.md").rename(notes / "renamed.md")
    assert built()
    (notes / "sub" / "d.md").unlink()
    assert built()
    assert built("--records", "section")
    assert not built("--records", "section")
    assert built("--records", "section", "--exclude", "sub/")
    assert best(bge("notes/idx", "-q", "a new file", "--json")[1])["id"] == "renamed.md"


def test_what_cannot_be_read_is_counted(bge, notes, tiny_bert, capsys):
    (notes / "bad.pdf").write_bytes(b"nothing")
    code, _, err = bge("notes", "--model", tiny_bert, "-q", "x", "--json")
    assert code == 0
    assert "warning: skipped notes/bad.pdf cannot be read as PDF" in err
    assert "1 file skipped" in err
    assert main(["encode", "notes", "-o", "v", "--model", str(tiny_bert), "--no-progress"]) == 0
    assert "1 file skipped (listed in manifest.json)" in capsys.readouterr().out
    assert (
        json.loads((notes.parent / "v" / "manifest.json").read_text())["skipped"]["lines"][0]["file"] == "notes/bad.pdf"
    )
    code, _, err = bge("notes/bad.pdf", "--model", tiny_bert, "-q", "x")
    assert (code, len(err.splitlines())) == (1, 1)


def test_other_tables(bge, tmp_path, tiny_bert):
    path = tmp_path / "a.csv"
    path.write_text("id:text\n1:a cat\n2:a dog\n")
    code, out, _ = bge(path, "--model", tiny_bert, "-q", "a dog", "--delimiter", ":", "--json")
    assert (code, best(out)["id"]) == (0, "2")
    path.write_text("id\ttext\n1\ta cat\n2\ta dog\n")
    assert bge(path, "--model", tiny_bert, "-q", "a dog", "--delimiter", "tab", "--json")[0] == 0
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"id": "x", "text": "a cat"}, {"id": "y", "text": "a dog"}]))
    code, out, _ = bge(path, "--model", tiny_bert, "-q", "a dog", "--json")
    assert (code, best(out)["id"]) == (0, "y")


@pytest.fixture
def books(tmp_path):
    path = tmp_path / "books.jsonl"
    rows = [{"id": f"b{row}", "text": text, "year": 2018 + row, "lang": "en" if row % 2 else "fr", "tags": ["x"] * row}
            for row, text in enumerate(TEXTS)]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_condition(bge, books, tiny_bert, tmp_path):
    asked = ("-q", TEXTS[0], "--where", "year >= 2019 and lang = 'en'", "--json")
    index = tmp_path / "index"
    code, out, err = bge(books, "--model", tiny_bert, "--index", index, "--keep", "year", "lang", "tags", *asked)
    assert code == 0
    assert "metadata: year, lang, tags" in err and "2 of 4 texts meet the condition" in err
    (answer,) = answers(out)
    assert {hit["id"]: hit["metadata"] for hit in answer["results"]} == {
        "b1": {"year": 2019, "lang": "en", "tags": ["x"]}, "b3": {"year": 2021, "lang": "en", "tags": ["x"] * 3},
    }  # fmt: skip
    assert answers(bge("--index", index, *asked)[1]) == [answer]
    code, out, _ = bge("--index", index, "-q", TEXTS[0], "--where", "tags is not null and year < 2019")
    assert out.splitlines()[2] == "     year=2018 lang=fr"
    assert "nothing meets the condition" in bge("--index", index, "-q", "x", "--where", "year = 1")[1]


def test_conditions_without_their_columns(bge, books, tiny_bert, tmp_path, monkeypatch):
    index = tmp_path / "index"
    bge(books, "--model", tiny_bert, "--index", index, "-q", "x")
    # Nothing is loaded before.
    monkeypatch.setattr("bgekit.cli.options.load_model", lambda *_: pytest.fail("loaded"))
    files = (books, "--model", tiny_bert, "-q", "x", "--where")
    for arguments, message in (
        ((*files, "year > 2019 and lang = 'en'"), "not kept: add --keep year lang"),
        ((*files, "year > 2019 and lang = 'en'", "--keep", "year"), "not kept: add --keep lang"),
        ((*files, "year >"), "where: a value is expected"),
        (("--index", index, "-q", "x", "--where", "year > 2019"), "keeps no metadata for a condition: build it again "
         "with --keep year"),
        (("--index", index, "-q", "x", "--keep", "year"), "use --keep when they are encoded"),
        (("--keep", "year", books, "-q", "x"), "books.jsonl was taken for a column: name it before --keep"),
    ):  # fmt: skip
        code, _, err = bge(*arguments)
        assert code == 1 and message in err, err


def test_a_condition_that_is_wrong_is_pointed_at(bge, books, tiny_bert, tmp_path):
    index = tmp_path / "index"
    bge(books, "--model", tiny_bert, "--index", index, "--keep", "*", "-q", "x")
    _, _, err = bge("--index", index, "-q", "x", "--where", "yaer=2020 and  max_length=3")
    assert err.splitlines()[-3:] == [
        "bge: error: where: there is no column yaer (did you mean year?); there are year, lang, tags",
        "    yaer=2020 and  max_length=3",
        "    ^^^^",
    ]


def test_the_recipes_of_the_page(bge, tiny_bert, tmp_path, monkeypatch):
    """docs/search.md: its lines, put into a file, give the counts and results that it shows, whatever the model."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "search.md").read_text("utf-8")
    monkeypatch.chdir(tmp_path)
    Path("recipes.jsonl").write_text(
        "".join(line.strip() + "\n" for line in re.findall(r'^    \{"id": .*', page, re.M))
    )
    commands = [
        shlex.split(command.replace("\\\n", " "))[2:]
        for command in re.findall(r"^    \$ (bge search (?:.*\\\n)*.*)$", page, re.M)
    ]
    assert [command[:3:2] for command in commands[:2]] == [
        ["recipes.jsonl", "BAAI/bge-small-en-v1.5"],
        ["--index", "-q"],
    ]
    said = [bge(*(tiny_bert if word == "BAAI/bge-small-en-v1.5" else word for word in words)) for words in commands]
    assert [code for code, _, _ in said] == [0, 0, 1, 0]
    assert "2 of 6 texts meet the condition" in said[0][2] and "tags=soup,vegan added=2024-05-31" in said[0][1]
    shown = json.loads(" ".join(re.search(r'^    (\{"query": "a warm soup".*?\]\})$', page, re.M | re.S)[1].split()))
    (found,) = answers(said[1][1])
    assert [found["results"][0].pop("score"), shown["results"][0].pop("score")] and found == shown
    assert said[2][2].splitlines()[-3:][0] in page
    assert "--keep minutes tags added" in said[3][2] and "encoded" not in said[3][2]


def test_files_are_read_as_their_index_was_built(bge, tiny_bert, tmp_path):
    path, index = tmp_path / "a.csv", tmp_path / "index"
    path.write_text("body;n\n" + "the cat is small. " * 30 + ";5\n")
    first = ("--text-field", "body", "--keep", "n", "--chunk", "--chunk-size", 16, "--delimiter", ";")
    bge(path, "--model", tiny_bert, "--index", index, *first, "-q", "x")
    _, out, err = bge(path, "--model", tiny_bert, "--index", index, "-q", "x", "--where", "n = 5", "--json")
    said = f"files are read as for {index}: --delimiter ';' --text-field body --keep n --chunk --chunk-size 16"
    assert said in err and "encoded" not in err
    assert answers(out)[0]["results"][0]["metadata"] == {"n": 5}
    # The model is that of the index, too, until another is given; a changed file is encoded by it.
    path.write_text(path.read_text() + "a dog runs fast;7\n")
    code, out, err = bge(path, "--index", index, "-q", "x", "--where", "n = 7", "--json")
    assert code == 0 and f"as for {index}: --model {tiny_bert} --delimiter ';'" in err and "encoded" in err
    assert answers(out)[0]["results"][0]["metadata"] == {"n": 7}
    # What is given counts.
    _, out, err = bge(path, "--model", tiny_bert, "--index", index, "-q", "x", "--keep", "--no-chunk", "--json")
    assert "--text-field body\n" in err and "encoded 1 texts" in err  # The dog is a passage already.
    assert "metadata" not in answers(out)[0]["results"][0]


def test_a_snippet_shows_the_part_that_the_question_is_about():
    from bgekit.cli.search import snippet

    text = "The house is old. " * 20 + "Glaciers melt in summer. " + "The garden is green. " * 20
    assert snippet(text, "when do glaciers melt?", 100).startswith("… Glaciers melt in summer. The garden")
    assert snippet(text, "a question of something else", 100) == text
    assert snippet("Glaciers melt.", "glaciers", 100) == "Glaciers melt."
    endless = "word " * 200 + "glacier " + "word " * 200
    assert "glacier" in snippet(endless, "glacier", 100)[:100]


@pytest.fixture
def dated(bge, tmp_path, tiny_bert):
    """An index with metadata of several types, one column of which has the name of a column of results."""
    rows = [
        {"_id": f"d{row}", "text": text, "year": 2020 + row, "price": row / 2 or None, "tags": ["a", "b"][: row + 1],
         "rank": f"r{row}", "new": row > 1} for row, text in enumerate(TEXTS)
    ]  # fmt: skip
    (tmp_path / "dated.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    index = tmp_path / "dated.index"
    assert bge(tmp_path / "dated.jsonl", "--model", tiny_bert, "--keep", "*", "--index", index, "-q", "x")[0] == 0
    return index


def test_results_as_parquet_have_typed_metadata(bge, dated, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "results.parquet"
    code, shown, err = bge(dated, "-q", TEXTS[1], "one more", "-k", 3, "-o", out)
    assert code == 0 and shown == "" and f"wrote 6 results of 2 questions to {out}" in err
    table = parquet.read_table(out)
    types = {field.name: str(field.type) for field in table.schema}
    assert types == {
        "query": "string", "rank": "int32", "id": "string", "score": "float", "text": "string", "passage": "int32",
        "retrieval_score": "float", "year": "int64", "price": "double", "tags": types["tags"], "rank_1": "string",
        "new": "bool",
    }  # fmt: skip
    assert types["tags"].startswith("list<")
    code, shown, _ = bge(dated, "-q", TEXTS[1], "one more", "-k", 3, "--json")
    for answer, rows in zip(answers(shown), (table.slice(0, 3), table.slice(3)), strict=True):
        for hit, row in zip(answer["results"], rows.to_pylist(), strict=True):
            assert (row["query"], row["rank"], row["id"], row["text"]) == (
                answer["query"], hit["rank"], hit["id"], hit["text"],
            )  # fmt: skip
            assert row["score"] == pytest.approx(hit["score"]) and row["passage"] is row["retrieval_score"] is None
            known = {name.removesuffix("_1"): row[name] for name in ("year", "price", "tags", "rank_1", "new")}
            assert known == hit["metadata"]


def test_results_as_json_and_csv(bge, dated, tmp_path):
    import csv

    command = (dated, "-q", *TEXTS[:2], "-k", 2)
    printed = answers(bge(*command, "--json")[1])
    assert bge(*command, "-o", tmp_path / "r.jsonl")[0] == bge(*command, "-o", tmp_path / "r.json")[0] == 0
    assert answers((tmp_path / "r.jsonl").read_text()) == json.loads((tmp_path / "r.json").read_text()) == printed
    assert bge(*command, "-o", tmp_path / "r.csv")[0] == 0
    with (tmp_path / "r.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [hit["id"] for answer in printed for hit in answer["results"]]
    assert json.loads(rows[0]["tags"]) == printed[0]["results"][0]["metadata"]["tags"]
    assert bge(dated, "-q", "x", "--min-score", 2, "-o", tmp_path / "none.json")[0] == 0
    assert json.loads((tmp_path / "none.json").read_text()) == [{"query": "x", "results": []}]
    assert bge(dated, "-o", tmp_path / "nothing.json", stdin="")[0] == 0
    assert json.loads((tmp_path / "nothing.json").read_text()) == []


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("-o", "results.txt"), ".parquet, .jsonl, .json, .csv"), (("-o", "r.json", "--json"), "one of the two"),
        (("-o", "there.json"), "there.json exists; pass --overwrite"), (("--overwrite",), "goes with --output"),
        (("-o", "nowhere.txt/r.json"), "cannot write the results to"),
    ],
)  # fmt: skip
def test_a_file_of_results_is_checked_before_work(bge, corpus, tmp_path, monkeypatch, more, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.json").write_text("[]")
    (tmp_path / "nowhere.txt").write_text("")
    code, _, err = bge(corpus, "--model", "/nowhere/model", "-q", "x", *more)
    assert code == 1 and says in err and "/nowhere/model" not in err
    assert (tmp_path / "there.json").read_text() == "[]"


def test_the_modes_that_can_be_named_are_those_that_there_are():
    assert get_args(Mode) == options.MODES
    assert options.MODES[-1] == "hybrid"
