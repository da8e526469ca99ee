"""`bge pretrain`, `bge finetune`, `bge finetune-reranker`: texts or training data -> a model.

What was typed is checked before transformers and torch are imported, which takes seconds.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from ..errors import ArgumentError, UsageError
from .options import check_model_names, log_to_stderr, require_training

if TYPE_CHECKING:
    from ..training.loop.command_line import Command

#: What is said when it is interrupted.
INTERRUPTED: Final = "with --resume-from-checkpoint true, the same command continues from the last checkpoint"


def train(verb: str, arguments: Sequence[str]) -> int:
    """Train as a verb does.

    Raises:
        UsageError: the arguments are wrong, as far as this can be said without transformers.
    """
    from ..training.loop.command_line import parse

    log_to_stderr(logging.INFO)
    try:
        parts = parse(command_of(verb), arguments, prog=f"bge {verb}")
    except ArgumentError as error:
        raise UsageError(str(error)) from error
    for part in parts:
        check_model_names(part)
    require_training()
    from ..recipes.spec import VERBS

    return int(importlib.import_module(VERBS[verb].module).main(arguments, prog=f"bge {verb}"))


def command_of(verb: str) -> Command:
    """The command line of a verb."""
    if verb == "pretrain":
        from ..pretraining.options import PRETRAIN

        return PRETRAIN
    from ..training.loop.options import FINETUNE, FINETUNE_RERANKER

    return FINETUNE if verb == "finetune" else FINETUNE_RERANKER
