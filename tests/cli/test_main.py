"""The command itself: verbs, usage errors, exit codes, option spellings."""

import argparse
import importlib
import logging
import os
import re
import subprocess
import sys

import pytest

from bgekit.cli import main as cli
from bgekit.cli import options
from bgekit.display.option_names import take_both_spellings
from bgekit.display.terminal import AT_END
from bgekit.errors import BgekitError, in_lines

BGE = [sys.executable, "-m", "bgekit"]


def bge(*arguments, **rest):
    return subprocess.run([*BGE, *map(str, arguments)], capture_output=True, text=True, timeout=120, **rest)


def test_help_lists_every_verb(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["--help"])
    assert end.value.code == 0
    help_text = capsys.readouterr().out
    for verb in cli.VERBS:
        assert f"\n    {verb}" in help_text


def test_no_verb_shows_the_help(capsys):
    assert cli.main([]) == 0
    assert "verbs:" in capsys.readouterr().out


def test_version():
    from bgekit import __version__

    assert bge("--version").stdout == f"bgekit {__version__}\n"


@pytest.mark.parametrize("arguments", [["nonsense"], ["--nonsense"], ["encode"], ["models", "--nonsense"]])
def test_wrong_usage_is_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2
    assert "usage: bge" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serach", "a.txt"], "there is no verb serach; did you mean search?"),
        (["search", "a.txt", "--text-feild", "x"], "there is no option --text-feild; did you mean --text-field?"),
        (["encode", "a.txt", "--modle", "x"], "there is no option --modle; did you mean --model?"),
        (["search", "--index-type", "hnws"], "did you mean hnsw?"),
        (["mine", "--inptu", "x"], "did you mean --input?"),
        (["recipe", "run", "a.yaml", "--dryrnu"], "did you mean --dry-run?"),
    ],
)
def test_wrong_usage_names_what_was_meant(arguments, said, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 2


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["info", "bge-small-en-v1.5"], None),  # Which the table of families answers.
        (["search", "a.txt", "-q", "a", "-m", "bge-small-en-v1.5"], "BAAI/bge-small-en-v1.5"),
        (["search", "a.txt", "-q", "a", "-m", "BAAI/bge-smal-en-v1.5"], "BAAI/bge-small-en-v1.5"),
        (["eval", "--data", "a", "--model", "intfloat/e5-smal-v2"], "intfloat/e5-small-v2"),
        (["rerank", "a.jsonl", "--model", "bge-reranker-v2-m4"], "BAAI/bge-reranker-v2-m3"),
        (["finetune", "-m", "BAAI/bge-bsae-en-v1.5", "--train-data", "a", "-o", "b"], "BAAI/bge-base-en-v1.5"),
    ],
)
def test_a_mistyped_model_names_the_one_that_was_meant(arguments, meant, tmp_path):
    (tmp_path / "a.txt").write_text("a\n")
    done = bge(*arguments, cwd=tmp_path, env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")})
    assert done.returncode == (0 if meant is None else 2)
    assert meant is None or f"; did you mean {meant}?" in done.stderr


@pytest.mark.parametrize("verb", ["encode", "eval", "calibrate", "mine", "score", "dedup", "merge", *cli.TRAINERS])
def test_every_verb_with_an_output_takes_it_as_o_and_output(verb):
    from bgekit.cli.recipe import parser_of

    known = parser_of(verb)._option_string_actions
    assert known["-o"] is known["--output"]


@pytest.mark.parametrize("verb", list(cli.VERBS))
def test_every_verb_has_help(verb, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([verb, "--help"])
    assert end.value.code == 0
    assert f"usage: bge {verb}" in capsys.readouterr().out


# The help of these lists the arguments of transformers' Trainer.
@pytest.mark.parametrize("verb", [verb for verb in cli.VERBS if not verb.startswith(("finetune", "pretrain"))])
def test_a_verb_s_help_needs_nothing_heavy(verb):
    code = (
        f"import sys\nfrom bgekit.cli.main import main\ntry:\n    main([{verb!r}, '--help'])\n"
        "except SystemExit:\n    print('heavy:', [m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.endswith("heavy: []\n")


def run_verb(monkeypatch, run):
    import types

    module = types.SimpleNamespace(__doc__="`bge models`.", add_options=lambda parser: None, run=run)
    monkeypatch.setattr(cli.importlib, "import_module", lambda *_: module)
    return cli.main(["models"])


def test_our_errors_are_one_line_and_exit_code_1(monkeypatch, capsys):
    def run(args):
        raise BgekitError("something\nis wrong")

    assert run_verb(monkeypatch, run) == 1
    assert capsys.readouterr().err == "bge: error: something is wrong\n"


def test_what_is_kept_for_the_end_is_said_when_a_verb_fails(monkeypatch, capsys):
    def fail(arguments):
        options.log_to_stderr(logging.WARNING)
        logging.getLogger("bgekit.inference").warning("3 of 9 texts were cut", extra=AT_END)
        raise BgekitError("then it failed")

    monkeypatch.setattr(cli, "_run", fail)
    assert cli.main([]) == 1
    assert capsys.readouterr().err == "bge: warning: 3 of 9 texts were cut\nbge: error: then it failed\n"


def test_items_of_a_list_have_a_line_each(monkeypatch, capsys):
    def run(args):
        items = in_lines(["a.jsonl, line 1:\tx", "b", "c"])
        raise BgekitError(f"3 lines\ncannot be used:{items}\nWhat is expected:\n{{}}.")

    assert run_verb(monkeypatch, run) == 1
    assert capsys.readouterr().err.splitlines() == [
        "bge: error: 3 lines cannot be used:", "  a.jsonl, line 1: x", "  b", "  c", "What is expected: {}.",
    ]  # fmt: skip


def test_of_a_long_list_the_first_ten_and_a_count():
    assert in_lines(["only"]) == " only"
    assert in_lines(range(12)).splitlines()[1:] == [*(f"  {n}" for n in range(10)), "  ... and 2 more"]
    assert in_lines(["a", "b"], 1000).splitlines()[-1] == "  ... and 998 more"


@pytest.mark.parametrize(
    ("verb", "said"),
    [
        ("encode", "the same command continues"), ("mine", "the same command continues"), ("eval", "with --output"),
        ("finetune", "--resume-from-checkpoint true"), ("merge", "starts over"),
        ("recipe", "the same command continues"),
    ],
)  # fmt: skip
def test_an_interrupted_verb_says_which_command_goes_on(monkeypatch, capsys, verb, said):
    trains = verb in cli.TRAINERS
    module = importlib.import_module(f"bgekit.cli.{'training' if trains else verb}")

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "train" if trains else "add_options", stop)
    assert cli.main([verb]) == 130
    err = capsys.readouterr().err
    assert err.startswith("bge: interrupted; ") and said in err and err.count("\n") == 1


@pytest.mark.parametrize("verb", ["encode", "search", "rerank", "eval", "calibrate", "mine", "score", "dedup", "merge"])
def test_every_verb_that_reads_text_files_takes_their_encoding_and_quoting(verb, capsys):
    with pytest.raises(SystemExit):
        cli.main([verb, "--help"])
    out = capsys.readouterr().out
    assert "--encoding NAME" in out and "--quoting {auto,csv,none}" in out


def test_interrupt_is_exit_code_130(monkeypatch, capsys):
    def run(args):
        raise KeyboardInterrupt

    assert run_verb(monkeypatch, run) == 130
    assert capsys.readouterr().err == "bge: interrupted\n"


def test_other_errors_keep_their_traceback(monkeypatch):
    def run(args):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_verb(monkeypatch, run)


@pytest.mark.skipif(os.name != "posix", reason="needs pipes that can break")
def test_a_reader_that_leaves_is_no_error():
    process = subprocess.Popen([*BGE, "models", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 141


# --- options


@pytest.fixture
def parser():
    parser = options.Parser()
    parser.add_argument("--shard-size", type=int)
    parser.add_argument("--old_name")
    options.add_list_option(parser, "--names")
    return parser


@pytest.mark.parametrize("arguments", [["--shard-size", "5"], ["--shard_size", "5"], ["--shard_size=5"]])
def test_dash_and_underscore(parser, arguments):
    assert parser.parse_args(arguments).shard_size == 5


def test_options_added_with_an_underscore(parser):
    assert parser.parse_args(["--old-name", "a_b-c"]).old_name == "a_b-c"
    assert parser.parse_args(["--old_name=a_b"]).old_name == "a_b"


def test_dash_and_underscore_after_a_verb():
    top = options.Parser()
    verb = top.add_subparsers().add_parser("verb")
    verb.add_argument("--shard-size", type=int)
    assert top.parse_args(["verb", "--shard_size", "5"]).shard_size == 5


def test_values_are_left_as_they_are(parser):
    assert parser.parse_args(["--names", "a_b", "c-d", "--names=e_f"]).names == ["a_b", "c-d", "e_f"]


@pytest.mark.parametrize("arguments", ["--names a b", "--names a --names b", "--names=a --names=b"])
def test_list_options(parser, arguments):
    assert parser.parse_args(arguments.split()).names == ["a", "b"]


def test_options_are_not_abbreviated(parser):
    with pytest.raises(SystemExit):
        parser.parse_args(["--shard", "5"])


@pytest.mark.parametrize("text", ["0", "-1", "x", "1.5", ""])
def test_positive(text):
    with pytest.raises(argparse.ArgumentTypeError):
        options.positive(text)


def test_not_negative():
    assert (options.not_negative("0"), options.not_negative("3")) == (0, 3)
    with pytest.raises(argparse.ArgumentTypeError):
        options.not_negative("-1")


def test_a_caller_within_the_process_keeps_its_logging(monkeypatch):
    import logging

    def run(args):
        args.quiet, args.verbose = True, False
        options.set_up_logging(args)
        return 0

    logger = logging.getLogger("bgekit")
    before = (list(logger.handlers), logger.level)
    assert run_verb(monkeypatch, run) == 0
    assert (logger.handlers, logger.level) == before


@pytest.mark.parametrize("verb", ["encode", "search", "eval", "calibrate", "mine", "merge", "info", "demo"])
def test_every_verb_takes_the_pooling_of_its_model_by_the_same_names(verb, capsys):
    from bgekit.cli.recipe import parser_of

    known = parser_of(verb)._option_string_actions
    assert known["--pooling"] is known["--pooling-method"] is known["--sentence-pooling-method"]
    with pytest.raises(SystemExit):
        cli.main([verb, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--pooling {cls," in text
    assert "-pooling-method" not in text


#: Concepts and the names that they had in some verb: all are understood, and the first is the one that is listed.
ONE_NAME = {
    "--model": ("--model-name-or-path", "--models", "--model-names-or-paths", "--embedder-name-or-path"),
    "--output": ("--output-dir", "--output-file", "--output-path"),
    "--overwrite": ("--overwrite-output-dir",),
    "--input": ("--input-file",),
    "--max-length": ("--max-input-length", "--max-len", "--max-seq-length"),
    "--query-max-length": ("--query-max-len", "--embedder-query-max-length"),
    "--passage-max-length": ("--passage-max-len", "--embedder-passage-max-length"),
    "--batch-size": (), "--split": ("--eval-split",), "--devices": ("--device",), "--index-type": (),
    "--pooling": ("--pooling-method", "--sentence-pooling-method"),
    "--query-instruction": ("--query-instruction-for-retrieval", "--query-instruction-for-rerank"),
    "--passage-instruction": ("--passage-instruction-for-retrieval", "--passage-instruction-for-rerank"),
    "--query": ("--queries",), "--no-progress": (), "--quiet": (),
}  # fmt: skip


@pytest.mark.parametrize("verb", list(cli.VERBS))
def test_a_concept_has_one_name_in_the_help_of_all_verbs(verb, capsys):
    with pytest.raises(SystemExit):
        cli.main([verb, "--help"])
    listed = set(re.findall(r"--[a-z][\w-]*", capsys.readouterr().out))
    for name, others in ONE_NAME.items():
        if verb == "mine" and name == "--query":
            continue  # Its --queries is a file.
        assert not listed.intersection(others), f"{verb} lists another name of {name}"


@pytest.mark.parametrize(
    ("verb", "old", "listed"),
    [
        ("merge", "--models", "--model"), ("merge", "--model-names-or-paths", "-m"), ("merge", "--device", "--devices"),
        ("merge", "--max-input-length", "--max-length"), ("merge", "--eval-split", "--split"),
        ("merge", "--normalize", "--normalize-weights"), ("mine", "--index", "--index-type"),
        ("mine", "--range-for-sampling", "--range"), ("mine", "--negative-number", "--negatives"),
        ("score", "--reranker", "--model"), ("score", "--reranker-batch-size", "--batch-size"),
        ("search", "--queries", "--query"), ("finetune", "--eval-split", "--split"),
        ("finetune", "--output-dir", "-o"), ("pretrain", "--max-seq-length", "--max-length"),
        ("finetune-reranker", "--max-len", "--max-length"), ("finetune", "--overwrite-output-dir", "--overwrite"),
    ],
)  # fmt: skip
def test_a_name_that_an_option_had_is_still_understood(verb, old, listed):
    from bgekit.cli.recipe import parser_of

    known = parser_of(verb)._option_string_actions
    assert known[old] is known[listed]


def test_what_flagembedding_calls_flat_is_exact():
    from bgekit.cli.recipe import parser_of

    args = ["--input", "a", "--output", "b", "--index", "flat"]
    assert parser_of("mine").parse_args(args).index == "exact"


def test_an_unknown_pooling_names_the_verbs_option_and_info_takes_it(make_model, tmp_path, capsys):
    folder = str(make_model(pooling=None, name="says-nothing"))
    (tmp_path / "texts.txt").write_text("a cat\n")
    for arguments in (
        ["info", folder],
        ["encode", str(tmp_path / "texts.txt"), "-o", str(tmp_path / "vectors"), "--model", folder],
        ["merge", "--models", folder, "--weights", "1", "--output", str(tmp_path / "merged")],
    ):
        assert cli.main(arguments) == 1
        assert "Pass --pooling, one of" in capsys.readouterr().err
    assert cli.main(["info", folder, "--sentence_pooling_method", "mean"]) == 0
    shown = capsys.readouterr().out
    assert any(line.split() == ["pooling", "mean", "caller"] for line in shown.splitlines())


@pytest.mark.parametrize("verb", [*(verb for verb in cli.VERBS if verb not in ("recipe", "index")), "index add"])
def test_options_have_hyphens_in_the_help_and_are_understood_with_underscores(verb):
    from bgekit.cli.recipe import parser_of

    parser = parser_of(verb)
    names = [name for action in parser._actions for name in action.option_strings if name.startswith("--")]
    assert names and not [name for name in names if "_" in name]
    assert not [name for name in re.findall(r"--[\w-]+", parser.format_help()) if "_" in name]
    take_both_spellings(parser)
    for name in names:
        other = name[:2] + name[2:].replace("-", "_")
        assert other in parser._option_string_actions
