"""The plan of a recipe: the command of each stage, and which stages have to run.

A command is checked by the verb's own parser, with every path filled in. A stage has to run unless its output is there
and the content of its inputs and its arguments are what that output was made of.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from .._version import __version__
from ..display.option_names import did_you_mean, option_of
from ..errors import ArgumentError, CheckpointError
from ..files.atomic import OutputFolder
from ..files.hashing import digest, file_sha256, file_status
from ..files.remote import is_folder, is_there, is_url, list_url, url_status
from ..models.hub import resolve
from .spec import DATA, KEPT, MODELS, TALK, Grammar, Recipe, RecipeError, Stage, Text

#: Within the work folder: records of what is finished, and outputs on their way.
HIDDEN: Final = ".recipe"
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
class Argument:
    """An argument of a command.

    Attributes:
        name: As in the file.
        line: Where it stands there.
        action: What the verb's parser knows of it.
        texts: Its values on the command line.
        values: The same as in the recipe.
    """

    name: str
    line: int
    action: argparse.Action
    texts: tuple[str, ...]
    values: tuple[Text, ...]

    def given(self) -> list[str]:
        """The argument as it stands on the command line."""
        if self.action.nargs == 0:  # It is there or not, without a value.
            return [self.action.option_strings[0]] if self.values[0].boolean else []
        if not self.action.option_strings:
            return list(self.texts)
        names = self.action.option_strings
        name = next((each for each in names if each.startswith("--")), names[0])
        if len(self.texts) == 1 and self.texts[0].startswith("-"):
            return [f"{name}={self.texts[0]}"]
        return [name, *self.texts]


@dataclass(frozen=True)
class Input:
    """An input of a stage.

    Attributes:
        argument: The argument that names it.
        path: File, folder or model.
        stage: The stage that makes it, "" if none does.
        line: Where it stands in the file.
        is_model: Whether it may be a name instead of a path.
    """

    argument: str
    path: str
    stage: str
    line: int
    is_model: bool


@dataclass(frozen=True)
class Step:
    """A stage with its command.

    Attributes:
        stage: The stage.
        arguments: Its arguments.
        inputs: What it reads.
        output: Where its output will be.
        working: Where it is written until it is finished.
    """

    stage: Stage
    arguments: tuple[Argument, ...]
    inputs: tuple[Input, ...]
    output: Path
    working: Path

    @property
    def name(self) -> str:
        """The stage's name."""
        return self.stage.name

    @property
    def verb_arguments(self) -> list[str]:
        """Arguments after the verb."""
        verb = self.stage.verb
        ordered = sorted(self.arguments, key=lambda each: bool(each.action.option_strings))  # Positional ones first.
        given = [text for argument in ordered for text in argument.given()]
        if verb.output is not None:
            given += [option_of(verb.output), str(self.working)]
        given += ["--overwrite"] if verb.replaces else []
        return [*given, "--resume-from-checkpoint", "true"] if verb.trains else given

    @property
    def module_arguments(self) -> list[str]:
        """Arguments after `python -m`."""
        verb = self.stage.verb
        if self.stage.processes == 1:
            return ["bgekit", *verb.name.split(), *self.verb_arguments]
        return [
            "torch.distributed.run", "--standalone", "--nproc_per_node", str(self.stage.processes), "-m", verb.module,
            *self.verb_arguments,
        ]  # fmt: skip

    @property
    def shown(self) -> str:
        """The command as one would type it."""
        first, *rest = self.module_arguments
        command = shlex.join(["bge", *rest] if first == "bgekit" else ["python", "-m", first, *rest])
        return command if self.stage.verb.output is not None else f"{command} > {shlex.quote(str(self.working))}"


