from __future__ import annotations

import pytest

from bgekit.recipes.spec import RecipeError, read_yaml


def test_scalars_stay_texts(write):
    path = write("a: 1e-5\nb: no\nc: 010\nd: 1:30\ne:\nf: ''\ng: [1, 'x']\n")
    content = read_yaml(path)
    assert [content[name] for name in "abcdfg"] == ["1e-5", "no", "010", "1:30", "", ["1", "x"]]
    assert content["e"] is None
    assert content["b"].boolean is False and content["a"].boolean is None
    assert content.line_of("c") == 3 and content["d"].line == 4


def test_shared_arguments_are_merged_and_replaced(write):
    content = read_yaml(write("a: &a\n  x: 1\n  y: 2\nb:\n  <<: *a\n  y: 3\n"))
    assert dict(content["b"]) == {"x": "1", "y": "3"}
    assert content["b"].line_of("y") == 6


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "'a' stands on line 1 already"),
        ("a:\n  x: 1\n  x: 2\n", 3, "'x' stands on line 2 already"),
        ("a: 1\nb: !!python/object:os.system x\n", 2, "tags"),
        ("a: 1\nb: !secret x\n", 2, "tags"),
        ("a: 1\nb: [${x}]\n", 2, "in quotes"),
        ("a: 1\n b: 2\n", 2, "mapping values"),
        ("a: &a [*a]\n", 1, "too deep"),
        ("? [a, b]\n: 1\n", 1, "a key must be a word"),
    ],
)
def test_errors_name_the_line(write, text, line, message):
    with pytest.raises(RecipeError, match=rf"recipe\.yaml, line {line}: .*{message}"):
        read_yaml(write(text))


def test_what_is_no_recipe(write, here):
    with pytest.raises(RecipeError, match="is not a recipe"):
        read_yaml(write("- a\n"))
    with pytest.raises(RecipeError, match="there is no recipe"):
        read_yaml(here / "none.yaml")
    (here / "bytes.yaml").write_bytes(b"a: \xff\n")
    with pytest.raises(RecipeError, match="cannot read"):
        read_yaml(here / "bytes.yaml")
