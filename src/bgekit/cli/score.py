"""`bge score`: training data -> the same with a cross-encoder's scores, for distillation.

Add pos_scores and neg_scores to training data: a cross-encoder's scores of every query with its passages. The same
command continues an interrupted run, and the output is the same, byte for byte. Rows that have scores keep them unless
--overwrite-scores is given (`bge mine` writes similarities there).

Example:
  bge score --model BAAI/bge-reranker-v2-m3 --input mined.jsonl --output scored.jsonl --overwrite-scores
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
from typing import TYPE_CHECKING, Final

from . import options

if TYPE_CHECKING:
    from ..mining.teacher import GroupTeacher, Teacher

#: What is said when it is interrupted.
INTERRUPTED: Final = "the same command continues from what is finished"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    options.add_training_files(parser, "training data with scores")
    parser.add_argument("--overwrite-scores", action="store_true", help="replace scores that rows have [keep them]")
    parser.add_argument("--normalize", action="store_true", help="scores from 0 to 1, by a sigmoid [as they are]")
    parser.add_argument(
        "--allow-mixed", action="store_true",
        help="go on with scores that another kind of CPU or torch computed, also on other nodes, and say so",
    )  # fmt: skip
    options.add_reranker_options(parser)
    options.add_ray_options(parser, mixed=False)
    options.add_text_options(parser)
    options.add_report_options(parser)


def run(args: argparse.Namespace) -> int:
    """Score."""
    options.set_up_logging(args)
    from ..data.formats import Dialect
    from ..data.training_rows import check_output, check_training
    from ..display.terminal import RowProgress
    from ..mining.teacher import score

    check_output(args.output, args.input, overwrite=args.overwrite)
    check_training(
        args.input, scored_pairs=True, dialect=Dialect(**options.text_arguments(args))
    )  # Before a model is loaded.
    with contextlib.ExitStack() as stack:
        cluster = options.ray_cluster(args)
        reranker: Teacher | GroupTeacher
        if cluster is None:
            reranker = stack.enter_context(options.load_reranker(args, args.model))
        else:
            from ..distributed.recipes import ModelRecipe
            from ..distributed.scoring import RemoteTeacher

            recipe = ModelRecipe(args.model, options.reranker_arguments(args))
            entered = stack.enter_context(cluster)
            reranker = stack.enter_context(RemoteTeacher(entered, recipe, allow_mixed=args.allow_mixed))
        advance = stack.enter_context(RowProgress("score", "rows", show=not args.no_progress))
        counts = score(
            reranker, args.input, args.output, overwrite_scores=args.overwrite_scores, normalize=args.normalize,
            advance=advance, allow_mixed=args.allow_mixed, **options.text_arguments(args),
        )  # fmt: skip
    if not args.quiet:
        parts = [f"{counts.scored:,} of {counts.rows:,} rows scored"]
        parts += [f"{counts.resumed:,} by an earlier run"] if counts.resumed else []
        parts += [f"{counts.scored_pairs:,} scored pairs left as they are"] if counts.scored_pairs else []
        if counts.had_scores:
            parts.append(f"{counts.had_scores:,} had scores and keep them (--overwrite-scores replaces them)")
        if counts.above:
            parts.append(f"in {counts.above:,} a negative scores as high as a positive")
        parts.append(f"wrote {args.output}")
        parts.append(
            f"next: bge finetune --model MODEL --train-data {shlex.quote(args.output)} --knowledge-distillation "
            "--output DIR"
        )
        print("; ".join(parts), file=sys.stderr)
    return 0
