"""`bge calibrate`: what a model's similarities mean on one's own data, and the threshold to use."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..errors import ArgumentError
from . import options

if TYPE_CHECKING:
    from ..evaluation.calibration.calibration import Calibration
    from ..evaluation.calibration.thresholds import Rate, Threshold

#: What is said when it is interrupted.
INTERRUPTED: Final = "nothing was written, and the same command starts anew"

_DESCRIPTION = """\
Measure how similar related and unrelated pairs of texts are to a model, and choose the similarity from which on a
pair counts as related. The rate that is asked for is promised for pairs that were not seen, if they are like those of
the data. Without labels, unrelated pairs are random ones. A threshold holds for the model that it was made for.

Pairs that share a text, such as those of one query, err together: they are one group, and a promise rests on the number
of groups. 1% of unrelated pairs takes 299 queries at the very least, 5% takes 59, however many pairs each has."""

_EPILOG = """\
examples:
  bge calibrate --model BAAI/bge-small-zh-v1.5 --data pairs/ --split validation --precision 0.95
  bge calibrate --model BAAI/bge-small-en-v1.5 --texts docs.jsonl --false-positive-rate 0.001 --output calibration/
  bge calibrate --model my-model --data pairs/ --precision 0.9 --prevalence 0.1 --save my-calibrated-model

