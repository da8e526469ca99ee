"""Rows -> the batch that one process computes: token ids, which passages belong to which row, scores, labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor

from ...data.training_rows import ONE_NEGATIVE, PROMPTED_PASSAGES, Row, hash64
from ...inference.tokenization import PairRequest, PairTokenizer, TextTokenizer, backend_of
from ...models.card import Prompt
from ...networks.packing import Packed
from ..loop.command_line import first_name
from ..losses.listwise import TextBatch
from .datasets import Copies, TrainingData, count_copies
from .sampler import Example, GlobalBatch, PlanOptions, Sampling, StepBatch, StepBatches, dataset_shares

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from ...models.card import ModelCard

#: Tokenizers kept for prompts that have to be tokenised by themselves; each is a copy of the vocabulary.
_KEPT_TOKENIZERS: Final = 16


@dataclass(frozen=True, eq=False)
class Batch(TextBatch, StepBatch):
    """One process's part of a global batch: n rows with m passages, as losses read them.

    Texts that are equal to the model have equal keys, see `Collator.keys`.

    Attributes:
        offset: Where this process's rows begin in the global batch.
        rows: Numbers of the rows in the data.
        truncated: How many queries, and how many passages, were cut at the maximum length.
    """

    offset: int
    rows: tuple[int, ...] = ()
    truncated: tuple[int, int] = (0, 0)

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def tokens(self) -> int:
        """Tokens of queries and passages."""
        return self.queries.input_ids.numel() + self.passages.input_ids.numel()


@dataclass(frozen=True)
class Limit:
    """The greatest length of a kind of input of the network.

    Attributes:
        name: The argument of the command line that sets it, without its dashes.
        what: What it holds for: query, passage or pair.
        tokens: What is longer is cut there.
        most: Tokens that the model takes; None where that is not known.
    """

    name: str
    what: str
    tokens: int
    most: int | None = None

    @property
    def plural(self) -> str:
        """The kind of input in the plural."""
        return "queries" if self.what == "query" else f"{self.what}s"

    @property
    def final(self) -> bool:
        """Whether it is as high as it can be."""
        return self.most is not None and self.tokens >= self.most

    @property
    def remedy(self) -> str:
        """Advice about texts that are cut."""
        if self.final:
            return "the model takes no more; split the texts, or take a model for longer ones"
        return f"raise {first_name(self.name)}"


@dataclass
class Collator:
    """Examples -> `Batch`.

    Texts are tokenised as the model will see them when it is used: by the same code, with the same prompts. A row's
    own prompt stands in for the model's query prompt; no prompt means none.

    Attributes:
        tokenizer: The model's.
        query_prompt: Put around queries of rows without a prompt of their own.
        passage_prompt: Put around passages.
        query_format: Template for rows' own prompts, see `Prompt.from_format`.
        query_max_len: Tokens of a query, prompt and special tokens included.
        passage_max_len: Tokens of a passage, likewise.
        include_prompt: Whether the prompt's tokens take part in pooling, as the model's card says.
        most: Tokens that the model takes; None where that is not known.
    """

    tokenizer: PreTrainedTokenizerFast
    query_prompt: Prompt = field(default_factory=Prompt)
    passage_prompt: Prompt = field(default_factory=Prompt)
    query_format: str = "{}{}"
    query_max_len: int = 32
    passage_max_len: int = 128
    include_prompt: bool = True
    most: int | None = None

    def __post_init__(self) -> None:
        Prompt.from_format("x", self.query_format)  # A wrong template is an error now, not at the first such row.
        self._tokenizer_for: Callable[[Prompt, int], TextTokenizer] = lru_cache(_KEPT_TOKENIZERS)(self._make)

    @classmethod
    def of(
        cls, tokenizer: PreTrainedTokenizerFast, card: ModelCard, *, query_format: str = "{}{}",
        query_max_len: int = 32, passage_max_len: int = 128,
    ) -> Collator:  # fmt: skip
        """A collator with the prompts of a model's card, `query` and `document`, and lengths that the model takes."""
        return cls(
            tokenizer, card.prompt("query"), card.prompt("document"), query_format,
            min(query_max_len, card.max_length), min(passage_max_len, card.max_length), card.include_prompt,
            card.max_length,
        )  # fmt: skip

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_tokenizer_for", "_plain")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._tokenizer_for = lru_cache(_KEPT_TOKENIZERS)(self._make)

    def __call__(self, examples: Sequence[Example], *, size: int, offset: int = 0, in_batch: bool = True) -> Batch:
        """The batch of some examples.

        Args:
            examples: Those of this process.
            size: Rows of the global batch.
            offset: Where these begin in it.
            in_batch: Whether other rows' passages are negatives.
        """
        rows = [example.row for example in examples]
        queries, cut_queries = self.encode_queries(rows)
        passages, cut_passages = self.encode_passages(examples)
        # The keys of the positives as they are stored: a positive whose parts were shuffled is still that positive.
        stored = [text for each in examples for text in (each.row.positives[each.positive], *each.passages[1:])]
        asked, given, *known = self.keys([[row.query for row in rows], stored, *(row.positives for row in rows)])
        return Batch(
            queries=queries,
            passages=passages,
            groups=tuple(len(example.passages) for example in examples),
            query_keys=torch.tensor(asked, dtype=torch.long),
            passage_keys=torch.tensor(given, dtype=torch.long),
            positive_keys=[torch.tensor(keys) for keys in known],
            teacher=_tensor([example.teacher for example in examples]),
            scores=_tensor([None if row.score is None else [row.score] for row in rows]),
            in_batch=in_batch,
            size=size,
            offset=offset,
            rows=tuple(row.index for row in rows),
            truncated=(cut_queries, cut_passages),
        )

    def keys(self, lists: Sequence[Sequence[str]]) -> list[list[int]]:
        """A signed 64-bit key of each text, for lists of texts: equal for texts that are equal to the model.

        Those have the same token ids, without a prompt and before anything is cut: whether case, accents or white space
        matter is for the tokenizer to say.
        """
        distinct = list(dict.fromkeys(text for texts in lists for text in texts))
        encodings = self._plain.encode_batch_fast(distinct, add_special_tokens=False)
        made = (hash64(np.array(encoding.ids, dtype=np.uint32).tobytes()) for encoding in encodings)
        found = dict(zip(distinct, made, strict=True))
        return [[found[text] for text in texts] for texts in lists]

    @cached_property
    def _plain(self) -> Any:
        return backend_of(self.tokenizer)

    def limits(self) -> tuple[Limit, ...]:
        """Limits of texts: queries first, passages last."""
        return (
            Limit("query_max_len", "query", self.query_max_len, self.most),
            Limit("passage_max_len", "passage", self.passage_max_len, self.most),
        )

    def encode_queries(self, rows: Sequence[Row]) -> tuple[Packed, int]:
        """Token ids of all queries, and how many were cut."""
        return self.encode([row.query for row in rows], [self.prompt_of(row) for row in rows], "query")

    def encode_passages(self, examples: Sequence[Example]) -> tuple[Packed, int]:
        """Token ids of all passages, row by row, and how many were cut."""
        texts = [text for example in examples for text in example.passages]
        prompts = [self.passage_prompt_of(example.row) for example in examples for _ in example.passages]
        return self.encode(texts, prompts, "passage")

    def prompt_of(self, row: Row) -> Prompt:
        """The prompt of a row's query."""
        return self.query_prompt if row.prompt is None else Prompt.from_format(row.prompt, self.query_format)

    def passage_prompt_of(self, row: Row) -> Prompt:
        """The prompt of a row's passages: that of the query, if its type says that both are of one kind."""
        return self.prompt_of(row) if row.type in PROMPTED_PASSAGES else self.passage_prompt

    def encode(self, texts: Sequence[str], prompts: Sequence[Prompt], role: str) -> tuple[Packed, int]:
        """Token ids of texts with a prompt each, and how many texts were cut.

        Args:
            texts: The texts.
            prompts: One for each.
            role: `query` or `passage`, for the maximum length.
        """
        length = self.query_max_len if role == "query" else self.passage_max_len
        ids: list[list[int]] = [[]] * len(texts)
        skip = [0] * len(texts)
        positions: dict[Prompt, list[int]] = {}
        for position, prompt in enumerate(prompts):
            positions.setdefault(self._tokenizer_prompt(prompt), []).append(position)
        cut = 0
        for prompt, places in positions.items():
            tokenizer = self._tokenizer_for(prompt, length)
            # A prompt that needs no tokenizer of its own is simply the beginning of the text.
            tokens = tokenizer([texts[i] if prompt == prompts[i] else prompts[i].prefix + texts[i] for i in places])
            for place, row in zip(places, tokens.ids, strict=True):
                ids[place], skip[place] = row, tokens.prompt_length
            cut += len(tokens.truncated)
        return Packed.of(ids, None if self.include_prompt else skip), cut

    def _tokenizer_prompt(self, prompt: Prompt) -> Prompt:
        """The prompt of the tokenizer that a text with this prompt needs."""
        usual = prompt in (self.query_prompt, self.passage_prompt)
        return prompt if usual or prompt.suffix or prompt.apart or not self.include_prompt else Prompt()

    def _make(self, prompt: Prompt, length: int) -> TextTokenizer:
        return TextTokenizer(self.tokenizer, prompt, length)


