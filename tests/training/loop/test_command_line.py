"""Command lines of training are answered without transformers, and just as its own parser would."""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, get_args

import pytest
from transformers import HfArgumentParser, TrainingArguments

from bgekit.cli.main import TRAINERS, main
from bgekit.cli.recipe import _trained
from bgekit.cli.training import command_of
from bgekit.training.loop.command_line import argument_parser, parse, trainer_arguments
from bgekit.training.loop.options import ScoredLoss
from bgekit.training.losses.sts import SCORED_LOSSES

#: What is computed when transformers is imported, and so cannot be read: the optimiser's default goes by torch's
#: release, the levels of logging are those of a library.
COMPUTED = {("optim", "default"), ("log_level", "choices"), ("log_level_replica", "choices")}
#: Types of transformers' own, which no command line can give a value of.
OWN_TYPES = {("parallelism_config", "type")}


def facts(action: argparse.Action) -> Mapping[str, Any]:
    """What a parser makes of an option, in plain values."""
    kind = action.type
    if callable(kind) and not isinstance(kind, type):  # A function of transformers, or a type with parameters.
        kind = getattr(kind, "__qualname__", str(kind)).split(".")[0]
    default = getattr(action.default, "value", action.default)
    return {
        "class": type(action).__name__, "nargs": action.nargs, "const": action.const, "default": default,
        "choices": action.choices and list(action.choices), "type": kind, "help": action.help,
        "required": action.required,
    }  # fmt: skip


def differences(own: argparse.Action, real: argparse.Action) -> set[tuple[str, str]]:
    mine, theirs = facts(own), facts(real)
    return {(own.dest, name) for name in mine if mine[name] != theirs[name]} - COMPUTED - OWN_TYPES


def test_every_option_of_the_trainer_is_read_as_transformers_has_it():
    own = HfArgumentParser((trainer_arguments(),))._option_string_actions
    real = HfArgumentParser((TrainingArguments,))._option_string_actions
    assert list(own) == list(real)
    found = set().union(*(differences(own[name], real[name]) for name in real if name != "--help"))
    assert not {(dest, what) for dest, what in found if dest != "debug"}  # A list of flags, which nobody's default is.
    assert [each.name for each in dataclasses.fields(trainer_arguments())] == [
        each.name for each in dataclasses.fields(TrainingArguments) if each.init
    ]


@pytest.mark.parametrize("verb", TRAINERS)
def test_every_option_of_a_verb_is_the_same_with_and_without_transformers(verb):
    own = argument_parser(command_of(verb).plain_kinds())._option_string_actions
    real = argument_parser(_trained(verb))._option_string_actions
    assert list(own) == list(real)
    found = set().union(*(differences(own[name], real[name]) for name in real))
    assert not {(dest, what) for dest, what in found if dest != "debug"}


WHOLE = ["--model", "none", "--train-data", "none.jsonl", "--output", "out"]


@pytest.mark.parametrize(
    ("verb", "given", "said"),
    [
        ("finetune", ["--learning-rat", "1"], "there is no option --learning-rat; did you mean --learning-rate?"),
        ("finetune", ["--train_dta", "x"], "there is no option --train_dta; did you mean --train-data?"),
        ("finetune", ["--nothing-like-it", "x"], "there is no option --nothing-like-it\n"),
        ("finetune-reranker", ["--unified_finetuning", "True"], "is for embedders with the heads of BGE-M3"),
        ("finetune", [*WHOLE, "--fix_encoder", "True"], "--fix-encoder needs --unified-finetuning true"),
        ("finetune", ["--lr", "abc", *WHOLE], "--learning-rate/--lr: invalid float value: 'abc'"),
        ("finetune", ["--lr-scheduler-type", "sine", *WHOLE], "invalid choice: 'sine'"),
        ("finetune", [*WHOLE, "--temperature", "0"], "--temperature must be above 0"),
        ("finetune", [*WHOLE, "--fsdp", "full_shard"], "--fsdp is not supported"),
        ("finetune", [*WHOLE, "--eval-steps", "5"], "--eval-steps needs --eval-data"),
        ("finetune", WHOLE[2:], "--model is needed"),
        ("finetune", WHOLE[:2], "--train-data is needed"),
        ("finetune", WHOLE[:4], "--output is needed"),
        ("finetune-reranker", [*WHOLE, "--eval-data", "x"], "--eval-data needs --first-stage"),
        ("finetune-reranker", [*WHOLE, "--query-max-len", "9"], "--query-max-length is for embedders"),
        ("pretrain", WHOLE[2:], "give either --model"),
        ("pretrain", [*WHOLE, "--validation-split", "2"], "--validation-split must be"),
    ],
)
def test_a_mistake_is_named_with_exit_code_2(verb, given, said, capsys):
    assert main([verb, *given]) == 2
    error = capsys.readouterr().err
    assert said in error and error.startswith("bge: error: ") and error.count("\n") == 1


def test_neither_a_mistake_nor_the_help_imports_transformers():
    code = """
import contextlib, io, sys
from bgekit.cli.main import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    for verb in ("finetune", "finetune-reranker", "pretrain"):
        assert main([verb, "--no-such-thing"]) == 2
        for given in (["--help"], ["--help-all"]):
            try:
                main([verb, *given])
            except SystemExit as end:
                assert end.code == 0
print([name for name in ("transformers", "torch", "numpy", "pyarrow") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("verb", TRAINERS)
def test_the_help_shows_what_matters_and_help_all_the_rest(verb, capsys):
    pages = {}
    for asked in ("--help", "--help-all"):
        with pytest.raises(SystemExit) as end:
            main([verb, asked])
        assert end.value.code == 0
        pages[asked] = capsys.readouterr().out
    assert "--learning-rate, --lr X" in pages["--help"] and "[5e-05]" in pages["--help"]
    assert "--adam-beta1" not in pages["--help"] and "--adam-beta1 X" in pages["--help-all"]
    assert pages["--help"].count("\n") < 120
    every = {each.name for kind in command_of(verb).plain_kinds() for each in dataclasses.fields(kind)}
    parser = argument_parser(command_of(verb).plain_kinds())
    first = {name: next(each for each in parser._actions if each.dest == name).option_strings for name in every}
    assert not [name for name, options in first.items() if not any(each in pages["--help-all"] for each in options)]
    assert not [name for names in command_of(verb).shown.values() for name in names if name not in every]


@pytest.mark.parametrize(
    ("given", "name", "value"),
    [
        (["--lr", "0.1"], "learning_rate", 0.1),
        (["--learning_rate", "0.1"], "learning_rate", 0.1),
        (["--epochs", "2"], "num_train_epochs", 2),
        (["--batch-size", "7"], "per_device_train_batch_size", 7),
        (["--query-max-length", "9"], "query_max_len", 9),
        (["--query_max_len", "9"], "query_max_len", 9),
        (["--no-progress"], "disable_tqdm", True),
        (["-o", "there"], "output_dir", "there"),
        (["--output_dir", "there"], "output_dir", "there"),
        (["-m", "this"], "model_name_or_path", "this"),
        (["--overwrite"], "overwrite_output_dir", True),
    ],
)
def test_old_and_new_names_mean_the_same(given, name, value):
    parts = parse(command_of("finetune"), [*WHOLE, *given], prog="bge finetune")
    assert next(getattr(part, name) for part in parts if hasattr(part, name)) == value


def test_the_scored_losses_are_those_that_there_are():
    assert set(get_args(ScoredLoss)) == set(SCORED_LOSSES)
