"""A calibration for its readers: text for a terminal, and a folder with a page, a picture and the numbers."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np

from .._version import __version__
from ..display.pages import Section, Svg, Table, as_fact, render_report
from ..display.plots import LinePlot
from ..files.atomic import OutputFolder
from ..models.sentence_transformers_files import shown_name
from .calibration import Calibration, Measurement, Shortfall
from .report.charts import calibration_plot
from .thresholds import Rate

#: Rows and columns of the histogram.
_ROWS: Final = 16
_WIDTH: Final = 30
#: What a threshold guarantees, by its target.
_GUARANTEES: Final = {
    "precision": "at least {} of the pairs from here on are related",
    "false_positive_rate": "at most {} of unrelated pairs reach it",
    "recall": "at least {} of related pairs reach it",
}


#: Points of the curves over thresholds.
_POINTS: Final = 120


#: The file by which a folder is known to hold a calibration.
RESULT: Final = "calibration.json"


def save_calibration(calibration: Calibration | Shortfall, folder: str | os.PathLike[str]) -> None:
    """Write calibration.json, calibration.html and calibration.png into a folder.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OutputError: the folder cannot be written.
    """
    content = {"bgekit": __version__, **calibration.to_dict()}
    if isinstance(calibration, Calibration):
        threshold, lines = calibration.threshold.value, list(_threshold(calibration))[:2]
    else:
        threshold, lines = None, [_best(calibration)]
    with OutputFolder(folder) as output:
        with output.create(RESULT) as file:
            file.write(json.dumps(content, ensure_ascii=False, indent=1).encode() + b"\n")
        with output.create("calibration.html") as file:
            file.write(_page(calibration).encode())
        shown = {name: each.similarity for name, each in calibration.distributions.items()}
        calibration_plot(
            shown["unrelated"], shown.get("related"), threshold, title=_title(calibration), lines=lines,
            path=output.path / "calibration.png",
        )  # fmt: skip


def shortfall_text(shortfall: Shortfall) -> str:
    """Quantiles, a histogram and the best guarantee that is possible, in lines for a terminal."""
    parts = ("\n".join(_quantiles(shortfall)), "\n".join(_histogram(shortfall, None)), _best(shortfall))
    return "\n\n".join([_title(shortfall), *parts])


def _page(calibration: Calibration | Shortfall) -> str:
    """The calibration as a page."""
    shown = {name: each.similarity for name, each in calibration.distributions.items()}
    first = next(iter(calibration.distributions.values()))
    threshold = calibration.threshold if isinstance(calibration, Calibration) else None
    value = None if threshold is None else threshold.value
    plots = [
        (
            calibration_plot(
                shown["unrelated"], shown.get("related"), value, title="Similarities of the pairs", standalone=False
            ),
            "Each sort is scaled to its own number of pairs.",
        ),
        (_reached(shown, value), "Share of the pairs, as they were measured, that are at least as similar."),
    ]
    rates = list(_rate_cells(calibration)) if isinstance(calibration, Calibration) else []
    sections = [
        *(
            [
                Section(
                    "Rates at the threshold", f"On these pairs, with {_per_cent(threshold.confidence)} intervals.",
                    table=Table(("", "rate", "interval", "pairs", "groups"), rates, (1, 2, 3, 4)),
                )
            ] if threshold is not None else []
        ),
        Section("Similarities", plots=plots),
        Section(
            "Quantiles", folded=True, about="of similarity, by the share of pairs below",
            table=Table(
                ("pairs", "number", *(_quantile_name(each) for each in first.quantiles)),
                [
                    [_sort(calibration, name), f"{each.count:,}", *(f"{end:.3f}" for end in each.quantiles.values())]
                    for name, each in calibration.distributions.items()
                ],
                range(1, len(first.quantiles) + 2),
            ),
        ),
        Section("What was measured on what", facts=list(_facts(calibration))),
    ]  # fmt: skip
    if isinstance(calibration, Calibration):
        guaranteed, *seen = _threshold(calibration)
        findings = [(_sentence(guaranteed), True)]
        findings += [(_sentence(each), False) for each in (*seen, _score(calibration))]
    else:
        findings = [
            (_sentence(calibration.reason), False),
            (_sentence(_best(calibration)), calibration.best is not None),
        ]
    return render_report(
        f"Calibration: {_title(calibration)}",
        about="which similarity says that two texts are related",
        findings=findings, sections=sections,
    )  # fmt: skip


def _sentence(text: str) -> str:
    """A text that begins with a capital letter and ends with a full stop."""
    return f"{text[0].upper()}{text[1:]}."


def _facts(calibration: Calibration | Shortfall) -> Iterator[tuple[str, str]]:
    name = shown_name(calibration.model)
    yield "model", name
    if name != calibration.model:
        yield "its path", calibration.model
    yield "data", calibration.data + (f" ({calibration.split})" if calibration.split else "")
    for sort, each in calibration.distributions.items():
        yield f"{_sort(calibration, sort)} pairs", f"{each.count:,}"
    if calibration.prevalence is not None:
        yield "share of related pairs", _per_cent(calibration.prevalence)
    if isinstance(calibration, Calibration):
        yield from ((key, as_fact(value)) for key, value in calibration.made_for.items())
        yield "seed", f"{calibration.seed}"


def _reached(shown: Mapping[str, Any], value: float | None) -> Svg:
    """The shares of pairs that reach each similarity."""
    everything = np.concatenate([shown["unrelated"], *([shown["related"]] if "related" in shown else [])])
    places = np.linspace(float(everything.min()), float(everything.max()), _POINTS)
    lines = {}
    for name in ("unrelated", "related"):
        if name in shown:
            ordered = np.sort(shown[name])
            shares = 100 * (1 - np.searchsorted(ordered, places) / len(ordered))
            lines[f"{name} pairs"] = (places.tolist(), shares.tolist())
    marked = None if value is None else (value, f"threshold {value:.3f}")
    plot = LinePlot(
        "Pairs that reach a threshold, %", lines, x_label="threshold", quiet=("unrelated pairs",), low=0,
        high=100, whole=False, marked=marked,
    )  # fmt: skip
    return plot.svg("reached")


def _best(shortfall: Shortfall) -> str:
    """The best guarantee that is possible, as a sentence without its full stop."""
    confidence = _per_cent(shortfall.confidence)
    if shortfall.best is None:
        return f"with {confidence} confidence these pairs guarantee nothing"
    rate, value = shortfall.best
    what = _GUARANTEES[shortfall.target].format(_per_cent(rate))
    return f"the best that these pairs can guarantee, with {confidence} confidence: threshold {value:.4f}, {what}"


def _sort(calibration: Measurement, name: str) -> str:
    return f"unrelated ({calibration.unrelated_are})" if name == "unrelated" else name


def _quantile_name(per_cent: int) -> str:
    return {0: "min", 100: "max"}.get(per_cent, f"{per_cent}%")


def calibration_text(calibration: Calibration) -> str:
    """Quantiles, a histogram, the threshold with its guarantee, and the rates at it, in lines for a terminal."""
    parts = (
        _quantiles(calibration),
        _histogram(calibration, calibration.threshold.value),
        _threshold(calibration),
        _rates(calibration),
    )
    return "\n\n".join([_title(calibration), *map("\n".join, parts), _score(calibration)])


def _title(calibration: Measurement) -> str:
    return f"{shown_name(calibration.model)} on {calibration.data}" + (
        f" ({calibration.split})" if calibration.split else ""
    )


def _quantiles(calibration: Measurement) -> Iterator[str]:
    first = next(iter(calibration.distributions.values()))
    head = "".join(f"{_quantile_name(each):>8}" for each in first.quantiles)
    yield f"{'similarity of pairs':<22}{'number':>8}{head}"
    for name, each in calibration.distributions.items():
        yield f"{_sort(calibration, name):<22}{each.count:>8,}" + "".join(
            f"{value:>8.3f}" for value in each.quantiles.values()
        )


def _histogram(calibration: Measurement, threshold: float | None) -> Iterator[str]:
    """Bars of the share of pairs in ranges of similarity, unrelated ones to the left."""
    groups = [calibration.distributions[name] for name in ("unrelated", "related") if name in calibration.distributions]
    low, high = min(each.quantiles[0] for each in groups), max(each.quantiles[100] for each in groups)
    edges = np.linspace(low, high + 1e-9, _ROWS + 1)
    shares = [np.histogram(each.similarity, edges)[0] / each.count for each in groups]
    unit = max(float(share.max()) for share in shares) / _WIDTH
    yield " " * 18 + f"{'unrelated':<{_WIDTH + 2}}" + ("related" if len(groups) > 1 else "")
    for row in reversed(range(_ROWS)):
        bars = "  ".join(f"{'#' * round(share[row] / unit):<{_WIDTH}}" for share in shares)
        here = threshold is not None and edges[row] <= threshold < edges[row + 1]
        mark = "  <- threshold" if here else ""
        yield f"{edges[row]:>7.3f} - {edges[row + 1]:<6.3f} |{bars}{mark}".rstrip()


def guarantee(calibration: Calibration) -> str:
    """The threshold and what holds from there on, in a sentence."""
    threshold = calibration.threshold
    wanted = _GUARANTEES[threshold.target].format(_per_cent(threshold.wanted))
    return f"threshold {threshold.value:.4f}: {wanted}, with {_per_cent(threshold.confidence)} confidence"


def _threshold(calibration: Calibration) -> Iterator[str]:
    threshold, confidence = calibration.threshold, calibration.threshold.confidence
    yield guarantee(calibration)
    yield (
        f"just reaching it on these pairs: {threshold.plain:.4f} ({_per_cent(confidence)} interval "
        f"{threshold.low:.4f} to {threshold.high:.4f})"
    )
    yield f"guaranteed by {threshold.groups:,} groups: pairs that share a text are one, and each group counts alike"


def _rates(calibration: Calibration) -> Iterator[str]:
    threshold = calibration.threshold
    yield f"at the threshold, on these pairs ({_per_cent(threshold.confidence)} intervals):"
    for name, rate, note in _known_rates(calibration):
        groups = f" in {rate.groups:,} groups" if rate.groups < rate.of else ""
        yield (
            f"  {name:<20} {_per_cent(rate.value)} ({_per_cent(rate.low)} to {_per_cent(rate.high)}), "
            f"{rate.count:,} of {rate.of:,} pairs{groups}{note}"
        )


def _known_rates(calibration: Calibration) -> Iterator[tuple[str, Rate, str]]:
    """The rates that are known at the threshold: name, rate, what it depends on."""
    threshold = calibration.threshold
    if threshold.precision is not None:
        note = f", where {_per_cent(threshold.prevalence or 0)} of all pairs are related"
        yield "precision", threshold.precision, note
    if threshold.recall is not None:
        yield "recall", threshold.recall, ""
    if threshold.false_positive_rate is not None:
        yield "false-positive rate", threshold.false_positive_rate, ""


def _rate_cells(calibration: Calibration) -> Iterator[list[str]]:
    for name, rate, note in _known_rates(calibration):
        # On a telephone they are broken at their first space alone.
        ends = f"{_per_cent(rate.low)} to\u00a0{_per_cent(rate.high)}"
        yield [name + note, _per_cent(rate.value), ends, f"{rate.count:,} of\u00a0{rate.of:,}", f"{rate.groups:,}"]


def _score(calibration: Calibration) -> str:
    value = float(calibration(calibration.threshold.value))
    if calibration.meaning == "probability":
        return (
            "calibrated score: probability that a pair is related, where "
            f"{_per_cent(calibration.prevalence or 0)} are; {value:.3f} at the threshold"
        )
    return f"calibrated score: share of unrelated pairs that are less similar; {value:.4f} at the threshold"


def _per_cent(share: float) -> str:
    """A share as 95%, 0.1% or 99.95%."""
    return f"{100 * share:.3g}%" if share < 0.99 else f"{100 * share:.4g}%"
