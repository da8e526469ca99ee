"""A real corpus that every machine has: the documentation of Python's standard library.

Docstrings of modules written in Python are read from their sources, which are parsed and never run. What a public
module takes from a private one (`from ._local import Path`) has its public name, wherever a release of Python keeps
it. Functions and types written in C have no source, so the modules of a fixed list, all harmless, are looked into. The
language's own topics (`with`, `lambda`, string formatting, ...) come with pydoc.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import sys
import sysconfig
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from ..encoding.records import Record
from .pysource import documented

logger = logging.getLogger(__name__)

#: Characters below which a docstring ("See base class.") helps nobody.
_LEAST: Final = 30

#: Not documentation for users: tests, and modules whose strings belong to something else.
_SKIPPED: Final = frozenset(
    ("antigravity", "this", "test", "idlelib", "lib2to3", "turtledemo", "ensurepip", "pydoc_data", "site-packages",
     "dist-packages", "distutils", "encodings", "tests", "__phello__", "msilib", "lib-dynload")
)  # fmt: skip

#: Modules in C, and the modules whose names their content goes by. Private ones serve a public one.
_IN_C: Final = {
    "builtins": "", "math": "math", "cmath": "cmath", "itertools": "itertools", "sys": "sys", "time": "time",
    "gc": "gc", "array": "array", "binascii": "binascii", "zlib": "zlib", "select": "select", "mmap": "mmap",
    "unicodedata": "unicodedata", "marshal": "marshal", "atexit": "atexit", "faulthandler": "faulthandler",
    "posix": "os", "nt": "os", "_io": "io", "_functools": "functools", "_collections": "collections",
    "_operator": "operator", "_random": "random", "_socket": "socket", "_struct": "struct", "_datetime": "datetime",
    "_csv": "csv", "_json": "json", "_sqlite3": "sqlite3", "_hashlib": "hashlib", "_heapq": "heapq",
    "_bisect": "bisect", "_thread": "threading", "_queue": "queue", "_asyncio": "asyncio", "_ssl": "ssl",
    "_pickle": "pickle", "_decimal": "decimal", "_elementtree": "xml.etree.ElementTree", "_codecs": "codecs",
    "_warnings": "warnings", "_weakref": "weakref", "_contextvars": "contextvars", "_statistics": "statistics",
    "_lzma": "lzma", "_bz2": "bz2", "_string": "string", "_uuid": "uuid", "_zoneinfo": "zoneinfo",
    "_abc": "abc", "_signal": "signal", "_tracemalloc": "tracemalloc", "_locale": "locale", "fcntl": "fcntl",
    "pwd": "pwd", "grp": "grp", "resource": "resource", "termios": "termios", "errno": "errno",
}  # fmt: skip


def standard_library() -> Iterator[Record]:
    """The documentation of the Python that runs this, a record for each module, class, function and topic.

    A record's id is the qualified name (`pathlib.Path.glob`, or `topic: with`), its text begins with it. Names with
    a leading underscore are left out, and so are copies: the first text of several equal ones stays.
    """
    names: set[str] = set()
    texts: set[str] = set()
    for name, text in _entries():
        text = _tidy(text)
        if len(text) >= _LEAST and name not in names and text not in texts:
            names.add(name)
            texts.add(text)
            yield Record(name, f"{name} {text}")


def _entries() -> Iterator[tuple[str, str]]:
    yield from _topics()
    for module, public in _IN_C.items():
        yield from _compiled(module, public)
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if parts and not _SKIPPED.intersection(parts) and not any(part.startswith("_") for part in parts):
            yield from documented(path, ".".join(parts), root)


def _topics() -> Iterator[tuple[str, str]]:
    from pydoc_data.topics import topics

    for name, text in sorted(topics.items()):
        yield f"topic: {name}", text


def _compiled(module: str, public: str) -> Iterator[tuple[str, str]]:
    """Names and docstrings of a module in C."""
    if module in ("posix", "nt") and module not in sys.builtin_module_names:
        return
    try:
        content = vars(importlib.import_module(module))
    except ImportError as error:
        logger.info("%s is not in this Python (%s): left out", module, error)
        return
    for name, value in sorted(content.items()):
        full = f"{public}.{name}" if public else name
        if name.startswith("_") or not (inspect.isroutine(value) or isinstance(value, type)):
            continue
        yield full, _documentation(value)
        if isinstance(value, type):
            for member, inner in sorted(vars(value).items()):
                if not member.startswith("_") and (inspect.isroutine(inner) or inspect.isdatadescriptor(inner)):
                    yield f"{full}.{member}", _documentation(inner)


def _documentation(value: Any) -> str:
    text = getattr(value, "__doc__", None)
    return text if isinstance(text, str) else ""


def _tidy(text: str) -> str:
    first, newline, rest = text.strip().partition("\n")
    return first.strip() + newline + textwrap.dedent(rest)
