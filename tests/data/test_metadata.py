"""Metadata: one type for each column, cells typed together, files that are read as they were written."""

from __future__ import annotations

import datetime
import io
import json
from decimal import Decimal

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from bgekit.data import chunk_records, read_records
from bgekit.data.metadata import Cell, Columns, Kinds, checked_keep, plain, read_table, row_of, table_of, write_table
from bgekit.errors import ArgumentError, DataError, OutputError

DAY, NOON = datetime.date(2024, 5, 31), datetime.datetime(2024, 5, 31, 12)
UTC = datetime.timezone.utc


def whole(*parts):
    """Tables of parts, as an index has them."""
    columns, tables = Columns(), [table_of(part) for part in parts]
    for number, table in enumerate(tables):
        if table is not None:
            columns.add(table, f"part {number}")
    return pyarrow.concat_tables([columns.cast(table, len(part)) for table, part in zip(tables, parts, strict=True)])


def cells(*values):
    return [{"c": Cell(value)} for value in values]


@pytest.mark.parametrize(
    ("values", "type_"),
    [
        ([1, None, -(2**63)], "int64"),
        ([1, 2.5], "double"),
        ([True, False], "bool"),
        (["x", None], "string"),
        ([DAY], "date32[day]"),
        ([NOON], "timestamp[us]"),
        ([NOON.replace(tzinfo=UTC)], "timestamp[us, tz=UTC]"),
        ([["a"], [], None, ["b", None]], "list<item: string>"),
        ([[1], [2.5]], "list<item: double>"),
        ([[DAY]], "list<item: date32[day]>"),
        ([[]], "list<item: null>"),
        ([None], "null"),
    ],
)
def test_types(values, type_):
    table = table_of([{"c": value} for value in values])
    assert str(table.schema.field("c").type) == type_
    assert table.column("c").to_pylist() == values
    assert whole([{"c": value} for value in values]).to_pylist() == table.to_pylist()


def test_values_are_kept_as_plain_ones():
    row = {
        "nan": float("nan"), "price": Decimal("1.50"), "count": Decimal("3"), "half": np.float32(0.5), "n": np.int64(3),
        "array": np.array([1, 2]), "tuple": ("a", "b"), "text": "x \ud800 y", "none": Decimal("NaN"),
        "at": NOON.replace(tzinfo=datetime.timezone(datetime.timedelta(hours=2))),
    }  # fmt: skip
    assert row_of(table_of([row]), 0) == {
        "nan": None, "price": 1.5, "count": 3, "half": 0.5, "n": 3, "array": [1, 2], "tuple": ["a", "b"],
        "text": "x \ufffd y", "none": None, "at": datetime.datetime(2024, 5, 31, 10, tzinfo=UTC),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        (1, "x", r"is a string here \('x'\) and a number in a.jsonl, line 1: .* one type"),
        (True, 1, "is a number here .* and true or false"),
        (DAY, NOON, rf"is a date with a time here \({NOON.isoformat()}\) and a date in .* to keep without c"),
        (["x"], "x", "is a string here .* and a list of strings"),
        (["x"], [1], r"is a list of numbers here .* and a list of strings"),
        (Cell("1"), 1, "is a number here .* and a cell of a table in"),
    ],
)
def test_mixed_types_are_an_error_that_names_the_place(one, other, words):
    rows, places = [{"c": one}, {"d": 3, "c": other}], [("a.jsonl", 1), ("b.jsonl", 7)]
    with pytest.raises(DataError, match=rf"b.jsonl, line 7: the column c {words}"):
        table_of(rows, places)
    with pytest.raises(DataError, match=r"part 1: the column c is of the type .* here and .* before"):
        whole(*([row] for row in rows))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"a": 1, "b": 2}, r"c is an object \(a, b\), .*: make columns of them, or name the columns to keep without c"),
        ([["x"]], "a list of lists"),
        (["x", 1], "a list of a string and a number"),
        (b"x", "make it a string or a number"),
        (2**63, "more than 64 bits"),
        (datetime.timedelta(1), "timedelta"),
    ],
)
def test_what_cannot_be_kept(value, words):
    with pytest.raises(DataError, match=f"record 1: the column.*{words}"):
        table_of([{"c": None}, {"c": value}])


def test_null_and_empty_lists_fit_any_type():
    parts = [[{"c": None}], [{}], [{"c": []}], [{"c": ["x"]}, {}], [{"c": None, "d": 1}], [{"d": 2.5}]]
    table = whole(*parts)
    assert table.column("c").to_pylist() == [None, None, [], ["x"], None, None, None]
    assert table.column("d").to_pylist() == [None, None, None, None, None, 1.0, 2.5]
    assert [str(field.type) for field in table.schema] == ["list<item: string>", "double"]


