from __future__ import annotations

import sys

import pytest

from bgekit.display import EncodeProgress, progress
from bgekit.display.progress import Progress, RowProgress, write_line


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
    monkeypatch.setattr(progress, "on_terminal", lambda: True)
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
