"""Checkpoints as transformers' classes: what is not in them, names of weights, adapters that are none; precision."""

import builtins
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import own_code
from bgekit import FlagModel, FlagReranker
from bgekit.errors import ArgumentError, CheckpointError, NumericalError
from bgekit.models.card_reading import read_card
from bgekit.networks import loading
from bgekit.networks.cross_encoder import load_trainable
from bgekit.networks.encoder import load_encoder, load_transformer
from bgekit.networks.loading import choose_precision, half_precision
from conftest import write_side_files, write_wordpiece

WEIGHTS = "model.safetensors"
TEXTS = ["the cat and the dog walk to the river", "vector search " * 20, "python"]


def make_own(folder, kind=own_code.OwnModel, *, without=("position_ids",), **settings):
    """A checkpoint with code of its own, and its class with the same weights."""
    folder.mkdir()
    write_wordpiece(folder)
    torch.manual_seed(0)
    model = kind(own_code.OwnConfig(**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    weights = {name: value for name, value in model.state_dict().items() if not any(part in name for part in without)}
    model.save_pretrained(folder, state_dict=weights)
    shutil.copy(own_code.__file__, folder / "own_code.py")
    config = json.loads((folder / "config.json").read_text())
    embeds = issubclass(kind, own_code.OwnModel)
    auto = "AutoModel" if embeds else "AutoModelForSequenceClassification"
    config["auto_map"] = {"AutoConfig": "own_code.OwnConfig", auto: f"own_code.{kind.__name__}"}
    (folder / "config.json").write_text(json.dumps(config))
    if embeds:
        write_side_files(folder, "mean", 32)
    return folder, model


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    return make_own(tmp_path_factory.mktemp("own") / "own-model")


def expected(model, tokenizer):
    """Unit vectors of TEXTS by the class itself, a text at a time."""
    with torch.inference_mode():
        ids = [torch.tensor([tokenizer(text, truncation=True, max_length=64)["input_ids"]]) for text in TEXTS]
        return torch.nn.functional.normalize(torch.cat([model(each).last_hidden_state.mean(1) for each in ids])).numpy()


def use_memory():
    """Leave numbers in freed memory, as a program has that runs for a while."""
    for size in range(1, 1200, 3):
        torch.full((size,), 1e3)


def open_own(folder, **options):
    use_memory()
    return FlagModel(folder, trust_remote_code=True, devices="cpu", **{"use_fp16": False} | options)


def test_a_class_of_a_checkpoint_computes_what_it_computes_by_itself(own):
    folder, right = own
    model = open_own(folder)
    np.testing.assert_allclose(model.encode(TEXTS), expected(right, model.tokenizer), atol=1e-6)


@pytest.mark.parametrize("settings", [{"theta": 100.0}, {"fault": "attribute"}])
def test_what_its_constructor_makes_of_the_config_is_kept(tmp_path, settings):
    folder, right = make_own(tmp_path / "own", **settings)
    model = open_own(folder)
    np.testing.assert_allclose(model.encode(TEXTS), expected(right, model.tokenizer), atol=1e-6)


@pytest.mark.parametrize("stored", ["bin", "sharded"])
def test_other_ways_to_store_weights_make_no_difference(own, tmp_path, stored):
    folder = shutil.copytree(own[0], tmp_path / "own")
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    if stored == "bin":
        torch.save(weights, folder / "pytorch_model.bin")
    else:
        places = {name: f"model-{number:05}-of-{len(weights):05}.safetensors" for number, name in enumerate(weights)}
        for name, file in places.items():
            save_file({name: weights[name]}, folder / file, metadata={"format": "pt"})
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    model = open_own(folder, allow_pickle=stored == "bin")
    np.testing.assert_allclose(model.encode(TEXTS), expected(own[1], model.tokenizer), atol=1e-6)


def test_half_precision_does_not_round_what_no_checkpoint_holds(own):
    folder, right = own
    model = open_own(folder, dtype="bfloat16")
    network = model._engine.network.backbone.model
    assert network.dtype == network.rotary.cos.dtype == torch.bfloat16
    assert torch.equal(network.rotary.inv_freq, right.rotary.inv_freq)
    assert ((model.encode(TEXTS) * expected(right, model.tokenizer)).sum(1) > 0.999).all()


@pytest.mark.parametrize("kind", ["modernbert", "qwen3"])
def test_half_precision_rounds_no_angles_of_published_classes(make_model, kind):
    folder = make_model(kind, pooling="mean")
    right = load_transformer(folder, dtype=torch.float32)
    half = load_encoder(folder, read_card(folder), precision="bfloat16").backbone.model
    angles = {name: buffer for name, buffer in right.named_buffers() if "inv_freq" in name}
    assert angles
    assert half.dtype == torch.bfloat16
    assert all(torch.equal(half.get_buffer(name), value) for name, value in angles.items())


def test_rerankers_with_code_of_their_own(tmp_path):
    folder, right = make_own(tmp_path / "own", own_code.OwnForSequenceClassification, num_labels=1)
    use_memory()
    reranker = FlagReranker(folder, trust_remote_code=True, devices="cpu", use_fp16=False)
    with torch.inference_mode():
        logit = right(torch.tensor([reranker.tokenizer("cat", "the river")["input_ids"]])).logits
    np.testing.assert_allclose(reranker.compute_score(["cat", "the river"]), logit[0].numpy(), atol=1e-6)
    trained = load_trainable(folder, trust_remote_code=True)
    assert all(torch.equal(value, right.state_dict()[name]) for name, value in trained.weights().items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_classes_with_a_loader_of_their_own(tmp_path, dtype):
    folder, right = make_own(tmp_path / "own-loader", own_code.OwnLoader)
    model = open_own(folder, dtype=dtype)
    assert torch.equal(model._engine.network.backbone.model.rotary.inv_freq, right.rotary.inv_freq)
    assert ((model.encode(TEXTS) * expected(right, model.tokenizer)).sum(1) > 0.999).all()
    weights = load_file(folder / WEIGHTS)
    del weights["gain"]
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="lacks 1 weights of OwnLoader, such as gain"):
        open_own(folder)


def test_weights_that_are_new_are_as_the_constructor_makes_them(own, tmp_path):
    folder = shutil.copytree(own[0], tmp_path / "own")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"]["AutoModelForSequenceClassification"] = "own_code.OwnForSequenceClassification"
    (folder / "config.json").write_text(json.dumps(config))
    use_memory()
    network = load_trainable(folder, trust_remote_code=True)
    assert torch.equal(network.published.classifier, torch.linspace(-1, 1, 32)[None])
    assert torch.equal(network.published.own.last.weight, own[1].last.weight)


def test_a_part_that_embeddings_do_without_may_be_missing(tmp_path):
    folder, right = make_own(tmp_path / "own", without=("position_ids", "pooler"))
    network = load_transformer(folder, dtype=torch.float32, trust_remote_code=True)
    assert float(network.pooler.weight.detach().abs().max()) < 1
    assert float(network.pooler.scale) == 0.5
    assert torch.equal(network.last.weight, right.last.weight)


def test_a_missing_layer_is_an_error(tmp_path):
    folder, _ = make_own(tmp_path / "own", without=("position_ids", "gain"))
    with pytest.raises(CheckpointError, match=r"lacks 1 weights of OwnModel, such as gain"):
        open_own(folder)


def test_saving_asks_nothing_and_stores_a_self_test_that_holds(own, tmp_path, monkeypatch):
    folder = shutil.copytree(own[0], tmp_path / "own")
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "tokenizer_class": None}))
    monkeypatch.setattr(builtins, "input", lambda text="": pytest.fail(f"asked: {text}"))
    model = open_own(folder)
    model.save(tmp_path / "saved")
    again = open_own(tmp_path / "saved")
    assert again.card.selftest is not None
    np.testing.assert_allclose(again.encode(TEXTS), expected(own[1], again.tokenizer), atol=1e-6)


