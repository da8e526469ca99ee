"""Heads on token vectors, as BGE-M3 has them (arXiv:2402.03216): lexical weights and multi-vectors of a text.

    lexical weight of a token   max over its places in the text of relu(w h + b); special tokens have none
    vectors of a text           W h + b of each of its tokens but the first, scaled to unit length

Texts have different numbers of tokens, so both are laid end to end, with a count for each text: nothing here has a
column for each word of the vocabulary. Everything is differentiable.
"""

from __future__ import annotations

import io
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, relu

from ..errors import CheckpointError
from ..models.checkpoint_files import read_tensors
from ..models.head_files import HEAD_FILES, HEAD_FOLDER, Output, head_files, head_paths, stored_heads
from .cpu_products import FEW, MANY, Linear, in_equal_parts, round_up, with_zeros
from .packing import Packed

H = TypeVar("H")
#: Columns of the distinct tokens of two batches that are multiplied at a time.
_COLUMNS: Final = 4096


@dataclass(frozen=True, eq=False)
class TokenWeights:
    """Lexical weights of n texts: their distinct tokens, laid end to end.

    Attributes:
        tokens: [N] int64 token ids, ascending in each text, each at most once.
        weights: [N] float32, above 0.
        counts: [n] int64, how many tokens each text has; 0 is possible.
    """

    tokens: Tensor
    weights: Tensor
    counts: Tensor


@dataclass(frozen=True, eq=False)
class TokenVectors:
    """Vectors of the tokens of n texts, laid end to end.

    Attributes:
        values: [N, d] float32, each of unit length, in the order of the text.
        counts: [n] int64, how many vectors each text has.
    """

    values: Tensor
    counts: Tensor


@dataclass(frozen=True, eq=False)
class Outputs:
    """What a network makes of a batch; None for what was not asked for.

    Attributes:
        dense: [n, d] float32, one vector for each text.
        sparse: Weights of tokens.
        multi_vector: Vectors of tokens.
    """

    dense: Tensor | None = None
    sparse: TokenWeights | None = None
    multi_vector: TokenVectors | None = None


class TokenHeads(nn.Module):
    """The linear layers behind lexical weights and multi-vectors; a new one is untrained.

    Attributes:
        sparse: `Linear(hidden, 1)`, None without.
        multi_vector: `Linear(hidden, dim)`, None without.

    Example:
        >>> import torch
        >>> from bgekit.networks import Packed, TokenHeads
        >>> heads = TokenHeads(8, sparse=True, multi_vector=4)
        >>> batch = Packed.of([[0, 7, 9, 7, 2], [0, 2]])
        >>> heads.vectors(torch.randn(7, 8), batch).counts.tolist()
        [4, 1]
    """

    def __init__(self, hidden: int, *, sparse: bool = False, multi_vector: int | None = None) -> None:
        """Untrained heads.

        Args:
            hidden: Width of token vectors.
            sparse: Whether there is a head for lexical weights.
            multi_vector: Width of the vectors of the other head, None without.
        """
        super().__init__()
        self.sparse = nn.Linear(hidden, 1) if sparse else None
        self.multi_vector = nn.Linear(hidden, multi_vector) if multi_vector else None

    @property
    def outputs(self) -> tuple[Output, ...]:
        """The outputs that there are heads for."""
        there: dict[Output, nn.Module | None] = {"sparse": self.sparse, "multi-vector": self.multi_vector}
        return tuple(output for output, head in there.items() if head is not None)

    def weights(self, hidden: Tensor, batch: Packed, excluded: Tensor) -> TokenWeights:
        """Lexical weights.

        Args:
            hidden: [T, hidden] vectors of all tokens of the batch.
            batch: The texts.
            excluded: int64 ids of tokens that get no weight, on the device of the batch.
        """
        return distinct_weights(self.token_weights(hidden, batch), batch, excluded)

    def vectors(self, hidden: Tensor, batch: Packed, width: int | None = None) -> TokenVectors:
        """Vectors of all tokens but each text's first.

        Args:
            hidden: [T, hidden] vectors of all tokens of the batch.
            batch: The texts.
            width: Keep this many leading dimensions, None for all.
        """
        values = self.token_vectors(hidden, batch)
        return TokenVectors(normalize(values if width is None else values[:, :width], dim=-1), batch.lengths_tensor - 1)

    def token_weights(self, hidden: Tensor, batch: Packed) -> Tensor:
        """[T] float32: the weight of each token where it stands."""
        return relu(_there(self.sparse)(hidden.float())).squeeze(-1).float()

    def token_vectors(self, hidden: Tensor, batch: Packed) -> Tensor:
        """[T - n, d] float32: the vector of each token but each text's first, of any length."""
        return _there(self.multi_vector)(hidden[batch.positions > 0].float()).float()


