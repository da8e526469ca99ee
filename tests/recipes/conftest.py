"""Recipes written in a test, and a model that is trained in a moment."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bgekit.cli.recipe import VerbGrammar
from bgekit.recipes.plan import HIDDEN, Digests, Folder, make_steps, plan
from bgekit.recipes.runner import run_recipe
from bgekit.recipes.spec import read_recipe


class Silent:
    """Watches a run and says nothing; `began` are the stages that were run."""

    def __init__(self) -> None:
        self.began: list[str] = []

    def begins(self, step, number, total, state):
        if state.status != "cached":
            self.began.append(step.name)

    def runs(self, step, seconds, line):
        pass

    def ends(self, step):
        pass


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


@pytest.fixture
def write(here):
    """Write a recipe: `write(text)`; its path."""

    def write(text: str, name: str = "recipe.yaml") -> Path:
        path = here / name
        path.write_text(text, encoding="utf-8")
        return Path(name)

    return write


@pytest.fixture
def rows(here):
    """Write training data: `rows("train.jsonl", 8)`."""

    def rows(name: str, count: int, word: str = "river") -> Path:
        lines = [
            {"query": f"{word} {n}", "pos": [f"the {word} of house {n}"], "neg": [f"a dog reads {n}"]}
            for n in range(count)
        ]
        (here / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
        return here / name

    return rows


@pytest.fixture
def run(here):
    """Run a recipe; the names of the stages that were run."""

    def run(path: Path, *, again=(), **settings: str) -> list[str]:
        watcher = Silent()
        run_recipe(read_recipe(path, settings), Path("work"), VerbGrammar(), watcher, again=again)
        return watcher.began

    return run


@pytest.fixture
def planned(here):
    """The plan of a recipe: statuses by stage."""

    def planned(path: Path, **settings: str) -> dict[str, tuple[str, tuple[str, ...]]]:
        steps = make_steps(read_recipe(path, settings), Path("work"), VerbGrammar())
        states = plan(steps, Folder(Path("work"), Digests(Path("work", HIDDEN))))
        return {step.name: (state.status, state.reasons) for step, state in zip(steps, states, strict=True)}

    return planned