def test_a_model_that_differs_from_load_to_load_is_not_saved(tmp_path):
    folder, _ = make_own(tmp_path / "own", fault="random")
    with pytest.raises(NumericalError, match="other vectors each time it is loaded"):
        open_own(folder).save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@pytest.mark.slow
def test_processes_give_the_same_bytes(own):
    code = (
        "import sys, bgekit; model = bgekit.FlagModel(sys.argv[1], trust_remote_code=True, devices='cpu'); "
        "print(model.encode(sys.argv[2:]).tobytes().hex())"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code, own[0], *TEXTS], capture_output=True, check=True).stdout
        for _ in range(3)
    ]
    assert len(set(runs)) == 1


def wrapped(source: Path, folder: Path, prefix: str) -> Path:
    """A copy of a checkpoint whose weights all carry a prefix."""
    shutil.copytree(source, folder)
    weights = {f"{prefix}{name}": value for name, value in load_file(source / WEIGHTS).items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.module.", "0.auto_model.", "model.", "model.bert."])
def test_what_a_wrapper_put_before_names_is_left_out(tiny_bert, tmp_path, caplog, prefix):
    folder = wrapped(tiny_bert, tmp_path / "wrapped", prefix)
    model = FlagModel(folder, devices="cpu", use_fp16=False)
    right = FlagModel(tiny_bert, devices="cpu", use_fp16=False)
    np.testing.assert_array_equal(model.encode(TEXTS), right.encode(TEXTS))
    assert [record.message for record in caplog.records if prefix.removesuffix("bert.") in record.message]
    model.save(tmp_path / "saved")
    assert load_file(tmp_path / "saved" / WEIGHTS).keys() in (
        load_file(tiny_bert / WEIGHTS).keys(), {f"bert.{name}" for name in load_file(tiny_bert / WEIGHTS)},
    )  # fmt: skip


@pytest.mark.parametrize("prefix", ["module.", "model."])
def test_the_same_for_rerankers(tiny_reranker, tmp_path, prefix):
    folder = wrapped(tiny_reranker, tmp_path / "wrapped", prefix)
    pair = ["cat", "the river"]
    reranker = FlagReranker(folder, devices="cpu", use_fp16=False)
    # Not to the bit: where a weight lies in its file decides how one thread multiplies it.
    plain = FlagReranker(tiny_reranker, devices="cpu", use_fp16=False)
    assert reranker.compute_score(pair) == pytest.approx(plain.compute_score(pair), abs=2e-6)
    reranker.save(tmp_path / "saved")
    assert load_file(tmp_path / "saved" / WEIGHTS).keys() == load_file(tiny_reranker / WEIGHTS).keys()
    trained = load_trainable(folder)
    trained.published.save_pretrained(tmp_path / "trained")
    assert load_file(tmp_path / "trained" / WEIGHTS).keys() == load_file(tiny_reranker / WEIGHTS).keys()


def test_a_pickle_with_wrapped_names(tiny_bert, tmp_path):
    folder = wrapped(tiny_bert, tmp_path / "wrapped", "_orig_mod.")
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    model = FlagModel(folder, devices="cpu", use_fp16=False, allow_pickle=True)
    np.testing.assert_array_equal(
        model.encode(TEXTS), FlagModel(tiny_bert, devices="cpu", use_fp16=False).encode(TEXTS)
    )


def test_two_networks_in_one_checkpoint_are_not_chosen_from(tiny_bert, tmp_path):
    folder = wrapped(tiny_bert, tmp_path / "both", "query_encoder.")
    weights = load_file(folder / WEIGHTS)
    more = {name.replace("query_", "passage_"): value + 1 for name, value in weights.items()}
    save_file(weights | more, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"several networks.*_encoder\."):
        FlagModel(folder, devices="cpu")


def test_names_that_a_class_of_transformers_puts_before_its_own_are_no_wrapper():
    from bgekit.models.checkpoint_files import wrapper_prefix

    expected = ["layers.0.weight", "norm.weight"]
    assert wrapper_prefix(["model.layers.0.weight", "model.norm.weight", "lm_head.weight"], expected, "model") == ""
    assert wrapper_prefix(["module.model.layers.0.weight", "module.lm_head.weight"], expected, "model") == "module."
    assert wrapper_prefix(["a.LayerNorm.gamma", "a.x.bias"], ["LayerNorm.weight", "x.bias"], "") == "a."
    assert wrapper_prefix(["other", "names"], expected, "") == ""


@pytest.mark.parametrize("style", ["peft", "beside"])
def test_matrices_that_were_not_merged_are_told(tiny_bert, tmp_path, style):
    folder = shutil.copytree(tiny_bert, tmp_path / "model")
    weights = load_file(folder / WEIGHTS)
    query = "encoder.layer.0.attention.self.query"
    weights |= {
        f"{query}.lora_A.default.weight": torch.ones(4, 32),
        f"{query}.lora_B.default.weight": torch.ones(32, 4),
    }
    if style == "peft":
        weights[f"{query}.base_layer.weight"] = weights.pop(f"{query}.weight")
        weights = {f"base_model.model.{name}": value for name, value in weights.items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"2 LoRA matrices .*lora_A.*merge_and_unload") as caught:
        FlagModel(folder, devices="cpu")
    assert str(folder) in str(caught.value)


CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("fp32", "float32"),
        ("bf16", "bfloat16"),
        ("bfloat16", "bfloat16"),
        (torch.float32, "float32"),
        (torch.bfloat16, "bfloat16"),
        ("int8", "int8"),
    ],
)
def test_names_of_formats(given: str | torch.dtype, name: str) -> None:
    for use_fp16 in (True, False):  # dtype decides alone
        assert choose_precision(CPU, dtype=given, use_fp16=use_fp16) == name


