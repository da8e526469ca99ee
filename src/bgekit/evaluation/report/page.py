"""A report as one page of HTML that asks for nothing from elsewhere and follows the reader's light or dark."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from ...display.html import _asset, figure, folded, marker, model, page, pairs, prose, table, tag, text
from ...display.plots import Look, looks
from ...display.text import clipped, printable
from . import charts as plots
from .summary import (
    TaskView,
    View,
    as_text,
    decided,
    difference,
    facts,
    interval,
    metric_name,
    number,
    p_value,
    published,
    setting_text,
    small_details,
    task_name,
)

if TYPE_CHECKING:
    from ..results import Comparison, ItemChange, ReportContent, Result

#: Up to how many tasks are unfolded, and how many conclusions stand at the top.
_OPEN: Final = 3
_SENTENCES: Final = 6
#: Up to how many pairs of models their differences are drawn at the top.
_PAIRS: Final = 3
#: Plots of pairs of models drawn, and scatter plots, those of the smallest p values: hundreds would take minutes.
_SCATTERS: Final = 24


def html(report: ReportContent) -> str:
    """The report as a page; all texts of data are escaped.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    view = View(report)
    look = looks(view.labels)
    scattered = {id(each) for each in sorted(report.comparisons, key=lambda each: each.p_value)[:_SCATTERS]}
    many = len(view.tasks) > _OPEN
    details = [
        task_section(task, number, look, opened=not many, scores=len(view.tasks) > 1, scattered=scattered)
        for number, task in enumerate(view.tasks, 1)
    ]
    main = [*_notes(report), *_conclusions(view, look), *_scores(view, look)]
    if details:
        main += [tag("h2", "Task by task"), *details]
    main += _measured(view, look)
    return page(f"Evaluation: {view.title}", _header(view, look), "".join(main), script=_asset("page.js"))


def _header(view: View, look: dict[str, Look]) -> str:
    items = sum(task.results[0].count for task in view.tasks)
    models = "1 model" if len(view.labels) == 1 else f"{len(view.labels)} models or settings"
    tasks = "1 task" if len(view.tasks) == 1 else f"{len(view.tasks)} tasks"
    legend = tag("ul", *(tag("li", model(label, look[label])) for label in view.labels), cls="legend")
    about = tag("p", f"{models} on {tasks} with {items:,} items. Scores are x100; higher is better.", cls="quiet")
    # The name of the only model is the title already.
    return tag("h1", text(f"Evaluation: {view.title}")) + about + (legend if len(view.labels) > 1 else "")


def _notes(report: ReportContent) -> list[str]:
    if not report.notes:
        return []
    return [tag("section", tag("strong", "Notes"), tag("ul", *(tag("li", text(n)) for n in report.notes)), cls="notes")]


def _conclusions(view: View, look: dict[str, Look]) -> list[str]:
    comparisons = view.report.comparisons
    if not comparisons:
        return []
    parts = [tag("h2", "What can be concluded")]
    if view.report.correction:
        parts.append(tag("p", text(view.report.correction), cls="quiet"))
    if view.report.means:
        means = tag("ul", *(_sentence(each) for each in view.report.means), cls="findings")
        few = len(view.report.means) <= _SENTENCES
        parts.append(means if few else folded(f"The mean over {len(view.tasks)} tasks", means, cls="inner"))
    if len(comparisons) <= _SENTENCES:
        parts.append(tag("ul", *(_sentence(each) for each in comparisons), cls="findings"))
    elif len(view.pairs) > _PAIRS:
        parts.append(_duels(view, look))
    drawn = [(pair, found) for pair, found in view.pairs.items() if len(found) > 1][:_SCATTERS]
    figures = tag("div", *(_differences(pair, found, look, n) for n, (pair, found) in enumerate(drawn)), cls="plots")
    if drawn:
        many = len(drawn) > _PAIRS
        parts.append(folded("Differences of every two models, task by task", figures, cls="inner") if many else figures)
    return [*parts, _comparison_table(view, look) if len(comparisons) > 1 else ""]


