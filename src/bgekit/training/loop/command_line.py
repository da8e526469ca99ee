"""Command lines of training: transformers' own parser on the options of Trainer and ours, with or without transformers.

What `TrainingArguments` has is read from the source of the installed transformers, and its parser is loaded from there
as a file, so that help and the answer to a mistake need no import of transformers or torch. They are seconds.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import dataclasses
import enum
import functools
import importlib.util
import re
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NoReturn

from ...display.option_names import did_you_mean, option_of, options_of, speak_for, take_both_spellings, with_nearest
from ...errors import ArgumentError, BgekitError, require_extra

#: The names of an argument that its help lists, where its own is not the one that every verb has for the same thing.
#: Its own name is understood, too.
NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "model_name_or_path": ("-m", "--model"),
    "output_dir": ("-o", "--output"),
    "overwrite_output_dir": ("--overwrite",),
    "learning_rate": ("--learning-rate", "--lr"),
    "num_train_epochs": ("--epochs", "--num-train-epochs"),
    "per_device_train_batch_size": ("--batch-size", "--per-device-train-batch-size"),
    "query_max_len": ("--query-max-length",),
    "passage_max_len": ("--passage-max-length",),
    "max_len": ("--max-length",),
    "max_seq_length": ("--max-length",),
    "query_instruction_for_retrieval": ("--query-instruction",),
    "passage_instruction_for_retrieval": ("--passage-instruction",),
    "sentence_pooling_method": ("--pooling",),
    "eval_split": ("--split",),
}
#: Arguments of FlagEmbedding for what BGE-M3 has beside its dense vectors; `bge finetune` has them.
_OF_M3: Final = ("unified_finetuning", "use_self_distill", "fix_encoder", "self_distill_start_step", "colbert_dim")
#: What stands for a value in the help, where its type says too little.
_VALUES: Final = {
    "model_name_or_path": "MODEL", "first_stage": "MODEL", "tokenizer_name": "MODEL", "config_name": "MODEL",
    "train_data": "FILE", "eval_data": "DATA", "output_dir": "DIR", "cache_dir": "DIR", "cache_path": "DIR",
    "report_to": "TOOL", "resume_from_checkpoint": "CHECKPOINT", "revision": "REV", "query_max_len": "TOKENS",
    "passage_max_len": "TOKENS", "max_len": "TOKENS", "max_seq_length": "TOKENS",
}  # fmt: skip
#: Sentences of transformers that this kind of training needs otherwise.
_SENTENCES: Final = {
    "output_dir": "where the trained model is saved",
    "per_device_train_batch_size": "rows per batch on each device",
    "num_train_epochs": "passes over the data",
    "max_steps": "number of steps to train, instead of epochs; -1 for as many as the epochs have",
    "learning_rate": "highest learning rate",
    "lr_scheduler_type": "how the learning rate falls",
    "weight_decay": "weight decay",
    "gradient_accumulation_steps": "batches per step",
    "gradient_checkpointing": "compute activations a second time instead of keeping them: less memory, slower",
    "bf16": "compute in bfloat16, also on CPUs",
    "fp16": "compute in float16 (GPUs)",
    "save_steps": "steps between checkpoints",
    "save_strategy": "when checkpoints are saved",
    "save_total_limit": "maximum number of checkpoints kept",
    "eval_strategy": "when the model is measured on --eval-data; after each epoch, if that is given",
    "eval_steps": "steps between measurements",
    "load_best_model_at_end": "take the best checkpoint as the result, not the last",
    "resume_from_checkpoint": "checkpoint to continue from; true for the last one",
    "report_to": "tools that also receive the log, such as tensorboard or wandb",
    "seed": "random seed",
    "dataloader_num_workers": "number of processes that prepare batches",
}


def first_name(name: str) -> str:
    """The option of an argument by the name that its help lists first, such as `--output` of `output_dir`."""
    return next((each for each in NAMES.get(name, ()) if each.startswith("--")), option_of(name))


@dataclass(frozen=True)
class Command:
    """A command that trains, as far as its command line goes.

    Attributes:
        description: What it does, for the help.
        usage: What must be given, for the help.
        kinds: Dataclasses of its arguments; the last has what comes beside Trainer's.
        shown: Arguments that `--help` shows, by heading; `--help-all` shows the others, too.
    """

    description: str
    usage: str
    kinds: tuple[type[Any], ...]
    shown: Mapping[str, Sequence[str]]

    def plain_kinds(self) -> tuple[type[Any], ...]:
        """Dataclasses that have all arguments, Trainer's included, and that neither torch nor transformers is for."""
        *others, last = self.kinds
        whole = type(last.__name__, (last, trainer_arguments()), {"__post_init__": lambda given: given.check()})
        return (*others, dataclass(whole))


