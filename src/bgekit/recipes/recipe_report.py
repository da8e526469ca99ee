"""What a recipe says: plan and progress on a terminal, and the report of what was made."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ..display.terminal import Progress, aligned, clipped, on_terminal, printable, write_line
from ..files.atomic import OutputFolder
from ..files.hashing import file_sha256
from .plan import CACHED, UNFINISHED, Folder, State, Step, read_json
from .spec import Recipe

_REPORT: Final = "report"
_WENT: Final = {CACHED: "was there", UNFINISHED: "continued"}
#: Columns of the plan's inputs.
_WIDEST: Final = 50
#: Names of the pages that verbs write into their outputs.
_PAGES: Final = ("report.html", "training.html", "merge.html", "calibration.html")


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
    from .recipe_page import as_html, as_markdown  # They come with evaluation, which takes a second.

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
    made_json = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
    with OutputFolder(folder.work) as output:
        for suffix, made in (("json", made_json), ("md", as_markdown(content)), ("html", as_html(content))):
            with output.create(f"{_REPORT}.{suffix}") as file:
                file.write(made.encode("utf-8", "replace"))
    return content


def _stage(step: Step, folder: Folder, went: str) -> dict[str, Any]:
    record = folder.record(step)
    kept = ("command", "started", "seconds", "resumed", "key", "digest", "content", "versions", "platform")
    return {
        "name": step.name, "about": step.stage.about, "verb": step.stage.verb.name, "this_run": _WENT.get(went, "run"),
        "output": step.output.name, "page": _page(step, folder.work), "inputs": [each.path for each in step.inputs],
        **{name: record.get(name) for name in kept},
    }  # fmt: skip


def _page(step: Step, work: Path) -> str | None:
    """The page that a stage has written, as a path below the work folder."""
    beside = [step.output.with_name(f"{step.name}{ending}") for ending in step.stage.verb.beside]
    places = [*(step.output / name for name in _PAGES), *(each for each in beside if each.suffix == ".html")]
    return next((each.relative_to(work).as_posix() for each in places if each.is_file()), None)


def _evaluation(step: Step, work: Path) -> dict[str, Any] | None:
    """Scores of an eval stage, and its comparisons."""
    found = read_json(step.output / "results.json") if step.stage.verb.name == "eval" else {}
    if not found:
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


def plan_text(steps: Sequence[Step], states: Sequence[State]) -> str:
    """The plan of a run as a table, and its commands."""
    rows = [("stage", "verb", "inputs", "output", "status", "why")]
    for step, state in zip(steps, states, strict=True):
        inputs = clipped(", ".join(dict.fromkeys(each.stage or each.path for each in step.inputs)) or "-", _WIDEST)
        why = "; ".join(state.reasons)
        rows.append((step.name, step.stage.verb.name, inputs, str(step.output), state.status, why))
    return "\n".join([*aligned(rows), "", *(step.shown for step in steps)])


class StageProgress(Progress):
    """Progress of a run: a line for each stage, and on a terminal the last line of the running one."""

    def __init__(self, *, quiet: bool) -> None:
        """Nothing is written if `quiet`."""
        super().__init__(layout="{desc}", leave=False, show=not quiet and on_terminal())
        self._quiet = quiet
        self._stage, self._start, self._next = "", 0.0, 0.0

    def begins(self, step: Step, number: int, total: int, state: State) -> None:
        """Write that a stage is skipped or begins."""
        self._stage, self._start, self._next = f"[{number}/{total}] {step.name}", time.perf_counter(), 0.0
        why = f" ({'; '.join(state.reasons)})" if state.reasons else ""
        self._say(f"{self._stage}: {state.status}{why}")

    def runs(self, step: Step, seconds: float, line: str) -> None:
        """Show that a stage is running, twice a second."""
        if seconds >= self._next:
            self._next = seconds + 0.5
            self.note(printable(f"{self._stage} {seconds:,.0f} s  {line}"))

    def ends(self, step: Step) -> None:
        """Write that a stage has finished."""
        self._say(f"{self._stage}: done in {time.perf_counter() - self._start:,.1f} s -> {step.output}")

    def _say(self, line: str) -> None:
        self.note("")
        if not self._quiet:
            write_line(line)
