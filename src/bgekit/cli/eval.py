"""`bge eval`: models and data -> scores, comparisons and a report.

Measure models on your own data, or on named benchmarks. Data is a folder or file in the layout of BEIR, of
FlagEmbedding, or of plain pairs, labels and triples (jsonl, csv, tsv, parquet); the layout is seen from the content.
Two or more models, or settings of one model, are compared on the same items: with intervals, p values, and the items
that they differ on most. results.json, report.md, report.html and per_item.jsonl are written to OUT; what was computed
once is not computed again, and the same command continues an interrupted run.

Examples:
  bge eval --data my_data --model BAAI/bge-small-en-v1.5 --output scores
  bge eval --data my_data --model BAAI/bge-small-en-v1.5 intfloat/e5-small-v2 --output scores
  bge eval --data my_data --model BAAI/bge-small-en-v1.5 --compare instruction
  bge eval --data my_data --model BAAI/bge-small-en-v1.5 --modes dense bm25 hybrid --output scores
  bge eval --benchmark mteb-en --tasks SciFact,STSBenchmark --data-root datasets --model BAAI/bge-small-en-v1.5 --table
  bge eval --benchmark c-mteb --model BAAI/bge-small-zh-v1.5       # from the hub, through the package mteb
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from ..errors import ArgumentError
from . import options

if TYPE_CHECKING:
    from ..evaluation import Candidate, Report, Result, Task
    from ..inference.reranker import FlagReranker

#: What is said when it is interrupted.
INTERRUPTED: Final = "with --output, the same command continues from what is finished; without, it starts over"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.usage = "bge eval (--data DIR | --benchmark NAME) --model MODEL [MODEL ...] [option ...]"
    group = parser.add_argument_group("data")
    options.add_list_option(
        group, "--data", metavar="DIR_OR_FILE", help="your own data; a folder of data sets stands for all of them"
    )
    group.add_argument("--split", metavar="NAME", help="split to measure on [test, else dev or validation]")
    options.add_list_option(
        group, "--tasks", metavar="NAME", help="only these tasks, separated by spaces or commas [all]"
    )
    group.add_argument("--benchmark", metavar="NAME", help="named benchmark: mteb-en, c-mteb, beir, msmarco or miracl")
    group.add_argument(
        "--data-root", metavar="DIR", help="read the benchmark's tasks from folders in DIR, not from the hub"
    )
    options.add_text_options(group)
    group = parser.add_argument_group("comparison")
    group.add_argument(
        "--compare", choices=("instruction", "precision", "dimension"),
        help="also measure each model without its query instruction, in other number formats, or in fewer dimensions",
    )  # fmt: skip
    options.add_list_option(
        group, "--modes", choices=options.MODES, metavar="MODE",
        help="measure and compare modes of search (retrieval): dense, bm25, lexical and multi-vector of models as "
        "BGE-M3, hybrid of the others that are named [dense; hybrid alone is of dense and bm25]",
    )  # fmt: skip
    group.add_argument(
        "--weights", metavar="FILE_OR_INDEX",
        help="weights of hybrid that bge calibrate --hybrid fitted, or an index that has some [fitted here, on other "
        "queries than each is scored on]",
    )  # fmt: skip
    options.add_list_option(
        group, "--dimensions", type=options.positive, metavar="N",
        help="dimensions of --compare dimension [the whole, 2/3 and 1/3 of it]",
    )  # fmt: skip
    group.add_argument(
        "--reranker", metavar="MODEL",
        help="also measure each model with its best passages reranked by this cross-encoder (retrieval, reranking)",
    )  # fmt: skip
    group.add_argument(
        "--rerank-top-k", type=options.positive, metavar="N", help="passages per query that it reranks [100]"
    )
    group.add_argument(
        "--seed", type=options.not_negative, default=0, metavar="N", help="random seed for resampling [0]"
    )
    group = parser.add_argument_group("output")
    group.add_argument(
        "-o", "--output", metavar="OUT", help="folder for the results, the report and what a rerun can use"
    )
    group.add_argument("--keep-vectors", action="store_true", help="keep the vectors of documents in OUT")
    group.add_argument("--table", action="store_true", help="print the published tables with these models in them")
    options.add_model_options(parser, several="several are compared")
    options.add_ray_options(parser)
    options.add_report_options(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluate."""
    options.set_up_logging(args)
    args.tasks = [name for each in args.tasks or [] for name in each.split(",") if name] or None
    _check(args)
    if not args.model:
        _tables(args, ())
        return 0
    from ..display.terminal import encodable
    from ..evaluation.evaluator import evaluate
    from ..evaluation.report.report import console
    from ..evaluation.tasks.base import check_rerankable
    from ..files.remote import is_url
    from ..files.transfer import check_target
    from ..inference.shards import encode_for_now

    # What can fail at once does, before a model is loaded.
    if args.output:
        if args.keep_vectors and is_url(args.output):
            raise ArgumentError(f"--keep-vectors keeps them in a local folder, and --output {args.output} is a URL")
        check_target(args.output, folder=True)
    tasks, notes = _tasks(args)
    if args.reranker and not any(task.rerankable for task in tasks):
        check_rerankable(tasks)
    reranker = options.load_reranker(args, args.reranker) if args.reranker else None
    candidates = [candidate for name in args.model for candidate in _candidates(name, args, reranker)]
    cluster = options.ray_cluster(args)
    with contextlib.ExitStack() as stack:
        encode = encode_for_now
        if cluster is not None:
            from ..distributed.encoding import encode_on_cluster

            encode = partial(encode_on_cluster, stack.enter_context(cluster), allow_mixed=bool(args.mixed_nodes))
        report = evaluate(
            candidates, tasks, output=args.output, keep_vectors=args.keep_vectors, seed=args.seed, notes=notes,
            progress=not args.no_progress, encode=encode,
        )  # fmt: skip
    print(encodable(console(report)))
    if args.table:
        _tables(args, report.results)
    if not args.quiet:
        print(encodable(f"\n{_brought(args, report)}"))
    return 0


