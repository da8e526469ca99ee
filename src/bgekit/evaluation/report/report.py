"""The report of an evaluation, and its files for people and programs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...display.pages import render
from ...files.atomic import OutputFolder
from ..results import PER_ITEM, RESULTS, ReportContent
from .page import html
from .summary import (
    View,
    as_text,
    comparison_figures,
    difference,
    facts,
    number,
    published,
    setting_text,
    small_details,
    task_name,
)

if TYPE_CHECKING:
    from .summary import TaskView


class Report(ReportContent):
    """Everything that an evaluation found: results, comparisons, and how it was measured.

    Example:
        >>> report = evaluate(["BAAI/bge-small-en-v1.5"], ["data/nfcorpus"])  # doctest: +SKIP
        >>> report.save("reports/nfcorpus")  # doctest: +SKIP
    """

    def save(self, output: str | os.PathLike[str]) -> list[Path]:
        """Write results.json, per_item.jsonl, report.md and report.html into a folder, each whole or not at all.

        Returns:
            The files.

        Raises:
            OutputError: the folder cannot be written, or another process writes to it.
        """
        with OutputFolder(output) as folder:
            files = {
                RESULTS: json.dumps(self.to_dict(), ensure_ascii=False, indent=1) + "\n",
                PER_ITEM: "".join(self.item_lines()),
                "report.md": markdown(self),
                "report.html": html(self),
            }
            for name, content in files.items():
                with folder.create(name) as file:
                    file.write(content.encode("utf-8", "replace"))
            folder.sync()
            return [folder.path / name for name in files]


def markdown(report: ReportContent) -> str:
    """The report as GitHub's Markdown; texts of documents are escaped."""
    view = View(report)
    compared = [*report.means, *report.comparisons]
    scores = [
        [
            task.name, task.split, task.metric, result.label, number(result.main_score), published(result),
            number(difference(result), signed=True), f"{result.count:,}",
        ]
        for task in view.tasks
        for result in task.results
    ]  # fmt: skip
    comparisons = [
        [
            task_name(each), each.split, each.a, each.b, *comparison_figures(each), f"{each.n:,}",
            f"{each.units or each.n:,}",
        ]
        for each in compared
    ]  # fmt: skip
    models = []
    for label in view.labels:
        result = view.first(label)
        about = [("setting", setting_text(result.setting)), ("model", as_text(result.model))]
        about += [(f"{key} fingerprint", value) for key, value in result.fingerprints.items() if key != "data"]
        models.append((label, about, json.dumps(result.card, indent=2, ensure_ascii=True, default=str)))
    return render(
        "evaluation/report/report.md.jinja", view=view, report=report, scores=scores, comparisons=comparisons,
        means=[(label, number(mean)) for label, mean in view.means().items()] if len(view.tasks) > 1 else (),
        conclusions=[each.conclusion for each in compared], tasks=list(map(_task, view.tasks)),
        environment=facts(report.environment), models=models,
        data=[
            [task.name, task.split, next((each.fingerprints.get("data", "") for each in task.results), "")]
            for task in view.tasks
        ],
    )  # fmt: skip


def _task(task: TaskView) -> dict[str, Any]:
    metrics = [[name, *scores] for name, scores in task.metrics]
    changes = [
        (head, each, [
            (item.id, item.text, number(item.a), number(item.b),
             "; ".join(f"{key}: {value}" for key, value in facts(item.detail)))
            for item in items
        ])
        for each in task.comparisons
        for head, items in (
            ("Where a falls most behind b", each.regressions),
            ("Where a is furthest ahead of b", each.improvements),
        )
        if items
    ]  # fmt: skip
    return {
        "view": task,
        "labels": [result.label for result in task.results],
        "metrics": [*metrics, ["seconds", *(number(result.seconds, digits=1) for result in task.results)]],
        "published": [(name, number(score)) for name, score in task.published.items()],
        "comparable": all(result.comparable for result in task.results),
        "details": [(result.label, details) for result in task.results if (details := small_details(result))],
        "changes": changes,
    }