@pytest.mark.parametrize("wrong", ["float8", "fast", torch.int32])
def test_an_unknown_format_is_refused_with_the_known_ones(wrong: str | torch.dtype) -> None:
    with pytest.raises(ArgumentError, match="float32, bfloat16, float16, int8"):
        choose_precision(CPU, dtype=wrong, use_fp16=True)


def test_formats_that_a_device_does_not_do() -> None:
    for name in ("float16", "fp16", "half", torch.float16):
        with pytest.raises(ArgumentError, match="bfloat16"):
            choose_precision(CPU, dtype=name, use_fp16=True)
    with pytest.raises(ArgumentError, match="CPU only"):
        choose_precision(CUDA, dtype="int8", use_fp16=True)


@pytest.mark.parametrize(("fast", "name"), [(True, "bfloat16"), (False, "float32")])
def test_half_precision_on_a_cpu_is_what_it_computes_fast(
    monkeypatch: pytest.MonkeyPatch, fast: bool, name: str
) -> None:
    monkeypatch.setattr(loading, "cpu_has_fast_bfloat16", lambda: fast)
    assert half_precision(CPU) == name
    assert choose_precision(CPU, dtype=None, use_fp16=True) == name
    assert choose_precision(CPU, dtype=None, use_fp16=False) == "float32"


