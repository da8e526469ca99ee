"""What the wheel carries, and that the tests run against it."""

import importlib.metadata
import importlib.util
import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def folder_of(package):
    spec = importlib.util.find_spec(package)
    assert spec is not None, f"{package} is not installed"
    assert spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations))).resolve()


@pytest.mark.parametrize("package", ["bgekit", "FlagEmbedding"])
def test_the_built_wheel_is_what_is_tested(package):
    site = os.environ.get("BGEKIT_TEST_WHEEL")
    if not site:
        pytest.skip("runs against the sources; make test runs against the wheel")
    assert folder_of(package) == Path(site).resolve() / package


def test_every_source_file_is_in_the_wheel():
    site = os.environ.get("BGEKIT_TEST_WHEEL")
    if not site:
        pytest.skip("runs against the sources; make test runs against the wheel")
    sources = ROOT / "src"
    expected = {
        path.relative_to(sources) for path in sources.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }
    assert {path for path in expected if not (Path(site) / path).is_file()} == set()


def test_types_are_advertised():
    assert (folder_of("bgekit") / "py.typed").is_file()


def test_the_command_is_installed():
    scripts = importlib.metadata.distribution("bgekit").entry_points
    assert {script.name: script.value for script in scripts} == {"bge": "bgekit.cli.main:main"}


def test_version_has_one_source():
    import bgekit

    assert bgekit.__version__ == importlib.metadata.version("bgekit")


def test_changelog_names_the_version():
    version = importlib.metadata.version("bgekit")
    assert re.search(rf"^## {re.escape(version)}\b", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)


def test_every_named_extra_exists():
    """`import_extra(module, extra)` tells users to install an extra: it must be there."""
    declared = set(importlib.metadata.metadata("bgekit").get_all("Provides-Extra") or [])
    pattern = re.compile(r"import_extra\(\s*\"[\w.]+\",\s*\"([\w-]+)\"", re.DOTALL)
    for path in sorted((ROOT / "src").rglob("*.py")):
        named = set(pattern.findall(path.read_text("utf-8")))
        assert named <= declared, f"{path.name} names extras that pyproject.toml lacks: {named - declared}"


def test_constraints_pin_every_dependency():
    pins = set(re.findall(r"^([A-Za-z0-9._-]+)==", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE))
    pinned = {re.sub(r"[-_.]+", "-", name).lower() for name in pins}
    for requirement in importlib.metadata.requires("bgekit") or []:
        name = re.sub(r"[-_.]+", "-", re.match(r"[A-Za-z0-9._-]+", requirement)[0]).lower()
        assert name in pinned | {"bgekit"}, f"{name} has no pin: run make lock"


def test_one_range_of_python_versions():
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'^requires-python = ">=3\.(\d+),<3\.(\d+)"$', pyproject, re.MULTILINE)
    assert found is not None
    first, last = int(found[1]), int(found[2]) - 1
    listed = re.findall(r"Programming Language :: Python :: 3\.(\d+)", pyproject)
    assert list(map(int, listed)) == list(range(first, last + 1))
    assert f'python_version = "3.{first}"' in pyproject  # What mypy checks for.
    for name in ("README.md", "CONTRIBUTING.md", "Makefile"):
        said = set(re.findall(r"Python (3\.\d+ to 3\.\d+)", (ROOT / name).read_text(encoding="utf-8")))
        assert said == {f"3.{first} to 3.{last}"}, name
    script = (ROOT / "scripts" / "setup_env.sh").read_text(encoding="utf-8")
    assert "requires-python" in script and not re.search(r"3\.\d+ to 3\.\d+", script)
