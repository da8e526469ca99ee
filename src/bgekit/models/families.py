"""The table of known model families: what their files do not say, with the source of each fact."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from . import family_bge, family_prompted, family_sentence
from .family import Family, Kind
from .prompts import Prompt

__all__ = ["FAMILIES", "Family", "Kind", "Prompt", "find_family", "known_dimension", "known_name", "model_name"]

FAMILIES: Final[tuple[Family, ...]] = (
    *family_bge.FAMILIES,
    *family_prompted.FAMILIES,
    *family_sentence.FAMILIES,
)

#: Who publishes the models of the table, or copies of them: downloads put it before a model's name.
_OWNERS: Final = (
    "BAAI", "AI-ModelScope", "Xorbits", "intfloat", "sentence-transformers", "thenlper", "Alibaba-NLP", "iic", "Qwen",
    "moka-ai", "shibing624", "GanymedeNil", "silk-road", "maidalun1020", "netease-youdao", "nomic-ai", "lightonai",
    "Snowflake", "mixedbread-ai", "WhereIsAI", "google", "NovaSearch", "dunzhang", "infgrad", "hkunlp", "Salesforce",
    "Linq-AI-Research", "ibm-granite", "Muennighoff", "bigscience", "openai", "Pro", "text-embedding",
)  # fmt: skip
#: What only says of which branch a copy is, or how its weights are kept.
_FORMS: Final = frozenset("main master latest hf safetensors pytorch onnx gguf fp32 fp16 bf16 f32 f16 int8".split())
#: Folders below a model's own that hold its files and do not name it.
_INNER_FOLDER: Final = re.compile(
    r"models?|(checkpoint|ckpt)s?([-_.]?(\d+|last|latest))?|weights|snapshots?|files|default|\d{1,3}|[0-9a-f]{40}"
    rf"|{'|'.join(sorted(_FORMS))}",
    re.IGNORECASE,
)
_SEPARATORS: Final = re.compile(r"[-_.\s]+")


def _words(name: str) -> list[str]:
    """Lower-case words of a name; ModelScope writes `v1___5` for `v1.5`."""
    return [word for word in _SEPARATORS.split(name.lower()) if word]


def _key(words: Sequence[str]) -> str:
    return "".join(words)


_BY_KEY: Final = {_key(_words(name)): (family, name) for family in FAMILIES for name in family.names}
_OWNER_WORDS: Final = tuple(tuple(_words(owner)) for owner in _OWNERS)


def model_name(name_or_path: str) -> str:
    """The part of a hub id or path that names the model.

    `BAAI/bge-m3` -> `bge-m3`; `runs/bge-m3/checkpoint-500` and `bge-m3/model` -> `bge-m3`;
    a hub cache folder `models--BAAI--bge-m3/snapshots/<hash>` -> `bge-m3`;
    `packaged:all-MiniLM-L6-v2` -> `all-MiniLM-L6-v2`.
    """
    path = name_or_path.replace("\\", "/").replace("%2F", "/")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    while len(parts) > 1 and (_INNER_FOLDER.fullmatch(parts[-1]) or parts[-2] == "snapshots"):
        parts.pop()
    if not parts:
        return name_or_path
    if parts[-1].startswith("models--"):
        return parts[-1].split("--")[-1]
    return parts[-1].removeprefix("packaged:")


def known_name(name_or_path: str) -> str | None:
    """The name in the table of families that a name or path stands for, None when it stands for none.

    Recognised is what downloads and servers make of a name: other separators, another case, the owner before it,
    a branch, format or `:tag` behind it (`BAAI_bge-small-zh-v1___5`, `bge-m3-main`, `baai/bge-m3:free`). Any other
    word makes another model of it: `my-bge-m3` and `bge-m3-legal` may need other prompts.
    """
    found = _find(name_or_path)
    return found[1] if found else None


def find_family(name_or_path: str) -> Family | None:
    """The family of a model by its name or path (see `known_name`), None when it is not known."""
    found = _find(name_or_path)
    return found[0] if found else None


def known_dimension(name_or_path: str) -> int | None:
    """Width of a model's vectors by the table, None where it does not say."""
    found = _find(name_or_path)
    return found[0].dimensions.get(found[1]) if found else None


def named_within(name_or_path: str) -> str | None:
    """The longest name of the table that stands, as whole words, within a model's name: what it may be made of."""
    words = _words(model_name(name_or_path))
    spans = [words[first:last] for first in range(len(words)) for last in range(first + 1, len(words) + 1)]
    known = [_key(span) for span in spans if _key(span) in _BY_KEY]
    return _BY_KEY[max(known, key=len)][1] if known else None


def _find(name_or_path: str) -> tuple[Family, str] | None:
    return next((_BY_KEY[key] for key in _keys(model_name(name_or_path)) if key in _BY_KEY), None)


def _keys(name: str) -> Iterator[str]:
    """Keys under which a model's name may stand in the table, the likeliest first."""
    for spelling in dict.fromkeys((name, re.split(r"(?<=.)[:@]", name)[0])):
        words = _words(spelling)
        yield _key(words)
        while words and words[-1] in _FORMS:
            words = words[:-1]
        yield _key(words)
        owners = [owner for owner in _OWNER_WORDS if tuple(words[: len(owner)]) == owner]
        for owner in owners:
            yield _key(words[len(owner) :])
