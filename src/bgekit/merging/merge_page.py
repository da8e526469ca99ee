"""The page of a search for the weights of a merge: which did best, and the scores of all that were tried."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from ..display.pages import Section, Table, as_fact, render_report, save_plot
from ..display.plots import LinePlot, sheet
from ..evaluation.metrics import metric_name
from ..models.sentence_transformers_files import short_names
from .merge_weights import Trial, best

#: Points of a score that an axis spans at least: less is noise on most data.
_LEAST: Final = 2.0
#: Tasks whose scores are drawn; the table has all of them.
_DRAWN: Final = 8


def save_page(trials: Sequence[Trial], folder: Path, *, name: str, provenance: Mapping[str, Any]) -> None:
    """Write merge.html and, of two models, merge.png: scores over the weight of the second.

    Args:
        trials: Weights that were tried, with their scores.
        folder: Where the model is written.
        name: Name of the merged model.
        provenance: Content of merge.json.
    """
    names = [str(model["name"]) for model in provenance["models"]]
    trials = [replace(trial, scores={_spoken(task): score for task, score in trial.scores.items()}) for trial in trials]
    labels, chosen = short_names(names), best(trials)
    tasks = list(trials[0].scores)
    plots = list(_plots(trials, labels)) if len(names) == 2 else []
    method = {key: value for key, value in provenance["method"].items() if key != "weights" and value is not None}
    sections = [
        Section(
            "Scores of the weights that were tried", "Of the tasks' main metrics, x100.",
            plots=[(plot.svg(f"merge{place}"), "") for place, plot in enumerate(plots)],
            table=Table(
                (" : ".join(labels), "mean" if len(tasks) > 1 else tasks[0], *(tasks if len(tasks) > 1 else ())),
                list(_rows(trials, tasks)), range(1, 2 + (len(tasks) if len(tasks) > 1 else 0)), sortable=True,
            ),
        ),
        Section(
            "What was merged",
            facts=[
                *((f"model {place}", f"{label}, weight {weight:.4g}")
                  for place, (label, weight) in enumerate(zip(labels, chosen.weights, strict=True), 1)),
                *((f"path of {label}", path) for path, label in zip(names, labels, strict=True) if path != label),
                *((key.replace("_", " "), as_fact(value)) for key, value in method.items()),
                ("measured on", ", ".join(tasks)),
            ],
        ),
    ]  # fmt: skip
    page = render_report(
        f"Merge: {name}",
        about=f"{' and '.join(labels) if len(labels) == 2 else f'{len(labels)} models'}; {len(trials)} weights tried",
        findings=list(_conclusions(trials, labels)), sections=sections,
    )  # fmt: skip
    (folder / "merge.html").write_text(page, encoding="utf-8")
    if plots:
        save_plot(sheet(plots), folder / "merge.png")


def _spoken(task: str) -> str:
    """A task's score as people write it: "mini: nDCG@10" of "mini ndcg_at_10"."""
    name, _, metric = task.rpartition(" ")
    return f"{name}: {metric_name(metric)}"


def _conclusions(trials: Sequence[Trial], labels: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """The best weights against each model alone; nothing here was tested, so nothing is sure."""
    chosen = best(trials)
    alone = {
        max(range(len(labels)), key=trial.weights.__getitem__): trial for trial in trials if max(trial.weights) == 1
    }
    weights = ", ".join(f"{weight:.3g} of {label}" for label, weight in zip(labels, chosen.weights, strict=True))
    what = f"the mean of {len(chosen.scores)} tasks" if len(chosen.scores) > 1 else next(iter(chosen.scores))
    yield f"The best weights are {weights}: they score {chosen.score:.2f} on {what}.", False
    if alone:
        single = "; ".join(f"{labels[place]} alone {trial.score:.2f}" for place, trial in sorted(alone.items()))
        top = max(trial.score for trial in alone.values())
        gain = chosen.score - top
        said = (
            f"the mixture is {gain:.2f} above the better one"
            if gain > 0
            else "no mixture was better than one model alone"
        )
        yield f"{single}: {said}.", False
    yield (
        f"The best of {len(trials)} scores on the same data looks better than it is: bge eval on other data says "
        "whether the merged model is better.",
        False,
    )


def _plots(trials: Sequence[Trial], labels: Sequence[str]) -> Iterator[LinePlot]:
    ordered = sorted(trials, key=lambda trial: trial.weights[1])
    weights = [trial.weights[1] for trial in ordered]
    tasks = list(trials[0].scores)
    lines = {f"Mean of {len(tasks)} tasks": [trial.score for trial in ordered]} if len(tasks) > 1 else {}
    lines |= {task: [trial.scores[task] for trial in ordered] for task in tasks[:_DRAWN]}
    marked = (best(trials).weights[1], "best mean" if len(tasks) > 1 else "best")
    for title, values in lines.items():
        yield LinePlot(
            title, {"score": (weights, values)}, x_label=f"weight of {labels[1]} (the rest is {labels[0]})",
            marked=marked, low=-100, high=100, least=_LEAST, whole=False,
        )  # fmt: skip


def _rows(trials: Sequence[Trial], tasks: Sequence[str]) -> Iterator[list[str]]:
    """Weights with their scores; of the best ones the head says so."""
    chosen = best(trials)
    for trial in sorted(trials, key=lambda each: each.weights, reverse=True):
        scores = (trial.score, *((trial.scores[task] for task in tasks) if len(tasks) > 1 else ()))
        head = " : ".join(f"{weight:.3g}" for weight in trial.weights) + (" (best)" if trial is chosen else "")
        yield [head, *(f"{score:.2f}" for score in scores)]
