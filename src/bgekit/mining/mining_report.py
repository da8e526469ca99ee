"""The report of a mining run: counts, distributions and samples to read."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ..data.training_rows import Row
from ..models.sentence_transformers_files import short_names
from .negatives import FILL, Candidate, Draw

#: Width of a bar of the score histogram; scores of BM25 are not bounded as cosines are.
_COSINE_STEP, _OTHER_STEP = 0.05, 1.0
_RANK_STEP: Final = 20
_BAR: Final = 30
_SHOWN: Final = 160
#: Fields of `Tally` that count, and those of its numbers that the report begins with.
_COUNTERS: Final = ("numbers", "miners", "refused", "ranks", "scores", "positives")
_ROWS: Final = (
    "rows", "negatives", "kept", "filled", "rows_filled", "rows_with_too_few", "rows_without_negatives"
)  # fmt: skip


@dataclass
class Tally:
    """Counts over rows; two of them can be added.

    Attributes:
        step: Width of a bar of scores.
        numbers: Counts by name.
        miners: Negatives by the miner that found them.
        refused: Candidates left out, by reason.
        ranks: Negatives by place, in steps of 20; by the lowest place of the step.
        scores: Negatives by score; by number of steps.
        positives: The same of positives.
        samples: Some rows in full.
    """

    step: float = _COSINE_STEP
    numbers: Counter[str] = field(default_factory=Counter)
    miners: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    ranks: Counter[int] = field(default_factory=Counter)
    scores: Counter[int] = field(default_factory=Counter)
    positives: Counter[int] = field(default_factory=Counter)
    samples: list[dict[str, Any]] = field(default_factory=list)

    def add_row(
        self, row: Row, draw: Draw, wanted: int, scores: tuple[Sequence[float], Sequence[float]] | None, *, sample: bool
    ) -> None:
        """Count a row.

        Args:
            row: The row.
            draw: Its negatives.
            wanted: How many it was to get.
            scores: Those of its positives, and of its negatives in order: kept ones first.
            sample: Show it in full.
        """
        mined, kept = draw.accepted, len(draw.kept)
        filled = sum(each.miner == FILL for each in mined)
        self.numbers += Counter(
            rows=1, negatives=len(mined), kept=kept, filled=filled, rows_filled=int(filled > 0),
            rows_with_too_few=int(len(mined) < wanted), rows_without_negatives=int(not mined and not kept),
        )  # fmt: skip
        self.miners.update(each.miner for each in mined)
        self.refused.update(draw.refused)
        self.ranks.update((each.rank - 1) // _RANK_STEP * _RANK_STEP + 1 for each in mined if each.rank)
        if scores is not None:
            positives, negatives = scores
            suspected = sum(score >= min(positives) for score in negatives[kept:])
            self.numbers += Counter(scored=len(mined), suspected_false=suspected)
            self.scores.update(math.floor(score / self.step) for score in negatives[kept:])
            self.positives.update(math.floor(score / self.step) for score in positives)
        if sample:
            self.samples.append(_sample(row, mined, scores, kept))

    def add(self, other: Tally) -> None:
        """Add the counts of further rows."""
        for name in _COUNTERS:
            getattr(self, name).update(getattr(other, name))
        self.samples += other.samples

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        counters = {name: sorted(getattr(self, name).items()) for name in _COUNTERS}
        return {"step": self.step, "samples": self.samples, **counters}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Tally:
        """A tally from plain values."""
        counters = {name: Counter(dict(map(tuple, content[name]))) for name in _COUNTERS}
        return cls(step=content["step"], samples=content["samples"], **counters)


def step_of(cosine: bool) -> float:
    """Width of a bar of scores."""
    return _COSINE_STEP if cosine else _OTHER_STEP


def _sample(
    row: Row, mined: Sequence[Candidate], scores: tuple[Sequence[float], Sequence[float]] | None, kept: int
) -> dict[str, Any]:
    marks: Iterator[dict[str, Any]] = itertools.repeat({})
    if scores is not None:
        marks = ({"score": score} for score in (*scores[0], *scores[1][kept:]))
    return {
        "query": row.query,
        "positives": [{"text": text, **next(marks)} for text in row.positives],
        "negatives": [
            {"text": each.text, "miner": each.miner, "rank": each.rank or None, **next(marks)} for each in mined
        ],
    }


def report(settings: Mapping[str, Any], tally: Tally) -> dict[str, Any]:
    """The content of the report's file; it does not depend on the machine or the time."""
    numbers = tally.numbers
    scored = numbers["scored"]
    return {
        "settings": dict(settings),
        **{name: numbers[name] for name in _ROWS},
        "suspected_false": {
            "count": numbers["suspected_false"],
            "share": round(numbers["suspected_false"] / scored, 6) if scored else None,
            "meaning": "mined negatives that score at least as high as the row's lowest positive",
        },
        "miners": dict(sorted(tally.miners.items())),
        "left_out": dict(sorted(tally.refused.items())),
        "ranks": list(_rank_bars(tally.ranks, settings)),
        "negative_scores": _bars(tally.scores, tally.step),
        "positive_scores": _bars(tally.positives, tally.step),
        "samples": tally.samples,
    }


