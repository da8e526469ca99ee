"""`import bgekit` and `bge --help` start at once: nothing heavy is imported before it is needed."""

import os
import subprocess
import sys
import time

import pytest

HEAVY = (
    "torch", "transformers", "numpy", "tokenizers", "safetensors", "huggingface_hub", "faiss", "pyarrow", "fsspec",
    "s3fs",
)  # fmt: skip

IMPORT_LIMIT_MS = 100
HELP_LIMIT_MS = 300
#: The best of this many runs counts: the limit is on the program, not on what else the machine is doing.
RUNS = 7


def run(*arguments):
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=True, env=environment, timeout=120
    )


def imported_ms():
    """Cumulative time of `import bgekit`, as -X importtime reports it."""
    report = run("-X", "importtime", "-c", "import bgekit").stderr
    line = next(line for line in report.splitlines() if line.split("|")[-1].strip() == "bgekit")
    return int(line.split("|")[1]) / 1000


def help_ms():
    start = time.perf_counter()
    run("-m", "bgekit", "--help")
    return (time.perf_counter() - start) * 1000


def test_import_is_fast():
    assert min(imported_ms() for _ in range(RUNS)) < IMPORT_LIMIT_MS


def test_help_is_fast():
    assert min(help_ms() for _ in range(RUNS)) < HELP_LIMIT_MS


@pytest.mark.parametrize(
    "statement",
    [
        "import bgekit",
        "import bgekit; dir(bgekit)",
        "import bgekit.errors",
        "import bgekit.cli.main",
        "import FlagEmbedding",
    ],
)
def test_nothing_heavy_is_imported(statement):
    code = f"{statement}\nimport sys\nprint([name for name in {HEAVY!r} if name in sys.modules])"
    assert run("-c", code).stdout.strip() == "[]"


@pytest.mark.parametrize("statement", ["import bgekit", "import bgekit.cli.main"])
def test_what_doubled_the_start_stays_out(statement):
    code = f"{statement}\nimport sys\nprint([n for n in ('importlib.abc', 'bgekit.models.card') if n in sys.modules])"
    assert run("-c", code).stdout.strip() == "[]"


def test_every_public_name_resolves():
    code = "import bgekit\nfor name in bgekit.__all__:\n    getattr(bgekit, name)"
    run("-c", code)
