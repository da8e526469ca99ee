"""`bge models` and `bge info`."""

import json
import shutil

import pytest

from bgekit.cli.main import main
from bgekit.models.families import FAMILIES


def test_models_shows_every_family_and_name(capsys):
    assert main(["models"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for family in FAMILIES:
        assert family.title in out
        for name in family.names:
            assert name in out


def test_models_filter(capsys):
    assert main(["models", "--filter", "BGE-small-zh-v1.5"]) == 0
    out = capsys.readouterr().out
    assert "bge-small-zh-v1.5 (512)" in out
    assert "cls, unit length" in out
    assert "为这个句子生成表示以用于检索相关文章：" in out
    assert "e5" not in out
    assert main(["models", "--filter", "no such thing"]) == 1


def test_models_json(capsys):
    assert main(["models", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["title"] for row in rows] == [family.title for family in FAMILIES]
    row = next(row for row in rows if {"name": "bge-base-en-v1.5", "dimension": 768} in row["models"])
    assert row["pooling"] == "cls"
    assert row["query_prompt"] == ["Represent this sentence for searching relevant passages: ", ""]


def test_info_of_a_folder(tiny_bert, capsys):
    assert main(["info", str(tiny_bert)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(str(tiny_bert))
    rows = {line[2:17].strip(): line[17:].split() for line in out.splitlines()[2:]}
    assert rows["pooling"] == ["cls", "checkpoint"]
    assert rows["max length"] == ["64", "checkpoint"]
    assert rows["query prompt"] == ["none", "default"]


def test_info_says_what_the_family_table_adds(tiny_bert, tmp_path, capsys):
    folder = tmp_path / "bge-small-en-v1.5"
    shutil.copytree(tiny_bert, folder)
    assert main(["info", str(folder), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["folder"] == str(folder)
    assert report["card"]["query prompt"] == ["Represent this sentence for searching relevant passages: ", ""]
    assert report["sources"]["query prompt"] == "family table (BGE v1.5, English)"
    assert report["sources"]["pooling"] == "checkpoint"


def test_info_of_a_model_that_is_not_here_but_known(capsys):
    assert main(["info", "BAAI/bge-large-zh-v1.5"]) == 0
    out = capsys.readouterr().out
    assert "The table of known families says this of it" in out
    assert "1024" in out


@pytest.mark.parametrize(
    ("name", "expected"), [("BAAI/bge-reranker-base", "FlagReranker"), ("text-embedding-3-small", "1536")]
)
def test_info_of_other_kinds(name, expected, capsys):
    assert main(["info", name]) == 0
    assert expected in capsys.readouterr().out


def test_info_of_nothing(tmp_path, capsys):
    assert main(["info", str(tmp_path / "nope")]) == 1
    assert "there is no folder" in capsys.readouterr().err


@pytest.mark.slow
def test_info_of_the_packaged_model(minilm, capsys):
    assert main(["info", minilm]) == 0
    assert "mean" in capsys.readouterr().out
