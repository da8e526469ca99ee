"""Input records: formats, field names, ids, and what happens with lines that hold no record."""

import bz2
import gzip
import io
import json
import sys
import tracemalloc

import pytest

from bgekit.data.columns import read_file
from bgekit.data.records import Record, read_records
from bgekit.errors import ArgumentError, DataError


def pairs(records):
    return [(record.id, record.text) for record in records]


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        data = content if isinstance(content, bytes) else content.encode("utf-8")
        path.write_bytes(gzip.compress(data, mtime=0) if name.endswith(".gz") else data)
        return str(path)

    return write


@pytest.fixture
def stdin(monkeypatch):
    def feed(data):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(data))))

    return feed


# --- formats


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_jsonl(write, suffix):
    path = write(f"a.jsonl{suffix}", '{"_id": "x", "title": "A", "text": "b"}\n\n{"id": 7, "content": "中文"}\n')
    records = list(read_records(path))
    assert records == [Record("x", "A b", path, 1), Record("7", "中文", path, 3)]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_csv_with_quotes_and_line_breaks(write, suffix):
    path = write(f"a.csv{suffix}", 'id,text,title\r\n1,"say ""hi""\nthere",T\r\n2,plain,\r\n')
    assert list(read_records(path)) == [Record("1", 'T say "hi"\nthere', path, 2), Record("2", "plain", path, 4)]


def test_tsv(write):
    assert pairs(read_records(write("a.tsv", "id\ttext\na\tx, y\n"))) == [("a", "x, y")]


def test_txt_keeps_every_line(write):
    path = write("a.txt", "one\r\n\n  two\nthree")
    assert pairs(read_records(path)) == [("0", "one"), ("1", ""), ("2", "  two"), ("3", "three")]


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = str(tmp_path / "a.parquet")
    columns = {"id": [4, 5, 6], "text": ["x", None, "z"], "title": ["T", "U", None], "unused": [b"", b"", b""]}
    parquet.write_table(pyarrow.table(columns), path)
    reader = read_records(path, on_error="skip")
    assert pairs(reader) == [("4", "T x"), ("6", "z")]
    assert [(line.line, "null" in line.reason) for line in reader.skipped.lines] == [(2, True)]
    assert reader.position == reader.size


def test_parquet_errors(tmp_path, write):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    with pytest.raises(DataError, match=r"bad\.parquet is damaged"):
        list(read_records(write("bad.parquet", "PAR1 is not enough")))
    path = str(tmp_path / "a.parquet")
    parquet.write_table(pyarrow.table({"body": ["x"]}), path)
    with pytest.raises(DataError, match="no column text or content or contents; it has body"):
        list(read_records(path))
    assert pairs(read_records(path, text_field="body")) == [("0", "x")]


def test_utf8_bom_is_no_text(write):
    bom = b"\xef\xbb\xbf"
    assert pairs(read_records(write("a.txt", bom + b"x\n"))) == [("0", "x")]
    assert pairs(read_records(write("a.csv", bom + b"text\nx\n"))) == [("0", "x")]
    assert pairs(read_records(write("a.jsonl.gz", bom + b'{"text": "x"}\n'))) == [("0", "x")]


def test_utf16_is_refused(write):
    with pytest.raises(DataError, match=r"a\.txt is UTF-16"):
        list(read_records(write("a.txt", "x\n".encode("utf-16"))))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'{"text": "x"}\n', [("0", "x")]),
        (gzip.compress(b'{"text": "x"}\n', mtime=0), [("0", "x")]),
        (b"\xef\xbb\xbfid,text\n5,x\n", [("5", "x")]),
        (b"text\tid\nx\t5\n", [("5", "x")]),
        (b"x, y\nz\n", [("0", "x, y"), ("1", "z")]),
        (b"", []),
    ],
)
def test_standard_input_is_guessed_from_its_first_bytes(stdin, data, expected):
    stdin(data)
    assert pairs(read_records("-")) == expected


def test_standard_input_in_a_stated_format(stdin):
    stdin(b'{"text": "x"}\n')
    reader = read_records("-", format="txt")
    assert pairs(reader) == [("0", '{"text": "x"}')]
    assert reader.size is None


def test_standard_input_once_only():
    with pytest.raises(DataError, match="twice"):
        read_records(["-", "-"])


def test_parquet_from_standard_input(stdin):
    stdin(b"PAR1....PAR1")
    with pytest.raises(DataError, match="Parquet cannot be read from a pipe"):
        list(read_records("-"))


def test_unknown_suffix_is_guessed(write):
    assert pairs(read_records(write("dump.data", '{"text": "x"}\n'))) == [("0", "x")]


# --- fields and ids


