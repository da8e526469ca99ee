"""`bge merge`: several models -> one.

Merge embedders, or rerankers, of one architecture into one model: by weights that you give, by weights from the losses
on a few examples (--data, LM-Cocktail), or by the weights that score best on validation data (--eval-data). LoRA
adapters stand for their base with the adapter added. The result is a complete model; its merge.json says what it was
made of.

Examples:
  bge merge --model BAAI/bge-base-en-v1.5 my-finetuned --weights 0.5 0.5 --output merged
  bge merge --model BAAI/bge-base-en-v1.5 my-finetuned --data examples.jsonl --output merged
  bge merge --model BAAI/bge-base-en-v1.5 my-finetuned --eval-data my_task other_tasks --output merged
  bge merge --model tuned-a tuned-b --method ties --base BAAI/bge-base-en-v1.5 --density 0.2 --output merged
  bge merge --model my-lora-adapter --weights 1 --output merged
"""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import TYPE_CHECKING, Final

from ..display.option_names import listed_option
from ..errors import ArgumentError
from . import options

if TYPE_CHECKING:
    from ..merging import Examples, Merged, Merging, Validation

#: What is said when it is interrupted.
INTERRUPTED: Final = "nothing was written, and the same command starts over"

#: What each way to find weights, and each method, needs of the options.
_GOES_WITH = {
    "data": ("temperature", "batch_size", "max_input_length", "neg_number"),
    "eval_data": ("eval_split", "search_points", "first_stage", "rerank_top_k"),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    options.add_list_option(
        parser, "-m", "--model", old=["--models", "--model-names-or-paths"], dest="models", required=True,
        metavar="MODEL", help="folders, Hugging Face ids, packaged:NAME, or folders of LoRA adapters",
    )  # fmt: skip
    options.add_option(
        parser, "-o", "--output", old=["--output-path"], required=True, metavar="DIR", help="folder of the merged model"
    )
    options.add_overwrite_option(parser, "model")
    parser.add_argument("--model-type", choices=("encoder", "reranker"), help="kind of the models [that of the first]")
    parser.add_argument(
        "--card-from", type=options.not_negative, metavar="N",
        help="take prompts, pooling and maximum length from model N, counted from 0 [all must agree]",
    )  # fmt: skip
    group = parser.add_argument_group("weights")
    options.add_list_option(
        group, "--weights", type=float, metavar="W", help="one weight per model; those of an average sum to 1 [equal]"
    )
    options.add_option(
        group, "--normalize-weights", old=["--normalize"], dest="normalize", action="store_true",
        help="divide the weights by their sum",
    )  # fmt: skip
    options.add_option(
        group, "--data", old=["--example-data"], metavar="FILE",
        help='find the weights on examples {"query", "pos", "neg"}: softmax(-loss/T)',
    )  # fmt: skip
    group.add_argument("--temperature", type=float, metavar="T", help="T of the weights that --data gives [5]")
    group.add_argument("--batch-size", type=options.positive, metavar="N", help="examples per batch [2]")
    options.add_option(
        group, "--max-length", old=["--max-input-length"], dest="max_input_length", type=options.positive,
        metavar="TOKENS", help="cut texts of examples here [2048, or the model's limit]",
    )  # fmt: skip
    group.add_argument("--neg-number", type=options.not_negative, metavar="N", help="negatives per example [7]")
    options.add_list_option(
        group, "--eval-data", metavar="DIR_OR_FILE",
        help="find the weights by the scores of the merged models on this data (extra eval)",
    )  # fmt: skip
    options.add_option(
        group, "--split", old=["--eval-split"], dest="eval_split", metavar="NAME",
        help="split of --eval-data [test, else dev or validation]",
    )  # fmt: skip
    group.add_argument("--search-points", type=options.positive, metavar="N", help="values to try per weight [11]")
    group.add_argument("--first-stage", metavar="MODEL", help="for rerankers: embedder whose passages are reranked")
    group.add_argument("--rerank-top-k", type=options.positive, metavar="N", help="passages per query [100]")
    options.add_text_options(group)
    group = parser.add_argument_group("method")
    group.add_argument(
        "--method",
        choices=("average", "slerp", "task_arithmetic", "ties", "dare"),
        default="average",
        help="how the models are merged [average]",
    )
    group.add_argument("--base", metavar="MODEL", help="model that all were trained from (task_arithmetic, ties, dare)")
    group.add_argument("--density", type=float, metavar="X", help="share of changes kept (ties, dare) [0.2]")
    group.add_argument("--scale", type=float, metavar="X", help="factor of the merged change (ties) [1]")
    group.add_argument("--seed", type=options.not_negative, metavar="N", help="random seed (dare, --data) [0]")
    group = parser.add_argument_group("model")
    options.add_option(
        group, "--devices", old=["--device"], dest="device", metavar="DEVICE", default="cpu",
        help="one device for losses and validation, such as cuda [cpu]",
    )  # fmt: skip
    options.add_pooling_option(group, of="; with rerankers, those of --first-stage")
    options.add_checkpoint_options(group)
    options.add_report_options(parser)


def run(args: argparse.Namespace) -> int:
    """Merge."""
    options.set_up_logging(args)
    _check(args)
    from ..merging import merge

    task = _task(args)
    result = merge(
        task, args.output, examples=_examples(args), validation=_validation(args), overwrite=args.overwrite,
        show_progress=not args.no_progress,
    )  # fmt: skip
    if not args.quiet:
        _show(task, result)
    return 0


def _show(task: Merging, result: Merged) -> None:
    from ..display.terminal import encodable
    from ..merging.merge_weights import trials_table, weights_table
    from ..merging.merged_model import PROVENANCE

    if result.trials is not None:
        print(encodable(trials_table(result.trials, task.models)) + "\n")
    print(encodable(weights_table(task.models, result.weights, result.losses)))
    following = ""
    if result.model_type == "encoder":
        following = f"; next: bge eval --data DATA --model {shlex.join(map(str, (*task.models, result.path)))}"
    print(f"\nwrote {result.path} ({PROVENANCE} says how it was made){following}", file=sys.stderr)


def _check(args: argparse.Namespace) -> None:
    """Options that would do nothing."""
    for needed, names in _GOES_WITH.items():
        if idle := [name for name in names if getattr(args, name) is not None and getattr(args, needed) is None]:
            raise ArgumentError(f"{listed_option(idle[0])} goes with {listed_option(needed)}")
    wrong = {
        "density": args.method not in ("ties", "dare"),
        "scale": args.method != "ties",
        "seed": args.method != "dare" and args.data is None,
    }
    if idle := [name for name, off in wrong.items() if off and getattr(args, name) is not None]:
        raise ArgumentError(f"{listed_option(idle[0])} does nothing for the method {args.method}")
    if args.normalize and args.weights is None:
        raise ArgumentError("--normalize-weights goes with --weights")


def _task(args: argparse.Namespace) -> Merging:
    from ..merging import Merging, Options

    sources = Options(**options.given(args, "revision", "cache_dir", "trust_remote_code", "allow_pickle"))
    return Merging(
        args.models, args.model_type, method=args.method, weights=args.weights, normalize=args.normalize,
        base=args.base, card_from=args.card_from, pooling_method=args.pooling, options=sources, device=args.device,
        **options.given(args, "density", "scale", "seed"),
    )  # fmt: skip


def _examples(args: argparse.Namespace) -> Examples | None:
    if args.data is None:
        return None
    from ..merging import Examples

    return Examples(args.data, **options.given(args, *_GOES_WITH["data"]), **options.text_arguments(args))


def _validation(args: argparse.Namespace) -> Validation | None:
    if args.eval_data is None:
        return None
    from ..merging import Validation

    settings = options.given(args, "first_stage", "rerank_top_k", split=args.eval_split, points=args.search_points)
    return Validation(args.eval_data, **settings, **options.text_arguments(args))
