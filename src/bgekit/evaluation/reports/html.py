"""A report as one page of HTML that asks for nothing from elsewhere and follows the reader's light or dark."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib import resources
from typing import TYPE_CHECKING, Final

from . import plots
from .elements import figure, folded, marker, model, pairs, table, tag, text
from .tasks import task_id, task_section
from .theme import DARK, LIGHT, ROLES, Look, looks
from .view import (
    View,
    as_text,
    decided,
    difference,
    facts,
    interval,
    number,
    p_value,
    published,
    setting_text,
    task_name,
)

if TYPE_CHECKING:
    from ..results import Comparison, Report, Result
    from .view import TaskView

#: Up to how many tasks are unfolded, and how many conclusions stand at the top.
_OPEN: Final = 3
_SENTENCES: Final = 6
#: Up to how many pairs of models their differences are drawn at the top.
_PAIRS: Final = 3
#: Plots of pairs of models drawn, and scatter plots, those of the smallest p values: hundreds would take minutes.
_SCATTERS: Final = 24


def html(report: Report) -> str:
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


def page(title: str, header: str, main: str, *, script: str = "") -> str:
    """A page in our style: colours for light and dark, type, tables.

    Args:
        title: In the browser's tab; a text.
        header: HTML at the top.
        main: HTML of the content.
        script: The only one that runs.
    """
    # Nothing is loaded, and no script runs but our own: a text that slipped through escaping could do nothing.
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    if script:
        allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy += f"; script-src 'sha256-{allowed}'"
        script = f"\n{tag('script', script)}"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{_variables()}{_asset('page.css')}</style></head>\n"
        f"<body>{tag('header', header)}\n{tag('main', main)}{script}</body></html>\n"
    )


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _variables() -> str:
    """The colours by name, for a light and for a dark page."""
    light, dark = (
        "".join(f"--{name}:{colors[place]};" for name, colors in ROLES.items())
        + "".join(f"--s{number}:{color};" for number, color in enumerate(series, 1))
        for place, series in enumerate((LIGHT, DARK))
    )
    return f":root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}@media print{{:root{{{light}}}}}\n"


def _header(view: View, look: dict[str, Look]) -> str:
    items = sum(task.results[0].count for task in view.tasks)
    models = "1 model" if len(view.labels) == 1 else f"{len(view.labels)} models or settings"
    tasks = "1 task" if len(view.tasks) == 1 else f"{len(view.tasks)} tasks"
    legend = tag("ul", *(tag("li", model(label, look[label])) for label in view.labels), cls="legend")
    about = tag("p", f"{models} on {tasks} with {items:,} items. Scores are x100; higher is better.", cls="quiet")
    # The name of the only model is the title already.
    return tag("h1", text(f"Evaluation: {view.title}")) + about + (legend if len(view.labels) > 1 else "")


def _notes(report: Report) -> list[str]:
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
