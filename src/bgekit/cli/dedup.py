"""`bge dedup`: training data -> the same without copies, or near copies, of earlier rows.

Leave out rows of training data whose query and positives are those of an earlier row, up to case and white space; with
--near-duplicates also those that are nearly the same (MinHash, then the Jaccard similarity of their pieces).
"""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import Final

from . import options

#: What is said when it is interrupted.
INTERRUPTED: Final = "nothing was written, and the same command starts over"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    options.add_training_files(parser, "training data without copies")
    parser.add_argument("--near-duplicates", action="store_true", help="leave out near copies, too")
    parser.add_argument(
        "--near-threshold", type=float, metavar="X",
        help="Jaccard similarity of near copies, in the query and in the positives [0.8]",
    )  # fmt: skip
    options.add_text_options(parser)
    options.add_report_options(parser)


def run(args: argparse.Namespace) -> int:
    """Leave copies out."""
    options.set_up_logging(args)
    from ..data.formats import Dialect
    from ..data.training_rows import check_output, check_training, read_training, write_lines
    from ..mining.dedup import Removed, distinct

    check_output(args.output, args.input, overwrite=args.overwrite)
    dialect = Dialect(**options.text_arguments(args))
    check_training(args.input, scored_pairs=True, dialect=dialect)
    removed = Removed()
    rows = distinct(read_training(args.input, dialect), removed, near=options.near_threshold(args))
    write_lines(args.output, (each.fields for each in rows))
    if not args.quiet:
        left = removed.rows - removed.copies - removed.near
        for line, earlier in removed.samples:
            print(f"  line {line} is like line {earlier}", file=sys.stderr)
        print(
            f"{removed.rows:,} rows: {removed.copies:,} copies, {removed.near:,} near copies left out; wrote the "
            f"{left:,} others to {args.output}; next: bge mine --model MODEL --input {shlex.quote(args.output)} "
            "--output FILE",
            file=sys.stderr,
        )
    return 0