def make_steps(recipe: Recipe, work: Path, grammar: Grammar) -> list[Step]:
    """The commands of all stages, parsed by their verbs; none is run.

    Args:
        recipe: The recipe.
        work: The folder of its outputs.
        grammar: The parsers.

    Raises:
        RecipeError: an argument is unknown, missing, of a wrong type, or not for a recipe to decide.
    """
    outputs = {stage.name: work / stage.output_name for stage in recipe.stages}
    return [_Making(recipe, stage, outputs, work, grammar).step() for stage in recipe.stages]


class _Making:
    def __init__(self, recipe: Recipe, stage: Stage, outputs: Mapping[str, Path], work: Path, grammar: Grammar) -> None:
        self._recipe, self._stage, self._outputs, self._grammar = recipe, stage, outputs, grammar
        self._working = work / HIDDEN / stage.name / stage.output_name
        self._options = grammar.options(stage.verb)

    def step(self) -> Step:
        seen: dict[str, str] = {}
        arguments = []
        for name, values in self._stage.arguments.items():
            argument = self._argument(name, values)
            if argument.action.dest in seen:
                raise self._error(argument.line, f"{name} and {seen[argument.action.dest]} are the same argument")
            seen[argument.action.dest] = name
            arguments.append(argument)
        inputs = tuple(found for argument in arguments for found in _inputs(argument))
        step = Step(self._stage, tuple(arguments), inputs, self._outputs[self._stage.name], self._working)
        try:
            self._grammar.check(self._stage.verb, step.verb_arguments)
        except ArgumentError as error:
            raise self._error(self._line_of(str(error), arguments), str(error)) from error
        return step

    def _error(self, line: int, message: str) -> RecipeError:
        return RecipeError(f"{self._recipe.path}, line {line}, stage {self._stage.name}: {message}")

    def _argument(self, name: str, values: tuple[Text, ...]) -> Argument:
        line, verb = self._stage.lines[name], self._stage.verb
        action = self._options.get(name) or self._options.get(option_of(name))
        if action is None:
            known = sorted({form.lstrip("-").replace("-", "_") for form in self._options if len(form) > 2})
            hint = did_you_mean(name, known) or f"; `bge {verb.name} --help` lists them"
            raise self._error(line, f"{verb.name} has no argument {name!r}{hint}")
        if action.dest == verb.output:
            raise self._error(line, f"leave out {name}: the recipe decides where outputs go")
        if action.dest in KEPT:
            raise self._error(line, f"leave out {name}: a recipe has no use for it")
        if action.nargs == 0 and (len(values) != 1 or values[0].boolean is None):
            raise self._error(line, f"{name} is true or false, not {' '.join(values)!r}")
        if not values:
            raise self._error(line, f"{name} has an empty list")
        if len(values) > 1 and action.nargs not in ("+", "*"):
            raise self._error(line, f"{name} takes one value, not {len(values)}")
        return Argument(name, line, action, tuple(map(self._text, values)), values)

    def _text(self, value: Text) -> str:
        if value.stage is None:
            return value
        return f"{self._outputs[value.stage] if value.stage else self._working}{value}"

    def _line_of(self, message: str, arguments: list[Argument]) -> int:
        """The line of the argument that a message is about, that of the stage if it names none of them."""
        named = set(re.findall(r"--?[a-z][\w-]*", message))
        for argument in arguments:
            if named.intersection(argument.action.option_strings):
                return argument.line
        return self._stage.line


def _inputs(argument: Argument) -> list[Input]:
    """Inputs that an argument names: declared ones, and every output of another stage."""
    is_model = argument.action.dest in MODELS
    reads = is_model or argument.action.dest in DATA
    return [
        Input(argument.name, text, value.stage or "", value.line or argument.line, is_model)
        for text, value in zip(argument.texts, argument.values, strict=True)
        if value.stage or (reads and value.stage is None)
    ]


