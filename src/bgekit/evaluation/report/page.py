"""A report as one page of HTML that asks for nothing from elsewhere and follows the reader's light or dark."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from ...display.pages import Look, Svg, looks, render_page
from ...display.terminal import clipped, printable
from ..metrics import metric_name
from . import charts
from .summary import (
    MISSING,
    TaskView,
    View,
    as_text,
    comparison_figures,
    decided,
    difference,
    facts,
    interval,
    number,
    published,
    score_interval,
    seconds,
    setting_text,
    small_details,
    task_name,
)

if TYPE_CHECKING:
    from ..results import Comparison, ItemChange, ReportContent, Result

#: Up to how many tasks, and comparisons of a task, are unfolded, and how many conclusions stand at the top.
_OPEN: Final = 3
_SENTENCES: Final = 6
#: Up to how many pairs of models their differences are drawn at the top.
_PAIRS: Final = 3
#: Plots of pairs of models drawn, and scatter plots, those of the smallest p values: hundreds would take minutes.
_SCATTERS: Final = 24
#: Columns shown of a text; all of it stands in the data.
_TEXT: Final = 400
_RANKS: Final = " The value of a pair says how close its rank by similarity comes to its rank by label."


def html(report: ReportContent) -> str:
    """The report as a page; all texts of data are escaped.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    view = View(report)
    look = looks(view.labels)
    scattered = {id(each) for each in sorted(report.comparisons, key=lambda each: each.p_value)[:_SCATTERS]}
    tasks = "1 task" if len(view.tasks) == 1 else f"{len(view.tasks)} tasks"
    items = sum(task.results[0].count for task in view.tasks)
    return render_page(
        "evaluation/report/page.html.jinja", f"Evaluation: {view.title}", script=True,
        view=view, report=report, looks=look,
        about=f"{view.counted} on {tasks} with {items:,} items. Scores are x100; higher is better.",
        # The name of the only model is the title already.
        legend=view.labels if len(view.labels) > 1 else (),
        conclusions=_conclusions(view, look),
        sheets=list(_sheets(view, look)),
        tasks=[_task(view, place, look, scattered) for place in range(len(view.tasks))],
        opened=len(view.tasks) <= _OPEN,
        environment=facts({key: round(value, 1) if isinstance(value, float) else value
                           for key, value in report.environment.items()}),
        models=[(label, _card(view.first(label))) for label in view.labels],
        decided=decided, difference=difference, figures=comparison_figures, interval=interval, metric_name=metric_name,
        number=number, published=published, task_name=task_name,
    )  # fmt: skip


def _anchor(place: int) -> str:
    """The id of a task's section, counted from 0."""
    return f"task{place + 1}"


def _conclusions(view: View, look: Mapping[str, Look]) -> dict[str, Any]:
    """The comparisons of the report: sentences, tables and plots, as many as can be read."""
    comparisons, means = view.report.comparisons, view.report.means
    anchors = {(task.name, task.split): _anchor(place) for place, task in enumerate(view.tasks)}
    rows = [
        (anchors.get((each.task, each.split)), each)
        for each in [*means, *comparisons]
        if each.over_tasks or (each.task, each.split) in anchors
    ]
    drawn = [(pair, found) for pair, found in view.pairs.items() if len(found) > 1][:_SCATTERS]
    several = len(comparisons) > _SENTENCES
    return {
        "many_means": len(means) > _SENTENCES,
        "sentences": () if several else comparisons,
        "duels": list(_duels(view)) if several and len(view.pairs) > _PAIRS else (),
        "duels_are": (
            "Row minus column; bold where the difference is significant after correction for all comparisons."
            if len(view.tasks) == 1
            else "Tasks on which the row is significantly better : tasks on which the column is."
        ),
        "differences": [
            {
                "a": a, "b": b, "tasks": len(found), "won": _won(found)[0], "lost": _won(found)[1],
                "doubt": any(each.doubt for each in found),
                "svg": charts.differences_plot(found, look, name=f"pair{place}"),
            }
            for place, ((a, b), found) in enumerate(drawn)
        ],
        "many_differences": len(drawn) > _PAIRS,
        "rows": rows if len(comparisons) > 1 else (),
        "many_rows": len(rows) > 2 * _SENTENCES,
    }  # fmt: skip


