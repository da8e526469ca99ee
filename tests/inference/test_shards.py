"""Shards: what is written, resuming after every kind of end, and what is refused."""

import errno
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bgekit.data.records import Record, read_records
from bgekit.errors import ArgumentError, DataError, NumericalError, OutputError
from bgekit.files import atomic as outputs
from bgekit.files.atomic import OutputFolder
from bgekit.files.hashing import file_sha256
from bgekit.inference.shards import encode_to_shards, load_shards

PROGRAM = Path(__file__).with_name("fake_encoder.py")
_spec = importlib.util.spec_from_file_location("fake_encoder", PROGRAM)
fake_encoder = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fake_encoder)
FakeEncoder = fake_encoder.FakeEncoder


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


@pytest.fixture
def corpus(tmp_path):
    """95 records in one file: with shards of 10 texts, nine full ones and a half one."""
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"id": f"d{n}", "text": f"text number {n}"}) + "\n" for n in range(95)))
    return path


@pytest.fixture
def whole(corpus, tmp_path):
    """The output of a run that nothing disturbed."""
    encode_to_shards(FakeEncoder(), read_records(corpus), tmp_path / "whole", shard_size=10)
    return contents(tmp_path / "whole")


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), *map(str, arguments)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def wait_for(condition, process, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "the other process does not get on"
        time.sleep(0.005)


# --- what is written


def test_files_and_manifest(corpus, tmp_path):
    model = FakeEncoder()
    report = encode_to_shards(model, read_records(corpus), tmp_path / "out", shard_size=10)
    names = [f"shard-{n:05d}{suffix}" for n in range(10) for suffix in (".ids.jsonl", ".json", ".npy")]
    assert sorted(contents(tmp_path / "out")) == sorted(["manifest.json", *names])
    assert (report.texts, report.kept, report.shards, report.tokens) == (95, 0, 10, 285)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["complete"] is True
    assert manifest["model_card"]["pooling"] == "cls"
    assert manifest["model_fingerprint"] == model.fingerprint
    assert manifest["precision"] == "float32"
    assert manifest["texts"] == 95
    assert manifest["settings"]["shard_size"] == 10
    assert manifest["input_files"] == [str(corpus)]
    assert [shard["texts"] for shard in manifest["shards"]] == [10] * 9 + [5]


def test_load_shards(corpus, tmp_path):
    model = FakeEncoder()
    encode_to_shards(model, read_records(corpus), tmp_path / "out", shard_size=10)
    shards = load_shards(tmp_path / "out")
    assert len(shards) == 95
    assert shards.dimension == 16
    assert shards.ids == [f"d{n}" for n in range(95)]
    assert shards.texts() is None
    expected = model.encode([f"text number {n}" for n in range(95)])
    np.testing.assert_array_equal(shards.vectors(), expected)
    parts = list(shards.iter_shards())
    assert [len(ids) for ids, _ in parts] == [10] * 9 + [5]
    assert isinstance(parts[0][1], np.memmap)
    np.testing.assert_array_equal(np.concatenate([vectors for _, vectors in parts]), expected)
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "shard-00000.npy"), expected[:10])


def test_store_texts_and_float16(corpus, tmp_path):
    encode_to_shards(
        FakeEncoder(), read_records(corpus), tmp_path / "out", shard_size=50, store_texts=True, dtype="float16"
    )
    shards = load_shards(tmp_path / "out")
    assert shards.texts() == [f"text number {n}" for n in range(95)]
    assert shards.vectors().dtype == np.float16


def test_cut_repaired_and_skipped_are_counted_and_named(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"text": "a b"}, {"text": "long " * 20}, {"text": "\ud800"}, {"text": 5}, {"text": "long " * 20}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = encode_to_shards(FakeEncoder(), read_records(path, on_error="skip"), tmp_path / "out", shard_size=2)
    assert (report.truncated, report.repaired, report.skipped) == (2, 1, 1)
    manifest = load_shards(tmp_path / "out").manifest
    assert manifest["truncated"] == {"count": 2, "first_ids": ["1", "4"]}
    assert manifest["repaired"] == {"count": 1, "first_ids": ["2"]}
    assert manifest["skipped"]["count"] == 1
    assert manifest["skipped"]["lines"][0]["file"] == str(path)
    assert manifest["skipped"]["lines"][0]["line"] == 4


