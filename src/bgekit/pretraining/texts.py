"""All sequences of the training data, from tokenised files on disk."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from ..encoding.rows import stem_and_format
from ..errors import ArgumentError, DataError
from ..training.data import default_cache
from .masking import Ids
from .store import Facts, Reading, TokenStore, open_store

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

#: A part of the seed, so that no two uses draw the same numbers.
_SPLIT: Final = 11


@dataclass(frozen=True)
class Tokenization:
    """A tokenizer as pre-training uses it.

    Attributes:
        backend: The Rust tokenizer, without padding or truncation.
        before: Ids of the special tokens before every text, such as [CLS].
        after: Ids of those after it.
        mask: Id of the mask token.
        unknown: Id of the token for what the vocabulary lacks, None without one.
        ordinary: Ids that are no special tokens.
    """

    backend: Any
    before: tuple[int, ...]
    after: tuple[int, ...]
    mask: int
    unknown: int | None
    ordinary: Ids

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast, name: str) -> Tokenization:
        """Of a fast tokenizer.

        Raises:
            ArgumentError: it has no mask token, or puts nothing before a text whose vector could be learnt.
        """
        from tokenizers import Tokenizer

        backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        backend.no_padding()
        backend.no_truncation()
        if tokenizer.mask_token_id is None:
            raise ArgumentError(f"the tokenizer of {name} has no mask token: RetroMAE cannot train a model without one")
        whole, plain = backend.encode("a").ids, backend.encode("a", add_special_tokens=False).ids
        places = [at for at in range(1, len(whole)) if whole[at : at + len(plain)] == plain]
        if not places or not plain:
            raise ArgumentError(f"the tokenizer of {name} puts no special token before a text, which RetroMAE needs")
        ordinary = np.setdiff1d(np.array(sorted(backend.get_vocab().values())), tokenizer.all_special_ids)
        return cls(
            backend, tuple(whole[: places[0]]), tuple(whole[places[0] + len(plain) :]), int(tokenizer.mask_token_id),
            tokenizer.unk_token_id, ordinary.astype(np.int64),
        )  # fmt: skip

    @property
    def special(self) -> int:
        """How many special tokens a sequence has."""
        return len(self.before) + len(self.after)


@dataclass(frozen=True)
class Spec:
    """Where sequences come from."""

    files: tuple[str, ...]


@dataclass(frozen=True)
class FileRows:
    """A file, and how many of its sequences are used; for the record of a run."""

    spec: Spec
    count: int

    def __len__(self) -> int:
        return self.count


class Texts:
    """Sequences by their numbers, from 0.

    Args:
        stores: The files.
        chosen: [n] int64, which of all their sequences are used; None for all.
    """

    def __init__(self, stores: Sequence[TokenStore], chosen: Ids | None = None) -> None:
        self.stores = list(stores)
        self._starts = np.cumsum([0, *map(len, self.stores)])
        self._chosen = chosen

    def __len__(self) -> int:
        return int(self._starts[-1]) if self._chosen is None else len(self._chosen)

    def sequence(self, number: int) -> tuple[Ids, npt.NDArray[np.bool_]]:
        """Token ids of a sequence without special tokens, and which of them begin a word."""
        place = number if self._chosen is None else int(self._chosen[number])
        file = int(np.searchsorted(self._starts, place, side="right")) - 1
        return self.stores[file].sequence(place - int(self._starts[file]))

    @cached_property
    def lengths(self) -> Ids:
        """[n] tokens of each sequence, without special ones."""
        every = np.concatenate([store.lengths for store in self.stores])
        return every if self._chosen is None else every[self._chosen]

    @property
    def facts(self) -> Facts:
        """What was found in all files together."""
        rows = [store.facts for store in self.stores]
        return Facts(**{name: sum(getattr(each, name) for each in rows) for name in Facts.__dataclass_fields__})

    @property
    def datasets(self) -> list[FileRows]:
        """The files with the number of their sequences that are used."""
        chosen = np.arange(len(self)) if self._chosen is None else self._chosen
        counts = np.diff(np.searchsorted(chosen, self._starts))
        return [FileRows(Spec((s.source,)), int(count)) for s, count in zip(self.stores, counts, strict=True)]

    @cached_property
    def fingerprint(self) -> str:
        """Changes with the content of the files, their order, the tokenizer, and which sequences are used."""
        digest = hashlib.sha256("".join(store.path.name for store in self.stores).encode())
        if self._chosen is not None:
            digest.update(self._chosen.tobytes())
        return digest.hexdigest()

    def split(self, share: float, seed: int) -> tuple[Texts, Texts]:
        """The sequences without, and those of, a share of the texts drawn at random. All of a text stay together.

        Raises:
            DataError: one of the two would be empty.
        """
        held = [
            np.random.default_rng([seed, _SPLIT, number]).random(store.facts.texts)[np.asarray(store.texts)] < share
            for number, store in enumerate(self.stores)
        ]
        out = np.concatenate(held)
        if out.all() or not out.any():
            raise DataError(
                f"--validation_split {share} of {self.facts.texts:,} texts leaves nothing to "
                f"{'train on' if out.all() else 'measure'}: give another share, or --eval_data"
            )
        return Texts(self.stores, np.flatnonzero(~out)), Texts(self.stores, np.flatnonzero(out))


def read_texts(paths: Sequence[str], tokens: Tokenization, reading: Reading, cache: str | None) -> Texts:
    """The sequences of some files and folders.

    Args:
        paths: Files, and folders whose files count in the order of their names, those of sub-folders too.
        tokens: The tokenizer.
        reading: How texts become sequences.
        cache: Folder of tokenised texts, by default beside the cache of Hugging Face.

    Raises:
        DataError: a file cannot be read or has a line that cannot be used, or there is no text at all.
        OutputError: the cache cannot be written.
    """
    folder = Path(cache) if cache is not None else default_cache()
    files = [file for path in paths for file in (_files_in(path) if os.path.isdir(path) else [path])]
    texts = Texts([open_store(file, folder, tokens.backend, tokens.unknown, reading) for file in files])
    if not len(texts):
        raise DataError(f"there is no text in {', '.join(paths)}")
    return texts


def _files_in(folder: str) -> list[str]:
    found = [
        str(path)
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and stem_and_format(path.name)[1] and not _hidden(path.relative_to(folder))
    ]
    if not found:
        raise DataError(f"the folder {folder} has no texts (*.jsonl, *.txt, *.csv, *.tsv, *.parquet, also .gz)")
    return found


def _hidden(path: Path) -> bool:
    return path.name == "dataset.json" or any(part.startswith(".") for part in path.parts)
