"""The plan of a recipe: which stages have to run and which are done, by the content of inputs and outputs."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from .._version import __version__
from ..errors import CheckpointError
from ..files.atomic import OutputFolder
from ..files.hashing import file_sha256, file_status
from ..models.hub import resolve
from .commands import HIDDEN, Argument, Input, Step
from .spec import TALK

CACHED: Final = "cached"
STALE: Final = "stale"
MISSING: Final = "missing"
UNFINISHED: Final = "unfinished"
WAITS: Final = "waits"
#: Endings of what is noted of a stage: what its output is of, that one is on its way, that one is complete.
RECORD: Final = ".json"
STARTED: Final = ".started.json"
FINISHED: Final = ".finished.json"


@dataclass(frozen=True)
class State:
    """State of a stage before anything is run.

    Attributes:
        status: `cached`: its output is what it would be; `stale`: it is another's; `missing`: there is none;
            `unfinished`: an earlier run has begun it; `waits`: the content of an input is not known yet.
        reasons: Why.
        key: Of verb, arguments and inputs; None while the content of an input is not known.
        content: What the key is of.
        digest: Of the output, if it is cached.
    """

    status: str
    reasons: tuple[str, ...]
    key: str | None
    content: Mapping[str, Any]
    digest: str | None = None


class Folder:
    """The work folder of a recipe: outputs, and records of how they were made.

    Args:
        work: The folder.
        digests: What knows the content of files.
    """

    def __init__(self, work: Path, digests: Digests) -> None:
        self.work, self.digests = work, digests

    def record(self, step: Step) -> dict[str, Any] | None:
        """The record of the output that is there."""
        return self._noted(step, RECORD)

    def _noted(self, step: Step, ending: str) -> dict[str, Any] | None:
        return read_json(self.work / HIDDEN / f"{step.name}{ending}")

    def state(self, step: Step, uncertain: Mapping[str, str]) -> State:
        """State of a stage before anything is run.

        Args:
            step: The stage.
            uncertain: Stages whose output is not known, with the reason.
        """
        record = self.record(step)
        there = self.digests.path(step.output)
        waits = [name for name in step.stage.needs if name in uncertain]
        if waits:
            if record is None or there is None:
                return State(MISSING, ("never run" if record is None else f"{step.output} is gone",), None, {})
            return State(WAITS, (f"after {', '.join(waits)}",), None, {})
        content = self.content(step)
        key = key_of(content)
        if record is not None and record.get("key") == key and there is not None and record.get("digest") == there:
            return State(CACHED, (), key, content, there)
        if step.stage.verb.resumes and (begun := self._noted(step, STARTED)) and begun.get("key") == key:
            return State(UNFINISHED, ("an earlier run has begun it",), key, content)
        if record is None or there is None:
            return State(MISSING, ("never run" if record is None else f"{step.output} is gone",), key, content)
        if record.get("key") == key:
            return State(STALE, (f"{step.output} was changed since",), key, content)
        return State(STALE, tuple(_differences(record.get("content", {}), content)), key, content)

    def content(self, step: Step) -> dict[str, Any]:
        """Content that decides the output of a stage: paths do not count, the files there do."""
        arguments = {
            argument.action.dest: self._values(argument, step) for argument in step.arguments
            if argument.action.dest not in TALK and argument.given()
        }  # fmt: skip
        content = {"verb": step.stage.verb.name, "arguments": arguments, "bgekit": __version__}
        return content | ({"processes": step.stage.processes} if step.stage.processes > 1 else {})

    def _values(self, argument: Argument, step: Step) -> list[Any]:
        read = {each.path: each for each in step.inputs if each.argument == argument.name}
        values: list[Any] = []
        for text, value in zip(argument.texts, argument.values, strict=True):
            if text in read:
                values.append({"content": self.digest_of(read[text])})
            else:
                values.append(f"${{output}}{value.text}" if value.stage == "" else text)
        return values

    def digest_of(self, each: Input) -> str | None:
        """The digest of what is read, None if it is not there."""
        by_name = each.is_model and not each.stage
        return self.digests.model(each.path) if by_name else self.digests.path(Path(each.path))

    def missing(self, steps: Sequence[Step]) -> Iterator[str]:
        """Inputs that are not there and that no stage makes, each with its line and stage."""
        for step in steps:
            for each in step.inputs:
                there = self.digests.model(each.path) if each.is_model else Path(each.path).exists()
                if not (each.stage or there):
                    what = "model" if each.is_model else "file or folder"
                    yield f"line {each.line}, stage {step.name}: {each.argument} {each.path}: there is no such {what}"


def key_of(content: Mapping[str, Any]) -> str:
    """The key of a stage: sha256 (hex) of what decides its output."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def plan(steps: Sequence[Step], folder: Folder, again: Sequence[str] = ()) -> list[State]:
    """State of each stage before anything is run.

    Args:
        steps: The stages, in order.
        folder: The work folder.
        again: Stages that are to be run whatever is there.
    """
    states: list[State] = []
    uncertain: dict[str, str] = {}
    for step in steps:
        state = folder.state(step, uncertain)
        if step.name in again:
            state = State(STALE, ("asked for",), state.key, state.content)
        if state.status != CACHED:
            uncertain[step.name] = state.status
        states.append(state)
    return states


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file, None if there is none or it cannot be read."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Differences between two contents."""
    for name in ("verb", "bgekit", "processes"):
        if before.get(name) != now.get(name):
            yield f"{name}: {before.get(name)} -> {now.get(name)}"
    old, new = before.get("arguments", {}), now.get("arguments", {})
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            yield f"{name}: {_shown(old.get(name), new.get(name))}"


