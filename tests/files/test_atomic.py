"""What killed processes leave is removed; what running ones write is not."""

import os
import subprocess
import sys

import pytest

from bgekit.errors import OutputError
from bgekit.files.atomic import (
    _host,
    atomic_file,
    atomic_folder,
    remove_leftovers,
    scratch_folder,
    working_names,
    write_together,
)


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


def test_a_file_is_complete_or_not_there(tmp_path):
    path = tmp_path / "new" / "file"
    with atomic_file(path) as file:
        file.write(b"one")
        assert not path.exists()
    assert path.read_bytes() == b"one"

    def interrupted():
        with atomic_file(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with pytest.raises(OutputError, match=r"cannot draw it: No space left\. Tidy up"), atomic_file(
        path, doing="draw it", advice=". Tidy up"
    ):  # fmt: skip
        raise OSError(28, "No space left")
    assert path.read_bytes() == b"one"
    assert os.listdir(path.parent) == ["file"]


def test_what_a_killed_process_left_of_a_file_is_removed(tmp_path):
    left = tmp_path / f".file.{_host()}-{dead_process()}-00000000.tmp"
    left.write_text("half")
    with atomic_file(tmp_path / "file") as file:
        file.write(b"whole")
    assert os.listdir(tmp_path) == ["file"]


def test_files_that_belong_together(tmp_path):
    def fails():
        yield b"half"
        raise OSError(28, "No space left")

    (tmp_path / "a").write_text("before")
    with pytest.raises(OutputError, match=r"cannot write .*b: No space left"):
        write_together([(tmp_path / "a", [b"new"]), (tmp_path / "b", fails())])
    assert (tmp_path / "a").read_text() == "before"
    write_together([(tmp_path / "a", [b"n", b"ew"]), (tmp_path / "b", [])])
    assert (tmp_path / "a").read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_a_scratch_folder_is_gone_afterwards(tmp_path):
    with scratch_folder(tmp_path / "model") as folder:
        (folder / "sub").mkdir()
        assert folder.parent == tmp_path
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write to"), scratch_folder(tmp_path / "file" / "model"):
        pass