def test_named_fields(write):
    path = write("a.jsonl", '{"key": "k", "head": "H", "body": "b", "text": "not this", "title": "nor this"}\n')
    assert pairs(read_records(path, text_field="body", title_field="head", id_field="key")) == [("k", "H b")]


def test_no_title(write):
    path = write("a.jsonl", '{"title": "T", "text": "x"}\n')
    assert pairs(read_records(path, title_field="")) == [("0", "x")]


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"title": "", "text": "x"}, "x"),
        ({"title": None, "text": "x"}, "x"),
        ({"title": "T", "text": ""}, "T"),
        ({"text": ""}, ""),
        ({"content": "second", "text": "first"}, "first"),
        ({"contents": "x"}, "x"),
        ({"text": "\ud800 lone"}, "\ud800 lone"),
    ],
)
def test_title_and_text(write, row, text):
    assert pairs(read_records(write("a.jsonl", json.dumps(row) + "\n"))) == [("0", text)]


def test_missing_ids_are_rows_of_the_whole_input(write):
    first = write("a.jsonl", '{"text": "x"}\nbad\n{"text": "y", "id": null}\n')
    second = write("b.txt", "z\n")
    reader = read_records([first, second], on_error="skip")
    assert pairs(reader) == [("0", "x"), ("2", "y"), ("3", "z")]


# --- bad lines


BAD_LINES = {
    "truncated json": (b'{"text": "x"', "not valid JSON"),
    "not an object": (b'"text"', "a JSON object is expected"),
    "no text": (b'{"body": "x", "id": "1"}', "no field text, content or contents; it has body, id"),
    "null": (b'{"text": null}', "the field text must be a string, not null"),
    "number": (b'{"text": 5}', r"not 5 \(int\)"),
    "list": (b'{"text": ["x"]}', r"not \['x'\] \(list\)"),
    "bad title": (b'{"text": "x", "title": 5}', "the field title must be a string"),
    "bad id": (b'{"text": "x", "id": {"a": 1}}', "the id id must be"),
    "undecodable": (b'{"text": "\xff\xfe"}', "not valid UTF-8: byte 0xff at position 10"),
    "deep": (b'{"text": ' + b"[" * 100_000, "not valid JSON"),
    "huge number": (b'{"text": "x", "n": ' + b"1" * 5000 + b"}", "not valid JSON"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_is_an_error_with_file_and_line(write, name):
    line, reason = BAD_LINES[name]
    path = write("corpus.jsonl", b'{"text": "good"}\n' + line + b'\n{"text": "good too"}\n')
    reader = read_records(path)
    assert next(reader).text == "good"
    with pytest.raises(DataError, match=rf"corpus\.jsonl, line 2: .*{reason}"):
        next(reader)


@pytest.mark.parametrize("name", BAD_LINES)
def test_bad_lines_can_be_skipped_and_are_listed(write, name, caplog):
    line, _ = BAD_LINES[name]
    path = write("corpus.jsonl", b'{"text": "good"}\n' + line + b'\n{"text": "good too"}\n')
    reader = read_records(path, on_error="skip")
    assert pairs(reader) == [("0", "good"), ("2", "good too")]
    assert reader.skipped.count == 1
    assert (reader.skipped.lines[0].file, reader.skipped.lines[0].line) == (path, 2)
    assert f"skipped {path}, line 2" in caplog.text


@pytest.mark.parametrize(
    ("lines", "advice"),
    [
        (["nonsense", "more of it"], False), (["nonsense"], False), (['{"body": "a"}', '{"body": "b"}'], False),
        (["nonsense", '{"text": "a"}'], True), (['{"text": "a"}', "nonsense"], True),
    ],
)  # fmt: skip
def test_leaving_out_lines_is_advised_where_some_are_good(write, lines, advice):
    path = write("a.jsonl", "\n".join(lines))
    with pytest.raises(DataError, match=r"a\.jsonl, line [12]: no") as caught:
        list(read_records(path))
    assert ("--on-error skip" in str(caught.value)) is advice


def test_bad_rows_of_tables(write):
    path = write("a.csv", b'id,text\n1,x\n2\n3,"a"b\n4,\xff\n5,y\n')
    reader = read_records(path, on_error="skip")
    assert pairs(reader) == [("1", "x"), ("5", "y")]
    assert [line.line for line in reader.skipped.lines] == [3, 4, 5]
    with pytest.raises(DataError, match=r"a\.csv, line 3: it has 1 columns, the header has 2"):
        list(read_records(path))


def test_an_unclosed_quote_is_an_error(write):
    with pytest.raises(DataError, match=r"a\.csv, line 2: not valid CSV"):
        list(read_records(write("a.csv", 'text\n"x\ny\n')))


def test_a_table_without_texts_is_an_error_even_when_skipping(write):
    with pytest.raises(DataError, match="has no column text or content or contents; it has id, body"):
        list(read_records(write("a.csv", "id,body\n1,x\n"), on_error="skip"))
    with pytest.raises(DataError, match="has no column nope"):
        list(read_records(write("a.csv", "id,text\n1,x\n"), title_field="nope"))


def test_undecodable_text_line(write):
    reader = read_records(write("a.txt", b"ok\n\xc3\x28\nok\n"), on_error="skip")
    assert pairs(reader) == [("0", "ok"), ("2", "ok")]


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("content", "lines"),
    [
        ('[{"text": "x"}, {"text": "[y]}"}, {"text": "z"}]\n', [1, 2, 3]),
        ('[\n {"text": "x"},\n\n {\n  "text": "[y]}"\n },\n {"text": "z"}\n]\n', [2, 4, 7]),
        ('\n[{"text": "x"},\n{"text": "[y]}"},\n{"text": "z"}]', [1, 3, 4]),
        ('{\n "text": "x"\n}\n{\n "text": "[y]}"\n}\n{\n "text": "z"\n}\n', [1, 4, 7]),
    ],
)
def test_json_arrays_and_objects_of_several_lines(write, content, lines, suffix):
    records = list(read_records(write(f"a.json{suffix}", content)))
    assert [(record.id, record.text, record.line) for record in records] == [
        ("0", "x", lines[0]), ("1", "[y]}", lines[1]), ("2", "z", lines[2]),
    ]  # fmt: skip


def test_an_array_that_is_larger_than_what_is_read_at_once(write):
    rows = [{"id": number, "text": "中文 " * (number % 7) * 3_000} for number in range(60)]
    for indent in (None, 1):
        records = list(read_records(write("a.json", json.dumps(rows, ensure_ascii=False, indent=indent))))
        assert [(int(record.id), len(record.text)) for record in records] == [(n, n % 7 * 9_000) for n in range(60)]


def test_rows_of_an_array_that_are_no_records(write):
    path = write("a.json", b'[{"text": "x"}, 5, ["y"],\n{"text": "\xff"},\n{"body": "z"}, {"text": "last"}]')
    reader = read_records(path, on_error="skip")
    assert pairs(reader) == [("0", "x"), ("5", "last")]
    assert [line.line for line in reader.skipped.lines] == [2, 3, 2, 3]
    assert list(read_records(write("b.json", "[]"))) == list(read_records(write("c.json", "[\n]\n"))) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"text": "x"},\n{"text": "y"}', r"line 2: not valid JSON: it is cut off"),
        ('[{"text": "x"},\n{"text": "y', r"line 2: not valid JSON: Unterminated string"),
        ('[{"text": "x"}]\n{"text": "y"}', r"line 2: not valid JSON: something follows the array"),
        ('[\n{"text": "x"}\nnonsense]', r"line 3: not valid JSON: Expecting value"),
        ('{\n"text": "x"\n', r"line 1: not valid JSON: Expecting"),
    ],
)
def test_damaged_arrays_are_errors_even_when_skipping(write, content, message):
    with pytest.raises(DataError, match=rf"a\.json, {message}"):
        list(read_records(write("a.json", content), on_error="skip"))