class _Repeatable(argparse._StoreAction):
    """An option that can be given several times: `--x a b` and `--x a --x b` are the same."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if self.nargs == "+":
            if getattr(self, "given", False):
                values = [*getattr(namespace, self.dest), *values]
            self.given = True
        super().__call__(parser, namespace, values, option_string)


def argument_parser(kinds: Sequence[type[Any]], **options: Any) -> argparse.ArgumentParser:
    """The parser of dataclasses' fields: options are shown with hyphens, and understood with underscores, too.

    Raises:
        MissingExtraError: transformers is not installed.
    """
    made = _source("hf_argparser").HfArgumentParser(list(kinds), allow_abbrev=False, add_help=False, **options)
    parser: argparse.ArgumentParser = made
    parser.error = _refuse  # type: ignore[method-assign]  # One line, without the usage of some hundred arguments.
    known = parser._option_string_actions
    for action in parser._actions:
        if isinstance(action, argparse._StoreAction):
            action.__class__ = _Repeatable
        own = [name.replace("_", "-") for name in action.option_strings]
        positive = not isinstance(action, argparse._StoreFalseAction)
        action.option_strings = list(dict.fromkeys([*(NAMES.get(action.dest, ()) if positive else ()), *own]))
        for name in action.option_strings:
            known.setdefault(name, action)
    if "--disable-tqdm" in known:
        parser.add_argument(
            "--no-progress", dest="disable_tqdm", action="store_const", const=True, help="no progress bar"
        )
    take_both_spellings(parser)
    return parser


def _refuse(message: str) -> NoReturn:
    raise ArgumentError(with_nearest(message))


def parse(
    command: Command, arguments: Sequence[str], *, prog: str, kinds: Sequence[type[Any]] | None = None
) -> tuple[Any, ...]:
    """Arguments of a command line as instances of dataclasses.

    Args:
        command: The command.
        arguments: What was typed.
        prog: How the command was called, for its help.
        kinds: The dataclasses; by default those that need no transformers.

    Raises:
        ArgumentError: an option is unknown, is missing, or has an impossible value.
        SystemExit: help was asked for, and printed.
    """
    parser = argument_parser(command.plain_kinds() if kinds is None else kinds, prog=prog)
    if asked := {"-h", "--help", "--help-all"} & set(arguments):
        print(help_page(command, parser, everything="--help-all" in asked))  # noqa: T201
        raise SystemExit(0)
    known = parser._option_string_actions
    speak_for(functools.partial(_spoken_options, parser))
    for argument in arguments:
        name = argument.partition("=")[0]
        if re.match(r"--?[A-Za-z]", name) and name not in known:
            if name.lstrip("-").replace("-", "_") in _OF_M3:
                raise ArgumentError(f"{name} is for embedders with the heads of BGE-M3: bge finetune has it")
            raise ArgumentError(f"there is no option {name}{did_you_mean(name, known)}")
    try:
        made: Any = parser
        return tuple(made.parse_args_into_dataclasses(args=list(arguments), look_for_args_file=False))
    except ValueError as error:  # What transformers finds wrong.
        if isinstance(error, BgekitError):
            raise
        raise ArgumentError(" ".join(str(error).split())) from error


def _spoken_options(parser: argparse.ArgumentParser) -> dict[str, str]:
    """The options as `speak_for` takes them. What the library calls the length of a text is not one option here."""
    found = options_of(parser)
    lengths = [found[name] for name in ("max_len", "max_seq_length") if name in found]
    pooling = dict.fromkeys(("pooling", "pooling_method"), "--pooling") if "pooling" in found else {}
    return found | pooling | {"max_length": (lengths or ["--query-max-length or --passage-max-length"])[0]}


# --- help ------------------------------------------------------------------------------------------------------------


def help_page(command: Command, parser: argparse.ArgumentParser, *, everything: bool = False) -> str:
    """The help of a command.

    Args:
        command: The command.
        parser: Parser of all its arguments.
        everything: Show every argument instead of those that matter most.
    """
    own = {each.name for kind in command.kinds for each in dataclasses.fields(kind)}
    actions = {each.dest: each for each in reversed(parser._actions) if not _other_way(each)}
    groups = {title: list(names) for title, names in command.shown.items()}
    if everything:
        listed = {name for names in groups.values() for name in names}
        rest = [each.dest for each in parser._actions if each.dest not in listed and each.dest in actions]
        rest = list(dict.fromkeys(rest))
        groups["more of this command"] = [name for name in rest if name in own]
        groups["more of transformers' Trainer"] = [name for name in rest if name not in own]
    page = argparse.ArgumentParser(
        prog=parser.prog, usage=f"{parser.prog} {command.usage} [options]", description=command.description,
        add_help=False, formatter_class=_Page,
        epilog=None if everything else "--help-all shows all options. Old names and spellings with _ are understood.",
    )  # fmt: skip
    for title, names in groups.items():
        group = page.add_argument_group(title)
        for name in names:
            if name in actions:  # Not every release of transformers has each.
                _show(group, actions[name])
    group = page.add_argument_group("help")
    group.add_argument("-h", "--help", action="store_true", help="show the options that matter most")
    group.add_argument("--help-all", action="store_true", help="show all options")
    return page.format_help().rstrip()


class _Page(argparse.HelpFormatter):
    """The layout of the help: a value once, after all names of its option."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        value = "" if action.nargs == 0 else f" {self._format_args(action, '')}"
        return ", ".join(action.option_strings) + value


