"""Fields of a Hugging Face `config.json`: a network's width, its positions, its number format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

from ..errors import CardError, CheckpointError
from .weights import read_json, refuse_adapter

#: Without any stated limit, texts are cut at this many tokens (the default of FlagEmbedding).
DEFAULT_MAX_LENGTH: Final = 512

#: Model types whose positions start at pad_token_id + 1, and which give all padding tokens the position pad_token_id.
OFFSET_POSITIONS: Final = frozenset(
    {
        "roberta",
        "xlm-roberta",
        "xlm-roberta-xl",
        "camembert",
        "mpnet",
        "roberta-prelayernorm",
        "data2vec-text",
    }
)

_DTYPES: Final = ("float64", "float32", "float16", "bfloat16")


def read_config(folder: Path) -> dict[str, Any]:
    """The content of a checkpoint's `config.json`.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    path = folder / "config.json"
    if not path.is_file():
        refuse_adapter(folder)
        raise CheckpointError(f"{folder} is no model: it has no config.json")
    return cast(dict[str, Any], read_json(path))


def hidden_size(config: Mapping[str, Any]) -> int:
    """Width of the token vectors.

    Raises:
        CheckpointError: the config does not say it.
    """
    for key in ("hidden_size", "d_model", "n_embd", "dim"):
        if key in config:
            return int(config[key])
    raise CheckpointError("config.json does not say the hidden size")


def padding_position(model_type: str, pad_token_id: int | None) -> int | None:
    """The position that a model of `OFFSET_POSITIONS` gives to padding tokens, which is their id; None for others."""
    return (pad_token_id or 0) if model_type in OFFSET_POSITIONS else None


def position_limit(config: Mapping[str, Any]) -> int | None:
    """Most tokens that the position embeddings allow, None without a fixed limit."""
    limit = config.get("max_position_embeddings") or config.get("n_positions")
    kind = config.get("model_type") or ""
    if limit is None or kind in ("t5", "mt5", "umt5"):
        return None
    padding = padding_position(kind, config.get("pad_token_id"))
    return int(limit) - (0 if padding is None else padding + 1)


def usable_length(config: Mapping[str, Any]) -> int:
    """Length in tokens at which texts are cut when nothing else says it."""
    return min(DEFAULT_MAX_LENGTH, position_limit(config) or DEFAULT_MAX_LENGTH)


def checked_length(length: Any, source: str, config: Mapping[str, Any], name: str) -> int:
    """A maximum length that the network can take: one from the model's files is lowered to what there is.

    Args:
        length: The length that was found.
        source: Where; `caller` is not lowered but told.
        config: The config.
        name: The model's name, for messages.

    Raises:
        CardError: it is no positive number, or a caller asks for more than there is.
    """
    limit = position_limit(config)
    if not isinstance(length, int) or isinstance(length, bool) or length < 1:
        raise CardError(f"max_length of {name} must be a positive number of tokens, not {length!r}")
    if limit is None or length <= limit:
        return length
    if source == "caller":
        raise CardError(
            f"max_length={length} is more than {name} can take: it has position embeddings for {limit} tokens. "
            "Pass at most that, or split long texts into passages (bge encode --chunk)."
        )
    return limit


def declared_dtype(config: Mapping[str, Any]) -> str | None:
    """The number format that the weights were saved in, as the config has it; None when it does not say."""
    for key in ("dtype", "torch_dtype"):  # transformers renamed it in release 5.
        if config.get(key) in _DTYPES:
            return str(config[key])
    return None
