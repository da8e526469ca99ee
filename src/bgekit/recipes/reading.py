"""YAML whose every value knows the line that it stands on.

Scalars stay the texts that they are written as: what `1e-5` or `no` means is for the verb to say that gets it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import yaml  # type: ignore[import-untyped]

from ..errors import BgekitError

_TAGS: Final = "tag:yaml.org,2002:"
#: What plain YAML is made of.
_KNOWN: Final = frozenset(_TAGS + each for each in "str int float bool null timestamp merge value map seq".split())
#: Depth and number of values, beyond which a file is no recipe (aliases can multiply without end).
_DEEPEST: Final = 10
_MOST: Final = 100_000
#: A reference in a list of one line, where braces belong to YAML.
_BRACE: Final = 'in [lists, on one line] write references in quotes: ["${name}"]'


class RecipeError(BgekitError, ValueError):
    """A recipe cannot be run as it is written; names file, line and stage."""


class Text(str):
    """A scalar.

    Attributes:
        line: Its line in the file, from 1; 0 for what comes from elsewhere.
        boolean: What it means where yes or no is expected, None if it is neither.
    """

    line: int
    boolean: bool | None

    def __new__(cls, value: str, line: int = 0, boolean: bool | None = None) -> Text:
        """A text on a line."""
        made = super().__new__(cls, value)
        made.line, made.boolean = line, boolean
        return made


class Items(list[Any]):
    """A list; `line` is where it begins."""

    line: int = 0


class Entries(dict[str, Any]):
    """A mapping; its keys are `Text`, `line` is where it begins."""

    line: int = 0

    def line_of(self, name: str) -> int:
        """The line of a key."""
        return next((key.line for key in self if key == name and isinstance(key, Text)), self.line)


def read_yaml(path: Path) -> Entries:
    """The mapping that a file holds: of `Text`, `Items`, `Entries`, and None where nothing is written.

    Raises:
        RecipeError: the file cannot be read, is no YAML, or has a key twice; names file and line.
    """
    try:
        content = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise RecipeError(f"there is no recipe {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read {path}: {error}") from error
    loader = yaml.SafeLoader(content)
    try:
        root = loader.get_single_node()
        value = _Reader(path, loader).value(root) if root is not None else None
    except yaml.YAMLError as error:
        raise RecipeError(_syntax(path, content, error)) from error
    finally:
        loader.dispose()
    if not isinstance(value, Entries):
        raise RecipeError(f"{path} is no recipe: a mapping with `stages` is expected")
    return value


def parse_scalar(text: str) -> Any:
    """A value given on the command line, as it would be in the file: a scalar or a list.

    Raises:
        RecipeError: it is neither.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        value = Text("") if node is None else _Reader(Path("--set"), loader).value(node)
    except yaml.YAMLError:
        return Text(text)  # Such as a text with a colon: it needs no quotes here.
    finally:
        loader.dispose()
    if isinstance(value, Entries):
        return Text(text)
    return value if isinstance(value, Items) else Text(text, boolean=getattr(value, "boolean", None))


class _Reader:
    def __init__(self, path: Path, loader: Any) -> None:
        self._path, self._loader, self._count = path, loader, 0

    def value(self, node: Any, depth: int = 0) -> Any:
        line = node.start_mark.line + 1
        self._count += 1
        if depth > _DEEPEST or self._count > _MOST:
            raise RecipeError(f"{self._path}, line {line}: values within values go too deep")
        if node.tag not in _KNOWN:
            raise RecipeError(f"{self._path}, line {line}: tags such as {node.tag} have no place in a recipe")
        if isinstance(node, yaml.ScalarNode):
            if node.tag == _TAGS + "null":
                return None
            boolean = yaml.SafeLoader.bool_values.get(node.value.lower()) if node.tag == _TAGS + "bool" else None
            return Text(node.value, line, boolean)
        if isinstance(node, yaml.SequenceNode):
            items = Items(self.value(each, depth + 1) for each in node.value)
            items.line = line
            return items
        return self._mapping(node, line, depth)

    def _mapping(self, node: Any, line: int, depth: int) -> Entries:
        self._check_keys(node)
        own = {id(key) for key, _ in node.value}
        self._loader.flatten_mapping(node)  # `<<: *shared`: what is merged comes first, so own keys replace it.
        entries = Entries()
        entries.line = line
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise RecipeError(f"{self._path}, line {key.start_mark.line + 1}: a key must be a word")
            if id(key) in own:
                entries.pop(key.value, None)  # So that the key has the line of its own.
            entries[Text(key.value, key.start_mark.line + 1)] = self.value(value, depth + 1)
        return entries

    def _check_keys(self, node: Any) -> None:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            name = str(key.value)
            if name in lines:
                raise RecipeError(f"{self._path}, line {line}: {name!r} stands on line {lines[name]} already")
            lines[name] = line


def _syntax(path: Path, content: str, error: Any) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    if mark is None:
        return f"{path} is no YAML: {problem}"
    lines = content.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    hint = f" ({_BRACE})" if "${" in line and "[" in line else ""
    return f"{path}, line {mark.line + 1}: {problem}{hint}"
