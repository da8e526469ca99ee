"""Freed memory, back to the operating system."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from functools import cache
from typing import Final

#: Seconds between two times: what they cost is then less than a two-hundredth of the whole.
_SECONDS: Final = 5.0


class Trimmer:
    """Gives freed memory back every few seconds while something runs for long."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def trim(self) -> None:
        """Give it back if it is time."""
        if time.monotonic() - self._last >= _SECONDS:
            return_freed_memory()
            self._last = time.monotonic()


def return_freed_memory() -> None:
    """Have the C library give the pages it no longer needs back to the system, where it can (glibc); 20 ms.

    Batches of ever-changing sizes leave holes in its heap, which it keeps: measured with a 6-layer model, the process
    grew by 2.5 MB with every thousand texts, without end and without a single object more. With this it stays flat.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


def keep_few_kernels() -> None:
    """Have oneDNN, which multiplies on CPUs, keep 128 kernels instead of 1,024, unless the user has set a number.

    It compiles one for each shape, and in training nearly every step has another number of tokens: what it keeps, about
    1 MB each, is hardly ever used again. A layer of the network uses what the one before it compiled, for which 64 are
    enough: the processor time of training was the same with 64, 128 and 1,024. Must come before the first product.
    """
    if "DNNL_PRIMITIVE_CACHE_CAPACITY" not in os.environ:  # Its older name.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    if os.name != "posix":
        return None
    function: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return function
