"""A real corpus that every machine has: the documentation of Python's standard library.

Docstrings of modules written in Python are read from their sources, which are parsed and never run. What a public
module takes from a private one (`from ._local import Path`) has its public name, wherever a release of Python keeps
it. Functions and types written in C have no source, so the modules of a fixed list, all harmless, are looked into. The
language's own topics (`with`, `lambda`, string formatting, ...) come with pydoc.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import json
import logging
import re
import sys
import sysconfig
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from .data.records import Record
from .files.atomic import OutputFolder, failing

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
    from pydoc_data.topics import topics

    for name, text in sorted(topics.items()):
        yield f"topic: {name}", text
    for module, public in _IN_C.items():
        yield from _compiled(module, public)
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if parts and not _SKIPPED.intersection(parts) and not any(part.startswith("_") for part in parts):
            yield from documented(path, ".".join(parts), root)


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


_Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
#: How far definitions are followed from module to module.
_DEEPEST: Final = 4


def documented(path: Path, module: str, root: Path) -> Iterator[tuple[str, str]]:
    """Qualified names and docstrings, empty ones too: of the module, its public functions and classes, their methods.

    What it imports from private modules is its own as much as what it defines, and so are methods that a class of its
    own inherits from a private one. A file that cannot be read has none.

    Args:
        path: The source file.
        module: The module's name.
        root: The folder that absolute imports are looked up in.
    """
    source = _parsed(path)
    if source is None:
        return
    yield module, ast.get_docstring(source) or ""
    files = _Files(root)
    exported = _exported(source)
    for name, (node, home) in files.definitions(path).items():
        if not name.startswith("_") and (home == path or exported is None or name in exported):
            yield from _documented(f"{module}.{name}", node, home, files)


def _documented(name: str, node: _Definition, home: Path, files: _Files, depth: int = 0) -> Iterator[tuple[str, str]]:
    if depth == 0:
        yield name, ast.get_docstring(node) or ""
    if not isinstance(node, ast.ClassDef):
        return
    for inner in _flat(node.body):
        if isinstance(inner, _Definition) and not inner.name.startswith("_"):
            yield from _documented(f"{name}.{inner.name}", inner, home, files)
    known = files.definitions(home) if node.bases and depth < _DEEPEST else {}
    for base in node.bases:
        found = known.get(base.id) if isinstance(base, ast.Name) else None
        # A public base has entries of its own.
        if found is not None and (found[0].name.startswith("_") or _is_private(found[1], files.root)):
            yield from _documented(name, *found, files, depth + 1)


class _Files:
    """The modules below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def definitions(self, path: Path, depth: int = 0) -> dict[str, tuple[_Definition, Path]]:
        """Definitions of a module, imports from private ones included: name -> source and file.

        Args:
            path: The module's file.
            depth: How many modules have led here.
        """
        source = _parsed(path)
        found: dict[str, tuple[_Definition, Path]] = {}
        if source is None:
            return found
        for node in _flat(source.body):
            if isinstance(node, _Definition):
                found[node.name] = (node, path)
            elif isinstance(node, ast.ImportFrom) and depth < _DEEPEST:
                home = self._private_module(node, path)
                if home is not None:
                    there = self.definitions(home, depth + 1)
                    exported = _exported(_parsed(home))
                    for alias in node.names:
                        if alias.name == "*":
                            public = exported if exported is not None else [name for name in there if name[0] != "_"]
                            found |= {name: there[name] for name in public if name in there}
                        elif alias.name in there:
                            found[alias.asname or alias.name] = there[alias.name]
        return found

    def _private_module(self, node: ast.ImportFrom, path: Path) -> Path | None:
        """The source of the module that an import in `path` names, if that is private."""
        parts = tuple(node.module.split(".")) if node.module else ()
        if node.level:
            package = path.relative_to(self.root).parts[:-1]
            parts = package[: len(package) - node.level + 1] + parts
        if not any(part.startswith("_") for part in parts):
            return None
        base = self.root.joinpath(*parts)
        return next((file for file in (base.with_suffix(".py"), base / "__init__.py") if file.is_file()), None)


def _is_private(path: Path, root: Path) -> bool:
    return any(part.startswith("_") and part != "__init__" for part in path.relative_to(root).with_suffix("").parts)


