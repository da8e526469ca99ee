"""The folder that a training run fills: checkpoints on the way, the trained model itself at the end."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..errors import ArgumentError, OutputError
from ..models.leftovers import remove_leftovers, working_names
from .trainer import is_whole, last_whole_checkpoint

logger = logging.getLogger(__name__)

#: What was trained, on what, how, and how it went.
PROVENANCE: Final = "training.json"


def check_output(folder: str, resume: str | bool | None, overwrite: bool) -> Path | None:
    """Whether a run may write into a folder, and the checkpoint that it goes on from.

    What killed runs have left there of what they were writing is removed.

    Args:
        folder: The output folder.
        resume: As transformers has it: `true` for the last whole checkpoint in the folder, or a checkpoint's path.
        overwrite: Start anew.

    Returns:
        The checkpoint, None to start from the beginning.

    Raises:
        ArgumentError: the folder holds something, and nothing says what to do with it.
        OutputError: it cannot be made or written.
    """
    output = Path(folder)
    if output.exists() and not output.is_dir():
        raise OutputError(f"--output_dir {folder} is a file; it must be a folder")
    remove_leftovers(output)
    if resume and str(resume).lower() not in ("true", "false"):
        if not is_whole(Path(str(resume))):
            raise ArgumentError(
                f"--resume_from_checkpoint {resume} is no finished checkpoint of bgekit; `true` takes the last one "
                "that --output_dir has"
            )
        return Path(str(resume))
    wanted = str(resume).lower() == "true"
    if output.is_dir() and any(output.iterdir()) and not wanted and not overwrite:
        raise ArgumentError(
            f"--output_dir {folder} holds something already: give --resume_from_checkpoint true to go on with what is "
            "there, or --overwrite_output_dir to start anew"
        )
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise OutputError(f"cannot write to --output_dir {folder}: {error.strerror or error}") from error
    if overwrite and not wanted:
        for old in output.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
            # Otherwise a later `true` would go on from another run.
            shutil.rmtree(old, ignore_errors=True)
    if not wanted:
        return None
    found = last_whole_checkpoint(output)
    if found is None:
        logger.info("%s holds no finished checkpoint: training starts at the beginning", output)
    return found


def save_final(output: Path, write: Callable[[Path], None], provenance: dict[str, Any]) -> None:
    """Put the trained model into the output folder itself, beside its checkpoints.

    All files are written elsewhere first; a full disk or Ctrl-C leaves the folder as it was.

    Args:
        output: The folder.
        write: Saves the model into a folder that does not exist yet.
        provenance: The content of training.json.

    Raises:
        OutputError: it cannot be written.
    """
    with scratch(output) as folder:
        model = folder / output.resolve().name  # Whose name the README has.
        write(model)
        try:
            (model / PROVENANCE).write_text(json.dumps(provenance, indent=1, default=str) + "\n", encoding="utf-8")
            # config.json comes last: with it the folder is a model.
            for path in sorted(model.iterdir(), key=lambda path: path.name == "config.json"):
                target = output / path.name
                if target.is_dir():
                    shutil.rmtree(target)
                os.replace(path, target)
        except OSError as error:
            raise OutputError(f"cannot save the model to {output}: {error.strerror or error}") from error


@contextmanager
def scratch(output: Path) -> Iterator[Path]:
    """A folder within the output folder, on the same disk, that is gone afterwards."""
    with working_names(output / "scratch") as (folder, _):
        try:
            folder.mkdir()
        except OSError as error:
            raise OutputError(f"cannot write to {output}: {error.strerror or error}") from error
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