class FusedHeads(TokenHeads):
    """The heads for inference behind the fused CPU path: what a token gets depends, to the bit, on its text alone."""

    def __init__(self, heads: TokenHeads, dtype: torch.dtype) -> None:
        """Prepare heads.

        Args:
            heads: The heads.
            dtype: What vectors are computed in; weights, a single column, are in float32.
        """
        super().__init__(1)
        self.sparse = heads.sparse
        self.multi_vector = head = heads.multi_vector
        self._product = None if head is None else Linear(head.weight.detach(), head.bias.detach(), dtype)
        self._dtype = dtype

    def token_weights(self, hidden: Tensor, batch: Packed) -> Tensor:
        """See `TokenHeads`."""
        return in_equal_parts(partial(super().token_weights, batch=batch), hidden)

    def token_vectors(self, hidden: Tensor, batch: Packed) -> Tensor:
        """See `TokenHeads`. The same two kinds of products as in the layers: by the length of a token's own text."""
        lengths = batch.lengths_tensor.repeat_interleave(batch.lengths_tensor)
        rows = torch.nonzero(batch.positions > 0).squeeze(1)
        few = lengths[rows] <= FEW
        product = _there(self._product)
        result = torch.empty(len(rows), product.bias.numel())
        for like, places in ((FEW, few), (MANY, ~few)):
            if chosen := int(places.sum()):
                x = hidden[rows[places]].to(self._dtype)
                if more := round_up(chosen) - chosen:
                    x = with_zeros(x, more)
                result[places] = product(x, like)[:chosen].float()
        return result


def _there(head: H | None) -> H:
    assert head is not None, "whoever asks for an output has loaded its head"
    return head


def distinct_weights(weights: Tensor, batch: Packed, excluded: Tensor) -> TokenWeights:
    """The largest weight of each distinct token of each text, without those of weight 0.

    Args:
        weights: [T] weights of tokens where they stand.
        batch: The texts.
        excluded: int64 ids of tokens that get none.
    """
    # NaN is no weight of 0: it stays, to be seen.
    places = torch.nonzero(~(weights <= 0) & ~torch.isin(batch.input_ids, excluded)).squeeze(1)
    texts = torch.arange(len(batch.lengths), device=places.device).repeat_interleave(
        batch.lengths_tensor, output_size=len(batch.input_ids)
    )
    # A text and one of its tokens as one number, so that sorting does both.
    keys, inverse = torch.unique((texts[places] << 32) | batch.input_ids[places], return_inverse=True)
    largest = weights.new_zeros(len(keys)).scatter_reduce(0, inverse, weights[places], "amax")
    return TokenWeights(keys & 0xFFFFFFFF, largest, torch.bincount(keys >> 32, minlength=len(batch.lengths)))


def lexical_scores(queries: TokenWeights, passages: TokenWeights) -> Tensor:
    """[n, m] float32: for each query and passage the sum, over the tokens that both have, of the weights' products."""
    common, places = torch.unique(torch.cat([queries.tokens, passages.tokens]), return_inverse=True)
    split = len(queries.tokens)
    sides = [(queries, places[:split]), (passages, places[split:])]
    scores = queries.weights.new_zeros(len(queries.counts), len(passages.counts))
    for start in range(0, len(common), _COLUMNS):
        left, right = (_columns(side, columns, start) for side, columns in sides)
        scores = scores + left @ right.T
    return scores


def _columns(side: TokenWeights, columns: Tensor, start: int) -> Tensor:
    """[n, _COLUMNS] the weights of texts in the columns from `start` on."""
    here = torch.nonzero((columns >= start) & (columns < start + _COLUMNS)).squeeze(1)
    rows = torch.arange(len(side.counts), device=here.device).repeat_interleave(side.counts)
    dense = side.weights.new_zeros(len(side.counts), _COLUMNS)
    return dense.index_put((rows[here], columns[here] - start), side.weights[here])


