"""`bge recipe`: a file of stages, each a verb of this command line, run in order and only as far as needed.

Run a recipe: a YAML file of stages (pretrain, mine, finetune, score, merge, calibrate, eval, ...) with their data and
arguments. A stage whose output is there already and would come out the same is not run again; the same command
continues a run that was interrupted or killed. The work folder holds the outputs, the log of each stage, and a report.

Examples:
  bge recipe run recipes/small-demo.yaml --dry-run
  bge recipe run recipes/small-demo.yaml
  bge recipe run recipes/small-shared.yaml --set data=/data --set seed=1 --work runs/seed-1
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..errors import ArgumentError
from . import options
from .main import TRAINERS
from .training import command_of

if TYPE_CHECKING:
    from ..recipes.spec import Recipe, Verb

#: What is said when it is interrupted.
INTERRUPTED: Final = "the same command continues from what is finished"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, title="actions")
    run = actions.add_parser("run", help="run a recipe", description=parser.description)
    run.add_argument("file", metavar="FILE", help="the recipe")
    run.add_argument("--dry-run", action="store_true", help="show what would run and why, and run nothing")
    options.add_list_option(run, "--set", metavar="NAME=VALUE", help="give a variable of the recipe another value")
    run.add_argument("--work", metavar="DIR", help="folder of outputs, logs and the report [runs/NAME]")
    options.add_list_option(
        run, "--stages", metavar="STAGE", help="run only these stages, and those that they need [all]"
    )
    options.add_list_option(run, "--again", metavar="STAGE", help="run these stages even if their output is up to date")
    run.add_argument("--quiet", action="store_true", help="print nothing but errors")
    data = actions.add_parser(
        "pydocs", help="write training and test data from the documentation of Python's standard library",
        description="Write pairs of the first sentence of a docstring and the rest of it: train.jsonl, texts.jsonl for "
        "pre-training, and eval/, a retrieval task on modules that are held out.",
    )  # fmt: skip
    data.add_argument("-o", "--output", required=True, metavar="DIR", help="folder to write")


def run(args: argparse.Namespace) -> int:
    """Run a recipe, or show what that would be."""
    if args.action == "pydocs":
        from ..demo import write_pairs

        counts = write_pairs(args.output)
        print(", ".join(f"{name} {count:,}" for name, count in counts.items()), file=sys.stderr)
        print(f"wrote {args.output}", file=sys.stderr)
        return 0
    from ..recipes.spec import read_recipe

    recipe = read_recipe(args.file, dict(map(_setting, args.set or ())))
    if args.stages:
        recipe = recipe.only(args.stages)
    work = Path(args.work or Path("runs", Path(args.file).stem))
    if args.dry_run:
        return _dry_run(recipe, work, args.again or ())
    from ..recipes.recipe_report import StageProgress
    from ..recipes.runner import StageError, run_recipe

    try:
        with StageProgress(quiet=args.quiet) as screen:
            content = run_recipe(recipe, work, VerbGrammar(), screen, again=args.again or ())
    except StageError as error:
        print(error.tail, file=sys.stderr)
        raise
    if not args.quiet:
        from ..display.terminal import encodable
        from ..recipes.recipe_page import scores_text

        print(encodable(scores_text(content)), end="")
        print(f"\nwritten to {work}: report.md, report.html, report.json")
    return 0


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ArgumentError(f"--set is NAME=VALUE, such as seed=1, not {text!r}")
    return name.strip(), value


def _dry_run(recipe: Recipe, work: Path, again: Sequence[str]) -> int:
    from ..display.terminal import encodable
    from ..recipes.plan import HIDDEN, Digests, Folder, make_steps, plan
    from ..recipes.recipe_report import plan_text
    from ..recipes.runner import check_inputs

    steps = make_steps(recipe, work, VerbGrammar())
    folder = Folder(work, Digests(work / HIDDEN), recipe.chosen(again))
    print(encodable(plan_text(steps, plan(steps, folder))))
    check_inputs(recipe, steps, folder)
    return 0


class VerbGrammar:
    """The parsers of the verbs of this command line."""

    def options(self, verb: Verb) -> Mapping[str, argparse.Action]:
        """The arguments of a verb by every name; positional ones by their `dest`."""
        parser = parser_of(verb.name)
        positional = {action.dest: action for action in parser._actions if not action.option_strings}
        return {**positional, **parser._option_string_actions}

    def check(self, verb: Verb, arguments: Sequence[str]) -> None:
        """Parse the arguments of a verb, without running it.

        Raises:
            ArgumentError: they cannot be parsed.
            MissingExtraError: the verb needs an extra that is not installed.
        """
        if verb.measures or "--eval-data" in arguments:
            options.require_evaluation()
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                if verb.name in TRAINERS:
                    from ..training.loop.command_line import parse

                    kinds = _trained(verb.name)  # Those that know what this machine can do, too.
                    parse(command_of(verb.name), arguments, prog=f"bge {verb.name}", kinds=kinds)
                else:
                    parser_of(verb.name).parse_args(list(arguments))
        except SystemExit:
            line = (said.getvalue().strip().splitlines() or [""])[-1]
            raise ArgumentError(line.rpartition(": error: ")[2]) from None


@functools.cache
def parser_of(verb: str) -> argparse.ArgumentParser:
    """The parser of a verb, of one word or two."""
    if verb in TRAINERS:
        from ..training.loop.command_line import argument_parser

        return argument_parser(command_of(verb).plain_kinds(), prog=f"bge {verb}")
    first, *rest = verb.split()
    module = importlib.import_module(f".{first.replace('-', '_')}", __package__)
    parser: argparse.ArgumentParser = options.add_verb(options.Parser(prog="bge").add_subparsers(), first, module)
    for word in rest:
        inner = next(each for each in parser._actions if isinstance(each, argparse._SubParsersAction))
        parser = inner.choices[word]
    return parser


def _trained(verb: str) -> tuple[type[Any], ...]:
    """The dataclasses that have the arguments of a verb which transformers' Trainer does."""
    options.require_training()
    *plain, _ = command_of(verb).kinds
    if verb == "pretrain":
        from ..pretraining.run import PretrainArguments

        return *plain, PretrainArguments
    from ..training.loop.arguments import EmbedderArguments, RerankerArguments

    return *plain, EmbedderArguments if verb == "finetune" else RerankerArguments
