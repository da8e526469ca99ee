from __future__ import annotations

import sys

import pytest

from bgekit.display import EncodeProgress, terminal
from bgekit.display.terminal import (
    Progress,
    RowProgress,
    aligned,
    clipped,
    columns,
    middle_clipped,
    padded,
    printable,
    wrapped,
    write_line,
)


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


def test_a_bar_counts_things_and_tokens(capsys):
    with Progress("encode", "texts", 60, show=True) as bar:
        for _ in range(6):
            bar.advance(10, tokens=100)
    shown = capsys.readouterr().err
    assert "60/60" in shown and "texts/s" in shown and "tokens/s" in shown


def test_the_switch(capsys, monkeypatch):
    def shown(**options):
        with Progress("encode", "texts", **options) as bar:
            bar.advance(1)
            bar.note("x")
        return bool(capsys.readouterr().err)

    assert not shown(total=10_000, show=False) and shown(total=5, show=True)
    assert not shown(total=10_000, show=None)  # Not a terminal.
    monkeypatch.setattr(terminal, "on_terminal", lambda: True)
    assert shown(total=10_000, show=None) and shown(total=None, show=None) and not shown(total=60, show=None)


def test_a_bar_over_rows_appears_with_the_first_call(capsys):
    with RowProgress("mine", "rows") as bar:
        assert capsys.readouterr().err == ""
        bar(3, 8)
        bar(8, 8)
    assert "8/8" in capsys.readouterr().err
    with RowProgress("mine", "rows", show=False) as bar:
        bar(3, 8)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("total", [1000, None])
def test_an_encode_says_what_was_kept_and_what_is_new(total, capsys):
    with EncodeProgress(total) as bar:
        bar.kept(5, 100)
        bar.encoded(50, 500, 600)
        bar.encoded(50, 500, 1000)
    shown = capsys.readouterr().err
    assert "5 kept + 100 texts" in shown and ("100%" in shown) == (total is not None)
    with EncodeProgress(total, show=False) as bar:
        bar.kept(5, 100)
        bar.encoded(50, 500, 1000)
    assert capsys.readouterr().err == ""


def test_a_line_is_written_above_a_bar(capsys, monkeypatch):
    with Progress("encode", "texts", 2, show=True) as bar:
        write_line("a line")
        bar.advance(2)
    assert "a line\n" in capsys.readouterr().err
    monkeypatch.delitem(sys.modules, "tqdm")
    write_line("alone")
    assert capsys.readouterr().err == "alone\n"