With --save, similarity(a, b, calibrated=True) of the saved model gives the calibrated scores."""

#: Rows and columns of the histogram.
_ROWS, _WIDTH = 16, 30
_SAID = {
    "precision": "at least {} of the pairs from here on are related",
    "false_positive_rate": "at most {} of unrelated pairs reach it",
    "recall": "at least {} of related pairs reach it",
}


def add_parser(subparsers: Any) -> None:
    """Add the verb's parser."""
    parser = subparsers.add_parser(
        "calibrate", help="find the similarity threshold of a model on your own data", description=_DESCRIPTION,
        epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", metavar="DIR", help="folder or file, in any form that bge eval reads")
    options.add_list_option(
        source, "--texts", metavar="FILE", help="texts without labels instead, in any form that bge encode reads"
    )
    parser.add_argument("--split", metavar="NAME", help="such as validation [test where there is one]")
    options.add_text_options(parser)
    parser.add_argument("--output", "-o", metavar="DIR", help="write calibration.json and calibration.png here")
    parser.add_argument("--save", metavar="DIR", help="save a copy of the model with the calibration in its card here")
    parser.add_argument(
        "--overwrite", action="store_true", help="let --save replace a model that is there; it may be --model itself"
    )
    wish = parser.add_argument_group("threshold").add_mutually_exclusive_group()
    wish.add_argument("--precision", type=float, metavar="P", help="at least this share of accepted pairs is related")
    wish.add_argument(
        "--false-positive-rate", type=float, metavar="P", help="at most this share of unrelated ones is accepted [0.01]"
    )
    wish.add_argument("--recall", type=float, metavar="P", help="at least this share of related pairs is accepted")
    group = parser.add_argument_group("pairs")
    group.add_argument("--confidence", type=float, default=0.95, metavar="P", help="that the promise holds [0.95]")
    group.add_argument(
        "--prevalence", type=float, metavar="P",
        help="share of related pairs where the threshold will be used [that of the labels]",
    )  # fmt: skip
    group.add_argument(
        "--pairs", type=options.positive, default=5000, metavar="N",
        help="most pairs of each sort: related, unrelated, random [5000]",
    )  # fmt: skip
    group.add_argument(
        "--related-from", type=float, metavar="SCORE",
        help="score from which on pairs of an STS task are related [the higher of two, else 0.8 of the highest]",
    )  # fmt: skip
    group.add_argument("--seed", type=options.not_negative, default=0, metavar="N", help="of drawing pairs [0]")
    options.add_model_options(parser)
    options.add_report_options(parser)


def run(args: argparse.Namespace) -> int:
    """Calibrate, print, write."""
    options.set_up_logging(args)
    if args.overwrite and not args.save:
        raise ArgumentError("--overwrite goes with --save DIR")
    from ..evaluation.calibration.calibration import Wish, calibrate, read_pairs
    from ..inference.embedder import FlagModel

    # What can be known at the start is said before a model is loaded.
    _check_outputs(args)
    pairs = read_pairs(
        args.data if args.texts is None else _texts(args), pairs=args.pairs, related_from=args.related_from,
        split=args.split, seed=args.seed, **options.text_arguments(args),
    )  # fmt: skip
    wish = {
        "precision": args.precision, "false_positive_rate": args.false_positive_rate, "recall": args.recall,
        "confidence": args.confidence, "prevalence": args.prevalence,
    }  # fmt: skip
    Wish.of(pairs, **wish)
    with options.load_model(args) as model:
        if args.save and not isinstance(model, FlagModel):
            raise ArgumentError(f"{args.model} is behind an API: there are no weights to --save, use --output")
        calibration = calibrate(
            model, pairs, pairs=args.pairs, related_from=args.related_from, seed=args.seed,
            show_progress=False if args.no_progress or args.quiet else None, **wish,
        )  # fmt: skip
        print(_report(calibration))
        if args.output:
            _write(calibration, args.output)
            print(f"\nwritten to {args.output}: calibration.json, calibration.png")
        if args.save and isinstance(model, FlagModel):
            calibration.attach(model)
            model.save(args.save, overwrite=args.overwrite)
            print(f"\nmodel with this calibration saved to {args.save}")
    return 0


def _check_outputs(args: argparse.Namespace) -> None:
    from ..errors import require_extra
    from ..files.atomic import check_place, target_folder

    require_extra("eval", "scipy", "sklearn", *(("matplotlib",) if args.output else ()))
    if args.output:
        check_place(args.output, folder=True)
    if args.save:
        target_folder(Path(args.save), args.overwrite)


def _texts(args: argparse.Namespace) -> list[str]:
    from ..data.records import read_records

    records = read_records(args.texts, **options.text_arguments(args))
    records.require()
    return [record.text for record in records]


def _write(calibration: Calibration, folder: str) -> None:
    from .._version import __version__
    from ..evaluation.report.charts import calibration_plot
    from ..files.atomic import OutputFolder

    content = {"bgekit": __version__, **calibration.to_dict()}
    with OutputFolder(folder) as output:
        with output.create("calibration.json") as file:
            file.write(json.dumps(content, ensure_ascii=False, indent=1).encode() + b"\n")
        shown = {name: each.similarity for name, each in calibration.distributions.items()}
        calibration_plot(
            shown["unrelated"],
            shown.get("related"),
            calibration.threshold.value,
            title=_title(calibration),
            lines=_threshold(calibration)[:2],
            path=output.path / "calibration.png",
        )


def _report(calibration: Calibration) -> str:
    lines = [_title(calibration), "", *_quantiles(calibration), "", *_histogram(calibration), ""]
    lines += [*_threshold(calibration), "", *_achieved(calibration), "", _score(calibration)]
    return "\n".join(lines)


def _title(calibration: Calibration) -> str:
    return f"{calibration.model} on {calibration.data}" + (f" ({calibration.split})" if calibration.split else "")


def _quantiles(calibration: Calibration) -> list[str]:
    first = next(iter(calibration.distributions.values()))
    names = {0: "min", 100: "max"}
    head = "".join(f"{names.get(each, f'{each}%'):>8}" for each in first.quantiles)
    rows = [f"{'similarity of pairs':<22}{'number':>8}{head}"]
    for name, each in calibration.distributions.items():
        label = f"unrelated ({calibration.unrelated_are})" if name == "unrelated" else name
        rows.append(f"{label:<22}{each.count:>8,}" + "".join(f"{value:>8.3f}" for value in each.quantiles.values()))
    return rows


def _histogram(calibration: Calibration) -> list[str]:
    """Bars of the share of pairs in ranges of similarity, unrelated ones to the left."""
    groups = [calibration.distributions[name] for name in ("unrelated", "related") if name in calibration.distributions]
    low, high = min(each.quantiles[0] for each in groups), max(each.quantiles[100] for each in groups)
    import numpy as np

    edges = np.linspace(low, high + 1e-9, _ROWS + 1)
    shares = [np.histogram(each.similarity, edges)[0] / each.count for each in groups]
    unit = max(float(share.max()) for share in shares) / _WIDTH
    lines = [" " * 18 + f"{'unrelated':<{_WIDTH + 2}}" + ("related" if len(groups) > 1 else "")]
    for row in reversed(range(_ROWS)):
        bars = "  ".join(f"{'#' * round(share[row] / unit):<{_WIDTH}}" for share in shares)
        mark = "  <- threshold" if edges[row] <= calibration.threshold.value < edges[row + 1] else ""
        lines.append(f"{edges[row]:>7.3f} - {edges[row + 1]:<6.3f} |{bars}{mark}".rstrip())
    return lines


def _threshold(calibration: Calibration) -> list[str]:
    threshold: Threshold = calibration.threshold
    said = _SAID[threshold.target].format(_per_cent(threshold.wanted))
    just = (
        f"just reaching it on these pairs: {threshold.plain:.4f} ({_per_cent(threshold.confidence)} interval "
        f"{threshold.low:.4f} to {threshold.high:.4f})"
    )
    return [
        f"threshold {threshold.value:.4f}: {said}, with {_per_cent(threshold.confidence)} confidence",
        just,
        f"promised by {threshold.groups:,} groups: pairs that share a text are one, and each group counts alike",
    ]


def _achieved(calibration: Calibration) -> list[str]:
    threshold: Threshold = calibration.threshold
    rates: list[tuple[str, Rate | None, str]] = [
        ("precision", threshold.precision, f", where {_per_cent(threshold.prevalence or 0)} of all pairs are related"),
        ("recall", threshold.recall, ""),
        ("false-positive rate", threshold.false_positive_rate, ""),
    ]
    head = f"at the threshold, on these pairs ({_per_cent(threshold.confidence)} intervals):"
    return [head] + [
        f"  {name:<20} {_per_cent(rate.value)} ({_per_cent(rate.low)} to {_per_cent(rate.high)}), "
        f"{rate.count:,} of {rate.of:,} pairs{f' in {rate.groups:,} groups' if rate.groups < rate.of else ''}{note}"
        for name, rate, note in rates
        if rate is not None
    ]


def _score(calibration: Calibration) -> str:
    value = float(calibration(calibration.threshold.value))
    if calibration.meaning == "probability":
        return (
            "calibrated score: probability that a pair is related, where "
            f"{_per_cent(calibration.prevalence or 0)} are; {value:.3f} at the threshold"
        )
    return f"calibrated score: share of unrelated pairs that are less similar; {value:.4f} at the threshold"


def _per_cent(share: float) -> str:
    """Such as 95%, 0.1%, 99.95%."""
    return f"{100 * share:.3g}%" if share < 0.99 else f"{100 * share:.4g}%"
