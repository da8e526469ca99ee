"""Lines and bars as plots of a page: a training run, the weights of a merge, the scores of mined passages.

Axes fit their data: they begin at zero only where the data does. What an evaluation draws is in evaluation/report.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ..errors import import_extra
from .pages import INK, LIGHT, MARKERS, MUTED, Svg, drawing, new_figure, to_svg
from .terminal import middle_clipped, printable

#: Units of a plot on the page; text of size 12 stays readable where a telephone shrinks it to 330.
WIDTH: Final = 440
HEIGHT: Final = 230
#: Points that are drawn as such, and steps that a mean is drawn over, as a share of all.
_FEW: Final = 40
_SMOOTH: Final = 0.05
_TITLE: Final = 54
#: Left and right of the axes, and where titles begin, in units of the plot.
_LEFT: Final = 52
_RIGHT: Final = 16
_STEPS: Final = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True)
class LinePlot:
    """Lines over a common axis.

    Attributes:
        title: Above the lines.
        lines: x and y of each line by its name, which is shown where there are several.
        x_label: Below the axis.
        quiet: Names of lines that are drawn in grey.
        smooth: Draw the values faintly, and their running mean over them.
        marked: A place on the x axis and what it is.
        level: A height and what it is, such as the score without a reranker.
        low: The least that values can be, so that the axis does not go below it.
        high: The most that they can be.
        least: The least height of the axis, so that noise does not look like a change.
        x_range: Ends of the x axis, so that plots below each other have the same; by default those of the data.
        whole: Ticks of the x axis are whole numbers.
    """

    title: str
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    x_label: str = "step"
    quiet: Sequence[str] = ()
    smooth: bool = False
    marked: tuple[float, str] | None = None
    level: tuple[float, str] | None = None
    low: float = -math.inf
    high: float = math.inf
    least: float = 0.0
    x_range: tuple[float, float] | None = None
    whole: bool = True

    def svg(self, name: str) -> Svg:
        """The plot on its own, for a page.

        Args:
            name: Unique on the page.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        with drawing():
            figure = new_figure(WIDTH, HEIGHT)
            axes = panel(figure)
            self.draw(axes)
            return to_svg(figure, name=name, title=self.title)

    def draw(self, axes: Any) -> None:
        """Draw the lines on axes of matplotlib."""
        ticker: Any = import_extra("matplotlib.ticker", "eval")
        markers = list(MARKERS)
        colored = [label for label in self.lines if label not in self.quiet]
        for label, (x, y) in self.lines.items():
            place = colored.index(label) if label in colored else 0
            color = LIGHT[place % len(LIGHT)] if label in colored else MUTED
            marker = markers[place % len(markers)] if len(x) <= _FEW else None
            faint = self.smooth and len(y) > _FEW
            axes.plot(
                x, y, color=color, marker=None if faint else marker, markersize=5, markeredgewidth=0,
                alpha=0.3 if faint else 1, linewidth=1 if faint else 1.8, label=None if faint else label,
            )  # fmt: skip
            if faint:
                axes.plot(x, smoothed(y), color=color, label=label)
        if self.level is not None:
            axes.axhline(self.level[0], color=MUTED, linewidth=1.4, linestyle=(0, (5, 3)), label=self.level[1])
        if self.marked is not None:
            axes.axvline(
                self.marked[0], color=INK, linewidth=1.2, linestyle=(0, (2, 2)), label=self.marked[1], zorder=1
            )
        axes.margins(x=0.03, y=0.12)
        if self.x_range is not None:
            room = 0.03 * (self.x_range[1] - self.x_range[0] or 1)
            axes.set_xlim(self.x_range[0] - room, self.x_range[1] + room)
        bottom, top = axes.get_ylim()
        wanted = max(self.least - (top - bottom), 0.0)
        bottom, top = bottom - wanted / 2, top + wanted / 2
        room = 0.02 * (top - bottom)
        axes.set_ylim(max(bottom, self.low - room), min(top, self.high + room))
        axes.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=self.whole, steps=_STEPS))
        axes.yaxis.set_major_locator(ticker.MaxNLocator(5, steps=_STEPS))
        axes.grid(axis="y")
        axes.set_xlabel(self.x_label)
        handles, labels = axes.get_legend_handles_labels()
        # The title says what the only line is.
        first = 1 if len(self.lines) == 1 else 0
        head(axes, self.title, handles[first:], labels[first:])


