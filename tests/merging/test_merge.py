"""Merged checkpoints: what is in them, who loads them, and what happens when models do not fit together."""

import errno
import gc
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bgekit import FlagModel, FlagReranker
from bgekit.errors import ArgumentError, CardError, CheckpointError, NumericalError, OutputError
from bgekit.merging import (
    Merging,
    Options,
    Validation,
    merge,
    merged_model,
    mix_models,
    mix_models_by_layers,
    mix_models_with_data,
)
from conftest import check_modes, read_readme

WEIGHTS = "model.safetensors"
TEXTS = ["a cat and a dog", "the river by the mountain"]


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir())


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)


# --- the numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("weights", [[0.5, 0.5], [1 / 3] * 3, [0.1] * 10])
def test_a_model_with_itself_is_itself_bit_by_bit(pair, copied, tmp_path, dtype, weights):
    folder = copied(pair[0])
    stored = {name: value.to(dtype) for name, value in load_file(folder / WEIGHTS).items()}
    save_file(stored, folder / WEIGHTS, metadata={"format": "pt"})
    mix_models([folder] * len(weights), "encoder", weights, tmp_path / "out")
    assert same(load_file(tmp_path / "out" / WEIGHTS), stored)


def test_weights_are_averaged_and_every_library_loads_the_result(pair, tmp_path):
    a, b = (load_file(folder / WEIGHTS) for folder in pair)
    mix_models(pair, "encoder", [0.25, 0.75], tmp_path / "out")
    merged = load_file(tmp_path / "out" / WEIGHTS)
    for name in a:
        expected = (0.25 * a[name].double() + 0.75 * b[name].double()).float()
        assert torch.equal(merged[name], expected), name
    sentence_transformers = pytest.importorskip("sentence_transformers")
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(TEXTS)
    ours = FlagModel(tmp_path / "out", use_fp16=False, devices="cpu").encode(TEXTS)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_rerankers(rerankers, tmp_path):
    merged = mix_models(rerankers, "reranker", [0.5, 0.5], tmp_path / "out")
    a, b, out = (load_file(folder / WEIGHTS) for folder in (*rerankers, tmp_path / "out"))
    assert all(torch.equal(out[name], ((a[name].double() + b[name].double()) / 2).float()) for name in a)
    pairs = [("cat", "a cat and a dog"), ("tree", "the river")]
    scores = merged.compute_score(pairs)
    assert scores == FlagReranker(tmp_path / "out").compute_score(pairs)
    sentence_transformers = pytest.importorskip("sentence_transformers")
    raw = sentence_transformers.CrossEncoder(str(tmp_path / "out"), device="cpu", activation_fn=torch.nn.Identity())
    np.testing.assert_allclose(raw.predict(pairs), scores, atol=1e-5)


def test_half_precision_is_accumulated_in_full_and_stored_as_in_the_first(pair, copied, tmp_path):
    first = copied(pair[0])
    a = {name: value.to(torch.bfloat16) for name, value in load_file(first / WEIGHTS).items()}
    save_file(a, first / WEIGHTS, metadata={"format": "pt"})
    mix_models([first, pair[1]], "encoder", [0.3, 0.7], tmp_path / "out")
    b, out = load_file(pair[1] / WEIGHTS), load_file(tmp_path / "out" / WEIGHTS)
    for name in a:
        assert torch.equal(out[name], (0.3 * a[name].double() + 0.7 * b[name].double()).to(torch.bfloat16))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config.get("dtype", config.get("torch_dtype")) == "bfloat16"


@pytest.mark.parametrize("method", ["slerp", "task_arithmetic", "ties", "dare"])
def test_other_methods_make_whole_models(trio, tmp_path, method):
    base = None if method == "slerp" else trio[2]
    merge(Merging(trio[:2], method=method, weights=[0.5, 0.5], base=base), tmp_path / "out")
    assert FlagModel(tmp_path / "out", devices="cpu").encode("a cat").shape == (32,)
    assert json.loads((tmp_path / "out" / "merge.json").read_text())["method"]["method"] == method


