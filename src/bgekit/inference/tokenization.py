"""Texts or pairs -> token ids, cut at the maximum length, each distinct sequence once.

A pair is put together as the tokenizer's own template for pairs says.
"""

from __future__ import annotations

import abc
import array
import hashlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ..errors import ArgumentError, CheckpointError
from ..models.card import Prompt
from ..models.head_files import DENSE, Output
from .stored_tokenizer import StoredTokenizer, stored_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    AnyTokenizer: TypeAlias = PreTrainedTokenizerFast | StoredTokenizer


@dataclass
class Tokens:
    """Token ids of some texts.

    Attributes:
        ids: The ids of each text, special tokens included.
        truncated: Positions of the texts that were cut.
        prompt_length: Leading tokens of each text that belong to the prompt (with the opening special token).
        types: The token types of each text, where it is not the first for all.
        starts: Where inputs became several texts each: the first of every input. Its result is their maximum.
        split: Positions of the inputs that became several texts.
        places: Where equal sequences have been merged, the place in `ids` of each sequence that there was.
        keys: Keys of merged tokens, a digest for each input, the same for inputs whose sequences are the same.
    """

    ids: list[list[int]]
    truncated: list[int] = field(default_factory=list)
    prompt_length: int = 0
    types: list[list[int]] | None = None
    starts: list[int] | None = None
    split: list[int] = field(default_factory=list)
    places: list[int] | None = None
    keys: list[bytes] = field(default_factory=list)


#: The inputs of a block -> their tokens.
Preprocessor: TypeAlias = "Callable[[Sequence[Any]], Tokens]"


@dataclass(frozen=True, kw_only=True)
class Request(abc.ABC):
    """Settings of a call, from which the tokenisation of its inputs is made.

    Attributes:
        batch_size: Maximum number of sequences per batch.
        outputs: What is computed of each input; those beside `dense` need a model with heads for them.
        excluded: Ids of tokens that get no lexical weight.
    """

    batch_size: int | None = None
    outputs: tuple[Output, ...] = DENSE
    excluded: tuple[int, ...] = ()

    @property
    def for_tokens(self) -> Request:
        """The part of it that tokens depend on."""
        return replace(self, batch_size=None, outputs=DENSE, excluded=())

    @abc.abstractmethod
    def preprocessor(self, tokenizer: AnyTokenizer) -> Preprocessor:
        """The function from inputs to tokens, safe to call from several threads; `tokenizer` is left as it is."""


@dataclass(frozen=True)
class TextRequest(Request):
    """Settings for encoding texts: prompt and length.

    Attributes:
        prompt: Text around each of them.
        max_length: Maximum number of tokens of a text, prompt and special tokens included.
    """

    prompt: Prompt
    max_length: int

    def preprocessor(self, tokenizer: AnyTokenizer) -> TextTokenizer:
        """See `Request`."""
        return TextTokenizer(tokenizer, self.prompt, self.max_length)


@dataclass(frozen=True)
class TokenRequest(Request):
    """Settings for computing what has been tokenised: an input is ids, or ids and their token types.

    Attributes:
        prompt_length: See `Tokens`.
        typed: Whether inputs bring token types.
    """

    prompt_length: int = 0
    typed: bool = False

    def preprocessor(self, tokenizer: AnyTokenizer) -> Preprocessor:
        """See `Request`."""
        return self.tokens

    def tokens(self, inputs: Sequence[Any]) -> Tokens:
        """The inputs as tokens."""
        if not self.typed:
            return Tokens(list(inputs), prompt_length=self.prompt_length)
        return Tokens(
            [ids for ids, _ in inputs], prompt_length=self.prompt_length, types=[types for _, types in inputs]
        )


def merged(tokens: Tokens) -> Tokens:
    """The tokens with each distinct sequence once.

    Texts that differ become equal here: by case for an uncased tokenizer, by white space, by what is cut off.
    Computed in different batches they would be rounded differently.
    """
    keys = [_key(ids) for ids in tokens.ids]
    if tokens.types is not None:
        keys = [_key(types, salt=key) for types, key in zip(tokens.types, keys, strict=True)]
    first: dict[bytes, int] = {}
    kept = [row for row, key in enumerate(keys) if first.setdefault(key, row) == row]
    inputs = keys
    if tokens.starts is not None:
        ends = [*tokens.starts[1:], len(keys)]
        inputs = [_digest(b"".join(keys[start:end])) for start, end in zip(tokens.starts, ends, strict=True)]
    if len(kept) == len(keys):
        return replace(tokens, keys=inputs)
    place = {keys[row]: place for place, row in enumerate(kept)}
    return replace(
        tokens,
        ids=[tokens.ids[row] for row in kept],
        types=None if tokens.types is None else [tokens.types[row] for row in kept],
        places=[place[key] for key in keys],
        keys=inputs,
    )


