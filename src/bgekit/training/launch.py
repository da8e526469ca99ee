"""Entry of `python -m bgekit.training...`, for torchrun and accelerate."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable

from ..errors import BgekitError
from ..spoken import spoken


def launched(main: Callable[[], int]) -> int:
    """Run with log lines on stderr; an error that its message explains is one line there."""
    # One process of several is enough to say a thing.
    level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    logging.getLogger("bgekit").setLevel(level)
    try:
        return main()
    except BgekitError as error:
        print(f"error: {spoken(str(error))}", file=sys.stderr)  # noqa: T201
        return 1
