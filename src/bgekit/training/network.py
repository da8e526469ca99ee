"""The network as it is trained: the one encoder, unpadded, in float32, with what does not learn switched off."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from ..errors import ArgumentError
from ..models.card import ModelCard
from ..models.dropout import use_quick_dropout
from ..models.encoder import Encoder, PackedBackbone, PaddedBackbone, can_pack, load_head, load_transformer
from ..models.packing import Packed
from ..models.recompute import Recomputing

#: Names of what is in a pooler. It is no part of an embedding: what learns there would never get a gradient, for which
#: data-parallel training would wait.
_POOLER: Final = r"(.*\.)?pooler\..*"
_POSITIONS = re.compile(r"(^|\.)(position_embeddings|wpe|embed_positions)\.")


class TrainableEncoder(Recomputing, nn.Module):
    """The encoder with what a trainer asks of a model."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    @property
    def transformer(self) -> Any:
        """The Hugging Face model in it."""
        return self.encoder.backbone.model  # type: ignore[attr-defined]

    def forward(self, batch: Packed) -> Tensor:
        """Vectors [n, d] in float32, differentiable."""
        return self.encoder(batch)

    def _recomputed(self) -> Any:
        return self.transformer

    def weights(self) -> dict[str, Tensor]:
        """The transformer's weights by their names in a checkpoint; adapters merged."""
        model = self.transformer
        merged = getattr(model, "merge_and_unload", None)
        if merged is None:
            return dict(model.state_dict())
        import copy

        return dict(copy.deepcopy(model).merge_and_unload().state_dict())

    def dense(self) -> list[dict[str, Tensor]]:
        """Weights of the dense layers behind pooling."""
        return [dict(layer.state_dict()) for layer in self.encoder.head.layers]


def load_trainable(
    folder: Path, card: ModelCard, *, fix_position_embedding: bool = False, trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> TrainableEncoder:  # fmt: skip
    """The encoder of a checkpoint for training, on the CPU.

    Args:
        folder: The checkpoint.
        card: Its card; pooling and normalisation are what it says.
        fix_position_embedding: Leave the position embeddings as they are.
        trust_remote_code: Allow architectures that the checkpoint brings as Python code.
        allow_pickle: Allow `.bin` weights.

    Raises:
        CheckpointError: files are missing or damaged.
        ArgumentError: there are no position embeddings to fix.
    """
    model = load_transformer(
        folder, dtype=torch.float32, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle
    )
    backbone = (PackedBackbone if can_pack(model) else PaddedBackbone)(model)
    encoder = Encoder(backbone, card)
    load_head(encoder.head, folder, card, allow_pickle)
    fixed = 0
    for name, parameter in model.named_parameters():
        position = _POSITIONS.search(name) is not None
        fixed += position
        if re.fullmatch(_POOLER, name) or (fix_position_embedding and position):
            parameter.requires_grad_(False)
    if fix_position_embedding and not fixed:
        raise ArgumentError(f"{card.name} has no position embeddings to fix: leave out --fix_position_embedding")
    use_quick_dropout(model)
    return TrainableEncoder(encoder).train()


def add_lora(network: TrainableEncoder, *, rank: int, alpha: float, dropout: float, modules: list[str] | None) -> None:
    """Freeze the transformer and give it low-rank adapters (arXiv:2106.09685) that are trained instead.

    Args:
        network: Changed in place.
        rank: Rank of the adapters.
        alpha: Their scale is alpha / rank.
        dropout: On their input.
        modules: Names of the layers that get them, a pooler's excepted; all linear layers by default.

    Raises:
        MissingExtraError: peft is not installed.
        ArgumentError: there are no such layers.
    """
    from ..errors import import_extra

    peft: Any = import_extra("peft", "lora")
    pooled = any(re.fullmatch(_POOLER, name) for name, _ in network.transformer.named_modules())
    config = peft.LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=modules or "all-linear", bias="none",
        task_type="FEATURE_EXTRACTION", exclude_modules=_POOLER if pooled else None,
    )  # fmt: skip
    try:
        adapted = peft.get_peft_model(network.transformer, config)
    except ValueError as error:
        raise ArgumentError(f"--use_lora: {error}") from error
    use_quick_dropout(adapted)
    network.encoder.backbone.model = adapted  # type: ignore[attr-defined]
