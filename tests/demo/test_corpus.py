"""The demo's corpus is real, large enough, and read without running anything."""

from __future__ import annotations

import sys

import pytest

from bgekit import demo as pydocs


@pytest.fixture(scope="module")
def corpus():
    before = set(sys.modules)
    found = {record.id: record.text for record in pydocs.standard_library()}
    # Modules in Python are parsed, not imported: nothing that opens a window or a browser came in.
    assert not {"antigravity", "turtle", "tkinter", "this", "webbrowser", "idlelib"} & (set(sys.modules) - before)
    return found


def test_thousands_of_entries(corpus):
    assert 3000 < len(corpus) < 10_000
    assert len(set(corpus.values())) == len(corpus)


@pytest.mark.parametrize(
    "name",
    ["str.split", "csv.reader", "shutil.copytree", "json", "os.listdir", "functools.lru_cache", "topic: with",
     "pathlib.Path", "pathlib.Path.glob", "pathlib.Path.read_text", "pathlib.PurePath.with_suffix",
     "datetime.datetime.fromisoformat", "collections.abc.Mapping.get", "concurrent.futures.Future.result"],
)  # fmt: skip
def test_what_everybody_uses_is_there(corpus, name):
    assert corpus[name].startswith(name + " ")
    assert len(corpus[name]) > len(name) + 30


def test_private_names_and_tests_are_not(corpus):
    assert not [name for name in corpus if any(part.startswith("_") for part in name.split("."))]
    assert not [name for name in corpus if name.startswith(("test.", "idlelib", "distutils", "site-packages"))]
