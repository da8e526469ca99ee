"""`serve.yaml`: models with their settings, and settings of the server.

models:
  small: BAAI/bge-small-en-v1.5
  zh: {path: BAAI/bge-small-zh-v1.5, dtype: float32, max_length: 256}
max_wait: 5
devices: [cpu, cpu]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from ..errors import DataError, UsageError
from ..files.remote import open_binary
from .models import OPTIONS
from .settings import Settings


def read_config(path: str | Path) -> tuple[dict[str, str], dict[str, dict[str, Any]], dict[str, Any]]:
    """The models of a file, their settings, and the server's.

    Args:
        path: The file, which may be at a URL.

    Returns:
        Name -> model; name -> settings of that model; settings of the server, by their names in `Settings`.

    Raises:
        DataError: it cannot be read, or something in it is not known.
    """
    try:
        content = yaml.safe_load(_text(path))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} must be a mapping with `models`, not {type(content).__name__}")
    settings = {str(key).replace("-", "_"): value for key, value in content.items() if key != "models"}
    known = [each.name for each in fields(Settings)]
    for key in settings:
        if key not in known:
            raise DataError(f"{path}: there is no setting {key!r}; there are models, {', '.join(known)}")
    for key in ("devices", "hidden"):
        if key in settings:
            value = settings[key]
            settings[key] = tuple(map(str, value if isinstance(value, list) else [value]))
    models: dict[str, str] = {}
    options: dict[str, dict[str, Any]] = {}
    given = content.get("models") or {}
    if not isinstance(given, dict):
        raise DataError(f"{path}: `models` must be a mapping of names, not {type(given).__name__}")
    for name, model in given.items():
        own = {"path": model} if isinstance(model, str) else model
        if not isinstance(own, dict) or not isinstance(own.get("path"), str):
            raise DataError(f"{path}: the model {name} must be a folder or an id, or a mapping with `path`")
        models[str(name)] = own["path"]
        options[str(name)] = {key: value for key, value in own.items() if key != "path"}
        for key in options[str(name)]:
            if key not in OPTIONS:
                raise DataError(
                    f"{path}: the model {name} has no setting {key!r}; there are path, {', '.join(OPTIONS)}"
                )
    return models, options, settings


def named(models: Sequence[str]) -> dict[str, str]:
    """Models of a command line, `[NAME=]MODEL`, by their names.

    Without one, it is the last part of the id or path; of `packaged:X` it is X.

    Raises:
        UsageError: two models have one name.
    """
    found: dict[str, str] = {}
    for given in models:
        name, equals, path = given.partition("=")
        if not equals or "/" in name:  # A path may hold one.
            name, path = name_of(given), given
        if not name or not path:
            raise UsageError(f"{given!r} is not [NAME=]MODEL")
        if name in found:
            raise UsageError(f"two models are called {name}: give one another name, as NAME={path}")
        found[name] = path
    return found


def name_of(model: str) -> str:
    """The name that a model has without another."""
    bare = model.removeprefix("packaged:").replace("\\", "/").rstrip("/").rpartition("/")[2]
    return Path(model).resolve().name if bare in ("", ".", "..") else bare


def read_keys(path: str | Path) -> list[str]:
    """The keys in a file, one a line; empty lines and those that begin with # do not count.

    Raises:
        DataError: it cannot be read, or has none.
    """
    try:
        lines = _text(path).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not keys:
        raise DataError(f"{path} has no key: write one a line")
    return keys


def _text(path: str | Path) -> str:
    with open_binary(path) as file:
        return file.read().decode("utf-8")
