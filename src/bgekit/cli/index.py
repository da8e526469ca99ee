"""`bge index`: what an index holds, and documents that come and go.

Add documents to an index that `bge search FILE... --index DIR` made, remove some, show what it holds, and write it
anew without what was removed. Each is done whole or not at all, also if the process is killed, and whoever searches
meanwhile goes on with the state before. (`bge search FILE... --index DIR` brings an index up to date with its files as
a whole.)

Examples:
  bge index add docs.index new/*.md
  bge index remove docs.index --ids gone.txt
  bge index remove docs.index --where "year < 2020" --dry-run
  bge index info docs.index --json
  bge index compact docs.index
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from ..errors import ArgumentError
from . import options

if TYPE_CHECKING:
    from ..search.index import SearchIndex
    from ..search.storage import Facts

#: What is said when it is interrupted.
INTERRUPTED: Final = "the index is what it was; the same command continues from what is encoded"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, title="actions")
    add = actions.add_parser(
        "add", help="add the documents of files; one whose id is there is replaced",
        description="Add the documents of files, read as those of the index were. A document whose id is there is "
        "replaced, with all its passages; no other is dropped. Texts that it has already are not encoded again.",
    )  # fmt: skip
    _add_place(add)
    add.add_argument("files", nargs="+", metavar="FILE_OR_DIR", help="files of documents; - is standard input")
    options.add_model_options(add, default="")
    options.add_input_options(add)
    options.add_keep_option(add)
    options.add_chunk_options(add)
    options.add_report_options(add)
    remove = actions.add_parser(
        "remove", help="remove documents by their ids or by a condition",
        description="Remove documents, with all their passages, by their ids or by a condition on metadata.",
    )  # fmt: skip
    _add_place(remove)
    which = remove.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--ids", metavar="FILE",
        help="file with an id a line, or rows with a field _id or id (jsonl, csv, parquet); - is standard input",
    )  # fmt: skip
    which.add_argument("--where", metavar="EXPR", help='documents that meet this condition, such as "year < 2020"')
    remove.add_argument("--ignore-missing", action="store_true", help="ids that are not there are no error")
    remove.add_argument("--dry-run", action="store_true", help="say what would be removed, and remove nothing")
    remove.add_argument("--quiet", action="store_true", help="print nothing but errors")
    info = actions.add_parser("info", help="show what an index holds", description="Show what an index holds.")
    _add_place(info)
    info.add_argument("--json", action="store_true", help="print one JSON object")
    compact = actions.add_parser(
        "compact", help="write an index anew without what was removed",
        description="Write an index anew, as one segment without what was removed or replaced. Nothing is encoded.",
    )  # fmt: skip
    _add_place(compact)
    compact.add_argument("--quiet", action="store_true", help="print nothing but errors")


def _add_place(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("index", metavar="DIR", help="the index")


def run(args: argparse.Namespace) -> int:
    """Change or show an index."""
    actions = {"add": _add, "remove": _remove, "info": _info, "compact": _compact}
    actions[args.action](args)
    return 0


def _open(args: argparse.Namespace) -> SearchIndex:
    from ..data.documents import made_here
    from ..search.index import SearchIndex

    if made_here(args.index) == "shards":
        raise ArgumentError(f"{args.index} holds encoded shards: bge search {args.index} --index DIR makes an index")
    return SearchIndex.load(args.index)


def _add(args: argparse.Namespace) -> None:
    options.set_up_logging(args)
    from ..data.documents import made_here

    for file in args.files:
        if made := made_here(file):
            what = "encoded shards" if made == "shards" else "an index"
            raise ArgumentError(f"{file} holds {what}, and documents are added from their files: give these")
    index = _open(args)
    _read_as_kept(args, index.facts)
    records = options.open_records(args, args.files, joining=index.facts.settings.get("keep", ()))
    args.model = args.model or index.facts.model_name
    from ..display.terminal import EncodeProgress

    start = time.perf_counter()
    options.count_changes_itself()
    with options.load_model(args) as model:
        report = index.add(
            model, records, batch_size=args.batch_size,
            progress=None if args.no_progress else lambda: EncodeProgress(records.size),
        )  # fmt: skip
    parts = [f"added {_counted(report.added, index.facts)}"]
    if report.encoded:
        parts[0] += f", of which {report.encoded:,} were encoded, in {time.perf_counter() - start:,.1f} s"
    if report.removed:
        parts.append(f"{report.removed:,} of documents that were there are replaced")
    if report.encoding is not None and report.encoding.truncated:
        parts.append(f"{report.encoding.truncated:,} were cut at the maximum length")
    if records.skipped.count:
        parts.append(f"{records.skipped} skipped")
    _say(args, "; ".join(parts))
    _say(args, f"{args.index} holds {_counted(report.rows, index.facts)} now")


#: Options of reading that an index keeps.
_READING: Final = (
    "format", "encoding", "quoting", "delimiter", "records", "text_field", "title_field", "id_field",
)  # fmt: skip


def _read_as_kept(args: argparse.Namespace, facts: Facts) -> None:
    """Take options of reading that are not given from the index.

    Raises:
        ArgumentError: one that is given is not that of the index.
    """
    settings = facts.settings
    # Which files of folders are read means nothing where there are none.
    folders = ("include", "exclude") if any(map(os.path.isdir, args.files)) else ()
    for name in (*_READING, *folders):
        if settings.get(name) is not None and getattr(args, name) in (None, "auto"):
            setattr(args, name, settings[name])
    size, overlap = settings.get("chunk_size"), settings.get("chunk_overlap")
    wanted = options.chosen_chunks(args)
    if size is None and wanted is not None:
        raise ArgumentError(
            f"the documents of {args.index} are not split into passages, and --chunk splits them: leave it out, or "
            "build another index"
        )
    if size is not None and args.chunk is False:
        raise ArgumentError(
            f"the documents of {args.index} are split into passages of {size} tokens, and --no-chunk does not split "
            "them: leave it out, or build another index"
        )
    given: dict[str, tuple[Any, Any]] = {"--max-length": (args.max_length, settings["max_length"])}
    if size is not None:
        given |= {"--chunk-size": (args.chunk_size, size), "--chunk-overlap": (args.chunk_overlap, overlap)}
        args.chunk, args.chunk_size, args.chunk_overlap = True, size, overlap
    for option, (now, before) in given.items():
        if now not in (None, before):
            raise ArgumentError(
                f"{args.index} was made with {option} {before}, and {option} {now} was given: leave it out, or build "
                "another index"
            )


def _remove(args: argparse.Namespace) -> None:
    index = _open(args)
    ids = None if args.ids is None else _ids(args.ids)
    removal = index.remove(ids, where=args.where, ignore_missing=args.ignore_missing, dry_run=args.dry_run)
    found = f"{removal.documents:,} {'document' if removal.documents == 1 else 'documents'}"
    if index.facts.chunked:
        found += f" of {_counted(removal.rows, index.facts)}"
    if removal.first_ids:
        more = ", ..." if removal.documents > len(removal.first_ids) else ""
        found += f" ({', '.join(removal.first_ids)}{more})"
    missing = f"; {removal.missing:,} ids are not there" if removal.missing else ""
    _say(args, f"{'would remove' if args.dry_run else 'removed'} {found}{missing}")
    if not args.dry_run:
        _say(args, f"{args.index} holds {_counted(len(index), index.facts)} now")


def _ids(file: str) -> list[str]:
    """The ids that a file names."""
    from ..data.columns import IDS, read_file
    from ..data.formats import STDIN, stem_and_format

    if file == STDIN or stem_and_format(file)[1] in (None, "txt"):
        return [name for line in read_file(file, format="txt") if (name := line.text("text").strip())]
    found = []
    for line in read_file(file):
        field = next((name for name in IDS if line.fields.get(name) not in (None, "")), None)
        if field is None:
            raise line.error(f"no field {' or '.join(IDS)}")
        found.append(line.identifier(field))
    return found


def _info(args: argparse.Namespace) -> None:
    from ..display.terminal import encodable, printable

    index = _open(args)
    known = index.describe()
    if args.json:
        print(json.dumps(known))
        return
    facts, documents = index.facts, known["documents"]
    held = _counted(known["rows"], facts)
    if facts.chunked:
        held += f" of {documents:,} {'document' if documents == 1 else 'documents'}"
    elif documents != known["rows"]:
        held += f" with {documents:,} different ids"
    waiting = f"; {known['deleted']:,} removed ones take space until it is compacted" if known["deleted"] else ""
    made = f"{known['model']}, {known['dimension']} dimensions, {known['similarity']}, made in {known['precision']}"
    segments = "1 segment" if known["segments"] == 1 else f"{known['segments']} segments"
    rows = {
        "holds": held + waiting,
        "search": known["index_type"],
        "parts": ", ".join(known["parts"]),
        **({"recall": _recall(known)} if known["measured"] else {}),
        "model": made,
        "texts": f"at most {known['max_length']} tokens",
        "metadata": ", ".join(f"{name} ({type_})" for name, type_ in known["columns"].items()) or "none",
        "disk": f"{known['bytes']:,} bytes in {segments}",
    }
    if facts.chunked:
        rows["texts"] = f"passages of at most {known['chunk_size']} tokens, sharing {known['chunk_overlap']}"
    print("\n".join(f"{name:<9} {encodable(printable(value))}" for name, value in rows.items()))


def _recall(known: dict[str, Any]) -> str:
    """What was measured of the largest part that is searched approximately."""
    tuning = known["measured"]
    found = ", ".join(
        f"{point['recall']:.1%} of the nearest {point['k']} (searching {point['width']:,} wide, scoring "
        f"{point['candidates']:,})" for point in tuning["points"]
    )  # fmt: skip
    by = f"{tuning['sample']:,} {'queries' if tuning['queries'] else 'points between two texts of the index'}"
    return f"{tuning['wanted']:.1%} wanted; found {found}, measured with {by}"


def _compact(args: argparse.Namespace) -> None:
    index = _open(args)
    before = index.describe()["bytes"]
    report = index.compact()
    if not report.bytes_written:
        _say(args, f"{args.index} has nothing to compact")
        return
    now = index.describe()["bytes"]
    _say(args, f"{args.index} holds {_counted(report.rows, index.facts)} in {now:,} bytes, before {before:,}")


def _counted(rows: int, facts: Facts) -> str:
    what = "passage" if facts.chunked else "text"
    return f"{rows:,} {what if rows == 1 else what + 's'}"


def _say(args: argparse.Namespace, message: str) -> None:
    if not args.quiet:
        from ..display.terminal import encodable, printable

        print(encodable(printable(message)), file=sys.stderr)