def _duels(view: View) -> Iterator[tuple[str, list[tuple[str, bool]]]]:
    """Every model against every other one: the difference on the only task, or tasks won and lost; whether bold."""
    pairs = view.pairs
    for a in view.labels:
        row = []
        for b in view.labels:
            found, turned = pairs.get((a, b), []), pairs.get((b, a), [])
            if len(view.tasks) == 1:
                gains = [(each.difference, each) for each in found] + [(-each.difference, each) for each in turned]
                cells = [(number(gain, signed=True), decided(each)) for gain, each in gains]
                row.append(cells[0] if cells else ("", False))
            else:
                won, lost = _won(found) if found else _won(turned)[::-1]
                row.append((f"{won} : {lost}" if found or turned else "", False))
        yield a, row


def _won(found: Sequence[Comparison]) -> tuple[int, int]:
    """Tasks on which a is better, and on which b is."""
    gains = [each.difference for each in found if decided(each)]
    return sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)


def _sheets(view: View, look: Mapping[str, Look]) -> Iterator[tuple[Svg, str]]:
    """The main scores as plots, with the caption of the first."""
    if len(view.report.results) < 2:
        return
    caption = "Main score of each task."
    if view.has_published:
        caption += " A hollow marker is the published score of the same model."
    if any(score_interval(result) for result in view.report.results):
        caption += (
            " Bars are 95\u00a0% intervals of each score by itself; whether two models differ, their comparison says,"
            " which is sharper."
        )
    # A sheet of rows is read from top to bottom; beyond some length two beside each other are easier.
    half = (len(view.tasks) + 1) // 2 if len(view.tasks) > 5 else len(view.tasks)
    for place, part in enumerate((view.tasks[:half], view.tasks[half:])):
        if part:
            yield charts.scores_plot(part, look, name=f"scores{place}"), "" if place else caption


def _card(result: Result) -> list[tuple[str, str]]:
    """Model, setting, fingerprints and card; the card's prompts with their spaces, which count."""
    about = [("model", as_text(result.model)), ("setting", setting_text(result.setting))]
    about += [(f"{key} fingerprint", value) for key, value in result.fingerprints.items() if key != "data"]
    prompts = result.card.get("prompts")
    about += [each for each in facts(result.card) if not (prompts and each[0].startswith("prompts"))]
    if prompts:
        about.append(("prompts", json.dumps(prompts, ensure_ascii=False)))
    return about


def _task(view: View, place: int, look: Mapping[str, Look], scattered: set[int]) -> dict[str, Any]:
    """Everything about a task.

    Args:
        view: The report.
        place: The task's place in it, which makes names on the page unique.
        look: How models are drawn.
        scattered: The `id`s of comparisons that get a plot of their items.
    """
    task, anchor = view.tasks[place], _anchor(place)
    with_published = any(result.reference is not None for result in task.results)
    # Of several models the plot has them, where nobody takes them for a comparison.
    alone = len(view.report.results) == 1 and score_interval(task.results[0]) is not None
    rows, cells = [], []
    for result in task.results:
        compared = [published(result), number(difference(result), signed=True)] if with_published else []
        ends = [_ends(result)] if alone else []
        rows.append((result.label, [number(result.main_score), *ends, *compared, seconds(result)]))
    for label in view.labels:
        one = task.result(label)
        change = f"({number(difference(one), signed=True)})" if one and one.comparable else ""
        cells.append((one, one is not None and label == task.best, change))
    details = [("data fingerprint", as_text(task.results[0].fingerprints.get("data")))]
    return {
        "view": task, "anchor": anchor, "cells": cells, "rows": rows,
        "head": [
            "Model", task.metric, *(["95\u00a0% interval"] if alone else []),
            *(["Published", "Difference"] if with_published else []), "Seconds",
        ],
        "plots": list(_plots(task, look, anchor)),
        "comparisons": [
            _comparison(task, each, look, f"{anchor}c{number_of}" if id(each) in scattered else None)
            for number_of, each in enumerate(task.comparisons, 1)
        ],
        "few": len(task.comparisons) <= _OPEN,
        "labels": [result.label for result in task.results],
        "published": [(name, number(score)) for name, score in task.published.items()],
        "comparable": all(result.comparable for result in task.results),
        "details": details + [
            (f"{key}, {result.label}", value) for result in task.results for key, value in small_details(result)
        ],
    }  # fmt: skip


