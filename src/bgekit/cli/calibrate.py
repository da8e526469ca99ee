"""`bge calibrate`: what a model's scores mean on your own data: the threshold to use, the weights of a hybrid search.

Measure how similar related and unrelated pairs of texts are to a model, and choose the similarity at or above which a
pair counts as related. The rate that you ask for is guaranteed for pairs that were not seen, if they are like those of
the data. Without labels, random pairs stand for unrelated ones. A threshold holds only for the model it was made for.

Pairs that share a text, such as those of one query, err together: they are one group, and the guarantee rests on the
number of groups. A rate of 1% of unrelated pairs takes at least 299 queries, 5% takes 59, however many pairs each has.

With --hybrid, the weights are fitted by which a hybrid search puts its modes together, on judged queries of yours
(retrieval data, as bge eval reads it). What hybrid brings is measured on other queries than those its weights were
fitted on, and compared with each mode alone. --index DIR is searched and keeps the weights, which bge search --mode
hybrid takes; the ids of its documents are those of the judgements. Without an index, --model is judged on the documents
of the data.

Examples:
  bge calibrate --model BAAI/bge-small-zh-v1.5 --data pairs/ --split validation --precision 0.95
  bge calibrate --model BAAI/bge-small-en-v1.5 --texts docs.jsonl --false-positive-rate 0.001 --output calibration/
  bge calibrate --model my-model --data pairs/ --precision 0.9 --prevalence 0.1 --save my-calibrated-model
  bge calibrate --hybrid --index docs.index --data judged/
  bge calibrate --hybrid --model BAAI/bge-small-en-v1.5 --data judged/ --output weights.json

With --save, similarity(a, b, calibrated=True) of the saved model gives the calibrated scores.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..display.option_names import option_of
from ..errors import ArgumentError, NoGuaranteeError
from . import options

if TYPE_CHECKING:
    from ..evaluation.calibration import Calibration

#: What is said when it is interrupted.
INTERRUPTED: Final = "nothing was written, and the same command starts over"

_FILES: Final = "calibration.json, calibration.html, calibration.png"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", metavar="DIR", help="folder or file, in any form that bge eval reads")
    options.add_list_option(
        source, "--texts", metavar="FILE", help="texts without labels instead, in any form that bge encode reads"
    )
    parser.add_argument(
        "--split", metavar="NAME", help="split of the data, such as validation [test where there is one]"
    )
    parser.add_argument(
        "-o", "--output", metavar="DIR",
        help="write calibration.json, calibration.html and calibration.png here; with --hybrid the file of the weights",
    )  # fmt: skip
    parser.add_argument("--save", metavar="DIR", help="save a copy of the model with the calibration in its card here")
    options.add_overwrite_option(
        parser, "calibration, with --save a model (which may be --model itself), with --hybrid the weights of an index"
    )
    wish = parser.add_argument_group("threshold").add_mutually_exclusive_group()
    wish.add_argument("--precision", type=float, metavar="P", help="at least this share of accepted pairs is related")
    wish.add_argument(
        "--false-positive-rate", type=float, metavar="P",
        help="at most this share of unrelated pairs is accepted [0.01]",
    )  # fmt: skip
    wish.add_argument("--recall", type=float, metavar="P", help="at least this share of related pairs is accepted")
    group = parser.add_argument_group("hybrid")
    group.add_argument(
        "--hybrid", action="store_true", help="fit the weights of a hybrid search on the judged queries of --data"
    )
    group.add_argument(
        "--index", metavar="DIR", help="search in this index, and keep the weights in it [the documents of --data]"
    )
    options.add_list_option(
        group, "--modes", choices=options.MODES[:-1], metavar="MODE",
        help="what hybrid puts together [all that the index has; without one dense and bm25]",
    )  # fmt: skip
    group = parser.add_argument_group("pairs")
    group.add_argument(
        "--confidence", type=float, default=0.95, metavar="P", help="probability that the guarantee holds [0.95]"
    )
    group.add_argument(
        "--prevalence", type=float, metavar="P",
        help="share of related pairs where the threshold will be used [that of the labels]",
    )  # fmt: skip
    group.add_argument(
        "--pairs", type=options.positive, default=5000, metavar="N",
        help="maximum number of pairs of each sort: related, unrelated, random [5000]",
    )  # fmt: skip
    group.add_argument(
        "--related-from", type=float, metavar="SCORE",
        help="pairs of an STS task are related at this score or above [the higher of two, else 0.8 of the highest]",
    )  # fmt: skip
    group.add_argument(
        "--seed", type=options.not_negative, default=0, metavar="N", help="random seed for drawing pairs [0]"
    )
    # The model of an index is known: all else needs the option.
    options.add_model_options(parser, default="")
    options.add_input_options(parser, title="--texts (--encoding and --quoting are of --data, too)", ids=False)
    options.add_report_options(parser)


def run(args: argparse.Namespace) -> int:
    """Calibrate, print, write."""
    options.set_up_logging(args)
    if args.hybrid:
        return _hybrid(args)
    if idle := [name for name in ("index", "modes") if getattr(args, name)]:
        raise ArgumentError(f"{option_of(idle[0])} goes with --hybrid")
    if not args.model:
        raise ArgumentError("--model is needed, such as --model BAAI/bge-small-en-v1.5")
    if args.overwrite and not (args.output or args.save):
        raise ArgumentError("--overwrite goes with --output DIR or --save DIR")
    from ..evaluation.calibration import Wish, calibrate, read_pairs
    from ..evaluation.calibration_report import calibration_text, save_calibration, shortfall_text
    from ..inference.embedder import FlagModel

    of_texts = (*options.DOCUMENT_OPTIONS, "text_field", "title_field")
    if args.texts is None and (idle := [name for name in of_texts if getattr(args, name) is not None]):
        raise ArgumentError(f"{option_of(idle[0])} goes with --texts: what --data is, is seen from its content")
    # What can be known at the start is said before a model is loaded.
    _check_outputs(args)
    pairs = read_pairs(
        args.data if args.texts is None else _texts(args), pairs=args.pairs, related_from=args.related_from,
        split=args.split, seed=args.seed, **options.text_arguments(args),
    )  # fmt: skip
    if args.texts is not None:  # What was made of them is a list, which has no name.
        pairs.name = ", ".join(Path(file).name for file in args.texts)
    wish = {
        "precision": args.precision, "false_positive_rate": args.false_positive_rate, "recall": args.recall,
        "confidence": args.confidence, "prevalence": args.prevalence,
    }  # fmt: skip
    Wish.of(pairs, **wish)
    with options.load_model(args) as model:
        if args.save and not isinstance(model, FlagModel):
            raise ArgumentError(f"{args.model} is behind an API: there are no weights to --save, use --output")
        try:
            calibration = calibrate(
                model, pairs, pairs=args.pairs, related_from=args.related_from, seed=args.seed,
                show_progress=not args.no_progress, **wish,
            )  # fmt: skip
        except NoGuaranteeError as error:
            print(shortfall_text(error.measured))
            if args.output:
                save_calibration(error.measured, args.output)
                print(f"\nwritten to {args.output}: {_FILES}")
            raise
        print(calibration_text(calibration))
        if args.output:
            save_calibration(calibration, args.output)
        if args.save and isinstance(model, FlagModel):
            calibration.attach(model)
            model.save(args.save, overwrite=args.overwrite)
    print(f"\n{_brought(args, calibration)}")
    return 0


#: Options that choose a threshold, which --hybrid has none of.
_OF_THRESHOLDS: Final = ("texts", "save", "precision", "false_positive_rate", "recall", "prevalence", "related_from")


def _hybrid(args: argparse.Namespace) -> int:
    """Fit the weights of a hybrid search, print, write."""
    if idle := [name for name in _OF_THRESHOLDS if getattr(args, name) is not None]:
        raise ArgumentError(f"{option_of(idle[0])} goes with thresholds: leave it out, or leave out --hybrid")
    if not (args.index or args.model):
        raise ArgumentError("give --index DIR, whose model is known, or --model MODEL")
    from ..display.terminal import encodable
    from ..evaluation.hybrid_calibration import calibrate_hybrid, modes_of, read_judged
    from ..evaluation.report.report import console
    from ..files.atomic import check_free, check_place
    from ..files.remote import refuse_url
    from ..search.fusion import FUSION, write_fusion
    from ..search.index import SearchIndex

    if args.output:
        check_place(args.output, doing="write the weights to")
        check_free(args.output, overwrite=args.overwrite)
    if args.index:
        refuse_url(args.index, "an index keeps its weights")
        check_place(args.index, folder=True)
    index = SearchIndex.load(args.index) if args.index else None
    if index is not None:
        modes_of(index)
        check_free(Path(args.index, FUSION), overwrite=args.overwrite)
        args.model = args.model or index.facts.model_name
    task = read_judged(args.data, split=args.split, **options.text_arguments(args))
    with options.load_model(args) as model:
        if index is not None:
            index.check_model(model)
        found = calibrate_hybrid(
            model, task, index=index, modes=args.modes, seed=args.seed, show_progress=not args.no_progress
        )
    print(encodable(console(found.report)))
    weights = ", ".join(f"{mode} {weight:.2f}" for mode, weight in found.fitted.weights.items())
    print(encodable(f"weights: {weights}\n{found.conclusion}"))
    brought = []
    for place in filter(None, (args.index, args.output)):
        write_fusion(Path(place), found.fitted)
        brought.append(f"written to {place}")
    if args.index:
        brought.append(f'next: bge search --index {args.index} --mode hybrid -q "..."')
    elif not args.output:
        brought.append("next: --index DIR keeps the weights in an index, --output FILE in a file")
    if not args.quiet:
        print(encodable(f"\n{'; '.join(brought)}"))
    return 0


def _brought(args: argparse.Namespace, calibration: Calibration) -> str:
    """The last sentence: the threshold, where it is written, and what can be done next."""
    from ..evaluation.calibration_report import guarantee

    parts = [guarantee(calibration)]
    if args.output:
        parts.append(f"written to {args.output}: {_FILES}")
    if args.save:
        parts.append(f"model with this calibration saved to {args.save}")
        parts.append(f'next: FlagModel("{args.save}").similarity(a, b, calibrated=True)')
    else:
        parts.append("next: --save DIR saves the model with this calibration in its card")
    return "; ".join(parts)


def _check_outputs(args: argparse.Namespace) -> None:
    from ..errors import require_extra
    from ..evaluation.calibration_report import RESULT
    from ..files.atomic import check_free, check_place, target_folder

    require_extra("eval", "scipy", "sklearn", *(("matplotlib",) if args.output else ()))
    if args.output:
        check_place(args.output, folder=True)
        check_free(Path(args.output, RESULT), overwrite=args.overwrite)
    if args.save:
        target_folder(Path(args.save), args.overwrite)


def _texts(args: argparse.Namespace) -> list[str]:
    return [record.text for record in options.open_records(args, args.texts)]