def _tensor(values: Sequence[Sequence[float] | None]) -> Tensor | None:
    """[sum of lengths] float32; None if a row has no values, or there is no row."""
    flat: list[float] = []
    for value in values:
        if value is None:
            return None
        flat.extend(value)
    return torch.tensor(flat, dtype=torch.float32) if values else None


class StepDataset(StepBatches[Batch]):
    """Batches of training rows by step, see `StepBatches`.

    Args:
        data: All rows.
        options: How they form batches.
        sampling: How examples are drawn from rows.
        collator: How examples become a batch.
        rank: This process.
        world: Processes in all.
    """

    def __init__(
        self, data: TrainingData, options: PlanOptions, sampling: Sampling, collator: Collator, *, rank: int = 0,
        world: int = 1,
    ) -> None:  # fmt: skip
        self.data, self.sampling, self.collator = data, sampling, collator
        longest = [limit.tokens for limit in collator.limits()]
        shares = dataset_shares(data, options, sampling.group_size, longest[0], longest[-1])
        super().__init__(shares, options, rank=rank, world=world)

    def without_negatives(self, *, across: bool = True) -> list[int]:
        """Number of rows of each dataset that have no negative at all, so that nothing is learnt from them.

        Args:
            across: Whether passages of other processes are negatives, where those of other rows are.
        """
        counts = []
        for number, (data, share) in enumerate(zip(self.data.datasets, self.shares, strict=True)):
            size = (share.batch_size if self.options.same_dataset else None) or self.options.batch_size
            together = size if across else -(-size // self.world)
            if data.scored or (share.in_batch and together > 1):
                counts.append(0)
            elif self.sampling.group_size > 1 or data.spec.type == ONE_NEGATIVE:
                counts.append(int((data.column("negative_count") == 0).sum()) + self.copies[number].alone)
            else:
                counts.append(len(data))
        return counts

    @cached_property
    def copies(self) -> list[Copies]:
        """Rows of each dataset among whose texts are copies."""
        return [count_copies(self.data, each, self.collator.keys) for each in self.data.datasets]

    def batch(self, rows: GlobalBatch) -> Batch:
        """This process's part of a global batch."""
        part = rows.part(self.rank, self.world)
        drawn = zip(rows.rows[part], rows.passes[part], strict=True)
        examples = [self.sampling.draw(self.data[int(row)], int(earlier)) for row, earlier in drawn]
        batch = self.collator(examples, size=rows.size, offset=part.start, in_batch=rows.in_batch)
        if examples or not rows.size:
            return batch
        # No row, where the other processes' rows have labels: all have to compute the same loss.
        first = self.sampling.draw(self.data[int(rows.rows[0])], int(rows.passes[0]))
        none = torch.empty(0, dtype=torch.float32)
        return replace(
            batch,
            teacher=None if first.teacher is None else none,
            scores=None if first.row.score is None else none,
        )


@dataclass
class PairCollator(Collator):
    """Examples -> `Batch` whose passages are pairs of query and passage, as the reranker reads them.

    Attributes:
        max_len: Tokens of a pair, special tokens included; the query has three quarters of them at most, as when the
            reranker is used. Lengths of queries and passages of their own do not count.
        token_types: How many token types the network has.
    """

    max_len: int = 160
    token_types: int = 0
    _pairs: PairTokenizer | None = field(default=None, init=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_pairs": None}

    def __call__(self, examples: Sequence[Example], *, size: int, offset: int = 0, in_batch: bool = True) -> Batch:
        """The batch of some examples; rows are compared within their groups alone."""
        return super().__call__(examples, size=size, offset=offset, in_batch=False)

    def encode_queries(self, rows: Sequence[Row]) -> tuple[Packed, int]:
        """Nothing: a query is read together with each of its passages."""
        return Packed.of([]), 0

    def encode_passages(self, examples: Sequence[Example]) -> tuple[Packed, int]:
        """Token ids of all pairs, row by row, and how many were cut."""
        pairs = [
            (_in(self.prompt_of(example.row), example.row.query), _in(self.passage_prompt_of(example.row), passage))
            for example in examples
            for passage in example.passages
        ]
        if not pairs:
            return Packed.of([]), 0
        if self._pairs is None:
            request = PairRequest(Prompt(), Prompt(), self.max_len, token_types=self.token_types)
            self._pairs = PairTokenizer(self.tokenizer, request)
        tokens = self._pairs(pairs)
        return Packed.of(tokens.ids, token_types=tokens.types), len(tokens.truncated)

    def limits(self) -> tuple[Limit, ...]:
        """Limits of pairs."""
        return (Limit("max_len", "pair", self.max_len, self.most),)


def _in(prompt: Prompt, text: str) -> str:
    return f"{prompt.prefix}{text}{prompt.suffix}"
