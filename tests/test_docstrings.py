"""Every public name has an example in its docstring, which runs: on tiny models under the names of real ones."""

import ast
import doctest
import importlib
import inspect
import json
import os
from pathlib import Path

import pytest

import bgekit

PACKAGE = Path(bgekit.__file__).parent
ROOMS = [".".join(path.parent.relative_to(PACKAGE.parent).parts) for path in sorted(PACKAGE.rglob("__init__.py"))]
FACES = [room for room in ROOMS if hasattr(importlib.import_module(room), "__all__")]
NAMES = [(face, name) for face in FACES for name in importlib.import_module(face).__all__ if name != "__version__"]
CORPUS = [
    "The cat sat on the mat.", "A dog ran to the river.", "The house is red.", "Birds read blue books.",
    "A mountain of bread.", "Learn the language of trees.",
]  # fmt: skip


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def here(hub, tmp_path, monkeypatch):
    """A working directory with the files that examples read."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    monkeypatch.chdir(tmp_path)
    os.symlink(hub / "fine-tuned", "fine-tuned")
    Path("corpus.jsonl").write_text(lines({"id": f"d{at}", "text": text} for at, text in enumerate(CORPUS, 1)))
    Path("train.jsonl").write_text(
        lines({"query": f"a cat {at}", "pos": [CORPUS[at]], "neg": [CORPUS[at - 1]]} for at in range(4))
    )
    Path("pairs.jsonl").write_text(
        lines({"sentence1": f"a cat {at}", "sentence2": f"the dog {at}", "label": at % 2} for at in range(80))
    )
    Path("recipe.yaml").write_text("stages:\n  clean:\n    verb: dedup\n    arguments: {input: train.jsonl}\n")
    scifact = Path("scifact")
    (scifact / "qrels").mkdir(parents=True)
    (scifact / "corpus.jsonl").write_text(lines({"_id": f"d{at}", "text": text} for at, text in enumerate(CORPUS)))
    (scifact / "queries.jsonl").write_text(lines([{"_id": "q1", "text": "a cat"}, {"_id": "q2", "text": "red house"}]))
    (scifact / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td0\t1\nq2\td2\t1\n")


@pytest.mark.parametrize(("face", "name"), NAMES, ids=[f"{face}.{name}" for face, name in NAMES])
def test_the_example_runs(face, name, here):
    documented = getattr(importlib.import_module(face), name)
    examples = doctest.DocTestParser().get_doctest(inspect.getdoc(documented) or "", {}, f"{face}.{name}", None, 0)
    assert examples.examples, f"{face}.{name} has no example"
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    runner.run(examples, out=said.append)
    assert runner.failures == 0, "".join(said)


def test_every_module_says_what_it_holds():
    package = Path(importlib.import_module("bgekit").__file__).parent
    said = {path: ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) for path in package.rglob("*.py")}
    assert len(said) > 100
    assert [path.name for path, text in said.items() if not text or "TODO" in text] == []
