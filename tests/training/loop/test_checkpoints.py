"""The output folder: what may be written there, what is kept, what is removed."""

import os

import pytest

from bgekit.errors import ArgumentError
from bgekit.files.atomic import _host
from bgekit.training.loop.checkpoints import (
    check_optimizer,
    mark_whole,
    prepare_output,
    remove_oldest,
    resume_point,
    scratch,
)


def checkpoint(output, step: int, *, whole: bool = True):
    folder = output / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    if whole:
        mark_whole(folder, {})
        os.utime(folder / "checkpoint_whole.json", (1000 + step, 1000 + step))
    return folder


def names(output) -> list[str]:
    return sorted(path.name for path in output.iterdir())


@pytest.mark.parametrize(
    ("limit", "best", "kept"),
    [
        (None, 5, [0, 5, 10, 15]), (3, None, [5, 10, 15]), (1, None, [15]), (1, 0, [0, 15]), (2, 5, [5, 15]),
        (2, 15, [10, 15]),
    ],
)  # fmt: skip
def test_the_newest_and_the_best_are_kept(tmp_path, limit, best, kept):
    for step in (0, 5, 10, 15):
        checkpoint(tmp_path, step)
    remove_oldest(tmp_path, limit, None if best is None else f"elsewhere/checkpoint-{best}")
    assert names(tmp_path) == sorted(f"checkpoint-{step}" for step in kept)


def test_an_unfinished_checkpoint_pushes_none_out(tmp_path):
    checkpoint(tmp_path, 5)
    checkpoint(tmp_path, 39, whole=False)
    checkpoint(tmp_path, 10)
    remove_oldest(tmp_path, 1, None)
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-39"]


def test_what_a_killed_run_left_is_no_content(tmp_path):
    (tmp_path / f".scratch.{_host()}-{2**22 + 1}-00000000.tmp" / "model").mkdir(parents=True)
    assert prepare_output(str(tmp_path), None, False) is None
    assert names(tmp_path) == []
    with scratch(tmp_path) as folder:
        assert prepare_output(str(tmp_path), True, False) is None
        assert folder.is_dir()
    assert names(tmp_path) == []


def test_looking_changes_nothing(tmp_path):
    """The check of an output folder is one thing, what is removed there another."""
    leftover = tmp_path / f".scratch.{_host()}-{2**22 + 1}-00000000.tmp"
    leftover.mkdir()
    whole = checkpoint(tmp_path, 5)
    checkpoint(tmp_path, 10, whole=False)
    before = names(tmp_path)
    assert resume_point(tmp_path, True, True) == whole
    assert resume_point(tmp_path, str(whole), False) == whole
    assert resume_point(tmp_path, None, True) is None
    with pytest.raises(ArgumentError, match="is not empty"):
        resume_point(tmp_path, None, False)
    with pytest.raises(ArgumentError, match="not a finished checkpoint"):
        resume_point(tmp_path, str(tmp_path / "checkpoint-10"), False)
    assert resume_point(tmp_path / "none", "false", False) is None
    assert names(tmp_path) == before and not (tmp_path / "none").exists()


def test_a_new_run_in_an_old_folder_removes_its_checkpoints(tmp_path):
    checkpoint(tmp_path, 5)
    (tmp_path / "notes.txt").write_text("mine")
    assert prepare_output(str(tmp_path), "true", True) == tmp_path / "checkpoint-5"
    assert prepare_output(str(tmp_path), None, True) is None
    assert names(tmp_path) == ["notes.txt"]


def test_a_run_goes_on_with_the_state_of_its_optimizer_only(tmp_path):
    folder = checkpoint(tmp_path, 5)
    with pytest.raises(ArgumentError, match="no state of the optimiser"):
        check_optimizer(folder, deepspeed=False)
    (folder / "latest").write_text("global_step5")
    check_optimizer(folder, deepspeed=True)
    with pytest.raises(ArgumentError, match="--deepspeed"):
        check_optimizer(folder, deepspeed=False)
    (folder / "optimizer.pt").write_bytes(b"state")
    check_optimizer(folder, deepspeed=False)
