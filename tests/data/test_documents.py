"""Folders, globs and documents as input: which files are read, what their records are called."""

from __future__ import annotations

import gzip
import importlib.util
import io
import json
import os
import sys

import pytest

from bgekit.data.records import read_records
from bgekit.errors import ArgumentError, DataError, MissingExtraError
from office_files import docx, pdf


@pytest.fixture
def notes(tmp_path, monkeypatch):
    """A folder of files, which is made of a dictionary; the working folder is the one above it."""
    monkeypatch.chdir(tmp_path)

    def write(files, folder="notes"):
        for name, content in files.items():
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return folder

    return write


def ids(*arguments, **options):
    return [record.id for record in read_records(*arguments, **options)]


# --- which files


def test_a_folder_is_all_its_files_in_the_order_of_their_names(notes):
    folder = notes(
        {"b.md": "b", "a/z.html": "<p>z", "a.md": "a", "c.txt": "one\ntwo\n", "p.png": b"\x89PNG", "s.py": "x"}
    )
    reader = read_records(folder)
    assert reader.files == [os.path.join("notes", name) for name in ("a.md", "a/z.html", "b.md", "c.txt")]
    assert [record.id for record in reader] == ["a.md", "a/z.html", "b.md", "c.txt#0", "c.txt#1"]
    assert reader.position == reader.size == 3 + 3 + 8


def test_records_in_a_folder_keep_their_ids(notes):
    folder = notes(
        {"a.jsonl": '{"id": "own", "text": "x"}\n{"text": "y"}\n', "b.csv": "text\nz\n", "c.md.gz": gzip.compress(b"w")}
    )
    assert ids(folder) == ["own", "1", "2", "c.md.gz"]


def test_what_is_hidden_or_ignored_is_passed_over(notes):
    folder = notes(
        {
            ".gitignore": "*.txt\n/drafts/\n!keep.txt\n# comment\n", ".hidden.md": "x", ".cache/a.md": "x",
            "a.md": "a", "b.txt": "x", "keep.txt": "kept", "drafts/a.md": "x", "sub/drafts/a.md": "s",
            "sub/.gitignore": "!b.txt\nown.md\n", "sub/b.txt": "back again", "sub/own.md": "x", "other/own.md": "o",
        }
    )  # fmt: skip
    assert ids(folder, records="file") == ["a.md", "keep.txt", "other/own.md", "sub/b.txt", "sub/drafts/a.md"]


def test_a_repository_s_rules_hold_in_its_folders(notes):
    notes(
        {
            ".gitignore": "build/\n*.bak.md\n",
            ".git/HEAD": "x",
            "docs/a.md": "a",
            "docs/b.bak.md": "x",
            "docs/build/c.md": "x",
        }
    )
    notes({"build/docs/a.md": "a", "build/docs/b.bak.md": "b"})
    assert ids("notes/docs") == ["a.md"]
    assert ids("notes/build/docs") == ["a.md", "b.bak.md"]  # It was asked for, though it is ignored.


def test_indexes_and_shards_are_passed_over(notes):
    index, shards = json.dumps({"format": "bgekit index"}), json.dumps({"format": "bgekit shards"})
    folder = notes(
        {
            "a.md": "a", "idx/index.json": index, "idx/rows.jsonl": '{"id": "1", "text": "x"}\n',
            "idx/building-1/manifest.json": shards, "v/manifest.json": shards,
            "v/shard-00000.ids.jsonl": '{"text": "x"}\n',
            "site/index.json": json.dumps({"format": "of others"}), "site/a.md": "s",
        }
    )  # fmt: skip
    assert ids(folder, exclude=["*.json"]) == ["a.md", "site/a.md"]
    with pytest.raises(DataError, match=r"notes/idx holds an index, not documents"):
        read_records("notes/idx")


def test_include_and_exclude(notes):
    folder = notes({"a.md": "a", "b.rst": "Title\n=====\n\ntext", "sub/c.rst": "c", "sub/d.md": "d", "old/e.rst": "e"})
    assert ids(folder, include=["*.rst"]) == ["b.rst", "old/e.rst", "sub/c.rst"]
    assert ids(folder, include=["/*.rst", "sub/"], exclude=["*.md"]) == ["b.rst", "sub/c.rst"]
    assert ids(folder, exclude=["sub/", "old"]) == ["a.md"]
    with pytest.raises(DataError, match=r"notes has no files to read .*it has 5 files of other kinds \(\.rst, \.md\)"):
        read_records(folder, include=["*.org"])
    with pytest.raises(ArgumentError, match="no folder is given"):
        read_records("notes/a.md", exclude=["b"])
    with pytest.raises(ArgumentError, match=r"include takes patterns as in a \.gitignore"):
        read_records(folder, include=["!"])