def _differences(pair: tuple[str, str], found: Sequence[Comparison], look: dict[str, Look], place: int) -> str:
    won, lost = _won(found)
    a, b = (model(label, look[label]) for label in pair)
    caption = (
        f"a = {a}, b = {b}. Of {len(found)} tasks, a is better on {won} and b on {lost};"
        f" {len(found) - won - lost} are undecided (grey). Bars are 95&nbsp;% intervals."
    )
    if any(each.doubt for each in found):
        caption += " Where there is no bar, items are too few for one."
    return figure(plots.differences_plot(found, look, name=f"pair{place}"), caption)


def _duels(view: View, look: dict[str, Look]) -> str:
    """Every model against every other one: the difference on the only task, or tasks won and lost."""
    pairs_of = view.pairs
    rows = []
    for a in view.labels:
        row = [model(a, look[a])]
        for b in view.labels:
            found, turned = pairs_of.get((a, b), []), pairs_of.get((b, a), [])
            if len(view.tasks) == 1:
                gains = [(each, each.difference) for each in found] + [(each, -each.difference) for each in turned]
                cells = [tag("b" if decided(each) else "span", number(gain, signed=True)) for each, gain in gains]
                row.append(cells[0] if cells else "")
            else:
                won, lost = _won(found) if found else _won(turned)[::-1]
                row.append(f"{won} : {lost}" if found or turned else "")
        rows.append(row)
    what = (
        "Row minus column; bold where the difference is significant after correction for all comparisons."
        if len(view.tasks) == 1
        else "Tasks on which the row is significantly better : tasks on which the column is."
    )
    # The names stand in the rows; as heads of narrow columns they would only be broken into pieces.
    head = ["", *(marker(look[label], label) for label in view.labels)]
    return tag("p", what, cls="quiet") + table(head, rows, numbers=range(1, len(head)))


def _won(found: Sequence[Comparison]) -> tuple[int, int]:
    """Tasks on which a is better, and on which b is."""
    gains = [each.difference for each in found if decided(each)]
    return sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)


def _sentence(comparison: Comparison) -> str:
    return f"<li{'' if decided(comparison) else ' class=open'}>{text(comparison.conclusion)}</li>"


def _comparison_table(view: View, look: dict[str, Look]) -> str:
    head = ["Task", "a", "b", "a − b", "95&nbsp;% interval", "p", "p corrected", "a wins", "b wins", "Ties"]
    ids = {(task.name, task.split): task_id(place) for place, task in enumerate(view.tasks, 1)}
    rows = [
        [
            _task_link(each, ids), model(each.a, look[each.a]),
            model(each.b, look[each.b]), number(each.difference, signed=True), interval(each),
            text(p_value(each.p_value)), text(p_value(each.p_adjusted)), f"{each.wins:,}", f"{each.losses:,}",
            f"{each.ties:,}",
        ]
        for each in [*view.report.means, *view.report.comparisons]
        if each.over_tasks or (each.task, each.split) in ids
    ]  # fmt: skip
    content = table(head, rows, numbers=range(3, 10), sortable=True)
    return content if len(rows) <= 2 * _SENTENCES else folded(f"All {len(rows)} comparisons", content, cls="inner")


def _task_link(comparison: Comparison, ids: dict[tuple[str, str], str]) -> str:
    """The task, with a link to its part of the page; the mean over tasks has none."""
    place = ids.get((comparison.task, comparison.split))
    return f'<a href="#{place}">{text(comparison.task)}</a>' if place else text(task_name(comparison))


def _scores(view: View, look: dict[str, Look]) -> list[str]:
    if not view.tasks:
        return [tag("p", "Nothing was measured.")]
    parts = [tag("h2", "Scores"), _matrix(view, look) if len(view.tasks) > 1 else _list(view.tasks[0], look)]
    if view.has_incomparable:
        parts.append(tag("p", "* published on other data: not comparable.", cls="quiet"))
    if len(view.report.results) > 1:
        caption = "Main score of each task."
        if view.has_published:
            caption += " A hollow marker is the published score of the same model."
        # A sheet of rows is read from top to bottom; beyond some length two beside each other are easier.
        half = (len(view.tasks) + 1) // 2 if len(view.tasks) > 5 else len(view.tasks)
        sheets = [view.tasks[:half], view.tasks[half:]]
        drawn = [plots.scores_plot(part, look, name=f"scores{n}") for n, part in enumerate(sheets) if part]
        captions = [caption, *[""] * (len(drawn) - 1)]
        parts.append(tag("div", *map(figure, drawn, captions), cls="plots"))
    return parts


