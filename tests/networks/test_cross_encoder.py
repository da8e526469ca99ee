"""The network as it is trained: gradients, new heads, and what it saves."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from bgekit import FlagReranker
from bgekit.errors import OutputError
from bgekit.models.card import Prompt, RerankerCard
from bgekit.models.card_reading import read_reranker_card
from bgekit.networks.cross_encoder import load_cross_encoder, load_trainable
from bgekit.networks.encoder import padded_inputs
from bgekit.networks.packing import Packed
from bgekit.networks.saving import write_reranker
from precisions import needs_bfloat16

IDS = [[2, 10, 11, 3, 20, 3], [2, 12, 3, 21, 22, 23, 24, 3], [2, 13, 14, 15, 3, 25, 3]]
TYPES = [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1, 1]]


def batch(kind, rows=range(3)):
    types = [TYPES[row] for row in rows] if kind == "bert" else None
    return Packed.of([IDS[row] for row in rows], token_types=types)


def plain(folder, kind, rows=range(3), **options):
    """Logits of plain transformers for single sequences, differentiable."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager", **options)
    logits = []
    for row in rows:
        types = {"token_type_ids": torch.tensor([TYPES[row]])} if kind == "bert" else {}
        logits.append(model(input_ids=torch.tensor([IDS[row]]), **types).logits[0])
    return model, torch.stack(logits)


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta", "modernbert", "distilbert", "mpnet"])
def test_gradients_are_those_of_transformers(make_reranker, kind):
    folder = make_reranker(kind)
    network = load_trainable(folder).eval()
    scores = network(batch(kind))
    assert scores.dtype == torch.float32
    (scores * torch.tensor([1.0, -2.0, 0.5])).sum().backward()
    model, logits = plain(folder, kind)
    np.testing.assert_allclose(scores.detach(), logits.detach()[:, 0], atol=1e-5)
    (logits[:, 0] * torch.tensor([1.0, -2.0, 0.5])).sum().backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    found = {name.removeprefix("model."): parameter.grad for name, parameter in network.named_parameters()}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        if gradient is not None:
            torch.testing.assert_close(found[name], gradient, atol=1e-4, rtol=1e-4, msg=name)


def test_it_trains_with_dropout_and_checkpointing(tiny_reranker):
    network = load_trainable(tiny_reranker)
    assert network.training
    network.gradient_checkpointing_enable()
    torch.manual_seed(0)
    first = network(batch("bert"))
    first.sum().backward()
    assert not torch.equal(first, network(batch("bert")))  # dropout
    assert all(parameter.grad is not None for parameter in network.parameters() if parameter.requires_grad)
    network.gradient_checkpointing_disable()


def test_a_bare_encoder_gets_a_new_head(tiny_bert, make_model):
    for folder in (tiny_bert, make_model("modernbert", pooling=None), make_model("xlm-roberta", pooling=None)):
        networks = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            networks.append(load_trainable(folder).eval())
        scores = [network(batch("")).detach() for network in networks]
        assert scores[0].shape == (3,)
        assert torch.equal(scores[0], scores[1])
        assert not torch.equal(scores[0], scores[2])


def test_labels(make_reranker):
    folder = make_reranker("bert", labels=2)
    network = load_cross_encoder(folder)
    _, logits = plain(folder, "bert")
    with torch.inference_mode():
        np.testing.assert_allclose(network.logits(batch("bert")), logits.detach(), atol=1e-5)
        np.testing.assert_allclose(network(batch("bert")), (logits[:, 1] - logits[:, 0]).detach(), atol=2e-5)


def test_padded_batches_have_types_too():
    inputs = padded_inputs(batch("bert"), 0)
    assert inputs["input_ids"].tolist() == [row + [0] * (8 - len(row)) for row in IDS]
    assert inputs["token_type_ids"].tolist() == [row + [0] * (8 - len(row)) for row in TYPES]
    assert inputs["attention_mask"].sum(1).tolist() == [6, 8, 7]
    assert "token_type_ids" not in padded_inputs(batch("modernbert"), 0)


