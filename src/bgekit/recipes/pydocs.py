"""Real pairs that every machine has: what a thing of Python's standard library does, and the rest of its documentation.

The query is the first sentence of a docstring, the passage is the name of the thing and all that follows. Modules are
held out as a whole, so that nothing of a test module is trained on.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from ..encoding.outputs import OutputFolder
from ..errors import OutputError
from ..search.pydocs import standard_library

#: Characters of a query, and of the least that must follow it.
_QUERY: Final = (20, 200)
_PASSAGE: Final = 60
#: Longer passages are cut here, at a space.
_LONGEST: Final = 800
_SENTENCE: Final = re.compile(r"(.+?[.!?])\s+(?=\S)")
#: Of 100 modules, those for testing and those for choosing; the others are for training.
_TEST: Final = 30
_DEV: Final = 10


@dataclass(frozen=True)
class Pair:
    """A query and the passage that answers it.

    Attributes:
        id: Qualified name of what is documented.
        query: The first sentence of its documentation.
        passage: Its name and the rest.
        split: `train`, `dev` or `test`.
    """

    id: str
    query: str
    passage: str
    split: str


def pairs() -> Iterator[Pair]:
    """Pairs of the Python that runs this; no two have the same query or the same passage."""
    seen: set[str] = set()
    for record in standard_library():
        if record.id.startswith("topic: "):
            continue
        text = " ".join(record.text.removeprefix(f"{record.id} ").split())
        found = _SENTENCE.match(text)
        if found is None:
            continue
        query, rest = found[1], text[found.end() :]
        if not _QUERY[0] <= len(query) <= _QUERY[1] or len(rest) < _PASSAGE or seen.intersection((query, rest)):
            continue
        seen.update((query, rest))
        yield Pair(record.id, query, f"{record.id} {_cut(rest)}", split_of(record.id))


def split_of(name: str) -> str:
    """The split of a qualified name: that of its outermost module, whatever else is there."""
    place = int.from_bytes(hashlib.sha256(name.partition(".")[0].encode()).digest()[:4], "big") % 100
    return "test" if place < _TEST else "dev" if place < _TEST + _DEV else "train"


def write_pairs(folder: str) -> dict[str, int]:
    """Write the pairs as data for training, for `bge eval`, and as plain texts for pre-training.

    Args:
        folder: Gets `train.jsonl` ({"query", "pos", "neg"}), `texts.jsonl` ({"text"}, none of a held-out module) and
            `eval/` in the layout of BEIR: all passages, queries and judgements of the splits `dev` and `test`.

    Returns:
        Numbers of training rows, of texts, of passages, and of queries of each split.

    Raises:
        OutputError: the folder cannot be written.
    """
    found = list(pairs())
    held = [pair for pair in found if pair.split != "train"]
    train = [{"query": each.query, "pos": [each.passage], "neg": []} for each in found if each.split == "train"]
    texts = [{"text": each.text} for each in standard_library() if split_of(each.id) == "train"]
    splits = {split: [pair for pair in held if pair.split == split] for split in ("dev", "test")}
    with OutputFolder(folder) as output:
        _write(output, "train.jsonl", map(_line, train))
        _write(output, "texts.jsonl", map(_line, texts))
        try:
            (output.path / "eval" / "qrels").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot write to {folder}: {error.strerror or error}") from error
        corpus = ({"_id": each.id, "title": "", "text": each.passage} for each in found)
        _write(output, "eval/corpus.jsonl", map(_line, corpus))
        _write(output, "eval/queries.jsonl", (_line({"_id": each.id, "text": each.query}) for each in held))
        for split, those in splits.items():
            rows = (f"{each.id}\t{each.id}\t1\n" for each in those)
            _write(output, f"eval/qrels/{split}.tsv", ["query-id\tcorpus-id\tscore\n", *rows])
    return {"train": len(train), "texts": len(texts), "passages": len(found)} | {
        split: len(those) for split, those in splits.items()
    }


def _write(output: OutputFolder, name: str, lines: Any) -> None:
    with output.create(name) as file:
        for line in lines:
            file.write(line.encode())


def _line(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=True) + "\n"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST].rpartition(" ")[0]
