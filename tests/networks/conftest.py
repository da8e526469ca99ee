"""Checkpoints with a dense layer, for the tests of this room."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file


def add_dense(source, folder, *, bias=True, activation="torch.nn.modules.activation.Tanh"):
    """A copy of a checkpoint with a dense layer 32 -> 16 before normalisation."""
    shutil.copytree(source, folder)
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense"), ("3_Normalize", "Normalize")]
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (path, kind) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "2_Dense").mkdir()
    config = {"in_features": 32, "out_features": 16, "bias": bias, "activation_function": activation}
    (folder / "2_Dense" / "config.json").write_text(json.dumps(config))
    torch.manual_seed(1)
    tensors = {"linear.weight": torch.randn(16, 32)} | ({"linear.bias": torch.randn(16)} if bias else {})
    save_file(tensors, folder / "2_Dense" / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def with_dense():
    """Make a copy with a dense layer: `with_dense(source, folder, bias=True, activation="torch...Tanh")`."""
    return add_dense
