"""The recipe file: its stages and their values, and the verbs that a stage can be, with their outputs."""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Protocol

import yaml  # type: ignore[import-untyped]

from ..display.option_names import did_you_mean
from ..errors import BgekitError
from ..files.remote import is_url, open_binary


@dataclass(frozen=True)
class Verb:
    """A verb of the command line as a stage.

    Attributes:
        name: As it is written, in one or two words.
        output: The argument (`dest` of its parser) that names the output, None for a verb that prints its result.
        suffix: Suffix of the output's name: "" for a folder.
        module: What launchers of several processes run; "" where one process does the work.
        beside: Endings of further files beside the output.
        resumes: Whether it continues with what an interrupted run has left; otherwise that is removed first.
        replaces: Whether it has to be asked to replace its output, which such a run may have finished.
        measures: Whether it needs the extra `eval`; others do where they are given `--eval-data`.
    """

    name: str
    output: str | None = "output"
    suffix: str = ""
    module: str = ""
    beside: tuple[str, ...] = ()
    resumes: bool = False
    replaces: bool = False
    measures: bool = False

    @property
    def trains(self) -> bool:
        """Whether it leaves checkpoints in its output, and continues from them."""
        return bool(self.module)


VERBS: Final[Mapping[str, Verb]] = {
    verb.name: verb
    for verb in (
        Verb("recipe pydocs"),
        Verb("pretrain", "output_dir", module="bgekit.pretraining.run", resumes=True),
        Verb("mine", suffix=".jsonl", beside=(".report.json", ".report.html"), resumes=True, replaces=True),
        Verb("score", suffix=".jsonl", resumes=True, replaces=True),
        Verb("dedup", suffix=".jsonl"),
        Verb("finetune", "output_dir", module="bgekit.training.embedder", resumes=True),
        Verb("finetune-reranker", "output_dir", module="bgekit.training.reranker", resumes=True),
        Verb("merge"),
        Verb("calibrate", measures=True),
        Verb("eval", resumes=True, measures=True),
        Verb("encode", resumes=True),
        Verb("rerank", None, suffix=".jsonl"),
    )
}
#: Arguments (by `dest`, the same in all verbs) whose values are files or folders that are read ...
DATA: Final = frozenset((
    "input", "candidate_pool", "qrels", "queries", "train_data", "eval_data", "data", "data_root", "texts", "files",
    "deepspeed",
))  # fmt: skip
#: ... and those that are models: folders, packaged ones, or names on the hub.
MODELS: Final = frozenset(
    ("model", "models", "model_name_or_path", "base", "reranker", "first_stage", "config_name", "tokenizer_name")
)
#: Arguments that change what is said and nothing else.
TALK: Final = frozenset(("no_progress", "quiet", "verbose", "disable_tqdm"))
#: Arguments that the runner decides on.
KEPT: Final = frozenset(("help", "version", "resume_from_checkpoint", "overwrite_output_dir", "dry_run", "overwrite"))


#: What was meant by an unknown name, within a sentence.
_nearest: Final = functools.partial(did_you_mean, within=True)


class Grammar(Protocol):
    """The parsers of the verbs, which the command line has."""

    def options(self, verb: Verb) -> Mapping[str, argparse.Action]:
        """The arguments of a verb by every name: `--train-data`; positional ones by their `dest`."""

    def check(self, verb: Verb, arguments: Sequence[str]) -> None:
        """Parse the arguments of a verb, without running it.

        Raises:
            ArgumentError: they cannot be parsed; the message names the option.
            MissingExtraError: the verb needs an extra that is not installed.
        """


_TAGS: Final = "tag:yaml.org,2002:"
#: What plain YAML is made of.
_KNOWN: Final = frozenset(_TAGS + each for each in "str int float bool null timestamp merge value map seq".split())
#: Depth and number of values, beyond which a file is not a recipe (aliases can multiply without end).
_DEEPEST: Final = 10
_MOST: Final = 100_000
#: A reference in a list of one line, where braces belong to YAML.
_BRACE: Final = 'in [lists, on one line] write references in quotes: ["${name}"]'


class RecipeError(BgekitError, ValueError):
    """A recipe cannot be run as it is written; names file, line and stage.

    Example:
        >>> from bgekit.recipes import RecipeError, read_recipe
        >>> try:
        ...     read_recipe("corpus.jsonl")
        ... except RecipeError as error:
        ...     print("corpus.jsonl" in str(error))
        True
    """