def _brought(args: argparse.Namespace, report: Report) -> str:
    """The last sentence: what was found, where it is written, and what can be done next."""
    from ..evaluation.report.report import in_short

    said = in_short(report)
    if not args.output:
        return f"{said}; next: the same command with --output DIR keeps the scores and writes a report"
    cached = sum(result.cached for result in report.results)
    known = f"; {cached} of {len(report.results)} scores came from its cache" if cached else ""
    where = f"written to {args.output}: report.html, report.md, results.json, per_item.jsonl{known}"
    alone = len({result.label for result in report.results}) == 1
    following = "; next: the same command with a second --model compares the two on the same items" if alone else ""
    return f"{said}; {where}{following}"


def _tables(args: argparse.Namespace, results: Sequence[Result]) -> None:
    """Print the published table of the benchmark, or of both that are published, with our results in it."""
    from ..display.terminal import encodable
    from ..evaluation.benchmarks.published_tables import render_table

    for name in [args.benchmark] if args.benchmark else ["mteb-en", "c-mteb"]:
        print(encodable(f"\n{name}\n{render_table(name, results, markdown=False)}"))


def _check(args: argparse.Namespace) -> None:
    """Combinations of options that contradict each other, or of which one would do nothing."""
    if args.table and not args.model and not args.data:
        return
    problems = {
        "give either --data DIR for your own data, or --benchmark NAME": bool(args.data) == bool(args.benchmark),
        "--data-root goes with --benchmark; your own data is given by --data": args.data_root and not args.benchmark,
        "--split goes with --data; a benchmark says which split of each task counts": args.split and args.benchmark,
        "--keep-vectors needs --output: that is where they are kept": args.keep_vectors and not args.output,
        "--ray needs --output, a folder that all nodes see: vectors of documents are written there": (
            args.ray and not args.output
        ),
        "--rerank-top-k goes with --reranker": args.rerank_top_k is not None and not args.reranker,
        "--weights goes with --modes hybrid": args.weights and "hybrid" not in (args.modes or ()),
        "--dimensions goes with --compare dimension": args.dimensions and args.compare != "dimension",
        "--compare precision chooses the formats itself: leave out --fp32 and --dtype": (
            args.compare == "precision" and (args.fp32 or args.dtype)
        ),
        "--model is needed, such as --model BAAI/bge-small-en-v1.5": not args.model and not args.table,
    }
    for problem, there in problems.items():
        if there:
            raise ArgumentError(problem)


def _tasks(args: argparse.Namespace) -> tuple[list[Task], list[str]]:
    """The tasks to measure on, and remarks on them."""
    from ..evaluation.evaluator import tasks_of

    notes: list[str] = []
    if args.data:
        found = tasks_of(args.data, split=args.split, tasks=args.tasks, left_out=notes, **options.text_arguments(args))
        return found, notes
    from ..evaluation.benchmarks.local_folders import benchmark_tasks

    tasks, notes = benchmark_tasks(
        args.benchmark, tasks=args.tasks, data_root=args.data_root, **options.text_arguments(args)
    )
    return tasks_of(tasks), notes


def _candidates(name: str, args: argparse.Namespace, reranker: FlagReranker | None) -> list[Candidate]:
    """A model in the settings that are to be compared."""
    from ..evaluation import Candidate, Setting
    from ..search.fusion import fitted_in

    given = options.model_arguments(args)
    formats: dict[str, dict[str, Any]] = {"": {}}
    settings = [Setting()]
    if args.compare == "precision":
        from ..networks.loading import other_precisions

        if not (others := other_precisions()):
            raise ArgumentError("--compare precision has nothing to compare: this CPU is fast in float32 alone")
        formats |= {precision: {"dtype": precision} for precision in others}
    elif args.compare == "instruction":
        settings.append(Setting(instruction=None))
    elif args.compare == "dimension":
        settings = [Setting(dimension=size) for size in args.dimensions or []]
        if not settings:
            from ..inference import load_model

            with load_model(name, **given) as model:
                whole = model.dimension
            settings = [Setting(), Setting(dimension=whole * 2 // 3), Setting(dimension=whole // 3)]
    if args.modes:
        modes = list(dict.fromkeys(args.modes))
        fused = tuple(mode for mode in modes if mode != "hybrid")
        if len(fused) < 2:  # Where hybrid stands alone, or beside one mode.
            fused = ("dense", *(mode for mode in (*fused, "bm25") if mode != "dense"))[:2]
        of_hybrid: dict[str, Any] = {"mode": "hybrid", "fused": fused}
        if args.weights:
            of_hybrid["weights"] = fitted_in(args.weights)
        chosen = [of_hybrid if mode == "hybrid" else {"mode": mode} for mode in modes]
        settings = [replace(setting, **how) for setting in settings for how in chosen]
    if reranker is not None:
        behind = {"reranker": reranker, "reranker_name": args.reranker, "rerank_top_k": args.rerank_top_k or 100}
        settings += [replace(setting, **behind) for setting in settings]
    return [Candidate(name, options={**given, **more}, settings=settings, note=note) for note, more in formats.items()]
