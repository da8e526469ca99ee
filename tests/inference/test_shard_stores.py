"""Shards at a URL: the same bytes as in a folder, an older state or none for readers, and the end of a run by force."""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time

import fsspec
import numpy as np
import pytest

from bgekit.data.records import Record, read_records
from bgekit.errors import DataError, OutputError
from bgekit.files.transfer import local_place
from bgekit.inference.shard_stores import RemoteShards
from bgekit.inference.shards import encode_to_shards, load_shards
from inference.fake_encoder import FakeEncoder

PROGRAM = os.path.join(os.path.dirname(__file__), "fake_encoder.py")
ROWS = [{"id": f"d{n}", "text": f"text number {n}", "year": 1900 + n} for n in range(95)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def stored(url):
    """Content by name of all files below a URL."""
    files, path = fsspec.core.url_to_fs(url)
    return {name: files.cat_file(f"{path}/{name}") for name in sorted(listed(url))}


def listed(url):
    files, path = fsspec.core.url_to_fs(url)
    files.invalidate_cache()
    return [name.removeprefix(path).lstrip("/") for name in files.find(path)]


@pytest.fixture
def corpus(bucket):
    files, path = fsspec.core.url_to_fs(bucket)
    files.pipe_file(f"{path}/corpus.jsonl", LINES)
    return f"{bucket}/corpus.jsonl"


def encode(corpus, output, **options):
    records = read_records(corpus, keep=options.pop("keep", None))
    return encode_to_shards(FakeEncoder(delay=options.pop("delay", 0)), records, output, shard_size=10, **options)


def test_shards_at_a_url_hold_the_bytes_of_those_in_a_folder(corpus, bucket, tmp_path):
    encode(corpus, tmp_path / "local", keep="year", store_texts=True)
    assert encode(corpus, f"{bucket}/out", keep="year", store_texts=True).shards == 10
    local, remote = stored(f"file://{tmp_path}/local"), stored(f"{bucket}/out")
    local.pop(".lock", None)
    assert sorted(remote) != sorted(local)  # Names say what is in the files.
    assert {name.split(".")[0] + name.partition(".")[2].partition(".")[2] for name in remote if "shard-" in name} == {
        name.split(".")[0] + name.partition(".")[2] for name in local if "shard-" in name
    }
    assert sorted(remote[name] for name in remote if "shard-" in name) == sorted(
        local[name] for name in local if "shard-" in name
    )
    here, there = load_shards(tmp_path / "local"), load_shards(f"{bucket}/out")
    np.testing.assert_array_equal(here.vectors(), there.vectors())
    assert (here.ids, here.texts(), here.metadata) == (there.ids, there.texts(), there.metadata)
    before = stored(f"{bucket}/out")
    assert encode(corpus, f"{bucket}/out", keep="year", store_texts=True).kept == 95
    assert stored(f"{bucket}/out") == before


def test_killed_and_run_again_a_url_has_the_same_files(corpus, bucket):
    encode(corpus, f"{bucket}/whole")
    for shards, more in ((1, 1), (6, 5)):
        command = [sys.executable, PROGRAM, f"{bucket}/out", corpus, "--hang-after", str(more)]
        with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
            while (
                sum(name.startswith("shard-") and name.endswith(".json") for name in listed(f"{bucket}/out")) < shards
            ):
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
        assert "manifest.json" not in stored(f"{bucket}/out")
        with pytest.raises(OutputError, match="is not finished: run the same bge encode again"):
            load_shards(f"{bucket}/out")
    report = encode(corpus, f"{bucket}/out")
    assert report.kept == 60
    assert stored(f"{bucket}/out") == stored(f"{bucket}/whole")


def test_a_reader_sees_the_older_state_until_all_of_a_new_one_is_there(corpus, bucket):
    url = f"{bucket}/out"
    encode(corpus, url, dtype="float16")
    older = stored(url)
    run = threading.Thread(target=encode, args=(corpus, url), kwargs={"overwrite": True, "delay": 0.02})
    run.start()
    seen = []
    while run.is_alive():
        shards = load_shards(url)
        assert len(shards.ids) == len(shards) == 95
        np.testing.assert_allclose(shards.vectors(), FakeEncoder().encode([row["text"] for row in ROWS]), atol=1e-3)
        seen.append(str(shards.vectors().dtype))
    assert seen[0] == "float16" and sorted(seen) == seen
    newer = stored(url)
    assert load_shards(url).vectors().dtype == np.float32
    assert not {name for name in newer if name in older and name.endswith(".npy")}
    encode(corpus, f"{bucket}/fresh")
    assert newer == stored(f"{bucket}/fresh")  # Nothing of the older state, or of the run, is left.


def test_a_run_that_starts_over_and_is_stopped_leaves_the_older_state_and_goes_on(corpus, bucket):
    url = f"{bucket}/out"
    encode(corpus, url, dtype="float16")
    older = stored(url)
    records = [Record(row["id"], row["text"]) for row in ROWS]

    def broken():
        yield from records[:40]
        raise DataError("the input breaks")

    with pytest.raises(DataError, match="the input breaks"):
        encode_to_shards(FakeEncoder(), broken(), url, shard_size=10, overwrite=True)
    assert load_shards(url).vectors().dtype == np.float16
    assert {name: content for name, content in stored(url).items() if name in older and not name.endswith(".json")} == {
        name: content for name, content in older.items() if not name.endswith(".json")
    }
    with pytest.raises(OutputError, match=r"was made by another run: dtype was 'float32' and is 'float16' now"):
        encode_to_shards(FakeEncoder(), records, url, shard_size=10, dtype="float16")
    assert encode_to_shards(FakeEncoder(), records, url, shard_size=10).kept == 40
    assert load_shards(url).vectors().dtype == np.float32


def test_input_that_has_changed_and_shards_that_are_there_are_refused_as_in_a_folder(corpus, bucket):
    url = f"{bucket}/out"
    encode(corpus, url)
    files, path = fsspec.core.url_to_fs(corpus)
    files.pipe_file(path, LINES.replace(b"number 31", b"number x"))
    with pytest.raises(OutputError, match=rf"{url} was made by another run: the input has changed in shard 3"):
        encode(corpus, url)
    files.pipe_file(path, LINES)
    with pytest.raises(OutputError, match="already holds shards"):
        encode(corpus, url, resume=False)


def test_shards_of_which_a_file_is_gone_or_damaged_are_not_read(corpus, bucket):
    url = f"{bucket}/out"
    encode(corpus, url)
    files, path = fsspec.core.url_to_fs(url)
    name = next(name for name in stored(url) if name.endswith(".npy"))
    content = files.cat_file(f"{path}/{name}")
    files.pipe_file(f"{path}/{name}", content[:-1] + b"\x00")
    with pytest.raises(OutputError, match=f"{url}/{name} is damaged: its content is not that of its name"):
        load_shards(url)
    files.rm_file(f"{path}/{name}")
    with pytest.raises(OutputError, match=f"{url}/{name} is missing, and manifest.json names it"):
        load_shards(url)
    assert encode(corpus, url).kept == 85  # The shard is made again.
    assert load_shards(url).vectors().shape == (95, 16)


def test_a_copy_in_the_cache_is_used_as_long_as_it_is_whole(corpus, bucket, object_store):
    url = f"{bucket}/out"
    encode(corpus, url)
    first = load_shards(url)
    wanted, before = first.vectors(), object_store.answered
    assert load_shards(url).folder == first.folder
    assert object_store.answered - before < 20_000  # The manifest and a list.
    file = next(first.folder.glob("*.npy"))
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    np.testing.assert_array_equal(load_shards(url).vectors(), wanted)
    encode(corpus, url, dtype="float16", overwrite=True)
    load_shards(url)
    assert len(list(local_place("copies", url).iterdir())) == 1


def test_a_store_can_be_sent_to_another_process_that_writes_shards_of_the_same_run(bucket):
    manifest = {"model_card": {}, "model_fingerprint": "f", "precision": "float32", "settings": {}}
    store = RemoteShards(f"{bucket}/out", manifest)
    other = pickle.loads(pickle.dumps(store))
    with other.create(7, ".npy") as file:
        file.write(b"some")
    other.finish(7, dict.fromkeys(
        ("first", "texts", "tokens", "truncated", "repaired", "input_sha256", "vectors_sha256", "ids_sha256"), 0
    ))  # fmt: skip
    assert store.facts(7) is not None
    assert store.holds(7, ".npy", file.sha256)
