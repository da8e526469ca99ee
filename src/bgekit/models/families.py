"""The table of known model families: what their files do not say, with the source of each fact."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Final

from . import family_bge, family_prompted, family_sentence
from .family import Family, Kind
from .prompts import Prompt

__all__ = ["FAMILIES", "Family", "Kind", "Prompt", "find_family", "model_name"]

FAMILIES: Final[tuple[Family, ...]] = (
    *family_bge.FAMILIES,
    *family_prompted.FAMILIES,
    *family_sentence.FAMILIES,
)

_BY_NAME: Final = {name.lower(): family for family in FAMILIES for name in family.names}


def model_name(name_or_path: str) -> str:
    """The part of a hub id or path that names the model.

    `BAAI/bge-m3` -> `bge-m3`; `runs/bge-m3/checkpoint-500` -> `bge-m3`;
    a hub cache folder `models--BAAI--bge-m3/snapshots/<hash>` -> `bge-m3`;
    `packaged:all-MiniLM-L6-v2` -> `all-MiniLM-L6-v2`.
    """
    parts = [part for part in PurePath(name_or_path.replace("\\", "/")).parts if part not in ("/", ".")]
    for position, part in enumerate(parts):
        if part.startswith("models--") and parts[position + 1 : position + 2] == ["snapshots"]:
            return part.split("--")[-1]
    if len(parts) > 1 and re.fullmatch(r"checkpoint-\d+", parts[-1]):
        parts.pop()
    return parts[-1].removeprefix("packaged:") if parts else name_or_path


def find_family(name_or_path: str) -> Family | None:
    """The family of a model by the last part of its name or path, None when it is not known."""
    return _BY_NAME.get(model_name(name_or_path).lower())
