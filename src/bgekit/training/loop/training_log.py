"""What a training run says to its user: the bar, a line for each log entry and evaluation, and the sentence at the end.

Everything goes to stderr. The names are explained in docs/finetune.md.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from transformers import TrainerCallback

from ...display.terminal import Progress, write_line
from ...evaluation.metrics import task_and_metric
from .checkpoints import FIRST_STAGE

#: Numbers of the log that say nothing about the model; Trainer adds them at the end, too.
_PASSED_OVER: Final = frozenset({
    "epoch", "step", "total_flos", "train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss",
    "eval_runtime", "eval_samples_per_second", "eval_steps_per_second",
})  # fmt: skip


class ReadableLog(TrainerCallback):
    """The bar of a run, and a line for each entry of its log."""

    _bar: Progress | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Show the bar."""
        if state.is_world_process_zero and not args.disable_tqdm:
            self._bar = Progress("train", "steps", state.max_steps, first=state.global_step)
            self._bar.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.advance(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
        """Write the line."""
        if state.is_world_process_zero and logs and (line := log_line(logs, state.global_step, state.max_steps)):
            write_line(line)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            self._bar = None


def log_line(logs: Mapping[str, Any], step: int, steps: int) -> str:
    """An entry of the log in a line; empty where it has nothing to say.

    Args:
        logs: Numbers by name.
        step: Steps done.
        steps: All of them.

    Example:
        >>> log_line({"loss": 0.51234, "grad_norm": 2.5, "learning_rate": 1e-05, "epoch": 0.1}, 10, 100)
        'step 10/100: loss 0.5123, gradient norm 2.5, learning rate 1e-05'
    """
    evaluated = {name.removeprefix("eval_"): value for name, value in logs.items() if name.startswith("eval_")}
    evaluated = {name: value for name, value in evaluated.items() if f"eval_{name}" not in _PASSED_OVER}
    if evaluated:
        return f"step {step}/{steps}: evaluation: {', '.join(_scores(evaluated))}"
    shown = [f"{_NAMES.get(name, name.replace('_', ' '))} {_number(value)}" for name, value in logs.items()
             if name not in _PASSED_OVER]  # fmt: skip
    return f"step {step}/{steps}: {', '.join(shown)}" if shown else ""


#: Names of the log that a reader may not know.
_NAMES: Final = {"grad_norm": "gradient norm"}


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    return str(value)


def _scores(found: Mapping[str, float]) -> Iterator[str]:
    """Scores in words, each with that of the first stage alone beside it."""
    plain = {name: value for name, value in found.items() if not name.startswith(f"{FIRST_STAGE}_")}
    for name, value in plain.items():
        if name == "score" and len(plain) == 2:  # The mean of one.
            continue
        beside = found.get(f"{FIRST_STAGE}_{name}")
        alone = "" if beside is None else f" (first stage alone {_score(name, beside)})"
        yield f"{shown_score(name)} {_score(name, value)}{alone}"


def _score(name: str, value: float) -> str:
    return f"{value:.4f}" if name.endswith(("loss", "accuracy")) else f"{value:.2f}"


def shown_score(name: str) -> str:
    """A score of an evaluation as people write it.

    Args:
        name: As the log has it.

    Example:
        >>> shown_score("SciFact_ndcg_at_10"), shown_score("score")
        ('SciFact nDCG@10', 'mean score')
    """
    if name == "score":
        return "mean score"
    return " ".join(filter(None, task_and_metric(name)))


def outcome(
    history: Sequence[Mapping[str, Any]], output: Path, *, steps: int, measure: str, higher: bool, kept: int | None,
    drawn: bool, following: str,
) -> str:  # fmt: skip
    """The sentence that a run ends with: what it brought, where it is, and what comes next.

    Args:
        history: What was logged.
        output: Folder of the model.
        steps: Steps done.
        measure: Name in the log of the score that says which model is the best.
        higher: Whether more of it is better.
        kept: Step whose weights the model has; None for the last.
        drawn: Whether there are curves.
        following: A command that uses the model.
    """
    parts = [_brought(history, steps, measure, higher, kept), f"model in {shlex.quote(str(output))}"]
    parts += [f"curves in {shlex.quote(str(output / 'training.html'))}"] if drawn else []
    return "; ".join((*parts, f"next: {following}"))


def _brought(history: Sequence[Mapping[str, Any]], steps: int, measure: str, higher: bool, kept: int | None) -> str:
    rows = [row for row in history if measure in row]
    if not rows:
        losses = [row["loss"] for row in history if "loss" in row]
        found = f"loss {losses[0]:.4f} -> {losses[-1]:.4f}, " if losses else ""
        return f"{found}{steps:,} steps"
    last = rows[-1]
    best = (max if higher else min)(rows, key=lambda row: row[measure])
    result = next((row for row in reversed(rows) if row["step"] == kept), last) if kept is not None else last
    name = measure.removeprefix("eval_")
    if name == "score":  # The mean of one has that one's name.
        others = [each for each in last if each.startswith("eval_") and each != measure and each not in _PASSED_OVER]
        others = [each for each in others if not each.startswith(f"eval_{FIRST_STAGE}_")]
        name = others[0].removeprefix("eval_") if len(others) == 1 else name
    before = f"{_score(name, rows[0][measure])} -> " if rows[0]["step"] == 0 else ""
    said = f"{shown_score(name)} {before}{_score(name, result[measure])}"
    if kept is not None:
        said += f", best at step {kept:,}" if kept else ", no better than before: the weights are those it began with"
    elif best["step"] != result["step"] and best[measure] != result[measure]:
        said += (
            f" after {steps:,} steps (best {_score(name, best[measure])} at step {best['step']:,}; "
            "--load-best-model-at-end true keeps the best)"
        )
    else:
        said += f" after {steps:,} steps"
    alone = result.get(measure.replace("eval_", f"eval_{FIRST_STAGE}_", 1))
    return said if alone is None else f"{said}; first stage alone {_score(name, alone)}"
