"""Files at URLs: rows as of local files, range by range; what cannot be read or written, in one line."""

import gzip
import io
import json
import math
import os

import fsspec
import pyarrow as pa
import pytest
from pyarrow import ipc, parquet

from bgekit.data import read_records
from bgekit.errors import ArgumentError, CheckpointError, DataError, MissingExtraError, OutputError
from bgekit.files import OutputFolder, file_sha256, remote
from bgekit.files.atomic import check_place
from bgekit.files.transfer import check_target, uploaded_file, write_files
from bgekit.models.hub import resolve

ROWS = [{"_id": f"d{n}", "text": f"text number {n}"} for n in range(3000)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def put(url, content):
    files, path = fsspec.core.url_to_fs(url)
    files.pipe_file(path, content)
    return url


def names(url):
    files, path = fsspec.core.url_to_fs(url)
    files.invalidate_cache()
    return sorted(name.removeprefix(path).lstrip("/") for name in files.find(path))


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(remote, "_WAITS", (0.0, 0.0))


def as_arrow(stream):
    out, table = io.BytesIO(), pa.Table.from_pylist(ROWS)
    with (ipc.new_stream if stream else ipc.new_file)(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=100)
    return out.getvalue()


def as_parquet():
    out = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(ROWS), out, row_group_size=500)
    return out.getvalue()


FORMS = {
    "rows.jsonl": lambda: LINES,
    "rows.jsonl.gz": lambda: gzip.compress(LINES),
    "rows.csv": lambda: b"_id,text\n" + "".join(f"{r['_id']},{r['text']}\n" for r in ROWS).encode(),
    "rows.parquet": as_parquet,
    "rows.arrow": lambda: as_arrow(False),
    "stream.arrow": lambda: as_arrow(True),
    "without-an-ending": lambda: LINES,
}


@pytest.mark.parametrize("name", FORMS)
def test_rows_at_a_url_are_those_of_the_file(name, bucket):
    url = put(f"{bucket}/in/{name}", FORMS[name]())
    reader = read_records(url)
    found = list(reader)
    assert [(each.id, each.text) for each in found] == [(row["_id"], row["text"]) for row in ROWS]
    assert found[-1].file == url
    assert reader.position == reader.size == len(FORMS[name]())


def test_folders_and_patterns_at_a_url_stand_for_files_as_on_the_disk(bucket):
    for name in ("b.jsonl", "a.jsonl", "deep/er/c.md", ".hidden.jsonl", "deep/.git/d.jsonl", "x.bin", "drafts/e.jsonl"):
        put(f"{bucket}/in/{name}", b'{"text": "some"}\n')
    put(f"{bucket}/in/shards/begun.json", b'{"format": "bgekit shards"}')
    put(f"{bucket}/in/shards/shard-00000.00.json", b"{}")
    reader = read_records(f"{bucket}/in", exclude=["drafts/"])
    assert reader.files == [f"{bucket}/in/{name}" for name in ("a.jsonl", "b.jsonl", "deep/er/c.md")]
    assert [record.id for record in reader] == ["0", "1", "deep/er/c.md"]
    assert read_records(f"{bucket}/in/*.jsonl").files == [f"{bucket}/in/a.jsonl", f"{bucket}/in/b.jsonl"]
    with pytest.raises(DataError, match=r"no file matches s3://.*/in/\*\.csv"):
        read_records(f"{bucket}/in/*.csv")
    with pytest.raises(DataError, match="holds encoded shards, not documents"):
        read_records(f"{bucket}/in/shards")


def test_to_look_at_the_first_row_fetches_a_range_and_not_the_file(bucket, object_store):
    url = put(f"{bucket}/large.jsonl", LINES * 400)
    before = object_store.answered
    assert next(read_records(url)).id == "d0"
    assert object_store.answered - before < 10 << 20 < len(LINES * 400)


def test_a_range_that_breaks_off_is_asked_for_again(bucket, object_store):
    url = put(f"{bucket}/large.jsonl", LINES * 100)
    object_store.breaks = 3
    assert file_sha256(url) == file_sha256(put("memory://copy.jsonl", LINES * 100))
    assert object_store.breaks == 0


def test_a_connection_that_keeps_breaking_is_an_error_in_one_line_with_the_file(bucket, object_store, monkeypatch):
    url = put(f"{bucket}/large.jsonl", LINES * 100)
    reader = read_records(url)
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    object_store.breaks = math.inf
    with pytest.raises(DataError) as error:
        list(reader)
    assert str(error.value).startswith(f"cannot read {url} after line 0: ")
    assert "(tried 3 times)" in str(error.value) and "\n" not in str(error.value)


