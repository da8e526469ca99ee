"""`bge finetune-reranker`: training data -> a reranker."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

#: What is said when it is interrupted.
INTERRUPTED: Final = "with --resume_from_checkpoint true, the same command goes on from the last checkpoint"


def known_options() -> dict[str, str]:
    """The options, as `spoken.speak_for` takes them."""
    from .recipe import trained_options

    return trained_options("finetune-reranker")


def run_as_given(arguments: Sequence[str]) -> int:
    """Train; the arguments are parsed where those of transformers' Trainer are known."""
    from ..errors import import_extra
    from .options import log_to_stderr

    log_to_stderr(logging.INFO)
    import_extra("accelerate", "train")
    from ..training.reranker import main

    return main(arguments, prog="bge finetune-reranker")