def _key(numbers: Sequence[int], salt: bytes = b"") -> bytes:
    return _digest(salt + array.array("q", numbers).tobytes())


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def open_tokenizer(folder: Path, *, lower_case: bool = False, trust_remote_code: bool = False) -> AnyTokenizer:
    """The tokenizer of a checkpoint as encoding needs it: without transformers, where that comes to the same.

    Arguments and errors as `load_tokenizer`.
    """
    stored = stored_tokenizer(folder)
    if stored is None:
        return load_tokenizer(folder, lower_case=lower_case, trust_remote_code=trust_remote_code)
    if lower_case:
        _lower_case(stored.backend_tokenizer)
    return stored


def load_tokenizer(
    folder: Path, *, lower_case: bool = False, trust_remote_code: bool = False
) -> PreTrainedTokenizerFast:
    """The fast tokenizer of a checkpoint.

    Args:
        folder: The checkpoint.
        lower_case: Lowercase texts first, as the card may say, where the tokenizer does not do so by itself.
        trust_remote_code: Allow tokenizers that the checkpoint brings as Python code.

    Raises:
        CheckpointError: the files are missing or damaged, or there is no fast tokenizer for them.
    """
    names = (
        "tokenizer.json",
        "vocab.txt",
        "vocab.json",
        "spiece.model",
        "sentencepiece.bpe.model",
        "tokenizer.model",
    )
    if not any((folder / name).is_file() for name in names):
        raise CheckpointError(f"{folder} has no tokenizer (none of {', '.join(names)})")
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:
        # The tokenizers library raises plain Exception for damaged files.
        raise CheckpointError(f"the tokenizer in {folder} cannot be read: {error}") from error
    if not tokenizer.is_fast:
        raise CheckpointError(f"{folder} has only a slow tokenizer; bgekit needs tokenizer.json")
    if lower_case:
        _lower_case(tokenizer.backend_tokenizer)
    return tokenizer  # type: ignore[no-any-return]


def backend_of(tokenizer: AnyTokenizer) -> Any:
    """The tokenizer of the library `tokenizers` in this one, cutting nothing: a copy, the original stays as it is."""
    if isinstance(tokenizer, StoredTokenizer):
        return tokenizer.copy()
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()
    backend.no_truncation()
    return backend


def special_ids(tokenizer: AnyTokenizer) -> tuple[int, ...]:
    """Ids of the tokens without a lexical weight, ascending: those that frame a text or stand for no word of it.

    They are FlagEmbedding's (cls, eos, pad, unk), and the separator of BERT, which has the place of eos there.
    """
    roles = ("cls_token", "eos_token", "sep_token", "pad_token", "unk_token")
    names = filter(None, (tokenizer.special_tokens_map.get(role) for role in roles))
    found = (tokenizer.backend_tokenizer.token_to_id(name) for name in names)
    return tuple(sorted({number for number in found if number is not None}))


def _lower_case(backend: Any) -> None:
    """Have a tokenizer lowercase texts, special tokens in them excepted (as sentence-transformers 6 does)."""
    from tokenizers.normalizers import BertNormalizer, Lowercase, Sequence

    normalizer = backend.normalizer
    steps: list[Any] = [] if normalizer is None else [normalizer]
    if isinstance(normalizer, Sequence):
        steps = list(normalizer)  # type: ignore[call-overload]
    if not any(isinstance(step, Lowercase) or (isinstance(step, BertNormalizer) and step.lowercase) for step in steps):
        backend.normalizer = Sequence([Lowercase(), *steps])