def sheet(plots: Sequence[LinePlot]) -> Any:
    """All plots on one figure of matplotlib, two beside each other, for a picture of its own.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    columns = min(2, len(plots))
    rows = math.ceil(len(plots) / columns)
    with drawing():
        figure = new_figure(WIDTH * columns, HEIGHT * rows)
        for place, plot in enumerate(plots):
            left, top = place % columns / columns, 1 - place // columns / rows
            box = (
                left + _LEFT / WIDTH / columns, top - (HEIGHT - 44) / HEIGHT / rows,
                (1 - (_LEFT + _RIGHT) / WIDTH) / columns, (1 - 94 / HEIGHT) / rows,
            )  # fmt: skip
            plot.draw(figure.add_axes(box))
        return figure


@dataclass(frozen=True)
class BarPlot:
    """Shares of things that lie in ranges, as filled steps.

    Attributes:
        title: Above.
        groups: Ranges and counts of each group by its name: (from, to, number).
        x_label: Below the axis.
        y_label: What the height of a bar is.
        per_unit: Heights are per unit of x: ranges of different widths compare by their areas.
    """

    title: str
    groups: Mapping[str, Sequence[tuple[float, float, float]]] = field(default_factory=dict)
    x_label: str = ""
    y_label: str = "%"
    per_unit: bool = False

    def svg(self, name: str) -> Svg:
        """The plot for a page, see `LinePlot.svg`."""
        with drawing():
            figure = new_figure(WIDTH, HEIGHT)
            axes = panel(figure)
            for place, (label, bars) in enumerate(self.groups.items()):
                total = sum(number for *_, number in bars) or 1
                color = LIGHT[place]
                # A range without anything is not a range of the list; it is drawn as nothing.
                for first, last, number in bars:
                    height = 100 * number / total / (last - first if self.per_unit else 1)
                    axes.fill_between([first, last], height, color=color, alpha=0.4, linewidth=0)
                    axes.plot([first, first, last, last], [0, height, height, 0], color=color, linewidth=1.2)
                axes.fill_between([], [], color=color, alpha=0.6, label=f"{label} ({total:,.0f})")
            axes.margins(x=0.02)
            axes.set_ylim(bottom=0)
            axes.grid(axis="y")
            axes.set_xlabel(self.x_label)
            axes.set_ylabel(self.y_label)
            handles, labels = axes.get_legend_handles_labels()
            head(axes, self.title, handles if len(handles) > 1 else (), labels)
            return to_svg(figure, name=name, title=self.title)


def panel(figure: Any) -> Any:
    """Axes on a figure of `WIDTH` and `HEIGHT` that leave room for `head`."""
    return figure.add_axes((_LEFT / WIDTH, 44 / HEIGHT, 1 - (_LEFT + _RIGHT) / WIDTH, 1 - 94 / HEIGHT))


def head(axes: Any, title: str, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """Title and legend above the axes, from the left edge of the plot on."""
    left = -(_LEFT - 2) / (WIDTH - _LEFT - _RIGHT)
    axes.set_title(
        middle_clipped(printable(title), _TITLE), loc="left", x=left, size=13, pad=30 if handles else 10
    )  # fmt: skip
    if handles:
        axes.legend(
            handles, [middle_clipped(printable(each), 26) for each in labels], loc="lower left",
            bbox_to_anchor=(left, 1.03), ncols=4, borderaxespad=0.1, borderpad=0.2, handlelength=1.4, columnspacing=1.2,
        )  # fmt: skip


def smoothed(values: Sequence[float]) -> list[float]:
    """Mean over the steps before, so that a jagged curve shows where it goes."""
    width = max(2, int(len(values) * _SMOOTH))
    return [sum(values[max(0, i - width + 1) : i + 1]) / (i + 1 - max(0, i - width + 1)) for i in range(len(values))]
