"""What `import bgekit` gives: names, errors, versions; nothing heavy until it is used."""

from __future__ import annotations

import builtins
import inspect
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

import bgekit
from bgekit import errors


def test_public_names_are_few_and_all_there() -> None:
    assert set(bgekit.__all__) >= {"BgekitError", "Embeddings", "FlagModel", "ModelCard", "read_card", "__version__"}
    assert dir(bgekit) == sorted(bgekit.__all__)
    for name in bgekit.__all__:
        assert getattr(bgekit, name) is not None
    assert bgekit.FlagModel is bgekit.FlagModel


def test_a_wrong_name_is_an_ordinary_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'bgekit' has no attribute 'FlagModle'"):
        _ = bgekit.FlagModle  # type: ignore[attr-defined]
    with pytest.raises(ImportError):
        from bgekit import FlagModle  # type: ignore[attr-defined]  # noqa: F401
    assert not hasattr(bgekit, "torch")


def test_heavy_imports_wait_for_the_name_that_needs_them() -> None:
    program = (
        "import sys, bgekit\n"
        "heavy = {'torch', 'transformers', 'numpy', 'huggingface_hub', 'tokenizers'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "bgekit.BgekitError\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "bgekit.ModelCard\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
        "bgekit.FlagModel\n"
        "assert 'transformers' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def error_classes() -> dict[str, type[BaseException]]:
    classes = {name: value for name, value in vars(errors).items() if inspect.isclass(value)}
    return {name: value for name, value in classes.items() if issubclass(value, BaseException)}


def test_the_tree_of_errors_is_the_one_that_is_drawn() -> None:
    drawn = re.findall(r"^(│ +)?[├└]── (\w+) +(?:\((\w+)\))?", errors.__doc__ or "", re.MULTILINE)
    found = error_classes()
    assert {name for _, name, _ in drawn} | {"BgekitError"} == found.keys()
    above = ""
    for below, name, builtin in drawn:
        bases = (found[above],) if below else (errors.BgekitError, getattr(builtins, builtin))
        assert found[name].__bases__ == bases, name
        above = above if below else name


@pytest.mark.parametrize("name", sorted(error_classes()))
def test_errors_travel_between_processes(name: str) -> None:
    kind = error_classes()[name]
    copy = pickle.loads(pickle.dumps(kind("what was given, what was expected")))
    assert type(copy) is kind and str(copy) == "what was given, what was expected"


def test_a_missing_extra_says_how_to_install_it() -> None:
    with pytest.raises(errors.MissingExtraError, match=r"pip install 'bgekit\[faiss\]'"):
        errors.import_extra("no_such_package", "faiss")
    with pytest.raises(ImportError):
        errors.import_extra("no_such_package.part", "faiss")
    assert errors.import_extra("json", "faiss").__name__ == "json"


def test_an_extra_that_is_broken_is_not_called_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_extra.py").write_text("import something_it_needs")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="something_it_needs") as caught:
        errors.import_extra("broken_extra", "faiss")
    assert not isinstance(caught.value, errors.MissingExtraError)


def test_versions_of_packages_that_are_there():
    from bgekit._version import package_versions

    assert list(package_versions("numpy", "no-such-package-at-all")) == ["bgekit", "numpy"]