def test_lone_surrogates_in_ids_and_texts(tmp_path):
    records = [Record("\ud800", "\udfff x"), Record("中", "文")]
    encode_to_shards(FakeEncoder(), records, tmp_path / "out", store_texts=True)
    shards = load_shards(tmp_path / "out")
    assert shards.ids == ["\ud800", "中"]
    assert shards.texts() == ["\udfff x", "文"]


def test_kind_decides_the_prompt(corpus, tmp_path):
    model = FakeEncoder(query="q: ")
    for kind in ("query", "document"):
        encode_to_shards(model, read_records(corpus), tmp_path / kind, kind=kind)
    queries, documents = (load_shards(tmp_path / kind).vectors() for kind in ("query", "document"))
    np.testing.assert_array_equal(queries, model.encode_queries([f"text number {n}" for n in range(95)]))
    assert not np.allclose(queries, documents)


def test_equal_texts_of_a_shard_are_computed_once(tmp_path):
    model = FakeEncoder()
    records = [Record(str(n), f"text {n % 5}") for n in range(20)]
    encode_to_shards(model, records, tmp_path / "out", shard_size=10)
    assert model.encoded == [f"text {n}" for n in range(5)] * 2


def test_empty_input(tmp_path, caplog):
    report = encode_to_shards(FakeEncoder(), [], tmp_path / "out")
    assert (report.texts, report.shards) == (0, 0)
    assert "no records" in caplog.text
    shards = load_shards(tmp_path / "out")
    assert (len(shards), shards.ids, shards.vectors().shape) == (0, [], (0, 16))


def test_float16_overflow_is_an_error(tmp_path, monkeypatch):
    model = FakeEncoder()
    monkeypatch.setattr(model, "_vector", lambda text: np.full(16, 1e6, dtype=np.float32))
    with pytest.raises(NumericalError, match="the vector of 'a' is too large for float16"):
        encode_to_shards(model, [Record("a", "x")], tmp_path / "out", dtype="float16")


def test_impossible_shard_size(tmp_path):
    with pytest.raises(ArgumentError, match="shard_size"):
        encode_to_shards(FakeEncoder(), [], tmp_path / "out", shard_size=0)


def test_memory_does_not_grow_with_the_input(tmp_path):
    def peak(count):
        records = (Record(str(n), f"text number {n}") for n in range(count))
        tracemalloc.start()
        model = FakeEncoder()
        model.encoded = NoList()
        encode_to_shards(model, records, tmp_path / str(count), shard_size=100)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    # A shard costs the manifest about a kilobyte.
    assert peak(8_000) < peak(2_000) + 200_000


class NoList(list):
    def __iadd__(self, other):
        return self


# --- resuming


@pytest.mark.parametrize("finished", [0, 1, 3, 8])
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_kill_and_rerun_gives_the_same_bytes(corpus, whole, tmp_path, finished):
    out, log = tmp_path / "out", tmp_path / "log"
    process = start(out, corpus, "--delay", "0.05", "--log", log)
    wait_for(lambda: len(list(out.glob("shard-*.json"))) >= finished and log.exists(), process)
    process.kill()
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in out.glob("shard-*.npy")}
    assert len(kept) < 10
    model = FakeEncoder()
    report = encode_to_shards(model, read_records(corpus), out, shard_size=10)
    assert contents(out) == whole
    assert report.kept >= 10 * finished
    # What was finished is not touched, and no more than one shard is encoded again.
    finished_before = [path for path, time_ns in kept.items() if path.stat().st_mtime_ns == time_ns]
    assert len(finished_before) >= len(kept) - 1
    assert len(log.read_text().splitlines()) + len(model.encoded) <= 95 + 10


