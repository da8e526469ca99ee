"""Processes with everything heavy imported before they start, for tests of what several processes do or one leaves.

They are forked from a server that imports what training needs once a session: importing takes seconds of a process,
and is not what is tested.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import runpy
import socket
import sys
from collections.abc import Callable, Sequence
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any

#: All that the two training programs import, but for themselves: `python -m` runs a module that nobody has imported.
_IMPORTS = [
    "accelerate", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg", "torch.nn.parallel",
    "transformers.trainer", "bgekit.training.loop.dry_run", "bgekit.training.loop.training_run",
    "bgekit.training.losses.matryoshka", "bgekit.training.losses.sts",
]  # fmt: skip


@functools.cache
def _server() -> BaseContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTS)
    return context


def start(call: Callable[..., Any], *arguments: Any, threads: int = 1, **environment: str) -> BaseProcess:
    """A process that calls a function of a module, with more of an environment than this one has."""
    whole = os.environ | {"OMP_NUM_THREADS": str(threads)} | environment
    process = _server().Process(target=_call, args=(call, arguments, os.getcwd(), whole))  # type: ignore[attr-defined]
    process.start()
    return process


def start_module(name: str, arguments: Sequence[str], *, threads: int = 1, **environment: str) -> BaseProcess:
    """A process that does what `python -m name` does."""
    return start(_run_module, name, list(arguments), threads=threads, **environment)


def torchrun(name: str, arguments: Sequence[str], *, world: int) -> None:
    """`torchrun --nproc_per_node world -m name` with the environment that torchrun gives; all processes end well."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    meeting |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    finish([start_module(name, arguments, **meeting, RANK=str(n), LOCAL_RANK=str(n)) for n in range(world)])


def finish(processes: Sequence[BaseProcess], timeout: float = 200) -> None:
    """Wait for processes, each of which must end well."""
    try:
        for process in processes:
            process.join(timeout)
        assert [process.exitcode for process in processes] == [0] * len(processes)
    finally:
        for process in processes:
            process.kill()


def _call(call: Callable[..., Any], arguments: tuple[Any, ...], folder: str, environment: dict[str, str]) -> None:
    import torch

    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    call(*arguments)


def _run_module(name: str, arguments: list[str]) -> None:
    sys.argv = [name, *arguments]
    runpy.run_module(name, run_name="__main__", alter_sys=True)
