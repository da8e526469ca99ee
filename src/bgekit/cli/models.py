"""`bge models`: the table of known model families, and which model to take for what.

List the model families whose pooling and prompts bgekit knows even where a model's own files do not say them. Other
models work too, as long as their files or you say how they pool.
"""

from __future__ import annotations

import argparse
import functools
import json
import shutil
import textwrap
from collections.abc import Sequence
from typing import Any

from ..models.families import Family


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument("--filter", metavar="TEXT", help="only families with this in their title or a model's name")
    parser.add_argument("--json", action="store_true", help="print one JSON object per family")


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
    if not args.filter:
        print(_advice(width), end="\n\n")
    print("\n\n".join(_block(family, width) for family in found))
    return 0


def describe(family: Family) -> dict[str, Any]:
    """A family as plain values; None means that the model's files say it."""
    return {
        "title": family.title,
        "kind": family.kind,
        "models": [
            {
                "name": name,
                "id": family.id_of(name),
                "dimension": family.dimensions.get(name),
                "parameters": family.parameters.get(name),
                "licence": family.licences.get(name),
                "published": published().get(name),
            }
            for name in family.names
        ],
        "languages": family.languages,
        "pooling": family.pooling,
        "normalize": family.normalize,
        "similarity": family.similarity,
        "max_length": family.max_length,
        "query_prompt": [family.query.prefix, family.query.suffix],
        "document_prompt": [family.document.prefix, family.document.suffix],
        "notice": family.notice,
        "source": family.source,
    }


@functools.cache
def published() -> dict[str, dict[str, float]]:
    """Averages of the score tables that the BGE README printed, by model and benchmark."""
    from ..evaluation.benchmarks.published_tables import PUBLISHED, published_table

    found: dict[str, dict[str, float]] = {}
    for name in PUBLISHED:
        table = published_table(name)
        for row in table.rows if table else ():
            found.setdefault(row.model.rpartition("/")[2], {})[name] = row.average
    return found


def _advice(width: int) -> str:
    def scored(benchmark: str, *names: str) -> str:
        return ", ".join(f"BAAI/{name} ({published()[name][benchmark]})" for name in names)

    english = [f"bge-{size}-en-v1.5" for size in ("small", "base", "large")]
    chinese = [f"bge-{size}-zh-v1.5" for size in ("small", "base", "large")]
    rows = [
        ("English", f"{scored('mteb-en', *english)}: the average on MTEB; the smaller, the faster"),
        ("Chinese", f"{scored('c-mteb', *chinese)}: the average on C-MTEB"),
        ("others", "BAAI/bge-m3: many languages, and texts of up to 8,192 tokens"),
        ("reranker", "BAAI/bge-reranker-v2-m3, as the second stage of a search (--reranker)"),
    ]
    return "\n".join(["Which to take, with the scores that the BGE README published", *_rows(rows, width)])


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
    if family.languages:
        rows.insert(1, ("languages", family.languages))
    if family.licences:
        rows.append(("licence", _licence(family)))
    scores = [f"{name} {score}" for name in family.names for score in _scores(name)]
    if scores:
        rows.append(("published", ", ".join(scores)))
    return "\n".join([family.title + kinds.get(family.kind, ""), *_rows(rows, width)])


def _licence(family: Family) -> str:
    """Licences of a family: one for all of its models, or by model."""
    found = {family.licences.get(name) for name in family.names}
    if len(found) == 1:
        return next(iter(family.licences.values()))
    return ", ".join(f"{name} {licence}" for name, licence in family.licences.items())


def _scores(name: str) -> list[str]:
    return [f"{average} ({benchmark})" for benchmark, average in published().get(name, {}).items()]


def _rows(rows: Sequence[tuple[str, str]], width: int) -> list[str]:
    lines: list[str] = []
    for label, text in rows:
        lines += textwrap.wrap(
            text, width, initial_indent=f"  {label:<9} ", subsequent_indent=" " * 12, break_on_hyphens=False
        )
    return lines


def _named(family: Family, name: str) -> str:
    facts = [str(family.dimensions[name])] if name in family.dimensions else []
    if name in family.parameters:
        count = family.parameters[name]
        facts.append(
            f"{count / 1e9:.1f} billion parameters" if count >= 1e9 else f"{count / 1e6:.0f} million parameters"
        )
    return f"{family.id_of(name)} ({', '.join(facts)})" if facts else family.id_of(name)
