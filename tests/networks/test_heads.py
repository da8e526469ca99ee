"""Heads on token vectors: their formulas against dense ones with a column for each word, gradients, and files."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from bgekit.errors import CheckpointError
from bgekit.networks import Packed, TokenHeads
from bgekit.networks.heads import (
    FusedHeads,
    TokenVectors,
    TokenWeights,
    copy_heads,
    lexical_scores,
    multi_vector_scores,
    read_heads,
    write_heads,
)
from bgekit.networks.unified import unified_encoder, wake

VOCABULARY, HIDDEN, SPECIAL = 50, 16, torch.tensor([0, 1, 2])
TEXTS = [[0, 7, 9, 7, 2], [0, 2], [0, *range(3, 48), 2], [0, 9, 9, 9, 1, 2]]


@pytest.fixture
def heads():
    torch.manual_seed(0)
    return TokenHeads(HIDDEN, sparse=True, multi_vector=8)


@pytest.fixture
def batch():
    return Packed.of(TEXTS)


@pytest.fixture
def hidden(batch):
    return torch.randn(len(batch.input_ids), HIDDEN, generator=torch.Generator().manual_seed(1), requires_grad=True)


def dense_weights(heads, hidden, batch):
    """[n, vocabulary] as FlagEmbedding computes it."""
    weights = torch.relu(heads.sparse(hidden)).squeeze(-1)
    rows = []
    for ids, own in zip(batch.input_ids.split(batch.lengths), weights.split(batch.lengths), strict=True):
        rows.append(own.new_zeros(VOCABULARY).scatter_reduce(0, ids, own, "amax"))
    found = torch.stack(rows)
    return found * torch.ones(VOCABULARY).index_fill(0, SPECIAL, 0)


def as_dense(found):
    rows = torch.arange(len(found.counts)).repeat_interleave(found.counts)
    return torch.zeros(len(found.counts), VOCABULARY).index_put((rows, found.tokens), found.weights)


def test_weights_are_those_of_a_matrix_with_a_column_for_each_word(heads, hidden, batch):
    found = heads.weights(hidden, batch, SPECIAL)
    torch.testing.assert_close(as_dense(found), dense_weights(heads, hidden, batch))
    assert (found.weights > 0).all() and not torch.isin(found.tokens, SPECIAL).any() and found.counts[1] == 0
    for part in found.tokens.split(found.counts.tolist()):
        assert (part.diff() > 0).all()


def test_gradients_are_those_of_a_matrix_with_a_column_for_each_word(heads, hidden, batch):
    def gradients(scores):
        heads.zero_grad()
        (grad,) = torch.autograd.grad((scores * torch.arange(16.0).view(4, 4)).sum(), hidden, retain_graph=True)
        return grad

    found = heads.weights(hidden, batch, SPECIAL)
    dense = dense_weights(heads, hidden, batch)
    torch.testing.assert_close(lexical_scores(found, found), dense @ dense.T)
    torch.testing.assert_close(gradients(lexical_scores(found, found)), gradients(dense @ dense.T))


def test_lexical_scores_of_many_distinct_tokens(monkeypatch, heads, hidden, batch):
    monkeypatch.setattr("bgekit.networks.heads._COLUMNS", 5)
    found, dense = heads.weights(hidden, batch, SPECIAL), dense_weights(heads, hidden, batch)
    torch.testing.assert_close(lexical_scores(found, found), dense @ dense.T)
    nothing = TokenWeights(found.tokens[:0], found.weights[:0], torch.zeros(3, dtype=torch.long))
    assert lexical_scores(nothing, found).tolist() == [[0.0] * 4] * 3


def test_late_interaction_is_the_mean_of_the_largest_products(heads, hidden, batch):
    found = heads.vectors(hidden, batch)
    parts = found.values.split(found.counts.tolist())
    assert found.counts.tolist() == [4, 1, 46, 5]
    expected = [[(query @ passage.T).amax(1).mean() for passage in parts] for query in parts]
    scores = multi_vector_scores(found, found)
    torch.testing.assert_close(scores, torch.stack([torch.stack(row) for row in expected]))
    torch.testing.assert_close(scores.diagonal(), torch.ones(4))
    (grad,) = torch.autograd.grad(scores.sum(), hidden)
    assert (grad.abs().sum(1)[batch.starts] == 0).all() and torch.isfinite(grad).all()


def test_vectors_are_cut_before_they_are_scaled(heads, hidden, batch):
    found = heads.vectors(hidden, batch, 3)
    whole = heads.multi_vector(hidden)[batch.positions > 0][:, :3]
    torch.testing.assert_close(found.values, whole / whole.norm(dim=1, keepdim=True))


def test_nan_is_not_taken_for_a_weight_of_zero(heads, hidden, batch):
    with torch.no_grad():
        hidden[1] = torch.nan
    found = heads.weights(hidden, batch, SPECIAL)
    assert found.weights.isnan().any()


def test_the_fused_ones_compute_the_same(heads, hidden, batch):
    fused = FusedHeads(heads, torch.float32)
    with torch.inference_mode():
        expected, found = (each.vectors(hidden.detach(), batch) for each in (heads, fused))
        torch.testing.assert_close(found.values, expected.values, atol=1e-6, rtol=1e-5)
        expected, found = (each.weights(hidden.detach(), batch, SPECIAL) for each in (heads, fused))
        torch.testing.assert_close(found.weights, expected.weights, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_heads_are_written_for_others_and_read_again(heads, tmp_path, dtype):
    write_heads(heads, tmp_path, dtype)
    found = read_heads(tmp_path, HIDDEN, ["dense", "sparse", "multi-vector"])
    assert found.outputs == ("sparse", "multi-vector")
    for one, other in zip(heads.state_dict().values(), found.state_dict().values(), strict=True):
        assert torch.equal(one.to(dtype).float(), other)
    for name, rows in (("sparse_linear", 1), ("colbert_linear", 8)):  # As FlagEmbedding loads them.
        torch.nn.Linear(HIDDEN, rows).load_state_dict(torch.load(tmp_path / f"{name}.pt", weights_only=True))
    (tmp_path / "copy").mkdir()
    copy_heads(tmp_path, tmp_path / "copy")
    for path in tmp_path.glob("heads/*"):
        assert path.read_bytes() == (tmp_path / "copy" / "heads" / path.name).read_bytes()


def test_safetensors_may_lie_beside_the_model(heads, tmp_path):
    save_file(dict(heads.sparse.state_dict()), tmp_path / "sparse_linear.safetensors")
    assert read_heads(tmp_path, HIDDEN, ["sparse"]).outputs == ("sparse",)


def test_a_head_that_is_missing_is_named(heads, tmp_path):
    write_heads(TokenHeads(HIDDEN, multi_vector=8), tmp_path)
    assert read_heads(tmp_path, HIDDEN, ["multi-vector"]).outputs == ("multi-vector",)
    with pytest.raises(CheckpointError, match=r"no head for the output 'sparse': no sparse_linear\.pt"):
        read_heads(tmp_path, HIDDEN, ["multi-vector", "sparse"])


@pytest.mark.parametrize(
    "weights",
    [
        {"weight": torch.zeros(1, HIDDEN + 1), "bias": torch.zeros(1)},
        {"weight": torch.zeros(2, HIDDEN), "bias": torch.zeros(2)},
        {"weight": torch.zeros(1, HIDDEN)},
        {"weight": torch.zeros(1, HIDDEN), "bias": torch.zeros(1), "more": torch.zeros(1)},
        {"weight": torch.zeros(HIDDEN), "bias": torch.zeros(1)},
        {},
    ],
)
def test_a_head_of_another_shape_is_named(weights, tmp_path):
    torch.save(weights, tmp_path / "sparse_linear.pt")
    with pytest.raises(CheckpointError, match=r"sparse_linear\.pt is not the sparse head of this model: it holds"):
        read_heads(tmp_path, HIDDEN, ["sparse"])


def test_a_damaged_head_is_named(tmp_path):
    (tmp_path / "colbert_linear.pt").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"colbert_linear\.pt is damaged"):
        read_heads(tmp_path, HIDDEN, ["multi-vector"])


def test_files_that_disagree_are_named(heads, tmp_path):
    write_heads(heads, tmp_path)
    torch.save(TokenHeads(HIDDEN, sparse=True).sparse.state_dict(), tmp_path / "sparse_linear.pt")
    with pytest.raises(CheckpointError, match="different weights: remove the one that is not meant"):
        read_heads(tmp_path, HIDDEN, ["sparse"])


def test_no_tensor_has_a_column_for_each_word_of_a_large_vocabulary(heads):
    """Ids near the largest possible: a matrix of them would be of terabytes."""
    batch = Packed.of([[0, 2**31 - 2, 2**31 - 3, 2]] * 4)
    found = heads.weights(torch.ones(16, HIDDEN) * heads.sparse.weight.detach().sign(), batch, SPECIAL)
    scores = lexical_scores(found, found)
    assert scores.shape == (4, 4) and (scores > 0).all()


def test_scores_of_vectors_laid_end_to_end_take_texts_of_any_length():
    vectors = TokenVectors(torch.eye(3), torch.tensor([1, 2]))
    assert multi_vector_scores(vectors, vectors).tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_new_lexical_heads_of_a_real_model_begin_alive(bge_small_zh, shared_path):
    """Whatever the seed, half of the tokens of each text that was looked at have a weight, and some of every other."""
    from bgekit import FlagModel
    from bgekit.inference.tokenization import special_ids
    from bgekit.networks.encoder import load_trainable

    lines = shared_path("data", "CMRC2018Retrieval", "corpus.jsonl").read_text(encoding="utf-8").splitlines()[:24]
    model = FlagModel(str(bge_small_zh), devices="cpu")
    special = torch.tensor(special_ids(model.tokenizer))
    ids = [model.tokenizer(json.loads(line)["text"][:40])["input_ids"] for line in lines]
    probe, others = Packed.of(ids[:12]), Packed.of(ids[12:])
    network = load_trainable(model.folder, model.card)
    with torch.no_grad():
        hidden, _ = network.eval().encoder.backbone.with_all(others, "first")
    born, woken = [], []
    for seed in range(30):
        torch.manual_seed(seed)
        unified = unified_encoder(network, model.folder, ["dense", "sparse"], None)
        for found in (born, woken):
            found.append(float((unified.heads.token_weights(hidden, others) > 0).float().mean()))
            if found is born:
                wake(unified, probe, special)
        assert unified.training
        assert unified.heads.weights(hidden, others, special).counts.min() > 0
    assert min(born) < 0.2 and min(woken) > 0.4
    # The same of one seed, which is what processes that train together need.
    torch.manual_seed(seed)
    again = unified_encoder(network, model.folder, ["dense", "sparse"], None)
    wake(again, probe, special)
    assert torch.equal(again.heads.sparse.bias, unified.heads.sparse.bias)
