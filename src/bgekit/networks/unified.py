"""The encoder with heads for lexical weights and multi-vectors, for training: all outputs of a text from one pass."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..errors import ArgumentError
from ..models.checkpoint_files import hidden_size, read_config
from ..models.head_files import HEAD_FILES, Output, stored_heads
from .cpu_inference import can_fuse
from .encoder import Backbone, Encoder, TrainableEncoder, fused_backbone
from .heads import TokenHeads, read_heads
from .packing import Packed
from .pooling import Select, rows_needed

logger = logging.getLogger(__name__)
#: Memory for vectors of tokens of an encoder that stays as it is.
_KEPT_BYTES: Final = 1 << 30


class TokenOutputs(NamedTuple):
    """What a network gives of n texts with T tokens, in shapes that follow from the texts; None for no such head.

    Attributes:
        dense: [n, d] float32, one vector for each text.
        weights: [T] float32, the lexical weight of each token where it stands, at least 0.
        vectors: [T - n, c] float32, a vector of unit length for each token but each text's first.
    """

    dense: Tensor | None
    weights: Tensor | None
    vectors: Tensor | None

    @property
    def there(self) -> list[Tensor]:
        """The tensors that there are."""
        return [each for each in self if each is not None]

    def of(self, tensors: Sequence[Tensor]) -> TokenOutputs:
        """Other tensors in their places."""
        given = iter(tensors)
        return TokenOutputs(*(None if each is None else next(given) for each in self))

    def rows(self, texts: Packed) -> list[Tensor]:
        """For each tensor that there is, [n] int64: how many rows each text has."""
        lengths = texts.lengths_tensor
        counts = (torch.ones_like(lengths), lengths, lengths - 1)
        return [rows for rows, each in zip(counts, self, strict=True) if each is not None]


class UnifiedEncoder(TrainableEncoder):
    """The encoder of a checkpoint with its heads, all of them in training.

    Attributes:
        wanted: The outputs that it gives.
        fixed: Whether the encoder stays as it is: only heads learn, and it computes as in use, without dropout.
    """

    def __init__(self, encoder: Encoder, wanted: Sequence[Output]) -> None:
        """Take an encoder, which has the heads."""
        super().__init__(encoder)
        self.wanted, self.fixed = tuple(wanted), False
        self._states: _States | None = None

    def forward(self, batch: Packed) -> TokenOutputs:  # type: ignore[override]
        """All outputs of a batch, differentiable."""
        select = rows_needed(self.encoder.pooling)
        with torch.no_grad() if self.fixed else contextlib.nullcontext():
            if self._states is not None:
                hidden, rows = self._states(batch, select)
            else:
                hidden, rows = self.encoder.backbone.with_all(batch, select)
            dense = self.encoder.dense_vectors(rows, batch) if "dense" in self.wanted else None
        heads = self.heads
        return TokenOutputs(
            dense,
            heads.token_weights(hidden, batch) if "sparse" in self.wanted else None,
            normalize(heads.token_vectors(hidden, batch), dim=-1) if "multi-vector" in self.wanted else None,
        )

    @property
    def heads(self) -> TokenHeads:
        """The heads."""
        assert self.encoder.heads is not None, "it was made with heads"
        return self.encoder.heads

    def train(self, mode: bool = True) -> UnifiedEncoder:
        """Set the mode; an encoder that is fixed stays in that of use."""
        super().train(mode)
        if self.fixed:
            self.encoder.eval()
        return self

    def fix(self, fixed: bool = True) -> None:
        """Keep the encoder as it is from the next step on, or let it learn."""
        if fixed != self.fixed:
            self.fixed = fixed
            self.train(self.training)

    def fix_for_good(self, device: torch.device, precision: str = "float32") -> None:
        """Keep the encoder as it is: its weights do not learn, and on a CPU it computes as in use.

        Args:
            device: Where it will train.
            precision: What the encoder computes in on a CPU: `float32` or `bfloat16`.
        """
        for name, parameter in self.encoder.named_parameters():
            if not name.startswith("heads."):
                parameter.requires_grad_(False)
        self.fix()
        if device.type == "cpu" and can_fuse(self.transformer):
            self._states = _States(fused_backbone(self.transformer, precision))


class _States:
    """Vectors of tokens by an encoder that stays as it is: those of a text are computed once, while there is room.

    On the fused CPU path they depend on the text alone, so what is kept is what would be computed again.
    """

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._kept: dict[bytes, tuple[Tensor, Tensor]] = {}
        self._bytes = 0

    def __call__(self, batch: Packed, select: Select) -> tuple[Tensor, Tensor]:
        """See `Backbone.with_all`."""
        kinds = (batch.input_ids,) if batch.token_types is None else (batch.input_ids, batch.token_types)
        ids = [each.split(batch.lengths) for each in kinds]
        keys = [b"".join(part.numpy().tobytes() for part in parts) for parts in zip(*ids, strict=True)]
        new = {key: place for place, key in enumerate(keys) if key not in self._kept}
        computed = self._computed(batch.take(list(new.values())), select) if new else []
        found = dict(zip(new, computed, strict=True))
        texts = [self._kept[key] if key in self._kept else found[key] for key in keys]
        for key, states in found.items():
            size = sum(each.numel() * each.element_size() for each in states)
            if self._bytes + size <= _KEPT_BYTES:
                self._kept[key], self._bytes = states, self._bytes + size
        hidden, rows = (torch.cat([states[part] for states in texts]) for part in (0, 1))
        return hidden, rows

    def _computed(self, batch: Packed, select: Select) -> list[tuple[Tensor, Tensor]]:
        hidden, rows = self._backbone.with_all(batch, select)
        # Copies: tensors of inference mode, which the fused network computes in, have no part in any graph.
        counts = batch.lengths if select == "all" else (1,) * len(batch.lengths)
        parts = zip(hidden.split(batch.lengths), rows.split(counts), strict=True)
        return [(every.clone(), some.clone()) for every, some in parts]


def unified_encoder(
    network: TrainableEncoder, folder: Path, wanted: Sequence[Output], width: int | None, *,
    kept: Sequence[Output] = (),
) -> UnifiedEncoder:  # fmt: skip
    """The encoder of a checkpoint with heads for some outputs: the checkpoint's own, and new ones for what it lacks.

    Args:
        network: The encoder of the checkpoint.
        folder: The checkpoint.
        wanted: The outputs.
        width: Dimensions of multi-vectors; None for those of the checkpoint's head, or of token vectors.
        kept: Heads of the checkpoint that do not learn, and are there to be saved.

    Raises:
        ArgumentError: the checkpoint's multi-vectors have another number of dimensions.
        CheckpointError: a head of the checkpoint is damaged, or has another shape; the message names its file.
    """
    hidden, there = hidden_size(read_config(folder)), stored_heads(folder)
    every = [output for output in HEAD_FILES if output in wanted or output in kept]
    stored = read_heads(folder, hidden, [output for output in every if output in there])
    if stored.multi_vector is not None:
        own = stored.multi_vector.out_features
        if width not in (None, own):
            raise ArgumentError(
                f"the multi-vectors of {folder} have {own} dimensions, not {width}: leave out --colbert-dim, or take a "
                "model without that head"
            )
        width = own
    heads = TokenHeads(
        hidden, sparse="sparse" in every, multi_vector=(width or hidden) if "multi-vector" in every else None
    )  # fmt: skip
    heads.load_state_dict(stored.state_dict(), strict=False)
    for output, head in (("sparse", heads.sparse), ("multi-vector", heads.multi_vector)):
        if head is not None:
            head.requires_grad_(output in wanted)
    if new := [output for output in every if output not in there]:
        logger.info("%s has no head for %s: a new one is trained", folder, " and ".join(new))
    network.encoder.heads = heads
    return UnifiedEncoder(network.encoder, wanted).train()


def wake(network: UnifiedEncoder, batch: Packed, excluded: Tensor) -> None:
    """Move the bias of a new lexical head so that in each text of a batch at least half of the tokens get a weight.

    A linear layer as torch makes it may be below 0 for nearly all tokens of an encoder, or of a text, whose vectors
    have a large part in common. ReLU makes 0 of that, and lets no gradient through: such a head would learn nothing.

    Args:
        network: The network, whose lexical head is new.
        batch: Texts of the kind that it will learn from.
        excluded: int64 ids of tokens that get no weight.
    """
    head, mode = network.heads.sparse, network.training
    assert head is not None, "whoever wakes a head has made it"
    network.eval()
    with torch.no_grad():
        hidden, _ = network.encoder.backbone.with_all(batch, rows_needed(network.encoder.pooling))
        counted = (~torch.isin(batch.input_ids, excluded)).split(batch.lengths)
        texts = zip(head(hidden.float()).squeeze(-1).split(batch.lengths), counted, strict=True)
        medians = [values[counts].median() for values, counts in texts if bool(counts.any())]
        if medians:
            head.bias.sub_(torch.stack(medians).min())
    network.train(mode)
