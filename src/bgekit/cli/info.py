"""`bge info`: a model's card, and the source of each field.

Show a model's card (pooling, prompts, maximum length, dimension, ...) and the source of each field: the checkpoint's
own files, the table of known families, or a default. No weights are downloaded.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ..display.option_names import spoken
from ..display.terminal import aligned
from . import options

_RERANKER_USE: Final = "bge rerank --model NAME; in Python FlagReranker(name).compute_score(pairs)"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument("model", metavar="MODEL", help="folder, Hugging Face id, packaged:NAME, or a hosted model")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options.add_pooling_option(parser)
    options.add_hub_options(parser)


def run(args: argparse.Namespace) -> int:
    """Print the card."""
    from ..errors import CheckpointError
    from ..models.card_reading import is_classifier
    from ..models.checkpoint_files import read_config
    from ..models.families import find_family
    from ..models.hub import resolve

    family = find_family(args.model)
    note = None
    folder: Path | None = None
    if family is None or family.kind in ("embedder", "reranker"):
        try:
            folder = resolve(args.model, revision=args.revision, cache_dir=args.cache_dir, card_only=True)
        except CheckpointError as error:
            if family is None:
                raise
            note = f"{error}.\nThe table of known families says this of it:\n"
    if folder is not None and is_classifier(read_config(folder)):
        facts, sources = _reranker_card(folder, args.model)
    elif folder is not None and (family is None or family.kind == "embedder"):
        facts, sources = _card(folder, args.model, args.pooling)
    else:
        facts, sources = _family(args.model)
    if args.json:
        report = {"model": args.model, "folder": str(folder) if folder else None, "card": facts, "sources": sources}
        print(json.dumps(report, ensure_ascii=False, indent=1))
        return 0
    if note:
        print(note)
    print(_table(args.model, folder, facts, sources))
    return 0


#: Fields that a reader needs to know only where they have another value than this; JSON has them all.
_RARE: Final[Mapping[str, Any]] = {
    "include_prompt": True, "default_prompt": None, "dense": [], "selftest": None, "calibration": None,
    "lower_case": False, "pretrained_only": False, "matryoshka_dims": [], "heads": [],
}  # fmt: skip
#: Fields that are called otherwise here: `dtype` is that of the weights in the file, not of the computation.
_CALLED: Final = {"dtype": "weights in"}


def _card(folder: Path, name: str, pooling: str | None) -> tuple[dict[str, Any], dict[str, str]]:
    from ..models.card import listed
    from ..models.card_reading import read_card

    given: dict[str, Any] = {} if pooling is None else {"pooling": pooling}
    card = read_card(folder, name, **given)
    facts, sources = card.to_dict(), dict(card.sources)
    prompts = facts.pop("prompts")
    facts.pop("name")
    for role in dict.fromkeys(("query", "document", *prompts)):
        facts[f"{role} prompt"] = prompts.get(role, ["", ""])
        sources[f"{role} prompt"] = sources.get(role, sources.get("prompts", "default"))
    facts["matryoshka_dims"] = listed(card.matryoshka_dims) if card.matryoshka_dims else []
    facts["heads"], sources["heads"] = list(card.heads), "checkpoint"
    sources |= {"dimension": sources.get("dimension", "checkpoint"), "architecture": "checkpoint"}
    sources["family"] = "family table" if card.family else ""
    if card.notice:
        facts["note"], sources["note"] = spoken(card.notice), sources["family"]
    return facts, sources


def _reranker_card(folder: Path, name: str) -> tuple[dict[str, Any], dict[str, str]]:
    from ..models.card_reading import read_reranker_card

    card = read_reranker_card(folder, name)
    facts = {
        "kind": "reranker", "labels": card.labels, "max_length": card.max_length,
        "query prompt": [card.query.prefix, card.query.suffix],
        "document prompt": [card.document.prefix, card.document.suffix],
        "dtype": card.dtype, "architecture": card.architecture, "position_limit": card.position_limit,
        "use": _RERANKER_USE,
    }  # fmt: skip
    sources = {"kind": "checkpoint", "architecture": "checkpoint", "position_limit": "checkpoint", **card.sources}
    sources |= {"query prompt": card.sources.get("query", ""), "document prompt": card.sources.get("document", "")}
    return facts, sources


def _family(name: str) -> tuple[dict[str, Any], dict[str, str]]:
    from ..models.families import find_family, known_dimension

    family = find_family(name)
    if family is None:
        raise LookupError(name)
    known = {
        "family": family.title,
        "kind": family.kind,
        "pooling": family.pooling,
        "normalize": family.normalize,
        "similarity": family.similarity,
        "max_length": family.max_length,
        "dimension": known_dimension(name),
        "query prompt": [family.query.prefix, family.query.suffix],
        "document prompt": [family.document.prefix, family.document.suffix],
        "note": family.notice,
    }
    if family.kind == "reranker":
        known = {key: known[key] for key in ("family", "kind", "max_length", "note")}
        known["use"] = _RERANKER_USE
    facts = {key: value for key, value in known.items() if value is not None}
    return facts, {key: f"family table ({family.title})" for key in facts if key != "family"}


def _table(name: str, folder: Path | None, facts: dict[str, Any], sources: dict[str, str]) -> str:
    notice = facts.pop("note", None)
    rows = [
        (_CALLED.get(key, key.replace("_", " ")), _shown(key, value), sources.get(key, ""))
        for key, value in facts.items()
        if key not in _RARE or value != _RARE[key]
    ]
    lines = [name, *([f"in {folder}"] if folder and str(folder) != name else []), ""]
    # A long instruction must not push every source off the screen.
    lines += [f"  {line}" for line in aligned(rows, widest=62)]
    return "\n".join([*lines, *(["", notice] if notice else [])])


def _shown(key: str, value: Any) -> str:
    if key.endswith(" prompt"):
        prefix, suffix = value
        return repr(prefix + ("{text}" + suffix if suffix else "")) if prefix or suffix else "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
