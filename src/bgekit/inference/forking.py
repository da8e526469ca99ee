"""What a process made by `os.fork()` can do with models that its parent loaded.

A fork copies the memory, but of all threads only the one that called it. Those of OpenMP (torch) and of the tokenizer
are missing in the child, where whoever counts on them would wait for ever: there the thread that forked computes
alone, and texts are tokenised by one thread. Streams and workers are made anew. A GPU cannot be shared like this.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol

import torch

from ..errors import ForkError


class _Forgetful(Protocol):
    def forget(self) -> None:
        """Let go, in the child, of what belongs to the parent."""
        ...


#: What a child must let go of.
_holders: weakref.WeakSet[_Forgetful] = weakref.WeakSet()
#: Whether this process, or its parent before it, has loaded a model: until then children are left alone.
_loaded = False


def note_load() -> None:
    """From now on children are prepared for use."""
    global _loaded
    _loaded = True


def forget_in_children(holder: _Forgetful) -> None:
    """Have `holder.forget()` called in every child forked from now on, as long as the holder lives."""
    _holders.add(holder)


def check_process(device: torch.device, loaded_in: int) -> None:
    """Raise ForkError if a device cannot be used here by a model that the process `loaded_in` has loaded."""
    if device.type != "cpu" and os.getpid() != loaded_in:
        raise ForkError(
            f"this process was forked from process {loaded_in}, which had loaded the model on {device}, and a GPU "
            "cannot be used on both sides of a fork: load the model after the fork, or start processes by "
            "multiprocessing.get_context('spawn')"
        )


def _after_fork() -> None:
    for holder in list(_holders):
        holder.forget()
    if not _loaded:
        return
    torch.set_num_threads(1)
    # Left to itself the tokenizer sees to this; told to use threads by the environment it does as it is told.
    if "TOKENIZERS_PARALLELISM" in os.environ:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_after_fork)
