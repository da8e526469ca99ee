"""Training data and steps on it, made in a moment."""

from __future__ import annotations

import json

import pytest

from bgekit.inference.tokenization import load_tokenizer
from bgekit.training.batches.datasets import load_data


def row(number: int, negatives: int = 3, **fields):
    """A row whose texts say where they belong."""
    texts = [f"neg {number} {position}" for position in range(negatives)]
    return {"query": f"query {number}", "pos": [f"pos {number}"], "neg": texts} | fields


def scored(number: int, **fields):
    return row(number) | {
        "pos_scores": [float(number)], "neg_scores": [number - 1.0, number - 2.0, number - 3.0],
    } | fields  # fmt: skip


def to_jsonl(rows) -> str:
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in rows)


@pytest.fixture
def write(tmp_path):
    """Write a file of training data: `write("a.jsonl", rows)`; rows, text or bytes."""

    def write(name, content):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(content, bytes | str):
            content = to_jsonl(content)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return write


@pytest.fixture
def load(tmp_path):
    """`load_data` with a cache of its own."""

    def load(*paths, **options):
        return load_data(paths, cache=options.pop("cache", tmp_path / "cache"), **options)

    return load


@pytest.fixture(scope="session")
def tokenizer(tiny_bert):
    return load_tokenizer(tiny_bert)


@pytest.fixture(scope="session")
def bytes_tokenizer():
    """Every byte a token: nothing is lost, as with the tokenizers of most newer models."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(sorted(alphabet))}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend)
