"""The page of a mining run: what was found, how hard it is, and rows to read."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from ..display.pages import Section, Svg, Table, as_fact, render_report
from ..display.plots import BarPlot
from ..models.sentence_transformers_files import shown_name
from .mining_report import short_miners

#: Share of negatives that may be false before the page says what to do.
_SUSPICIOUS: Final = 0.02


def page(content: Mapping[str, Any], name: str) -> str:
    """The report of a mining run as a page; plots are on it where matplotlib is installed.

    Args:
        content: What `report` gives.
        name: Name of the output.
    """
    settings, names = content["settings"], short_miners(content)
    models = [names[each] for each in settings["models"]]
    ranks = [[f"{low}–{high}", f"{number:,}"] for low, high, number in content["ranks"]]
    sections = [
        Section(
            "How hard the negatives are", "" if _can_draw() else "pip install 'bgekit[eval]' draws this, too.",
            plots=list(_plots(content)) if _can_draw() else (),
        ),
        Section(
            "Scores", folded=True, about="the numbers of the plot",
            table=Table(("score", "positives", "negatives"), list(_scores(content)), (1, 2)),
        ),
        Section("Ranks", folded=True, about="places in the ranking, and how many negatives stood there",
                table=Table(("rank", "negatives"), ranks, (1,))),
        Section(
            "Where they come from",
            table=Table(
                ("", "passages"),
                [
                    *([f"found by {names.get(miner, miner)}", f"{n:,}"] for miner, n in content["miners"].items()),
                    *([f"left out: {reason.replace('_', ' ')}", f"{n:,}"] for reason, n in content["left_out"].items()),
                ],
                (1,),
            ),
        ),
        Section("What was mined from what", facts=list(_facts(settings, models))),
        *([Section("Rows to read", "Drawn at random.")] if content["samples"] else []),
        *(_sample(sample, names) for sample in content["samples"]),
    ]  # fmt: skip
    sections = [each for each in sections if each.table is None or each.table.rows]
    by = " and ".join([*models, *(each for each in settings["miners"] if each != "dense")]) or "random draws"
    return render_report(
        f"Mining: {name}", about=f"hard negatives for {content['rows']:,} rows, found by {by}",
        findings=list(_conclusions(content)), sections=sections,
    )  # fmt: skip


def _can_draw() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def _conclusions(content: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
    rows, negatives, suspected = content["rows"], content["negatives"], content["suspected_false"]
    kept = f", besides {content['kept']:,} that were there" if content["kept"] else ""
    yield f"{negatives:,} negatives were mined for {rows:,} rows{kept}.", True
    if suspected["share"] is not None:
        share = f"{suspected['count']:,} of them ({suspected['share']:.1%})"
        said = f"{share} score at least as high as a positive of their row"
        if suspected["share"] > _SUSPICIOUS:
            said += ": some of these are probably relevant. --max-positive-ratio 0.95 leaves such passages out"
        yield f"{said}.", True
    if content["filled"]:
        rows_filled = content["rows_filled"]
        yield (
            f"{content['filled']:,} were drawn at random, in {rows_filled:,} rows whose range had too few: a wider"
            " --range or a larger --candidate-pool finds harder ones.",
            True,
        )
    if content["rows_with_too_few"]:
        none = content["rows_without_negatives"]
        few = content["rows_with_too_few"]
        yield f"{few:,} rows have fewer than were asked for, {none:,} of them none.", True


def _plots(content: Mapping[str, Any]) -> Iterator[tuple[Svg, str]]:
    groups = {name: content[f"{name[:-1]}_scores"] for name in ("positives", "negatives")}
    groups = {name: bars for name, bars in groups.items() if bars}
    if groups:
        text = "Where the two overlap are negatives that are hard, or false."
        yield BarPlot("Scores of positives and negatives", groups, "score", "passages, %").svg("scores"), text
    if content["ranks"]:
        # A range ends where the next begins.
        bars = [(low - 0.5, high + 0.5, n) for low, high, n in content["ranks"]]
        text = "Places of the mined negatives in the ranking; the first are the hardest. Areas compare, not heights."
        plot = BarPlot("Ranks of negatives", {"negatives": bars}, "rank", "negatives per rank, %", per_unit=True)
        yield plot.svg("ranks"), text


def _scores(content: Mapping[str, Any]) -> Iterator[list[str]]:
    found: dict[tuple[float, float], list[float]] = {}
    for place, name in enumerate(("positive_scores", "negative_scores")):
        for low, high, number in content[name]:
            found.setdefault((low, high), [0, 0])[place] = number
    for (low, high), numbers in sorted(found.items(), reverse=True):
        yield [f"{low:.2f} to {high:.2f}", *(f"{number:,.0f}" for number in numbers)]


def _facts(settings: Mapping[str, Any], models: Sequence[str]) -> Iterator[tuple[str, str]]:
    for name, path in zip(models, settings["models"], strict=True):
        yield "model", name
        if shown_name(path) != path:
            yield f"path of {name}", path
    yield "rows", f"{settings['rows']:,}"
    yield "candidates", f"{settings['candidates']:,}"
    first, last = settings["range"]
    yield "range", f"places {first} to {last} of the ranking"
    passed = ("models", "rows", "candidates", "range", "guards")
    for key, value in settings.items():
        if key not in passed and value is not None:
            yield key.replace("_", " "), as_fact(value)
    for key, value in (settings.get("guards") or {}).items():
        if value is not None:
            yield key.replace("_", " "), as_fact(value)


def _sample(sample: Mapping[str, Any], names: Mapping[str, str]) -> Section:
    """A row in full, its texts under its query."""
    entries = [("positive", each) for each in sample["positives"]]
    entries += [(f"negative, {names.get(each['miner'], each['miner'])}", each) for each in sample["negatives"]]
    scored, ranked = any("score" in each for _, each in entries), any(each.get("rank") for _, each in entries)
    head = ("text", "which", *(["rank"] if ranked else []), *(["score"] if scored else []))
    rows = [
        [
            each["text"], which, *([str(each.get("rank") or "")] if ranked else []),
            *([f"{each['score']:.3f}" if "score" in each else ""] if scored else []),
        ]
        for which, each in entries
    ]  # fmt: skip
    numbers = range(2, len(head))
    about = f"{len(sample['positives'])} positive, {len(sample['negatives'])} negatives"
    return Section(sample["query"], folded=True, about=about, table=Table(head, rows, numbers))
