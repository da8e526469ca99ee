"""The recipes of the repository, planned: every argument is one that its verb knows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bgekit.cli.recipe import VerbGrammar
from bgekit.recipes.plan import make_steps
from bgekit.recipes.spec import read_recipe

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_it_is_planned(path, tmp_path):
    recipe = read_recipe(path)
    steps = make_steps(recipe, tmp_path, VerbGrammar())
    assert recipe.about and len(steps) == len(recipe.stages) > 3
    assert {"finetune", "mine", "merge", "eval"} <= {step.stage.verb.name for step in steps}


@pytest.mark.slow
def test_the_demo_runs_to_its_report(tmp_path):
    """Half an hour in one thread."""
    command = [sys.executable, "-m", "bgekit", "recipe", "run", str(RECIPES / "small-demo.yaml"), "--quiet"]
    subprocess.run([*command, "--work", str(tmp_path)], check=True)
    report = json.loads((tmp_path / "report.json").read_text())
    assert [stage["this_run"] for stage in report["stages"]] == ["run"] * 13
    scores = {each["model"]: each["main_score"] for each in report["evaluations"][0]["results"]}
    assert scores["merged"] > scores["packaged:all-MiniLM-L6-v2"]


def test_the_published_recipe():
    recipe = read_recipe(RECIPES / "bge-large-zh-v1.5.yaml")
    tuned = {name: recipe.stage(name) for name in ("with_instruction", "without_instruction")}
    for stage in tuned.values():
        said = {name: list(values) for name, values in stage.arguments.items()}
        assert [said[name] for name in ("train_group_size", "learning_rate", "num_train_epochs")] == [
            ["2"],
            ["1e-5"],
            ["5"],
        ]
        assert len(stage.arguments["train_data"]) == 8
        assert said["temperature"] == ["0.01"]
    asked = [stage.arguments["query_instruction_for_retrieval"][0] for stage in tuned.values()]
    assert asked == ["为这个句子生成表示以用于检索相关文章：", ""]
    started = read_recipe(RECIPES / "bge-large-zh-v1.5.yaml", {"start": "BAAI/bge-large-zh"}).only(["final"])
    assert not {"pretrained", "general"} & {stage.name for stage in started.stages}
    assert len(started.stages) == 11
