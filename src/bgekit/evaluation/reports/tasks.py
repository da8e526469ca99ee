"""The part of the page on one task: its scores, plots, exclusions and comparisons with the texts behind them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from . import plots
from .columns import clipped, printable
from .elements import figure, folded, model, pairs, prose, table, tag, text
from .theme import Look
from .view import (
    TaskView,
    as_text,
    decided,
    difference,
    facts,
    interval,
    metric_name,
    number,
    p_value,
    published,
    small_details,
)

if TYPE_CHECKING:
    from ..results import Comparison, ItemChange, Result


def task_id(place: int) -> str:
    """Where the task stands on the page."""
    return f"task{place}"


def task_section(
    task: TaskView, place: int, looks: Mapping[str, Look], *, opened: bool, scores: bool, scattered: Collection[int]
) -> str:
    """All that is known of a task.

    Args:
        task: The task.
        place: Its number, which makes names on the page unique.
        looks: How models are drawn.
        opened: Whether it is unfolded at first.
        scores: Whether its table of scores does not stand above already.
        scattered: The `id`s of comparisons that get a plot of their items.
    """
    head = f"{tag('h3', text(task.name))} {tag('span', text(', '.join(task.about)), cls='about')}"
    body = [*([_scores(task, looks)] if scores else []), tag("div", *_plots(task, looks, task_id(place)), cls="plots")]
    if task.exclusions:
        excluded = (tag("li", text(str(each))) for each in task.exclusions)
        body.append(tag("p", "Left out:") + tag("ul", *excluded))
    if task.notes:
        body.append(tag("p", "To be known:") + tag("ul", *(tag("li", text(each)) for each in task.notes)))
    for number_of, comparison in enumerate(task.comparisons, 1):
        name = f"{task_id(place)}c{number_of}" if id(comparison) in scattered else None
        body.append(_comparison(task, comparison, looks, name, len(task.comparisons) <= _OPEN))
    body += _further(task, looks)
    return f'<section class="task" id="{task_id(place)}">{folded(head, *body, opened=opened)}</section>'


def _scores(task: TaskView, looks: Mapping[str, Look]) -> str:
    known = any(result.reference is not None for result in task.results)
    head = ["Model", text(task.metric), *(["Published", "Difference"] if known else []), "Seconds"]
    rows = []
    for result in task.results:
        row = [model(result.label, looks[result.label]), number(result.main_score)]
        row += [published(result), number(difference(result), signed=True)] if known else []
        rows.append([*row, number(result.seconds, digits=1) + (" (cached)" if result.cached else "")])
    return table(head, rows, numbers=range(1, len(head)), sortable=True)


def _plots(task: TaskView, looks: Mapping[str, Look], name: str) -> list[str]:
    figures = []
    curves = [result for result in task.results if len(result.details.get("recall_curve", {}).get("k", ())) > 1]
    if curves:
        caption = "Recall: the share of relevant documents that stand among the first k."
        figures.append(figure(plots.recall_plot(curves, looks, name=f"{name}r"), caption))
    if series := dimension_series(task.results):
        caption = "Score against the dimension that vectors are cut to."
        figures.append(figure(plots.dimension_plot(series, looks, name=f"{name}d"), caption))
    spread = [result for result in task.results if any(map(len, result.details.get("scores", {}).values()))]
    if spread:
        figures.append(figure(plots.similarity_plot(spread, looks, name=f"{name}s"), _spread_caption(spread)))
    return figures


def _spread_caption(results: Sequence[Result]) -> str:
    groups = {key for result in results for key in result.details["scores"]}
    if "relevant" in groups:
        return (
            "Similarities: filled, queries with their relevant documents (as far as those were found); grey line,"
            " queries with random documents. Each is scaled to its own number of pairs."
        )
    if "related" in groups:
        return "Similarities: filled, pairs that belong together; grey line, pairs that do not."
    return "Similarities of all pairs."


def dimension_series(results: Sequence[Result]) -> dict[str, list[tuple[int, Result]]]:
    """Dimensions and results of models that were measured at several dimensions, all else being equal."""
    found: dict[tuple[str, str], dict[int, Result]] = {}
    for result in results:
        others = {key: value for key, value in result.setting.items() if key != "dimension"}
        dimension = result.setting.get("dimension") or result.card.get("dimension")
        if isinstance(dimension, int):
            found.setdefault((result.model, repr(sorted(others.items()))), {})[dimension] = result
    series = {}
    for points in found.values():
        if len(points) > 1:
            # The label of the widest one is that of the model without a cut.
            series[points[max(points)].label] = sorted(points.items(), key=lambda point: point[0])
    return series


def _comparison(
    task: TaskView, comparison: Comparison, looks: Mapping[str, Look], name: str | None, opened: bool
) -> str:
    a, b = task.result(comparison.a), task.result(comparison.b)
    names = f"a = {model(comparison.a, looks[comparison.a])}, b = {model(comparison.b, looks[comparison.b])}"
    found = [
        ("a − b", number(comparison.difference, signed=True)), ("95 % interval", interval(comparison)),
        ("p", p_value(comparison.p_value)), ("p corrected", p_value(comparison.p_adjusted)),
        *([("independent items", f"{comparison.units:,}")] if 0 < comparison.units < comparison.n else []),
        ("a wins", f"{comparison.wins:,}"), ("b wins", f"{comparison.losses:,}"), ("ties", f"{comparison.ties:,}"),
    ]  # fmt: skip
    parts = [tag("p", text(comparison.conclusion), cls=_class(comparison))]
    parts.append(
        tag("dl", *(f"<div><dt>{key}</dt><dd>{text(value)}</dd></div>" for key, value in found), cls="numbers")
    )
    plot = ""
    if name and a and b and a.items is not None and b.items is not None and len(a.items.ids) > 1:
        caption = (
            "Each item by its value under a and under b; above the line b is better, below it a. Larger dots stand for"
            f" more items.{'' if comparison.statistic == 'mean' else _RANKS}"
        )
        plot = figure(plots.scatter_plot(a, b, looks, name=name), caption, cls="square")
    changes = ""
    if comparison.regressions:
        changes += folded("Where a falls most behind b", _items(comparison.regressions), opened=True, cls="inner")
    if comparison.improvements:
        changes += folded("Where a is furthest ahead of b", _items(comparison.improvements), cls="inner")
    sides = tag("div", plot, tag("div", changes), cls="sides")
    head = f"{tag('h4', names)} {tag('span', f'{found[0][1]} {found[1][1]}', cls='about')}"
    return folded(head, *parts, sides, opened=opened, cls="comparison plotted" if plot else "comparison")


#: Up to how many comparisons are unfolded.
_OPEN: Final = 3
#: Columns shown of a text; all of it stands in the data.
_TEXT: Final = 400
_RANKS: Final = " The value of a pair says how close its rank by similarity comes to its rank by label."


def _class(comparison: Comparison) -> str:
    return "conclusion" if decided(comparison) else "conclusion open"


def _items(items: Sequence[ItemChange]) -> str:
    rows = []
    for item in items:
        name = f"{prose(clipped(printable(item.text or item.id), _TEXT))} {tag('small', text(item.id))}"
        detail = "<br>".join(f"{text(key)}: {prose(clipped(value, _TEXT))}" for key, value in facts(item.detail))
        rows.append([name, number(item.a), number(item.b), detail])
    return table(["Item", "a", "b", "Detail"], rows, numbers=(1, 2), cls="items")


def _further(task: TaskView, looks: Mapping[str, Look]) -> list[str]:
    names = list(dict.fromkeys(name for result in task.results for name in result.metrics))
    rows = [
        [f'<span title="{text(name)}">{text(metric_name(name))}</span>']
        + [number(result.metrics.get(name)) for result in task.results]
        for name in names
    ]
    head = ["Metric", *(model(result.label, looks[result.label]) for result in task.results)]
    metrics = table(head, rows, numbers=range(1, len(head)))
    parts = [folded(f"All {len(names)} metrics", metrics, cls="inner")]
    others = {name: score for result in task.results for name, score in result.published.items()}
    if others:
        rows = [[text(name), number(score)] for name, score in others.items()]
        note = "" if all(result.comparable for result in task.results) else ", of other data (not comparable)"
        content = table(["Model", text(task.metric)], rows, numbers=(1,), sortable=True)
        parts.append(folded(f"Published scores{note}", content, cls="inner"))
    about = [("data fingerprint", as_text(task.results[0].fingerprints.get("data")))]
    about += [(f"{key}, {result.label}", value) for result in task.results for key, value in small_details(result)]
    return [*parts, folded("Further details", pairs(about), cls="inner")]
