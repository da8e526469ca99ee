"""The folder that a training run fills: checkpoints on the way, the trained model itself at the end."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ...errors import ArgumentError, OutputError
from ...files.atomic import atomic_file, remove_leftovers, scratch_folder, usual_modes
from ...models.sentence_transformers_files import short_names, shown_name

#: Written last into a checkpoint: one without it was not finished.
WHOLE: Final = "checkpoint_whole.json"
#: Arguments by which the best model is told. A run that goes on may begin or cease to measure, but not differ in these.
JUDGING: Final = frozenset({"metric_for_best_model", "greater_is_better", "eval_split", "rerank_top_k"})
#: What counts only where both runs have it; `check_optimizer` asks whether both are DeepSpeed's.
_WHERE_BOTH: Final = frozenset({"evaluation data", "--deepspeed", *(f"--{name}" for name in JUDGING)})
_CHECKPOINT: Final = re.compile(rf"^{PREFIX_CHECKPOINT_DIR}-(\d+)$")


def mark_whole(folder: Path, identity: Mapping[str, Any]) -> None:
    """Say that a checkpoint is finished, after all of it is on the disk, and of which run it is."""
    usual_modes(folder)
    files = {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    for name in files:
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
    with atomic_file(folder / WHOLE) as file:
        file.write(json.dumps({"files": files, "run": identity}, indent=1).encode())


def is_whole(folder: Path) -> bool:
    """Whether a checkpoint was finished, and all of its files are as long as they were then."""
    try:
        files: dict[str, int] = json.loads((folder / WHOLE).read_text(encoding="utf-8"))["files"]
        return all((folder / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def rotate(output: Path, limit: int | None, best: str | None) -> None:
    """Remove the oldest finished checkpoints above a limit, but neither the newest nor the best.

    Unfinished ones do not count: one of a higher step would push out those that a run can go on from.
    """
    if limit is None or limit <= 0:
        return
    found = [path for path in output.glob("*") if _CHECKPOINT.match(path.name) and is_whole(path)]
    found.sort(key=lambda path: (path / WHOLE).stat().st_mtime_ns)
    kept = [*found[-1:], *(path for path in found[:-1] if best is not None and path.name == Path(best).name)]
    spare = [path for path in found if path not in kept]
    for path in spare[: max(len(found) - max(limit, len(kept)), 0)]:
        shutil.rmtree(path, ignore_errors=True)


def check_same_run(folder: Path, identity: Mapping[str, Any]) -> None:
    """Raise ArgumentError unless a checkpoint is of a run that does the same with the same data in the same batches."""
    then = json.loads((folder / WHOLE).read_text(encoding="utf-8"))["run"]
    now = json.loads(json.dumps(dict(identity)))
    differing = [
        name if name.endswith("data") else f"{name} ({then.get(name)} there, {value} here)"
        for name, value in now.items()
        if then.get(name) != value and not (name in _WHERE_BOTH and None in (then.get(name), value))
    ]
    if differing:
        raise ArgumentError(
            f"{folder} is of another run, which differs in {', '.join(differing)}. Give the arguments of that run; "
            f"--overwrite_output_dir to start anew; or --model {folder} and another --output_dir to start from its "
            "weights"
        )


def check_optimizer(folder: Path, *, deepspeed: bool) -> None:
    """Raise ArgumentError unless a checkpoint has the state of the optimiser, in the form that this run reads."""
    if (folder / "latest").is_file() if deepspeed else any(folder.glob("optimizer.*")):
        return
    kind = "of DeepSpeed" if deepspeed else "of a run without DeepSpeed"
    raise ArgumentError(
        f"{folder} has no state of the optimiser {kind} to go on with: give --deepspeed as that run did, or start from "
        f"its weights with --model {folder}"
    )


def last_whole_checkpoint(output: Path) -> Path | None:
    """The newest finished checkpoint in a folder; unfinished ones are passed over with a log line."""
    found = [(int(match[1]), path) for path in output.glob("*") if (match := _CHECKPOINT.match(path.name))]
    for _, path in sorted(found, reverse=True):
        if is_whole(path):
            return path
        logger.warning("%s was not finished when its run ended: an older checkpoint is taken", path)
    return None


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


def scratch(output: Path) -> AbstractContextManager[Path]:
    """A folder within the output folder, on the same disk, that is gone afterwards."""
    return scratch_folder(output / "scratch")


#: Before the names of scores that the first stage of a reranker has without it.
FIRST_STAGE: Final = "first_stage"


def origin(base: str | None, rows: int, *, verb: str = "Fine-tuned", unit: str = "rows") -> str:
    """The sentence on how a model came about.

    Args:
        base: What it was trained from; None for random weights.
        rows: What it was trained on.
        verb: What was done.
        unit: What the rows are called.
    """
    start = f"`{shown_name(base)}`" if base else "random weights"
    return f"{verb} from {start} on {rows:,} {unit} by bgekit."


def add_training(
    file: Path, *, datasets: Sequence[tuple[Sequence[str], int]], arguments: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]], kept: int | None, findings: Mapping[str, str], drawn: bool,
) -> None:  # fmt: skip
    """Say in a README how the model was trained.

    Args:
        file: The README.
        datasets: Files and rows of each dataset.
        arguments: Those that made the model what it is.
        history: What was logged.
        kept: The step whose weights the model has; None for the last.
        findings: What was noticed.
        drawn: Whether there are curves beside it.
    """
    names = short_names([files[0] for files, _ in datasets])
    more = [f" and {len(files) - 1} more files" if len(files) > 1 else "" for files, _ in datasets]
    data = [
        (name + others, f"{rows:,}") for name, others, (_, rows) in zip(names, more, datasets, strict=True)
    ]  # fmt: skip
    parts = ["## Training\n", _table(("data", "rows"), data)]
    shown = [
        (f"`{name}`" if name.startswith("--") else name, f"`{_value(value)}`") for name, value in arguments.items()
    ]
    parts.append(_table(("argument", "value"), shown))
    if scores := list(_scores(history, kept)):
        width = 4 if any(len(row) > 3 for row in scores) else 3
        header = ("score", "before", "after", "first stage alone")[:width]
        parts.append(_table(header, [(*row, *("",) * (width - len(row))) for row in scores]))
    if findings:
        parts.append(
            "Noticed while training:\n\n" + "\n".join(f"- {sentence}" for sentence in findings.values()) + "\n"
        )
    if drawn:
        parts.append("![Curves of the training run](training.png)\n")
    parts.append("`training.json` has all arguments, versions and the whole log.\n")
    text = file.read_text(encoding="utf-8").rstrip("\n")
    file.write_text(text + "\n\n" + "\n".join(parts), encoding="utf-8")


def _scores(history: Sequence[Mapping[str, Any]], kept: int | None) -> Iterator[tuple[str, ...]]:
    """Each score before the first step, of the weights that were kept, and of the first stage alone."""
    rows = [row for row in history if any(name.startswith("eval_") for name in row)]
    if not rows:
        return
    after = next((row for row in reversed(rows) if kept is None or row["step"] == kept), rows[-1])
    before = next((row for row in rows if row["step"] == 0), {})
    beside = f"eval_{FIRST_STAGE}_"
    names = [name for name in after if name.startswith("eval_") and not name.startswith(beside)]
    for name in names:
        plain = name.removeprefix("eval_")
        if plain == "score" and len(names) == 2:  # The mean of one.
            continue
        values = [before.get(name), after[name], *([after[beside + plain]] if beside + plain in after else [])]
        yield (plain, *("" if value is None else f"{value:.4g}" for value in values))


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def _value(value: Any) -> str:
    """As the command line has it; of a file its name, not where it lies here."""
    value = getattr(value, "value", value)
    if isinstance(value, list):
        return " ".join(map(_value, value))
    local = isinstance(value, str) and (Path(value).is_absolute() or Path(value).exists())
    return shown_name(value) if local else str(value)
