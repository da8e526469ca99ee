"""A recipe, run: what is not there yet, stage by stage, each in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final, Protocol

from .._version import package_versions
from ..errors import BgekitError, in_lines
from ..files.atomic import OutputFolder, failing
from .plan import (
    CACHED,
    FINISHED,
    HIDDEN,
    RECORD,
    STARTED,
    UNFINISHED,
    Digests,
    Folder,
    State,
    Step,
    make_steps,
)
from .recipe_report import write_report
from .spec import LOGS, Grammar, Recipe, RecipeError

#: Seconds between two looks at a running stage, and that an interrupted one may take to end.
_LOOK: Final = 0.1
_GRACE: Final = 1.5
_GRACE_OF_LAUNCHERS: Final = 10.0
#: Seconds that a launcher has whose starter is gone; torchrun kills its processes 30 after it has asked them to end.
_GRACE_OF_ORPHANS: Final = 35
#: What is shown of the log of a stage that failed.
_TAIL_LINES: Final = 20
_TAIL_BYTES: Final = 8 << 10
#: Less free space than this counts as none.
_FULL: Final = 1 << 20
_AGAIN: Final = "What is finished stays: run the same command to continue"
_VERSIONS: Final = ("torch", "transformers", "numpy")


class StageError(BgekitError, RuntimeError):
    """A stage failed.

    Attributes:
        tail: The last lines of its log.

    Example:
        >>> from bgekit import BgekitError
        >>> from bgekit.recipes import StageError
        >>> issubclass(StageError, BgekitError)
        True
    """

    def __init__(self, message: str, tail: str) -> None:
        super().__init__(message)
        self.tail = tail


class Watcher(Protocol):
    """A listener that is called as a run continues."""

    def begins(self, step: Step, number: int, total: int, state: State) -> None:
        """A stage is skipped (`state.status` is cached) or begins."""

    def runs(self, step: Step, seconds: float, line: str) -> None:
        """A stage is running; `line` is the last of its log."""

    def ends(self, step: Step) -> None:
        """A stage has finished."""


def run_recipe(
    recipe: Recipe, work: Path, grammar: Grammar, watcher: Watcher, *, again: Sequence[str] = ()
) -> dict[str, Any]:
    """Run what is not there yet, and write the report.

    Args:
        recipe: The recipe.
        work: The folder of all outputs.
        grammar: The parsers of the verbs.
        watcher: Receives the progress.
        again: Stages that are run whatever is there.

    Returns:
        The content of report.json.

    Raises:
        RecipeError: something in the recipe is wrong, or an input is missing; nothing was run then.
        StageError: a stage failed; what was finished before it stays.
        OutputError: the folder cannot be written, or another run writes to it.

    Example:
        >>> from bgekit.recipes import read_recipe
        >>> recipe = read_recipe("recipe.yaml")
        >>> [stage.name for stage in recipe.stages]
        ['clean']
    """
    steps = make_steps(recipe, work, grammar)
    chosen = recipe.chosen(again)
    with OutputFolder(work / HIDDEN) as hidden:
        digests = Digests(hidden.path)
        folder = Folder(work, digests, chosen)
        check_inputs(recipe, steps, folder)
        went: dict[str, str] = {}
        for number, step in enumerate(steps, 1):
            _settle(step, folder, hidden)
            state = folder.state(step)
            watcher.begins(step, number, len(steps), state)
            if state.status != CACHED:
                _check_made(recipe, step, folder)
                _run(step, state, folder, hidden, watcher)
                watcher.ends(step)
            went[step.name] = state.status
            digests.keep(hidden)
        return write_report(recipe, steps, folder, went)


def check_inputs(recipe: Recipe, steps: Sequence[Step], folder: Folder) -> None:
    """See to it that what no stage makes is there.

    Raises:
        RecipeError: something is missing; all of it is named.
    """
    if missing := list(folder.missing(steps)):
        raise RecipeError(f"{recipe.path}:{in_lines(missing)}{_hint(recipe, missing)}")


def _hint(recipe: Recipe, missing: Sequence[str]) -> str:
    """Which variables the missing paths begin with: they are what another machine sets."""
    found = [
        name for name, value in recipe.variables.items()
        if isinstance(value, str) and value and any(f" {value.rstrip('/')}/" in each for each in missing)
    ]  # fmt: skip
    return f"\n{' and '.join(f'--set {name}=...' for name in found)} says where it is" if found else ""


def _check_made(recipe: Recipe, step: Step, folder: Folder) -> None:
    for each in step.inputs:
        if each.stage and folder.digest_of(each) is None:
            raise RecipeError(
                f"{recipe.path}, line {each.line}, stage {step.name}: {each.argument} {each.path}: the stage "
                f"{each.stage} has made no such file"
            )


def _run(step: Step, state: State, folder: Folder, hidden: OutputFolder, watcher: Watcher) -> None:
    log = folder.work / LOGS / f"{step.name}.log"
    resumed = state.status == UNFINISHED
    start, begun = time.perf_counter(), time.gmtime()
    with failing(f"run stage {step.name} in {folder.work}"):
        if not resumed:
            shutil.rmtree(step.working.parent, ignore_errors=True)
        step.working.parent.mkdir(parents=True, exist_ok=True)
        log.parent.mkdir(exist_ok=True)
        _write(hidden, f"{step.name}{STARTED}", {"key": state.key})
        with log.open("ab" if resumed else "wb") as file:
            code = _wait(step, file, log, watcher)
    digest = folder.digests.path(step.working)
    if code or digest is None:
        raise _failure(step, code, log, folder.work)
    record = {
        "key": state.key, "digest": digest, "content": state.content, "command": step.shown,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", begun), "seconds": time.perf_counter() - start,
        "resumed": resumed, "versions": {"python": platform.python_version(), **package_versions(*_VERSIONS)},
        "platform": platform.platform(),
    }  # fmt: skip
    _write(hidden, f"{step.name}{FINISHED}", record)
    _settle(step, folder, hidden)


def _settle(step: Step, folder: Folder, hidden: OutputFolder) -> None:
    """Give a finished output its name, also where an earlier run was killed while it did so."""
    record = folder.record(step, FINISHED)
    if not record:
        return
    with failing(f"write {step.output}"):
        for name in (step.output.name, *(f"{step.name}{ending}" for ending in step.stage.verb.beside)):
            made, target = step.working.with_name(name), step.output.with_name(name)
            if made.exists():
                _remove(target)
                os.replace(made, target)
        for old in step.output.glob("checkpoint-*") if step.stage.verb.trains else ():
            _remove(old)  # To continue from; a finished model needs none, and they are three times its size.
        _write(hidden, f"{step.name}{RECORD}", record)
        for mark in (FINISHED, STARTED):
            (hidden.path / f"{step.name}{mark}").unlink(missing_ok=True)
    shutil.rmtree(step.working.parent, ignore_errors=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _wait(step: Step, log: IO[bytes], path: Path, watcher: Watcher) -> int:
    """Run the process of a stage to its end; its exit code."""
    start = time.perf_counter()
    printed = step.stage.verb.output is None
    with contextlib.ExitStack() as stack:
        result = stack.enter_context(step.working.open("wb")) if printed else log
        process = subprocess.Popen(
            [sys.executable, "-m", "bgekit.recipes.runner", *step.module_arguments],
            stdin=subprocess.PIPE, stdout=result, stderr=log, start_new_session=os.name == "posix",
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        try:
            while process.poll() is None:
                watcher.runs(step, time.perf_counter() - start, last_line(path))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_LOOK)
        except BaseException:
            _stop(process)
            raise
        finally:
            if process.stdin is not None:
                process.stdin.close()
        return process.returncode


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a stage as Ctrl-C would, and with all that it has started if it takes its time."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        if os.name != "posix":
            process.terminate()
            process.wait(_GRACE)
            return
        os.killpg(process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
            return
        if process.stdin is not None:
            process.stdin.close()  # Which continues with it if we end before it does: see `_end_with`.
        process.wait(_GRACE_OF_LAUNCHERS)


def stage_process() -> None:
    """The process of a stage: run a module as `python -m` does, and end with the process that started it.

    The arguments of the process are the module and its arguments. Its standard input is a pipe that nobody writes to.
    It ends when the starter ends, however that happens, so that no stage continues behind the back of the next run.

    It leads a group of processes, which SIGTERM ends as a whole. The processes that torchrun starts lead sessions of
    their own: torchrun ends them when it gets SIGTERM, and is killed only if it has not done so long after.
    """
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
        time.sleep(_GRACE_OF_ORPHANS)
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(1)


def _failure(step: Step, code: int, log: Path, work: Path) -> StageError:
    how = f"failed with exit code {code}" if code else "ended without writing its output"
    how += " (the disk is full)" if shutil.disk_usage(work).free < _FULL else ""
    with contextlib.suppress(ValueError):  # 0 and codes of programs are not signals.
        name = signal.Signals(-code).name
        how = f"was ended by {name}{': out of memory?' if name == 'SIGKILL' else ''}"
    return StageError(f"stage {step.name} {how}; its log is {log}. {_AGAIN}", tail(log))


def tail(log: Path) -> str:
    """The last lines of a log; of a progress bar what it showed."""
    return "\n".join(_last_lines(log)[-_TAIL_LINES:])


def last_line(log: Path) -> str:
    """The last line of a log, "" if there is none."""
    return next(reversed(_last_lines(log)), "")


def _last_lines(log: Path) -> list[str]:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []
    return [line.rstrip() for line in lines if line.strip()]


def _write(hidden: OutputFolder, name: str, content: Mapping[str, Any]) -> None:
    with hidden.create(name) as file:
        file.write(json.dumps(content, ensure_ascii=False, indent=1).encode())


if __name__ == "__main__":
    stage_process()
