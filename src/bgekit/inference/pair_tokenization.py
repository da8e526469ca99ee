"""Pairs -> token ids, put together as the tokenizer's own template for pairs says."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..errors import ArgumentError, CheckpointError
from ..models.card import Prompt
from .tokenization import Request, Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Pair = tuple[str, str]
LongPassages = Literal["cut", "windows"]


@dataclass(frozen=True)
class PairRequest(Request):
    """Settings for scoring pairs.

    Attributes:
        query: Text around queries.
        document: Text around passages.
        max_length: Most tokens of a pair, special tokens included.
        query_max_length: Most tokens of a query; the passage has the rest. By default three quarters of `max_length`,
            as in FlagEmbedding 1.4.
        token_types: How many token types the network has; below 2 it needs none.
        long_passages: `cut`, or `windows`: overlapping windows, of which the best scored one counts.
        overlap: Tokens that neighbouring windows share, at most half of a window; by default an eighth.
    """

    query: Prompt
    document: Prompt
    max_length: int
    query_max_length: int | None = None
    token_types: int = 0
    long_passages: LongPassages = "cut"
    overlap: int | None = None

    def preprocessor(self, tokenizer: PreTrainedTokenizerFast) -> PairTokenizer:
        """See `Request`."""
        return PairTokenizer(tokenizer, self)


@dataclass(frozen=True)
class Template:
    """Special tokens of a pair, and the token type of each part.

    Attributes:
        before: Ids before the query.
        between: Ids between query and passage.
        after: Ids after the passage.
        types: Types of those three and of query and passage: before, query, between, passage, after.
    """

    before: list[int]
    between: list[int]
    after: list[int]
    types: tuple[list[int], int, list[int], int, list[int]]

    @classmethod
    def of(cls, backend: Any) -> Template:
        """The template by which a tokenizer (of the library `tokenizers`) joins a pair.

        Raises:
            CheckpointError: it does not put the first text before the second.
        """
        pair = backend.encode("a", "a")
        owners = pair.sequence_ids
        groups = [(owner, [row for row, _ in rows]) for owner, rows in _runs(owners)]
        if groups and groups[0][0] is not None:
            groups.insert(0, (None, []))
        if groups and groups[-1][0] is not None:
            groups.append((None, []))
        if [owner for owner, _ in groups] == [None, 0, 1, None]:
            groups.insert(2, (None, []))
        if [owner for owner, _ in groups] != [None, 0, None, 1, None]:
            raise CheckpointError("the tokenizer has no template for pairs that puts the query before the passage")
        ids = [[pair.ids[row] for row in rows] for _, rows in groups]
        types = [[pair.type_ids[row] for row in rows] for _, rows in groups]
        return cls(ids[0], ids[2], ids[4], (types[0], types[1][0], types[2], types[3][0], types[4]))

    @property
    def specials(self) -> int:
        """Special tokens of a pair."""
        return len(self.before) + len(self.between) + len(self.after)

    def ids(self, query: list[int], passage: list[int]) -> list[int]:
        """The ids of a pair."""
        return [*self.before, *query, *self.between, *passage, *self.after]

    def type_ids(self, query: int, passage: int) -> list[int]:
        """The token types of a pair of so many tokens."""
        before, first, between, second, after = self.types
        return [*before, *[first] * query, *between, *[second] * passage, *after]

    @property
    def has_types(self) -> bool:
        """Whether not all tokens are of the first type."""
        return any(self.type_ids(1, 1))

    @property
    def most_types(self) -> int:
        """Types that it needs."""
        return max(self.type_ids(1, 1)) + 1


def _runs(owners: Sequence[int | None]) -> Iterator[tuple[int | None, Iterable[tuple[int, int | None]]]]:
    yield from itertools.groupby(enumerate(owners), key=lambda pair: pair[1])


class PairTokenizer:
    """Pairs -> ids. Texts that stand in several pairs are tokenised once. Safe to use from several threads."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, request: PairRequest) -> None:
        """Prepare for one kind of request.

        Args:
            tokenizer: The tokenizer; it is left as it is.
            request: Lengths, instructions, and what happens to long passages.

        Raises:
            ArgumentError: the lengths leave no room for a passage.
            CheckpointError: the tokenizer has no template for pairs, or not that of the network.
        """
        from tokenizers import Tokenizer

        # A copy through its serialised form: the settings of the original stay as they are.
        self._backend: Any = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._backend.no_padding()
        self._backend.no_truncation()
        self.template = Template.of(self._backend)
        self.request = request
        room = request.max_length - self.template.specials
        asked = request.query_max_length
        if room < 2 or (asked is not None and asked >= room):
            beside = f"{self.template.specials} special tokens and a query of {asked or 1} (query_max_length)"
            raise ArgumentError(f"max_length={request.max_length} leaves no room for a passage beside {beside}")
        self.query_length = min(request.max_length * 3 // 4, room - 1) if asked is None else asked
        wanted = "token_type_ids" in tokenizer.model_input_names and request.token_types > 1
        self._typed = wanted and self.template.has_types
        if self._typed and self.template.most_types > request.token_types:
            raise CheckpointError(
                f"the tokenizer makes {self.template.most_types} token types, the network has {request.token_types}"
            )
        if request.long_passages == "cut":
            # One more than a pair can hold shows that a text is too long; what is beyond need not be kept.
            self._backend.enable_truncation(request.max_length, direction="right")

    def __call__(self, pairs: Sequence[Pair]) -> Tokens:
        """Token ids of pairs of valid Unicode texts."""
        queries = self._plain((query for query, _ in pairs), self.request.query)
        passages = self._plain((passage for _, passage in pairs), self.request.document)
        template, most = self.template, self.query_length
        ids: list[list[int]] = []
        types: list[list[int]] | None = [] if self._typed else None
        cut, split, starts = [], [], []
        for row, (query_text, passage_text) in enumerate(pairs):
            query, passage = queries[query_text], passages[passage_text]
            too_long = len(query) > most
            query = query[:most]
            room = self.request.max_length - template.specials - len(query)
            parts = [passage]
            if len(passage) > room:
                if self.request.long_passages == "windows":
                    parts = token_windows(passage, room, self.request.overlap)
                    split.append(row)
                else:
                    parts, too_long = [passage[:room]], True
            if too_long:
                cut.append(row)
            starts.append(len(ids))
            ids += [template.ids(query, part) for part in parts]
            if types is not None:
                types += [template.type_ids(len(query), len(part)) for part in parts]
        return Tokens(ids, cut, types=types, starts=starts if split else None, split=split)

    def _plain(self, texts: Iterable[str], prompt: Prompt) -> dict[str, list[int]]:
        """Ids of distinct texts, without special tokens."""
        distinct = list(dict.fromkeys(texts))
        whole = [f"{prompt.prefix}{text}{prompt.suffix}" for text in distinct] if prompt else distinct
        encode: Callable[..., Any] = self._backend.encode_batch_fast
        if len(whole) == 1:  # Without waking the threads of the tokenizer.
            encodings = [self._backend.encode(whole[0], add_special_tokens=False)]
        else:
            encodings = encode(whole, add_special_tokens=False)
        return dict(zip(distinct, (encoding.ids for encoding in encodings), strict=True))


def token_windows(ids: list[int], size: int, overlap: int | None) -> list[list[int]]:
    """Windows of `size` tokens that cover all; the last one ends with the text and may overlap more.

    Args:
        ids: The tokens of a text that is longer.
        size: Tokens of a window.
        overlap: Tokens shared by neighbours; an eighth of the size by default. More than half of it counts as half:
            a long query makes windows small, and each token must not begin one of its own.
    """
    step = size - (size // 8 if overlap is None else min(overlap, size // 2))
    starts = [*range(0, len(ids) - size, step), len(ids) - size]
    return [ids[start : start + size] for start in starts]
