"""FlagReranker: a checkpoint as a cross-encoder, pairs of a query and a passage -> scores."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, overload

import numpy as np
import numpy.typing as npt
import torch

from ..data.encodings import repair
from ..display.terminal import Progress
from ..errors import ArgumentError, TextTypeError, check_count
from ..files.hashing import digest
from ..models.card import UNSET, RerankerCard, Unset
from ..models.card_reading import read_reranker_card
from ..models.checkpoint_files import fingerprint
from ..models.hub import resolve
from ..networks.cross_encoder import CrossEncoder, classifier_class, load_classifier, load_cross_encoder
from ..networks.encoder import loading_dtype
from ..networks.loading import choose_precision, stored_prefix
from ..networks.packing import Packed
from ..networks.saving import write_reranker
from .engine import Spec, WorkerPool, resolve_devices
from .model import CheckpointModel, optional_prompt, set_aside
from .pipeline import Encoded, Pipeline
from .tokenization import LongPassages, Pair, PairRequest, Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


class Scores(list[float]):
    """An ordinary list of scores that also knows which pairs were changed before they were scored.

    Attributes:
        truncated: Positions of pairs whose query or passage was cut, ascending.
        windowed: Positions of pairs whose passage was scored in overlapping windows, ascending.
        repaired: Positions of pairs whose lone surrogates were replaced by U+FFFD, ascending.
    """

    truncated: tuple[int, ...] = ()
    windowed: tuple[int, ...] = ()
    repaired: tuple[int, ...] = ()


@dataclass(frozen=True)
class Ranked:
    """A passage in the order of a reranker.

    Attributes:
        index: Its place among the passages that were given, from 0.
        score: Its score.
        text: The passage.
    """

    index: int
    score: float
    text: str

    def to_dict(self) -> dict[str, Any]:
        """The scores as plain values."""
        return {"index": self.index, "score": self.score, "text": self.text}


def is_single(pairs: object) -> bool:
    """Whether the input is one pair: a tuple or list that begins with a text, not with a pair."""
    return isinstance(pairs, tuple | list) and len(pairs) > 0 and isinstance(pairs[0], str)


def valid_pair(item: object, row: int) -> tuple[Pair, bool]:
    """A pair as valid Unicode, and whether it had to be repaired.

    Raises:
        TextTypeError: it is not a pair of two strings; the message has its row.
    """
    unordered = isinstance(item, str | bytes | Mapping) or not isinstance(item, Sequence | np.ndarray)
    if unordered or len(item) != 2:  # type: ignore[arg-type]
        raise TextTypeError(
            f"a pair is a query and a passage, but the one at index {row} is {item!r:.80} ({type(item).__name__})"
        )
    for name, text in zip(("query", "passage"), item, strict=True):  # type: ignore[call-overload]
        if not isinstance(text, str):
            raise TextTypeError(
                f"pairs must be two strings, but the {name} of the one at index {row} is {text!r:.80} "
                f"({type(text).__name__})"
            )
    (query, first), (passage, second) = (repair(text) for text in item)  # type: ignore[attr-defined]
    return (query, passage), first or second


def checked_passages(query: object, passages: Iterable[object]) -> list[str]:
    """The passages of one query.

    Raises:
        TextTypeError: the query or a passage is not a string; the message has its index.
    """
    if not isinstance(query, str):
        raise TextTypeError(f"the query must be a string, not {type(query).__name__}: {query!r:.80}")
    if isinstance(passages, str | bytes | Mapping):
        raise TextTypeError(f"passages must be a list of strings, not {type(passages).__name__}: {passages!r:.80}")
    found: list[str] = []
    for index, passage in enumerate(passages):
        if not isinstance(passage, str):
            raise TextTypeError(
                f"passages must be strings, but the one at index {index} is {passage!r:.80} ({type(passage).__name__})"
            )
        found.append(passage)
    return found


def best_first(scores: Sequence[float], texts: Sequence[str]) -> list[Ranked]:
    """Passages in the order of their scores; of equal ones the earlier first."""
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    return [Ranked(index, scores[index], texts[index]) for index in order]


def sigmoid(scores: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """1 / (1 + e^-x), in float64, without overflow."""
    x = np.asarray(scores, dtype=np.float64)
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, small) / (1.0 + small)


@dataclass(frozen=True, kw_only=True)
class RerankerSpec(Spec[CrossEncoder]):
    """The engine of a reranker: pairs -> scores."""

    def load_network(self, device: torch.device) -> CrossEncoder:
        """See `Spec`."""
        return load_cross_encoder(
            self.folder,
            precision=self.precision,
            device=device,
            trust_remote_code=self.trust_remote_code,
            allow_pickle=self.allow_pickle,
        )

    def pack(self, tokens: Tokens, batch: Sequence[int]) -> Packed:
        """See `Spec`."""
        types = None if tokens.types is None else [tokens.types[row] for row in batch]
        return Packed.of([tokens.ids[row] for row in batch], token_types=types)


class FlagReranker(CheckpointModel):
    """A cross-encoder: it reads query and passage together and gives one score, higher for more relevant.

    Any sequence classifier with one output (the score) or two (the score is the log-odds of the second class) will do.
    The model is loaded when it is made; further devices start when an input is large enough to pay for it.

    Example:
        >>> from bgekit import FlagReranker
        >>> reranker = FlagReranker("BAAI/bge-reranker-base")
        >>> pairs = [("what is a panda?", "a bear that eats bamboo"), ("what is a panda?", "a kind of bread")]
        >>> scores = reranker.compute_score(pairs, normalize=True)
        >>> len(scores), all(0 <= score <= 1 for score in scores)
        (2, True)
    """

    def __init__(
        self,
        model_name_or_path: str | os.PathLike[str],
        use_fp16: bool = False,
        *,
        use_bf16: bool = False,
        query_instruction_for_rerank: str | Unset | None = UNSET,
        query_instruction_format: str = "{}{}",
        passage_instruction_for_rerank: str | Unset | None = UNSET,
        passage_instruction_format: str = "{}{}",
        devices: str | int | torch.device | Sequence[str | int | torch.device] | None = None,
        device: str | int | torch.device | None = None,
        batch_size: int | None = None,
        max_length: int | Unset | None = UNSET,
        query_max_length: int | None = None,
        normalize: bool = False,
        long_passages: LongPassages = "cut",
        window_overlap: int | None = None,
        dtype: str | torch.dtype | None = None,
        revision: str | None = None,
        cache_dir: str | None = None,
        trust_remote_code: bool = False,
        allow_pickle: bool = False,
        **others: Any,
    ) -> None:
        """Load a model.

        Args:
            model_name_or_path: A folder, a Hugging Face id, or `packaged:NAME`.
            use_fp16: Compute in the fastest 16-bit format of the device (float32 where none is fast).
            use_bf16: Compute in bfloat16.
            query_instruction_for_rerank: Text before queries; None or "" for none, by default what the model says.
            query_instruction_format: Template of instruction and query, two slots `{}`.
            passage_instruction_for_rerank: Text before passages.
            passage_instruction_format: Template of instruction and passage.
            devices: One device or several (`"cuda:0"`, `1`, `["cpu", "cpu"]`); by default every visible GPU,
                else the CPU. A device named twice has two workers.
            device: Another name of `devices`.
            batch_size: Maximum number of pairs per batch; by default batches are sized from the device.
            max_length: Tokens of a pair, special tokens included; by default what `FlagReranker.save` stored, else 512
                or what the model can take, if that is less.
            query_max_length: Maximum number of tokens of the query; three quarters of `max_length` by default. The
                passage has what is left.
            normalize: Whether scores go through a sigmoid, to lie between 0 and 1.
            long_passages: `cut` them, or score overlapping `windows` and take the best.
            window_overlap: Tokens that neighbouring windows share, at most half of a window; by default an eighth.
            dtype: Format to compute in: `float32`, `bfloat16`, `float16`, `int8`; overrides `use_fp16`.
            revision: Branch, tag or commit on the hub.
            cache_dir: Where files from the hub are kept.
            trust_remote_code: Allow a checkpoint to bring its own Python code.
            allow_pickle: Allow weights in `.bin` files.
            others: Keywords of FlagEmbedding without a use here, such as `passage_max_length`: one warning says what
                holds instead.

        Raises:
            CheckpointError: there is no such model, or its files are damaged.
            CardError: the model is not a reranker.
            ArgumentError: an argument is impossible.
        """
        set_aside(others, "FlagReranker")
        check_count("batch_size", batch_size, "pairs")
        check_count("query_max_length", query_max_length, "tokens")
        _check_windows(long_passages, window_overlap)
        name = os.fspath(model_name_or_path)
        self.folder = resolve(
            name, revision=revision, cache_dir=cache_dir, allow_pickle=allow_pickle,
            trust_remote_code=trust_remote_code,
        )  # fmt: skip
        self.card: RerankerCard = read_reranker_card(
            self.folder,
            name,
            query=optional_prompt(query_instruction_for_rerank, query_instruction_format),
            document=optional_prompt(passage_instruction_for_rerank, passage_instruction_format),
            max_length=UNSET if max_length is None else max_length,
        )
        self.batch_size, self.normalize = batch_size, normalize
        used = resolve_devices(devices if devices is not None else device)
        spec = RerankerSpec(
            folder=self.folder,
            precision=choose_precision(
                used[0], dtype=dtype, use_fp16=use_fp16, use_bf16=use_bf16, model_type=self.card.architecture
            ),
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
        )
        self._start(WorkerPool(spec, used))
        self._request = PairRequest(
            self.card.query,
            self.card.document,
            self.card.max_length,
            query_max_length,
            token_types=self._engine.network.token_types,
            long_passages=long_passages,
            overlap=window_overlap,
        )
        self._request.preprocessor(self._engine.tokenizer)  # What is impossible shows now.

    @cached_property
    def model(self) -> PreTrainedModel:
        """The classifier of the checkpoint as transformers runs it: padded inputs -> `logits`.

        Loaded when it is first asked for, with weights of its own: `compute_score` computes with faster code, and does
        not see what is changed here.
        """
        network = load_classifier(
            self.folder, loading_dtype(self.precision, self.device), new_head=False,
            trust_remote_code=self._spec.trust_remote_code, allow_pickle=self._spec.allow_pickle,
        )  # fmt: skip
        return network.to(self.device)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) of all that decides what score a pair gets: weights, tokenizer, settings and precision."""
        spec = self._spec
        weights = fingerprint(self.folder, allow_pickle=spec.allow_pickle, own_code=spec.trust_remote_code)
        return digest(weights, repr(self._request), self.precision, str(self.normalize))

    @overload
    def compute_score(
        self, sentence_pairs: tuple[str, str] | list[str], batch_size: int | None = ..., max_length: int | None = ...,
        normalize: bool | None = ..., *, query_max_length: int | None = ..., show_progress: bool | None = ...,
        **others: Any,
    ) -> float: ...  # fmt: skip

    @overload
    def compute_score(
        self, sentence_pairs: Iterable[tuple[str, str] | list[str]], batch_size: int | None = ...,
        max_length: int | None = ..., normalize: bool | None = ..., *, query_max_length: int | None = ...,
        show_progress: bool | None = ..., **others: Any,
    ) -> Scores: ...  # fmt: skip

    def compute_score(
        self,
        sentence_pairs: Any,
        batch_size: int | None = None,
        max_length: int | None = None,
        normalize: bool | None = None,
        *,
        query_max_length: int | None = None,
        show_progress: bool | None = None,
        **others: Any,
    ) -> float | Scores:
        """Scores of pairs of a query and a passage. Equal pairs are computed once.

        Args:
            sentence_pairs: A pair (a tuple or list of two strings), or an iterable of pairs, which is streamed.
            batch_size: Maximum number of pairs per batch; by default as the reranker was made.
            max_length: Tokens of a pair; by default as the reranker was made.
            normalize: Whether scores go through a sigmoid; by default as the reranker was made.
            query_max_length: Maximum number of tokens of a query; by default as the reranker was made.
            show_progress: Show a progress bar; by default on a terminal, from a few thousand pairs on.
            others: As in the class.

        Returns:
            A float for one pair, else a list of floats that knows which pairs were cut.

        Raises:
            TextTypeError: an element is not a pair of two strings; the message has its index.
            ArgumentError: an argument is impossible.
            NumericalError: a score is NaN or infinite.
        """
        set_aside(others, "compute_score")
        single = is_single(sentence_pairs)
        if isinstance(sentence_pairs, str | bytes | dict) or not isinstance(sentence_pairs, Iterable):
            kind = type(sentence_pairs).__name__
            raise TextTypeError(f"pairs of a query and a passage are expected, not {kind}: {sentence_pairs!r:.80}")
        pairs: Iterable[Any] = [sentence_pairs] if single else sentence_pairs
        request = self._requested(batch_size, max_length, query_max_length)
        total = len(pairs) if isinstance(pairs, Sized) else None

        def compute(blocks: Iterator[list[Pair]]) -> Iterator[Encoded]:
            return self._compute_blocks(blocks, request)

        with Progress("rerank", "pairs", total, show=show_progress) as bar:
            pipeline = Pipeline(
                compute, 1, model=self.card.name, valid=valid_pair, noun="pairs", result="the score of the pair",
                progress=bar.advance,
            )  # fmt: skip
            encoded = pipeline.collect(pairs)
        column = encoded.vectors[:, 0]
        if encoded.split:
            logger.info(
                "%d of %d passages were long and scored in overlapping windows", len(encoded.split), len(column)
            )
        scores = Scores((sigmoid(column) if (self.normalize if normalize is None else normalize) else column).tolist())
        scores.truncated, scores.repaired = tuple(encoded.truncated), tuple(encoded.repaired)
        scores.windowed = tuple(encoded.split)
        return scores[0] if single else scores

    def rank(self, query: str, passages: Iterable[str], top_k: int | None = None, **options: Any) -> list[Ranked]:
        """The passages of a query, best first; of equal scores the earlier first.

        Args:
            query: The query.
            passages: Texts.
            top_k: How many are wanted; by default all.
            options: As `compute_score`.

        Raises:
            TextTypeError: the query or a passage is not a string; the message has its index.
            ArgumentError: an argument is impossible.
        """
        check_count("top_k", top_k, "passages")
        texts = checked_passages(query, passages)
        scores = self.compute_score([(query, text) for text in texts], **options)
        return best_first(scores, texts)[:top_k]

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Save the reranker as a plain checkpoint of transformers, with its instructions and maximum length.

        The weights are written in the precision that the checkpoint has, whatever this model computes in.
        The folder appears complete or not at all.

        Args:
            path: Folder to make.
            overwrite: Replace a folder that is there.

        Raises:
            OutputError: the folder exists or cannot be written.
        """
        trust, pickles = self._spec.trust_remote_code, self._spec.allow_pickle
        write_reranker(
            Path(path),
            card=self.card,
            source=self.folder,
            overwrite=overwrite,
            allow_pickle=pickles,
            remote_code=trust,
            prefix=stored_prefix(self.folder, classifier_class, trust_remote_code=trust, allow_pickle=pickles),
        )

    def _requested(self, batch_size: int | None, max_length: int | None, query_max_length: int | None) -> PairRequest:
        check_count("batch_size", batch_size, "pairs")
        check_count("max_length", max_length, "tokens")
        check_count("query_max_length", query_max_length, "tokens")
        self._check_length("max_length", max_length)
        return replace(
            self._request,
            batch_size=batch_size or self.batch_size,
            max_length=max_length or self._request.max_length,
            query_max_length=query_max_length or self._request.query_max_length,
        )


def _check_windows(long_passages: str, overlap: int | None) -> None:
    if long_passages not in get_args(LongPassages):
        raise ArgumentError(f"long_passages={long_passages!r} is not one of {', '.join(get_args(LongPassages))}")
    if overlap is not None and (not isinstance(overlap, Integral) or isinstance(overlap, bool) or overlap < 0):
        raise ArgumentError(f"window_overlap must be a number of tokens from 0 on, not {overlap!r}")
