"""The house stays in order: no circles, no imports against the order of the rooms, old module paths forward."""

import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bgekit import _moved

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "house.py"
_spec = importlib.util.spec_from_file_location("house", SCRIPT)
house = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(house)


def test_there_are_no_circles_and_no_arrows_against_the_order():
    here = house.House(SCRIPT.parents[1])
    assert here.circles() == []
    assert here.against(house.ORDER) == []


def test_the_poolings_are_listed_in_one_file():
    source = SCRIPT.parents[1] / "src"
    listing = [path.name for path in source.rglob("*.py") if '"weighted_mean", "last_token"' in path.read_text("utf-8")]
    assert listing == ["card.py"]


def test_documentation_and_examples_import_from_faces():
    root = SCRIPT.parents[1]
    pages = [root / "README.md", *(root / "docs").glob("*.md"), *(root / "examples").glob("*.py")]
    shown = [(page, line) for page in pages for line in page.read_text("utf-8").splitlines()]
    for module in (root / "src").rglob("*.py"):
        shown += [(module, line) for line in module.read_text("utf-8").splitlines() if ">>> " in line]
    imports = [(path.name, re.search(r"^\W*(?:from|import) (bgekit\.\w+\.[\w.]+)", line)) for path, line in shown]
    deep = {(page, found[1]) for page, found in imports if found}
    faces = {"bgekit.training.losses", "bgekit.integrations.langchain", "bgekit.integrations.llama_index"}
    assert {module for _, module in deep} <= faces, deep


def test_lines_of_code_are_counted_without_imports_comments_and_docstrings():
    source = (
        '"""Doc."""\n\nimport os  # why\n\n# comment\n\n\ndef f():\n    """Doc."""\n    return (\n        1\n    )\n'
    )
    assert sorted(house.code_lines(source)) == [8, 10, 11, 12]


@pytest.mark.parametrize("old", [path for path, places in _moved.MOVED.items() if places])
def test_old_module_paths_forward_with_a_warning(old, monkeypatch):
    monkeypatch.delitem(sys.modules, f"bgekit.{old}", raising=False)  # What another test imported is silent.
    with pytest.warns(
        DeprecationWarning, match=rf"bgekit\.{old} has moved: import from bgekit\.{_moved.MOVED[old][0]}"
    ):
        importlib.import_module(f"bgekit.{old}")
    sys.modules.pop(f"bgekit.{old}")
    for place in _moved.MOVED[old]:
        importlib.import_module(f"bgekit.{place}")


@pytest.mark.filterwarnings("ignore:.*has moved:DeprecationWarning")
@pytest.mark.parametrize(
    ("old", "names"),
    [
        ("encoding.records", "read_records Record RecordReader"),
        ("encoding.shards", "encode_to_shards load_shards Chunks"),
        ("encoding.progress", "EncodeProgress"),
        ("encoding.embedder", "FlagModel"),
        ("encoding.result", "Embeddings"),
        ("search.building", "index_records index_shards"),
        ("reranking.reranker", "FlagReranker"),
        ("reranking.network", "load_trainable"),
        ("reranking.saving", "write_reranker"),
        ("models.saving", "write_checkpoint save_model"),
        ("evaluation.reading", "read_tasks"),
    ],
)
def test_what_0_1_0_documented_is_found_at_the_old_paths(old, names):
    module = importlib.import_module(f"bgekit.{old}")
    for name in names.split():
        assert getattr(module, name).__module__.startswith("bgekit.")
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        module.nothing  # noqa: B018


def test_the_warning_names_the_line_that_imports():
    code = "import warnings; warnings.simplefilter('error')\nfrom bgekit.encoding.records import read_records"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert 'File "<string>", line 2' in result.stderr
    assert "DeprecationWarning: bgekit.encoding.records has moved: import from bgekit.data." in result.stderr