@pytest.mark.parametrize(
    ("values", "type_", "expected"),
    [
        (["1", "", " -2 ", "0"], "int64", [1, None, -2, 0]),
        (["1", "2.50", "-.5", "1e3", ""], "double", [1, 2.5, -0.5, 1000, None]),
        (["true", "FALSE", ""], "bool", [True, False, None]),
        (["1", "x", ""], "string", ["1", "x", None]),
        (["true", "1"], "string", ["true", "1"]),
        # What would not come out as it was written stays a string.
        (["007", "1"], "string", ["007", "1"]),
        (["12345678901234567890"], "string", ["12345678901234567890"]),
        (["1234567890123456789", "0.5"], "string", ["1234567890123456789", "0.5"]),
        (["nan", "1"], "string", ["nan", "1"]),
        (["1_000"], "string", ["1_000"]),
        (["١"], "string", ["١"]),
        (["2024-05-31"], "string", ["2024-05-31"]),
        (["", ""], "null", [None, None]),
    ],
)
def test_cells_are_typed_together(values, type_, expected):
    assert table_of(cells(*values)).column("c").to_pylist() == values
    for table in (whole(cells(*values)), whole(*(cells(value) for value in values))):
        assert str(table.schema.field("c").type) == type_
        assert table.column("c").to_pylist() == expected
        assert table.schema.field("c").metadata is None


def test_a_later_part_changes_the_type_of_all_cells():
    assert whole(cells("1", "2"), cells("", "x")).column("c").to_pylist() == ["1", "2", None, "x"]


def test_rows_without_any_column():
    assert table_of([{}, {}]) is None
    assert whole([{}, {}], [{"c": 1}]).to_pylist() == [{"c": None}, {"c": None}, {"c": 1}]