def _other_way(action: argparse.Action) -> bool:
    """Whether it is a second option of an argument, such as `--no-x` of `--x`."""
    return isinstance(action, argparse._StoreFalseAction | argparse._StoreConstAction)


def _show(group: argparse._ActionsContainer, action: argparse.Action) -> None:
    names = NAMES.get(action.dest, (option_of(action.dest),))
    sentence = _SENTENCES.get(action.dest) or " ".join((action.help or "").split())
    if (default := _shown_default(action.default)) and "by default" not in sentence:
        sentence += f" [{default}]"
    taken: dict[str, Any] = {"dest": action.dest, "help": sentence.replace("%", "%%")}
    if action.nargs == "?" and action.default is False:
        group.add_argument(*names, action="store_true", **taken)
        return
    kinds: dict[Any, str] = {int: "N", float: "X"}
    shown = _VALUES.get(action.dest) or kinds.get(action.type, "TEXT")
    if action.choices is not None:
        choices = list(map(str, action.choices))
        shown = "{" + ",".join(choices) + "}" if len(choices) <= 8 else "NAME"
        if len(choices) > 8:
            taken["help"] = f"{sentence}: {', '.join(choices)}".replace("%", "%%")
    elif getattr(action.type, "__name__", "") == "string_to_bool":
        shown = "{true,false}"
    group.add_argument(*names, metavar=shown, nargs="+" if action.nargs == "+" else None, **taken)