def multi_vector_scores(queries: TokenVectors, passages: TokenVectors) -> Tensor:
    """[n, m] float32: the mean, over a query's vectors, of each one's largest product with a passage's vector."""
    products = queries.values @ passages.values.T
    best = torch.stack([part.amax(1) for part in products.split(passages.counts.tolist(), 1)], 1)
    return torch.stack([part.mean(0) for part in best.split(queries.counts.tolist())])


def read_heads(folder: Path, hidden: int, outputs: Collection[Output]) -> TokenHeads:
    """The heads of a checkpoint for some outputs, in float32 on the CPU.

    Args:
        folder: The checkpoint.
        hidden: Width of its token vectors.
        outputs: The outputs that are wanted; `dense` needs no head.

    Raises:
        CheckpointError: a head is missing or damaged, or has another shape; the message names its file.
    """
    wanted = {output: _read_head(folder, output, hidden) for output in HEAD_FILES if output in outputs}
    sparse, multi = wanted.get("sparse"), wanted.get("multi-vector")
    width = None if multi is None else len(multi["bias"])
    with torch.device("meta"):
        heads = TokenHeads(hidden, sparse=sparse is not None, multi_vector=width)
    for head, weights in ((heads.sparse, sparse), (heads.multi_vector, multi)):
        if head is not None and weights is not None:
            head.load_state_dict({name: value.float() for name, value in weights.items()}, assign=True)
    return heads.requires_grad_(False).eval()


def _read_head(folder: Path, output: Output, hidden: int | None = None) -> dict[str, Tensor]:
    """The weight [out, hidden] and bias [out] of a head, as they are stored."""
    files = head_files(folder, output)
    if not files:
        name = HEAD_FILES[output]
        raise CheckpointError(
            f"{folder} has no head for the output {output!r}: no {name}.pt and no {HEAD_FOLDER}/{name}.safetensors. "
            "Without it this output would be noise; bge finetune --unified_finetuning true trains one"
        )
    read = [dict(read_tensors(file)) for file in files]
    for file, weights in zip(files, read, strict=True):
        shapes = {name: tuple(value.shape) for name, value in weights.items()}
        rows, columns = shapes.get("weight", (0, 0))[:2] if len(shapes.get("weight", ())) == 2 else (0, 0)
        fits = rows == 1 if output == "sparse" else rows > 0
        if not fits or hidden not in (None, columns) or shapes != {"weight": (rows, columns), "bias": (rows,)}:
            wanted = f"weight ({'1' if output == 'sparse' else 'any'}, {hidden or 'hidden size'}) and its bias"
            found = ", ".join(f"{name} {shape}" for name, shape in shapes.items()) or "nothing"
            raise CheckpointError(f"{file} is not the {output} head of this model: it holds {found}, not {wanted}")
    for file, weights in zip(files[1:], read[1:], strict=True):
        if any(not torch.equal(read[0][name], weights[name]) for name in weights):
            raise CheckpointError(f"{files[0]} and {file} hold different weights: remove the one that is not meant")
    return read[0]


def write_heads(heads: TokenHeads, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write heads into the folder of a checkpoint, as FlagEmbedding reads them (`.pt`) and as safetensors.

    Args:
        heads: The heads.
        folder: The folder.
        dtype: Type to store them in.
    """
    heads_there: tuple[tuple[Output, nn.Linear | None], ...] = (
        ("sparse", heads.sparse), ("multi-vector", heads.multi_vector)
    )  # fmt: skip
    for output, head in heads_there:
        if head is not None:
            weights = {name: value.detach().to("cpu", dtype) for name, value in head.state_dict().items()}
            _write_head(folder, output, weights)


def copy_heads(source: Path, folder: Path) -> None:
    """Write the heads of a checkpoint into the folder of another one, in both formats, as they are stored.

    Raises:
        CheckpointError: a head is damaged.
    """
    for output in stored_heads(source):
        _write_head(folder, output, _read_head(source, output))


def _write_head(folder: Path, output: Output, weights: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    weights = {name: value.contiguous() for name, value in weights.items()}
    pickled, safe = head_paths(folder, output)
    safe.parent.mkdir(exist_ok=True)
    save_file(weights, safe, metadata={"format": "pt"})
    buffer = io.BytesIO()  # Written to a file directly, torch hides the reason of a failure.
    torch.save(weights, buffer)
    pickled.write_bytes(buffer.getbuffer())
