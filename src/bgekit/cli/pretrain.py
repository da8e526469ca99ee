"""`bge pretrain`: plain texts -> an encoder that is ready to be fine-tuned."""

from __future__ import annotations

import logging
from collections.abc import Sequence


def run_as_given(arguments: Sequence[str]) -> int:
    """Train; the arguments are parsed where those of transformers' Trainer are known."""
    from ..errors import import_extra
    from .options import log_to_stderr

    log_to_stderr(logging.INFO)
    import_extra("accelerate", "train")
    from ..pretraining.run import main

    return main(arguments, prog="bge pretrain")
