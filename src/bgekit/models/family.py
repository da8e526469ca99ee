"""What the table of model families says of one family."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from .prompts import Prompt

Kind = Literal["embedder", "reranker", "api"]


@dataclass(frozen=True)
class Family:
    """What is known of a group of models beyond their files. Empty fields mean "the files say it".

    Attributes:
        title: Name of the family, for people.
        names: Names of its models (last part of a hub id).
        kind: `embedder`, `reranker` or `api` (a hosted model without weights).
        pooling: Pooling of the last hidden states, None when only the checkpoint knows.
        normalize: Whether vectors have unit length, None when only the checkpoint knows.
        query: Prompt of retrieval queries.
        document: Prompt of passages.
        template: How a caller's own instruction and the query are put together, with two slots `{}`; None
            where the instruction simply stands before the query. `query` is already put together.
        include_prompt: Whether the prompt's tokens take part in pooling, None when only the checkpoint knows.
        similarity: `cosine` or `dot`, None when only the checkpoint knows.
        max_length: Longest input in tokens, None when only the checkpoint knows.
        dimensions: Vector width by model name; models that are not listed say it in their config.
        notice: One line that loading such a model logs once.
        source: Where the facts stand.
    """

    title: str
    names: tuple[str, ...]
    kind: Kind = "embedder"
    pooling: str | None = None
    normalize: bool | None = None
    query: Prompt = Prompt()
    document: Prompt = Prompt()
    template: str | None = None
    include_prompt: bool | None = None
    similarity: str | None = None
    max_length: int | None = None
    dimensions: dict[str, int] = field(default_factory=dict)
    notice: str | None = None
    source: str = ""
