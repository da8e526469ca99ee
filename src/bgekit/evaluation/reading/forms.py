"""What evaluation data looks like: an example of each form, and what is said about data that has none of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ...encoding.rows import listing
from ...errors import SHOWN, DataError, in_lines
from .lines import first_line
from .paths import DataFile, Folder

#: By task type, and by form where a type has several.
EXAMPLES: Final = {
    "retrieval": (
        'a folder with corpus.jsonl {"_id": "d1", "title": "", "text": "..."}, queries.jsonl {"_id": "q1", "text": '
        '"..."} and qrels/test.tsv: a header query-id, corpus-id, score and lines such as q1, d1, 1, with tabs between'
    ),
    "retrieval (FlagEmbedding 1.4)": (
        'a folder with corpus.jsonl {"id": "d1", "title": "", "text": "..."}, test_queries.jsonl {"id": "q1", "text": '
        '"..."} and test_qrels.jsonl {"qid": "q1", "docid": "d1", "relevance": 1}'
    ),
    "retrieval (FlagEmbedding 1.2)": (
        'a folder with corpus.jsonl {"content": "..."} and queries.jsonl {"query": "...", "positive": ["..."]}'
    ),
    "reranking": '{"query": "...", "positive": ["..."], "negative": ["...", "..."]}',
    "reranking (training rows)": '{"query": "...", "pos": ["..."], "neg": ["...", "..."]}',
    "sts": '{"sentence1": "...", "sentence2": "...", "score": 4.2}',
    "pair_classification": '{"sentence1": "...", "sentence2": "...", "label": 1}',
    "classification": 'test.jsonl and train.jsonl with {"text": "...", "label": "sport"}',
    "bitext": '{"sentence1": "...", "sentence2": "..."}: line i of one translates line i of the other',
    "clustering": '{"sentences": ["...", "..."], "labels": ["a", "b"]}',
    "summarization": (
        '{"text": "...", "human_summaries": ["..."], "machine_summaries": ["...", "..."], "relevance": [3.5, 2.0]}'
    ),
}


class UnknownForm(DataError):
    """A file or folder fits no form."""


def unfit(place: str, seen: Sequence[str], advice: str = "") -> UnknownForm:
    """The error for data of no known form.

    Args:
        place: File or folder.
        seen: What is there.
        advice: What is most likely missing.
    """
    end = "\n" if len(seen) > 1 else ". " if advice else "."
    expected = "\n".join(f"  {form}: {example}" for form, example in EXAMPLES.items())
    return UnknownForm(
        f"{place} fits no known form of evaluation data. Seen:{in_lines(seen)}{end}{advice}\n"
        f"Expected: a folder of <split>.jsonl (or csv, tsv, parquet, each also .gz), or one such file, "
        f"with one of these forms, or a folder with such folders:\n{expected}"
    )


def mismatch(file: DataFile, names: list[str], kind: str) -> DataError:
    """The error for a file that lacks the columns of the kind that it is to be."""
    return DataError(f"{file} has the fields {listing(names)}; {kind} needs {EXAMPLES[kind]}")


def seen_in(folder: Folder) -> list[str]:
    """What is in a folder, for messages."""
    files = [file for named in folder.files.values() for file in named]
    parts = [seen_file(file) for file in files[:SHOWN]]
    if len(files) > SHOWN:
        parts.append(f"{len(files) - SHOWN:,} more files of data")
    others = [*folder.others, *(f"{name}/" for name in folder.folders)]
    if others:
        parts.append(listing(others))
    return parts or ["nothing"]


def seen_file(file: DataFile) -> str:
    """The fields of a file's first line, for messages."""
    try:
        return f"{file} with the fields {listing(list(first_line(file).fields))}"
    except DataError as problem:
        return str(problem)
