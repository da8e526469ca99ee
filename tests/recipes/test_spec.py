from __future__ import annotations

import pytest

from bgekit.recipes.spec import RecipeError, read_recipe

TWO = """\
variables:
  folder: data
  file: ${folder}/train.jsonl
  seeds: [0, 1]
stages:
  last:
    verb: eval
    arguments:
      data: ${folder}
      model: ["${tune}", base]
  tune:
    verb: finetune
    for_each:
      seed: ${seeds}
    arguments:
      model: base
      train_data: ${mine.}
      seed: ${seed}
  mine.:
    verb: mine
    arguments:
      input: ${file}
""".replace("mine.", "mined")


def values(stage, name):
    return [(str(value), value.stage) for value in stage.arguments[name]]


def test_variables_stages_and_order(write):
    recipe = read_recipe(write(TWO), {"folder": "other"})
    assert [stage.name for stage in recipe.stages] == ["mined", "tune.seed=0", "tune.seed=1", "last"]
    assert recipe.variables == {"folder": "other", "file": "other/train.jsonl", "seeds": ["0", "1"]}
    assert values(recipe.stage("mined"), "input") == [("other/train.jsonl", None)]
    assert values(recipe.stage("tune.seed=1"), "seed") == [("1", None)]
    assert values(recipe.stage("last"), "model") == [("", "tune.seed=0"), ("", "tune.seed=1"), ("base", None)]


def test_lists_on_the_command_line(write):
    recipe = read_recipe(write(TWO), {"seeds": "[5, 6, 7]"})
    assert [stage.name for stage in recipe.stages if "tune" in stage.name] == [f"tune.seed={n}" for n in (5, 6, 7)]
    assert recipe.only(["tune"]).chosen(["tune"]) == ["tune.seed=5", "tune.seed=6", "tune.seed=7"]
    assert [stage.name for stage in recipe.only(["mined"]).stages] == ["mined"]


def test_a_variable_may_be_a_list_of_another_name(write):
    recipe = read_recipe(write(TWO.replace("variables:", "variables:\n  all: [3, 4]\n  same: ${all}", 1)))
    assert recipe.variables["same"] == ["3", "4"]


def test_choices_meet(write):
    """A stage gets the outputs of its own choice, one without a choice gets them all."""
    text = TWO + "  half:\n    verb: merge\n    for_each: {seed: [0, 1]}\n    arguments: {models: ['${tune}', base]}\n"
    recipe = read_recipe(write(text))
    assert values(recipe.stage("half.seed=1"), "models") == [("", "tune.seed=1"), ("base", None)]


def test_a_variable_may_be_a_stage(write):
    text = "variables: {start: '${a}'}\nstages:\n  b: {verb: dedup, arguments: {input: '${start}'}}\n"
    text += "  a: {verb: dedup, arguments: {input: x}}\n"
    path = write(text)
    assert [stage.name for stage in read_recipe(path).stages] == ["a", "b"]
    assert read_recipe(path, {"start": "y"}).stage("b").needs == ()


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("stagse: {}\n", 1, "a recipe has no 'stagse' \\(did you mean stages\\?\\)"),
        ("stages: []\n", 1, "mapping of names"),
        ("stages:\n  a:\n    verb: tune\n", 3, "stage a: 'tune' is not a verb of stages"),
        ("stages:\n  a:\n    vreb: mine\n", 3, "stage a: a stage has no 'vreb' \\(did you mean verb\\?\\)"),
        ("stages:\n  a:\n    arguments: {}\n", 2, "stage a: has no `verb`"),
        ("stages:\n  a: {verb: dedup, arguments: {input: '${b}'}}\n", 2, "stage a: .*neither a variable nor a stage"),
        ("stages:\n  a: {verb: dedup, arguments: {input: }}\n", 2, "stage a: input has no value"),
        ("stages:\n  a:\n    verb: dedup\n    arguments:\n      input:\n        b: 1\n", 5, "keys instead"),
        ("stages:\n  a/b: {verb: dedup}\n", 2, "is not a valid name"),
        ("stages:\n  output: {verb: dedup}\n", 2, "take another name"),
        ("stages:\n  logs: {verb: dedup}\n", 2, "folder of the stages' logs: take another name"),
        ("variables: {a: 1}\nstages:\n  a: {verb: dedup}\n", 3, "is a variable already"),
        ("variables: {a: }\nstages:\n  b: {verb: dedup}\n", 1, "--set a="),
        ("variables:\n  a: ${b}\n  b: 1\nstages:\n  c: {verb: dedup}\n", 2, "neither"),
        ("stages:\n  a: {verb: dedup, processes: 2}\n", 2, "for training stages"),
        ("stages:\n  a: {verb: finetune, processes: x}\n", 2, "whole number"),
        ("stages:\n  a: {verb: dedup, for_each: {s: [1, 1]}}\n", 2, "different values"),
        ("stages:\n  a: {verb: dedup, for_each: {s: [a/b]}}\n", 2, "different values"),
        ("stages:\n  a: {verb: dedup, arguments: {input: 'x${a}'}}\n", 2, "at the beginning"),
        (
            "stages:\n  a: {verb: dedup, arguments: {input: '${b}'}}\n  b: {verb: dedup, arguments: {input: '${a}'}}\n",
            2,
            "a -> b -> a",
        ),
    ],
)
def test_errors_name_line_and_stage(write, text, line, message):
    with pytest.raises(RecipeError, match=rf"recipe\.yaml, line {line}[,:] .*{message}"):
        read_recipe(write(text))


def test_unknown_settings(write):
    with pytest.raises(RecipeError, match=r"--set sed: .*no such variable \(did you mean seeds\?\)"):
        read_recipe(write(TWO), {"sed": "1"})
    with pytest.raises(RecipeError, match="no stage 'tun'"):
        read_recipe(write(TWO)).only(["tun"])
