"""What is known of a model, and where each value was found."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from .prompts import Prompt

logger = logging.getLogger(__name__)


class Facts:
    """Values with their sources; the first source of a field is believed, a caller overrides it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.values: dict[str, Any] = {}
        self.sources: dict[str, str] = {}

    def add(self, source: str, values: Mapping[str, Any]) -> None:
        """Take the values of fields that are not known yet."""
        for key, value in values.items():
            if key not in self.values:
                self.values[key], self.sources[key] = value, source

    def override(self, source: str, values: Mapping[str, Any]) -> None:
        """Take the values whatever is known, with a warning that names both where they contradict."""
        for key, value in values.items():
            known, where = self.values.get(key), self.sources.get(key, "default")
            if where != "default" and value != known and not _is_off(key, value):
                logger.warning(
                    "%s of %s is %r according to the %s, but the caller says %r: the caller's is used",
                    key, self.name, shown(known), where, shown(value),
                )  # fmt: skip
            self.values[key], self.sources[key] = value, source


def _is_off(key: str, value: Any) -> bool:
    # Leaving a prompt away, or cutting texts earlier, is a choice and not a contradiction.
    return (key in ("query", "document") and not value) or key == "max_length"


def shown(value: Any) -> Any:
    """A value as a message has it."""
    return str(value) if isinstance(value, Prompt) else value