@pytest.mark.parametrize("delimiter", [";", "\t", "|", ","])
def test_the_delimiter_of_csv_is_seen_from_its_header(write, delimiter):
    rows = [["id", "text", "price"], ["1", "a, b", "1,5"], ["2", "c; d | e", "2,5"]]
    path = write("a.csv", "\n".join(delimiter.join(f'"{cell}"' for cell in row) for row in rows))
    assert pairs(read_records(path)) == [("1", "a, b"), ("2", "c; d | e")]


def test_a_header_with_several_delimiters(write):
    assert pairs(read_records(write("a.csv", "id;name, first;text\n1;x;y\n2;x, z;w\n"))) == [("1", "y"), ("2", "w")]
    assert pairs(read_records(write("b.csv", "id;old,text\n1,x\n2,y;z\n"))) == [("0", "x"), ("1", "y;z")]
    assert pairs(read_records(write("c.csv", "\ntext\nx;y\n"))) == [("0", "x;y")]


def test_a_stated_delimiter(write):
    path = write("a.csv", "id:text\n1:x, y; z\n")
    assert pairs(read_records(path, delimiter=":")) == [("1", "x, y; z")]
    with pytest.raises(DataError, match="no column text or content or contents; it has id:text"):
        list(read_records(path))
    assert pairs(read_records(write("b.tsv", "id;text\n1;x\n"), delimiter=";")) == [("1", "x")]


def test_a_table_without_a_name_by_its_delimiter(write):
    assert pairs(read_records(write("dump", "id;text\n1;x\n"))) == [("1", "x")]


