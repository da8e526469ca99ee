"""A calibration for its readers: text for a terminal, and a folder with calibration.json and calibration.png."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import numpy as np

from ..._version import __version__
from ...files.atomic import OutputFolder
from ..report.charts import calibration_plot

if TYPE_CHECKING:
    from .calibration import Calibration

#: Rows and columns of the histogram.
_ROWS: Final = 16
_WIDTH: Final = 30
#: What a threshold promises, by its target.
_PROMISES: Final = {
    "precision": "at least {} of the pairs from here on are related",
    "false_positive_rate": "at most {} of unrelated pairs reach it",
    "recall": "at least {} of related pairs reach it",
}


def save_calibration(calibration: Calibration, folder: str | os.PathLike[str]) -> None:
    """Write calibration.json and calibration.png into a folder.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OutputError: the folder cannot be written.
    """
    content = {"bgekit": __version__, **calibration.to_dict()}
    with OutputFolder(folder) as output:
        with output.create("calibration.json") as file:
            file.write(json.dumps(content, ensure_ascii=False, indent=1).encode() + b"\n")
        shown = {name: each.similarity for name, each in calibration.distributions.items()}
        calibration_plot(
            shown["unrelated"], shown.get("related"), calibration.threshold.value, title=_title(calibration),
            lines=list(_threshold(calibration))[:2], path=output.path / "calibration.png",
        )  # fmt: skip


def calibration_text(calibration: Calibration) -> str:
    """Quantiles, a histogram, the threshold with its promise, and the rates at it, in lines for a terminal."""
    parts = (_quantiles(calibration), _histogram(calibration), _threshold(calibration), _rates(calibration))
    return "\n\n".join([_title(calibration), *map("\n".join, parts), _score(calibration)])


def _title(calibration: Calibration) -> str:
    return f"{calibration.model} on {calibration.data}" + (f" ({calibration.split})" if calibration.split else "")


def _quantiles(calibration: Calibration) -> Iterator[str]:
    first = next(iter(calibration.distributions.values()))
    names = {0: "min", 100: "max"}
    head = "".join(f"{names.get(each, f'{each}%'):>8}" for each in first.quantiles)
    yield f"{'similarity of pairs':<22}{'number':>8}{head}"
    for name, each in calibration.distributions.items():
        label = f"unrelated ({calibration.unrelated_are})" if name == "unrelated" else name
        yield f"{label:<22}{each.count:>8,}" + "".join(f"{value:>8.3f}" for value in each.quantiles.values())


def _histogram(calibration: Calibration) -> Iterator[str]:
    """Bars of the share of pairs in ranges of similarity, unrelated ones to the left."""
    groups = [calibration.distributions[name] for name in ("unrelated", "related") if name in calibration.distributions]
    low, high = min(each.quantiles[0] for each in groups), max(each.quantiles[100] for each in groups)
    edges = np.linspace(low, high + 1e-9, _ROWS + 1)
    shares = [np.histogram(each.similarity, edges)[0] / each.count for each in groups]
    unit = max(float(share.max()) for share in shares) / _WIDTH
    yield " " * 18 + f"{'unrelated':<{_WIDTH + 2}}" + ("related" if len(groups) > 1 else "")
    for row in reversed(range(_ROWS)):
        bars = "  ".join(f"{'#' * round(share[row] / unit):<{_WIDTH}}" for share in shares)
        mark = "  <- threshold" if edges[row] <= calibration.threshold.value < edges[row + 1] else ""
        yield f"{edges[row]:>7.3f} - {edges[row + 1]:<6.3f} |{bars}{mark}".rstrip()


def _threshold(calibration: Calibration) -> Iterator[str]:
    threshold = calibration.threshold
    promise, confidence = _PROMISES[threshold.target].format(_per_cent(threshold.wanted)), threshold.confidence
    yield f"threshold {threshold.value:.4f}: {promise}, with {_per_cent(confidence)} confidence"
    yield (
        f"just reaching it on these pairs: {threshold.plain:.4f} ({_per_cent(confidence)} interval "
        f"{threshold.low:.4f} to {threshold.high:.4f})"
    )
    yield f"promised by {threshold.groups:,} groups: pairs that share a text are one, and each group counts alike"


def _rates(calibration: Calibration) -> Iterator[str]:
    threshold = calibration.threshold
    yield f"at the threshold, on these pairs ({_per_cent(threshold.confidence)} intervals):"
    for name, rate, note in (
        ("precision", threshold.precision, f", where {_per_cent(threshold.prevalence or 0)} of all pairs are related"),
        ("recall", threshold.recall, ""),
        ("false-positive rate", threshold.false_positive_rate, ""),
    ):
        if rate is not None:
            groups = f" in {rate.groups:,} groups" if rate.groups < rate.of else ""
            yield (
                f"  {name:<20} {_per_cent(rate.value)} ({_per_cent(rate.low)} to {_per_cent(rate.high)}), "
                f"{rate.count:,} of {rate.of:,} pairs{groups}{note}"
            )


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
