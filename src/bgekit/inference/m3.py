"""BGEM3FlagModel: dense vectors, lexical weights and multi-vectors of texts from one pass, and scores of pairs."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, TypedDict, get_args, overload

import numpy as np
import numpy.typing as npt

from ..display.terminal import Progress
from ..errors import ArgumentError, TextTypeError
from ..models.card import UNSET, Pooling, Role, Unset
from ..models.head_files import OUTPUTS, Output
from .embedder import FlagModel
from .model import Model, set_aside
from .pipeline import Embeddings, Encoded
from .ragged import LexicalCsr, Ragged, as_dict
from .reranker import is_single, valid_pair
from .tokenization import Pair

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from ..models.card import ModelCard

#: A text's lexical weights by token id (as a string), or by word.
Weights: TypeAlias = Mapping[str, float]
#: The scores of a pair, by FlagEmbedding's names.
Mode = Literal["colbert", "sparse", "dense", "sparse+dense", "colbert+sparse+dense"]
MODES: Final[tuple[Mode, ...]] = get_args(Mode)
#: Pairs whose token vectors are in memory at once, and characters of these: about 400 MB of BGE-M3's.
_PAIRS: Final = 256
_CHARACTERS: Final = 400_000
_DENSE, _SPARSE, _COLBERT = OUTPUTS


class M3Output(TypedDict):
    """What `BGEM3FlagModel.encode` gives, by FlagEmbedding's names; None for what was not asked for.

    Attributes:
        dense_vecs: Vectors [n, d] float32, which know which texts were cut; [d] for a single text.
        lexical_weights: For each text a dict from token id (a string) to weight; or one sparse array [n, vocabulary].
        colbert_vecs: For each text an array [tokens, dim] float32; or all of them as `Ragged`.
    """

    dense_vecs: Any
    lexical_weights: Any
    colbert_vecs: Any


class BGEM3FlagModel(Model):
    """BGE-M3, or any model with its heads: three outputs from one pass, with FlagEmbedding's methods and names.

    The heads are those of the checkpoint. One that is missing, or does not fit, is an error when its output is asked
    for. Where only dense vectors are wanted, for an index or an evaluation, use `embedder`, a `FlagModel` of the same
    weights.

    Attributes:
        embedder: The model without the names: its dense vectors, and what `Embedder` has.

    Example:
        >>> from bgekit import BGEM3FlagModel
        >>> model = BGEM3FlagModel("BAAI/bge-m3")
        >>> texts = ["What is BGE M3?", "BGE M3 is an embedding model."]
        >>> outputs = model.encode(texts, return_sparse=True, return_colbert_vecs=True)
        >>> sorted(outputs)
        ['colbert_vecs', 'dense_vecs', 'lexical_weights']
        >>> weights = outputs["lexical_weights"]
        >>> model.compute_lexical_matching_score(weights[0], weights[1]) > 0
        True
    """

    embedder: FlagModel

    def __init__(
        self,
        model_name_or_path: str | os.PathLike[str],
        *,
        normalize_embeddings: bool | Unset = UNSET,
        use_fp16: bool = True,
        use_bf16: bool = False,
        query_instruction_for_retrieval: str | Unset | None = UNSET,
        query_instruction_format: str | None = None,
        devices: str | int | torch.device | Sequence[str | int | torch.device] | None = None,
        pooling_method: Pooling | Unset = UNSET,
        colbert_dim: int = -1,
        batch_size: int | None = None,
        query_max_length: int | None = None,
        passage_max_length: int | None = None,
        return_dense: bool = True,
        return_sparse: bool = False,
        return_colbert_vecs: bool = False,
        truncate_dim: int | None = None,
        **options: Any,
    ) -> None:
        """Load a model.

        Args:
            model_name_or_path: A folder, a Hugging Face id, or `packaged:NAME`.
            normalize_embeddings: Whether dense vectors have unit length; those of tokens always have.
            use_fp16: Compute in the fastest 16-bit format of the device (float32 where none is fast).
            use_bf16: Compute in bfloat16.
            query_instruction_for_retrieval: Text before queries in `encode_queries` and `compute_score`.
            query_instruction_format: Template of instruction and query, two slots `{}`.
            devices: One device or several; by default every visible GPU, else the CPU.
            pooling_method: How token vectors become the dense one, by default as the card says.
            colbert_dim: Width of the vectors of tokens, -1 for what the checkpoint has.
            batch_size: Maximum number of texts per batch; by default batches are sized from the device.
            query_max_length: Cut texts of `encode_queries` at this many tokens; by default at the model's own limit.
                (FlagEmbedding cuts at 512 unless told.)
            passage_max_length: The same for `encode`, `encode_corpus` and passages of `compute_score`.
            return_dense: Whether dense vectors are computed if a call does not say so.
            return_sparse: The same for lexical weights.
            return_colbert_vecs: The same for multi-vectors.
            truncate_dim: Keep this many leading dimensions, of vectors of tokens, too.
            options: Further arguments of `FlagModel`.

        Raises:
            CheckpointError: there is no such model, its files are damaged, or a head of an output that `return_...`
                asks for is missing.
            CardError: pooling is known to nobody, or the model is not an embedder.
            ArgumentError: an argument is impossible.
        """
        self.embedder = FlagModel(
            model_name_or_path, pooling_method, normalize_embeddings, query_instruction_for_retrieval, use_fp16,
            use_bf16=use_bf16, query_instruction_format=query_instruction_format, devices=devices,
            batch_size=batch_size, query_max_length=query_max_length, passage_max_length=passage_max_length,
            truncate_dim=truncate_dim, **options,
        )  # fmt: skip
        self.return_dense, self.return_sparse, self.return_colbert_vecs = (
            return_dense,
            return_sparse,
            return_colbert_vecs,
        )
        if return_sparse or return_colbert_vecs:
            self.embedder.check_outputs(self._wanted(True, None, None))
        if colbert_dim > 0 and truncate_dim is None and colbert_dim != (width := self.embedder.token_dimension):
            raise ArgumentError(f"colbert_dim={colbert_dim}, but the head in {self.folder} gives {width} dimensions")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({repr(self.embedder).partition('(')[2][:-1]}, {', '.join(self.outputs)})"

    @property
    def card(self) -> ModelCard:
        """What the checkpoint says, the caller's arguments included."""
        return self.embedder.card

    @property
    def folder(self) -> Path:
        """The checkpoint."""
        return self.embedder.folder

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """The devices in use; short inputs are computed on the first."""
        return self.embedder.devices

    @property
    def device(self) -> torch.device:
        """The first device."""
        return self.embedder.device

    @property
    def precision(self) -> str:
        """Number format that is computed in, such as `bfloat16`."""
        return self.embedder.precision

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The Hugging Face tokenizer of the checkpoint."""
        return self.embedder.tokenizer

    @property
    def model(self) -> PreTrainedModel:
        """The network of the checkpoint as transformers runs it, without heads; see `FlagModel.model`."""
        return self.embedder.model

    @property
    def dimension(self) -> int:
        """Width of dense vectors."""
        return self.embedder.dimension

    @property
    def outputs(self) -> tuple[Output, ...]:
        """What the checkpoint has heads for: `dense`, and `sparse` and `multi-vector`, if it does."""
        return self.embedder.outputs

    def close(self) -> None:
        """End the worker processes of further devices; they start again when they are needed."""
        self.embedder.close()

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Save the model with its heads: for FlagEmbedding, and (the dense part) for sentence-transformers.

        Args:
            path: Folder to make.
            overwrite: Replace a folder that is there.

        Raises:
            OutputError: the folder exists or cannot be written.
            CheckpointError: a head is damaged.
        """
        self.embedder.save(path, overwrite=overwrite)

    def encode(
        self,
        sentences: str | Iterable[str],
        batch_size: int | None = None,
        max_length: int | None = None,
        return_dense: bool | None = None,
        return_sparse: bool | None = None,
        return_colbert_vecs: bool | None = None,
        *,
        sparse_format: Literal["dict", "csr"] = "dict",
        colbert_format: Literal["list", "ragged"] = "list",
        instruction: str | Unset | None = UNSET,
        instruction_format: str | None = None,
        show_progress: bool | None = None,
        **others: Any,
    ) -> M3Output:
        """Outputs of texts as they are.

        Args:
            sentences: A text, a list of texts, or any iterable of texts, which is streamed.
            batch_size: Maximum number of texts per batch; by default batches are sized from the device.
            max_length: Cut texts at this many tokens; by default at `passage_max_length`, else at the model's limit.
                How many were cut is logged, and `dense_vecs.truncated` has their rows.
            return_dense: Whether to compute dense vectors; by default as the model was made.
            return_sparse: Whether to compute lexical weights.
            return_colbert_vecs: Whether to compute multi-vectors.
            sparse_format: `dict` for a dict of each text from token id to weight; `csr` for a `scipy.sparse.csr_array`
                [n, vocabulary] float32, whose `data`, `indices` (int32, ascending in a row) and `indptr` hold them.
            colbert_format: `list` for an array of each text; `ragged` for one array of all with offsets (`Ragged`).
            instruction: Text put before each input; None or "" for none.
            instruction_format: Template of instruction and text, two slots `{}`.
            show_progress: Show a progress bar; by default on a terminal, from a few thousand texts on.
            others: Keywords of FlagEmbedding without a use here: one warning says what holds instead.

        Raises:
            TextTypeError: an element is not a string; the message has its index.
            ArgumentError: no output is asked for, or an argument is impossible.
            CheckpointError: the head of an output is missing, damaged or of another shape; the message names it.
            MissingExtraError: `csr` without SciPy.
            NumericalError: an output has NaN or infinity.
        """
        return self._encode(
            "plain", sentences, batch_size, max_length, self._wanted(return_dense, return_sparse, return_colbert_vecs),
            sparse_format, colbert_format, instruction, instruction_format, show_progress, others,
        )  # fmt: skip

    def encode_queries(
        self,
        queries: str | Iterable[str],
        batch_size: int | None = None,
        max_length: int | None = None,
        return_dense: bool | None = None,
        return_sparse: bool | None = None,
        return_colbert_vecs: bool | None = None,
        *,
        sparse_format: Literal["dict", "csr"] = "dict",
        colbert_format: Literal["list", "ragged"] = "list",
        instruction: str | Unset | None = UNSET,
        instruction_format: str | None = None,
        show_progress: bool | None = None,
        **others: Any,
    ) -> M3Output:
        """Outputs of retrieval queries, with the query instruction if there is one. Arguments as `encode`."""
        return self._encode(
            "query", queries, batch_size, max_length, self._wanted(return_dense, return_sparse, return_colbert_vecs),
            sparse_format, colbert_format, instruction, instruction_format, show_progress, others,
        )  # fmt: skip

    def encode_corpus(
        self,
        corpus: str | Iterable[str],
        batch_size: int | None = None,
        max_length: int | None = None,
        return_dense: bool | None = None,
        return_sparse: bool | None = None,
        return_colbert_vecs: bool | None = None,
        *,
        sparse_format: Literal["dict", "csr"] = "dict",
        colbert_format: Literal["list", "ragged"] = "list",
        instruction: str | Unset | None = UNSET,
        instruction_format: str | None = None,
        show_progress: bool | None = None,
        **others: Any,
    ) -> M3Output:
        """Outputs of passages, with the passage instruction if there is one. Arguments as `encode`."""
        return self._encode(
            "document", corpus, batch_size, max_length, self._wanted(return_dense, return_sparse, return_colbert_vecs),
            sparse_format, colbert_format, instruction, instruction_format, show_progress, others,
        )  # fmt: skip

    def _encode(
        self,
        role: Role,
        sentences: str | Iterable[str],
        batch_size: int | None,
        max_length: int | None,
        wanted: tuple[Output, ...],
        sparse_format: str,
        colbert_format: str,
        instruction: str | Unset | None,
        instruction_format: str | None,
        show_progress: bool | None,
        others: Mapping[str, Any],
    ) -> M3Output:
        if others:
            set_aside(others, "BGEM3FlagModel.encode")
        for name, value, known in (
            ("sparse_format", sparse_format, ("dict", "csr")), ("colbert_format", colbert_format, ("list", "ragged")),
        ):  # fmt: skip
            if value not in known:
                raise ArgumentError(f"{name} is {' or '.join(map(repr, known))}, not {value!r}")
        if sparse_format == "csr" and _SPARSE in wanted:
            LexicalCsr.of([]).matrix(self.embedder.vocabulary)  # Before the work: is SciPy there?
        if role == "plain" and max_length is None:
            max_length = self.embedder.passage_max_length
        single = isinstance(sentences, str)
        encoded = self.embedder.encode_outputs(
            [sentences] if isinstance(sentences, str) else sentences, wanted, role=role, batch_size=batch_size,
            max_length=max_length, instruction=instruction, instruction_format=instruction_format,
            show_progress=show_progress,
        )  # fmt: skip
        dense: Any = None
        if _DENSE in wanted:
            changes = tuple(encoded.truncated), tuple(encoded.repaired)
            dense = Embeddings.of(encoded.vectors[0] if single else encoded.vectors, *changes, self.embedder._origin)
        weights: Any = encoded.ragged.get(_SPARSE)
        if weights is not None and sparse_format == "csr":
            weights = LexicalCsr.of(weights).matrix(self.embedder.vocabulary)
        elif weights is not None:
            weights = [as_dict(row) for row in weights]
            weights = weights[0] if single else weights
        vectors: Any = encoded.ragged.get(_COLBERT)
        if vectors is not None and single:
            vectors = vectors[0]
        elif vectors is not None and colbert_format == "ragged":
            vectors = Ragged.of(vectors, np.empty((0, self.embedder.token_dimension), np.float32))
        return {"dense_vecs": dense, "lexical_weights": weights, "colbert_vecs": vectors}

    def _wanted(self, dense: bool | None, sparse: bool | None, colbert: bool | None) -> tuple[Output, ...]:
        """The outputs that a call asks for."""
        asked = (
            (_DENSE, self.return_dense if dense is None else dense),
            (_SPARSE, self.return_sparse if sparse is None else sparse),
            (_COLBERT, self.return_colbert_vecs if colbert is None else colbert),
        )
        wanted = tuple(output for output, yes in asked if yes)
        if not wanted:
            raise ArgumentError("ask for an output: return_dense, return_sparse or return_colbert_vecs must be true")
        return wanted

    def compute_score(
        self,
        sentence_pairs: Pair | Iterable[Pair],
        batch_size: int | None = None,
        max_query_length: int | None = None,
        max_passage_length: int | None = None,
        weights_for_different_modes: Sequence[float] | None = None,
        *,
        show_progress: bool | None = None,
        **others: Any,
    ) -> dict[Mode, Any]:
        """Scores of pairs of query and passage, in each mode; higher is more relevant.

        Texts that stand in several pairs are computed once for every few hundred pairs, so pairs of one query should
        follow each other. Queries and passages have their instructions, if the model has any.

        Args:
            sentence_pairs: A pair, a list of pairs, or any iterable of pairs, which is streamed.
            batch_size: Maximum number of texts per batch; by default batches are sized from the device.
            max_query_length: Cut queries at this many tokens; by default at `query_max_length`, else the model's limit.
            max_passage_length: The same for passages.
            weights_for_different_modes: Weights of dense, sparse and colbert in the sums, which are divided by the
                weights' own; 1 each by default.
            show_progress: Show a progress bar; by default on a terminal, from a few thousand pairs on.
            others: Keywords of FlagEmbedding without a use here: one warning says what holds instead.

        Returns:
            Lists of floats by mode: `dense` (product of the vectors), `sparse` (lexical matching), `colbert` (mean over
            the query's vectors of each one's largest product with one of the passage), `sparse+dense` and
            `colbert+sparse+dense`. For a single pair, numbers.

        Raises:
            ArgumentError: an element is not a pair, or the weights are not three numbers with a sum.
            CheckpointError: a head is missing, damaged or of another shape.
        """
        if others:
            set_aside(others, "BGEM3FlagModel.compute_score")
        weights = _mode_weights(weights_for_different_modes)
        single = is_single(sentence_pairs)
        if isinstance(sentence_pairs, str | bytes | dict) or not isinstance(sentence_pairs, Iterable):
            kind = type(sentence_pairs).__name__
            raise TextTypeError(f"pairs of a query and a passage are expected, not {kind}: {sentence_pairs!r:.80}")
        pairs: Iterable[Any] = [sentence_pairs] if single else sentence_pairs
        found: dict[Mode, list[float]] = {mode: [] for mode in MODES}
        total = len(pairs) if isinstance(pairs, Sized) else None
        # Each side is a stream of its own, read part by part.
        parts, *sides = itertools.tee(_parts(pairs), 3)
        with (
            Progress("score", "pairs", total, show=show_progress) as bar,
            closing(self._side(sides[0], "query", batch_size, max_query_length)) as queries,
            closing(self._side(sides[1], "document", batch_size, max_passage_length)) as passages,
        ):
            for part, query, passage in zip(parts, queries, passages, strict=True):
                for each in zip(_rows(query), _rows(passage), strict=True):
                    for mode, score in _scores(*each, weights).items():
                        found[mode].append(score)
                bar.advance(len(part))
        return {mode: scores[0] if single else scores for mode, scores in found.items()}

    def _side(
        self, parts: Iterable[list[Pair]], role: Role, batch_size: int | None, max_length: int | None
    ) -> Generator[Encoded, None, None]:
        """All outputs of the queries, or of the passages, of each part of some pairs."""
        place = 0 if role == "query" else 1
        return self.embedder.encode_blocks(
            ([pair[place] for pair in part] for part in parts), role=role, batch_size=batch_size, outputs=OUTPUTS,
            max_length=max_length,
        )  # fmt: skip

    @overload
    def compute_lexical_matching_score(self, lexical_weights_1: Weights, lexical_weights_2: Weights) -> float: ...
    @overload
    def compute_lexical_matching_score(
        self, lexical_weights_1: Sequence[Weights], lexical_weights_2: Sequence[Weights]
    ) -> npt.NDArray[np.float64]: ...
    def compute_lexical_matching_score(self, lexical_weights_1: Any, lexical_weights_2: Any) -> Any:
        """The sum, over the tokens that two texts have in common, of the products of their weights.

        Args:
            lexical_weights_1: The weights of a text, or a list of those of n texts, or a sparse array of theirs.
            lexical_weights_2: Another one, or a list of those of m texts, or a sparse array.

        Returns:
            A number for two texts, an array [n, m] for two lists or arrays.

        Raises:
            ArgumentError: one is of a text and the other of a list, or they are something else.
        """
        first, second = lexical_weights_1, lexical_weights_2
        if isinstance(first, Mapping) and isinstance(second, Mapping):
            return _lexical_score(first, second)
        if isinstance(first, list | tuple) and isinstance(second, list | tuple):
            scores = [_lexical_score(one, other) for one in first for other in second]
            return np.array(scores, dtype=np.float64).reshape(len(first), len(second))
        if hasattr(first, "tocsr") and hasattr(second, "tocsr"):
            return (first @ second.T).toarray()
        kinds = " and ".join(type(each).__name__ for each in (first, second))
        raise ArgumentError(f"lexical weights are two dicts, two lists of dicts or two sparse arrays, not {kinds}")

    def colbert_score(self, q_reps: npt.NDArray[Any], p_reps: npt.NDArray[Any]) -> np.float32:
        """Late interaction of two texts: the mean of the largest product of each query vector with a passage vector.

        Args:
            q_reps: Multi-vectors [a, dim] of the query.
            p_reps: Those [b, dim] of the passage.
        """
        if np.ndim(q_reps) != 2 or np.ndim(p_reps) != 2 or q_reps.shape[1] != p_reps.shape[1]:
            shapes = f"{np.shape(q_reps)} and {np.shape(p_reps)}"
            raise ArgumentError(f"vectors [a, dim] and [b, dim] of two texts are expected, not {shapes}")
        return np.float32((q_reps @ p_reps.T).max(axis=1).mean())

    @overload
    def convert_id_to_token(self, lexical_weights: Weights, *, pieces: bool = False) -> dict[str, float]: ...
    @overload
    def convert_id_to_token(self, lexical_weights: Sequence[Weights], *, pieces: bool = False) -> Any: ...
    def convert_id_to_token(self, lexical_weights: Any, *, pieces: bool = False) -> Any:
        """Lexical weights by word instead of by token id, for people.

        Args:
            lexical_weights: The weights of a text, or a list of those of several.
            pieces: Keep the tokenizer's pieces, which differ for each id (`▁is` begins a word, `is` continues one);
                otherwise they are decoded, and of two that look the same the larger weight stays.

        Returns:
            A dict, or a list of them; for a list of one text, as in FlagEmbedding, that text's dict.
        """
        texts = [lexical_weights] if isinstance(lexical_weights, Mapping) else list(lexical_weights)
        tokenizer = self.embedder._engine.tokenizer.backend_tokenizer

        def name(number: int) -> str:
            return str(tokenizer.id_to_token(number) if pieces else tokenizer.decode([number]))

        named = [_named(weights, name) for weights in texts]
        return named[0] if len(named) == 1 else named


