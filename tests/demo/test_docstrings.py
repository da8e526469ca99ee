"""Docstrings by their public names, wherever a release of Python keeps the code."""

from __future__ import annotations

from bgekit.demo import documented


def entries(root, module, files):
    """The documentation of a module of a made-up library; files by their path."""
    for name, text in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    base = root / module
    return dict(documented(base / "__init__.py" if base.is_dir() else base.with_suffix(".py"), module, root))


def test_a_source_that_cannot_be_parsed_has_no_documentation(tmp_path):
    assert entries(tmp_path, "broken", {"broken.py": "def (:\n"}) == {}
    assert dict(documented(tmp_path / "missing.py", "missing", tmp_path)) == {}


def test_definitions_under_conditions_and_private_names(tmp_path):
    text = '"""Doc."""\nif True:\n    class A:\n        def f(self):\n            "Of f."\n        def _g(self): ...\n'
    assert entries(tmp_path, "m", {"m.py": text}) == {"m": "Doc.", "m.A": "", "m.A.f": "Of f."}


LOCAL = '''
from ._abc import PathBase
__all__ = ["Path", "PurePath"]
class PurePath:
    """Pure."""
class Path(PathBase, PurePath):
    """A path."""
    def glob(self):
        """Of Path."""
def helper():
    """Not exported."""
'''
ABC = '''
class Hidden:
    """Not exported either."""
class PathBase(Hidden):
    """Private."""
    def glob(self):
        """Of PathBase."""
    def exists(self):
        """Whether it is there."""
'''


def layout_of_3_13(root):
    """As pathlib in Python 3.13: a package whose public names live in private modules."""
    (root / "paths").mkdir()
    (root / "paths" / "_abc.py").write_text(ABC)
    (root / "paths" / "_local.py").write_text(LOCAL)
    initial = '"""Paths."""\nfrom paths._abc import PathBase as _Base\nfrom paths._local import *\n__all__ = _a + _b\n'
    (root / "paths" / "__init__.py").write_text(initial)
    return list(documented(root / "paths" / "__init__.py", "paths", root))


def test_what_a_package_takes_from_its_private_modules_is_its_own(tmp_path):
    found = layout_of_3_13(tmp_path)
    assert found[0] == ("paths", "Paths.")
    # Its own methods come before inherited ones of the same name: of two records of a name the first is kept.
    of_path = [text for name, text in found if name == "paths.Path.glob"]
    assert of_path == ["Of Path.", "Of PathBase."]
    assert dict(found)["paths.Path.exists"] == "Whether it is there."
    assert {name for name, _ in found} == {"paths", "paths.PurePath", "paths.Path", "paths.Path.glob",
                                           "paths.Path.exists"}  # fmt: skip


def test_a_written_out_all_decides_what_of_an_import_is_public(tmp_path):
    private = 'class Set:\n    """A set."""\n'
    user = "from _weak import Set\n"
    assert "user.Set" in entries(tmp_path, "user", {"_weak.py": private, "user.py": user})
    other = entries(tmp_path, "other", {"other.py": user + '__all__ = ["f"]\ndef f():\n    "Of f."\n'})
    assert other == {"other": "", "other.f": "Of f."}


def test_imports_that_lead_nowhere_or_in_a_circle(tmp_path):
    files = {
        "pack/__init__.py": "from ._b import *\nfrom ._missing import x\nfrom . import _b\nclass A(A): ...\n",
        "pack/_b.py": "from . import *\nfrom ._a import *\nfrom ... import _c\n",
        "pack/_a.py": "from ._b import *\nclass B: ...\n",
    }
    assert set(entries(tmp_path, "pack", files)) == {"pack", "pack.A", "pack.B"}
