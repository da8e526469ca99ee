"""Tables with and without quotes around their fields: which kind a file is, and no line lost or joined in silence."""

from __future__ import annotations

import csv
import io
import logging

import pytest

from bgekit.data.columns import BadLines, read_file
from bgekit.data.encodings import AHEAD
from bgekit.data.formats import Dialect
from bgekit.data.records import read_records
from bgekit.errors import ArgumentError, DataError

HEADER = "id\ttext\n"


@pytest.fixture
def read(tmp_path):
    """The rows of a file of this content, as lists of cells; reasons of bad lines as strings."""

    def read(content, name="a.tsv", **options):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        rows = []

        class Bad(BadLines):
            def add(self, file, line, reason):
                rows.append(f"{line}: {reason}")

        for line in read_file(path, Dialect(**options), bad=Bad()):
            rows.append(list(line.fields.values()))
        return rows

    return read


@pytest.mark.parametrize(
    "lines",
    {
        "opened and never closed": ['"Come in, she said.', "Who is there?", "Nobody."],
        "opened by one line, closed by another": ['"Come in,', 'she said."', "Nobody."],
        "opened twice": ['"Come in', "x", '"Who', "y"],
        "in the last line": ["x", '"Come in'],
        "closed within the field": ['"Come in," she said.', "x"],
        "inches": ['a 5" pipe', "x", '"quoted"'],
        "alone": ['"', "x", '"'],
        "doubled without being enclosed": ['""Come in""', "x"],
        "with other ends of lines": ['"a\u2028b\x85c\x0bd', "x"],
        "with a carriage return inside": ["a\rb", '"c'],
        "with a NUL": ['"a\0b', "x"],
    }.values(),
)  # fmt: skip
def test_lines_of_an_unquoted_tsv_are_rows(read, lines, caplog):
    rows = [[str(number), line] for number, line in enumerate(lines)]
    content = HEADER + "".join("\t".join(row) + "\n" for row in rows)
    assert read(content) == rows
    assert read(content.replace("\n", "\r\n")) == rows
    assert read("\ufeff" + content) == rows
    assert not caplog.records
    # What leads the file is no row on the way, either: the same columns without quotes are many lines before.
    before = [[str(number), "no quotes"] for number in range(50)]
    assert read(HEADER + "".join("\t".join(row) + "\n" for row in before + rows)) == before + rows


@pytest.mark.parametrize("style", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
def test_a_tsv_that_csv_has_written_is_read_back(read, style):
    rows = [
        ["1", "plain"], ["2", 'she said "come in"'], ["3", "a\ttab"], ["4", '"'], ["5", "two\nlines"],
        ["6", "\nlines\n\nof it\n"], ["7", ""], ["8", "中文，引号“”"],
    ]  # fmt: skip
    written = io.StringIO()
    csv.writer(written, delimiter="\t", quoting=style, lineterminator="\n").writerows([["id", "text"], *rows])
    assert read(written.getvalue()) == rows
    written.seek(0)
    assert read(written.getvalue().replace("\t", ","), name="a.csv")[0] == ["1", "plain"]


def test_rows_of_several_lines_are_said_once(read, caplog):
    content = 'id,text\n1,"two\nlines"\n2,x\n3,"two\nmore"\n'
    assert read(content, name="once.csv") == [["1", "two\nlines"], ["2", "x"], ["3", "two\nmore"]]
    assert read(content, name="once.csv")[1] == ["2", "x"]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    said = record.getMessage()
    assert "once.csv: lines 2 to 3 are read as one row" in said and "--quoting none" in said


def test_an_unpaired_quote_far_into_a_quoted_tsv_is_no_row(read):
    # Longer than what is looked at before it is decided.
    sure = [[str(number), f'say "{number}" ' + "x" * 2000] for number in range(2 * AHEAD // 2000)]
    written = io.StringIO()
    csv.writer(written, delimiter="\t", lineterminator="\n").writerows([["id", "text"], *sure])
    got = read(written.getvalue() + '7\t"open\n8\tclosed"\n9\tx\n')
    assert got[: len(sure)] == sure
    assert got[-1] == ["9", "x"]
    (problem,) = got[len(sure) : -1]
    assert "are one row if quotes enclose fields" in problem and "--quoting none" in problem


def test_an_unclosed_quote_of_a_csv_says_how_far_it_goes(read):
    (problem,) = read('id,text\n1,"a\n2,b\n3,c\n', name="a.csv")
    assert problem.startswith("2: not valid CSV: ") and "continues to line 4" in problem and "--quoting none" in problem


def test_quoting_can_be_asked_for(read, tmp_path):
    content = '"id"\t"text"\n1\t"two\nlines"\n'
    assert read(content, quoting="csv") == [["1", "two\nlines"]]
    assert read('id\ttext\n1\t"a\n2\tb"\n', quoting="csv") == [["1", "a\n2\tb"]]
    assert read('id,text\n1,"a"\n2,"b\n', name="a.csv", quoting="none") == [["1", '"a"'], ["2", '"b']]
    assert read('id\ttext\n1\t"a\tb"\n', quoting="none") == ["2: it has 3 columns, the header has 2"]
    with pytest.raises(ArgumentError, match="quoting must be one of auto, csv, none"):
        read_records(str(tmp_path / "a.tsv"), quoting="all")


def test_quoting_that_was_asked_for_is_a_setting(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text(HEADER)
    assert "quoting" not in read_records(str(path)).settings
    assert read_records(str(path), quoting="none").settings["quoting"] == "none"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", "id\ttext\r1\ta\r2\tb\r"), ("a.csv", "id,text\r1,a\r2,b"), ("a.txt", "a\rb\r"),
        ("a.jsonl", '{"text": "a"}\r{"text": "b"}'),
    ],
)  # fmt: skip
def test_a_carriage_return_ends_lines_where_nothing_else_does(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content.encode())
    assert [record.text for record in read_records(str(path))] == ["a", "b"]


def test_a_header_that_cannot_be_read_is_an_error(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('id,"te"xt\n1,a\n')
    with pytest.raises(DataError, match=r"a\.csv, line 1: the header cannot be read"):
        list(read_records(str(path)))
