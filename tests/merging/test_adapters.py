"""LoRA adapters: against peft itself, and what cannot be merged."""

import errno
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from bgekit.errors import CheckpointError, OutputError
from bgekit.merging import mix_models

WEIGHTS = "model.safetensors"


@pytest.fixture
def adapter(pair, tmp_path):
    """Make an adapter of random weights with peft; returns its folder and what peft makes of it."""
    peft = pytest.importorskip("peft")
    from transformers import AutoModel

    def make(name="adapter", **options):
        settings = {"r": 4, "lora_alpha": 6, "target_modules": ["query", "dense"], "bias": "none"} | options
        torch.manual_seed(0)
        model = peft.get_peft_model(AutoModel.from_pretrained(pair[0]), peft.LoraConfig(**settings))
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "lora_" in key:
                    parameter.normal_(0, 0.1)
        model.save_pretrained(tmp_path / name)
        return tmp_path / name, dict(model.merge_and_unload().state_dict())

    return make


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"query": 2}, "alpha_pattern": {"query": 9, "layer.1.output.dense": 3}},
        {"target_modules": ["word_embeddings", "value"]},
        {"bias": "all"},
        {"modules_to_save": ["pooler"]},
    ],
)
def test_alone_is_what_peft_makes_of_it(adapter, tmp_path, options):
    folder, expected = adapter(**options)
    mix_models([folder], "encoder", [1.0], tmp_path / "out")
    merged = load_file(tmp_path / "out" / WEIGHTS)
    for name in merged:
        torch.testing.assert_close(merged[name], expected[name], rtol=1e-5, atol=1e-6)


def test_beside_a_model_it_is_its_base_and_its_delta(adapter, pair, examples, tmp_path):
    from bgekit.merging import mix_models_with_data

    folder, expected = adapter()
    mix_models([pair[1], folder], "encoder", [0.5, 0.5], tmp_path / "out")
    merged, other = load_file(tmp_path / "out" / WEIGHTS), load_file(pair[1] / WEIGHTS)
    for name in merged:
        torch.testing.assert_close(merged[name], (expected[name] + other[name]) / 2, rtol=1e-5, atol=1e-6)
    content = json.loads((tmp_path / "out" / "merge.json").read_text())["models"][1]
    assert content["base"] == str(pair[0])
    assert len(content["adapter_weights"]) == 64
    losses = mix_models_with_data([folder, pair[1]], "encoder", examples).losses
    mix_models([folder], "encoder", [1.0], tmp_path / "alone")
    assert mix_models_with_data([tmp_path / "alone", pair[1]], "encoder", examples).losses == pytest.approx(losses)


def test_no_room_for_the_copy_that_is_loaded(adapter, pair, examples, tmp_path, monkeypatch):
    from bgekit.merging import mix_models_with_data

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("bgekit.merging.saving.write_weights", full)
    with pytest.raises(OutputError, match=r"cannot write a copy of \S+ with its base .* No space left .* TMPDIR"):
        mix_models_with_data([adapter()[0], pair[1]], "encoder", examples, output_path=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_no_plain_sum(adapter, tmp_path, edit):
    folder, _ = adapter()
    config = folder / "adapter_config.json"
    for changes in ({"use_dora": True}, {"init_lora_weights": "pissa"}, {"peft_type": "IA3"}):
        before = config.read_text()
        edit(config, **changes)
        with pytest.raises(CheckpointError, match="merge_and_unload"):
            mix_models([folder], "encoder", [1.0], tmp_path / "out")
        config.write_text(before)
    edit(config, base_model_name_or_path="")
    with pytest.raises(CheckpointError, match="does not name its base"):
        mix_models([folder], "encoder", [1.0], tmp_path / "out")
    edit(config, base_model_name_or_path=str(tmp_path / "gone"))
    with pytest.raises(CheckpointError, match=r"the base model of the adapter .*gone"):
        mix_models([folder], "encoder", [1.0], tmp_path / "out")


def test_what_does_not_fit_the_base(adapter, make_model, tmp_path, edit):
    folder, _ = adapter()
    file = folder / "adapter_model.safetensors"
    stored = load_file(file)
    save_file({**stored, "base_model.model.strange.lora_A.weight": torch.ones(4, 32)}, file)
    with pytest.raises(CheckpointError, match="strange"):
        mix_models([folder], "encoder", [1.0], tmp_path / "out")
    save_file(stored, file)
    edit(folder / "adapter_config.json", base_model_name_or_path=str(make_model("bert", intermediate_size=48)))
    with pytest.raises(CheckpointError, match="does not fit its base"):
        mix_models([folder], "encoder", [1.0], tmp_path / "out")