class Text(str):
    """A scalar, as it is written; what follows the output if it refers to one, such as `/train.jsonl`.

    Attributes:
        line: Its line in the file, from 1; 0 for what comes from elsewhere.
        boolean: What it means where yes or no is expected, None if it is neither.
        stage: The stage whose output it refers to, None if it refers to none, "" for the stage's own.
    """

    line: int
    boolean: bool | None
    stage: str | None

    def __new__(cls, value: str, line: int = 0, boolean: bool | None = None, stage: str | None = None) -> Text:
        """A text on a line."""
        made = super().__new__(cls, value)
        made.line, made.boolean, made.stage = line, boolean, stage
        return made


class Items(list[Any]):
    """A list; `line` is where it begins."""

    line: int = 0


class Entries(dict[str, Any]):
    """A mapping; its keys are `Text`, `line` is where it begins."""

    line: int = 0

    def line_of(self, name: str) -> int:
        """The line of a key."""
        return next((key.line for key in self if key == name and isinstance(key, Text)), self.line)


def read_yaml(path: Path | str) -> Entries:
    """The mapping that a file or what is at a URL holds: of `Text`, `Items`, `Entries`, None where nothing is written.

    Raises:
        RecipeError: the file cannot be read, is not YAML, or has a key twice; names file and line.
    """
    try:
        with open_binary(path) as file:
            content = file.read().decode("utf-8-sig")
    except FileNotFoundError:
        raise RecipeError(f"there is no recipe {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    try:
        value = _Reader(path, content).root()
    except yaml.YAMLError as error:
        raise RecipeError(_syntax(path, content, error)) from error
    if not isinstance(value, Entries):
        raise RecipeError(f"{path} is not a recipe: expected a mapping with `stages`")
    return value


def parse_scalar(text: str) -> Any:
    """A value given on the command line, as it would be in the file: a scalar or a list.

    Raises:
        RecipeError: it is neither.
    """
    try:
        value = _Reader(Path("--set"), text).root()
    except yaml.YAMLError:
        return Text(text)  # Such as a text with a colon: it needs no quotes here.
    return value if isinstance(value, Items) else Text(text, boolean=getattr(value, "boolean", None))


class _Reader:
    def __init__(self, path: Path | str, content: str) -> None:
        self._path, self._loader, self._count = path, yaml.SafeLoader(content), 0

    def root(self) -> Any:
        try:
            node = self._loader.get_single_node()
            return None if node is None else self.value(node)
        finally:
            self._loader.dispose()

    def value(self, node: Any, depth: int = 0) -> Any:
        line = node.start_mark.line + 1
        self._count += 1
        if depth > _DEEPEST or self._count > _MOST:
            raise RecipeError(f"{self._path}, line {line}: values within values go too deep")
        if node.tag not in _KNOWN:
            raise RecipeError(f"{self._path}, line {line}: tags such as {node.tag} are not allowed in a recipe")
        if isinstance(node, yaml.ScalarNode):
            if node.tag == _TAGS + "null":
                return None
            boolean = yaml.SafeLoader.bool_values.get(node.value.lower()) if node.tag == _TAGS + "bool" else None
            return Text(node.value, line, boolean)
        if isinstance(node, yaml.SequenceNode):
            items = Items(self.value(each, depth + 1) for each in node.value)
            items.line = line
            return items
        return self._mapping(node, line, depth)

    def _mapping(self, node: Any, line: int, depth: int) -> Entries:
        self._check_keys(node)
        own = {id(key) for key, _ in node.value}
        self._loader.flatten_mapping(node)  # `<<: *shared`: what is merged comes first, so own keys replace it.
        entries = Entries()
        entries.line = line
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise RecipeError(f"{self._path}, line {key.start_mark.line + 1}: a key must be a word")
            if id(key) in own:
                entries.pop(key.value, None)  # So that the key has the line of its own.
            entries[Text(key.value, key.start_mark.line + 1)] = self.value(value, depth + 1)
        return entries

    def _check_keys(self, node: Any) -> None:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            name = str(key.value)
            if name in lines:
                raise RecipeError(f"{self._path}, line {line}: {name!r} stands on line {lines[name]} already")
            lines[name] = line


def _syntax(path: Path | str, content: str, error: Any) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    if mark is None:
        return f"{path} is not valid YAML: {problem}"
    lines = content.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    hint = f" ({_BRACE})" if "${" in line and "[" in line else ""
    return f"{path}, line {mark.line + 1}: {problem}{hint}"


#: In arguments, the place that a stage writes to.
OUTPUT: Final = "output"
#: Folder of the stages' logs, beside their outputs.
LOGS: Final = "logs"
_REFERENCE: Final = re.compile(r"\$\{([^}]*)\}")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
#: What a value of `for_each` may be made of: it becomes part of a file's name.
_VALUE: Final = re.compile(r"[A-Za-z0-9._+-]+")
_TOP: Final = ("about", "variables", "stages")
_STAGE: Final = ("about", "verb", "for_each", "processes", "arguments")


@dataclass(frozen=True)
class Stage:
    """A stage, for one choice of its `for_each`.

    Attributes:
        name: As in the file, with the choice: `tune.seed=0`.
        line: Where it stands in the file.
        verb: What it does.
        arguments: Values of each argument, by the names in the file.
        lines: The line of each argument.
        about: What the file says of it.
        processes: Processes of a training stage.
    """

    name: str
    line: int
    verb: Verb
    arguments: Mapping[str, tuple[Text, ...]]
    lines: Mapping[str, int]
    about: str = ""
    processes: int = 1

    @property
    def needs(self) -> tuple[str, ...]:
        """Stages whose outputs it reads."""
        values = (value for values in self.arguments.values() for value in values)
        return tuple(dict.fromkeys(value.stage for value in values if value.stage))

    @property
    def output_name(self) -> str:
        """The name of its output in the work folder."""
        return self.name + self.verb.suffix


@dataclass(frozen=True)
class Recipe:
    """A recipe: its stages and settings.

    Attributes:
        path: The file.
        about: What it says of itself.
        variables: Their values.
        stages: Stages in an order in which they can run.

    Example:
        >>> from bgekit.recipes import read_recipe
        >>> recipe = read_recipe("recipe.yaml")
        >>> [stage.name for stage in recipe.stages]
        ['clean']
    """

    path: Path | str
    about: str
    variables: Mapping[str, Any]
    stages: tuple[Stage, ...] = field(default=())

    def stage(self, name: str) -> Stage:
        """The stage of a name."""
        return next(each for each in self.stages if each.name == name)

    def chosen(self, names: Iterable[str]) -> list[str]:
        """Names of stages; a name without its choice stands for all of them.

        Raises:
            RecipeError: there is no such stage.
        """
        found: list[str] = []
        for name in names:
            those = [each.name for each in self.stages if each.name == name or each.name.partition(".")[0] == name]
            if not those:
                raise RecipeError(
                    f"{self.path} has no stage {name!r}{_nearest(name, [each.name for each in self.stages])}"
                )
            found += those
        return found

    def only(self, names: Sequence[str]) -> Recipe:
        """The recipe of some stages and of those that they need."""
        wanted = set(self.chosen(names))
        for stage in reversed(self.stages):
            if stage.name in wanted:
                wanted.update(stage.needs)
        return replace(self, stages=tuple(each for each in self.stages if each.name in wanted))


def read_recipe(path: str | os.PathLike[str], settings: Mapping[str, str] | None = None) -> Recipe:
    """Read a recipe.

    Args:
        path: The file, which may be at a URL.
        settings: Values of variables that replace those of the file.

    Raises:
        RecipeError: something in it is unknown, missing or contradictory; names file, line and stage.

    Example:
        >>> from bgekit.recipes import read_recipe
        >>> recipe = read_recipe("recipe.yaml")
        >>> [stage.name for stage in recipe.stages]
        ['clean']
    """
    file = str(path) if is_url(path) else Path(path)
    return _Reading(file, read_yaml(file)).recipe(settings or {})


@dataclass
class _Draft:
    """A stage as in the file, before it is unfolded."""

    name: Text
    verb: Verb
    content: Entries
    choices: dict[str, list[Text]]

    def chosen(self, fixed: Mapping[str, str]) -> Iterator[dict[str, Text]]:
        """Choices of its `for_each` that agree with those that are made already."""
        for values in itertools.product(*self.choices.values()):
            choice = dict(zip(self.choices, values, strict=True))
            if all(fixed.get(name, value) == value for name, value in choice.items()):
                yield choice

    def name_of(self, choice: Mapping[str, str]) -> str:
        return ".".join([self.name, *(f"{name}={value}" for name, value in choice.items())])


class _Reading:
    def __init__(self, path: Path | str, content: Entries) -> None:
        self._path, self._content = path, content
        self._variables: dict[str, Any] = {}
        self._drafts: dict[str, _Draft] = {}
        stages = content.get("stages")
        self._names = list(stages) if isinstance(stages, Entries) else []

    def recipe(self, settings: Mapping[str, str]) -> Recipe:
        self._known(self._content, _TOP, "a recipe")
        self._read_variables(settings)
        stages = self._content.get("stages")
        if not isinstance(stages, Entries) or not stages:
            raise self._error(self._content.line_of("stages"), "`stages` is a mapping of names to stages")
        for name, content in stages.items():
            self._drafts[name] = self._draft(Text(name, stages.line_of(name)), content)
        unfolded = [self._stage(draft, choice) for draft in self._drafts.values() for choice in draft.chosen({})]
        return Recipe(
            self._path, str(self._content.get("about") or "").strip(), self._variables, tuple(self._ordered(unfolded))
        )

    def _error(self, line: int, message: str, stage: str | None = None) -> RecipeError:
        return RecipeError(f"{self._path}, line {line}{f', stage {stage}' if stage else ''}: {message}")

    def _known(self, entries: Entries, known: Sequence[str], what: str, stage: str | None = None) -> None:
        for name in entries:
            if name not in known:
                line = entries.line_of(name)
                message = f"{what} has no {name!r}{_nearest(name, known)}: it has {', '.join(known)}"
                raise self._error(line, message, stage)

    # --- variables ---------------------------------------------------------------------------------------------------

    def _read_variables(self, settings: Mapping[str, str]) -> None:
        given = self._content.get("variables") or Entries()
        if not isinstance(given, Entries):
            raise self._error(self._content.line_of("variables"), "`variables` is a mapping of names to values")
        for name in settings:
            if name not in given:
                raise RecipeError(f"--set {name}: {self._path} has no such variable{_nearest(name, given)}")
        for name, value in given.items():
            line = given.line_of(name)
            self._check_name(name, line)
            value = parse_scalar(settings[name]) if name in settings else value
            if value is None:
                raise self._error(line, f"the variable {name} has no value here: give one with --set {name}=...")
            if isinstance(value, Entries) or (isinstance(value, Items) and not all(isinstance(v, Text) for v in value)):
                raise self._error(line, f"the variable {name} must be a value or a list of values")
            # Those above it are known, so a variable can be part of a later one and never of itself.
            values = [each for item in _listed(value) for each in self._filled(item, {}, line, None)]
            # A variable that is another one, which is a list, is a list, too.
            listed = isinstance(value, Items) or len(values) != 1
            self._variables[name] = values if listed else values[0]

    def _check_name(self, name: str, line: int) -> None:
        if not _NAME.fullmatch(name):
            raise self._error(line, f"{name!r} is not a valid name: use letters, digits, - and _")
        if name == OUTPUT:
            raise self._error(line, f"`{OUTPUT}` is the output of the stage itself: take another name")

    def _filled(self, text: Text, choice: Mapping[str, Text], line: int, stage: str | None) -> list[Text]:
        """A text with its variables put in: several texts where a list is all that it is."""
        scope: dict[str, Any] = {**self._variables, **choice}
        names = [each for each in _REFERENCE.findall(text) if each in scope]
        known = [*scope, *self._names, *([] if stage is None else [OUTPUT])]
        if unknown := [each for each in _REFERENCE.findall(text) if each not in known]:
            raise self._error(
                line,
                f"${{{unknown[0]}}} is neither a variable nor a stage{_nearest(unknown[0], known)}",
                stage,
            )
        for name in names:
            if isinstance(scope[name], list):
                if text != f"${{{name}}}":
                    raise self._error(line, f"${{{name}}} is a list and cannot be part of a text", stage)
                return [Text(each, line, each.boolean) for each in scope[name]]
        if len(names) == 1 and text == f"${{{names[0]}}}":
            return [Text(scope[names[0]], line, scope[names[0]].boolean)]
        filled = _REFERENCE.sub(lambda found: str(scope.get(found[1], found[0])), text)
        return [Text(filled, line, text.boolean)]

    # --- stages ------------------------------------------------------------------------------------------------------

    def _draft(self, name: Text, content: Any) -> _Draft:
        self._check_name(name, name.line)
        if name == LOGS:
            raise self._error(name.line, f"`{LOGS}` is the folder of the stages' logs: take another name")
        if name in self._variables:
            raise self._error(name.line, f"{name} is a variable already: a stage needs a name of its own")
        if not isinstance(content, Entries):
            raise self._error(name.line, "a stage is a mapping with `verb` and `arguments`", name)
        self._known(content, _STAGE, "a stage", name)
        verb = content.get("verb")
        if not isinstance(verb, Text):
            raise self._error(name.line, "has no `verb`", name)
        if verb not in VERBS:
            line = content.line_of("verb")
            raise self._error(
                line,
                f"{verb!r} is not a verb of stages{_nearest(verb, VERBS)}: these are {', '.join(VERBS)}",
                name,
            )
        return _Draft(name, VERBS[verb], content, self._choices(name, content))

    def _choices(self, stage: str, content: Entries) -> dict[str, list[Text]]:
        given = content.get("for_each")
        if given is None:
            return {}
        line = content.line_of("for_each")
        if not isinstance(given, Entries):
            raise self._error(line, "`for_each` is a mapping of names to lists, such as {seed: [0, 1, 2]}", stage)
        choices: dict[str, list[Text]] = {}
        for name, values in given.items():
            line = given.line_of(name)
            self._check_name(name, line)
            texts = [each for each in _listed(values) if isinstance(each, Text)]
            filled = [text for each in texts for text in self._filled(each, {}, line, stage)]
            if not filled or len(set(filled)) < len(filled) or not all(map(_VALUE.fullmatch, filled)):
                kind = "different values of letters, digits and . _ + -"
                raise self._error(line, f"{name} is a list of {kind}, such as [0, 1, 2]", stage)
            if name in self._variables:
                raise self._error(line, f"{name} is a variable already: take another name", stage)
            choices[name] = filled
        return choices

    def _stage(self, draft: _Draft, choice: Mapping[str, Text]) -> Stage:
        name, content = draft.name_of(choice), draft.content
        given = content.get("arguments") or Entries()
        if not isinstance(given, Entries):
            raise self._error(content.line_of("arguments"), "`arguments` is a mapping of names to values", name)
        arguments: dict[str, tuple[Text, ...]] = {}
        lines: dict[str, int] = {}
        for argument, value in given.items():
            lines[argument] = line = given.line_of(argument)
            if value is None or isinstance(value, Entries):
                raise self._error(
                    line, f"{argument} has {'no value' if value is None else 'keys instead of one'}", name
                )
            items = _listed(value)
            if not all(isinstance(each, Text) for each in items):
                raise self._error(line, f"{argument} must be a value or a list of values", name)
            texts = [text for item in items for text in self._filled(item, choice, item.line or line, name)]
            arguments[argument] = tuple(each for text in texts for each in self._values(text, choice, name))
        return Stage(
            name, draft.name.line, draft.verb, arguments, lines, str(content.get("about") or "").strip(),
            self._processes(draft, name, choice),
        )  # fmt: skip

    def _processes(self, draft: _Draft, stage: str, choice: Mapping[str, Text]) -> int:
        given = draft.content.get("processes", Text("1"))
        line = draft.content.line_of("processes")
        values = self._filled(given, choice, line, stage) if isinstance(given, Text) else []
        text = values[0] if len(values) == 1 else ""
        if not re.fullmatch("[1-9][0-9]*", text):
            raise self._error(line, "`processes` is a whole number of at least 1", stage)
        if text != "1" and not draft.verb.module:
            raise self._error(line, "`processes` is for training stages", stage)
        return int(text)

    def _values(self, text: Text, choice: Mapping[str, Text], stage: str) -> Iterator[Text]:
        """A value; of a stage that `for_each` unfolds, a value for each choice that agrees."""
        references = _REFERENCE.findall(text)
        if not references:
            yield text
            return
        name, rest = references[0], text[len(references[0]) + 3 :]
        if len(references) > 1 or not text.startswith("${"):
            raise self._error(text.line, f"{text!r}: the output of a stage stands at the beginning, once", stage)
        if name == OUTPUT:
            yield Text(rest, text.line, stage="")
            return
        draft = self._drafts[name]
        for each in draft.chosen(choice):
            yield Text(rest, text.line, stage=draft.name_of(each))

    def _ordered(self, stages: Sequence[Stage]) -> list[Stage]:
        by_name = {stage.name: stage for stage in stages}
        ordered: dict[str, Stage] = {}

        def visit(name: str, above: tuple[str, ...]) -> None:
            if name in ordered:
                return
            stage = by_name[name]
            if name in above:
                circle = " -> ".join([*above[above.index(name) :], name])
                raise self._error(stage.line, f"stages need each other: {circle}", name)
            for needed in stage.needs:
                visit(needed, (*above, name))
            ordered[name] = stage

        for stage in stages:
            visit(stage.name, ())
        return list(ordered.values())


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, Items) else [value]