def _parts(pairs: Iterable[Any]) -> Iterator[list[Pair]]:
    """Pairs that are scored together.

    Raises:
        TextTypeError: an element is not a pair of strings; the message has its index.
    """
    part: list[Pair] = []
    size = 0
    for row, item in enumerate(pairs):
        valid_pair(item, row)
        query, passage = item
        size += len(query) + len(passage)
        if part and (len(part) == _PAIRS or size > _CHARACTERS):
            yield part
            part, size = [], len(query) + len(passage)
        part.append((query, passage))
    if part:
        yield part


def _rows(encoded: Encoded) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]]:
    """The three outputs of each text."""
    return zip(encoded.vectors, encoded.ragged[_SPARSE], encoded.ragged[_COLBERT], strict=True)


def _scores(query: Any, passage: Any, weights: tuple[float, float, float]) -> dict[Mode, float]:
    """The scores of a pair, in each mode; `weights` of dense, sparse and colbert."""
    _, left, right = np.intersect1d(query[1]["token"], passage[1]["token"], assume_unique=True, return_indices=True)
    each = (
        float(query[0] @ passage[0]),
        float(query[1]["weight"][left] @ passage[1]["weight"][right]),
        float((query[2] @ passage[2].T).max(axis=1).mean()),
    )
    dense, sparse, colbert = (weight * score for weight, score in zip(weights, each, strict=True))
    two = weights[0] + weights[1]
    return {
        "colbert": each[2],
        "sparse": each[1],
        "dense": each[0],
        "sparse+dense": (sparse + dense) / two if two else math.nan,
        "colbert+sparse+dense": (colbert + sparse + dense) / sum(weights),
    }


def _mode_weights(given: Sequence[float] | None) -> tuple[float, float, float]:
    """Weights of dense, sparse and colbert."""
    if given is None:
        return 1.0, 1.0, 1.0
    if len(given) != 3 or not all(math.isfinite(weight) for weight in given) or not sum(given):
        raise ArgumentError(
            f"weights_for_different_modes are three numbers, of dense, sparse and colbert, with a sum that is not 0: "
            f"not {given!r}"
        )
    return float(given[0]), float(given[1]), float(given[2])


def _lexical_score(one: Weights, other: Weights) -> float:
    few, many = (one, other) if len(one) <= len(other) else (other, one)
    return float(sum(weight * many[token] for token, weight in few.items() if token in many))


def _named(weights: Weights, name: Callable[[int], str]) -> dict[str, float]:
    """Weights by the names of their ids, the larger one where names are the same."""
    found: dict[str, float] = {}
    for number, weight in weights.items():
        word = name(int(number))
        found[word] = max(weight, found.get(word, weight))
    return found
