"""Commands of stages: every argument known to the verb's own parser, every path filled in."""

from __future__ import annotations

import argparse
import difflib
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..display.option_names import option_of
from ..errors import ArgumentError
from .spec import DATA, KEPT, MODELS, Grammar, Recipe, RecipeError, Stage, Value

#: Within the work folder: records of what is finished, and outputs on their way.
HIDDEN: Final = ".recipe"


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
    values: tuple[Value, ...]

    @property
    def is_flag(self) -> bool:
        """Whether it is there or not, without a value."""
        return self.action.nargs == 0

    def given(self) -> list[str]:
        """The argument as it stands on the command line."""
        if self.is_flag:
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

    def _argument(self, name: str, values: tuple[Value, ...]) -> Argument:
        line, verb = self._stage.lines[name], self._stage.verb
        action = self._options.get(name) or self._options.get(option_of(name))
        if action is None:
            known = sorted({form.lstrip("-").replace("-", "_") for form in self._options if len(form) > 2})
            near = difflib.get_close_matches(name.replace("-", "_"), known, 1)
            hint = f"; did you mean {near[0]}?" if near else f"; `bge {verb.name} --help` lists them"
            raise self._error(line, f"{verb.name} has no argument {name!r}{hint}")
        if action.dest == verb.output:
            raise self._error(line, f"leave out {name}: the recipe decides where outputs go")
        if action.dest in KEPT:
            raise self._error(line, f"leave out {name}: a recipe has no use for it")
        if action.nargs == 0 and (len(values) != 1 or values[0].boolean is None):
            raise self._error(line, f"{name} is true or false, not {' '.join(each.text for each in values)!r}")
        if not values:
            raise self._error(line, f"{name} has an empty list")
        if len(values) > 1 and action.nargs not in ("+", "*"):
            raise self._error(line, f"{name} takes one value, not {len(values)}")
        return Argument(name, line, action, tuple(map(self._text, values)), values)

    def _text(self, value: Value) -> str:
        if value.stage is None:
            return value.text
        return f"{self._outputs[value.stage] if value.stage else self._working}{value.text}"

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