def test_files(tmp_path):
    for tables in (
        [table_of([{"c": 1, "d": ["x"]}]), table_of([{"c": 2, "d": ["y", None]}] * 3)],
        [table_of(cells("1")), table_of(cells("", "x", "2"))],
    ):
        file = io.BytesIO()
        write_table(file, tables[0].schema, tables)
        (tmp_path / "a.arrow").write_bytes(file.getvalue())
        read = read_table(tmp_path / "a.arrow", 4)
        assert read.equals(pyarrow.concat_tables(tables), check_metadata=True)
    with pytest.raises(OutputError, match=r"a.arrow has 4 rows, not 5"):
        read_table(tmp_path / "a.arrow", 5)
    content = file.getvalue()
    for damaged in (b"", content[: len(content) // 2], b"x" * 100):
        (tmp_path / "a.arrow").write_bytes(damaged)
        with pytest.raises(OutputError, match=r"a.arrow is missing or damaged .*make it again"):
            read_table(tmp_path / "a.arrow", 4)
    (tmp_path / "a.arrow").unlink()
    with pytest.raises(OutputError, match="missing"):
        read_table(tmp_path / "a.arrow", 4)


def test_the_first_place_of_a_kind_is_remembered():
    kinds = Kinds()
    kinds.checked({"c": None}, "a", 1)
    kinds.checked({"c": []}, "a", 2)
    kinds.checked({"c": ["x"]}, "a", 3)
    kinds.checked({"c": []}, "a", 4)
    with pytest.raises(DataError, match="in a, line 3"):
        kinds.checked({"c": [1]}, "a", 5)


def test_keep():
    assert checked_keep(None) == ()
    assert checked_keep("*") == ("*",)
    assert checked_keep(["b", "a", "b"]) == ("b", "a")
    for wrong in ([""], [1], [None]):
        with pytest.raises(ArgumentError, match="keep is a list of names"):
            checked_keep(wrong)


def test_json():
    assert plain([DAY, 1, None]) == ["2024-05-31", 1, None]
    assert plain(NOON) == "2024-05-31T12:00:00"


# --- as records bring it


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content, encoding="utf-8")
        return str(path)

    return write


def kept(path, keep, **options):
    return [dict(record.metadata) for record in read_records(path, keep=keep, **options)]


def test_json_lines(write):
    path = write("a.jsonl", '{"id": 1, "title": "T", "text": "a", "n": 1, "tags": ["x"]}\n{"text": "b", "n": 2.5}\n')
    assert kept(path, ["n", "tags"]) == [{"n": 1, "tags": ["x"]}, {"n": 2.5, "tags": None}]
    assert kept(path, "*") == [{"n": 1, "tags": ["x"]}, {"n": 2.5}]
    assert kept(path, ["*", "title"]) == [{"n": 1, "tags": ["x"], "title": "T"}, {"n": 2.5, "title": None}]
    assert kept(path, "*", title_field="") == [{"title": "T", "n": 1, "tags": ["x"]}, {"n": 2.5}]
    assert kept(path, None) == [{}, {}]
    assert "keep" not in read_records(path).settings
    assert read_records(path, keep="n").settings["keep"] == ["n"]


def test_cells(write):
    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t"), ("b.csv", ";")):
        path = write(name, "id,text,n\n1,a,5\n2,b,\n".replace(",", delimiter))
        assert [type(row["n"]) for row in kept(path, "*")] == [Cell, Cell]
        assert kept(path, ["n", "id"]) == [{"n": "5", "id": "1"}, {"n": "", "id": "2"}]


def test_tables_keep_their_types(tmp_path):
    table = pyarrow.table({"text": ["a"], "day": [DAY], "price": [Decimal("1.50")], "tags": [["x"]], "other": [1]})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert kept(tmp_path / "a.parquet", ["day", "price", "tags"]) == [{"day": DAY, "price": 1.5, "tags": ["x"]}]
    assert kept(tmp_path / "a.parquet", "*") == [{"day": DAY, "price": 1.5, "tags": ["x"], "other": 1}]


def test_front_matter_and_plain_lines(write, tmp_path):
    write("notes/a.md", "---\ntitle: A\nyear: 2020\nday: 2024-05-31\ntags: [x]\n---\n# One\ntext\n\n# Two\nmore\n")
    write("notes/b.md", "no front matter\n")
    first = {"year": 2020, "day": DAY, "tags": ["x"]}
    assert kept(str(tmp_path / "notes"), "*") == [first, {}]
    assert kept(str(tmp_path / "notes"), "year", records="section") == [{"year": 2020}, {"year": 2020}, {"year": None}]
    assert kept(write("a.txt", "x\n"), "year") == [{"year": None}]


def test_mixed_columns_are_bad_lines(write, tmp_path):
    path = write("a.jsonl", '{"text": "a", "n": 1}\n{"text": "b", "n": "x"}\n{"text": "c", "n": 2}\n')
    reason = r"a.jsonl, line 2: the column n is a string here \('x'\) and a number in .*a.jsonl, line 1: .* one type"
    with pytest.raises(DataError, match=reason):
        kept(path, "n")
    assert kept(path, "n", on_error="skip") == [{"n": 1}, {"n": 2}]
    write("notes/a.md", "---\nyear: 2020\n---\na\n")
    write("notes/b.md", "---\nyear: unknown\n---\nb\n")
    with pytest.raises(DataError, match=r"b\.md, line 1: the column year is a string here"):
        kept(str(tmp_path / "notes"), "year")
    with pytest.raises(DataError, match=r"object \(a\).*make columns of them, or name the columns to keep without o"):
        kept(write("o.jsonl", '{"text": "a", "o": {"a": 1}}\n'), "*")


def test_a_column_that_is_not_there(write, tmp_path, caplog):
    with pytest.raises(DataError, match=r"a.csv has no column prcie to keep; it has text, price"):
        kept(write("a.csv", "text,price\nx,1\n"), "prcie")
    assert kept(write("a.jsonl", '{"text": "x", "price": 1}\n'), "prcie") == [{"prcie": None}]
    assert "no row has a column prcie, which was to be kept; the first row has text, price" in caplog.text


def test_keeping_is_settled_before_reading(write):
    records = read_records(write("a.jsonl", '{"text": "x", "n": 1}\n'))
    records.keep("n")
    assert next(records).metadata == {"n": 1}
    records.keep(["n"])
    with pytest.raises(ArgumentError, match=r"give keep=\.\.\. to read_records"):
        records.keep("*")


def test_passages_share_the_metadata_of_their_document(tiny_bert, write):
    from bgekit import FlagModel

    lines = write("a.jsonl", json.dumps({"text": "one cat. " * 30, "year": 2021}))
    notes = write("notes/a.md", "---\nyear: 2020\n---\n# One\n" + "the cat. " * 30)
    records = [*read_records(lines, keep="year"), *read_records(notes, keep="year")]
    passages = list(chunk_records(records, FlagModel(tiny_bert).tokenizer, size=16, overlap=2))
    assert len(passages) > 4
    assert {(each.file, each.metadata["year"]) for each in passages} == {(lines, 2021), (notes, 2020)}