def test_a_folder_without_documents(notes):
    folder = notes({"a.py": "x", "b.py": "x", ".c.md": "x"})
    with pytest.raises(DataError, match=r"no files to read \(md, .*it has 2 files of other kinds \(\.py\): --include"):
        read_records(folder)


# --- names


def test_several_arguments_begin_their_ids(notes):
    notes({"a.md": "a", "sub/b.md": "b"})
    notes({"a.md": "c"}, "more")
    assert ids(["notes/", "more"]) == ["notes/a.md", "notes/sub/b.md", "more/a.md"]
    assert ids(["notes/a.md", "more"]) == ["notes/a.md", "more/a.md"]
    assert ids("notes/a.md") == ["notes/a.md"]
    assert ids("./notes/sub/b.md") == ["./notes/sub/b.md"]


def test_a_glob_is_what_a_shell_would_give(notes):
    notes({"b.md": "b", "a.md": "a", ".c.md": "x", "sub/d.md": "d", "e.txt": "e"})
    assert ids("notes/*.md") == ["notes/a.md", "notes/b.md"]
    assert ids("notes/**/*.md") == ["notes/a.md", "notes/b.md", "notes/sub/d.md"]
    assert ids("notes/**") == ["notes/a.md", "notes/b.md", "notes/e.txt#0", "notes/sub/d.md"]
    with pytest.raises(DataError, match=r"no file matches notes/\*\.pdf"):
        read_records("notes/*.pdf")


def test_a_file_that_is_called_like_a_glob(notes):
    notes({"[a].md": "a"})
    assert ids("notes/[a].md") == ["notes/[a].md"]


# --- units


MARKDOWN = "---\ntitle: Guide\nyear: 2024\n---\nAbout.\n\n# Install\n\nFirst.\n\nSecond.\n\n# Install\n\nThird.\n"


def test_units_of_a_document(notes):
    folder = notes({"guide/install.md": MARKDOWN})
    (record,) = read_records(folder)
    assert (record.id, record.line, record.file) == ("guide/install.md", 1, "notes/guide/install.md")
    assert record.text == f"Guide {MARKDOWN.partition('---')[2].partition('---')[2].strip()}"
    assert [(record.id, record.text, record.line) for record in read_records(folder, records="section")] == [
        ("guide/install.md", "Guide About.", 5),
        ("guide/install.md#install", "Guide > Install First.\n\nSecond.", 7),
        ("guide/install.md#install-1", "Guide > Install Third.", 13),
    ]
    assert [(record.id, record.text) for record in read_records(folder, records="paragraph")] == [
        ("guide/install.md#0", "Guide About."), ("guide/install.md#1", "Guide > Install First."),
        ("guide/install.md#2", "Guide > Install Second."), ("guide/install.md#3", "Guide > Install Third."),
    ]  # fmt: skip
    lines = list(read_records(folder, records="line"))
    assert (lines[8].id, lines[8].text) == ("guide/install.md#8", "First.")
    assert [record.text for record in read_records(folder, records="section", title_field="")][1] == (
        "# Install\n\nFirst.\n\nSecond."
    )


def test_units_of_plain_text(notes):
    notes({"a.txt": "one\nstill one\n\ntwo\n"})
    assert ids("notes/a.txt") == ["0", "1", "2", "3"]  # As ever.
    assert ids("notes") == ["a.txt#0", "a.txt#1", "a.txt#2", "a.txt#3"]
    assert [(record.id, record.text) for record in read_records("notes/a.txt", records="file")] == [
        ("notes/a.txt", "one\nstill one\n\ntwo")
    ]
    assert ids("notes/a.txt", records="paragraph") == ["notes/a.txt#0", "notes/a.txt#1"]
    assert ids("notes/a.txt", records="section") == ["notes/a.txt"]


def test_rows_are_records_whatever_the_unit(notes):
    notes({"a.jsonl": '{"text": "x\\n\\ny"}\n', "b.data": '{"text": "x"}\n', "c.data": "plain\ntext\n"})
    assert ids("notes/a.jsonl", records="paragraph") == ["0"]
    assert ids(["notes/b.data", "notes/c.data"], records="file") == ["0", "notes/c.data"]


def test_a_document_by_its_stated_format(notes):
    notes({"README": "# A\n\ntext\n"})
    assert ids("notes/README", format="md", records="section") == ["notes/README#a"]
    assert ids("notes/README") == ["0", "1", "2"]


def test_a_document_from_standard_input(monkeypatch):
    def feed():
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(b"# A\n\ntext\n\nmore\n"))))

    feed()
    assert ids("-", format="md") == ["-"]
    feed()
    assert ids("-", format="md", records="section") == ["-#a"]
    feed()
    assert ids("-", records="paragraph") == ["-#0", "-#1", "-#2"]
    feed()
    assert ids("-") == ["0", "1", "2", "3", "4"]


