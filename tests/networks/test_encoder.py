"""The encoder against plain transformers run one text at a time: more shapes than test_packing, and the heads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize

from bgekit.errors import CardError, CheckpointError
from bgekit.models.card import POOLINGS, DenseLayer, Pooling
from bgekit.models.card_reading import read_card
from bgekit.networks.encoder import (
    Encoder,
    FusedBackbone,
    PackedBackbone,
    PaddedBackbone,
    can_pack,
    load_encoder,
    load_transformer,
)
from bgekit.networks.packing import Packed
from precisions import needs_bfloat16

Make = Callable[..., Path]


def token_ids(lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(5, 200, (length,), generator=generator).tolist() for length in lengths]


def plain_model(folder: Path) -> Any:
    from transformers import AutoConfig, AutoModel, T5EncoderModel

    kind = T5EncoderModel if AutoConfig.from_pretrained(folder).model_type == "t5" else AutoModel
    return kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def one_by_one(model: Any, ids: Sequence[Sequence[int]]) -> list[Tensor]:
    """Token vectors of each text by itself: nothing is padded, packed or masked."""
    with torch.no_grad():
        return [model(input_ids=torch.tensor([row])).last_hidden_state[0] for row in ids]


def mean_vectors(model: Any, ids: Sequence[Sequence[int]]) -> Tensor:
    return normalize(torch.stack([hidden.mean(0) for hidden in one_by_one(model, ids)]), dim=-1)


def encoded(encoder: Encoder, ids: Sequence[Sequence[int]], skip: Sequence[int] | None = None) -> Tensor:
    with torch.inference_mode():
        return encoder(Packed.of(ids, skip))


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "modernbert", "qwen3", "mpnet", "t5"])
def test_any_mix_of_lengths_is_exact(make_model: Make, kind: str) -> None:
    folder = make_model(kind, pooling="mean")
    encoder, reference = load_encoder(folder, read_card(folder)), plain_model(folder)

    @settings(max_examples=15, deadline=None)
    @given(lengths=st.lists(st.integers(1, 62), min_size=1, max_size=20), seed=st.integers(0, 99))
    def check(lengths: list[int], seed: int) -> None:
        ids = token_ids(lengths, seed)
        assert (encoded(encoder, ids) - mean_vectors(reference, ids)).abs().max() < 1e-5

    check()


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("kind", ["modernbert", "qwen3"])
def test_texts_far_longer_than_the_sliding_window(make_model: Make, kind: str, pooling: Pooling) -> None:
    """ModernBERT sees 8 tokens to each side in two of its three layers here; Qwen3 is causal with shared heads."""
    folder = make_model(kind, pooling=pooling, max_position_embeddings=512)
    ids = token_ids([200, 1, 199, 17, 16, 8, 9, 120, 300])
    hidden = one_by_one(plain_model(folder), ids)
    own = load_transformer(folder, dtype=torch.float32)
    assert can_pack(own)
    with torch.inference_mode():
        packed = PackedBackbone(own)(Packed.of(ids), "all")
    assert (packed - torch.cat(hidden)).abs().max() < 2e-4  # states are not normalised: their largest is about 10
    vectors = encoded(Encoder(PackedBackbone(own), read_card(folder)), ids)
    expected = {
        "cls": [h[0] for h in hidden],
        "last_token": [h[-1] for h in hidden],
        "mean": [h.mean(0) for h in hidden],
    }
    if pooling in expected:
        assert (vectors - normalize(torch.stack(expected[pooling]), dim=-1)).abs().max() < 1e-5


def test_causal_models_do_not_look_ahead(make_model: Make) -> None:
    folder = make_model("qwen3", pooling="cls")
    encoder = load_encoder(folder, read_card(folder))
    first, second = [7, 20, 30], [7, 99, 98, 97]
    vectors = encoded(encoder, [first, second])
    assert torch.allclose(vectors[0], vectors[1], atol=1e-6)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "modernbert", "qwen3"])
def test_sequences_do_not_see_each_other(make_model: Make, kind: str) -> None:
    folder = make_model(kind, pooling="mean")
    encoder = load_encoder(folder, read_card(folder))
    ids = token_ids([12, 30, 12, 5])
    before = encoded(encoder, ids)
    after = encoded(encoder, [*ids[:1], token_ids([30], seed=9)[0], *ids[2:]])
    assert (after - before)[[0, 2, 3]].abs().max() < 1e-6
    assert (after - before)[1].abs().max() > 1e-3


def gradients(encoder: Encoder, batch: Packed, model: Any) -> tuple[Tensor, dict[str, Tensor]]:
    vectors = encoder(batch)
    similarities = vectors @ vectors.T / 0.02  # a contrastive loss, as training has it
    torch.nn.functional.cross_entropy(similarities[:2], torch.tensor([2, 3])).backward()
    return vectors.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("kind", ["bert", "distilbert", "qwen3"])
def test_packed_gradients_are_the_padded_ones(make_model: Make, kind: str, pooling: Pooling) -> None:
    folder = make_model(kind, pooling=pooling)
    batch = Packed.of(token_ids([7, 30, 12, 30, 1]))
    card = read_card(folder)
    own = load_transformer(folder, dtype=torch.float32)
    packed, got = gradients(Encoder(PackedBackbone(own), card), batch, own)
    plain = plain_model(folder)
    padded, expected = gradients(Encoder(PaddedBackbone(plain), card), batch, plain)
    assert (packed - padded).abs().max() < 1e-5
    assert got.keys() == expected.keys() and len(got) > 10
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        assert (got[name] - gradient).abs().max() < 1e-4 * largest, name


def test_training_mode_drops_attention_weights(make_model: Make) -> None:
    folder = make_model("bert", pooling="mean")
    own = load_transformer(folder, dtype=torch.float32)
    encoder = Encoder(PackedBackbone(own), read_card(folder)).train()
    batch = Packed.of(token_ids([20, 20, 7]))
    assert (encoder(batch) - encoder(batch)).abs().max() > 1e-3
    encoder.eval()
    assert torch.equal(encoder(batch), encoder(batch))


def test_which_backbone_an_architecture_gets(make_model: Make) -> None:
    expected = {
        "bert": FusedBackbone,
        "xlm-roberta": FusedBackbone,
        "modernbert": PackedBackbone,
        "mpnet": PaddedBackbone,
        "t5": PaddedBackbone,
    }
    for kind, backbone in expected.items():
        folder = make_model(kind, pooling="mean")
        assert type(load_encoder(folder, read_card(folder)).backbone) is backbone


@needs_bfloat16
@pytest.mark.parametrize("kind", ["bert", "distilbert", "modernbert", "mpnet"])
def test_bfloat16_stays_near_float32(make_model: Make, kind: str) -> None:
    folder = make_model(kind, pooling="mean")
    card, ids = read_card(folder), token_ids([1, 60, 20, 20, 7, 33])
    full, half = (encoded(load_encoder(folder, card, precision=name), ids) for name in ("float32", "bfloat16"))
    assert half.dtype == torch.float32
    assert (full * half).sum(1).min() > 0.99  # weights drawn at random: real models are held to 0.999


def test_the_prompt_can_be_left_out_of_pooling(make_model: Make) -> None:
    folder = make_model("bert", pooling="mean")
    ids = token_ids([9, 30, 4])
    hidden = one_by_one(plain_model(folder), ids)
    got = encoded(load_encoder(folder, read_card(folder)), ids, skip=[3, 3, 3])
    expected = normalize(torch.stack([vectors[3:].mean(0) for vectors in hidden]), dim=-1)
    assert (got - expected).abs().max() < 1e-5


def add_dense(folder: Path, name: str, weights: dict[str, Tensor], activation: str) -> None:
    """A Dense module as sentence-transformers writes it, put before Normalize."""
    out, into = weights["linear.weight"].shape
    (folder / name).mkdir()
    save_file(weights, folder / name / "model.safetensors")
    config = {
        "in_features": into,
        "out_features": out,
        "bias": "linear.bias" in weights,
        "activation_function": activation,
    }
    (folder / name / "config.json").write_text(json.dumps(config))
    modules = json.loads((folder / "modules.json").read_text())
    modules.insert(-1, {"path": name, "type": "sentence_transformers.models.Dense"})
    modules = [module | {"idx": idx, "name": str(idx)} for idx, module in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(modules))


@pytest.fixture
def dense_model(make_model: Make, tmp_path: Path) -> tuple[Path, list[dict[str, Tensor]]]:
    folder = tmp_path / "dense"
    shutil.copytree(make_model("bert", pooling="mean"), folder)
    torch.manual_seed(3)
    layers = [
        {"linear.weight": torch.randn(48, 32), "linear.bias": torch.randn(48)},
        {"linear.weight": torch.randn(16, 48)},
    ]
    add_dense(folder, "2_Dense", layers[0], "torch.nn.modules.activation.Tanh")
    add_dense(folder, "3_Dense", layers[1], "torch.nn.modules.linear.Identity")
    return folder, layers


def test_dense_layers(dense_model: tuple[Path, list[dict[str, Tensor]]]) -> None:
    folder, layers = dense_model
    card = read_card(folder)
    assert card.dimension == 16
    assert card.dense[0] == DenseLayer("2_Dense", 32, 48, True, "Tanh")
    ids = token_ids([9, 30, 4])
    hidden = torch.stack([vectors.mean(0) for vectors in one_by_one(plain_model(folder), ids)])
    hidden = torch.tanh(hidden @ layers[0]["linear.weight"].T + layers[0]["linear.bias"])
    hidden = hidden @ layers[1]["linear.weight"].T
    assert (encoded(load_encoder(folder, card), ids) - normalize(hidden, dim=-1)).abs().max() < 1e-5
    cut = encoded(load_encoder(folder, card, truncate_dim=5), ids)
    assert (cut - normalize(hidden[:, :5], dim=-1)).abs().max() < 1e-5


def test_sentence_transformers_computes_the_same_dense_vectors(
    dense_model: tuple[Path, list[dict[str, Tensor]]],
) -> None:
    from bgekit import FlagModel

    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder, _ = dense_model
    texts = ["a cat", "the river is large and the house is small", ""]
    theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu").encode(texts)
    ours = FlagModel(folder, use_fp16=False, devices="cpu").encode(texts)
    assert abs(ours - theirs).max() < 1e-5


def test_faults_of_dense_layers(dense_model: tuple[Path, list[dict[str, Tensor]]]) -> None:
    folder, layers = dense_model
    path = folder / "2_Dense" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"activation_function": "torch.nn.Hardswish"}))
    with pytest.raises(CardError, match="Hardswish"):
        load_encoder(folder, read_card(folder))
    path.write_text(json.dumps(config))
    save_file({"linear.weight": layers[0]["linear.weight"][:, :8].contiguous()}, folder / "2_Dense/model.safetensors")
    with pytest.raises(CheckpointError, match="2_Dense"):
        load_encoder(folder, read_card(folder))
    (folder / "2_Dense" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="2_Dense"):
        load_encoder(folder, read_card(folder))
    path.unlink()
    with pytest.raises(CheckpointError, match="2_Dense"):
        read_card(folder)


def test_a_card_without_normalisation(make_model: Make, tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    shutil.copytree(make_model("bert", pooling="mean"), folder)
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps(modules[:2]))
    ids = token_ids([9, 30, 4])
    expected = torch.stack([vectors.mean(0) for vectors in one_by_one(plain_model(folder), ids)])
    assert (encoded(load_encoder(folder, read_card(folder)), ids) - expected).abs().max() < 1e-5
