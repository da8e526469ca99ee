"""The process of a stage: runs a module as `python -m` does, and ends with the process that started it.

Its standard input is a pipe that nobody writes to. It ends when the starter ends, however that happens, so that no
stage goes on behind the back of the next run.

It leads a group of processes, which SIGTERM ends as a whole. The processes that torchrun starts lead sessions of their
own: torchrun ends them when it gets SIGTERM, and is killed only if it has not done so long after.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import signal
import sys
import threading
import time
from typing import Final

#: Seconds that a launcher has; torchrun kills its processes 30 after it has asked them to end.
_GRACE: Final = 35


def main() -> None:
    """Run the module that the first argument names, with the others."""
    pipe = os.dup(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    threading.Thread(target=_end_with, args=(pipe,), daemon=True).start()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def _end_with(pipe: int) -> None:
    with contextlib.suppress(OSError):
        while os.read(pipe, 1):
            pass
    if hasattr(os, "killpg"):
        os.killpg(os.getpgrp(), signal.SIGTERM)
        time.sleep(_GRACE)
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    main()
