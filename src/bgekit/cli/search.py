"""`bge search`: files, encoded shards or an index, and questions -> what fits them by meaning.

Search by meaning: in files (jsonl, csv, tsv, parquet, txt, md, html, pdf, docx; gzipped or not), in folders of such
files, in a folder that `bge encode` wrote (with --store-texts, if texts are to be shown), or in an existing index.
Without -q, questions are read from the terminal, or from standard input, one per line.

Examples:
  bge search notes/ --model BAAI/bge-small-en-v1.5 --chunk -q "what was decided about the roof?"
  bge search docs.jsonl --model BAAI/bge-small-en-v1.5 -q "how do I read a csv file"
  bge search docs.jsonl --model BAAI/bge-small-en-v1.5 --index docs.index --chunk     # kept for the next time
  bge search --index docs.index -q "first question" "second question" --json
  bge search docs.jsonl --model BAAI/bge-small-en-v1.5 --keep year lang -q "..." --where "year >= 2020 and lang = 'en'"
  bge search --index docs.index -o results.parquet < questions.txt
  bge search docs.jsonl --model BAAI/bge-small-en-v1.5 --index docs.index --mode hybrid -q "error E1234 when saving"
  bge search --index docs.index -q "a question" --reranker BAAI/bge-reranker-v2-m3
  bge search vectors/ --model BAAI/bge-small-en-v1.5 --index big.index --index-type hnsw
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..display.terminal import encodable, printable, wrapped
from ..errors import ArgumentError, OutputError
from . import options

if TYPE_CHECKING:
    from ..data.records import RecordReader
    from ..inference.model import Embedder
    from ..search.index import Hit, SearchIndex

#: Options of which records files have; an index keeps those that it was built with.
_READING: Final = (
    "format", "encoding", "quoting", "delimiter", "records", "include", "exclude", "text_field", "title_field",
    "id_field", "keep",
)  # fmt: skip
#: Parts of an index, as `search.parts` has them.
PARTS: Final = ("bm25", "lexical", "multi-vector")
#: What is said where nothing is found, without a condition and with one.
_EMPTY: Final = ("nothing: the index is empty", "nothing meets the condition")
_TOO_LOW: Final = "no result reaches --min-score"
#: What is said when it is interrupted.
INTERRUPTED: Final = "with --index, the same command continues from what is encoded; without, it starts over"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument(
        "sources", nargs="*", metavar="FILE_OR_DIR", help="what to search (before -q); - is standard input"
    )
    options.add_list_option(parser, "-q", "--query", old=["--queries"], metavar="QUERY", help="questions to answer")
    parser.add_argument(
        "-k", "--top-k", type=options.positive, default=10, metavar="N", help="results per question [10]"
    )
    parser.add_argument(
        "--min-score", type=float, metavar="X",
        help="only results with at least this score (with --reranker, its score)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object per question and line")
    parser.add_argument(
        "-o", "--output", metavar="FILE",
        help="write the results to a .parquet, .csv, .jsonl, .json or .trec file instead of printing them",
    )  # fmt: skip
    options.add_overwrite_option(parser, "file of results")
    parser.add_argument(
        "--no-instruction", action="store_true", help="encode questions without the model's instruction"
    )
    parser.add_argument(
        "--mode", choices=options.MODES, default="dense",
        help="compare by meaning (dense), by words (bm25), by the weights that models such as BGE-M3 give to tokens "
        "(lexical), token by token among the nearest (multi-vector), or by all that the index has (hybrid: with the "
        "weights that `bge calibrate --hybrid` fitted for it, else by reciprocal ranks) [dense]",
    )  # fmt: skip
    group = parser.add_argument_group("index")
    group.add_argument(
        "--index", metavar="DIR", help="keep the index here; the next time only texts that it does not have are encoded"
    )
    group.add_argument(
        "--index-type", choices=("exact", "int8", "binary", "hnsw", "ivf", "auto"),
        help="exact looks at every vector; the others are faster on millions; auto chooses one "
        "[that of the index in DIR, else exact]",
    )  # fmt: skip
    group.add_argument(
        "--recall", type=float, metavar="R",
        help="share of the nearest that the other types are to find, by which is measured how wide they search [0.99]",
    )  # fmt: skip
    group.add_argument(
        "--parts", nargs="+", choices=PARTS, default=[], metavar="PART",
        help="what the index is to have beside its vectors: bm25, the words of its texts; of models such as BGE-M3 "
        "lexical and multi-vector [what it has; given files, also what --mode takes]",
    )  # fmt: skip
    group = parser.add_argument_group("metadata")
    options.add_keep_option(group)
    group.add_argument(
        "--where", metavar="EXPR", help="only texts that meet this condition, such as \"year >= 2020 and lang = 'en'\""
    )
    group = parser.add_argument_group("second stage")
    group.add_argument("--reranker", metavar="MODEL", help="a cross-encoder that reranks what was found")
    group.add_argument(
        "--rerank-top-k", type=options.positive, default=100, metavar="N",
        help="texts per question that it reranks [100]",
    )  # fmt: skip
    # The model of an index that is there is known: only files need the option.
    options.add_model_options(parser, default="")
    options.add_input_options(parser)
    options.add_chunk_options(parser)
    options.add_report_options(parser)


def run(args: argparse.Namespace) -> int:
    """Search."""
    options.set_up_logging(args)
    with contextlib.ExitStack() as stack:
        asked: dict[str, Any] = {"where": args.where} | ({"instruction": None} if args.no_instruction else {})
        records = _check(args)
        if args.reranker:  # Before files are encoded: if it cannot be loaded, that work would be lost.
            reranker = stack.enter_context(options.load_reranker(args, args.reranker))
            asked |= {"reranker": reranker, "rerank_top_k": args.rerank_top_k}
        index, model = _open(args, records, stack)
        place = f" in {index.origin}" if args.index or not args.sources else ""
        _report(args, f"{_size(index)}{place}{_columns(index)}")
        if args.index_type == "auto":
            from ..search.build import choose_type

            kind, reason = choose_type(index.stored.count, index.dimension)
            _report(args, f"auto is {kind}: {reason}")
        if args.mode != "dense":
            _report(args, index.how(args.mode, model))
        if args.where is not None:
            _report(args, f"{len(index.rows_where(args.where)):,} of {_counted(index)} meet the condition")

        answers = _answers(args, index, model, asked)
        typed = not args.query and sys.stdin.isatty()
        if args.output:
            _write(args, answers, index, typed)
            return 0
        for query, hits in answers:
            show(query, hits, as_json=args.json, typed=typed, empty=_nothing(args))
    return 0


def _answers(
    args: argparse.Namespace, index: SearchIndex, model: Embedder | None, asked: dict[str, Any]
) -> Iterator[tuple[str, list[Hit]]]:
    """The questions with what was found for each."""
    for queries in _queries(args):
        for query, hits in zip(queries, index.ask(model, queries, args.top_k, mode=args.mode, **asked), strict=True):
            yield query, hits if args.min_score is None else [hit for hit in hits if hit.score >= args.min_score]


def _nothing(args: argparse.Namespace) -> str:
    """What is said where nothing is found."""
    if args.mode == "bm25" and args.where is args.min_score is None:
        return "nothing: no text has a word of it"
    return _EMPTY[args.where is not None] if args.min_score is None else _TOO_LOW


def _write(args: argparse.Namespace, answers: Iterator[tuple[str, list[Hit]]], index: SearchIndex, typed: bool) -> None:
    """Write the results to a file; those of questions that are typed are shown, too."""
    from ..search.results import write_results

    questions = 0

    def counted() -> Iterator[tuple[str, list[Hit]]]:
        nonlocal questions
        for query, hits in answers:
            questions += 1
            if typed:
                show(query, hits, as_json=False, typed=True, empty=_nothing(args))
            yield query, hits

    schema = None if index.stored.metadata is None else index.stored.metadata.schema
    results = write_results(args.output, counted(), metadata=schema, overwrite=args.overwrite)
    _report(args, f"wrote {results:,} results of {questions:,} questions to {args.output}")


def _check(args: argparse.Namespace) -> RecordReader | None:
    """Checks before a model is loaded; returns the records of files, None where a folder is searched."""
    from ..data.documents import made_here

    folders = [source for source in args.sources if made_here(source)]
    if not args.sources and args.index is None:
        hint = _files_among("question", "-q", args.query) or _files_among("column", "--keep", args.keep)
        raise ArgumentError(f"nothing to search: give files, a folder of encoded shards, or --index DIR{hint}")
    if folders and len(args.sources) > 1:
        raise ArgumentError(f"{folders[0]} is encoded already: give it alone, without other files")
    if (folders or not args.sources) and options.chosen_chunks(args) is not None:
        raise ArgumentError("encoded texts cannot be split into passages any more: use --chunk when they are encoded")
    from ..files.atomic import check_place
    from ..files.remote import refuse_url
    from ..search.build import check_type
    from ..search.results import check_results_file
    from ..search.where import Where

    if args.output:
        if args.json:
            raise ArgumentError("--json prints the results, and --output writes them: give one of the two")
        check_results_file(args.output, overwrite=args.overwrite)
    elif args.overwrite:
        raise ArgumentError("--overwrite goes with --output FILE: an index follows its files by itself")
    check_type(args.index_type, args.recall)
    if args.index and args.sources:
        refuse_url(args.index, "an index is made")
        check_place(args.index, folder=True)
    where = None if args.where is None else Where(args.where)
    if not all(question.strip() for question in args.query or ()):
        raise ArgumentError("a question (-q) is empty: it would be answered with any texts at all")
    if folders or not args.sources:
        if args.keep:
            raise ArgumentError("encoded texts have the columns that were kept: use --keep when they are encoded")
        return None
    _read_as_before(args)
    lacking = [name for name in where.columns if name not in (args.keep or [])] if where else []
    if lacking and "*" not in (args.keep or []):
        raise ArgumentError(f"--where uses columns that are not kept: add --keep {shlex.join(lacking)}")
    if not args.model:
        raise ArgumentError("--model is needed to encode files, such as --model BAAI/bge-small-en-v1.5")
    if "-" in args.sources and not args.query:
        raise ArgumentError("standard input holds the texts, so the questions must come with -q")
    return options.open_records(args, args.sources)


def _read_as_before(args: argparse.Namespace) -> None:
    """Take the model and options of reading that are not given from the index that is there, and say so."""
    from ..search.storage import FACTS, read_facts

    if not args.index or not (Path(args.index) / FACTS).exists():
        return
    try:
        facts = read_facts(Path(args.index))
    except OutputError:  # Said where it is built again.
        return
    known = (facts.input or {}).get("options", {})
    taken: list[str] = []
    if not args.model and facts.model_name:
        args.model = facts.model_name
        taken += ["--model", facts.model_name]
    for name in _READING:
        value = known.get(name)
        if value is not None and getattr(args, name, value) in (None, "auto"):
            setattr(args, name, value)
            taken += ["--" + name.replace("_", "-"), *(value if isinstance(value, list) else [value])]
    if known.get("chunks") is not None and args.chunk is None and args.chunk_size is args.chunk_overlap is None:
        args.chunk, (args.chunk_size, args.chunk_overlap) = True, known["chunks"]
        sizes = (("--chunk-size", args.chunk_size), ("--chunk-overlap", args.chunk_overlap))
        taken += ["--chunk", *(str(each) for size in sizes if size[1] is not None for each in size)]
    if taken:
        _report(args, f"files are read as for {args.index}: {shlex.join(taken)}")


def _open(
    args: argparse.Namespace, records: RecordReader | None, stack: contextlib.ExitStack
) -> tuple[SearchIndex, Embedder | None]:
    """The index to search, made or updated if need be, and the model that goes with it, if the mode needs one."""
    if records is not None:
        return _open_files(args, records, stack)
    index = _open_folder(args, args.sources[0] if args.sources else args.index, stack)
    args.model = args.model or index.facts.model_name
    if args.where is not None:
        index.rows_where(args.where)  # What has no meaning for it shows before a model is loaded.
    index.check_mode(args.mode)
    if args.mode == "bm25":
        return index, None
    return index, stack.enter_context(options.load_model(args))


def _open_folder(args: argparse.Namespace, folder: str, stack: contextlib.ExitStack) -> SearchIndex:
    from ..data.documents import made_here
    from ..files.remote import is_url, refuse_url
    from ..inference.shards import load_shards
    from ..search.build import index_shards, with_parts, with_type
    from ..search.index import SearchIndex
    from ..search.storage import FACTS, read_facts

    is_index = made_here(folder) == "index" if is_url(folder) else (Path(folder) / FACTS).exists()
    if is_index and args.sources and args.index:
        raise ArgumentError(f"{folder} is an index itself: leave out --index {args.index}")
    if is_index and (args.index_type or args.recall is not None):
        refuse_url(folder, "an index is changed")
        with_type(folder, args.index_type or read_facts(Path(folder)).index_type, recall=args.recall)
    if is_index and args.parts:
        with_parts(folder, args.parts)
    shards = load_shards(folder) if args.sources and not is_index else None
    parts = [] if shards is None else _parts(args, shards.outputs)
    if shards is None or not (args.index or parts or args.index_type not in (None, "exact")):
        return SearchIndex.load(folder)
    return index_shards(shards, _index_folder(args, stack), index_type=args.index_type, recall=args.recall, parts=parts)


def _parts(args: argparse.Namespace, outputs: Sequence[str] = ()) -> list[str]:
    """What an index that is built or updated is to have beside its vectors: what is named, and what the mode takes.

    Args:
        args: The options.
        outputs: What the model gives, or what is encoded.
    """
    words = "lexical" if "sparse" in outputs else "bm25"
    there = _parts_there(args)
    taken = {"bm25": ["bm25"], "lexical": ["lexical"], "hybrid": [words] if not {"bm25", "lexical"} & there else []}
    return list(dict.fromkeys([*args.parts, *taken.get(args.mode, [])]))


def _parts_there(args: argparse.Namespace) -> set[str]:
    from ..search.storage import FACTS, read_facts

    if args.index and (Path(args.index) / FACTS).exists():
        with contextlib.suppress(OutputError):  # Said where it is built again.
            return set(read_facts(Path(args.index)).parts or ())
    return set()


def _open_files(
    args: argparse.Namespace, records: RecordReader, stack: contextlib.ExitStack
) -> tuple[SearchIndex, Embedder]:
    model = stack.enter_context(options.load_model(args))
    from ..display.terminal import EncodeProgress
    from ..search.build import index_records

    start = time.perf_counter()
    options.count_changes_itself()
    index, report = index_records(
        model,
        records,
        _index_folder(args, stack),
        index_type=args.index_type,
        recall=args.recall,
        chunks=options.chosen_chunks(args),
        parts=_parts(args, model.outputs),
        batch_size=args.batch_size,
        progress=None if args.no_progress else lambda: EncodeProgress(records.size),
    )
    if report is not None:
        what = "passages" if index.facts.chunked else "texts"
        parts = [f"encoded {report.texts - report.kept:,} {what} in {time.perf_counter() - start:,.1f} s"]
        if report.kept:
            parts.append(f"{report.kept:,} were encoded before")
        if report.truncated:
            parts.append(f"{report.truncated:,} were cut at the maximum length (--chunk splits them instead)")
        if records.skipped.count:
            parts.append(f"{records.skipped} skipped")
        if args.index is None:
            parts.append("--index DIR would keep them for the next time")
        _report(args, "; ".join(parts))
    return index, model


def _index_folder(args: argparse.Namespace, stack: contextlib.ExitStack) -> str:
    return args.index or stack.enter_context(tempfile.TemporaryDirectory(prefix="bge-search-"))


def _queries(args: argparse.Namespace) -> Iterator[list[str]]:
    """The questions, in groups that are answered together."""
    if args.query:
        yield args.query
        return
    from ..data.columns import read_file
    from ..data.formats import STDIN, Dialect

    if not sys.stdin.isatty():
        for line in read_file(STDIN, Dialect(args.encoding), format="txt"):
            if question := line.text("text").strip():
                yield [question]
        return
    yield from ask_on_terminal()


def ask_on_terminal() -> Iterator[list[str]]:
    """Questions as they are typed, until an empty line or the end of input."""
    with contextlib.suppress(ImportError):  # Not on every system; without it there is no history.
        import readline  # noqa: F401
    print("Ask a question; an empty line ends.", file=sys.stderr)
    while True:
        try:
            if not sys.stdout.isatty():  # Results go to a file or a pipe, and the prompt must not go with them.
                print("? ", end="", file=sys.stderr, flush=True)
            question = input("? " if sys.stdout.isatty() else "").strip()
        except EOFError:
            print(file=sys.stderr)
            return
        if not question:
            return
        yield [question]


def _report(args: argparse.Namespace, message: str) -> None:
    if not args.quiet:
        print(message, file=sys.stderr)


def _size(index: SearchIndex) -> str:
    return f"{_counted(index)}, {index.dimension} dimensions, {index.facts.index_type} search"


def _columns(index: SearchIndex) -> str:
    from ..data.formats import listing

    metadata = index.stored.metadata
    return "" if metadata is None else f"; metadata: {listing(metadata.column_names)}"


def _counted(index: SearchIndex) -> str:
    return f"{len(index):,} {'passages' if index.facts.chunked else 'texts'}"


def _files_among(what: str, option: str, values: list[str] | None) -> str:
    """A hint where values of an option that takes several are names of files."""
    found = [value for value in values or [] if os.path.exists(value)]
    return f" ({found[0]} was taken for a {what}: name it before {option})" if found else ""


#: Lines of text shown of each result, and the widest they get on a wide terminal.
_LINES: Final = 2
_WIDEST: Final = 120


def show(
    query: str, hits: list[Hit], *, as_json: bool, lines: int = _LINES, typed: bool = False, empty: str = _EMPTY[0]
) -> None:
    """Print the results of one query, whose text is on the screen already if it was `typed`."""
    if as_json:
        print(json_line(query, hits))
    else:
        width = min(shutil.get_terminal_size((100, 24)).columns, _WIDEST)
        text = readable(query, hits, width, lines, empty=empty)
        print(text.partition("\n")[2] if typed else text)
    sys.stdout.flush()


def json_line(query: str, hits: list[Hit]) -> str:
    """The results of one query as one line of JSON."""
    from ..search.results import as_object

    return as_json(as_object(query, hits))


def as_json(content: Any) -> str:
    """One line of JSON that standard output can take."""
    line = json.dumps(content, ensure_ascii=False)
    try:
        line.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # A terminal's old encoding, or a lone surrogate: escapes say the same.
        return json.dumps(content)
    return line


def readable(query: str, hits: list[Hit], width: int, lines: int = _LINES, *, empty: str = _EMPTY[0]) -> str:
    """The results of one query for a screen `width` columns wide."""
    shown = [f"? {printable(query)}"]
    if not hits:
        shown.append(f"  {empty}")
    margin = " " * 5
    for hit in hits:
        part = f"  (passage {hit.passage + 1})" if hit.passage else ""
        shown.append(f"{hit.rank:>3}  {hit.score:.3f}  {printable(hit.id)}{part}")
        if known := _known_of(hit):
            shown += [margin + line for line in wrapped(known, max(width - len(margin), 20), lines=lines)]
        if hit.text:
            # A title that is the id stands above already.
            text = printable(hit.text.removeprefix(f"{hit.id} "))
            room = max(width - len(margin), 20)
            shown += [margin + line for line in wrapped(snippet(text, query, room * lines), room, lines=lines)]
    return encodable("\n".join(shown) + "\n")


def _known_of(hit: Hit) -> str:
    """The metadata of a result on one line, such as `price=3 year=2020`; what is null is left out."""
    found = []
    for name, value in hit.to_dict().get("metadata", {}).items():
        if value is not None and value != []:
            values = value if isinstance(value, list) else [value]
            found.append(f"{name}={','.join(each if isinstance(each, str) else json.dumps(each) for each in values)}")
    return printable(" ".join(found))


def snippet(text: str, query: str, room: int) -> str:
    """The part of a long text that has most of a query's words, from the beginning of a sentence or word on.

    Args:
        text: On one line.
        query: The question. Of its words those count most that the text has seldom.
        room: Characters that are shown.

    Returns:
        The text where it is short or has none of the words; otherwise its end from that part on, after an ellipsis.
    """
    if len(text) <= room:
        return text
    asked = {word for word in _words(query) if len(word) > 2}
    found = [(match.start(), word) for match in re.finditer(r"\w+", text) if (word := match[0].lower()) in asked]
    if not found:
        return text
    counts = Counter(word for _, word in found)

    def worth(start: int) -> float:
        return sum(1 / counts[word] for word in {word for place, word in found if start <= place < start + room * 0.9})

    sentences = [0, *(match.end() for match in re.finditer(r"[.!?]\s+", text))]
    starts = [max(each for each in sentences if each <= place) for place, _ in found]
    # Where a sentence is longer than what is shown, it begins shortly before the word.
    near = [max(text.rfind(" ", 0, max(place - room // 4, 0)) + 1, 0) for place, _ in found]
    best = max([0, *starts, *near], key=worth)
    return text if best == 0 else f"… {text[best:]}"


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
