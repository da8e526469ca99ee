"""What killed processes leave is removed; what running ones write is not."""

import os
import subprocess
import sys

from bgekit.files.atomic import _host, atomic_folder, remove_leftovers, working_names


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def make(folder, name: str, host: str, process: int, ending: str, token: str = "0" * 8):
    path = folder / f".{name}.{host}-{process}-{token}.{ending}"
    path.mkdir()
    (path / "file").write_text("content")
    return path


def test_what_a_killed_process_left_is_removed(tmp_path):
    dead = dead_process()
    left = [make(tmp_path, name, _host(), dead, "tmp") for name in ("model", "scratch", "checkpoint-5")]
    others = [tmp_path / ".model.tmp", tmp_path / ".git", tmp_path / ".model.1234.tmp"]
    for path in others:
        path.mkdir()
    remove_leftovers(tmp_path, "model")
    assert [path.exists() for path in left] == [False, True, True]
    remove_leftovers(tmp_path)
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in others)


def test_what_a_running_process_writes_stays(tmp_path):
    running = make(tmp_path, "model", _host(), os.getppid(), "tmp")
    elsewhere = make(tmp_path, "model", "f" * 8, dead_process(), "tmp")
    earlier = make(tmp_path, "model", _host(), os.getpid(), "tmp")  # An earlier process of the same number.
    long_ago = make(tmp_path, "model", "e" * 8, 1, "tmp")
    os.utime(long_ago, (0, 0))
    with working_names(tmp_path / "model") as (own, _):
        own.mkdir()
        remove_leftovers(tmp_path)
        assert own.exists()
    assert running.exists() and elsewhere.exists()
    assert not earlier.exists() and not long_ago.exists()


def test_a_model_that_was_being_replaced_gets_its_name_back(tmp_path):
    make(tmp_path, "model", _host(), dead_process(), "old")
    remove_leftovers(tmp_path)
    assert (tmp_path / "model" / "file").read_text() == "content"
    make(tmp_path, "model", _host(), dead_process(), "old")
    with atomic_folder(tmp_path / "model") as folder:
        (folder / "file").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "file").read_text() == "new"
