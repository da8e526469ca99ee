"""`bge models`: the table of known model families.

List the model families whose pooling and prompts bgekit knows even where a model's own files do not say them. Other
models work too, as long as their files or you say how they pool.
"""

from __future__ import annotations

import argparse
import json
import shutil
import textwrap
from typing import Any

from ..models.families import Family


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument("--filter", metavar="TEXT", help="only families with this in their title or a model's name")
    parser.add_argument("--json", action="store_true", help="one JSON object a family")


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    from ..models.families import FAMILIES

    found = [family for family in FAMILIES if _matches(family, args.filter)]
    if not found:
        print(f"no known family has {args.filter!r} in its title or a model's name")
        return 1
    if args.json:
        for family in found:
            print(json.dumps(describe(family), ensure_ascii=False))
        return 0
    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    print("\n\n".join(_block(family, width) for family in found))
    return 0


def describe(family: Family) -> dict[str, Any]:
    """A family as plain values; None means that the model's files say it."""
    return {
        "title": family.title,
        "kind": family.kind,
        "models": [{"name": name, "dimension": family.dimensions.get(name)} for name in family.names],
        "pooling": family.pooling,
        "normalize": family.normalize,
        "similarity": family.similarity,
        "max_length": family.max_length,
        "query_prompt": [family.query.prefix, family.query.suffix],
        "document_prompt": [family.document.prefix, family.document.suffix],
        "notice": family.notice,
        "source": family.source,
    }


def _matches(family: Family, text: str | None) -> bool:
    return not text or any(text.lower() in name.lower() for name in (family.title, *family.names))


def _block(family: Family, width: int) -> str:
    kinds = {"reranker": "  (reranker: scores pairs, has no vectors)", "api": "  (hosted: needs a key, no weights)"}
    rows = [("models", ", ".join(_named(family, name) for name in family.names))]
    if family.kind == "embedder":
        unit = {True: ", unit length", False: ", length kept", None: ""}[family.normalize]
        rows.append(("pooling", f"{family.pooling or 'as its files say'}{unit}"))
    if family.query:
        rows.append(("query", repr(str(family.query))))
    if family.document:
        rows.append(("document", repr(str(family.document))))
    if family.max_length:
        rows.append(("tokens", f"at most {family.max_length:,}"))
    if family.notice:
        rows.append(("note", family.notice))
    lines = [family.title + kinds.get(family.kind, "")]
    for label, text in rows:
        lines += textwrap.wrap(
            text, width, initial_indent=f"  {label:<9} ", subsequent_indent=" " * 12, break_on_hyphens=False
        )
    return "\n".join(lines)


def _named(family: Family, name: str) -> str:
    dimension = family.dimensions.get(name)
    return f"{name} ({dimension})" if dimension else name
