"""Tiny models that can be merged, and copies of them that differ in one thing."""

import json
import shutil

import pytest


@pytest.fixture(scope="session")
def pair(make_model):
    """Two embedders of one architecture with other weights."""
    return [make_model("bert", seed=1, name="model-a"), make_model("bert", seed=2, name="model-b")]


@pytest.fixture(scope="session")
def trio(pair, make_model):
    return [*pair, make_model("bert", seed=3, name="model-c")]


@pytest.fixture(scope="session")
def rerankers(make_reranker):
    return [make_reranker("bert", seed=1), make_reranker("bert", seed=2)]


@pytest.fixture
def copied(tmp_path):
    """A copy of a checkpoint, to be changed: `copied(folder, "name")`."""
    return lambda folder, name="copy": shutil.copytree(folder, tmp_path / name)


@pytest.fixture
def edit():
    """Change a JSON file: `edit(path, key=value)`."""

    def edit(path, **changes):
        content = json.loads(path.read_text("utf-8")) if path.exists() else {}
        path.write_text(json.dumps(content | changes), "utf-8")

    return edit


@pytest.fixture
def examples():
    words = ["cat dog bird", "tree house", "river mountain", "vector search", "query passage", "red green blue"]
    return [
        {"query": words[place], "pos": [words[place] + " text"], "neg": [words[place - 1], words[place - 2]]}
        for place in range(5)
    ]
