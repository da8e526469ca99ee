"""`bge rerank`: queries with passages -> the passages best first, by a cross-encoder.

Score passages for queries with a cross-encoder, which reads both together, and print them best first, one JSON
object per query and line. The input is JSON lines of {"query": ..., "passages": [...]}, or what `bge search --json`
prints; with -q, files of texts in any form, all of which are ranked for the query.

Examples:
  bge rerank --model BAAI/bge-reranker-v2-m3 candidates.jsonl --top-k 10
  bge search --index docs.index --json -k 100 < questions.txt | bge rerank --model BAAI/bge-reranker-v2-m3
  bge rerank --model BAAI/bge-reranker-v2-m3 docs.jsonl -q "how do I read a csv file" --normalize
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from ..errors import ArgumentError, DataError
from . import options

if TYPE_CHECKING:
    from ..search.candidates import Group

#: What is said when it is interrupted.
INTERRUPTED: Final = "what was printed is complete, line by line; the same command starts over"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument("files", nargs="*", metavar="FILE", help="input (before -q); - is standard input [-]")
    options.add_list_option(
        parser, "-q", "--query", old=["--queries"], metavar="QUERY", help="queries to rank all texts of the files for"
    )
    parser.add_argument("-k", "--top-k", type=options.positive, metavar="N", help="passages per query [all]")
    parser.add_argument("--normalize", action="store_true", help="scores from 0 to 1, by a sigmoid [as they are]")
    options.add_reranker_options(parser)
    options.add_input_options(parser)
    options.add_report_options(parser)


def run(args: argparse.Namespace) -> int:
    """Rerank."""
    options.set_up_logging(args)
    groups = _groups(args)
    first = next(groups, None)  # What is wrong at the beginning shows before a model is loaded.
    if first is None and args.files:
        raise DataError(f"{', '.join(args.files)}: there is no query with passages")
    if first is None:
        return 0  # A pipe through which nothing came.
    from ..display.terminal import titled
    from ..search.candidates import rerank_groups
    from .search import as_json

    with options.load_reranker(args, args.model) as reranker, titled("rerank"):
        show = not args.no_progress
        rest = itertools.chain([first], groups)
        for answer in rerank_groups(reranker, rest, args.top_k, normalize=args.normalize, show_progress=show):
            print(as_json(answer))
            sys.stdout.flush()
    return 0


def _groups(args: argparse.Namespace) -> Iterator[Group]:
    from ..search.candidates import groups_of, read_groups

    if args.query:
        if not args.files:
            raise ArgumentError("name the files of the texts that are to be ranked, before -q; - is standard input")
        yield from groups_of(args.query, options.open_records(args, args.files))
        return
    if not args.files and sys.stdin.isatty():
        raise ArgumentError('nothing to rank: give a file of JSON lines {"query": ..., "passages": [...]}')
    if args.format not in (None, "jsonl"):
        raise ArgumentError(
            f"--format {args.format} goes with -q: queries with their passages are read from JSON lines"
        )
    for file in args.files or ["-"]:
        yield from read_groups(
            file, text_field=args.text_field, title_field=args.title_field, id_field=args.id_field,
            on_error=args.on_error, encoding=args.encoding,
        )  # fmt: skip
