from __future__ import annotations

import pytest

from bgekit.display.text import aligned, clipped, columns, middle_clipped, padded, printable, wrapped


def test_chinese_characters_take_two_columns():
    assert columns("ab文本") == 6
    assert padded("文本", 6) == "文本  "


def test_marks_that_combine_take_none():
    assert columns("e\u0301a") == 2


@pytest.mark.parametrize("text", ["", "short", "文本向量检索样例数据", "a longer text of several words", "x" * 40])
@pytest.mark.parametrize("width", [8, 11, 20])
def test_a_clipped_text_fits(text, width):
    for cut in (clipped, middle_clipped):
        assert columns(cut(text, width)) <= width
        assert ("…" in cut(text, width)) == (columns(text) > width)


def test_a_name_keeps_its_end():
    assert middle_clipped("/data/models/bge-small-en-v1.5 [256]", 20).endswith("1.5 [256]")


def test_wrapping_keeps_all_words_and_fits():
    text = "Ein Satz mit Wörtern und 没有空格的中文文本也要换行 " + "y" * 50
    lines = wrapped(text, 20, indent="  ")
    assert all(columns(line) <= 20 and line.startswith("  ") for line in lines)
    assert "".join("".join(lines).split()) == "".join(text.split())


def test_wrapping_into_few_lines_ends_in_an_ellipsis():
    assert wrapped("one two three four", 9, lines=2) == ["one two", "three…"]


def test_control_characters_and_turned_directions_go():
    assert printable("a\x1b[31mb\u202ec\x00\td\n\ud800e") == "a [31mb c d e"


def test_a_long_cell_pushes_its_own_line_only():
    rows = [("a", "x" * 12, "b"), ("文", "y", "c")]
    assert list(aligned(rows, widest=5)) == ["a   " + "x" * 12 + "  b", "文  y      c"]
    assert list(aligned(rows)) == ["a   " + "x" * 12 + "  b", "文  y" + " " * 13 + "c"]
