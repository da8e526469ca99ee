"""The instruction that clients put before queries, in any of their spellings, and nothing else."""

import pytest

pytest.importorskip("msgspec")

from bgekit.models import find_family
from bgekit.serving.instructions import without_instruction

EN = "Represent this sentence for searching relevant passages: "
ZH = "为这个句子生成表示以用于检索相关文章："


@pytest.mark.parametrize(
    ("own", "written"),
    [
        (EN, f"{EN}cat"), (EN, f"{EN.strip()}cat"), (EN, f"{EN} cat"), (EN, f"\n{EN}\n cat"),
        (EN, "Represent this question for searching relevant passages: cat"),
        (EN, "Represent  this question for searching\nrelevant passages:  cat"),
        (ZH, f"{ZH}cat"), (ZH, f"{ZH} cat"), (ZH, "为这个句子生成表示以用于检索相关文章: cat"),
        ("query: ", "query: cat"), ("query: ", "query:  cat"), ("search_query: ", "search_query:cat"),
    ],
)  # fmt: skip
def test_known_spellings_are_taken_away(own, written):
    assert without_instruction([written, "cat"], own) == ["cat", "cat"]


@pytest.mark.parametrize(
    ("own", "text"),
    [
        (EN, "a text: " + EN), (EN, "represent this sentence for searching relevant passages: cat"), (EN, f"{ZH}cat"),
        (ZH, f"{EN}cat"), ("", f"{EN}cat"), ("[", "[cat"), ("query: ", "a query: cat"), (EN, ""),
        ("query: ", "queries"),
    ],
)  # fmt: skip
def test_other_texts_are_left_alone(own, text):
    assert without_instruction([text], own) == [text]


def test_an_instruction_of_several_lines():
    own = find_family("Qwen/Qwen3-Embedding-0.6B").query.prefix
    assert without_instruction([f"{own}cat", f"{own} cat", "Instruct: sing\nQuery:cat"], own) == [
        "cat", "cat", "Instruct: sing\nQuery:cat",
    ]  # fmt: skip


def test_nothing_but_the_instruction_is_an_empty_query():
    assert without_instruction([EN, EN.strip()], EN) == ["", ""]
