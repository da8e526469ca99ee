"""`bge encode`: texts of files -> shards of vectors with a manifest, resumable.

Encode the texts of files (jsonl, csv, tsv, parquet, txt, md, html, pdf, docx; gzipped or not; - is standard input), or
of the files in folders, into a folder: vectors as shard-00000.npy, ..., ids as shard-00000.ids.jsonl, ..., and
manifest.json. Both can be URLs of object stores. Memory does not grow with the input. Give the same command again to
continue an interrupted run where it stopped, with the same result.

Examples:
  bge encode corpus.jsonl -o vectors --model BAAI/bge-small-en-v1.5
  bge encode corpus/ -o /shared/vectors --model BAAI/bge-m3 --ray auto
  bge encode s3://bucket/corpus/ -o s3://bucket/vectors --model BAAI/bge-small-en-v1.5
  bge encode corpus.jsonl -o outputs --model BAAI/bge-m3 --outputs dense sparse multi-vector
  zcat dump.gz | bge encode - -o vectors --model BAAI/bge-m3 --format jsonl --text-field body --chunk
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from ..models.head_files import DENSE, OUTPUTS
from . import options

if TYPE_CHECKING:
    from ..files.atomic import OutputFolder
    from ..inference.shards import EncodeReport, EncodeShards

#: What is said when it is interrupted.
INTERRUPTED: Final = "the same command continues from the shards that are finished (--overwrite starts over)"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.usage = "bge encode FILE_OR_DIR... -o DIR --model MODEL [option ...]"
    parser.add_argument("files", nargs="+", metavar="FILE_OR_DIR", help="file or folder of texts, - for standard input")
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="folder for the shards")
    parser.add_argument(
        "--shard-size", type=options.positive, metavar="N", help="texts per shard [1024; 256 with multi-vector]"
    )
    parser.add_argument(
        "--outputs", nargs="+", choices=OUTPUTS, default=list(DENSE),
        help="what to store of each text: its vector, weights of its tokens, vectors of its tokens; those take a "
        "model with heads, such as BGE-M3 [dense]",
    )  # fmt: skip
    parser.add_argument(
        "--kind", choices=("document", "query", "plain"), default="document",
        help="encode the texts as documents, as queries, or without an instruction [document]",
    )  # fmt: skip
    parser.add_argument(
        "--output-dtype", choices=("float32", "float16"), default="float32",
        help="number format of the vectors on disk [float32]",
    )  # fmt: skip
    parser.add_argument("--store-texts", action="store_true", help="keep the texts beside the ids (for bge search)")
    options.add_keep_option(parser)
    parser.add_argument("--overwrite", action="store_true", help="remove existing shards and start over")
    parser.add_argument(
        "--allow-mixed", action="store_true",
        help="continue with shards that another kind of CPU or torch computed, and record that",
    )  # fmt: skip
    options.add_model_options(parser)
    options.add_input_options(parser)
    options.add_chunk_options(parser)
    options.add_ray_options(parser, mixed=False)
    options.add_report_options(parser)


def run(args: argparse.Namespace) -> int:
    """Encode."""
    options.set_up_logging(args)
    options.count_changes_itself()
    from ..files.atomic import OutputFolder
    from ..files.remote import is_url
    from ..files.transfer import check_target

    # What can fail at once does, before a model is loaded: a missing input, an output that another process holds.
    records = options.open_records(args, args.files)
    with contextlib.ExitStack() as stack:
        output: OutputFolder | str = args.output
        if is_url(args.output):
            check_target(args.output, folder=True)
        else:
            output = stack.enter_context(OutputFolder(args.output))
        encode = _encoder(args, stack)
        from ..display.terminal import EncodeProgress
        from ..inference.shards import SHARD_SIZE

        progress = stack.enter_context(EncodeProgress(records.size, show=not args.no_progress))
        start = time.perf_counter()
        report = encode(
            records,
            output,
            shard_size=args.shard_size or (256 if "multi-vector" in args.outputs else SHARD_SIZE),
            kind=args.kind,
            dtype=args.output_dtype,
            batch_size=args.batch_size,
            outputs=args.outputs,
            chunks=options.chosen_chunks(args),
            store_texts=args.store_texts,
            overwrite=args.overwrite,
            allow_mixed=args.allow_mixed,
            progress=progress,
        )
    if not args.quiet:
        following = f'bge search {shlex.quote(args.output)} --model {shlex.quote(args.model)} -q "..."'
        next_step = f"; next: {following}" if args.kind == "document" and args.outputs == ["dense"] else ""
        print(_summary(report, args.output, time.perf_counter() - start, str(records.skipped)) + next_step)
    return 0


def _encoder(args: argparse.Namespace, stack: contextlib.ExitStack) -> EncodeShards:
    """`encode_to_shards` with the model, or the same with a cluster, which loads it on its nodes."""
    cluster = options.ray_cluster(args)
    if cluster is None:
        from ..inference.shards import encode_to_shards

        return partial(encode_to_shards, stack.enter_context(options.load_model(args)))
    from ..distributed.encoding import encode_on_cluster
    from ..distributed.recipes import ModelRecipe

    recipe = ModelRecipe(args.model, options.model_arguments(args))
    return partial(encode_on_cluster, stack.enter_context(cluster), recipe)


def _summary(report: EncodeReport, output: str, seconds: float, skipped: str) -> str:
    new = report.texts - report.kept
    parts = [f"{report.texts:,} texts in {report.shards:,} {'shard' if report.shards == 1 else 'shards'} in {output}"]
    if report.kept:
        parts.append(f"{report.kept:,} kept from an earlier run")
    if new or not report.kept:
        parts.append(f"{new:,} encoded in {seconds:,.1f} s ({new / max(seconds, 1e-9):,.0f} texts/s)")
    if report.truncated:
        parts.append(f"{report.truncated:,} were cut at the maximum length (--chunk splits them instead)")
    if report.repaired:
        parts.append(f"{report.repaired:,} had lone surrogates, now U+FFFD")
    if skipped:
        parts.append(f"{skipped} skipped (listed in manifest.json)")
    return "; ".join(parts)
