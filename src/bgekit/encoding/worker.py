"""The process of one further device: reads windows from its standard input, writes vectors to its output."""

from __future__ import annotations

import os
import pickle
import signal
import sys
from typing import Any

import torch

from .engine import Engine


def main() -> None:
    """Serve until the input ends, which it does when the parent closes it or dies."""
    # Ctrl-C reaches the whole group; the parent decides when workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tasks = sys.stdin.buffer
    # What libraries print must not end up between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    try:
        spec, device, threads, streams = pickle.load(tasks)
    except EOFError:
        return
    engine: Engine[Any] | None = None
    while True:
        try:
            window, request = pickle.load(tasks)
        except EOFError:
            return
        try:
            if engine is None:
                torch.set_num_threads(threads)
                engine = Engine(spec, device, streams=streams)
            answer: object = next(engine.encode_windows([window], request))
        except Exception as error:
            answer = error
        try:
            message = pickle.dumps(answer, protocol=5)
            if isinstance(answer, Exception):
                pickle.loads(message)  # Some exceptions can be written but not read back.
        except Exception:
            message = pickle.dumps(RuntimeError(f"{type(answer).__name__}: {answer}"))
        answers.write(message)
        answers.flush()
