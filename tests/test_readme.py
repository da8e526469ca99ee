"""The README's programs and commands run as printed, up to the model's name and the device."""

import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

README = (Path(__file__).resolve().parent.parent / "README.md").read_text("utf-8")
PROGRAMS = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
#: Those of the table, and those whose output is shown.
COMMANDS = [
    command
    for start in (r"\| .* \| `", r"\$ ")
    for command in re.findall(rf"^{start}(bge [^`\n]+)", README, re.MULTILINE)
]


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory):
    """The packaged model as a folder that every library can load."""
    from bgekit import FlagModel
    from bgekit.errors import CheckpointError

    try:
        model = FlagModel("packaged:all-MiniLM-L6-v2")
    except CheckpointError as error:
        pytest.skip(f"the packaged weights are not installed: {error}")
    folder = tmp_path_factory.mktemp("readme") / "model"
    model.save(folder)
    return folder


def title(program):
    return re.search(r"^(?:from|import) (?!torch)(\w+)", program, re.MULTILINE)[1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("program", PROGRAMS, ids=title)
def test_programs_run(program, saved_model, capsys):
    here = re.sub(r"BAAI/[\w.-]+", saved_model.as_posix(), program).replace('"cuda"', '"cpu"')
    assert here != program
    exec(compile(here, "README.md", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.strip()


@cache
def help_of(verb):
    line = [sys.executable, "-m", "bgekit", verb, "--help"]
    return subprocess.run(line, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command):
    """The verb and every option exist under these names; running them needs a hub."""
    _, verb, *words = shlex.split(command)
    known = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", help_of(verb)))
    assert {word for word in words if word.startswith("-")} <= known


def test_owed_words_are_there():
    assert "https://github.com/luyug/Dense" in README
    assert "eprint={2309.07597}" in README
    assert {"make demo", "make test"} <= set(re.findall(r"^make \w+", README, re.MULTILINE))


def test_links_lead_somewhere():
    root = Path(__file__).resolve().parent.parent
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert [link for link in links if not (root / link).exists()] == []