@pytest.mark.parametrize("name", ["shard-00003.npy", "shard-00003.ids.jsonl", "shard-00003.json"])
@pytest.mark.parametrize("harm", ["missing", "cut", "changed"])
def test_a_damaged_shard_is_made_again(corpus, whole, tmp_path, name, harm, caplog):
    out = tmp_path / "whole"
    data = (out / name).read_bytes()
    if harm == "missing":
        (out / name).unlink()
    else:
        (out / name).write_bytes(data[:-10] if harm == "cut" else b"x" + data[1:])
    model = FakeEncoder()
    report = encode_to_shards(model, read_records(corpus), out, shard_size=10)
    assert contents(out) == whole
    assert model.encoded == [f"text number {n}" for n in range(30, 40)]
    assert report.kept == 85
    assert name in caplog.text or (name, harm) == ("shard-00003.json", "missing")


def test_a_finished_run_does_nothing_when_repeated(corpus, whole, tmp_path):
    out = tmp_path / "whole"
    times = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    model = FakeEncoder()
    report = encode_to_shards(model, read_records(corpus), out, shard_size=10)
    assert (report.kept, model.encoded) == (95, [])
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == times
    assert contents(out) == whole


def test_a_run_that_read_standard_input_is_resumed_from_it(corpus, whole, tmp_path, monkeypatch):
    (tmp_path / "whole" / "shard-00009.json").unlink()
    with corpus.open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        report = encode_to_shards(FakeEncoder(), read_records("-"), tmp_path / "whole", shard_size=10)
    assert report.kept == 90


def test_a_bad_line_keeps_the_shards_before_it(corpus, tmp_path):
    lines = corpus.read_text().splitlines()
    bad = tmp_path / "bad.jsonl"
    bad.write_text("\n".join([*lines[:45], "{", *lines[45:]]))
    with pytest.raises(DataError, match=r"bad\.jsonl, line 46: not valid JSON"):
        encode_to_shards(FakeEncoder(), read_records(bad), tmp_path / "out", shard_size=10)
    assert len(list((tmp_path / "out").glob("*.npy"))) == 4
    with pytest.raises(OutputError, match="is not finished"):
        load_shards(tmp_path / "out")
    model = FakeEncoder()
    report = encode_to_shards(model, read_records(bad, on_error="skip"), tmp_path / "out", shard_size=10)
    assert (report.kept, report.texts, report.skipped, len(model.encoded)) == (40, 95, 1, 55)


# --- what is refused