def _shown(old: Any, new: Any) -> str:
    if old is None or new is None:
        return "added" if old is None else "left out"
    if any(isinstance(each, dict) for each in [*old, *new]):
        return "other content"
    return f"{' '.join(map(str, old)) or 'yes'} -> {' '.join(map(str, new)) or 'yes'}"


#: Digests of files from this size on are kept as long as these stay untouched; smaller ones are read each time.
_LARGE: Final = 32 << 20
_KEPT: Final = "digests.json"
#: What a model's folder says of how it came about, which differs from run to run and decides nothing.
_ACCOUNTS: Final = re.compile(r"README.*|(training|pretraining|merging|merge)\.(json|html|png)|.*\.pyc")
_HUB_ID: Final = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


class Digests:
    """Digests of files and folders; those of large files are remembered in a folder."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / _KEPT
        self._known: dict[str, Any] = {}
        self._changed = False
        try:
            known = json.loads(self._file.read_bytes())
            self._known = known if isinstance(known, dict) else {}
        except (OSError, ValueError):
            pass  # None yet, or damaged: they are computed again.

    def keep(self, folder: OutputFolder) -> None:
        """Write what is remembered."""
        if self._changed:
            with folder.create(_KEPT) as file:
                file.write(json.dumps(self._known, indent=1).encode())
            self._changed = False

    def path(self, path: Path) -> str | None:
        """The digest of a file or folder, None if it is not there.

        Hidden files and checkpoints do not count, nor what a model says of its making.

        Raises:
            OutputError: it cannot be read.
        """
        if path.is_file():
            return self._of_file(path)
        if not path.is_dir():
            return None
        model = (path / "config.json").is_file()
        digest = hashlib.sha256()
        for name, file in _files(path, path):
            if not (model and _ACCOUNTS.fullmatch(file.name)):
                digest.update(f"{name}:{self._of_file(file)}\n".encode())
        return digest.hexdigest()

    def model(self, name: str) -> str | None:
        """The digest of a model in a folder or package, None if there is none; a name on the hub stands for itself."""
        folder = Path(os.path.expanduser(name))  # Which leaves ~ of nobody as it is.
        if folder.is_dir():
            return self.path(folder)
        if name.startswith("packaged:"):
            try:
                return self.path(resolve(name))
            except CheckpointError:
                return None
        return f"named {name}" if _HUB_ID.fullmatch(name) else None

    def _of_file(self, path: Path) -> str:
        status = file_status(path) if path.stat().st_size >= _LARGE else None
        if status is None:
            return file_sha256(path)
        known = self._known.get(str(path.resolve()))
        if not isinstance(known, list) or known[:-1] != status:
            known = self._known[str(path.resolve())] = [*status, file_sha256(path)]
            self._changed = True
        return str(known[-1])


def _files(folder: Path, root: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.iterdir(), key=lambda each: each.name):
        if path.name.startswith((".", "checkpoint-")) or path.name == "__pycache__":
            continue
        if path.is_dir():
            yield from _files(path, root)
        elif path.is_file():
            yield path.relative_to(root).as_posix(), path