def test_integer_buffers_are_not_averaged(pair, copied, tmp_path, caplog):
    folders = [copied(folder, folder.name) for folder in pair]
    for folder, shift in zip(folders, (0, 1), strict=True):
        stored = load_file(folder / WEIGHTS) | {"embeddings.position_ids": torch.arange(64)[None] + shift}
        save_file(stored, folder / WEIGHTS, metadata={"format": "pt"})
    mix_models(folders, "encoder", [0.5, 0.5], tmp_path / "out")
    merged = load_file(tmp_path / "out" / WEIGHTS)["embeddings.position_ids"]
    assert torch.equal(merged, torch.arange(64)[None])
    assert merged.dtype == torch.int64
    assert "position_ids holds whole numbers in which the models differ" in caplog.text


def test_shards_and_pickles(pair, copied, tmp_path):
    whole, sharded, pickled = mix_models(pair, "encoder", [0.5, 0.5], tmp_path / "whole").path, *map(copied, pair, "ab")
    stored = load_file(sharded / WEIGHTS)
    (sharded / WEIGHTS).unlink()
    parts = {f"model-0000{part + 1}-of-00002.safetensors": sorted(stored)[part::2] for part in range(2)}
    for name, keys in parts.items():
        save_file({key: stored[key] for key in keys}, sharded / name, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {key: name for name, keys in parts.items() for key in keys}}
    (sharded / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    torch.save(load_file(pickled / WEIGHTS), pickled / "pytorch_model.bin")
    (pickled / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="allow-pickle"):
        mix_models([sharded, pickled], "encoder", [0.5, 0.5], tmp_path / "refused")
    consent = {"options": Options(allow_pickle=True)}
    mix_models([sharded, pickled], "encoder", [0.5, 0.5], tmp_path / "sharded", **consent)
    found = {key: value for name in parts for key, value in load_file(tmp_path / "sharded" / name).items()}
    assert same(found, load_file(whole / WEIGHTS))
    mix_models([pickled, sharded], "encoder", [0.5, 0.5], tmp_path / "single", **consent)
    assert same(load_file(tmp_path / "single" / WEIGHTS), load_file(whole / WEIGHTS))
    assert len(FlagModel(tmp_path / "sharded", devices="cpu").encode("a cat")) == 32


def test_dense_heads(pair, tmp_path):
    folders = []
    for number, source in enumerate(pair):
        folder = shutil.copytree(source, tmp_path / f"dense{number}")
        names = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense"), ("3_Normalize", "Normalize")]
        modules = [
            {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for n, (path, kind) in enumerate(names)
        ]
        (folder / "modules.json").write_text(json.dumps(modules))
        (folder / "2_Dense").mkdir()
        config = {"in_features": 32, "out_features": 16, "bias": True}
        config["activation_function"] = "torch.nn.modules.activation.Tanh"
        (folder / "2_Dense" / "config.json").write_text(json.dumps(config))
        torch.manual_seed(number)
        head = {"linear.weight": torch.randn(16, 32), "linear.bias": torch.randn(16)}
        save_file(head, folder / "2_Dense" / WEIGHTS, metadata={"format": "pt"})
        folders.append(folder)
    mix_models(folders, "encoder", [0.25, 0.75], tmp_path / "out")
    a, b, out = (load_file(folder / "2_Dense" / WEIGHTS) for folder in (*folders, tmp_path / "out"))
    assert all(torch.equal(out[k], (0.25 * a[k].double() + 0.75 * b[k].double()).float()) for k in a)
    assert FlagModel(tmp_path / "out", devices="cpu").encode("a cat").shape == (16,)
    with pytest.raises(CheckpointError, match="different heads: dense layers"):
        mix_models([folders[0], pair[1]], "encoder", [0.5, 0.5], tmp_path / "no")


def test_names_of_other_classes_and_unused_heads(pair, copied, tmp_path):
    other = copied(pair[1])
    stored = {f"bert.{name}": value for name, value in load_file(other / WEIGHTS).items() if "pooler" not in name}
    stored["cls.predictions.bias"] = torch.zeros(4)
    save_file(stored, other / WEIGHTS, metadata={"format": "pt"})
    mix_models([pair[0], other], "encoder", [0.5, 0.5], tmp_path / "out")
    mix_models(pair, "encoder", [0.5, 0.5], tmp_path / "plain")
    got, expected = (load_file(tmp_path / name / WEIGHTS) for name in ("out", "plain"))
    assert all(torch.equal(got[name], expected[name]) for name in expected if "pooler" not in name)


def test_one_model_over_a_base_without_its_pooler(pair, copied, tmp_path):
    base = copied(pair[1])
    stored = {name: value for name, value in load_file(base / WEIGHTS).items() if "pooler" not in name}
    save_file(stored, base / WEIGHTS, metadata={"format": "pt"})
    merge(Merging([str(pair[0])], method="ties", base=str(base), density=1.0), tmp_path / "out")
    got, expected = load_file(tmp_path / "out" / WEIGHTS), load_file(pair[0] / WEIGHTS)
    assert all(torch.allclose(got[name], expected[name], atol=1e-6) for name in expected)


# --- what belongs to it -----------------------------------------------------------------------------------------


def test_provenance_selftest_and_readme(pair, tmp_path, monkeypatch):
    mix_models(pair, "encoder", [0.25, 0.75], tmp_path / "out")
    content = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert [model["name"] for model in content["models"]] == [str(folder) for folder in pair]
    assert [model["weight"] for model in content["models"]] == [0.25, 0.75]
    assert all(len(model["weights"]) == 64 for model in content["models"])
    settings = json.loads((tmp_path / "out" / "config_sentence_transformers.json").read_text())["bgekit"]
    assert len(settings["selftest"]["vector"]) == 32
    assert "calibration" not in settings
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "| 0.2500 |" in readme.replace(str(pair[0]), "")
    assert "tmp" not in readme
    assert "| model-a | 0.2500 |" in readme and "| model-b | 0.7500 |" in readme
    assert "Merged from 2 models by bgekit." in read_readme(tmp_path / "out", monkeypatch, "bgekit")[0]
    check_modes(tmp_path / "out")


def test_result_is_the_model(pair, tmp_path):
    merged = mix_models(pair, "encoder", [0.5, 0.5])
    assert isinstance(merged.model, FlagModel)
    assert merged.encode(TEXTS).shape == (2, 32)
    path, model = merged.path, merged.model
    del merged
    gc.collect()
    assert path.exists()  # As long as the model is used.
    model.save(tmp_path / "kept")
    del model
    gc.collect()
    assert not path.exists()


def test_by_layers_is_the_same(pair, tmp_path):
    mix_models_by_layers(pair, "encoder", [0.5, 0.5], tmp_path / "a")
    mix_models(pair, "encoder", [0.5, 0.5], tmp_path / "b")
    assert (tmp_path / "a" / WEIGHTS).read_bytes() == (tmp_path / "b" / WEIGHTS).read_bytes()


# --- what does not fit together ---------------------------------------------------------------------------------


def test_different_networks(pair, make_model, tmp_path):
    deeper = make_model("bert", num_hidden_layers=3)
    with pytest.raises(CheckpointError, match="different networks: num_hidden_layers 2 / 3"):
        mix_models([pair[0], deeper], "encoder", [0.5, 0.5], tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"different networks: .*model_type 'bert' / 'roberta'"):
        mix_models([pair[0], make_model("roberta")], "encoder", [0.5, 0.5], tmp_path / "out")
    assert leftovers(tmp_path) == []


def test_different_shapes_and_missing_weights(pair, copied, tmp_path):
    other = copied(pair[1])
    stored = load_file(other / WEIGHTS)
    name = "encoder.layer.1.output.dense.weight"
    for value, words in ((torch.zeros(32, 65), "shape"), (torch.zeros(32, 64).int(), "stored as"), (None, "no weight")):
        changed = {key: each for key, each in stored.items() if key != name}
        save_file(changed | ({} if value is None else {name: value}), other / WEIGHTS, metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=words) as error:
            mix_models([pair[0], other], "encoder", [0.5, 0.5], tmp_path / "out")
        assert name in str(error.value)
    with pytest.raises(CheckpointError, match="has no weight"):
        mix_models([other, pair[0]], "encoder", [0.5, 0.5], tmp_path / "out")
    assert leftovers(tmp_path) == ["copy"]


def test_different_tokenizers(pair, copied, tmp_path):
    other = copied(pair[1])
    content = json.loads((other / "tokenizer.json").read_text())
    content["normalizer"]["lowercase"] = False
    (other / "tokenizer.json").write_text(json.dumps(content))
    edited = json.loads((other / "tokenizer_config.json").read_text()) | {"do_lower_case": False}
    (other / "tokenizer_config.json").write_text(json.dumps(edited))
    with pytest.raises(CheckpointError, match="different tokenizers: ids of probes"):
        mix_models([pair[0], other], "encoder", [0.5, 0.5], tmp_path / "out")


def test_different_prompts_need_a_choice(pair, tmp_path):
    FlagModel(pair[0], query_instruction_for_retrieval="find: ", devices="cpu").save(tmp_path / "with")
    models = [tmp_path / "with", pair[1]]
    with pytest.raises(CardError, match=r"prompt of a query 'find: ' / none.*--card-from 0"):
        mix_models(models, "encoder", [0.5, 0.5], tmp_path / "out")
    assert (
        mix_models(models, "encoder", [0.5, 0.5], tmp_path / "a", card_from=0).card.prompt("query").prefix == "find: "
    )
    assert not mix_models(models, "encoder", [0.5, 0.5], tmp_path / "b", card_from=1).card.prompt("query")
    with pytest.raises(ArgumentError, match="card_from=2"):
        mix_models(models, "encoder", [0.5, 0.5], tmp_path / "out", card_from=2)


def test_different_pooling(make_model, tmp_path):
    with pytest.raises(CardError, match="pooling 'cls' / 'mean'"):
        mix_models([make_model("bert"), make_model("bert", pooling="mean")], "encoder", [0.5, 0.5], tmp_path / "out")


def test_model_types(pair, rerankers, tmp_path):
    for kind in ("decoder", "encoder-decoder", "x"):
        with pytest.raises(ArgumentError, match="encoder, reranker"):
            mix_models(pair, kind, [0.5, 0.5], tmp_path / "out")
    with pytest.raises(CardError, match="FlagReranker"):
        mix_models(rerankers, "encoder", [0.5, 0.5], tmp_path / "out")
    with pytest.raises(CardError, match="not a reranker"):
        mix_models(pair, "reranker", [0.5, 0.5], tmp_path / "out")


def test_impossible_arguments(pair, tmp_path):
    with pytest.raises(ArgumentError, match="needs a base"):
        merge(Merging(pair, method="ties"), tmp_path / "out")
    with pytest.raises(ArgumentError, match="has no base"):
        merge(Merging(pair, base=pair[0]), tmp_path / "out")
    with pytest.raises(ArgumentError, match="needs weights"):
        merge(Merging(pair, method="dare", base=pair[0]), tmp_path / "out")
    with pytest.raises(ArgumentError, match=r"sum to 0\.8"):
        mix_models(pair, "encoder", [0.4, 0.4], tmp_path / "out")
    with pytest.raises(ArgumentError, match="wrong is not an argument"):
        mix_models(pair, "encoder", [0.5, 0.5], wrong=1)
    with pytest.raises(CheckpointError, match="no folder"):
        mix_models([pair[0], tmp_path / "nothing"], "encoder", [0.5, 0.5], tmp_path / "out")
    with pytest.raises(ArgumentError, match="must be a list"):
        Validation("folder")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="needs example_data"):
        mix_models_with_data(pair, "encoder")
    assert leftovers(tmp_path) == []


def test_weights_that_are_not_finite(pair, copied, tmp_path):
    other = copied(pair[1])
    stored = load_file(other / WEIGHTS)
    stored["embeddings.LayerNorm.weight"][3] = torch.nan
    save_file(stored, other / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(NumericalError, match=r"embeddings\.LayerNorm\.weight"):
        mix_models([pair[0], other], "encoder", [0.5, 0.5], tmp_path / "out")
    with pytest.raises(NumericalError, match=r"embeddings\.LayerNorm\.weight"):
        merge(Merging([str(other)], method="ties", base=str(pair[0])), tmp_path / "out")
    assert leftovers(tmp_path) == ["copy"]


# --- complete or not there --------------------------------------------------------------------------------------


def test_a_full_disk_leaves_nothing(pair, tmp_path, monkeypatch):
    write = merged_model.write_safetensors

    def full(file, stored, merged):
        def some(name):
            if name.startswith("pooler"):
                raise OSError(errno.ENOSPC, "No space left on device")
            return merged(name)

        write(file, stored, some)

    monkeypatch.setattr("bgekit.merging.merged_model.write_safetensors", full)
    with pytest.raises(OutputError, match=r"to \S+/out: No space left on device"):
        mix_models(pair, "encoder", [0.5, 0.5], tmp_path / "out")
    assert leftovers(tmp_path) == []


def test_a_disk_that_is_full_later_leaves_nothing_and_names_the_output(pair, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("bgekit.networks.saving.copy_weights", full)
    with pytest.raises(OutputError, match=r"to \S+/out: No space left"):
        mix_models(pair, "encoder", [0.5, 0.5], tmp_path / "out")
    assert leftovers(tmp_path) == []


def test_what_is_there_is_not_replaced_unasked(pair, tmp_path):
    mix_models(pair, "encoder", [0.5, 0.5], tmp_path / "out")
    before = (tmp_path / "out" / WEIGHTS).read_bytes()
    with pytest.raises(OutputError, match="exists"):
        mix_models(pair, "encoder", [1, 0], tmp_path / "out")
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == before
    mix_models(pair, "encoder", [1, 0], tmp_path / "out", overwrite=True)
    assert same(load_file(tmp_path / "out" / WEIGHTS), load_file(pair[0] / WEIGHTS))
    assert leftovers(tmp_path) == ["out"]


def renamed(folder, name):
    """Give the weights of a copied checkpoint other names; None leaves one out."""
    weights = {name(key): value for key, value in load_file(folder / WEIGHTS).items() if name(key)}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def test_what_wrappers_put_before_names_is_left_out(pair, rerankers, copied, tmp_path, caplog):
    for models, kind in ((pair, "encoder"), (rerankers, "reranker")):
        expected = load_file(mix_models(models, kind, [0.5, 0.5], tmp_path / f"plain-{kind}").path / WEIGHTS)
        first = renamed(copied(models[0], f"{kind}-a"), lambda name: f"_orig_mod.module.{name}")
        second = renamed(copied(models[1], f"{kind}-b"), lambda name: f"model.{name}")
        merged = load_file(mix_models([first, second], kind, [0.5, 0.5], tmp_path / f"merged-{kind}").path / WEIGHTS)
        assert merged.keys() == expected.keys()
        assert all(torch.equal(merged[name], value) for name, value in expected.items())
        assert f"the names of the weights in {second} begin with model., which is left out" in caplog.text


def test_matrices_that_were_not_merged_are_no_model_to_merge(pair, copied, tmp_path):
    folder = copied(pair[0])
    weights = load_file(folder / WEIGHTS)
    weights["encoder.layer.0.attention.self.query.lora_A.default.weight"] = torch.ones(4, 32)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"{folder} hold 1 LoRA matrices"):
        mix_models([folder, pair[1]], "encoder", [0.5, 0.5], tmp_path / "out")


@pytest.mark.parametrize("output", [True, False])
def test_an_error_names_no_folder_that_is_gone(pair, copied, tmp_path, output):
    lacking = [renamed(copied(each, each.name), lambda name: "layer.1" not in name and name) for each in pair]
    with pytest.raises(CheckpointError) as caught:
        mix_models(lacking, "encoder", [0.5, 0.5], tmp_path / "out" if output else None)
    assert str(caught.value).startswith(f"the merge of {lacking[0]}, {lacking[1]} lacks 16 weights of BertModel")
    named = [part.rstrip(",:;") for part in str(caught.value).split() if part.startswith("/")]
    assert all(Path(part).exists() for part in named)