CHANGES = {
    "shard_size": ({"shard_size": 20}, {}),
    "kind": ({"kind": "query"}, {}),
    "dtype": ({"dtype": "float16"}, {}),
    "max_length": ({"max_length": 5}, {}),
    "batch_size": ({"batch_size": 5}, {}),
    "store_texts": ({"store_texts": True}, {}),
    "model fingerprint": ({}, {"seed": "1"}),
    "model prompts": ({}, {"query": "q: "}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_setting_or_model_is_refused_by_name(corpus, whole, tmp_path, name):
    options, model = CHANGES[name]
    options = {"shard_size": 10, **options}
    out = tmp_path / "whole"
    with pytest.raises(OutputError, match=rf"{name} was .* and is .* now.*--overwrite"):
        encode_to_shards(FakeEncoder(**model), read_records(corpus), out, **options)
    assert contents(out) == whole
    encode_to_shards(FakeEncoder(**model), read_records(corpus), out, overwrite=True, **options)
    assert contents(out) != whole


class OnAnotherCpu(FakeEncoder):
    """The same model, computed by some kind of CPU."""

    kind = "amx"

    @property
    def arithmetic(self):
        return {"class": f"{self.kind}-bits", "torch": "2.13.0", "cpu": self.kind}


def test_another_arithmetic_is_refused_unless_allowed_and_then_recorded(corpus, tmp_path, caplog):
    there, here, out = OnAnotherCpu(), OnAnotherCpu(), tmp_path / "out"
    here.kind = "avx2"
    encode_to_shards(there, read_records(corpus), out, shard_size=10)
    alone = [{"class": "amx-bits", "torch": "2.13.0", "cpu": "amx"}]
    assert json.loads((out / "manifest.json").read_text())["arithmetic"] == alone
    whole = contents(out)
    encode_to_shards(here, read_records(corpus), out, shard_size=10)  # Nothing is left to compute.
    assert contents(out) == whole
    (out / "shard-00004.json").unlink()
    with pytest.raises(OutputError, match=r"on amx \(amx-bits\), this is .* avx2 .*--allow-mixed continues"):
        encode_to_shards(here, read_records(corpus), out, shard_size=10)
    assert not (out / "shard-00004.json").exists()
    encode_to_shards(here, read_records(corpus), out, shard_size=10, allow_mixed=True)
    assert "avx2" in caplog.text
    manifest = json.loads((out / "manifest.json").read_text())
    assert [each["cpu"] for each in manifest["arithmetic"]] == ["amx", "avx2"]
    assert manifest["complete"]
    (out / "shard-00004.json").unlink()
    encode_to_shards(here, read_records(corpus), out, shard_size=10)  # Both are known by now.
    assert json.loads((out / "manifest.json").read_text()) == manifest


def test_a_manifest_without_arithmetic_is_continued(corpus, whole, tmp_path, caplog):
    (tmp_path / "whole" / "shard-00009.json").unlink()
    with caplog.at_level("INFO"):
        encode_to_shards(OnAnotherCpu(), read_records(corpus), tmp_path / "whole", shard_size=10)
    assert "does not say how its shards were computed" in caplog.text
    manifest = json.loads((tmp_path / "whole" / "manifest.json").read_text())
    assert [each["cpu"] for each in manifest["arithmetic"]] == ["amx"]


@pytest.mark.parametrize("change", ["text", "id", "longer", "shorter", "order"])
def test_another_input_is_refused(corpus, whole, tmp_path, change):
    lines = corpus.read_text().splitlines()
    changed = {
        "text": [*lines[:50], lines[50].replace("number", "nr"), *lines[51:]],
        "id": [*lines[:50], lines[50].replace("d50", "e50"), *lines[51:]],
        "longer": [*lines, '{"text": "one more"}'],
        "shorter": lines[:90],
        "order": [*lines[:50], lines[51], lines[50], *lines[52:]],
    }
    corpus.write_text("\n".join(changed[change]))
    out = tmp_path / "whole"
    where = {"longer": "shard 9", "shorter": "shorter now"}.get(change, "shard 5, which starts at record 50")
    with pytest.raises(OutputError, match=rf"the input .*{where}.*--overwrite"):
        encode_to_shards(FakeEncoder(), read_records(corpus), out, shard_size=10)
    assert contents(out) == whole


def test_an_existing_output_is_refused_without_resume(corpus, whole, tmp_path):
    with pytest.raises(OutputError, match="already holds shards"):
        encode_to_shards(FakeEncoder(), read_records(corpus), tmp_path / "whole", shard_size=10, resume=False)


def test_foreign_or_damaged_manifests(corpus, whole, tmp_path):
    manifest = tmp_path / "whole" / "manifest.json"
    for content, message in (("{}", "not a manifest of encoded shards"), ('{"a', "damaged")):
        manifest.write_text(content)
        with pytest.raises(OutputError, match=f"{message}.*--overwrite"):
            encode_to_shards(FakeEncoder(), read_records(corpus), tmp_path / "whole", shard_size=10)
    manifest.unlink()
    with pytest.raises(OutputError, match=r"without manifest\.json"):
        encode_to_shards(FakeEncoder(), read_records(corpus), tmp_path / "whole", shard_size=10)
    encode_to_shards(FakeEncoder(), read_records(corpus), tmp_path / "whole", shard_size=10, overwrite=True)
    assert contents(tmp_path / "whole") == whole


def test_overwrite_leaves_other_files_alone(corpus, whole, tmp_path):
    (tmp_path / "whole" / "notes.txt").write_text("mine")
    encode_to_shards(FakeEncoder(), read_records(corpus), tmp_path / "whole", shard_size=50, overwrite=True)
    assert len(list((tmp_path / "whole").glob("*.npy"))) == 2
    assert (tmp_path / "whole" / "notes.txt").read_text() == "mine"


def test_load_shards_of_something_else(tmp_path, whole):
    with pytest.raises(OutputError, match=r"is not a folder of encoded shards: it has no manifest\.json"):
        load_shards(tmp_path)
    (tmp_path / "whole" / "shard-00001.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(OutputError, match=r"shard-00001\.npy is missing or damaged"):
        load_shards(tmp_path / "whole").vectors()
    (tmp_path / "whole" / "shard-00001.ids.jsonl").write_text('{"id": "1"}\n')
    with pytest.raises(OutputError, match="has 1 lines, its shard has 10 vectors"):
        _ = load_shards(tmp_path / "whole").ids


# --- who may write


def test_a_second_writer_is_refused_and_the_lock_ends_with_its_holder(corpus, tmp_path):
    out = tmp_path / "out"
    process = start(out, corpus, "--delay", "0.5")
    try:
        wait_for(lambda: (out / "manifest.json").exists(), process)
        with pytest.raises(OutputError, match=f"is being written by process {process.pid}"), OutputFolder(out):
            pass
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    with OutputFolder(out):
        pass
    assert not (out / ".lock").exists()


def test_a_second_writer_in_the_same_process(tmp_path):
    with (
        OutputFolder(tmp_path / "out") as first,
        pytest.raises(OutputError, match="being written"),
        OutputFolder(first.path),
    ):
        pass


@pytest.mark.parametrize("reason", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_system_without_locks_is_warned_of(tmp_path, monkeypatch, caplog, reason):
    fcntl = pytest.importorskip("fcntl")

    def unsupported(*_):
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / ".lock").write_text("1")  # Of a process that was killed.
    for _ in range(2):
        with OutputFolder(folder):
            (folder / ".lock").write_text("1")
    assert caplog.text.count("cannot be locked (") == 2


def test_a_folder_made_in_vain_is_removed(tmp_path):
    class StopError(Exception):
        pass

    with pytest.raises(StopError), OutputFolder(tmp_path / "a" / "out"):
        raise StopError
    assert not (tmp_path / "a" / "out").exists()


# --- outputs that cannot be written


def test_unwritable_outputs(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match=r"(is a file|Not a directory)"), OutputFolder(path):
            pass
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder in which nobody can write")
def test_unwritable_folder():
    with pytest.raises(OutputError, match="cannot write to the folder /proc/bgekit"), OutputFolder("/proc/bgekit"):
        pass


def test_full_disk(corpus, whole, tmp_path, monkeypatch):
    class FullFile(outputs.HashedFile):
        room = 40

        def write(self, data):
            FullFile.room -= 1
            if FullFile.room < 0:
                self._file.write(bytes(data)[:5])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(outputs, "HashedFile", FullFile)
        with pytest.raises(OutputError, match=r"No space left on device. \d finished shards? stays? valid"):
            encode_to_shards(FakeEncoder(), read_records(corpus), out, shard_size=10)
    assert not list(out.glob("*.tmp"))
    finished = len(list(out.glob("shard-*.json")))
    assert finished > 0
    report = encode_to_shards(FakeEncoder(), read_records(corpus), out, shard_size=10)
    assert report.kept == 10 * finished
    assert contents(out) == whole


def test_really_full_disk(corpus, whole, tmp_path):
    """On a file system of its own, where that can be mounted."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("needs the right to mount a file system")
    try:
        process = start(small / "out", corpus)
        _, message = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "No space left on device" in message
        assert " valid; the same command continues from there" in message
        assert not list(small.rglob("*.tmp"))
        finished = len(list(small.rglob("shard-*.json")))
        assert 0 < finished < 10
        subprocess.run(["mount", "-o", "remount,size=4m", str(small)], check=True)
        report = encode_to_shards(FakeEncoder(), read_records(corpus), small / "out", shard_size=10)
        assert report.kept == 10 * finished
        assert contents(small / "out") == whole
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
def test_file_size_limit(corpus, tmp_path):
    process = start(tmp_path / "out", corpus, "--shard-size", "90", "--file-limit", "4000")
    _, message = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "shard-00000.npy: File too large" in message
    assert sorted(contents(tmp_path / "out")) == ["manifest.json"]


def test_leftovers_of_a_killed_run_are_removed(corpus, whole, tmp_path):
    out = tmp_path / "whole"
    (out / "shard-00004.npy.tmp").write_bytes(b"half")
    encode_to_shards(FakeEncoder(), read_records(corpus), out, shard_size=10)
    assert contents(out) == whole


class TestMetadata:
    """Columns of metadata are stored beside the vectors, a file per shard."""

    @pytest.fixture
    def rows(self):
        return [Record(str(row), f"text {row}", metadata={"n": row, "tags": ["x"] * (row % 2)}) for row in range(25)]

    def encoded(self, embedder, records, folder, **options):
        return encode_to_shards(embedder(), records, folder, shard_size=10, **options)

    def test_files(self, embedder, rows, tmp_path):
        self.encoded(embedder, rows, tmp_path / "v")
        shards = load_shards(tmp_path / "v")
        assert shards.metadata.to_pylist() == [dict(record.metadata) for record in rows]
        entries = shards.manifest["shards"]
        assert [entry["metadata"] for entry in entries] == [f"shard-{n:05d}.metadata.arrow" for n in range(3)]
        for entry in entries:
            assert file_sha256(tmp_path / "v" / entry["metadata"]) == entry["metadata_sha256"]

    def test_absent_without(self, embedder, tmp_path):
        self.encoded(embedder, [Record("a", "x"), Record("b", "y", metadata={})], tmp_path / "v")
        assert load_shards(tmp_path / "v").metadata is None
        assert not list((tmp_path / "v").glob("*.arrow"))
        assert "metadata" not in (tmp_path / "v" / "manifest.json").read_text()

    def test_some_shards_have_none(self, embedder, tmp_path):
        records = [Record(str(row), "x", metadata={"n": row} if row >= 20 else {}) for row in range(25)]
        self.encoded(embedder, records, tmp_path / "v")
        assert load_shards(tmp_path / "v").metadata.column("n").to_pylist() == [None] * 20 + list(range(20, 25))

    def test_a_rerun_keeps_what_is_the_same(self, embedder, rows, tmp_path):
        self.encoded(embedder, rows, tmp_path / "v")
        before = {path.name: path.read_bytes() for path in (tmp_path / "v").iterdir()}
        assert self.encoded(embedder, rows, tmp_path / "v").kept == 25
        (tmp_path / "v" / "shard-00001.metadata.arrow").write_bytes(b"x")
        assert self.encoded(embedder, rows, tmp_path / "v").kept == 15
        assert {path.name: path.read_bytes() for path in (tmp_path / "v").iterdir()} == before
        changed = [*rows[:-1], replace(rows[-1], metadata={"n": 0})]
        with pytest.raises(OutputError, match="the input has changed in shard 2"):
            self.encoded(embedder, changed, tmp_path / "v")
        self.encoded(embedder, [Record("a", "x")], tmp_path / "v", overwrite=True)
        assert not list((tmp_path / "v").glob("*.arrow"))

    def test_other_columns_are_another_run(self, embedder, tmp_path):
        path = tmp_path / "a.jsonl"
        path.write_text('{"text": "x", "n": 1}\n')
        self.encoded(embedder, read_records(path), tmp_path / "v")
        with pytest.raises(OutputError, match=r"keep was None and is \['n'\] now"):
            self.encoded(embedder, read_records(path, keep="n"), tmp_path / "v")

    def test_mixed_types_stop_the_run(self, embedder, rows, tmp_path):
        mixed = [*rows, *(Record(f"m{row}", "y", metadata={"n": "x"}) for row in range(10))]
        with pytest.raises(DataError, match=r"record 25: the column n is a string here \('x'\) and a number before"):
            self.encoded(embedder, mixed, tmp_path / "v")
        mixed = [*rows[:20], *(Record(f"m{row}", "y", metadata={"n": "x"}) for row in range(10))]
        with pytest.raises(DataError, match="records from 20 on: the column n is of the type string here and int64"):
            self.encoded(embedder, mixed, tmp_path / "w")

    @pytest.mark.parametrize("content", [None, b"", b"x" * 1000])
    def test_damage(self, embedder, rows, tmp_path, content):
        self.encoded(embedder, rows, tmp_path / "v")
        path = tmp_path / "v" / "shard-00001.metadata.arrow"
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(OutputError, match=r"shard-00001\.metadata\.arrow is missing or damaged"):
            _ = load_shards(tmp_path / "v").metadata
