"""Outputs of an embedder beside its dense vectors, and the files of the heads that give them, as BGE-M3 has them.

A head is a linear layer on token vectors, with weight and bias:

    sparse_linear.pt, colbert_linear.pt    as FlagEmbedding writes them beside the model; read without code execution
    heads/sparse_linear.safetensors, ...   the same; not beside the model, where servers take all safetensors for its

Where a checkpoint has both, they must agree.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final, Literal, get_args

from ..files.hashing import content_sha256

#: What is computed of a text: one vector, a weight for each of its distinct tokens, a vector for each of its tokens.
Output = Literal["dense", "sparse", "multi-vector"]
OUTPUTS: Final[tuple[Output, ...]] = get_args(Output)
#: What every model gives.
DENSE: Final[tuple[Output, ...]] = ("dense",)
#: Outputs that take a head -> the name of its files without ending, which is FlagEmbedding's.
HEAD_FILES: Final[dict[Output, str]] = {"sparse": "sparse_linear", "multi-vector": "colbert_linear"}
#: Folder of heads as safetensors.
HEAD_FOLDER: Final = "heads"


def head_paths(folder: Path, output: Output) -> tuple[Path, Path]:
    """Where the head for an output lies in a checkpoint that is written here: for FlagEmbedding, and as safetensors."""
    name = HEAD_FILES[output]
    return folder / f"{name}.pt", folder / HEAD_FOLDER / f"{name}.safetensors"


def head_files(folder: Path, output: Output) -> list[Path]:
    """The files of the head for an output that a checkpoint has; safetensors may also lie beside the model."""
    pickled, safe = head_paths(folder, output)
    return [path for path in (safe, folder / safe.name, pickled) if path.is_file()]


def stored_heads(folder: Path) -> tuple[Output, ...]:
    """The outputs beside the dense one that a checkpoint has heads for."""
    return tuple(output for output in HEAD_FILES if head_files(folder, output))


def heads_fingerprint(folder: Path, output: Output) -> str:
    """sha256 (hex) of the files of the head for an output: beside a model's fingerprint, what decides that output."""
    digest = hashlib.sha256()
    for path in head_files(folder, output):
        digest.update(f"{path.name}:{content_sha256(path)}\n".encode())
    return digest.hexdigest()
