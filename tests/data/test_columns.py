"""Lines with fields of the type that is needed, and what becomes of lines that cannot be used."""

from __future__ import annotations

import pytest

from bgekit.data.columns import BadLines, Line, read_file
from bgekit.data.formats import BadRow
from bgekit.errors import DataError

LINE = Line("a.jsonl", 7, {"text": "x", "n": 2, "blank": " ", "half": "a\ud800"})


def test_fields_have_a_type_and_errors_a_place():
    assert (LINE.value("body", "text"), LINE.text("text"), LINE.number_of("n")) == ("x", "x", 2.0)
    assert LINE.content("half", LINE.value("half")) == "a\ufffd"
    with pytest.raises(BadRow, match=r"^a\.jsonl, line 7: no field body; it has text, n, blank, half$"):
        LINE.value("body", "content")
    with pytest.raises(BadRow, match=r"line 7: the field n must be a string, not 2 \(int\)"):
        LINE.text("n")
    with pytest.raises(BadRow) as error:
        LINE.contents("pos", ["x", LINE.value("blank")])
    assert error.value.reason == "pos[1] is blank"


def numbers(path, bad):
    return [number for _, number in bad.usable(read_file(path, bad=bad), lambda line: line.number_of("n"))]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"n": 1}\n{broken\n{"n": "x"}\n{"n": 2}\n')
    return path


def test_bad_lines_are_an_error_left_out_or_listed(path, caplog):
    with pytest.raises(DataError, match=r"line 2: not valid JSON.*\(--on-error skip"):
        numbers(path, BadLines("raise"))
    skipped, listed = BadLines("skip"), BadLines()
    assert numbers(path, skipped) == numbers(path, listed) == [1.0, 2.0]
    assert [line.line for line in skipped.lines] == [line.line for line in listed.lines] == [2, 3]
    assert vars(skipped.lines[1])["reason"].startswith("the field n must be a number")
    assert caplog.text.count("skipped ") == 2
    with pytest.raises(DataError, match=r"(?s)^2 lines cannot be used:\n  .*line 2: not valid.*line 3: .*\. Stop\.$"):
        listed.check("line", "cannot be used", ". Stop.")


def test_nothing_is_advised_where_every_line_is_bad(tmp_path):
    path = tmp_path / "a.jsonl"
    for content in ("{broken\n", "{broken\n[1]\n"):
        path.write_text(content)
        with pytest.raises(DataError, match="line 1: not valid JSON") as error:
            numbers(path, BadLines("raise"))
        assert "--on-error" not in str(error.value)


def test_a_file_as_a_whole_is_named_once():
    bad = BadLines()
    bad.add("a.jsonl", 0, "a.jsonl is damaged")
    bad.add("b.jsonl", 0, "it is damaged")
    assert list(map(str, bad.lines)) == ["a.jsonl is damaged", "b.jsonl: it is damaged"]
