"""`bge mine`: training data -> the same with hard negatives.

Find hard negatives for training data: passages that a model ranks high for a query and that are not its positives.
The input is JSON lines {"query": ..., "pos": [...], "neg": [...]}; candidates are the passages of all rows, or those
of --candidate-pool. Negatives that rows have are replaced (--keep-existing adds to them). Beside the output,
NAME.report.html (and .json) says what was mined. The same command continues an interrupted run.

Examples:
  bge mine --model BAAI/bge-base-en-v1.5 --input train.jsonl --output mined.jsonl --range 10-210 --negatives 15
  bge mine --model M --input train.jsonl --output mined.jsonl --candidate-pool corpus.jsonl --max-positive-ratio 0.95
  bge mine --model M --miner dense bm25 --shares 2 1 --input train.jsonl --output mined.jsonl
  bge mine --random --input train.jsonl --output mined.jsonl --negatives 7
  bge mine --labelled-pairs --input ocnli.jsonl --output train.jsonl --negative-label contradiction
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
from functools import partial
from typing import TYPE_CHECKING, Final

from ..display.option_names import listed_option
from ..errors import ArgumentError
from . import options

if TYPE_CHECKING:
    from ..mining.mining import Mining

#: What is said when it is interrupted.
INTERRUPTED: Final = "the same command continues from what is finished"


#: What counts with --labelled-pairs.
_OF_PAIRS = (
    "verb", "default_of", "input", "output", "labelled_pairs", "positive_label", "negative_label", "no_progress",
    "overwrite", "quiet", "verbose", "encoding", "quoting",
)  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    options.add_training_files(parser, "training data with negatives")
    options.add_text_options(parser)
    group = parser.add_argument_group("candidates")
    options.add_list_option(
        group, "--candidate-pool", metavar="FILE_OR_DIR",
        help="texts to take negatives from, in any form that bge encode reads [all pos and neg of the input]",
    )  # fmt: skip
    group.add_argument("--text-field", metavar="NAME", help="field of the pool's texts [text, content, contents]")
    group.add_argument("--id-field", metavar="NAME", help="field of the pool's ids, for --qrels [_id, id]")
    options.add_document_options(group)
    _add_choice(parser)
    _add_guards(parser)
    group = parser.add_argument_group("labelled pairs")
    group.add_argument(
        "--labelled-pairs", action="store_true",
        help='the input is pairs {"sentence1", "sentence2", "label"}; they are grouped into rows, and nothing is mined',
    )  # fmt: skip
    options.add_list_option(group, "--positive-label", metavar="LABEL", help="labels of positives [1, entailment]")
    options.add_list_option(group, "--negative-label", metavar="LABEL", help="labels of negatives [0, contradiction]")
    group = parser.add_argument_group("search")
    # What FlagEmbedding calls flat is exact.
    options.add_option(
        group, "--index-type", old=["--index"], dest="index", choices=("exact", "hnsw", "ivf"), default="exact",
        type=lambda name: "exact" if name == "flat" else name,
        help="exact looks at every vector; hnsw and ivf are faster on millions and need faiss [exact]",
    )  # fmt: skip
    group.add_argument("--search-device", metavar="DEVICE", help="device that compares vectors, such as cuda [cpu]")
    group.add_argument("--use-gpu-for-searching", action="store_true", help=argparse.SUPPRESS)  # FlagEmbedding's
    group.add_argument(
        "--work-folder", metavar="DIR", help="folder that keeps the vectors [beside the output, until it is done]"
    )
    options.add_model_options(parser, several="several take turns")
    options.add_ray_options(parser)
    group = parser.add_argument_group("report")
    group.add_argument("--samples", type=options.not_negative, default=5, metavar="N", help="rows shown in full [5]")
    options.add_report_options(parser)
    parser.set_defaults(default_of=parser.get_default)


def _add_choice(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("choice")
    options.add_option(
        group, "--range", old=["--range-for-sampling"], default="10-210", metavar="FIRST-LAST",
        help="ranks that negatives come from: skip the first FIRST, end at LAST [10-210]",
    )  # fmt: skip
    options.add_option(
        group, "--negatives", old=["--negative-number"], type=options.positive, default=15, metavar="N",
        help="negatives per row [15]",
    )  # fmt: skip
    group.add_argument("--seed", type=options.not_negative, default=0, metavar="N", help="random seed [0]")
    group.add_argument(
        "--sampling", choices=("random", "top"), default="random",
        help="draw at random from the range, or take its top [random]",
    )  # fmt: skip
    options.add_list_option(
        group, "--miner", choices=("dense", "bm25", "random"),
        help="methods that find candidates; several take turns [dense]",
    )  # fmt: skip
    group.add_argument("--random", action="store_true", help="the same as --miner random: negatives at random")
    options.add_list_option(
        group, "--shares", type=options.positive, metavar="N",
        help="negatives per turn of each miner: every --model, then bm25, then random [1 each]",
    )  # fmt: skip
    group.add_argument(
        "--keep-existing", action="store_true", help="keep the negatives that rows have, and add N [replace them]"
    )
    group.add_argument(
        "--no-fill", action="store_true", help="allow fewer negatives where the range has too few [fill up at random]"
    )
    group.add_argument("--no-scores", action="store_true", help="do not write pos_scores and neg_scores")


def _add_guards(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("guards against false negatives")
    options.add_list_option(
        group, "--qrels", metavar="FILE",
        help="judgements (BEIR, TREC, jsonl); passages they call relevant are never negatives",
    )  # fmt: skip
    group.add_argument(
        "--queries", metavar="FILE", help="texts of the judgements' queries by id [rows have these ids as query_id]"
    )
    group.add_argument("--margin", type=float, metavar="X", help="negatives score at least X less than the positive")
    group.add_argument(
        "--max-positive-ratio", type=float, metavar="X",
        help="negatives score at most X times the positive's score, such as 0.95",
    )  # fmt: skip
    group.add_argument("--max-score", type=float, metavar="X", help="negatives score at most X")
    options.add_option(
        group, "--reranker", old=["--reranker-name-or-path"], metavar="MODEL",
        help="a cross-encoder that judges candidates",
    )  # fmt: skip
    options.add_pair_length_options(group)
    group.add_argument(
        "--max-reranker-score", type=float, metavar="X",
        help="negatives score at most X by the reranker, as its network gives it",
    )  # fmt: skip
    group.add_argument(
        "--near-duplicates", action="store_true",
        help="leave out near copies of the query, positives and negatives, too",
    )  # fmt: skip
    group.add_argument("--near-threshold", type=float, metavar="X", help="Jaccard similarity of near copies [0.8]")


def run(args: argparse.Namespace) -> int:
    """Mine."""
    options.set_up_logging(args)
    if args.labelled_pairs:
        return _run_pairs(args)
    if args.positive_label or args.negative_label:
        raise ArgumentError("--positive-label and --negative-label go with --labelled-pairs")
    from .. import load_model
    from ..data.training_rows import check_output, check_training
    from ..display.terminal import EncodeProgress, RowProgress, loading
    from ..inference.shards import encode_for_now
    from ..mining.known_pairs import Judgements
    from ..mining.mining import check_task, mine, page_path
    from ..mining.mining_report import readable

    task = _task(args)
    cluster = options.ray_cluster(args)
    if cluster is not None and "dense" not in task.miners:
        raise ArgumentError("--ray encodes passages, and without the miner dense there is nothing to encode")
    if "dense" in task.miners and not args.model:
        raise ArgumentError(
            "--model is needed, such as --model BAAI/bge-base-en-v1.5; --miner bm25 and --random need none"
        )
    # Before a model is loaded.
    check_output(args.output, args.input, *task.pool, overwrite=args.overwrite)
    check_task(task, models=len(args.model or ()), reranker=args.reranker is not None)
    check_training(args.input, dialect=task.dialect)
    Judgements.read(task.qrels, task.queries, task.dialect)
    with contextlib.ExitStack() as stack:
        models = []
        for name in args.model or ():
            with loading(name, show=not args.no_progress):
                models.append(stack.enter_context(load_model(name, **options.model_arguments(args))))
        reranker = stack.enter_context(options.load_reranker(args, args.reranker)) if args.reranker else None
        show = not args.no_progress
        advance = stack.enter_context(RowProgress("mine", "rows", show=show))
        encode = encode_for_now
        if cluster is not None:
            from ..distributed.encoding import encode_on_cluster

            encode = partial(encode_on_cluster, stack.enter_context(cluster), allow_mixed=bool(args.mixed_nodes))
        content = mine(
            task, models, reranker=reranker, progress=EncodeProgress if show else None, advance=advance, encode=encode
        )  # fmt: skip
    if not args.quiet:
        print(readable(content), file=sys.stderr)
        print(
            f"\nwrote {args.output}; what was mined is in {page_path(args.output)}; next: bge finetune --model MODEL "
            f"--train-data {shlex.quote(args.output)} --output DIR",
            file=sys.stderr,
        )
    return 0


def _task(args: argparse.Namespace) -> Mining:
    from ..mining.mining import Mining
    from ..mining.negatives import Choice, Guards

    first, last = _range(args.range)
    of_pool = ("text_field", *options.DOCUMENT_OPTIONS)
    if not args.candidate_pool and (idle := [name for name in of_pool if getattr(args, name) is not None]):
        raise ArgumentError(f"{listed_option(idle[0])} is for --candidate-pool, which is not given")
    if args.random and args.miner:
        raise ArgumentError("--random stands for --miner random: give one of the two")
    guards = Guards(
        margin=args.margin, max_positive_ratio=args.max_positive_ratio, max_score=args.max_score,
        near_duplicates=options.near_threshold(args),
    )  # fmt: skip
    return Mining(
        input=args.input,
        output=args.output,
        pool=tuple(args.candidate_pool or ()),
        text_field=args.text_field,
        id_field=args.id_field,
        qrels=tuple(args.qrels or ()),
        queries=args.queries,
        choice=Choice(
            negatives=args.negatives, first=first, last=last, sampling=args.sampling,
            shares=tuple(args.shares or (1,)), fill=not args.no_fill, seed=args.seed, guards=guards,
        ),
        miners=("random",) if args.random else tuple(dict.fromkeys(args.miner or ("dense",))),
        index=args.index,
        search_device=args.search_device or ("cuda" if args.use_gpu_for_searching else None),
        keep_existing=args.keep_existing,
        scores=not args.no_scores,
        max_reranker_score=args.max_reranker_score,
        work=args.work_folder,
        samples=args.samples,
        **options.document_arguments(args),
        **options.text_arguments(args),
    )  # fmt: skip


def _range(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    try:
        return int(first), int(last)
    except ValueError:
        raise ArgumentError(f"--range is FIRST-LAST, such as 10-210, not {text!r}") from None


def _run_pairs(args: argparse.Namespace) -> int:
    from ..data.training_rows import check_output, write_lines
    from ..mining.known_pairs import NEGATIVE_LABELS, POSITIVE_LABELS, PairCounts, rows_of_pairs

    unused = [name for name, value in vars(args).items() if name not in _OF_PAIRS and value != args.default_of(name)]
    if unused:
        raise ArgumentError(
            f"--labelled-pairs mines nothing, so {listed_option(unused[0])} is not used: run bge mine on its output, "
            "with --keep-existing"
        )
    check_output(args.output, args.input, overwrite=args.overwrite)
    counts = PairCounts()
    rows = rows_of_pairs(
        args.input, counts, positive_labels=tuple(args.positive_label or POSITIVE_LABELS),
        negative_labels=tuple(args.negative_label or NEGATIVE_LABELS), **options.text_arguments(args),
    )  # fmt: skip
    write_lines(args.output, rows)
    if not args.quiet:
        others = ", ".join(f"{count:,} of label {label}" for label, count in sorted(counts.other_labels.items()))
        print(
            f"{counts.pairs:,} pairs -> {counts.rows:,} rows with {counts.negatives:,} negatives\n"
            f"left out: {counts.without_positives:,} first sentences without a positive, {counts.copies:,} copies, "
            f"{counts.conflicts:,} negatives that are also positives{', ' + others if others else ''}\n"
            f"wrote {args.output}; next: bge mine --model MODEL --input {shlex.quote(args.output)} --keep-existing "
            "--output FILE",
            file=sys.stderr,
        )
    return 0