def test_pdf_and_docx(notes):
    folder = notes({"a.pdf": pdf("A page."), "b.docx": docx(("heading 1", "Head"), ("Normal", "Text."))})
    assert [(record.id, record.text) for record in read_records(folder)] == [
        ("a.pdf", "A page."), ("b.docx", "# Head\n\nText."),
    ]  # fmt: skip


def test_empty_documents_are_no_records(notes):
    assert ids(notes({"a.md": "", "b.md": " \n", "c.html": "<script>x</script>", "d.md": "d"})) == ["d.md"]


# --- what cannot be read


def test_what_cannot_be_read_in_a_folder_is_named_and_counted(notes, caplog):
    files = {
        "a.md": "a", "bad.pdf": b"nothing", "latin.md": "été".encode("latin-1"), "package.json": '{\n "name": "x"\n}\n',
        "lines.jsonl": '{"text": "x"}\n', "none.csv": "a,b\n1,2\n", "cut.md.gz": gzip.compress(b"x" * 99)[:-9],
    }  # fmt: skip
    reader = read_records(notes(files))
    assert [record.id for record in reader] == ["a.md", "1"]
    assert str(reader.skipped) == "5 files"
    for name in ("bad.pdf", "latin.md", "package.json", "none.csv", "cut.md.gz"):
        assert f"skipped notes/{name}" in caplog.text
    assert "no field text, content or contents; it has name" in caplog.text
    for name in ("bad.pdf", "latin.md", "package.json", "none.csv", "cut.md.gz"):
        with pytest.raises(DataError, match=name):
            list(read_records(f"notes/{name}"))


def test_a_bad_line_in_a_folder_is_an_error_as_ever(notes):
    folder = notes({"a.jsonl": '{"text": "x"}\nbad\n{"text": "y"}\n', "b.md": "b"})
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: not valid JSON.*--on-error skip"):
        ids(folder)
    reader = read_records(folder, on_error="skip")
    assert len(list(reader)) == 3
    assert str(reader.skipped) == "1 line"


@pytest.mark.skipif(os.getuid() == 0, reason="root reads everything")
def test_files_without_permission(notes):
    folder = notes({"a.md": "a", "b.md": "b"})
    os.chmod("notes/b.md", 0)
    reader = read_records(folder)
    assert (reader.files, str(reader.skipped)) == (["notes/a.md"], "1 file")


def test_links_that_lead_nowhere(notes, caplog):
    folder = notes({"a.md": "a"})
    os.symlink("nowhere.md", "notes/b.md")
    os.symlink("../notes", "notes/around")
    reader = read_records(folder)
    assert [record.id for record in reader] == ["a.md"]
    assert "skipped cannot read notes/b.md: No such file" in caplog.text


def test_without_the_extra(notes, monkeypatch, caplog):
    folder = notes({"a.md": "a", "b.pdf": pdf("x"), "c.pdf": pdf("x"), "d.docx": docx(("Normal", "x"))})
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("pypdf", "mammoth") else found(name))
    reader = read_records(folder)
    assert reader.files == ["notes/a.md"]
    assert str(reader.skipped) == "3 files"
    assert "2 .pdf files are left out (notes/b.pdf, notes/c.pdf): pip install 'bgekit[documents]'" in caplog.text
    assert "1 .docx file is left out" in caplog.text
    assert len(caplog.records) == 2
    with pytest.raises(MissingExtraError, match=r"bgekit\[documents\]"):
        read_records("notes/b.pdf")


# --- settings


def test_settings_say_what_differs_from_before(notes):
    before = {"text_field", "title_field", "id_field", "format"}
    notes({"a.txt": "x", "b.md": "b", "c.jsonl": '{"text": "x"}\n', "d.data": "x"})

    def more(*arguments, **options):
        settings = read_records(*arguments, **options).settings
        return {name: value for name, value in settings.items() if name not in before}

    for path in ("notes/a.txt", "notes/c.jsonl", "notes/d.data"):
        assert more(path) == more(path, records="line") == {}
    assert more("notes/c.jsonl", records="file") == {}
    assert more("notes/a.txt", records="file") == {"documents": 1, "records": "file"}
    assert more("notes/b.md") == {"documents": 1}
    assert more("notes/b.md", records="line") == {"records": "line"}
    assert more("notes", exclude=["a.txt"]) == {"documents": 1, "exclude": ["a.txt"]}
    assert more("notes/c.jsonl", delimiter=";") == {"delimiter": ";"}


def test_bad_options(notes):
    folder = notes({"a.md": "a"})
    with pytest.raises(ArgumentError, match="records must be one of line, paragraph, section, file"):
        read_records(folder, records="page")
    with pytest.raises(ArgumentError, match="the delimiter must be one character"):
        read_records(folder, delimiter=";;")