def test_what_is_not_there_is_an_error_in_one_line(bucket):
    for url, reason in (
        (f"{bucket}/none.jsonl", f"cannot read {bucket}/none.jsonl: it does not exist"),
        ("s3://no-such-bucket/a.jsonl", "cannot read s3://no-such-bucket/a.jsonl: there is no bucket no-such-bucket"),
    ):
        with pytest.raises(DataError) as error:
            read_records(url)
        assert str(error.value) == reason
    with pytest.raises(OutputError, match="cannot write s3://no-such-bucket/a/b: there is no bucket no-such-bucket"):
        check_target("s3://no-such-bucket/a/b")


def test_wrong_credentials_and_none_are_errors_in_one_line(bucket, object_store, monkeypatch, tmp_path):
    import s3fs

    url = put(f"{bucket}/a.jsonl", LINES)
    object_store.check_credentials(True)
    try:
        with pytest.raises(DataError, match=f"cannot read {url}: access is denied .*check the credentials"):
            read_records(url)
        with pytest.raises(OutputError, match=f"cannot write {url}: access is denied .*check the credentials"):
            check_target(url)
    finally:
        object_store.check_credentials(False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(DataError, match=f"cannot read {url}: no credentials were found"):
        read_records(url)


def test_a_server_that_is_not_there_is_an_error_after_a_few_attempts(bucket, monkeypatch):
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(DataError, match=r"cannot read .*Could not connect to the endpoint URL.* \(tried 3 times\)$"):
        read_records(f"{bucket}/a.jsonl")


def test_a_file_that_is_replaced_while_it_is_read_is_an_error(bucket):
    url = put(f"{bucket}/large.jsonl", LINES * 100)
    reader = read_records(url)
    next(reader)
    put(url, LINES * 101)
    with pytest.raises(DataError, match=f"cannot read {url} after line .*: it was changed while it was read"):
        list(reader)


def test_a_block_that_fails_leaves_nothing_at_the_url(bucket):
    def fail():
        yield b"half"
        raise DataError("the rest cannot be made")

    with pytest.raises(DataError, match="the rest"):
        write_files([(f"{bucket}/first", [b"whole"]), (f"{bucket}/second", fail())])
    with pytest.raises(ZeroDivisionError), uploaded_file(f"{bucket}/third") as file:
        file.write(bytes(1 // 0))
    check_target(f"{bucket}/fourth")
    assert names(bucket) == []


def test_what_cannot_be_at_a_url_is_refused_in_one_line(tmp_path):
    for refused in (
        lambda: OutputFolder("s3://b/out"),
        lambda: check_place("s3://b/out", folder=True),
        lambda: check_place(type(tmp_path)("s3://b/out")),
    ):
        with pytest.raises(OutputError, match=r"^s3://b/out is a URL, and this is written on the local disk only"):
            refused()
    with pytest.raises(CheckpointError, match="s3://b/model is a URL, and models are read from the local disk"):
        resolve("s3://b/model")
    assert not os.path.exists("s3:")


def test_a_missing_package_and_an_unknown_protocol_are_named(monkeypatch):
    with pytest.raises(ArgumentError, match="nothing-known://a: Protocol not known"):
        read_records("nothing-known://a")
    find = remote.require_extra.__globals__["importlib"].util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "s3fs" else find(name))
    with pytest.raises(MissingExtraError, match=r"pip install 'bgekit\[s3\]'"):
        read_records("s3://b/a.jsonl")


def test_the_hub_is_read_through_its_own_file_system(monkeypatch):
    from huggingface_hub import HfFileSystem

    content = {"datasets/owner/name/a.jsonl": LINES}
    monkeypatch.setattr(HfFileSystem, "info", lambda self, path, **_: {
        "type": "file", "size": len(content[path]), "name": path, "blob_id": "1",
    })  # fmt: skip
    monkeypatch.setattr(HfFileSystem, "invalidate_cache", lambda self, path=None: None)
    monkeypatch.setattr(HfFileSystem, "_open", lambda self, path, mode, **_: io.BytesIO(content[path]))
    assert sum(1 for _ in read_records("hf://datasets/owner/name/a.jsonl")) == len(ROWS)


def test_other_file_systems_are_read_and_written_too(tmp_path):
    url = f"file://{tmp_path}/new/a.jsonl"
    write_files([(url, [LINES])])
    assert sum(1 for _ in read_records(url)) == sum(1 for _ in read_records(put("memory://a.jsonl", LINES))) == 3000
