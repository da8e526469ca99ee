"""The commands of docs/migration.md: FlagEmbedding's and ours make the same files, from tiny models of real names."""

import json
import logging
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import torch

import bgekit.merging
from bgekit.cli.main import main

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "migration.md").read_text("utf-8")
PAIRS = re.findall(r"^\| `([^`]+)` \| \[`(bge [^`]+)`\]", PAGE, re.MULTILINE)
#: Scripts that FlagEmbedding has beside its package: no path leads to them, but the verbs take their options.
SCRIPTS = {"hn_mine.py": "mine", "add_reranker_score.py": "score"}
WORDS = ["cat", "dog", "house", "river", "bread", "blue", "red", "bird", "tree", "book"]


@pytest.fixture
def start(hub, tmp_path, monkeypatch):
    """A function that goes to a new folder with the files that the commands read."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))

    def start(name):
        folder = tmp_path / name
        folder.mkdir()
        monkeypatch.chdir(folder)
        rows = [
            {"query": f"a {word}", "pos": [f"the {word} and the {WORDS[at - 1]}"], "neg": [f"{WORDS[at - 5]} {at}"]}
            for at, word in enumerate(WORDS)
        ]
        Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        pool = [f"{one} or {two}" for one in WORDS for two in WORDS]
        Path("pool.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in pool))
        Path("texts.jsonl").write_text("".join(json.dumps({"text": f"{text} " * 9}) + "\n" for text in pool))
        (folder / "tuned").symlink_to(hub / "fine-tuned")
        return folder

    return start


def run(command, monkeypatch):
    """Run a command as it stands there, in this process."""
    if command.startswith("mix_models("):
        eval(command, {"mix_models": bgekit.merging.mix_models})
        return
    words = shlex.split(command)
    if words[0] == "torchrun":
        words = ["python", *words[3:]]
    if words[:2] == ["python", "-m"]:
        monkeypatch.setattr(sys, "argv", words[2:])
        for name in [name for name in sys.modules if name.startswith("FlagEmbedding.")]:
            monkeypatch.delitem(sys.modules, name)
        with pytest.raises(SystemExit) as end:
            runpy.run_module(words[2], run_name="__main__", alter_sys=True)
        assert end.value.code in (0, None), command
        return
    words = [SCRIPTS[words[1]], *words[2:]] if words[0] == "python" else words[1:]
    assert main(words) == 0, command


@pytest.mark.parametrize(
    ("theirs", "ours"), PAIRS, ids=[f"{at}-{ours.split()[1]}" for at, (_, ours) in enumerate(PAIRS)]
)
def test_each_pair_makes_the_same_files(theirs, ours, start, monkeypatch):
    if "gpu" in theirs and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    monkeypatch.setattr(logging, "basicConfig", lambda **options: None)
    made = []
    for command in (theirs, ours):
        folder = start(f"{len(made)}")
        if "--output_dir tuned" in command or "--output-dir tuned" in command:
            (folder / "tuned").unlink()
        before = {path.name for path in folder.iterdir()}
        run(command, monkeypatch)
        files = sorted(path for path in folder.rglob("*") if path.suffix in (".jsonl", ".safetensors"))
        new = [path for path in files if path.relative_to(folder).parts[0] not in before]
        assert new, command
        made.append({str(path.relative_to(folder)): path.read_bytes() for path in new})
    assert made[0].keys() == made[1].keys()
    assert [name for name, content in made[0].items() if content != made[1][name]] == []


def test_there_is_a_pair_for_each_script():
    commands = {ours.split()[1] for _, ours in PAIRS}
    assert commands >= {"mine", "score", "finetune", "finetune-reranker", "pretrain", "merge"} and len(PAIRS) >= 9
