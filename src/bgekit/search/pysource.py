"""Names and docstrings of a Python module, read from its source without running it."""

from __future__ import annotations

import ast
import logging
import warnings
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Final

logger = logging.getLogger(__name__)

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
        """What a module defines, and what it imports from private ones: its name there -> its source, and the file.

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
