"""What a recipe has done, for people and programs: report.json, report.md and report.html in its work folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ..display.html import page, pairs, prose, table, tag, text
from ..display.text import escape
from ..files.atomic import OutputFolder
from ..files.hashing import file_sha256
from .commands import Step
from .plan import CACHED, UNFINISHED, Folder, read_json
from .spec import Recipe

_REPORT: Final = "report"
_WENT: Final = {CACHED: "was there", UNFINISHED: "gone on with"}
_STAGES: Final = ("Stage", "Verb", "This run", "Seconds", "Output")
_SCORES: Final = ("Task", "Metric", "Model", "Score")
_COMPARED: Final = ("a", "b", "Task", "a − b", "95 % interval", "p, corrected")


def write_report(recipe: Recipe, steps: Sequence[Step], folder: Folder, went: Mapping[str, str]) -> dict[str, Any]:
    """Write the report.

    Args:
        recipe: The recipe.
        steps: Its stages, all of them finished.
        folder: The work folder.
        went: How each stage stood when this run came to it.

    Returns:
        The content of report.json.

    Raises:
        OutputError: it cannot be written.
    """
    stages = [_stage(step, folder, went[step.name]) for step in steps]
    content: dict[str, Any] = {
        "recipe": str(recipe.path),
        "sha256": file_sha256(recipe.path),
        "about": recipe.about,
        "variables": dict(recipe.variables),
        "seconds": sum(stage["seconds"] for stage in stages),
        "stages": stages,
        "evaluations": [each for step in steps if (each := _evaluation(step, folder.work)) is not None],
    }
    with OutputFolder(folder.work) as output:
        for suffix, made in (("json", as_json(content)), ("md", as_markdown(content)), ("html", as_html(content))):
            with output.create(f"{_REPORT}.{suffix}") as file:
                file.write(made.encode("utf-8", "replace"))
    return content


def _stage(step: Step, folder: Folder, went: str) -> dict[str, Any]:
    record = folder.record(step) or {}
    kept = ("command", "started", "seconds", "resumed", "key", "digest", "content", "versions", "platform")
    return {
        "name": step.name, "about": step.stage.about, "verb": step.stage.verb.name, "this_run": _WENT.get(went, "run"),
        "output": step.output.name, "inputs": [each.path for each in step.inputs],
        **{name: record.get(name) for name in kept},
    }  # fmt: skip


def _evaluation(step: Step, work: Path) -> dict[str, Any] | None:
    """What an eval stage found: scores, and what is significant."""
    found = read_json(step.output / "results.json") if step.stage.verb.name == "eval" else None
    if found is None:
        return None

    def named(model: str) -> str:
        """A model by the stage that made it."""
        return model.removeprefix(f"{work}{os.sep}")

    results = [
        {"task": each["task"], "split": each["split"], "metric": each["main_metric"], "model": named(each["label"]),
         "score": each["main_score"], "items": each["count"]}
        for each in found["results"]
    ]  # fmt: skip
    kept = ("task", "difference", "ci_low", "ci_high", "p_adjusted", "conclusion")
    comparisons = [
        {"a": named(each["a"]), "b": named(each["b"]), **{name: each[name] for name in kept}}
        | {"conclusion": each["conclusion"].replace(f"{work}{os.sep}", "")}
        for each in [*found.get("mean_comparisons", []), *found["comparisons"]]
    ]
    return {"stage": step.name, "results": results, "comparisons": comparisons}


def as_json(content: Mapping[str, Any]) -> str:
    """The content of report.json."""
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


def as_markdown(content: Mapping[str, Any]) -> str:
    """The report as markdown."""
    parts = [f"# {escape(_title(content))}", escape(content["about"]), "## Stages"]
    parts.append(_markdown_table(_STAGES, _stage_rows(content)))
    for each in content["evaluations"]:
        parts += [f"## Scores: {escape(each['stage'])}", _markdown_table(_SCORES, _score_rows(each))]
        parts.append(f"All that was measured: [{each['stage']}/report.html](<{each['stage']}/report.html>)")
        if each["comparisons"]:
            parts.append(_markdown_table(_COMPARED, _comparison_rows(each)))
            parts.append("\n".join(f"- {escape(found['conclusion'])}" for found in each["comparisons"]))
    parts += ["## How it was made", "\n".join(f"- {escape(name)}: {escape(value)}" for name, value in _facts(content))]
    for stage in content["stages"]:
        about = f"{escape(' '.join(stage['about'].split()))}\n\n" if stage["about"] else ""
        parts.append(f"### {escape(stage['name'])}\n\n{about}```\n{stage['command']}\n```")
    return "\n\n".join(part for part in parts if part) + "\n"


def as_html(content: Mapping[str, Any]) -> str:
    """The report as a page that asks for nothing from elsewhere."""
    main = [tag("h2", "Stages"), table(_STAGES, _escaped(_stage_rows(content)), numbers=(3,))]
    for each in content["evaluations"]:
        main += [tag("h2", f"Scores: {text(each['stage'])}")]
        main += [table(_SCORES, _escaped(_score_rows(each)), numbers=(3,))]
        if each["comparisons"]:
            sentences = (tag("li", text(found["conclusion"])) for found in each["comparisons"])
            main += [tag("ul", *sentences, cls="findings")]
            main += [table(_COMPARED, _escaped(_comparison_rows(each)), numbers=(3, 4, 5))]
        main += [tag("p", f'<a href="{text(each["stage"])}/report.html">All that was measured</a>')]
    main += [tag("h2", "How it was made"), pairs(_facts(content))]
    for stage in content["stages"]:
        main += [tag("h4", text(stage["name"])), tag("p", prose(stage["about"])), tag("pre", text(stage["command"]))]
    title = _title(content)
    about = tag("p", prose(content["about"]), cls="quiet")
    return page(title, tag("h1", text(title)) + about, "".join(main))


def _title(content: Mapping[str, Any]) -> str:
    return f"Recipe {Path(content['recipe']).stem}"


def _stage_rows(content: Mapping[str, Any]) -> Iterator[list[str]]:
    for each in content["stages"]:
        yield [each["name"], each["verb"], each["this_run"], f"{each['seconds']:,.1f}", each["output"]]
    yield ["all", "", "", f"{content['seconds']:,.1f}", ""]


def _score_rows(evaluation: Mapping[str, Any]) -> Iterator[list[str]]:
    for each in evaluation["results"]:
        yield [f"{each['task']} ({each['split']})", each["metric"], each["model"], f"{each['score']:.2f}"]


def _comparison_rows(evaluation: Mapping[str, Any]) -> Iterator[list[str]]:
    for each in evaluation["comparisons"]:
        known = each["ci_low"] is not None
        interval = f"{each['ci_low']:+.2f} to {each['ci_high']:+.2f}" if known else "too few items"
        yield [each["a"], each["b"], each["task"], f"{each['difference']:+.2f}", interval, f"{each['p_adjusted']:.4f}"]


def _facts(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts = [("recipe", content["recipe"]), ("sha256 of the recipe", content["sha256"])]
    facts += [
        (name, " ".join(value) if isinstance(value, list) else str(value))
        for name, value in content["variables"].items()
    ]
    versions = {tuple((stage["versions"] or {}).items()) for stage in content["stages"]}
    facts += [("versions", ", ".join(f"{name} {version}" for name, version in each)) for each in sorted(versions)]
    return facts + [("platform", each) for each in sorted({str(stage["platform"]) for stage in content["stages"]})]


def _escaped(rows: Iterator[list[str]]) -> Iterator[list[str]]:
    return ([text(cell) for cell in row] for row in rows)


def _markdown_table(head: Sequence[str], rows: Iterator[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *([escape(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
