"""The report of a recipe in all its forms: a page, Markdown, and scores for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ..display.pages import Section, Table, link, render, render_report
from ..evaluation.comparison import LEVEL
from ..evaluation.metrics import metric_name
from ..evaluation.report.summary import MISSING, p_value

_STAGES: Final = ("Stage", "Output", "Verb", "Seconds", "This run")
_COMPARED: Final = ("a", "b", "Task", "a − b", "95 % interval", "p, corrected")
#: Up to how many comparisons of an evaluation have their sentences at the top, whatever they say; up to how many have
#: them that are significant.
_ALL: Final = 3
_SENTENCES: Final = 6


def as_markdown(content: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    return render("recipes/recipe_report.md.jinja", **_shown(content))


def as_html(content: Mapping[str, Any]) -> str:
    """The report as a page that asks for nothing from elsewhere."""
    shown = _shown(content)
    stages = [
        [name, link("its report", each["page"], output) if each.get("page") else output, *cells]
        for each, (name, output, *cells) in zip(content["stages"], shown["stages"], strict=False)
    ]
    sections = [
        Section("Stages", table=Table(_STAGES, [*stages, shown["stages"][-1]], (3,))),
        *(section for each in shown["evaluations"] for section in _scores(each)),
        Section("How it was made", facts=shown["made"]),
        *(Section(name, about, code=command, folded=True) for name, about, command in shown["commands"]),
    ]
    return render_report(
        shown["title"], about=content["about"], findings=list(_conclusions(content["evaluations"])), sections=sections
    )


def _conclusions(evaluations: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, bool]]:
    """What can be said of the models that were made; of many comparisons how many say something."""
    for evaluation in evaluations:
        compared = evaluation["comparisons"]
        stage = f"{evaluation['stage']}: " if len(evaluations) > 1 else ""
        sure = [each for each in compared if each["p_adjusted"] < LEVEL]
        told = compared if len(compared) <= _ALL else sure if len(sure) <= _SENTENCES else []
        yield from ((f"{stage}{each['conclusion']}", each["p_adjusted"] < LEVEL) for each in told)
        if compared and not told:
            count = len(compared)
            many = f"{len(sure)} of {count} differences are" if sure else f"None of {count} differences is"
            yield f"{stage}{many} significant; the table below has them.", bool(sure)
        elif left := len(compared) - len(told):
            yield f"{stage}of {left} other {'pairs' if left > 1 else 'pair'} no difference can be concluded.", False
    if not evaluations:
        yield "Nothing was measured: a stage of the verb eval says what the models are worth.", False


def _scores(evaluation: Mapping[str, Any]) -> Iterator[Section]:
    """The scores of an evaluation, a row per model, and its comparisons."""
    found: dict[str, dict[str, str]] = {}
    for task, metric, model, score in evaluation["scores"]:
        found.setdefault(model, {})[f"{task}: {metric}"] = score
    tasks = list(dict.fromkeys(task for row in found.values() for task in row))
    yield Section(
        f"Scores: {evaluation['stage']}",
        link("All that was measured", f"{evaluation['stage']}/report.html", "x100; higher is better."),
        table=Table(
            ("Model", *tasks), [[model, *(row.get(task, MISSING) for task in tasks)] for model, row in found.items()],
            range(1, len(tasks) + 1), sortable=True,
        ),
    )  # fmt: skip
    if rows := evaluation["comparisons"]:
        few = len(rows) <= _SENTENCES
        yield Section(
            f"{len(rows)} comparisons" if len(rows) > 1 else "The comparison", folded=not few,
            about="every two models, corrected for all comparisons together",
            table=Table(_COMPARED, rows, (3, 4, 5), sortable=True),
        )  # fmt: skip


def _shown(content: Mapping[str, Any]) -> dict[str, Any]:
    """The report in words and digits."""
    stages = content["stages"]
    versions = {tuple((stage["versions"] or {}).items()) for stage in stages}
    variables = {
        name: " ".join(value) if isinstance(value, list) else str(value) for name, value in content["variables"].items()
    }
    return {
        "title": f"Recipe: {Path(content['recipe']).stem}",
        "about": content["about"],
        "stage_heads": _STAGES,
        "compared_heads": _COMPARED,
        "stages": [
            *([each["name"], each["output"], each["verb"], f"{each['seconds']:,.1f}", each["this_run"]]
              for each in stages),
            ["all", "", "", f"{content['seconds']:,.1f}", ""],
        ],
        "evaluations": [
            {
                "stage": each["stage"],
                "scores": [
                    [f"{one['task']} ({one['split']})", metric_name(one["metric"]), one["model"], f"{one['score']:.2f}"]
                    for one in each["results"]
                ],
                "comparisons": [
                    [one["a"], one["b"], one["task"], f"{one['difference']:+.2f}",
                     "too few items" if one["ci_low"] is None else f"{one['ci_low']:+.2f} to {one['ci_high']:+.2f}",
                     p_value(one["p_adjusted"])]
                    for one in each["comparisons"]
                ],
                "conclusions": [one["conclusion"] for one in each["comparisons"]],
            }
            for each in content["evaluations"]
        ],
        "made": [
            ("recipe", content["recipe"]), ("sha256 of the recipe", content["sha256"]), *variables.items(),
            *(("versions", ", ".join(f"{name} {version}" for name, version in each)) for each in sorted(versions)),
            *(("platform", each) for each in sorted({str(stage["platform"]) for stage in stages})),
        ],
        "commands": [(stage["name"], stage["about"], stage["command"]) for stage in stages],
    }  # fmt: skip


def scores_text(content: Mapping[str, Any]) -> str:
    """The scores and conclusions of all evaluations in lines for a terminal."""
    lines = []
    for evaluation in content["evaluations"]:
        lines.append(f"\n{evaluation['stage']}")
        for each in evaluation["results"]:
            what = f"{metric_name(each['metric'])} on {each['task']} ({each['split']})"
            lines.append(f"  {each['score']:6.2f}  {what}: {each['model']}")
        lines += [f"  {each['conclusion']}" for each in evaluation["comparisons"]]
    return "".join(f"{line}\n" for line in lines)
