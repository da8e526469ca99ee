"""What counts as a model's content."""

from __future__ import annotations

import os
import time

import pytest

from bgekit.recipes.plan import Digests


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


@pytest.mark.parametrize("settled", [0, 60 * 10**9])
def test_large_files_of_the_same_size_and_time_are_known_by_their_content(model, monkeypatch, settled):
    monkeypatch.setattr("bgekit.recipes.plan._LARGE", 1)
    monkeypatch.setattr("bgekit.files.hashing._SETTLED_NS", settled, raising=False)
    digests, weights = Digests(model.parent), model / "model.safetensors"
    weights.write_bytes(b"some weights")
    status, before = weights.stat(), digests.model(str(model))
    assert digests.model(str(model)) == before
    time.sleep(0.02)  # More than a tick of the file system's clock.
    with weights.open("r+b") as file:
        file.write(b"other")
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert digests.model(str(model)) != before
