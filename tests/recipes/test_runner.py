"""Recipes that run: what is run again and what is not, what a kill leaves, what goes wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bgekit.cli.main import main
from bgekit.cli.recipe import VerbGrammar
from bgekit.errors import OutputError
from bgekit.recipes.plan import make_steps
from bgekit.recipes.runner import StageError
from bgekit.recipes.spec import RecipeError, read_recipe

CHAIN = """\
variables: {near: false}
stages:
  clean:
    verb: dedup
    arguments: {input: train.jsonl, near_duplicates: "${near}"}
  mined:
    verb: mine
    arguments: {input: "${clean}", random: true, negatives: 2, seed: 3}
"""

TRAIN = """\
variables: {model: MODEL}
stages:
  clean:
    verb: dedup
    arguments: {input: train.jsonl}
  tuned:
    verb: finetune
    arguments:
      model: ${model}
      train_data: ${clean}
      train_group_size: 2
      per_device_train_batch_size: 2
      num_train_epochs: 2
      save_steps: 2
      learning_rate: 1e-3
      use_cpu: true
      cache_path: cache
  scores:
    verb: eval
    arguments: {data: task, model: ["${model}", "${tuned}"], fp32: true, devices: cpu}
"""


def status(planned):
    return {name: state for name, (state, _) in planned.items()}


def test_only_what_changed_is_run(write, rows, run, planned):
    path = write(CHAIN)
    rows("train.jsonl", 6)
    assert status(planned(path)) == {"clean": "missing", "mined": "missing"}
    assert run(path) == ["clean", "mined"]
    assert json.loads(Path("work/report.json").read_text())["stages"][1]["this_run"] == "run"
    assert len(Path("work/mined.jsonl").read_text().splitlines()) == 6
    assert Path("work/mined.report.json").is_file() and Path("work/mined.report.html").is_file()
    assert Path("work/logs/mined.log").is_file()
    assert run(path) == []
    assert status(planned(path)) == {"clean": "cached", "mined": "cached"}

    # Another argument, the same bytes: what comes after stays.
    assert planned(path, near="true") == {
        "clean": ("stale", ("near_duplicates: added",)),
        "mined": ("waits", ("after clean",)),
    }
    assert run(path, near="true") == ["clean"]
    # Other content.
    rows("train.jsonl", 7)
    assert planned(path, near="true")["clean"] == ("stale", ("input: other content",))
    assert run(path, near="true") == ["clean", "mined"]
    # An output that somebody changed, and one that is gone.
    Path("work/mined.jsonl").write_text("")
    assert "was changed since" in planned(path, near="true")["mined"][1][0]
    assert run(path, near="true") == ["mined"]
    Path("work/clean.jsonl").unlink()
    assert run(path, near="true") == ["clean"]
    assert run(path, again=["mined"], near="true") == ["mined"]
    assert sorted(each.name for each in Path("work/.recipe").iterdir()) == ["clean.json", "mined.json"]


def test_the_place_of_an_input_does_not_count(write, rows, run, here):
    rows("train.jsonl", 4)
    run(write(CHAIN))
    (here / "data").mkdir()
    shutil.move("train.jsonl", "data/train.jsonl")
    assert run(write(CHAIN.replace("train.jsonl", "data/train.jsonl"))) == []


def test_missing_inputs_are_named_before_anything_runs(write, rows, run, here):
    text = CHAIN + "  other: {verb: dedup, arguments: {input: none.jsonl}}\n"
    with pytest.raises(
        RecipeError,
        match=r"  line 5, stage clean: input train\.jsonl: there is .*\n  line 9, stage other: input none\.jsonl",
    ):
        run(write(text))
    assert not (here / "work" / "clean.jsonl").exists()
    rows("train.jsonl", 4)
    text = CHAIN.replace('"${clean}"', '"${clean}/part.jsonl"')
    with pytest.raises(RecipeError, match=r"line 8, stage mined: input .*the stage clean has made no such file"):
        run(write(text))
    moved = CHAIN.replace("near: false", "near: false, data: over/there").replace(
        "input: train", 'input: "${data}/train'
    )
    moved = moved.replace("train.jsonl,", 'train.jsonl",')
    with pytest.raises(RecipeError, match=r"there is no such file or folder\n--set data=\.\.\. says where it is"):
        run(write(moved))
    with pytest.raises(RecipeError, match=r"line 4, stage a: models packaged:none: there is no such model"):
        run(write("stages:\n  a:\n    verb: merge\n    arguments: {models: ['packaged:none']}\n"))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("inptu: x", "dedup has no argument 'inptu'; did you mean input\\?"),
        ("near_threshold: much", "invalid float value: 'much'"),
        ("near_duplicates: maybe", "true or false, not 'maybe'"),
        ("output: x", "leave out output"),
        ("input: [a, b]", "takes one value, not 2"),
        ("input: []", "empty list"),
        ("help: true", "leave out help"),
        ("near_duplicates: true", "required: --input"),
    ],
)
def test_arguments_are_checked_by_the_verb_itself(write, planned, argument, message):
    line = 2 if "required" in message else 5
    with pytest.raises(RecipeError, match=rf"recipe\.yaml, line {line}, stage a: .*{message}"):
        planned(write(f"stages:\n  a:\n    verb: dedup\n    arguments:\n      {argument}\n"))


def test_the_same_argument_twice(write, planned):
    text = "stages:\n  a:\n    verb: dedup\n    arguments:\n      input: x\n      input_file: y\n"
    with pytest.raises(RecipeError, match="line 6, stage a: input_file and input are the same argument"):
        planned(write(text))


@pytest.mark.parametrize(
    ("argument", "message"),
    [("learning_rte: 1", "did you mean learning_rate"), ("num_train_epochs: many", "invalid float value: 'many'"),
     ("temperature: 0", "--temperature must be above 0"), ("resume_from_checkpoint: true", "leave out")],
)  # fmt: skip
def test_training_arguments_are_checked(write, planned, argument, message):
    text = f"stages:\n  a:\n    verb: finetune\n    arguments:\n      model: m\n      train_data: t\n      {argument}\n"
    with pytest.raises(RecipeError, match=rf"recipe\.yaml, line 7, stage a: .*{message}"):
        planned(write(text))


def test_a_stage_that_fails(write, run, here):
    (here / "train.jsonl").write_text('{"query": "a"}\n')
    with pytest.raises(
        StageError, match=r"stage clean failed with exit code 1; its log is work.logs.clean\.log"
    ) as error:
        run(write(CHAIN))
    assert "train.jsonl" in error.value.tail and "cannot be used" in error.value.tail
    assert not Path("work/clean.jsonl").exists()


@pytest.mark.skipif(os.name != "posix", reason="limits are those of POSIX")
def test_a_full_disk_leaves_what_was_there(write, rows, run, here):
    path = write(CHAIN)
    rows("train.jsonl", 6)
    run(path)
    before = Path("work/mined.jsonl").read_bytes()
    rows("train.jsonl", 2000)
    limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536));"
    limited += "from bgekit.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", limited, "recipe", "run", str(path), "--work", "work"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 1
    assert "File too large" in ended.stderr and "bge: error: stage clean failed" in ended.stderr
    assert Path("work/mined.jsonl").read_bytes() == before
    assert run(path) == ["clean", "mined"]


def test_two_runs_at_once(write, rows, run):
    from bgekit.files.atomic import OutputFolder

    rows("train.jsonl", 4)
    with OutputFolder("work/.recipe"), pytest.raises(OutputError, match="is being written by process"):
        run(write(CHAIN))


def command(path):
    return [sys.executable, "-m", "bgekit", "recipe", "run", str(path), "--work", "work", "--quiet"]


@pytest.fixture
def training(write, rows, here, tiny_bert):
    rows("train.jsonl", 24)
    (here / "task" / "qrels").mkdir(parents=True)
    texts = [{"_id": str(n), "text": f"the river of house {n}"} for n in range(8)]
    (here / "task" / "corpus.jsonl").write_text("".join(json.dumps(each) + "\n" for each in texts))
    (here / "task" / "queries.jsonl").write_text("".join(json.dumps(each) + "\n" for each in texts))
    lines = "".join(f"{n}\t{n}\t1\n" for n in range(8))
    (here / "task" / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{lines}")
    return write(TRAIN.replace("MODEL", str(tiny_bert)))


def in_processes(recipe: Path, count: int) -> None:
    text = recipe.read_text()
    recipe.write_text(text.replace("verb: finetune\n", f"verb: finetune\n    processes: {count}\n"))


def weights(folder: str | Path) -> bytes:
    return Path(folder, "model.safetensors").read_bytes()


def undisturbed(recipe: Path) -> bytes:
    """What the command of the stage that trains makes of its input, from the beginning; if it can, in this process."""
    steps = make_steps(read_recipe(recipe, {}), Path("work"), VerbGrammar())
    (tuned,) = (step for step in steps if step.name == "tuned")
    if tuned.stage.processes > 1:
        subprocess.run([sys.executable, "-m", *tuned.module_arguments], check=True)
        return weights(tuned.working)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert main([tuned.stage.verb.name, *tuned.verb_arguments]) == 0
    finally:
        torch.set_num_threads(threads)
    return weights(tuned.working)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_and_run_again_is_the_same_model(training, run, planned, processes):
    """The process of the recipe is killed; the stage ends with it, and goes on from its checkpoint."""
    in_processes(training, processes)
    process = subprocess.Popen(command(training))
    try:
        _until(lambda: any(Path("work/.recipe/tuned/tuned").glob("checkpoint-*/trainer_state.json")))
    finally:
        process.kill()
        process.wait()
    assert not Path("work/tuned").exists()
    _until(lambda: not _alive("work/.recipe/tuned/tuned"), seconds=20)
    assert not Path("work/.recipe/tuned/tuned/config.json").exists()
    assert status(planned(training)) == {"clean": "cached", "tuned": "unfinished", "scores": "missing"}
    assert run(training) == ["tuned", "scores"]
    assert not list(Path("work/tuned").glob("checkpoint-*")) and not Path("work/.recipe/tuned").exists()
    assert undisturbed(training) == weights("work/tuned")
    report = json.loads(Path("work/report.json").read_text())
    assert [each["model"] for each in report["evaluations"][0]["results"]][1] == "tuned"
    assert len(report["evaluations"][0]["comparisons"]) == 1
    assert "tuned" in Path("work/report.md").read_text() and "<table" in Path("work/report.html").read_text()


@pytest.mark.skipif(os.name != "posix", reason="groups of processes are those of POSIX")
@pytest.mark.parametrize("processes", [1, 2])
def test_ctrl_c_ends_the_stage_too(training, processes):
    in_processes(training, processes)
    process = subprocess.Popen(command(training), stderr=subprocess.PIPE, text=True)
    _until(lambda: Path("work/.recipe/tuned.started.json").exists())
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    _until(lambda: not _alive("work/.recipe/tuned/tuned"), seconds=20)


def _until(condition, seconds: float = 400.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def _alive(mark: str) -> bool:
    """Whether a process has this among its arguments."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark in path.read_bytes().decode(errors="replace"):
                return True
        except OSError:
            continue
    return False


def test_a_run_that_was_killed_between_output_and_record(write, rows, run):
    """The output has its name, the record is not there yet."""
    rows("train.jsonl", 4)
    path = write(CHAIN)
    run(path)
    os.replace("work/.recipe/mined.json", "work/.recipe/mined.finished.json")
    assert run(path) == []
    assert Path("work/.recipe/mined.json").exists() and not Path("work/.recipe/mined.finished.json").exists()
