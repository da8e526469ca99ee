"""What counts as a model's content."""

from __future__ import annotations

import pytest

from bgekit.recipes.digests import Digests


@pytest.fixture
def model(here):
    folder = here / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "modeling.py").write_text("a = 1\n")
    return folder


@pytest.mark.parametrize(
    ("name", "counts"),
    [("modeling.py", True), ("config.json", True), ("README.md", False), ("merge.json", False), (".hidden", False)],
)
def test_what_decides_counts(model, name, counts):
    digests = Digests(model.parent)
    before = digests.model(str(model))
    (model / name).write_text('{"b": 2}')
    assert (digests.model(str(model)) != before) == counts


def test_a_folder_of_home(model, monkeypatch):
    monkeypatch.setenv("HOME", str(model.parent))
    assert Digests(model.parent).model("~/model") == Digests(model.parent).model(str(model))


@pytest.mark.parametrize(
    "name", ["../nothing", "./nothing", "~/nothing", "~nobody-here/nothing", "/nothing", "a/b/c", "packaged:nothing"]
)
def test_what_is_no_model(here, name):
    assert Digests(here).model(name) is None


def test_a_name_on_the_hub_stands_for_itself(here):
    assert Digests(here).model("BAAI/bge-small-en-v1.5") == "named BAAI/bge-small-en-v1.5"
