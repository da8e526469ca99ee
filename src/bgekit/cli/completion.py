"""`bge completion`: a script that lets a shell complete verbs, options and choices.

Print a script for your shell, made by shtab (`pip install 'bgekit[completion]'`). Print it again after an update.

Examples:
  bge completion bash > ~/.local/share/bash-completion/completions/bge
  bge completion zsh > ~/.zfunc/_bge          # a folder of $fpath
"""

from __future__ import annotations

import argparse
import importlib
from typing import Any

from ..errors import import_extra
from . import options


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), metavar="SHELL", help="bash, zsh or tcsh")


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    shtab = import_extra("shtab", "completion")
    print(shtab.complete(whole_parser(), shell=args.shell))
    return 0


def whole_parser() -> argparse.ArgumentParser:
    """The parser of the whole command, with the options of every verb."""
    from .main import TRAINERS, VERBS
    from .recipe import parser_of

    parser = options.Parser(prog="bge")
    parser.add_argument("--version", action="store_true", help="show the version")
    subparsers = parser.add_subparsers(dest="verb", metavar="VERB")
    for verb, summary in VERBS.items():
        if verb not in TRAINERS:
            module = importlib.import_module(f".{verb.replace('-', '_')}", __package__)
            options.add_verb(subparsers, verb, module, summary)
            continue
        made = subparsers.add_parser(verb, help=summary)
        made.add_argument("--help-all", action="store_true", help="show all options")
        for action in parser_of(verb)._actions:
            taken: dict[str, Any] = {"dest": action.dest, "help": " ".join((action.help or "").split())}
            taken["help"] = taken["help"].replace("%", "%%")
            if action.nargs == 0:
                taken["action"] = "store_true"
            else:
                taken["nargs"] = action.nargs
                taken["choices"] = None if action.choices is None else list(map(str, action.choices))
            made.add_argument(*action.option_strings, **taken)
    return parser
