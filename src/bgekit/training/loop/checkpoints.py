"""The folder that a training run fills: checkpoints on the way, the trained model itself at the end."""

from __future__ import annotations

import copy
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ...display.option_names import option_of
from ...display.pages import render
from ...errors import ArgumentError, CheckpointError, OutputError
from ...evaluation.metrics import task_and_metric
from ...files.atomic import atomic_file, remove_leftovers, scratch_folder, usual_modes
from ...inference.embedder import make_selftest
from ...models.checkpoint_files import read_tensors, weight_files
from ...models.sentence_transformers_files import short_names, shown_name
from ...networks.loading import restore_unsaved
from ...networks.saving import write_checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from ...models.card import ModelCard
    from ...networks.encoder import Encoder

logger = logging.getLogger(__name__)

#: Written last into a checkpoint: one without it was not finished.
WHOLE: Final = "checkpoint_whole.json"
#: Arguments that say which model is the best. A run that continues may begin or cease to measure, but not differ in
#: these.
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


def remove_oldest(output: Path, limit: int | None, best: str | None) -> None:
    """Remove the oldest finished checkpoints above a limit, but neither the newest nor the best.

    Unfinished ones do not count: one of a higher step would push out those that a run can continue from.
    """
    if limit is None or limit <= 0:
        return
    found = [path for path in output.glob("*") if _CHECKPOINT.match(path.name) and is_whole(path)]
    found.sort(key=lambda path: (path / WHOLE).stat().st_mtime_ns)
    kept = [*found[-1:], *(path for path in found[:-1] if best is not None and path.name == Path(best).name)]
    spare = [path for path in found if path not in kept]
    for path in spare[: max(len(found) - max(limit, len(kept)), 0)]:
        shutil.rmtree(path, ignore_errors=True)


def keep_best_alone(output: Path, best: str) -> None:
    """Remove all checkpoints but the best, if that one is whole."""
    if is_whole(Path(best)):
        for path in output.glob("*"):
            if _CHECKPOINT.match(path.name) and path.name != Path(best).name:
                shutil.rmtree(path, ignore_errors=True)


def check_same_run(folder: Path, identity: Mapping[str, Any]) -> None:
    """Check that a checkpoint is of a run that does the same with the same data in the same batches.

    A value that its release did not note is that of its `training_args.json`, and does not count where that has none.

    Args:
        folder: The checkpoint.
        identity: Identity of this run.

    Raises:
        ArgumentError: it is of another run.
    """
    then: dict[str, Any] = json.loads((folder / WHOLE).read_text(encoding="utf-8"))["run"]
    now = json.loads(json.dumps(dict(identity)))
    if now.keys() - then.keys():
        arguments = json.loads((folder / "training_args.json").read_text(encoding="utf-8"))
        then = {f"--{name}": value for name, value in arguments.items() if name != "deepspeed"} | then
    differing = [
        _shown(name) if name.endswith("data") else f"{_shown(name)} ({then.get(name)} there, {value} here)"
        for name, value in now.items()
        if name in then and then[name] != value and not (name in _WHERE_BOTH and None in (then[name], value))
    ]
    if differing:
        raise ArgumentError(
            f"{folder} is of another run, which differs in {', '.join(differing)}. Give the arguments of that run; "
            f"--overwrite to start over; or --model {folder} and another --output to start from its "
            "weights"
        )


def _shown(name: str) -> str:
    """A name of the identity as people type it; checkpoints have it with underscores."""
    return option_of(name[2:]) if name.startswith("--") else name


def check_optimizer(folder: Path, *, deepspeed: bool) -> None:
    """Check that a checkpoint has the state of the optimiser, in the form that this run reads.

    Raises:
        ArgumentError: it has not.
    """
    if (folder / "latest").is_file() if deepspeed else any(folder.glob("optimizer.*")):
        return
    kind = "of DeepSpeed" if deepspeed else "of a run without DeepSpeed"
    raise ArgumentError(
        f"{folder} has no state of the optimiser {kind} to continue with: give --deepspeed as that run did, or start "
        f"from its weights with --model {folder}"
    )