def _shown_default(value: Any) -> str:
    """A default as the help shows it; "" where it says nothing."""
    if value is None or value is False or value == argparse.SUPPRESS:
        return ""
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(getattr(value, "value", value))


# --- what transformers has -------------------------------------------------------------------------------------------


@functools.cache
def trainer_arguments() -> type[Any]:
    """`TrainingArguments` of the installed transformers as a dataclass of its fields alone, read from its source."""
    names = _Names("training_args")
    body = names.classes["TrainingArguments"].body
    found = [each for each in body if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)]
    annotated = type("Annotated", (), {"__annotations__": dict(_annotations(found))})
    hints = typing.get_type_hints(annotated, globalns={}, localns=names)  # type: ignore[arg-type]
    fields = [(each.target.id, hints[each.target.id], _field(each.value)) for each in found]  # type: ignore[union-attr]
    return dataclasses.make_dataclass("TrainingArguments", fields)


def _annotations(found: Sequence[ast.AnnAssign]) -> Iterator[tuple[str, str]]:
    for each in found:
        if isinstance(each.target, ast.Name):
            yield each.target.id, ast.unparse(each.annotation)


def _field(value: ast.expr | None) -> Any:
    """A field as its source defines it, but for what is only known at run time."""
    if not isinstance(value, ast.Call):
        return dataclasses.field(default=None if value is None else _literal(value))
    given = {each.arg: each.value for each in value.keywords}
    metadata = {}
    if isinstance(listed := given.get("metadata"), ast.Dict):
        for key, item in zip(listed.keys, listed.values, strict=True):
            if key is not None and (said := _literal(item)) is not None:
                metadata[_literal(key)] = said
    if "default_factory" in given:
        return dataclasses.field(default_factory=list, metadata=metadata)
    return dataclasses.field(default=_literal(given["default"]) if "default" in given else None, metadata=metadata)


def _literal(value: ast.expr) -> Any:
    """A value that stands in the source; None where it is computed."""
    try:
        return ast.literal_eval(value)
    except ValueError:
        return None


class _Names(dict[str, Any]):
    """What names mean in the annotations of a module of transformers: types, and enumerations as it defines them."""

    def __init__(self, module: str) -> None:
        super().__init__(Any=Any, Literal=typing.Literal, Optional=typing.Optional, Union=typing.Union)
        tree = ast.parse(_file(module).read_text(encoding="utf-8"))
        self.classes = {each.name: each for each in tree.body if isinstance(each, ast.ClassDef)}
        self.homes = {
            name.asname or name.name: each.module
            for each in tree.body
            if isinstance(each, ast.ImportFrom) and each.level == 1 and each.module
            for name in each.names
        }

    def __missing__(self, name: str) -> Any:
        if hasattr(builtins, name):
            return getattr(builtins, name)
        self[name] = self._enumeration(name) if name in self.classes else str
        if name in self.homes and _file(self.homes[name]).is_file():
            self[name] = _Names(self.homes[name])[name]
        return self[name]

    def _enumeration(self, name: str) -> Any:
        values = {
            target.id: _literal(each.value)
            for each in self.classes[name].body
            if isinstance(each, ast.Assign)
            for target in each.targets
            if isinstance(target, ast.Name)
        }
        return enum.Enum(name, values) if values else str  # type: ignore[misc]


def _file(module: str) -> Path:
    """The source of a module of transformers, which is not imported for it."""
    found = importlib.util.find_spec("transformers")
    if found is None or not found.submodule_search_locations:
        require_extra("train", "transformers")
    return Path(found.submodule_search_locations[0], *module.split(".")).with_suffix(".py")  # type: ignore[union-attr,index]


@functools.cache
def _source(module: str) -> ModuleType:
    """A module of transformers that needs nothing else of it, without its package."""
    name = f"transformers.{module}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(f"{__name__}.{module}", _file(module))
    if spec is None or spec.loader is None:
        raise ImportError(f"{name} cannot be loaded from {_file(module)}")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made
