"""What a Hugging Face config says, in the words of several architectures and releases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bgekit.errors import CardError, CheckpointError
from bgekit.models.config import (
    checked_length,
    declared_dtype,
    hidden_size,
    padding_position,
    position_limit,
    read_config,
    usable_length,
)


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