def last_whole_checkpoint(output: Path) -> Path | None:
    """The newest finished checkpoint in a folder; unfinished ones are passed over with a log line."""
    found = [(int(match[1]), path) for path in output.glob("*") if (match := _CHECKPOINT.match(path.name))]
    for _, path in sorted(found, reverse=True):
        if is_whole(path):
            return path
        logger.warning("%s was not finished when its run ended: an older checkpoint is taken", path)
    return None


#: What was trained, on what, how, and how it went.
PROVENANCE: Final = "training.json"


def resume_point(output: Path, resume: str | bool | None, overwrite: bool) -> Path | None:
    """The checkpoint that a run continues from, None to start from the beginning; nothing is changed.

    Args:
        output: The output folder.
        resume: As transformers has it: `true` for the last whole checkpoint in the folder, or a checkpoint's path.
        overwrite: Start over.

    Raises:
        ArgumentError: the checkpoint is not whole; or the folder holds something, and nothing says what to do with it.
    """
    wanted = str(resume).lower() == "true"
    if resume and not wanted and str(resume).lower() != "false":
        if not is_whole(Path(str(resume))):
            raise ArgumentError(
                f"--resume-from-checkpoint {resume} is not a finished checkpoint of bgekit; `true` takes the last one "
                "that --output has"
            )
        return Path(str(resume))
    if not wanted:
        if output.is_dir() and any(output.iterdir()) and not overwrite:
            raise ArgumentError(
                f"--output {output} is not empty: give --resume-from-checkpoint true to continue with what "
                "is there, or --overwrite to start over"
            )
        return None
    found = last_whole_checkpoint(output)
    if found is None:
        logger.info("%s holds no finished checkpoint: training starts at the beginning", output)
    return found


def prepare_output(folder: str, resume: str | bool | None, overwrite: bool) -> Path | None:
    """Clear and make the output folder of a run.

    What killed runs have left there of what they were writing is removed; where the run starts over, so are the
    checkpoints of the one before, from which a later `true` would go on otherwise.

    Args:
        folder: The output folder.
        resume: As in `resume_point`.
        overwrite: As there.

    Returns:
        The checkpoint that the run continues from, None to start from the beginning.

    Raises:
        ArgumentError: as `resume_point`.
        OutputError: the folder cannot be made or written.
    """
    output = Path(folder)
    if output.exists() and not output.is_dir():
        raise OutputError(f"--output {folder} is a file; it must be a folder")
    remove_leftovers(output)
    checkpoint = resume_point(output, resume, overwrite)
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise OutputError(f"cannot write to --output {folder}: {error.strerror or error}") from error
    if overwrite and str(resume or False).lower() == "false":
        for old in output.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
            shutil.rmtree(old, ignore_errors=True)
    return checkpoint


def save_final(output: Path, write: Callable[[Path], None], provenance: Mapping[str, Any]) -> None:
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
        model = folder / "model"
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


def save_encoder(
    folder: Path,
    title: str | None,
    *,
    network: nn.Module,
    weights: Mapping[str, Tensor],
    encoder: Encoder,
    tokenizer: PreTrainedTokenizerFast,
    card: ModelCard,
    **more: Any,
) -> None:
    """Save the encoder of a network that is being trained as a folder that everybody can load, with a self-test.

    Args:
        folder: Made, or replaced.
        title: Title of the README; None for the folder's name.
        network: What is trained.
        weights: Weights of the transformer by their names in a checkpoint.
        encoder: The part of it that gives vectors.
        tokenizer: Its tokenizer.
        card: What the result says of itself.
        more: Further arguments of `write_checkpoint`.
    """
    training, device = network.training, next(network.parameters()).device
    network.eval()
    if any(weight.dtype != torch.float32 for weight in encoder.parameters()):
        # DeepSpeed trains in half precision itself. The saved model computes in float32 what it has learnt.
        encoder, device = copy.deepcopy(encoder).to("cpu", torch.float32), torch.device("cpu")
        restore_unsaved(encoder, torch.float32)
    try:
        selftest = make_selftest(encoder, tokenizer, card, device)
    finally:
        network.train(training)
    write_checkpoint(folder, card=card, weights=weights, selftest=selftest, overwrite=True, title=title, **more)