def test_many_bad_lines_are_all_counted_but_logged_only_at_first(write, caplog):
    reader = read_records(write("a.jsonl", "bad\n" * 12_000), on_error="skip")
    assert pairs(reader) == []
    assert (reader.skipped.count, len(reader.skipped.lines)) == (12_000, 10_000)
    assert len(caplog.records) == 21


# --- files


def test_truncated_gzip_is_an_error_even_when_skipping(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    data = gzip.compress(b"".join(b'{"text": "%d"}\n' % n for n in range(10_000)))
    path.write_bytes(data[: len(data) // 2])
    reader = read_records(path, on_error="skip")
    with pytest.raises(DataError, match=r"a\.jsonl\.gz is damaged or cut off after line \d+"):
        list(reader)


def test_damaged_gzip(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    data = bytearray(gzip.compress(bytes(range(256)) * 100))
    data[20:40] = bytes(20)
    path.write_bytes(data)
    with pytest.raises(DataError, match="is damaged or cut off"):
        list(read_records(path, on_error="skip", format="txt"))


def test_a_gz_name_on_other_content(tmp_path):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(bz2.compress(b"x"))
    with pytest.raises(DataError, match="is not gzipped"):
        list(read_records(path))


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*nope\.jsonl: No such file"):
        read_records(["-", str(tmp_path / "nope.jsonl")])
    with pytest.raises(DataError, match="has no files to read"):
        read_records(str(tmp_path))


def test_empty_file(write):
    for name in ("a.jsonl", "a.csv", "a.txt", "a.jsonl.gz"):
        assert list(read_records(write(name, ""))) == []


def test_bad_arguments(write):
    with pytest.raises(ArgumentError, match="on_error"):
        read_records(write("a.txt", "x"), on_error="ignore")
    with pytest.raises(ArgumentError, match="format"):
        read_records(write("a.txt", "x"), format="xml")


def test_a_megabyte_in_one_field(write):
    text = "word " * 250_000
    assert next(read_records(write("a.csv", f'text\n"{text}"\n'))).text == text
    assert next(read_records(write("a.jsonl", json.dumps({"text": text})))).text == text


def test_position_moves_to_the_end(write):
    plain = write("a.jsonl", '{"text": "x"}\n' * 100_000)
    zipped = write("b.jsonl.gz", '{"text": "x"}\n' * 100)
    reader = read_records([plain, zipped])
    next(reader)
    assert reader.position < reader.size / 2
    for _ in reader:
        pass
    assert reader.position == reader.size


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt", "a.jsonl.gz"])
def test_memory_does_not_grow_with_the_input(write, name):
    row = "text\n" if "csv" in name else ""
    line = "some words of text\n" if "json" not in name else '{"text": "some words of text"}\n'

    def peak(lines):
        path = write(name, row + line * lines)
        tracemalloc.start()
        for _ in read_records(path):
            pass
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    assert peak(15_000) < peak(5_000) + 200_000


# --- rows


def test_rows_have_every_field(write):
    def rows(lines):
        return [(line.number, line.fields) for line in lines]

    path = write("a.csv", "s1,s2,score\r\na,b,1\r\n\r\nc,d,2\r\n")
    assert rows(read_file(path)) == [
        (2, {"s1": "a", "s2": "b", "score": "1"}),
        (4, {"s1": "c", "s2": "d", "score": "2"}),
    ]
    assert rows(read_file(write("a.jsonl.gz", '{"x": [1]}\n\n{"y": null}\n'))) == [(1, {"x": [1]}), (3, {"y": None})]
    assert rows(read_file(write("a.txt", "one\n\n"))) == [(1, {"text": "one"}), (2, {"text": ""})]
    assert rows(read_file(write("a", '{"x": 1}\n'), format="jsonl")) == [(1, {"x": 1})]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"x": 1}\n{x}\n', r"a.jsonl, line 2: not valid JSON"),
        ("a.csv", "a,b\n1,2,3\n", r"a.csv, line 2: it has 3 columns, the header has 2"),
        ("a.jsonl", b"\x1f\x8b\x08\x00", r"a.jsonl is damaged or cut off after line 0"),
    ],
)
def test_rows_that_cannot_be_read(write, name, content, message):
    with pytest.raises(DataError, match=message):
        list(read_file(write(name, content)))


def test_rows_of_no_file(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*nowhere.jsonl: No such file"):
        list(read_file(tmp_path / "nowhere.jsonl"))
    with pytest.raises(DataError, match=r"it is a folder"):
        list(read_file(tmp_path))
    with pytest.raises(ArgumentError, match=r"format must be one of jsonl"):
        list(read_file(tmp_path, format="xml"))
