"""`bge completion` prints a script that completes verbs and options, in the shell itself."""

import shutil
import subprocess

import pytest

from bgekit.cli.main import VERBS, main

pytest.importorskip("shtab")

#: Completes a word of a command line as readline would ask it to.
ASK = """
source {script}
COMP_WORDS=({words}); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
COMP_LINE="${{COMP_WORDS[*]}}"; COMP_POINT=${{#COMP_LINE}}
{function}
printf '%s\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    import contextlib

    path = tmp_path_factory.mktemp("completion") / "bge.bash"
    with path.open("w") as stream, contextlib.redirect_stdout(stream):
        assert main(["completion", "bash"]) == 0
    return path


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("bge sea", ["search"]),
        ("bge finetune --learning-r", ["--learning-rate"]),
        ("bge search --index-t", ["--index-type"]),
        ("bge encode --dtype b", ["bfloat16"]),
    ],
)
def test_bash_completes(script, words, found):
    function = next(
        line.split()[-2] for line in script.read_text().splitlines() if line.startswith("complete ") and "-F" in line
    )
    typed = " ".join(f"'{word}'" for word in words.split())
    done = subprocess.run(
        ["bash", "-c", ASK.format(script=script, words=typed, function=function)],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.split() == found


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells_get_a_script_with_every_verb(shell, capsys):
    assert main(["completion", shell]) == 0
    out = capsys.readouterr().out
    assert not [verb for verb in VERBS if verb not in out]
