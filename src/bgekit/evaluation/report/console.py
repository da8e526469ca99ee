"""A report on the console: scores beside published ones, what was left out, and what comparisons say."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Final

from ...display.terminal import clipped, columns, middle_clipped, padded, printable, wrapped
from .summary import MISSING, View, difference, interval, number, p_value, published, task_name

if TYPE_CHECKING:
    from ..results import Comparison, ReportContent
    from .summary import TaskView

_NARROWEST: Final = 40
_WIDEST: Final = 120
#: Worst regressions shown, and up to how many comparisons: more of them are read in a file.
_REGRESSIONS: Final = 3
_COMPARISONS_WITH_TEXTS: Final = 3


def console(report: ReportContent, width: int | None = None) -> str:
    """The report for a screen.

    Args:
        report: What was found.
        width: Columns of the screen; by default those of the terminal, 80 without one.
    """
    width = min(max(width or shutil.get_terminal_size((80, 24)).columns, _NARROWEST), _WIDEST)
    view = View(report)
    lines = [line for task in view.tasks for line in [*_scores(task, width, with_published=view.has_published), ""]]
    if len(view.tasks) > 1:
        lines += [*_means(view, width), ""]
    if report.comparisons:
        lines += ["Comparisons", ""]
        if report.correction:
            lines += [*wrapped(report.correction, width), ""]
        lines += [line for each in report.means for line in [*_comparison(each, width, False), ""]]
        with_texts = len(report.comparisons) <= _COMPARISONS_WITH_TEXTS
        lines += [line for each in report.comparisons for line in [*_comparison(each, width, with_texts), ""]]
    if report.notes:
        lines += ["Notes", ""]
        lines += [line for each in report.notes for line in _item("- ", printable(each), width)]
    return "\n".join(line.rstrip() for line in lines).rstrip() + "\n"


def _scores(task: TaskView, width: int, *, with_published: bool) -> list[str]:
    head = (f"{'ours':>8}" + f"{'published':>11}{'diff':>8}") if with_published else f"{'score':>8}"
    name = clipped(printable(f"{task.name}: {task.metric}"), width - len(head) - 1)
    lines = [padded(name, width - len(head)) + head]
    lines += wrapped(printable(", ".join(task.about)), width, indent="  ")
    for result in task.results:
        row = f"{number(result.main_score):>8}"
        if with_published:
            row += f"{published(result):>11}{number(difference(result), signed=True):>8}"
        lines += _named(printable(result.label), row, width)
    if not task.comparable and with_published:
        lines += _item("  * ", "published on other data: not comparable", width)
    for exclusion in task.exclusions:
        lines += _item("  excluded: ", printable(str(exclusion)), width)
    for note in task.notes:
        lines += _item("  note: ", printable(note), width)
    return lines


def _means(view: View, width: int) -> list[str]:
    lines = [padded(f"Mean over {len(view.tasks)} tasks", width - 8) + f"{'score':>8}"]
    for label, mean in view.means().items():
        lines += _named(printable(label), f"{number(mean):>8}", width)
    if any(mean is None for mean in view.means().values()):
        lines += _item(f"  {MISSING} ", "not measured on every task", width)
    return lines


def _comparison(comparison: Comparison, width: int, with_texts: bool) -> list[str]:
    about = ", ".join(part for part in (task_name(comparison), comparison.split, comparison.metric) if part)
    lines = wrapped(printable(about), width)
    lines += _item("  a  ", printable(comparison.a), width) + _item("  b  ", printable(comparison.b), width)
    several = comparison.p_adjusted > comparison.p_value
    adjusted = f" ({p_value(comparison.p_adjusted)} corrected)" if several else ""
    found = (
        f"a - b = {number(comparison.difference, signed=True)} {interval(comparison)},"
        f" p {_equals(p_value(comparison.p_value))}{adjusted}; of {_counted(comparison)}: {comparison.wins:,} won,"
        f" {comparison.losses:,} lost, {comparison.ties:,} tied"
    )
    lines += wrapped(found, width, indent="  ")
    lines += wrapped(printable(comparison.conclusion), width, indent="  ")
    if with_texts and comparison.regressions:
        lines.append(f"  Where a falls most behind b:{'':>{max(width - 46, 1)}}{'a':>8}{'b':>8}")
        for item in comparison.regressions[:_REGRESSIONS]:
            row = f"{number(item.a):>8}{number(item.b):>8}"
            text = clipped(printable(item.text or item.id), width - len(row) - 5)
            lines.append(padded(f"    {text}", width - len(row)) + row)
    return lines


def _counted(comparison: Comparison) -> str:
    """The number of items or tasks that are won and lost."""
    if comparison.over_tasks:
        return f"{comparison.over_tasks} tasks"
    return f"{comparison.n:,}" + (f" ({comparison.units:,} independent)" if 0 < comparison.units < comparison.n else "")


def _named(name: str, row: str, width: int) -> list[str]:
    """A row of numbers after its name, or below a name that is too long beside them."""
    if columns(name) + 3 + len(row) <= width:
        return [padded(f"  {name}", width - len(row)) + row]
    return [f"  {middle_clipped(name, width - 2)}", " " * (width - len(row)) + row]


def _item(mark: str, text: str, width: int) -> list[str]:
    """A text after a mark, its further lines below its first."""
    first, *rest = wrapped(text, width, indent=" " * len(mark)) or [mark]
    return [mark + first[len(mark) :], *rest]


def _equals(value: str) -> str:
    return value if value.startswith("<") else f"= {value}"
