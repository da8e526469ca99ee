"""Messages of the library as the command line says them."""

from __future__ import annotations

import argparse

import pytest

from bgekit.cli import options
from bgekit.display.option_names import did_you_mean, options_of, speak_for, spoken


@pytest.fixture
def parser():
    parser = options.Parser(prog="bge")
    options.add_model_options(parser)
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--card-from", type=int)
    inner = parser.add_subparsers().add_parser("run")
    inner.add_argument("--work", "--work-folder")
    speak_for(lambda: options_of(parser))
    yield parser
    speak_for(dict)


@pytest.mark.parametrize(
    ("library", "here"),
    [
        ("x exists; pass overwrite=True to replace it", "x exists; pass --overwrite to replace it"),
        ("Pass allow_pickle=True (--allow-pickle) if you trust it.", "Pass --allow-pickle if you trust it."),
        ("card_from=0 (--card-from 0) makes it a, 1 b", "--card-from 0 makes it a, 1 b"),
        ("Pass pooling_method=, one of cls, mean.", "Pass --pooling, one of cls, mean."),
        ("max_length=9000 is more than it can take", "--max-length 9000 is more than it can take"),
        ("it needs trust_remote_code=True", "it needs --trust-remote-code"),
        ("it needs trust_remote_code=True, without it", "it needs --trust-remote-code, without it"),
        ("dtype='int8' runs on the CPU only", "--dtype int8 runs on the CPU only"),
        ("Try use_fp16=False; if that fails", "Try --fp32; if that fails"),
        ("give normalize_embeddings=False", "give --no-normalize"),
        ("keep it in work_folder=...", "keep it in --work"),
        ("set KEY or pass api_key=", "set KEY"),
        (
            "most likely a reranker: use FlagReranker(name).compute_score(pairs) instead of FlagModel.",
            "most likely a reranker: use it with bge rerank or bge score, or as --reranker of bge search and bge eval.",
        ),
    ],
)
def test_arguments_become_options_of_the_verb(parser, library, here):
    assert spoken(library) == here


@pytest.mark.parametrize(
    "message",
    [
        "FlagModel(folder).save(folder, overwrite=True) makes a new self-test",
        "/data/max_length=5/x.jsonl is damaged", "--config-overrides hidden_size=256", "no_such_argument=3 is odd",
        "there is nothing to say", "method ties needs a base (--card-from), the model",
        "batch_size must be a whole number, not null",
    ],
)  # fmt: skip
def test_what_is_no_argument_stays(parser, message):
    assert spoken(message) == message


def test_bare_names_are_options_where_the_message_is_about_arguments(parser):
    assert spoken("batch_size must be at least 1", arguments=True) == "--batch-size must be at least 1"
    assert spoken("/x/batch_size and my_field stay", arguments=True) == "/x/batch_size and my_field stay"


def test_advice_that_the_verb_cannot_follow_is_left_out(parser):
    message = "no field text. Name the field with --text-field. (--on-error skip leaves such lines out)"
    assert spoken(message) == "no field text."
    parser.add_argument("--text-field")
    assert spoken(message) == "no field text. Name the field with --text-field."


def test_without_a_verb_nothing_changes():
    assert spoken("pass overwrite=True") == "pass overwrite=True"
    assert options_of(argparse.ArgumentParser(add_help=False)) == {}


def test_values_can_be_typed_in_a_shell(parser):
    assert spoken("pass query_instruction_for_retrieval='ask: '") == "pass --query-instruction 'ask: '"
    assert spoken("pass query_instruction_for_retrieval=''") == "pass --query-instruction ''"


def test_one_piece_says_what_was_meant():
    assert did_you_mean("yaer", ["year", "lang"]) == "; did you mean year?"
    assert did_you_mean("yaer", ["year", "lang"], within=True) == " (did you mean year?)"
    spelled = ["--shard-size", "--shard_size", "--shardsize"]
    assert did_you_mean("--shard_siez", spelled) == "; did you mean --shard-size?"
    assert did_you_mean("for_eahc", ["for_each", "foreach"]) == "; did you mean for_each?"
    assert did_you_mean("nothing", ["year"], within=True) == ""