@dataclass(frozen=True)
class State:
    """State of a stage before anything is run.

    Attributes:
        status: `cached`: its output is what it would be; `stale`: it is another's; `missing`: there is none;
            `unfinished`: an earlier run has begun it; `waits`: the content of an input is not known yet.
        reasons: Why.
        key: Key of verb, arguments and inputs; None while the content of an input is not known.
        content: What the key is of.
    """

    status: str
    reasons: tuple[str, ...]
    key: str | None
    content: Mapping[str, Any]


class Folder:
    """The work folder of a recipe: outputs, and records of how they were made.

    Args:
        work: The folder.
        digests: What knows the content of files.
        again: Stages whose output counts as another's, though it is there.
    """

    def __init__(self, work: Path, digests: Digests, again: Collection[str] = ()) -> None:
        self.work, self.digests, self._again = work, digests, again

    def record(self, step: Step, ending: str = RECORD) -> dict[str, Any]:
        """The record of the output that is there, or another note of its stage; empty if there is none."""
        return read_json(self.work / HIDDEN / f"{step.name}{ending}")

    def state(self, step: Step, uncertain: Collection[str] = ()) -> State:
        """State of a stage before anything is run.

        Args:
            step: The stage.
            uncertain: Stages whose output is not known yet.
        """
        record = self.record(step)
        there = self.digests.path(step.output)
        gone = "never run" if not record else f"{step.output} is gone" if there is None else ""
        if waits := [name for name in step.stage.needs if name in uncertain]:
            status, reason = (MISSING, gone) if gone else (WAITS, f"after {', '.join(waits)}")
            return State(status, (reason,), None, {})
        content = self.content(step)
        key = digest(json.dumps(content, sort_keys=True, ensure_ascii=False))
        same = record.get("key") == key
        if same and there is not None and record.get("digest") == there:
            asked = step.name in self._again
            return State(STALE if asked else CACHED, ("asked for",) if asked else (), key, content)
        if step.stage.verb.resumes and self.record(step, STARTED).get("key") == key:
            return State(UNFINISHED, ("an earlier run has begun it",), key, content)
        if gone:
            return State(MISSING, (gone,), key, content)
        if same:
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
                values.append(f"${{output}}{value}" if value.stage == "" else text)
        return values

    def digest_of(self, each: Input) -> str | None:
        """The digest of what is read, None if it is not there."""
        if is_url(each.path) and not each.stage:
            return self.digests.url(each.path)
        by_name = each.is_model and not each.stage
        return self.digests.model(each.path) if by_name else self.digests.path(Path(each.path))

    def missing(self, steps: Sequence[Step]) -> Iterator[str]:
        """Inputs that are not there and that no stage makes, each with its line and stage."""
        for step in steps:
            for each in step.inputs:
                there = self.digests.model(each.path) if each.is_model else is_there(each.path)
                if not (each.stage or there):
                    what = "model" if each.is_model else "file or folder"
                    yield f"line {each.line}, stage {step.name}: {each.argument} {each.path}: there is no such {what}"


def plan(steps: Sequence[Step], folder: Folder) -> list[State]:
    """State of each stage before anything is run.

    Args:
        steps: The stages, in order.
        folder: The work folder.
    """
    states: list[State] = []
    uncertain: set[str] = set()
    for step in steps:
        states.append(folder.state(step, uncertain))
        if states[-1].status != CACHED:
            uncertain.add(step.name)
    return states


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file, an empty one if there is none or it cannot be read."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


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
        self._known = read_json(folder / _KEPT)  # None yet, or damaged: they are computed again.
        self._changed = False

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

    def url(self, url: str) -> str | None:
        """The digest of what is at a URL, None if nothing is: of the sizes and marks that its server says.

        Raises:
            DataError: it cannot be looked at.
        """
        if not is_there(url):
            return None
        files = list_url(url) if is_folder(url) else {"": url_status(url)}
        known = all(status.version for status in files.values())
        marks = [f"{name}:{status.size}:{status.version}" for name, status in files.items()]
        return digest(*marks) if known else digest(*(file_sha256(f"{url}/{name}" if name else url) for name in files))

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