@pytest.mark.parametrize("fast", [True, False])
def test_who_asks_for_bfloat16_is_told_where_it_is_slow(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fast: bool
) -> None:
    monkeypatch.setattr(loading, "cpu_has_fast_bfloat16", lambda: fast)
    monkeypatch.setattr(loading, "has_bfloat16", lambda: True)
    assert choose_precision(CPU, dtype="bf16", use_fp16=True) == "bfloat16"
    assert choose_precision(CPU, dtype=None, use_fp16=True, use_bf16=True) == "bfloat16"
    told = [record.getMessage() for record in caplog.records]
    assert [("no instructions for bfloat16" in line and "use_fp16=True" in line) for line in told] == [True] * (
        0 if fast else 2
    )
    assert loading.slow_bfloat16(CUDA) == ""


def test_a_wish_for_bfloat16_is_float32_where_the_cpu_lacks_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loading, "has_bfloat16", lambda: False)
    assert choose_precision(CPU, dtype=None, use_fp16=True, use_bf16=True) == "float32"
    assert "cannot compute in bfloat16: float32 is taken" in caplog.text
    assert choose_precision(CUDA, dtype=None, use_fp16=True, use_bf16=True) == "bfloat16"


def test_half_precision_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert half_precision(CUDA, "bert") == "float16"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert half_precision(CUDA, "t5") == "bfloat16"  # its activations overflow float16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert half_precision(CUDA, "t5") == "float32"