@dataclass(frozen=True)
class ModelFiles:
    """The network of a run on the disk: as a model that its users load, and what the run needs to continue.

    Attributes:
        network: What is trained.
        save: Saves the network as it is into a folder; the second argument is the title of the README, None for the
            folder's name.
        places: Where the network has the weights of a folder's files: what comes before their names, by the folder
            ("" for the model's own). Empty where only what is in `beside` is trained.
        beside: Name of a file of further weights, by the network's own names.
        further: The content of that file.
        heads: Where the network has the weights of further safetensors: what comes before their names, by their path.
    """

    network: nn.Module
    save: Callable[[Path, str | None], None]
    places: Mapping[str, str]
    beside: str = ""
    further: Callable[[], bytes] | None = None
    heads: Mapping[str, str] = field(default_factory=dict)

    def write(self, folder: Path, title: str | None = None) -> None:
        """Save the network as it is.

        Raises:
            OutputError: the folder cannot be written.
        """
        self.save(folder, title)
        if self.further is not None:
            try:
                (folder / self.beside).write_bytes(self.further())
            except OSError as error:
                raise OutputError(f"cannot write {folder / self.beside}: {error.strerror or error}") from error

    def read(self, folder: Path) -> dict[str, Tensor]:
        """Weights of a saved network by its own names."""
        found: dict[str, Tensor] = load_file(folder / self.beside) if self.beside else {}
        for part, place in self.places.items():
            for file in weight_files(folder / part):
                # Dense layers have a prefix of sentence-transformers' own.
                own = "linear." if part else ""
                found |= {f"{place}{name.removeprefix(own)}": value for name, value in read_tensors(file)}
        for path, place in self.heads.items():
            found |= {f"{place}{name}": value for name, value in read_tensors(folder / path)}
        return found

    def load(self, folder: Path) -> None:
        """Give the network the weights of a saved one.

        Raises:
            CheckpointError: weights that are trained are not there.
        """
        weights, own = self.read(folder), self.network.state_dict()
        missing = [name for name, each in self.network.named_parameters() if each.requires_grad and name not in weights]
        if missing:
            raise CheckpointError(f"{folder} lacks {len(missing)} weights, such as {missing[0]}")
        self.network.load_state_dict({name: value for name, value in weights.items() if name in own}, strict=False)

    def measured(
        self, measure: Callable[[Path], Mapping[str, float]], output: Path
    ) -> Callable[[], Mapping[str, float]]:
        """A measurement of the network by what it would be if it were saved now: exactly what users will get.

        Args:
            measure: Scores of the model in a folder by their names.
            output: Where there is room for it for a while.
        """

        def scores() -> Mapping[str, float]:
            with scratch(output) as folder:
                self.write(folder / "model")
                return measure(folder / "model")

        return scores


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
    scores = list(_scores(history, kept))
    width = 4 if any(len(row) > 3 for row in scores) else 3
    section = render(
        "training/loop/training_readme.md.jinja",
        data=[(name + others, f"{rows:,}") for name, others, (_, rows) in zip(names, more, datasets, strict=True)],
        arguments=[
            (f"`{name}`" if name.startswith("--") else name, f"`{as_written(value)}`")
            for name, value in arguments.items()
        ],
        scores_are=("score", "before", "after", "first stage alone")[:width],
        scores=[(*row, *("",) * (width - len(row))) for row in scores],
        findings=findings.values(), drawn=drawn, provenance=PROVENANCE,
    )  # fmt: skip
    file.write_text(file.read_text(encoding="utf-8").rstrip("\n") + "\n\n" + section, encoding="utf-8")


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
        shown = ": ".join(filter(None, task_and_metric(plain)))
        yield (shown, *("" if value is None else f"{value:.4g}" for value in values))


def as_written(value: Any) -> str:
    """A value as the command line has it; of a file its name, not where it lies here."""
    value = getattr(value, "value", value)
    if isinstance(value, list):
        return " ".join(map(as_written, value))
    local = isinstance(value, str) and (Path(value).is_absolute() or Path(value).exists())
    return shown_name(value) if local else str(value)
