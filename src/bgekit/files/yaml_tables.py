"""YAML, read by the parser in C where PyYAML was built with it (12 ms instead of 96 for the table of families)."""

from __future__ import annotations

from importlib import resources
from typing import Any


def read_yaml(text: str) -> Any:
    """The plain values of a text: dictionaries, lists, strings, numbers, dates.

    Raises:
        yaml.YAMLError: the text is not YAML.
    """
    import yaml  # type: ignore[import-untyped]  # Not needed by those who open no such file.

    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def packaged_yaml(package: str, name: str) -> Any:
    """The plain values of a YAML file that lies beside a package's modules."""
    return read_yaml(resources.files(package).joinpath(name).read_text("utf-8"))
