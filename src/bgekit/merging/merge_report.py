"""Reports of a merge: a section of the README, tables for a terminal, and the curve of a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ..display.pages import drawing, looks, new_figure, render, render_page, save_plot, to_svg
from ..display.terminal import aligned
from ..models.sentence_transformers_files import hub_id, short_names, shown_name
from .weight_search import Trial, best, rows

#: What was merged, how, and with which weights.
PROVENANCE: Final = "merge.json"
_WIDTH, _HEIGHT = 900, 380


def weights_table(names: Sequence[str], weights: Sequence[float], losses: Sequence[float] | None) -> str:
    """Models, weights and losses in lines for a terminal."""
    cells = [["model", "weight", *(["loss"] if losses else [])]]
    for place, name in enumerate(names):
        cells.append([name, f"{weights[place]:.4f}", *([f"{losses[place]:.4f}"] if losses else [])])
    return "\n".join(aligned(cells))


def trials_table(trials: Sequence[Trial], names: Sequence[str]) -> str:
    """The trials of a search in lines for a terminal."""
    return "\n".join(aligned(list(rows(trials, short_names(names)))))


def add_to_readme(file: Path, provenance: Mapping[str, Any]) -> None:
    """Say in a README what was merged; models of the hub also in its front matter."""
    from huggingface_hub import metadata_load, metadata_save

    models = provenance["models"]
    names = [model["name"] for model in models]
    front = metadata_load(file) or {}
    front.pop("base_model", None)
    public = [name for name in names if hub_id(name)]
    front |= {"base_model": public, "base_model_relation": "merge"} if public else {}
    front["tags"] = [*front.get("tags", []), *(["merge"] if "merge" not in front.get("tags", []) else [])]
    metadata_save(file, front)
    # Where folders lie here is nothing for others.
    shown = [name if hub_id(name) else short for name, short in zip(names, short_names(names), strict=True)]
    weights = [(name, f"{model['weight']:.4f}") for name, model in zip(shown, models, strict=True)]
    settings = ", ".join(
        f"{name} {value:g}" for name, value in provenance["method"].items() if name not in ("method", "weights")
    )
    method = provenance["method"]["method"] + (f" ({settings})" if settings else "")
    method += f", base {shown_name(provenance['base']['name'])}" if provenance["base"] else ""
    section = render("merging/merge_report.md.jinja", weights=weights, method=method, provenance=PROVENANCE)
    file.write_text(file.read_text(encoding="utf-8").rstrip("\n") + "\n\n" + section, encoding="utf-8")


def save_curve(trials: Sequence[Trial], names: Sequence[str], folder: Path) -> None:
    """Write merge.html and, of two models, merge.png: scores over the weight of the second."""
    labels, svg = short_names(names), ""
    if len(names) == 2:
        ordered = sorted(trials, key=lambda trial: trial.weights[1])
        lines = {"score": [trial.score for trial in ordered]}
        tasks = list(trials[0].scores)
        lines |= {task: [trial.scores[task] for trial in ordered] for task in tasks if len(tasks) > 1}
        with drawing():
            figure = new_figure(_WIDTH, _HEIGHT)
            figure.subplots_adjust(left=0.07, right=0.72, bottom=0.15, top=0.9)
            axis = figure.subplots()
            for name, look in looks(list(lines)).items():
                style = {"linewidth": 2.6} if name == "score" else {"linewidth": 1.4}
                weights = [trial.weights[1] for trial in ordered]
                axis.plot(weights, lines[name], color=look.color, marker=look.marker, label=name, **style)
            axis.axvline(best(trials).weights[1], linestyle=":", linewidth=1)
            axis.grid(axis="y")
            axis.set_xlabel(f"weight of {labels[1]} (the rest is {labels[0]})")
            axis.legend(loc="upper left", bbox_to_anchor=(1.01, 1.03))
            svg = to_svg(figure, name="merge", title="Scores over the weight of the second model")
            save_plot(svg, folder / "merge.png")
    head, *body = rows(trials, labels)
    page = render_page(
        "display/chart.html.jinja", "Weights of a merge", svg=svg, head=head, rows=body, numbers=range(len(head))
    )
    (folder / "merge.html").write_text(page, encoding="utf-8")