def _flat(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements, those under conditions and in the first part of `try` included."""
    for node in body:
        if isinstance(node, ast.If | ast.Try):
            yield from _flat(node.body)
        else:
            yield node


def _exported(source: ast.Module | None) -> list[str] | None:
    """`__all__`, if it is written out."""
    for node in source.body if source is not None else ():
        if isinstance(node, ast.Assign) and any(isinstance(e, ast.Name) and e.id == "__all__" for e in node.targets):
            try:
                return [str(name) for name in ast.literal_eval(node.value)]
            except (ValueError, TypeError):
                return None
    return None


@lru_cache(maxsize=64)
def _parsed(path: Path) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # Old escapes in the sources are not ours to report.
            return ast.parse(path.read_bytes(), str(path))
    except (OSError, SyntaxError, ValueError) as error:
        logger.info("%s cannot be read (%s): left out", path, error)
        return None


#: Characters of a query, and of the least that must follow it.
_QUERY: Final = (20, 200)
_PASSAGE: Final = 60
#: Longer passages are cut here, at a space.
_LONGEST: Final = 800
_SENTENCE: Final = re.compile(r"(.+?[.!?])\s+(?=\S)")
#: Of 100 modules, those for testing and those for choosing; the others are for training.
_TEST: Final = 30
_DEV: Final = 10


@dataclass(frozen=True)
class Pair:
    """A query and the passage that answers it.

    Attributes:
        id: Qualified name of what is documented.
        query: The first sentence of its documentation.
        passage: Its name and the rest.
        split: `train`, `dev` or `test`.
    """

    id: str
    query: str
    passage: str
    split: str


def pairs() -> Iterator[Pair]:
    """Pairs of the Python that runs this; no two have the same query or the same passage."""
    seen: set[str] = set()
    for record in standard_library():
        if record.id.startswith("topic: "):
            continue
        text = " ".join(record.text.removeprefix(f"{record.id} ").split())
        found = _SENTENCE.match(text)
        if found is None:
            continue
        query, rest = found[1], text[found.end() :]
        if not _QUERY[0] <= len(query) <= _QUERY[1] or len(rest) < _PASSAGE or seen.intersection((query, rest)):
            continue
        seen.update((query, rest))
        yield Pair(record.id, query, f"{record.id} {_cut(rest)}", split_of(record.id))


def split_of(name: str) -> str:
    """The split of a qualified name: that of its outermost module, whatever else is there."""
    place = int.from_bytes(hashlib.sha256(name.partition(".")[0].encode()).digest()[:4], "big") % 100
    return "test" if place < _TEST else "dev" if place < _TEST + _DEV else "train"


def write_pairs(folder: str) -> dict[str, int]:
    """Write the pairs as data for training, for `bge eval`, and as plain texts for pre-training.

    Args:
        folder: Gets `train.jsonl` ({"query", "pos", "neg"}), `texts.jsonl` ({"text"}, none of a held-out module) and
            `eval/` in the layout of BEIR: all passages, queries and judgements of the splits `dev` and `test`.

    Returns:
        Numbers of training rows, of texts, of passages, and of queries of each split.

    Raises:
        OutputError: the folder cannot be written.
    """
    found = list(pairs())
    held = [pair for pair in found if pair.split != "train"]
    train = [{"query": each.query, "pos": [each.passage], "neg": []} for each in found if each.split == "train"]
    texts = [{"text": each.text} for each in standard_library() if split_of(each.id) == "train"]
    splits = {split: [pair for pair in held if pair.split == split] for split in ("dev", "test")}
    with OutputFolder(folder) as output:
        _write(output, "train.jsonl", map(_line, train))
        _write(output, "texts.jsonl", map(_line, texts))
        with failing(f"write to {folder}"):
            (output.path / "eval" / "qrels").mkdir(parents=True, exist_ok=True)
        corpus = ({"_id": each.id, "title": "", "text": each.passage} for each in found)
        _write(output, "eval/corpus.jsonl", map(_line, corpus))
        _write(output, "eval/queries.jsonl", (_line({"_id": each.id, "text": each.query}) for each in held))
        for split, those in splits.items():
            rows = (f"{each.id}\t{each.id}\t1\n" for each in those)
            _write(output, f"eval/qrels/{split}.tsv", ["query-id\tcorpus-id\tscore\n", *rows])
    return {"train": len(train), "texts": len(texts), "passages": len(found)} | {
        split: len(those) for split, those in splits.items()
    }


def _write(output: OutputFolder, name: str, lines: Any) -> None:
    with output.create(name) as file:
        for line in lines:
            file.write(line.encode())


def _line(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=True) + "\n"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST].rpartition(" ")[0]