def _ends(result: Result) -> str:
    ends = score_interval(result)
    return MISSING if ends is None else " to ".join(map(number, ends))


def _plots(task: TaskView, look: Mapping[str, Look], name: str) -> Iterator[tuple[Svg, str]]:
    """The plots of a task that its results have data for, with captions."""
    curves = [result for result in task.results if len(result.details.get("recall_curve", {}).get("k", ())) > 1]
    if curves:
        caption = "Recall: the share of relevant documents that stand among the first k."
        yield charts.recall_plot(curves, look, name=f"{name}r"), caption
    if series := _dimension_series(task.results):
        caption = "Score against the dimension that vectors are cut to."
        yield charts.dimension_plot(series, look, name=f"{name}d"), caption
    spread = [result for result in task.results if any(map(len, result.details.get("scores", {}).values()))]
    if spread:
        groups = {key for result in spread for key in result.details["scores"]}
        caption = "Similarities of all pairs."
        if "related" in groups:
            caption = "Similarities: filled, pairs that belong together; grey line, pairs that do not."
        if "relevant" in groups:
            caption = (
                "Similarities: filled, queries with their relevant documents (as far as those were found); grey line,"
                " queries with random documents. Each is scaled to its own number of pairs."
            )
        yield charts.similarity_plot(spread, look, name=f"{name}s"), caption


def _dimension_series(results: Sequence[Result]) -> dict[str, list[tuple[int, Result]]]:
    """Dimensions and results of models that were measured at several dimensions, all else being equal."""
    found: dict[tuple[str, str], dict[int, Result]] = {}
    for result in results:
        others = {key: value for key, value in result.setting.items() if key != "dimension"}
        dimension = result.setting.get("dimension") or result.card.get("dimension")
        if isinstance(dimension, int):
            found.setdefault((result.model, repr(sorted(others.items()))), {})[dimension] = result
    # The label of the widest one is that of the model without a cut.
    return {points[max(points)].label: sorted(points.items()) for points in found.values() if len(points) > 1}


def _comparison(task: TaskView, comparison: Comparison, look: Mapping[str, Look], name: str | None) -> dict[str, Any]:
    """A comparison of two models on a task, with a plot of its items if that has a name."""
    a, b = task.result(comparison.a), task.result(comparison.b)
    names = ("a − b", "95 % interval", "p", "p corrected", "a wins", "b wins", "ties")
    numbers = list(zip(names, comparison_figures(comparison), strict=True))
    if 0 < comparison.units < comparison.n:
        numbers.insert(4, ("independent items", f"{comparison.units:,}"))
    svg = ""
    if name and a and b and a.items is not None and b.items is not None and len(a.items.ids) > 1:
        svg = charts.scatter_plot(a, b, look, name=name)
    return {
        "comparison": comparison, "a": comparison.a, "b": comparison.b, "numbers": numbers, "svg": svg,
        "caption": (
            "Each item by its value under a and under b; above the line b is better, below it a. Larger dots stand for"
            f" more items.{'' if comparison.statistic == 'mean' else _RANKS}"
        ),
        "regressions": list(map(_change, comparison.regressions)),
        "improvements": list(map(_change, comparison.improvements)),
    }  # fmt: skip


def _change(item: ItemChange) -> tuple[ItemChange, str, list[tuple[str, str]]]:
    """An item with its text and details, as much of them as is shown."""
    details = [(key, clipped(value, _TEXT)) for key, value in facts(_told_once(item.detail))]
    return item, clipped(printable(item.text or item.id), _TEXT), details


def _told_once(detail: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of an item, where a text that stood above is only named."""
    shown: dict[str, Any] = {}
    for key, value in detail.items():
        before = next((name for name, told in detail.items() if name in shown and told == value), None)
        shown[key] = value if before is None else f"the {before} one" if before == "relevant" else f"what {before}"
    return shown
