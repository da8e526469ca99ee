"""The plots of a report, as SVG for a page, and that of a calibration, as a file of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from ...display.pages import GRID, INK, LIGHT, MUTED, SURFACE, Look, Svg, drawing, new_figure, save_plot, to_svg
from ...display.plots import HEIGHT, WIDTH, head, panel
from ...display.terminal import middle_clipped, printable, wrapped
from ..comparison import item_values
from .summary import decided, score_interval

if TYPE_CHECKING:
    from ..results import Comparison, Result
    from .summary import TaskView

Floats = npt.NDArray[np.float64]
#: Columns of text of size 12 that fit into the width.
_LABEL: Final = 56
#: Groups of `details["scores"]` that belong together, those that do not, and all pairs where nobody says which.
RELATED: Final = ("relevant", "related", "all")
_BINS: Final = 50
#: Cells on each side into which the points of a scatter plot are gathered.
_CELLS: Final = 32


def scores_plot(tasks: Sequence[TaskView], looks: Mapping[str, Look], *, name: str) -> Svg:
    """The main score of each model on each task; a hollow marker is the published score of the same model."""
    lane, head = 11.0, 24.0
    heights = [head + lane * len(task.results) for task in tasks]
    margin = 34.0
    height = sum(heights) + margin
    with drawing():
        figure, axes = _framed(height, left=14, right=14, bottom=margin, top=0)
        axes.set_ylim(sum(heights), 0)
        top = 0.0
        for task, taken in zip(tasks, heights, strict=True):
            _text(axes, 0, top + head / 2 + 2, f"{task.name}: {task.metric}", transform=axes.get_yaxis_transform())
            for place, result in enumerate(task.results):
                look, y = looks[result.label], top + head + lane * (place + 0.5)
                axes.axhline(y, color=GRID, linewidth=1, zorder=0)
                if not math.isfinite(result.main_score):
                    continue
                if ends := score_interval(result):
                    axes.plot(
                        ends, [y, y], color=look.color, linewidth=2.4, alpha=0.45, solid_capstyle="butt", zorder=1
                    )
                if result.reference is not None and result.comparable:
                    axes.plot([result.main_score, result.reference], [y, y], color=look.color, linewidth=1, zorder=2)
                    axes.plot(
                        result.reference, y, look.marker, markerfacecolor=SURFACE, markeredgecolor=look.color,
                        markersize=8, zorder=3, clip_on=False,
                    )  # fmt: skip
                axes.plot(
                    result.main_score, y, look.marker, color=look.color, markeredgewidth=0, zorder=4, clip_on=False
                )
            top += taken
        _without_heights(axes)
        axes.margins(x=0.06)
        return to_svg(figure, name=name, title="Main score of each model on each task")


def differences_plot(comparisons: Sequence[Comparison], looks: Mapping[str, Look], *, name: str) -> Svg:
    """The difference of two models on each task with its interval."""
    row, margin = 38.0, 48.0
    with drawing():
        figure, axes = _framed(row * len(comparisons) + margin, left=14, right=14, bottom=margin, top=0)
        axes.set_ylim(row * len(comparisons), 0)
        axes.axvline(0, color=MUTED, linewidth=1)
        for place, each in enumerate(comparisons):
            y = row * place + 27
            _text(axes, 0, row * place + 12, each.task, transform=axes.get_yaxis_transform())
            look = looks[each.a if each.difference > 0 else each.b]
            color = look.color if decided(each) else MUTED
            if each.ci_low is not None and each.ci_high is not None:
                axes.plot([each.ci_low, each.ci_high], [y, y], color=color, linewidth=3, solid_capstyle="butt")
            axes.plot(each.difference, y, look.marker if decided(each) else "o", color=color, markersize=8)
        _without_heights(axes)
        ends = [end for each in comparisons for end in (each.ci_low, each.ci_high, each.difference) if end is not None]
        reach = max((abs(end) for end in ends if math.isfinite(end)), default=0.0)
        # Symmetric, so that the line at zero parts the page between the two models.
        axes.set_xlim(-1.08 * (reach or 1), 1.08 * (reach or 1))
        axes.set_xlabel("a − b")
        for x, side, said in ((0, "left", "← b is better"), (1, "right", "a is better →")):
            axes.annotate(
                said, (x, 0), (0, -30), xycoords="axes fraction", textcoords="offset points", size=11, color=MUTED,
                ha=side, va="center",
            )  # fmt: skip
        return to_svg(figure, name=name, title="Difference of two models on each task, with its interval")


def dimension_plot(series: Mapping[str, Sequence[tuple[int, Result]]], looks: Mapping[str, Look], *, name: str) -> Svg:
    """Scores of one task against the dimension that vectors are cut to; one line for each of `series`."""
    with drawing():
        figure, axes = _framed(230, left=52, right=20, bottom=44, top=12)
        for label, points in series.items():
            x, y = [point[0] for point in points], [point[1].main_score for point in points]
            axes.plot(x, y, color=MUTED, zorder=1)
            for dimension, result in points:
                look = looks[result.label]
                axes.plot(dimension, result.main_score, look.marker, color=look.color, markersize=8, zorder=2)
            if len(series) > 1:
                said = middle_clipped(printable(label), 34)
                axes.annotate(
                    said, (x[-1], y[-1]), (6, 10), textcoords="offset points", size=11, color=MUTED, ha="right"
                )
        axes.set_xscale("log", base=2)
        ticks = sorted({point[0] for points in series.values() for point in points})
        # Labels that would touch are left out, from the widest dimension down.
        kept: list[int] = []
        for tick in reversed(ticks):
            if not kept or kept[-1] / tick > 1.2:
                kept.append(tick)
        _ticks(axes.xaxis, kept, [f"{tick:,}" for tick in kept])
        axes.margins(x=0.08, y=0.15)
        axes.grid(axis="y")
        axes.set_xlabel("dimensions")
        return to_svg(figure, name=name, title="Score against dimension")


def recall_plot(results: Sequence[Result], looks: Mapping[str, Look], *, name: str) -> Svg:
    """The share of relevant documents among the first k, by model."""
    with drawing():
        figure, axes = _framed(250, left=46, right=20, bottom=44, top=12)
        depths: list[float] = []
        for result in results:
            curve, look = result.details["recall_curve"], looks[result.label]
            depths = max(depths, list(curve["k"]), key=len)
            axes.plot(
                curve["k"], 100 * np.asarray(curve["recall"]), color=look.color, marker=look.marker, markersize=6,
                markeredgewidth=0, clip_on=False,
            )  # fmt: skip
        axes.set_xscale("log")
        kept = [depth for depth in depths if str(int(depth)).strip("0") in ("1", "5")] or depths
        _ticks(axes.xaxis, kept, [f"{int(depth):,}" for depth in kept])
        axes.set_ylim(top=100)
        axes.grid()
        axes.set_ylabel("recall, %")
        axes.set_xlabel("first k documents")
        return to_svg(figure, name=name, title="Recall among the first k documents")


def similarity_plot(results: Sequence[Result], looks: Mapping[str, Look], *, name: str) -> Svg:
    """Histograms of similarities: filled where pairs belong together, as a line where they do not."""
    row, margin = {1: 150.0, 2: 110.0}.get(len(results), 84.0), 44.0
    groups = [{key: _finite(values) for key, values in result.details["scores"].items()} for result in results]
    everything = np.concatenate([values for group in groups for values in group.values()] or [np.zeros(1)])
    edges = _edges(everything)
    with drawing():
        height = row * len(results) + margin
        figure = new_figure(WIDTH, height)
        for place, (result, group) in enumerate(zip(results, groups, strict=True)):
            bottom = margin + row * (len(results) - 1 - place)
            axes = figure.add_axes((14 / WIDTH, bottom / height, 1 - 28 / WIDTH, (row - 26) / height))
            for key, values in sorted(group.items(), key=lambda each: each[0] in RELATED):
                share = np.histogram(values, edges)[0] / max(len(values), 1)
                if key in RELATED:
                    axes.stairs(share, edges, fill=True, color=looks[result.label].color, alpha=0.55)
                    axes.stairs(share, edges, color=looks[result.label].color, linewidth=1.2)
                else:
                    axes.stairs(share, edges, color=MUTED, linewidth=1.6)
            axes.set_xlim(edges[0], edges[-1])
            axes.set_ylim(bottom=0)
            _without_heights(axes)
            axes.tick_params(labelbottom=place == len(results) - 1)
            _text(axes, 0, 1, result.label, transform=axes.transAxes, va="bottom")
        axes.set_xlabel("similarity")
        return to_svg(figure, name=name, title="Similarities of pairs that belong together and of those that do not")


def scatter_plot(a: Result, b: Result, looks: Mapping[str, Look], *, name: str) -> Svg:
    """Each item by its value under two models; larger dots stand for more items."""
    if a.items is None or b.items is None:
        raise ValueError("both results need their items")
    x, y = 100 * item_values(a.items), 100 * item_values(b.items)
    low, high = min(float(x.min()), float(y.min())), max(float(x.max()), float(y.max()))
    size = (high - low or 1) / _CELLS
    cells, counts = np.unique(
        np.round(np.stack([x, y], axis=1) / size).astype(np.int64), axis=0, return_counts=True
    )  # fmt: skip
    points = cells * size
    with drawing():
        figure = new_figure(360, 350)
        axes = figure.add_axes((56 / 360, 50 / 350, 290 / 360, 290 / 350))
        pad = 0.05 * (high - low or 1)
        axes.plot([low - pad, high + pad], [low - pad, high + pad], color=MUTED, linewidth=1, zorder=1)
        side = np.sign(cells[:, 0] - cells[:, 1])
        # Few sizes, as each one is a shape of its own in the file.
        levels = np.ceil(8 * np.sqrt(counts / max(int(counts.max()), 12)))
        for sign, look in ((0, None), (1, looks[a.label]), (-1, looks[b.label])):
            for level in np.unique(levels[side == sign]):
                chosen = (side == sign) & (levels == level)
                axes.scatter(
                    points[chosen, 0], points[chosen, 1], s=10 + 28 * level, marker=look.marker if look else "o",
                    color=look.color if look else MUTED, alpha=0.55, linewidths=0, zorder=2,
                )  # fmt: skip
        axes.set_xlim(low - pad, high + pad)
        axes.set_ylim(low - pad, high + pad)
        axes.grid()
        axes.set_xlabel("a")
        axes.set_ylabel("b", rotation=0, labelpad=12)
        return to_svg(figure, name=name, title="Each item by its value under a and under b")


def calibration_plot(
    unrelated: npt.ArrayLike, related: npt.ArrayLike | None, threshold: float | None, *, title: str,
    lines: Sequence[str] = (), path: str | Path | None = None, standalone: bool = True,
) -> Svg:  # fmt: skip
    """Histograms of the similarities of unrelated and of related pairs, and the threshold between them.

    Args:
        unrelated: [n] similarities.
        related: [m] similarities, None where no labels tell.
        threshold: Threshold from which on a pair counts as related, None where there is none.
        title: Above the plot, such as model and data.
        lines: What else to say in a file of its own, below the title, each on lines of its own.
        path: Also write it to this file (.svg or .png).
        standalone: For a file of its own; otherwise for a page.

    Returns:
        A whole SVG file; `save_plot` writes it, as PNG too.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ArgumentError: `path` has another ending.
        OutputError: `path` cannot be written.
    """
    said = [each for line in lines for each in wrapped(printable(line), 92)]
    plot = 260.0
    width, height = (640.0, plot + 104 + 17 * len(said)) if standalone else (float(WIDTH), float(HEIGHT))
    groups = [("unrelated pairs", _finite(unrelated), MUTED)]
    if related is not None:
        groups.append(("related pairs", _finite(related), LIGHT[0]))
    edges = _edges(np.concatenate([*(values for _, values, _ in groups), [] if threshold is None else [threshold]]))
    with drawing():
        figure = new_figure(width, height)
        if standalone:
            axes = figure.add_axes((56 / width, 48 / height, 1 - 76 / width, plot / height))
            figure.text(16 / width, 1 - 26 / height, middle_clipped(printable(title), 76), size=16)
            for place, line in enumerate(said):
                figure.text(16 / width, 1 - (46 + 17 * place) / height, line, color=MUTED)
        else:
            axes = panel(figure)
        for label, values, color in groups:
            share = 100 * np.histogram(values, edges)[0] / max(len(values), 1)
            axes.stairs(share, edges, fill=True, color=color, alpha=0.4, label=f"{label} ({len(values):,})")
            axes.stairs(share, edges, color=color, linewidth=1.2)
        if threshold is not None:
            said_here = f"threshold {threshold:.3f}"
            axes.axvline(threshold, color=INK, linewidth=1.6, linestyle=(0, (5, 3)), label=said_here)
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(bottom=0)
        axes.grid(axis="y")
        axes.set_xlabel("similarity")
        axes.set_ylabel("pairs, %")
        if standalone:
            # Above the axes: no histogram leaves the same corner free each time.
            axes.legend(
                loc="lower right", bbox_to_anchor=(1, 1), ncols=3, borderaxespad=0.2, handlelength=1.6,
                columnspacing=2.0, handletextpad=0.5,
            )  # fmt: skip
        else:
            head(axes, title, *axes.get_legend_handles_labels())
        svg = to_svg(figure, name="calibration", title=title, standalone=standalone)
    if path is not None:
        save_plot(svg, path)
    return svg


def _framed(height: float, *, left: float, right: float, bottom: float, top: float) -> tuple[Any, Any]:
    """A figure of the usual width with axes inside fixed margins: plots below each other share their edges."""
    figure = new_figure(WIDTH, height)
    box = (left / WIDTH, bottom / height, 1 - (left + right) / WIDTH, 1 - (bottom + top) / height)
    return figure, figure.add_axes(box)


def _without_heights(axes: Any) -> None:
    """Leave out the vertical axis, which says nothing; lines rise from the horizontal one."""
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")


def _text(
    axes: Any, x: float, y: float, text: str, *, size: float = 12, room: int = _LABEL, va: str = "center", **how: Any
) -> None:
    axes.text(x, y, middle_clipped(printable(text), room), size=size, va=va, **how)


def _ticks(axis: Any, places: Sequence[float], labels: Sequence[str]) -> None:
    axis.set_ticks(places, labels)
    axis.set_ticks([], minor=True)


def _finite(values: npt.ArrayLike) -> Floats:
    numbers = np.asarray(values, dtype=np.float64).ravel()
    return numbers[np.isfinite(numbers)]


def _edges(values: Floats) -> Floats:
    """Edges of bins over the range of similarities."""
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    pad = max(0.02 * (high - low), 0.005)
    return np.linspace(low - pad, high + pad, _BINS + 1)