class TextTokenizer:
    """Texts -> ids with one prompt, truncated at one length. Safe to use from several threads.

    The Rust tokenizer holds its truncation setting as state; this class owns a copy and never changes it.
    """

    def __init__(self, tokenizer: AnyTokenizer, prompt: Prompt, max_length: int) -> None:
        self._tokenizer = tokenizer
        self._backend = backend_of(tokenizer)
        self._leading, self._trailing = self._special_counts()
        self._joined = "" if prompt.apart else prompt.prefix
        self._before = self._plain_ids(prompt.prefix) if prompt.apart else []
        self._after = self._plain_ids(prompt.suffix)
        self.prompt_length = self._prompt_length(prompt.prefix)
        self._room = self._room_in(max_length)
        self._backend.enable_truncation(self._room)

    def _room_in(self, max_length: int) -> int:
        """Tokens of a text, a prompt that is joined to it and special tokens."""
        room = max_length - len(self._before) - len(self._after)
        if room <= self._leading + self._trailing:
            raise ArgumentError(f"max_length={max_length} leaves no room for text beside the special tokens")
        return room

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Token ids of valid Unicode texts."""
        if self._joined:
            texts = [self._joined + text for text in texts]
        encodings = self._backend.encode_batch_fast(texts) if len(texts) > 1 else [self._backend.encode(texts[0])]
        ids = [encoding.ids for encoding in encodings]
        truncated = [
            row for row, encoding in enumerate(encodings) if len(ids[row]) >= self._room and encoding.overflowing
        ]
        if self._before or self._after:
            ids = [self._surrounded(row) for row in ids]
        return Tokens(ids, truncated, self.prompt_length)

    @cached_property
    def uncut(self) -> Any:
        """The tokenizer of the library `tokenizers`, cutting nothing."""
        return backend_of(self._tokenizer)

    def count(self, text: str | Sequence[int]) -> int:
        """Tokens of a text with its prompt, or of token ids without one, whatever their number."""
        if not isinstance(text, str):
            return self._leading + len(text) + self._trailing
        return len(self.uncut.encode(self._joined + text).ids) + len(self._before) + len(self._after)

    def cut(self, texts: Sequence[str], max_length: int, *, left: bool = False) -> Tokens:
        """Token ids of valid Unicode texts, cut to another length, or from the left; prompts stay whole.

        Args:
            texts: The texts.
            max_length: As in the class, and at most that.
            left: Whether the end of a text is kept instead of its beginning.

        Raises:
            ArgumentError: the length leaves no room for text.
        """
        room = self._room_in(max_length)
        kept = self.prompt_length if left and self._joined else self._leading if left else 0
        if room <= kept + self._trailing:
            raise ArgumentError(f"max_length={max_length} leaves no room for text beside the prompt")
        ids, truncated = [], []
        for row, encoding in enumerate(self.uncut.encode_batch_fast([self._joined + text for text in texts])):
            own = encoding.ids
            if len(own) > room:
                truncated.append(row)
                first = kept if left else room - self._trailing
                own = own[:first] + own[len(own) - room + first :]
            ids.append(self._surrounded(own))
        return Tokens(ids, truncated, self.prompt_length)

    def of_ids(self, given: Sequence[Sequence[int]], max_length: int, *, left: bool = False) -> Tokens:
        """Token ids with the special tokens around them, cut as texts are; without a prompt."""
        special = self.uncut.encode("").ids
        room = max_length - len(special)
        ids, truncated = [], []
        for row, own in enumerate(given):
            if len(own) > room:
                truncated.append(row)
                own = own[len(own) - room :] if left else own[:room]
            ids.append([*special[: self._leading], *own, *special[self._leading :]])
        return Tokens(ids, truncated)

    def _surrounded(self, ids: list[int]) -> list[int]:
        start, end = self._leading, len(ids) - self._trailing
        return ids[:start] + self._before + ids[start:end] + self._after + ids[end:]

    def _plain_ids(self, text: str) -> list[int]:
        return list(self._backend.encode(text, add_special_tokens=False).ids) if text else []

    def _special_counts(self) -> tuple[int, int]:
        """Numbers of tokens that the tokenizer puts before and after every text, such as [CLS] and [SEP]."""
        whole, plain = self._backend.encode("a").ids, self._backend.encode("a", add_special_tokens=False).ids
        for start in range(len(whole) - len(plain) + 1):
            if whole[start : start + len(plain)] == plain:
                return start, len(whole) - start - len(plain)
        return 0, 0

    def _prompt_length(self, prefix: str) -> int:
        # As sentence-transformers counts it for include_prompt=False: the prompt alone, less what follows a text.
        return len(self._backend.encode(prefix).ids) - self._trailing if prefix else 0


Pair = tuple[str, str]
LongPassages = Literal["cut", "windows"]


@dataclass(frozen=True)
class PairRequest(Request):
    """Settings for scoring pairs.

    Attributes:
        query: Text around queries.
        document: Text around passages.
        max_length: Maximum number of tokens of a pair, special tokens included.
        query_max_length: Maximum number of tokens of a query; the passage has the rest. By default three quarters of
            `max_length`, as in FlagEmbedding 1.4.
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

    def preprocessor(self, tokenizer: AnyTokenizer) -> PairTokenizer:
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
        runs = itertools.groupby(range(len(pair.ids)), key=pair.sequence_ids.__getitem__)
        groups = [(owner, list(rows)) for owner, rows in runs]
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
    def most_types(self) -> int:
        """Types that it needs; 1 where all tokens are of the first."""
        return max(self.type_ids(1, 1)) + 1


class PairTokenizer:
    """Pairs -> ids. Texts that stand in several pairs are tokenised once. Safe to use from several threads."""

    def __init__(self, tokenizer: AnyTokenizer, request: PairRequest) -> None:
        """Prepare for one kind of request.

        Args:
            tokenizer: The tokenizer; it is left as it is.
            request: Lengths, instructions, and what happens to long passages.

        Raises:
            ArgumentError: the lengths leave no room for a passage.
            CheckpointError: the tokenizer has no template for pairs, or not that of the network.
        """
        self._backend = backend_of(tokenizer)
        self.template = Template.of(self._backend)
        self.request = request
        room = request.max_length - self.template.specials
        asked = request.query_max_length
        if room < 2 or (asked is not None and asked >= room):
            beside = f"{self.template.specials} special tokens and a query of {asked or 1} (query_max_length)"
            raise ArgumentError(f"max_length={request.max_length} leaves no room for a passage beside {beside}")
        self.query_length = min(request.max_length * 3 // 4, room - 1) if asked is None else asked
        wanted = "token_type_ids" in tokenizer.model_input_names and request.token_types > 1
        self._typed = wanted and self.template.most_types > 1
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
        if len(whole) == 1:  # Without waking the threads of the tokenizer.
            encodings = [self._backend.encode(whole[0], add_special_tokens=False)]
        else:
            encodings = self._backend.encode_batch_fast(whole, add_special_tokens=False)
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
