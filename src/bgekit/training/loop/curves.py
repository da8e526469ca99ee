"""Curves of a training run: one page and one picture, from what Trainer logged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ...display.pages import drawing, new_figure, render_page, save_plot, to_svg

#: What is drawn, as (title, names in the log).
PANELS: Final = (
    ("loss", ("loss",)),
    ("learning rate", ("learning_rate",)),
    ("gradient norm", ("grad_norm",)),
    ("similarity of positives and negatives", ("positive", "negative", "hardest")),
    ("in-batch accuracy", ("accuracy",)),
    ("loss of masked tokens", ("encoder_loss", "decoder_loss")),
    ("accuracy of masked tokens", ("encoder_accuracy", "decoder_accuracy")),
    ("tokens a second", ("tokens_per_second",)),
)
#: Steps that a mean is drawn over, as a share of all.
_SMOOTH: Final = 0.05
_NOT_SCORES: Final = frozenset({"eval_runtime", "eval_samples_per_second", "eval_steps_per_second"})
#: Size of a panel and of the whole, in units of the page.
_PANEL: Final = 190
_WIDTH: Final = 900
#: Points that are drawn as such.
_FEW: Final = 40


def series(history: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """Steps and values of one name of the log."""
    found = [(float(row["step"]), float(row[name])) for row in history if name in row and "step" in row]
    return [step for step, _ in found], [value for _, value in found]


def save_curves(history: Sequence[Mapping[str, Any]], output: Path) -> list[Path]:
    """Write training.html and training.png into a folder; nothing where nothing was logged.

    Args:
        history: `trainer.state.log_history`.
        output: The folder.

    Returns:
        The files.
    """
    evaluated = sorted({name for row in history for name in row if name.startswith("eval_")} - _NOT_SCORES)
    panels = [(title, [name for name in names if series(history, name)[0]]) for title, names in PANELS]
    panels += [("evaluation", evaluated)] if evaluated else []
    panels = [(title, names) for title, names in panels if names]
    if not panels:
        return []
    with drawing():
        height = _PANEL * len(panels)
        figure = new_figure(_WIDTH, height)
        figure.subplots_adjust(left=0.07, right=0.8, bottom=44 / height, top=1 - 30 / height, hspace=0.45)
        axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
        for axis, (title, names) in zip(axes, panels, strict=True):
            for name in names:
                steps, values = series(history, name)
                jagged = title in ("loss", "gradient norm") and len(values) > _FEW
                (line,) = axis.plot(
                    steps, values, marker="o" if len(steps) <= _FEW else None, markersize=3,
                    alpha=0.35 if jagged else 1, label=name.removeprefix("eval_"),
                )  # fmt: skip
                if jagged:
                    axis.plot(steps, _smoothed(values), color=line.get_color())
            axis.set_title(title, loc="left")
            axis.grid(axis="y")
            if len(names) > 1:
                axis.legend(loc="upper left", bbox_to_anchor=(1.01, 1.03))
        axes[-1].set_xlabel("step")
        svg = to_svg(figure, name="training", title="Curves of the training run")
        rows = [row for _, names in panels for row in _rows(names, history)]
        page = render_page(
            "display/chart.html.jinja", "Training", svg=svg, head=("", "first", "last", "best"), rows=rows,
            numbers=(1, 2, 3),
        )  # fmt: skip
        (output / "training.html").write_text(page, encoding="utf-8")
        save_plot(svg, output / "training.png")
    return [output / "training.html", output / "training.png"]


def _smoothed(values: Sequence[float]) -> list[float]:
    """Mean over the steps before, so that a jagged curve shows where it goes."""
    width = max(2, int(len(values) * _SMOOTH))
    return [sum(values[max(0, i - width + 1) : i + 1]) / (i + 1 - max(0, i - width + 1)) for i in range(len(values))]


def _rows(names: Sequence[str], history: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    for name in names:
        _, values = series(history, name)
        best = (max if _is_better_high(name) else min)(values)
        shown = "learning rate" if name == "learning_rate" else name.replace("_", " ")
        yield [shown, *(f"{value:.4g}" for value in (values[0], values[-1], best))]


def _is_better_high(name: str) -> bool:
    if name.endswith("loss"):
        return False
    return name.startswith("eval_") or name.endswith("accuracy") or name in ("positive", "tokens_per_second")