def _list(task: TaskView, look: dict[str, Look]) -> str:
    """The models on the only task."""
    head = ["Model", text(task.metric), "Published", "Difference", "Seconds"]
    rows = []
    for result in task.results:
        best = "best" if len(task.results) > 1 and result.main_score == task.best else ""
        score = tag("span", number(result.main_score), cls=best)
        compared = [published(result), number(difference(result), signed=True)]
        rows.append([model(result.label, look[result.label]), score, *compared, number(result.seconds, digits=1)])
    return table(head, rows, numbers=range(1, 5), sortable=True)


def _matrix(view: View, look: dict[str, Look]) -> str:
    """Tasks as rows, models as columns."""
    rows = []
    for place, task in enumerate(view.tasks, 1):
        name = (
            f'<a href="#{task_id(place)}">{text(task.name)}</a> <small>{text(f"{task.metric}, {task.split}")}</small>'
        )
        rows.append([name, *(_cell(task.result(label), task.best, len(view.labels)) for label in view.labels)])
    means = view.means()
    numbers = range(1, len(view.labels) + 1)
    rows.append([f"Mean over {len(view.tasks)} tasks", *(number(means[label]) for label in view.labels)])
    return table(["Task", *(model(label, look[label]) for label in view.labels)], rows, numbers=numbers, cls="matrix")


def _cell(result: Result | None, best: float, models: int) -> str:
    if result is None:
        return number(None)
    content = tag("span", number(result.main_score), cls="best" if models > 1 and result.main_score == best else "")
    if result.reference is not None:
        change = f" ({number(difference(result), signed=True)})" if result.comparable else ""
        content += tag("small", f"published {published(result)}{change}")
    return content


def _measured(view: View, look: dict[str, Look]) -> list[str]:
    parts = [tag("h2", "How it was measured"), pairs(facts(view.report.environment))]
    if view.labels:
        parts.append(tag("h4", "Models"))
    for label in view.labels:
        result = view.first(label)
        about = [("model", as_text(result.model)), ("setting", setting_text(result.setting))]
        about += [(f"{key} fingerprint", value) for key, value in result.fingerprints.items() if key != "data"]
        parts.append(folded(model(label, look[label]), pairs([*about, *_card(result)]), cls="inner"))
    return parts


def _card(result: Result) -> Sequence[tuple[str, str]]:
    """The model card; its prompts with their spaces, which count."""
    prompts = result.card.get("prompts")
    card = [each for each in facts(result.card) if not each[0].startswith("prompts")]
    return [*card, ("prompts", json.dumps(prompts, ensure_ascii=False))] if prompts else card


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
    body = [
        *([_task_scores(task, looks)] if scores else []),
        tag("div", *_plots(task, looks, task_id(place)), cls="plots"),
    ]
    if task.exclusions:
        excluded = (tag("li", text(str(each))) for each in task.exclusions)
        body.append(tag("p", "Left out:") + tag("ul", *excluded))
    if task.notes:
        body.append(tag("p", "To be known:") + tag("ul", *(tag("li", text(each)) for each in task.notes)))
    for number_of, comparison in enumerate(task.comparisons, 1):
        name = f"{task_id(place)}c{number_of}" if id(comparison) in scattered else None
        body.append(_comparison(task, comparison, looks, name, len(task.comparisons) <= _COMPARISONS_OPEN))
    body += _further(task, looks)
    return f'<section class="task" id="{task_id(place)}">{folded(head, *body, opened=opened)}</section>'


def _task_scores(task: TaskView, looks: Mapping[str, Look]) -> str:
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
_COMPARISONS_OPEN: Final = 3
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
