"""`bge pretrain`: plain texts -> an encoder that is ready to be fine-tuned."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

#: What is said when it is interrupted.
INTERRUPTED: Final = "with --resume-from-checkpoint true, the same command goes on from the last checkpoint"


def run_as_given(arguments: Sequence[str]) -> int:
    """Train; the arguments are parsed where those of transformers' Trainer are known."""
    from .options import log_to_stderr, require_training

    log_to_stderr(logging.INFO)
    require_training()
    from ..pretraining.run import main

    return main(arguments, prog="bge pretrain")
