"""`bge demo`: the documentation of Python's standard library, searched by meaning.

Encode the documentation of Python's standard library, which every machine has, and search it by meaning. Nothing is
downloaded if the default model is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import platform
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Final

from . import options
from .search import ask_on_terminal, show

if TYPE_CHECKING:
    from ..data.records import Record
    from ..inference.model import Embedder
    from ..search.index import SearchIndex

MODEL: Final = "packaged:all-MiniLM-L6-v2"

#: Worded unlike the answers, so that words in common do not explain what is found.
QUESTIONS: Final = (
    "remember the results of expensive function calls",
    "check whether two files have the same content",
    "ask the user for a password without showing it",
    "log messages to a new file every day",
    "split text wherever a pattern matches",
    "pick a winner at random",
)

#: Texts encoded between two movements of the progress bar.
_SHARD: Final = 256

_HOW_TO: Final = """\
The same with a stronger model, and with your own texts (a folder of Markdown, HTML or PDF files, jsonl, csv, ...):

  bge search notes/ --model BAAI/bge-small-en-v1.5 --chunk -q "what you want to know"
  bge search notes/ --model BAAI/bge-small-en-v1.5 --chunk --index my.index    # kept; asks you for questions

This corpus as a file to try things with:  bge demo --write-corpus pydocs.jsonl
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    options.add_list_option(
        parser, "-q", "--query", old=["--queries"], metavar="QUERY", help="questions to ask [a few examples]"
    )
    parser.add_argument("-k", "--top-k", type=options.positive, default=3, metavar="N", help="results per question [3]")
    parser.add_argument("--index", metavar="DIR", help="keep the index here, for bge search --index DIR")
    parser.add_argument("--write-corpus", metavar="FILE", help="write the corpus as JSON lines, and do nothing else")
    options.add_model_options(parser, default=MODEL)
    options.add_report_options(parser)


def run(args: argparse.Namespace) -> int:
    """Encode, ask, show."""
    options.set_up_logging(args)
    from ..demo import standard_library
    from ..files.remote import refuse_url

    if args.index:
        refuse_url(args.index, "an index is made")
    records = list(standard_library())
    if args.write_corpus is not None:
        _write(records, args.write_corpus)
        print(f"{len(records):,} texts in {args.write_corpus}")
        return 0
    with contextlib.ExitStack() as stack:
        print(f"The documentation of Python {platform.python_version()}'s standard library: {len(records):,} entries.")
        model = stack.enter_context(options.load_model(args))
        print(_introduction(model))
        sys.stdout.flush()
        index = _encode(args, model, records, stack)
        print()
        questions = list(args.query or QUESTIONS)
        start = time.perf_counter()
        answers = index.ask(model, questions, args.top_k)
        seconds = time.perf_counter() - start
        for question, hits in zip(questions, answers, strict=True):
            show(question, hits, as_json=False, lines=1)
        print(f"{len(questions)} questions in {1000 * seconds:,.0f} ms, {len(index):,} passages looked at for each.\n")
        print(_HOW_TO)
        if sys.stdin.isatty() and sys.stdout.isatty() and not args.query:
            for typed in ask_on_terminal():
                show(typed[0], index.ask(model, typed, args.top_k)[0], as_json=False, typed=True)
    return 0


def _write(records: list[Record], file: str) -> None:
    from ..data.training_rows import write_lines

    titled = ((record.id, record.text.removeprefix(f"{record.id} ")) for record in records)
    write_lines(file, ({"_id": name, "title": name, "text": text} for name, text in titled))


def _introduction(model: Embedder) -> str:
    card = model.card
    return (
        f"The model: {card.name}, {card.dimension} dimensions, {card.pooling} pooling, up to {card.max_length} tokens, "
        f"computed in {model.precision}. Longer entries are split into passages."
    )


def _encode(
    args: argparse.Namespace, model: Embedder, records: list[Record], stack: contextlib.ExitStack
) -> SearchIndex:
    from ..data.records import read_records
    from ..display.terminal import EncodeProgress
    from ..inference.shards import Chunks
    from ..search.build import index_records

    # By way of a file, as everybody's texts come: with --index it is found that nothing has changed.
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bge-demo-"))
    _write(records, f"{folder}/pydocs.jsonl")
    reader = read_records(f"{folder}/pydocs.jsonl")
    start = time.perf_counter()
    index, report = index_records(
        model,
        reader,
        args.index or f"{folder}/index",
        chunks=Chunks() if hasattr(model, "tokenizer") else None,
        max_length=args.max_length,
        batch_size=args.batch_size,
        shard_size=_SHARD,
        progress=None if args.no_progress else lambda: EncodeProgress(reader.size),
    )
    seconds = time.perf_counter() - start
    if report is None:
        print(f"{len(index):,} passages are in {args.index} from an earlier run.")
    else:
        print(
            f"Encoded {report.texts:,} passages, {report.tokens:,} tokens, in {seconds:,.1f} s: "
            f"{report.texts / seconds:,.0f} texts/s, {report.tokens / seconds:,.0f} tokens/s."
        )
    return index
