"""`bge map`: texts, encoded shards or an index -> a Parquet file of vectors and neighbours, and a picture of it.

Write a map of texts: a Parquet file, in the form that embedding-atlas reads, with the id, text, metadata, vector and
nearest neighbours of each text, and near copies and lone texts marked; --plot also draws a picture. SOURCE is files or
folders of texts (those that `bge encode` reads), a folder that `bge encode --store-texts` wrote, or an index of
`bge search`; an index and encoded texts need no --model.

Examples:
  bge map corpus.jsonl --model BAAI/bge-small-en-v1.5 --output map.parquet --plot map.png
  bge map news.csv --model BAAI/bge-small-en-v1.5 --output map.parquet --plot map.png --color topic
  bge map docs.index --output map.parquet
  embedding-atlas map.parquet --text text --vector vector --neighbors neighbors
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..errors import ArgumentError
from . import options

if TYPE_CHECKING:
    from ..data.records import RecordReader
    from ..search.index import SearchIndex
    from ..search.vector_map import MapReport

#: What is said when it is interrupted.
INTERRUPTED: Final = "no map was written; `bge encode --store-texts` can be resumed, and its output can be mapped"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.usage = "bge map SOURCE... -o FILE.parquet [--model MODEL] [--plot FILE.png] [option ...]"
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="files of texts, encoded shards, or an index")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="the map, a .parquet file")
    options.add_overwrite_option(parser, "map or picture")
    parser.add_argument(
        "--neighbors", type=options.positive, default=15, metavar="N", help="nearest texts kept per text [15]"
    )
    parser.add_argument(
        "--near-threshold", type=float, default=0.95, metavar="X",
        help="two texts are near copies at this cosine or above [0.95]",
    )  # fmt: skip
    options.add_keep_option(parser)
    group = parser.add_argument_group("picture")
    group.add_argument("--plot", metavar="FILE", help="draw the map as .png or .svg (by UMAP with the extra `map`)")
    options.add_option(
        group, "--color", old=["--colour"], metavar="COLUMN",
        help="column that colours the points; with files, it is kept, too",
    )  # fmt: skip
    # The model of what is encoded is known: only files need the option.
    options.add_model_options(parser, default="")
    options.add_input_options(parser)
    options.add_chunk_options(parser)
    options.add_report_options(parser)


def run(args: argparse.Namespace) -> int:
    """Map."""
    options.set_up_logging(args)
    records = _check(args)
    from ..search.vector_map import write_map

    with contextlib.ExitStack() as stack:
        index = _open(args, records, stack)
        _check_color(args, index)
        report = write_map(
            index, args.output, neighbors=args.neighbors, near_threshold=args.near_threshold,
            show_progress=not args.no_progress,
        )  # fmt: skip
    if args.plot:
        from ..display.pages import save_plot
        from ..display.terminal import write_line
        from ..search.map_plot import draw_map

        if not args.quiet:
            write_line("drawing the map")
        save_plot(draw_map(args.output, color=args.color), args.plot)
    if not args.quiet:
        print(_summary(report, args))
    return 0


def _check(args: argparse.Namespace) -> RecordReader | None:
    """Checks before a model is loaded; returns the records of files, None where what is mapped is encoded."""
    from ..data.documents import made_here
    from ..files.atomic import check_free
    from ..search.vector_map import COLUMNS, check_map_file, check_near_threshold

    check_map_file(args.output)
    check_near_threshold(args.near_threshold)
    if os.path.abspath(args.output) in map(os.path.abspath, args.sources):
        raise ArgumentError(f"--output {args.output} would replace what is mapped; give the map another name")
    check_free(args.output, overwrite=args.overwrite)
    _check_plot(args)
    encoded = [source for source in args.sources if made_here(source)]
    if not encoded:
        if not args.model:
            raise ArgumentError("--model is needed to encode texts, such as --model BAAI/bge-small-en-v1.5")
        if args.color and args.color not in (*COLUMNS, *(args.keep or [])) and "*" not in (args.keep or []):
            args.keep = [*(args.keep or []), args.color]
        return options.open_records(args, args.sources)
    if len(args.sources) > 1:
        raise ArgumentError(f"{encoded[0]} is encoded already: give it alone, without other sources")
    given = {"--model": args.model, "--keep": args.keep, "--chunk": options.chosen_chunks(args)}
    if unused := [name for name, value in given.items() if value]:
        raise ArgumentError(f"{encoded[0]} is encoded already: leave out {' and '.join(unused)}")
    return None


def _check_plot(args: argparse.Namespace) -> None:
    if not args.plot:
        if args.color:
            raise ArgumentError("--color colours a picture: give --plot FILE.png, too")
        return
    if Path(args.plot).suffix.lower() not in (".png", ".svg"):
        raise ArgumentError(f"--plot {args.plot}: a picture is saved as .png or .svg; give a name that ends so")
    from ..errors import require_extra
    from ..files.atomic import check_free, check_place

    check_place(args.plot, doing="write the plot")
    check_free(args.plot, overwrite=args.overwrite)
    require_extra("map", "matplotlib")


def _open(args: argparse.Namespace, records: RecordReader | None, stack: contextlib.ExitStack) -> SearchIndex:
    """The index to map; of files, one is made for this."""
    from ..search.index import SearchIndex

    if records is None:
        return SearchIndex.load(args.sources[0])
    model = stack.enter_context(options.load_model(args))
    from ..display.terminal import EncodeProgress
    from ..search.build import index_records

    index, _ = index_records(
        model,
        records,
        stack.enter_context(tempfile.TemporaryDirectory(prefix="bge-map-")),
        chunks=options.chosen_chunks(args),
        batch_size=args.batch_size,
        progress=None if args.no_progress else lambda: EncodeProgress(records.size),
    )
    return index


def _check_color(args: argparse.Namespace, index: SearchIndex) -> None:
    """See to it, before neighbours are looked for, that there will be the column that colours the picture."""
    from ..search.vector_map import columns_of_map

    columns = columns_of_map(index)
    if args.color and args.color not in columns:
        raise ArgumentError(f"--color {args.color}: the map has no such column; it has {', '.join(columns)}")


def _summary(report: MapReport, args: argparse.Namespace) -> str:
    how = "exact" if report.method == "exact" else f"{report.method}, approximate"
    lone = f"{report.lone:,} lone texts" if report.lone_below is None else (
        f"{report.lone:,} lone texts (the nearest is less than {report.lone_below:.2f} alike)"
    )  # fmt: skip
    picture = f"; picture in {args.plot}" if args.plot else ""
    return (
        f"mapped {report.texts:,} texts to {args.output}: {report.dimension} dimensions, {report.neighbors} nearest "
        f"texts of each ({how}); {report.near_copies:,} near copies (another text is {report.near_threshold:g} alike "
        f"or more), {lone}{picture}\nlook: embedding-atlas {shlex.quote(args.output)} --text text --vector vector "
        "--neighbors neighbors"
    )