@needs_bfloat16
@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_the_head_stays_precise(make_reranker, kind):
    network = load_cross_encoder(make_reranker(kind), precision="bfloat16")
    assert network.model.classifier.weight.dtype == torch.float32
    _, logits = plain(make_reranker(kind), kind)
    with torch.inference_mode():
        np.testing.assert_allclose(network(batch(kind)), logits.detach()[:, 0], atol=0.15)


def test_state_has_the_published_names_once(tiny_reranker):
    network = load_trainable(tiny_reranker)
    assert network.weights().keys() == load_file(tiny_reranker / "model.safetensors").keys()
    assert {name.removeprefix("model.") for name in network.state_dict()} == network.weights().keys()


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta", "modernbert", "mpnet"])
def test_what_was_trained_is_saved_as_a_plain_checkpoint(make_model, tmp_path, kind):
    source = make_model(kind, pooling=None)
    torch.manual_seed(0)
    network = load_trainable(source).eval()
    expected = network(batch(kind)).detach()
    card = RerankerCard(name="trained", labels=1, max_length=48, query=Prompt("find: "), architecture=kind)
    write_reranker(tmp_path / "trained", card=card, source=source, network=network)
    model, logits = plain(tmp_path / "trained", kind)
    np.testing.assert_allclose(logits.detach()[:, 0], expected, atol=1e-5)
    assert (model.config.num_labels, model.dtype) == (1, torch.float32)
    stored = json.loads((tmp_path / "trained" / "config.json").read_text())
    assert stored["architectures"] == [type(model).__name__]
    assert "bgekit_packed" not in json.dumps(stored)
    read = read_reranker_card(tmp_path / "trained")
    assert (read.max_length, read.query, read.document) == (48, Prompt("find: "), Prompt())
    reranker = FlagReranker(tmp_path / "trained")
    asked = FlagReranker(tmp_path / "trained", query_instruction_for_rerank=None)
    assert reranker.compute_score(("cat", "dog")) == pytest.approx(asked.compute_score(("find: cat", "dog")), abs=1e-5)


def test_weights_are_stored_as_the_card_says(tiny_reranker, tmp_path):
    card = RerankerCard(name="half", labels=1, max_length=64, dtype="bfloat16")
    write_reranker(tmp_path / "half", card=card, source=tiny_reranker, network=load_trainable(tiny_reranker))
    weights = load_file(tmp_path / "half" / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}
    assert read_reranker_card(tmp_path / "half").dtype == "bfloat16"


def test_save_and_reload(tiny_reranker, tmp_path, plain_logits):
    reranker = FlagReranker(tiny_reranker, query_instruction_for_rerank="find ", max_length=32)
    reranker.save(tmp_path / "saved")
    again = FlagReranker(tmp_path / "saved")
    pairs = [("cat", "dog bird"), ("dog", "bird " * 40)]
    np.testing.assert_allclose(again.compute_score(pairs), reranker.compute_score(pairs), atol=1e-6)
    assert again.card.max_length == 32
    told = [(f"find {query}", passage) for query, passage in pairs]
    np.testing.assert_allclose(
        again.compute_score(pairs), plain_logits(tmp_path / "saved", told, max_length=32)[:, 0], atol=1e-5
    )
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_reranker, tmp_path / "saved"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(OutputError, match="overwrite=True"):
        reranker.save(tmp_path / "saved")
    again.save(tmp_path / "saved", overwrite=True)
    assert FlagReranker(tmp_path / "saved").fingerprint == again.fingerprint


def test_sentence_transformers_loads_it(tiny_reranker, tmp_path):
    module = pytest.importorskip("sentence_transformers")
    FlagReranker(tiny_reranker).save(tmp_path / "saved")
    theirs = module.CrossEncoder(str(tmp_path / "saved"), device="cpu")
    pairs = [("cat", "dog bird"), ("dog", "a house by the river")]
    scores = theirs.predict(pairs, activation_fn=torch.nn.Identity())
    np.testing.assert_allclose(FlagReranker(tmp_path / "saved").compute_score(pairs), scores, atol=1e-5)


def test_default_length(make_reranker, tmp_path):
    folder = shutil.copytree(make_reranker("bert"), tmp_path / "long")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 8192}))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    for stated, expected in ((8192, 512), (128, 128), (10**30, 512)):
        (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": stated}))
        assert read_reranker_card(folder).max_length == expected
    assert read_reranker_card(folder, max_length=4096).max_length == 4096
