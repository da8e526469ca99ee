"""`bge pretrain`, `bge finetune`, `bge finetune-reranker`: texts or training data -> a model.

Their arguments are parsed where those of transformers' Trainer are known.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from typing import Final

from .options import log_to_stderr, require_training

#: What is said when it is interrupted.
INTERRUPTED: Final = "with --resume-from-checkpoint true, the same command goes on from the last checkpoint"


def train(verb: str, arguments: Sequence[str]) -> int:
    """Train as a verb does."""
    from ..recipes.spec import VERBS

    log_to_stderr(logging.INFO)
    require_training()
    return int(importlib.import_module(VERBS[verb].module).main(arguments, prog=f"bge {verb}"))
