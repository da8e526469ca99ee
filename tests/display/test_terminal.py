from __future__ import annotations

import sys
import time

import pytest

from bgekit.display import EncodeProgress, terminal
from bgekit.display.terminal import (
    Progress,
    RowProgress,
    aligned,
    clipped,
    columns,
    loading,
    middle_clipped,
    padded,
    printable,
    shown_command,
    titled,
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


@pytest.fixture
def on_terminal(monkeypatch):
    monkeypatch.setattr(terminal, "on_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")


def test_a_bar_counts_things_and_tokens(capsys, on_terminal):
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

    assert not shown(total=10_000, show=False)
    assert not shown(total=10_000, show=None)  # Not a terminal.
    monkeypatch.setattr(terminal, "on_terminal", lambda: True)
    assert shown(total=5, show=True)
    assert shown(total=10_000, show=None) and shown(total=None, show=None) and not shown(total=60, show=None)


def test_a_bar_over_rows_appears_with_the_first_call(capsys, on_terminal, monkeypatch):
    monkeypatch.setattr(terminal, "_REDRAW", 0)
    with RowProgress("mine", "rows") as bar:
        assert capsys.readouterr().err == ""
        bar(3, 8)
        bar(8, 8)
    assert "8/8" in capsys.readouterr().err
    with RowProgress("mine", "rows", show=False) as bar:
        bar(3, 8)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("total", [1000, None])
def test_an_encode_says_what_was_kept_and_what_is_new(total, capsys, on_terminal):
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


def test_a_bar_moves_within_a_shard_and_ends_where_the_input_ends(on_terminal):
    with EncodeProgress(1000) as bar:
        bar.kept(5, 100)
        bar.computed(10.5, 100, 105)
        assert (bar._done, bar._things(), bar._tokens) == (205, 10.5, 100)
        bar.computed(39.5, 400, 395)
        bar.computed(5, 60, 50)  # Of the next shard.
        assert (bar._done, bar._things()) == (650, 55)
        bar.encoded(50, 500, 610)
        assert (bar._things(), bar._tokens) == (55, 560)
        bar.computed(45, 440, 900)
        bar.encoded(50, 500, 1000)
        assert (bar._done, bar._things(), bar._tokens) == (1000, 100, 1000)


def test_off_a_terminal_a_plain_line_now_and_then_says_it(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(terminal.time, "perf_counter", lambda: clock[0])
    with titled("SciFact: documents, model 2 of 2"), Progress("encode", "texts", 5183, show=True) as bar:
        for _ in range(10):
            clock[0] += 8
            bar.advance(100, 20_000)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "SciFact: documents, model 2 of 2: 8%, 6:23 left, 400/5,183 texts, 12 texts/s, 2,500 tokens/s",
        "SciFact: documents, model 2 of 2: 15%, 5:51 left, 800/5,183 texts, 12 texts/s, 2,500 tokens/s",
    ]


def test_slow_things_are_told_in_seconds_each():
    assert [terminal._rate(value, "steps") for value in (250.4, 3.14, 0.04, 0.0)] == [
        "250 steps/s", "3.1 steps/s", "25 s/step", "0.0 steps/s"
    ]  # fmt: skip


def test_a_bar_says_what_the_terminal_has_room_for(capsys, on_terminal, monkeypatch):
    for width in (40, 60, 80, 100, 140):
        monkeypatch.setenv("COLUMNS", str(width))
        with titled("SciFact: documents, model 2 of 2"), Progress("encode", "texts", 5183, show=True) as bar:
            bar._wait = 0
            bar.advance(4000, 20_000)
        shown = capsys.readouterr().err
        assert ("left" in shown) == (width > 60) and ("tokens/s" in shown) == (width > 100)
        assert all(columns(part) <= max(width, 58) for part in shown.split("\r"))
        assert shown.endswith("\r")  # One of many goes when it is done.


def test_soon_done_work_shows_no_bar_of_many(capsys, on_terminal):
    with titled("mini: queries"), Progress("encode", "texts", 60, show=True) as bar:
        bar.advance(60, 100)
    assert capsys.readouterr().err == ""


def test_loading_is_said_where_it_takes_long(capsys, monkeypatch):
    monkeypatch.setattr(terminal, "_SOON", 0.05)
    with loading("some/model"):
        time.sleep(0.1)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(terminal, "on_terminal", lambda: True)
    with loading("some/model"):
        time.sleep(0.2)
    assert capsys.readouterr().err == "loading some/model ...\r\x1b[K"
    with loading("some/model"):
        pass
    assert capsys.readouterr().err == ""


def test_a_line_is_written_above_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(terminal, "on_terminal", lambda: True)
    with Progress("encode", "texts", 2, show=True) as bar:
        write_line("a line")
        bar.advance(2)
    assert "a line\n" in capsys.readouterr().err
    monkeypatch.delitem(sys.modules, "tqdm")
    write_line("alone")
    assert capsys.readouterr().err == "alone\n"


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["/opt/venv/bin/bge", "eval", "--data", "a b"], "bge eval --data 'a b'"),
        (["/site-packages/bgekit/__main__.py", "eval"], "bge eval"),
        (["scripts/compare.py", "--all"], "scripts/compare.py --all"),
        (["/src/other/__main__.py"], "/src/other/__main__.py"),
    ],
)
def test_commands_are_shown_as_people_type_them(arguments, shown):
    assert shown_command(arguments) == shown