def _rank_bars(counts: Counter[int], settings: Mapping[str, Any]) -> Iterator[list[int]]:
    """First and last place of each step, and its negatives; no place beyond those that were looked at."""
    passed, last = settings["range"]
    last = min(last, settings["candidates"])
    for first, count in sorted(counts.items()):
        yield [max(first, passed + 1), max(min(first + _RANK_STEP - 1, last), first), count]


def _bars(counts: Counter[int], step: float) -> list[list[float]]:
    return [[round(place * step, 6), round((place + 1) * step, 6), count] for place, count in sorted(counts.items())]


def short_miners(content: Mapping[str, Any]) -> dict[str, str]:
    """Names of the models that found negatives, as they are shown: of folders the last part."""
    models = content["settings"].get("models", [])
    return dict(zip(models, short_names(models), strict=True)) if models else {}


def readable(content: Mapping[str, Any]) -> str:
    """The report as text for a terminal."""
    suspected = content["suspected_false"]
    lines = [
        f"rows                {content['rows']:,}",
        f"negatives           {content['negatives']:,} mined, {content['kept']:,} kept",
        f"filled at random    {content['filled']:,} in {content['rows_filled']:,} rows",
        f"too few negatives   {content['rows_with_too_few']:,} rows; with none: {content['rows_without_negatives']:,}",
    ]
    if suspected["share"] is not None:
        lines.append(
            f"suspected false     {suspected['count']:,} ({suspected['share']:.2%}) score as high as a positive"
        )
    names = short_miners(content)
    miners = {miner: names.get(miner, miner) for miner in content["miners"]}
    found = {miners[miner]: count for miner, count in content["miners"].items()}
    lines += _counts("found by", found) + _counts("left out", content["left_out"])
    lines += _histogram("places", [(f"{low:.0f}-{high:.0f}", n) for low, high, n in content["ranks"]])
    for name in ("positive_scores", "negative_scores"):
        lines += _histogram(name.replace("_", " "), [(f"{low:.2f}", n) for low, _, n in content[name]])
    for sample in content["samples"]:
        lines += ["", f"query     {_short(sample['query'])}"]
        lines += [f"positive  {_scored(entry)}{'':>9}  {_short(entry['text'])}" for entry in sample["positives"]]
        lines += [
            f"negative  {_scored(entry)}{_rank(entry)}  {_short(entry['text'])}{_found_by(entry, miners)}"
            for entry in sample["negatives"]
        ]
    return "\n".join(lines)


def _counts(title: str, counts: Mapping[str, int]) -> list[str]:
    entries = [f"{name} {count:,}" for name, count in counts.items()]
    return [f"{title:<20}{', '.join(entries)}"] if entries else []


def _histogram(title: str, bars: Sequence[tuple[str, float]]) -> list[str]:
    if not bars:
        return []
    most = max(count for _, count in bars)
    return [title, *(f"  {label:>9} {'#' * math.ceil(_BAR * n / most):<{_BAR}} {n:,.0f}" for label, n in bars)]


def _scored(entry: Mapping[str, Any]) -> str:
    return f"{entry['score']:7.3f}  " if "score" in entry else ""


def _rank(entry: Mapping[str, Any]) -> str:
    return f"rank {entry['rank']:>4}" if entry["rank"] else " " * 9


def _found_by(entry: Mapping[str, Any], miners: Mapping[str, str]) -> str:
    """Who found a negative, where several did."""
    return f" ({miners[entry['miner']]})" if len(miners) > 1 else ""


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
