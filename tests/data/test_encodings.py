"""Files that are not UTF-8: what they seem to be, the option that reads them, and the reading."""

from __future__ import annotations

import gzip
import io
import json
import sys

import pytest

from bgekit.data.encodings import guess_by_zeros, guess_encoding
from bgekit.data.records import read_records
from bgekit.errors import ArgumentError, DataError

CHINESE = ["糖尿病患者应该怎样安排一日三餐？", "昨天的会议因为大雨推迟了。", "请问去火车站怎么走"]
TRADITIONAL = ["糖尿病患者應該怎樣安排一日三餐？", "昨天的會議因為大雨推遲了。", "請問去火車站怎麼走"]
JAPANESE = ["明日の会議は何時からですか。", "駅までの道を教えてください", "カレーライスを二つお願いします"]
KOREAN = ["내일 회의는 몇 시에 시작합니까?", "역으로 가는 길을 알려 주세요", "어제는 비가 많이 왔다"]
FRENCH = ["Où est la gare ?", "L’été dernier, nous étions à Genève", "rien"]
RUSSIAN = ["Завтра будет дождь", "Где находится вокзал?", "нет"]

FILES = [
    ("gbk", "gb18030", CHINESE), ("gb18030", "gb18030", CHINESE), ("big5", "big5", TRADITIONAL),
    ("shift_jis", "cp932", JAPANESE), ("euc_jp", "euc-jp", JAPANESE), ("euc_kr", "cp949", KOREAN),
    ("cp1252", "cp1252", FRENCH), ("cp1251", "cp1251", RUSSIAN), ("koi8-r", "koi8-r", RUSSIAN),
    ("utf-16", "utf-16", CHINESE), ("utf-16-le", "utf-16-le", FRENCH), ("utf-16-be", "utf-16-be", CHINESE),
    ("utf-32-le", "utf-32-le", KOREAN),
]  # fmt: skip


def form(name, lines):
    """A file's content in the form that its name says."""
    if name == "a.jsonl":
        return "".join(json.dumps({"text": line}, ensure_ascii=False) + "\n" for line in lines)
    return {"a.txt": "", "a.csv": "text\n", "a.tsv": "text\tid\n"}[name] + "".join(
        f"{line}\t1\n" if name == "a.tsv" else f'"{line}"\n' if name == "a.csv" else f"{line}\n" for line in lines
    )


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.tsv"])
@pytest.mark.parametrize(("encoding", "guess", "lines"), FILES, ids=[each[0] for each in FILES])
def test_the_error_names_the_encoding_that_reads_the_file(tmp_path, name, encoding, guess, lines):
    path = tmp_path / name
    path.write_bytes(form(name, lines).encode(encoding))
    for on_error in ("raise", "skip"):
        with pytest.raises(DataError) as caught:
            list(read_records(str(path), on_error=on_error))
        assert f"--encoding {guess} reads it" in str(caught.value)
        assert "--on-error" not in str(caught.value)
    assert [record.text for record in read_records(str(path), encoding=guess)] == lines


@pytest.mark.parametrize("text", CHINESE)
def test_one_line_is_enough(text):
    assert guess_encoding(text.encode("gbk")).encoding == "gb18030"


def test_nothing_is_guessed_of_what_is_no_text():
    noise = bytes(range(128, 256)) * 20
    assert guess_encoding(noise) is None
    assert guess_by_zeros(b"a\0b" * 9) is None and guess_by_zeros(bytes(40)) is None
    assert guess_by_zeros("你好\n".encode()) is None


def test_a_broken_line_among_good_ones_can_be_left_out(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(("好\n" * 5).encode() + "坏的\n".encode("gbk") + "好\n".encode() * 5)
    reader = read_records(str(path), on_error="skip")
    assert len(list(reader)) == 10
    with pytest.raises(DataError, match=r"a\.txt, line 6: not valid UTF-8: byte .*--on-error skip"):
        list(read_records(str(path)))


def test_most_lines_that_nobody_knows_are_no_lines_to_leave_out(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes((bytes(range(128, 256)) + b"\n") * 10)
    with pytest.raises(DataError, match=r"line 1: not valid UTF-8.*cannot be guessed: name it with --encoding"):
        list(read_records(str(path), on_error="skip"))


def test_the_wrong_encoding_is_said(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\n".join(CHINESE * 3), encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.txt, line \d: not valid shift_jis"):
        list(read_records(str(path), encoding="shift_jis"))
    path.write_bytes("好\n".encode("gbk") * 5 + b"\xff\n" + "好\n".encode("gbk") * 5)
    reader = read_records(str(path), encoding="gbk", on_error="skip")
    assert [record.id for record in reader] == [str(n) for n in range(11) if n != 5]
    assert reader.skipped.lines[0].reason == "not valid gbk"


def test_zipped_files_and_standard_input(tmp_path, monkeypatch):
    content = form("a.jsonl", CHINESE).encode("gbk")
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(content))
    assert [record.text for record in read_records(str(path), encoding="gbk")] == CHINESE
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(content))))
    assert [record.text for record in read_records("-", encoding="gbk")] == CHINESE


def test_lines_end_where_they_end_in_their_encoding(tmp_path):
    # U+0A0D and U+0D0A have the bytes of line ends in UTF-16; so have trail bytes nowhere else.
    path = tmp_path / "a.txt"
    path.write_bytes("a\u0a0db\nc\u0d0a\n".encode("utf-16-le"))
    assert [record.text for record in read_records(str(path), encoding="utf-16-le")] == ["a\u0a0db", "c\u0d0a"]


@pytest.mark.parametrize("name", ["nonsense", "hex", "gbk\0"])
def test_an_unknown_encoding_is_refused(tmp_path, name):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ArgumentError, match="there is no encoding"):
        read_records(str(tmp_path / "a.txt"), encoding=name)


@pytest.mark.parametrize("end", [b"caf\xe9\n", "好".encode()[:-1], b"caf\xe9\nok\n"])
def test_slips_at_the_end_of_a_file_in_utf_8_are_left_out_as_any_other(tmp_path, end):
    (tmp_path / "g.txt").write_bytes("这是好的\n".encode() * 30 + end)
    records = read_records(tmp_path / "g.txt", on_error="skip")
    assert len(list(records)) == 30 + end.count(b"ok") and records.skipped.count == 1


@pytest.mark.parametrize("encoding", ["", "idna", "punycode", "rot13", "nothing"])
def test_names_that_are_no_encoding_of_texts_are_refused(encoding):
    with pytest.raises(ArgumentError, match="there is no encoding"):
        read_records([], encoding=encoding)


def test_the_format_of_a_file_without_ending_is_seen_in_its_encoding(tmp_path):
    (tmp_path / "data").write_bytes('{"text": "hello"}\n'.encode("utf-16"))
    assert [record.text for record in read_records(tmp_path / "data", encoding="utf-16")] == ["hello"]
