"""The packed forward is the padded forward of plain transformers, for every architecture and pooling."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from bgekit.models.card import POOLINGS
from bgekit.models.card_reading import read_card
from bgekit.networks.encoder import (
    Encoder,
    FusedBackbone,
    PackedBackbone,
    PaddedBackbone,
    load_encoder,
    load_transformer,
)
from bgekit.networks.packing import Packed

KINDS = ("bert", "roberta", "xlm-roberta", "distilbert", "modernbert", "qwen3", "mpnet", "t5")


def plain_forward(folder: Path, ids: list[list[int]], pooling: str) -> np.ndarray:
    """Padded transformers in float32 and textbook pooling: the reference."""
    from transformers import AutoConfig, AutoModel, T5EncoderModel

    kind = T5EncoderModel if AutoConfig.from_pretrained(folder).model_type == "t5" else AutoModel
    model = kind.from_pretrained(folder, dtype=torch.float32).eval()
    longest = max(map(len, ids))
    padded = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
    with torch.no_grad():
        hidden = model(input_ids=padded, attention_mask=mask).last_hidden_state
    rows = []
    for vectors, row in zip(hidden, ids, strict=True):
        real = vectors[: len(row)].double()
        weights = torch.arange(1, len(row) + 1, dtype=torch.float64)[:, None]
        rows.append(
            {
                "cls": real[0],
                "last_token": real[-1],
                "mean": real.mean(0),
                "max": real.max(0).values,
                "weighted_mean": (real * weights).sum(0) / weights.sum(),
            }[pooling]
        )
    return normalize(torch.stack(rows), dim=-1).numpy()


def random_ids(lengths: list[int], vocabulary: int = 200) -> list[list[int]]:
    generator = np.random.default_rng(1)
    return [[int(token) for token in generator.integers(5, vocabulary, size=length)] for length in lengths]


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_packed_equals_padded(make_model: Callable[..., Path], kind: str, pooling: str) -> None:
    folder = make_model(kind, pooling=pooling)
    ids = random_ids([1, 60, 3, 17, 17, 2, 41, 59, 60, 5])
    encoder = load_encoder(folder, read_card(folder))
    expected = {"mpnet": PaddedBackbone, "t5": PaddedBackbone}.get(
        kind, FusedBackbone if kind in ("bert", "roberta", "xlm-roberta") else PackedBackbone
    )
    assert type(encoder.backbone) is expected
    with torch.inference_mode():
        vectors = encoder(Packed.of(ids)).numpy()
    assert np.abs(vectors - plain_forward(folder, ids, pooling)).max() < 1e-5


@pytest.mark.parametrize("kind", ["bert", "roberta", "modernbert"])
def test_packed_backbone_is_differentiable_and_exact(make_model: Callable[..., Path], kind: str) -> None:
    """Training runs the transformers module packed: its vectors and gradients are those of the padded module."""
    folder = make_model(kind, pooling="mean")
    ids = random_ids([7, 30, 12, 30, 1])

    def gradients(backbone: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        encoder = Encoder(backbone, read_card(folder))
        vectors = encoder(Packed.of(ids))
        (vectors @ torch.linspace(-1, 1, vectors.shape[1])).pow(2).sum().backward()
        named = backbone.model.named_parameters()
        return vectors.detach(), {name: p.grad for name, p in named if p.grad is not None}

    packed, own = gradients(PackedBackbone(load_transformer(folder, dtype=torch.float32)))
    model = load_transformer(folder, dtype=torch.float32)
    model.set_attn_implementation("eager")
    padded, reference = gradients(PaddedBackbone(model))
    assert torch.allclose(packed, padded, atol=1e-5)
    assert own.keys() == reference.keys()
    for name, gradient in reference.items():
        assert torch.allclose(own[name], gradient, atol=1e-4 * float(gradient.abs().max() + 1)), name


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta", "mpnet", "bert"])
def test_padding_tokens_that_a_text_spells(make_model: Callable[..., Path], kind: str) -> None:
    """transformers derives RoBERTa's positions from the ids that are not padding; attention sees all of them."""
    from transformers import AutoModel

    folder = make_model(kind, pooling="mean")
    plain = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    padding = plain.config.pad_token_id
    ids = [[2, padding, 30, padding, padding, 40, 3], [2, 50, 60, 3], [padding], [2, 7, 8, 9, padding, 3]]
    with torch.no_grad():
        whole = [plain(input_ids=torch.tensor([row]), attention_mask=torch.ones(1, len(row))) for row in ids]
    expected = torch.cat([output.last_hidden_state[0] for output in whole])
    own = load_transformer(folder, dtype=torch.float32)
    backbones = [
        load_encoder(folder, read_card(folder)).backbone,
        (PaddedBackbone if kind == "mpnet" else PackedBackbone)(own),
    ]
    for backbone in backbones:
        with torch.inference_mode():
            hidden = backbone(Packed.of(ids), "all")
        assert (hidden - expected).abs().max() < 1e-4, type(backbone).__name__


def test_positions_and_boundaries() -> None:
    batch = Packed.of([[1, 2, 3], [4], [5, 6]])
    assert batch.positions.tolist() == [0, 1, 2, 0, 0, 1]
    assert batch.starts.tolist() == [0, 3, 4]
    assert batch.cumulative.tolist() == [0, 3, 4, 6]
    assert batch.input_ids.tolist() == [1, 2, 3, 4, 5, 6]
    assert batch.positions_for(None).tolist() == batch.positions.tolist()
    assert batch.positions_for(9).tolist() == [10, 11, 12, 10, 10, 11]
    assert batch.positions_for(2).tolist() == [3, 2, 4, 3, 3, 4]  # token 2 is padding, at position 2


def test_excluded_prompt_tokens_do_not_count_in_the_mean() -> None:
    from bgekit.networks.pooling import pool

    hidden = torch.arange(12, dtype=torch.float32).view(6, 2)
    batch = Packed.of([[1, 2, 3, 4], [5, 6]], skip=[2, 9])
    mean = pool(hidden, batch, "mean")
    assert torch.equal(mean[0], hidden[2:4].mean(0))
    assert torch.equal(mean[1], hidden[5])  # the last token stays when the prompt is all there is
    assert torch.equal(pool(hidden, batch, "max")[0], hidden[2:4].max(0).values)
