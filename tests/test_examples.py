"""The programs in examples/ run as they are, on the packaged model, or a tiny one where that is not installed."""

import contextlib
import io
import json
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def run(name, *arguments):
    """What a program prints, run as by `python examples/NAME`, but in this process."""
    printed, path = io.StringIO(), str(EXAMPLES / name)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sys, "argv", [path, *map(str, arguments)])
        runpy.run_path(path, run_name="__main__")
    return printed.getvalue()


def test_search_texts_finds_the_right_passage(minilm):
    answers = run("search_texts.py", minilm).splitlines()
    assert "csv.reader" in answers[1]
    assert "Bread" in answers[4]


def test_similarity_matrix_pairs_paraphrases(minilm):
    lines = run("similarity_matrix.py", minilm).splitlines()
    assert [line.split("(")[0] for line in lines[6:10]] == [
        "nearest to 0: 1 ", "nearest to 1: 0 ", "nearest to 2: 3 ", "nearest to 3: 2 ",
    ]  # fmt: skip


def test_langchain_retriever_finds_the_right_document(minilm):
    pytest.importorskip("langchain_core")
    answers = run("langchain_retriever.py", minilm).splitlines()
    assert ["animals.txt" in answers[2], "computers.txt" in answers[4]] == [True, True]


def test_encode_big_file_goes_on_where_it_stopped(tiny_bert, texts, tmp_path):
    corpus, output = tmp_path / "corpus.jsonl", tmp_path / "vectors"
    corpus.write_text("".join(json.dumps({"id": str(n), "text": t}) + "\n" for n, t in enumerate(texts(1500))))
    first = run("encode_big_file.py", corpus, output, tiny_bert)
    assert "1,500 texts in 2 shards, 0 kept" in first
    assert "\n1. " in first
    assert "1,500 kept" in run("encode_big_file.py", corpus, output, tiny_bert)


def test_every_example_is_run():
    tested = Path(__file__).read_text("utf-8")
    others = [path.name for path in EXAMPLES.glob("*.py") if f'"{path.name}"' not in tested]
    assert [name for name in others if "demo" not in name] == []
