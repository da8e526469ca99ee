"""The page of a training run: what training brought, what was trained on what, and the curves of what was logged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ...display.pages import Section, Table, render_report, save_plot
from ...display.plots import LinePlot, sheet
from ...evaluation.metrics import task_and_metric
from ...evaluation.report.summary import number
from ...models.sentence_transformers_files import short_names, shown_name

Log = Sequence[Mapping[str, Any]]
Curve = tuple[list[float], list[float]]

#: Panels: title, names in the log with how they are called, the bounds of their values, and what they say.
_PANELS: Final[tuple[tuple[str, dict[str, str], tuple[float, float], str], ...]] = (
    ("Loss", {"loss": "loss"}, (0, float("inf")), "Lower is better. It compares steps of this run, not runs."),
    (
        "Similarity of queries and passages", {"positive": "positive", "negative": "negative", "hardest": "hardest"},
        (-1, 1),
        "Mean cosine of a query and its positive, its negatives, and the most similar one of these. The further"
        " positive and hardest are apart, the better.",
    ),
    (
        "Queries that find their positive first", {"accuracy": "accuracy"}, (0, 1),
        "Share of the queries of a batch whose positive is more similar than all passages that it is compared with.",
    ),
    (
        "Loss of masked tokens", {"encoder_loss": "encoder", "decoder_loss": "decoder"}, (0, float("inf")),
        "Lower is better.",
    ),
    (
        "Masked tokens that are found", {"encoder_accuracy": "encoder", "decoder_accuracy": "decoder"}, (0, 1),
        "Share of the masked tokens that are predicted right.",
    ),
    (
        "Norm of the gradient", {"grad_norm": "norm"}, (0, float("inf")),
        "Before it is clipped. Single peaks are normal; growth without end is not.",
    ),
    ("Learning rate", {"learning_rate": "rate"}, (0, float("inf")), "As planned: it rises in warm-up, then falls."),
    ("Tokens per second", {"tokens_per_second": "tokens/s"}, (0, float("inf")), "Of this process, without padding."),
)  # fmt: skip
#: What stands in the place of the second panel where a cross-encoder scores pairs.
_PAIRS: Final = (
    "Scores of queries and passages", {"positive": "positive", "negative": "negative", "hardest": "hardest"},
    (float("-inf"), float("inf")),
    "Mean score, as the network gives it, of a query with its positive, with its negatives, and with the one of these"
    " that scores highest. The further positive and hardest are apart, the better.",
)  # fmt: skip
_NOT_SCORES: Final = frozenset({"eval_runtime", "eval_samples_per_second", "eval_steps_per_second"})
#: Tasks whose scores are drawn; the table has all of them.
_DRAWN: Final = 8
#: Points of a score that an axis spans at least: less is noise on most data.
_LEAST: Final = 2.0
#: Share of what was logged that the loss at the beginning and at the end is a mean over.
_END: Final = 0.1
#: Logged values from which on the way of the loss is told beside scores.
_ENOUGH: Final = 20


def series(history: Log, name: str) -> Curve:
    """Steps and values of one name of the log."""
    found = [(float(row["step"]), float(row[name])) for row in history if name in row and "step" in row]
    return [step for step, _ in found], [value for _, value in found]


def save_page(
    folder: Path,
    *,
    name: str,
    base: str,
    datasets: Sequence[tuple[Sequence[str], int]],
    facts: Mapping[str, Any],
    arguments: Mapping[str, str],
    history: Log,
    kept: int | None,
    first_stage: str,
    findings: Mapping[str, str],
    pairs: bool = False,
) -> bool:
    """Write training.html and training.png into a folder; nothing where nothing was logged.

    Args:
        folder: Where the model is written.
        name: Name of the model that was made.
        base: The model that it was made of, as the caller named it.
        datasets: Files and rows of each dataset.
        facts: Further names and values, such as how long it took.
        arguments: Those that differ from their defaults, as the command line has them.
        history: `trainer.state.log_history`.
        kept: The step whose weights the model has; None for the last.
        first_stage: What names of scores without the reranker begin with, after `eval_`.
        findings: What was noticed.
        pairs: A cross-encoder was trained, which gives pairs a score instead of texts a vector.

    Returns:
        Whether the files were written.
    """
    scores = list(_scores(history, kept, first_stage))
    steps = [float(row["step"]) for row in history if "step" in row]
    ends = (min(steps, default=0), max(steps, default=0))
    judged = [score.plot(ends, kept) for score in scores[:_DRAWN]]
    curves = [(plot, text) for plot, text in _curves(history, ends, pairs=pairs)]
    if not judged and not curves:
        return False
    names = short_names([files[0] for files, _ in datasets])
    data = [
        (short + (f" and {len(files) - 1} more files" if len(files) > 1 else ""), f"{rows:,}")
        for short, (files, rows) in zip(names, datasets, strict=True)
    ]
    model = shown_name(base) if base else "weights drawn at random"
    rows = sum(rows for _, rows in datasets)
    sections = []
    if scores:
        sections.append(
            Section(
                "Scores while training",
                "x100, of the model as it is saved at that step. They are of one run, without intervals: what is "
                "better by little may be better by chance, which bge eval --model BASE RESULT tells.",
                plots=[(plot.svg(f"score{place}"), "") for place, plot in enumerate(judged)],
                table=Table(
                    ("Score", *scores[0].head),
                    [score.cells for score in scores],
                    range(1, len(scores[0].head) + 1),
                    sortable=True,
                ),
            )
        )
    whole = {name: value for name, value in facts.items() if value}
    sections += [
        Section(
            "What was trained on what",
            facts=[
                ("model", model),
                *([("its path", base)] if base not in ("", model) else []),
                *((f"data: {file}", f"{count} rows") for file, count in data),
                *whole.items(),
            ],
        ),
        Section("Arguments that differ from their defaults", facts=list(arguments.items()), folded=True,
                about=f"({len(arguments)})"),
        Section("Curves", plots=[(plot.svg(f"curve{place}"), text) for place, (plot, text) in enumerate(curves)]),
        Section(
            "First and last values", folded=True, about="the numbers of the curves",
            table=Table(("", "first", "last"), list(_values(history)), (1, 2)),
        ),
    ]  # fmt: skip
    page = render_report(
        f"Training: {name}",
        about=f"{model}, trained on {rows:,} rows for {max(steps, default=0):,.0f} steps",
        findings=list(_conclusions(history, scores, kept)),
        sections=sections, notes=list(findings.values()), notes_are="Noticed while training",
    )  # fmt: skip
    (folder / "training.html").write_text(page, encoding="utf-8")
    save_plot(sheet([*judged, *(plot for plot, _ in curves)]), folder / "training.png")
    return True


class _Score:
    """A score that was measured while training."""

    def __init__(self, name: str, curve: Curve, kept: float, alone: float | None) -> None:
        steps, values = curve
        self.name, self.curve, self.alone = name, curve, alone
        self.before = values[0] if steps[0] == 0 else None
        found = [value for step, value in zip(steps, values, strict=True) if step == kept]
        self.after = found[-1] if found else values[-1]

    @property
    def head(self) -> list[str]:
        """Heads of `cells`."""
        before = [] if self.before is None else ["Before", "After", "Change"]
        return [*(before or ["After"]), *([] if self.alone is None else ["First stage alone"])]

    @property
    def cells(self) -> list[str]:
        """Cells of a table."""
        change = [] if self.before is None else [number(self.after - self.before, signed=True)]
        before = [] if self.before is None else [number(self.before)]
        return [self.name, *before, number(self.after), *change, *([] if self.alone is None else [number(self.alone)])]

    def plot(self, ends: tuple[float, float], kept: int | None) -> LinePlot:
        """The score over the steps."""
        level = None if self.alone is None else (self.alone, "first stage alone")
        marked = None if kept is None else (float(kept), f"kept: step {kept:,}")
        return LinePlot(
            self.name, {"score": self.curve}, level=level, marked=marked, low=-100, high=100, least=_LEAST,
            x_range=ends,
        )  # fmt: skip


def _scores(history: Log, kept: int | None, first_stage: str) -> Iterator[_Score]:
    """What was measured: the mean of several tasks first."""
    beside = f"eval_{first_stage}_"
    seen = dict.fromkeys(name for row in history for name in row if name.startswith("eval_"))
    names = [name for name in seen if name not in _NOT_SCORES and not name.startswith(beside)]
    tasks = [name for name in names if name != "eval_score"]
    for name in [*(["eval_score"] if "eval_score" in names and len(tasks) != 1 else []), *tasks]:
        curve = series(history, name)
        if not curve[0]:
            continue
        plain = name.removeprefix("eval_")
        alone = series(history, beside + plain)[1]
        step = curve[0][-1] if kept is None else float(kept)
        mean = name == "eval_score" and len(tasks) > 1
        shown = f"Mean of {len(tasks)} tasks" if mean else ": ".join(filter(None, task_and_metric(plain)))
        yield _Score(shown, curve, step, alone[0] if alone else None)


def _curves(history: Log, ends: tuple[float, float], *, pairs: bool) -> Iterator[tuple[LinePlot, str]]:
    """What was logged, as plots with their captions."""
    for panel in _PANELS:
        title, names, (low, high), text = _PAIRS if pairs and "positive" in panel[1] else panel
        found = {shown: series(history, name) for name, shown in names.items()}
        lines = {shown: curve for shown, curve in found.items() if curve[0]}
        if lines:
            # Vectors that keep their lengths have similarities beyond those of cosines.
            if any(not low <= value <= high for _, values in lines.values() for value in values):
                low, high = float("-inf"), float("inf")
            yield LinePlot(title, lines, smooth=True, low=low, high=high, x_range=ends), text


def _conclusions(history: Log, scores: Sequence[_Score], kept: int | None) -> Iterator[tuple[str, bool]]:
    """What training brought, in words; nothing here was tested, so nothing is sure."""
    if scores:
        first = scores[0]
        steps, values = first.curve
        at = f"the weights of step {kept:,} are kept" if kept is not None else "the weights of the last step are kept"
        if first.before is None:
            yield f"{first.name}: {number(first.after)} after training; {at}.", False
        elif kept == 0 or first.after == first.before:
            yield (
                (
                    f"Training made it no better: {first.name} was {number(first.before)} before it, and "
                    f"{number(max(values[1:], default=first.before))} at best afterwards; {at}."
                ),
                False,
            )
        else:
            change = "rose" if first.after > first.before else "fell"
            yield (
                (
                    f"{first.name} {change} from {number(first.before)} to {number(first.after)} "
                    f"({number(first.after - first.before, signed=True)}); {at}."
                ),
                False,
            )
        best = max(range(len(values)), key=values.__getitem__)
        if kept is None and values[best] > first.after:
            yield (
                (
                    f"The best score was {number(values[best])} at step {steps[best]:,.0f}: --load-best-model-at-end "
                    "true keeps the best weights instead of the last."
                ),
                False,
            )
        if first.alone is not None:
            than = "better" if first.after > first.alone else "worse"
            yield (
                (
                    f"With the reranker it is {than} than without: the first stage alone scores {number(first.alone)} "
                    f"({number(first.after - first.alone, signed=True)})."
                ),
                False,
            )
        if steps and kept is not None and kept == steps[-1] and kept > 0:
            yield "The last evaluation was the best one: more steps may help.", False
    for name, what in (("loss", "The loss"), ("encoder_loss", "The encoder's loss")):
        _, values = series(history, name)
        width = max(1, min(len(values) // 3, max(3, int(len(values) * _END))))
        # The mean of a few steps says what was in them, no more.
        if len(values) >= (_ENOUGH if scores else 2):
            first_mean, last_mean = sum(values[:width]) / width, sum(values[-width:]) / width
            over = f" (means over the first and the last {width} values)" if width > 1 else ""
            yield f"{what} went from {first_mean:.4g} to {last_mean:.4g}{over}.", False
            break
    if not scores:
        yield "No score was measured while training (--eval-data): bge eval says what the model is worth.", False


def _values(history: Log) -> Iterator[list[str]]:
    for _, names, _, _ in _PANELS:
        for name, shown in names.items():
            _, values = series(history, name)
            if values:
                label = name.replace("_", " ") if len(names) == 1 else shown
                yield [label, f"{values[0]:.4g}", f"{values[-1]:.4g}"]
