"""Vectors know the model that they come from, as long as they are its vectors."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bgekit import FlagModel
from bgekit.inference.embeddings import Embeddings, Origin

#: What holds whole vectors of the model.
WHOLE: dict[str, Callable[[Embeddings], Any]] = {
    "a row": lambda vectors: vectors[1], "rows": lambda vectors: vectors[1:], "all": lambda vectors: vectors[...],
    "chosen rows": lambda vectors: vectors[[2, 0]], "a mask": lambda vectors: vectors[np.array([True, False, True])],
    "whole width": lambda vectors: vectors[1:, :], "an axis more": lambda vectors: vectors[0][None, :],
    "reshaped": lambda vectors: vectors[0].reshape(1, -1), "at least 2": lambda vectors: np.atleast_2d(vectors[0]),
    "one after the other": lambda vectors: next(iter(vectors)), "copied": lambda vectors: vectors.copy(),
    "copy": copy.copy, "deep copy": copy.deepcopy, "pickled": lambda vectors: pickle.loads(pickle.dumps(vectors)),
    "half": lambda vectors: vectors.astype(np.float16),
}  # fmt: skip
#: What does not.
OTHER: dict[str, Callable[[Embeddings], Any]] = {
    "sum": lambda vectors: vectors + 1, "product": lambda vectors: 2 * vectors, "mean": lambda vectors: vectors.mean(0),
    "matrix product": lambda vectors: vectors @ vectors.T, "columns": lambda vectors: vectors[:, :2],
    "columns in another order": lambda vectors: vectors[:, ::-1], "part of a vector": lambda vectors: vectors[0][:2],
    "numbers": lambda vectors: vectors[vectors > 3], "turned": lambda vectors: vectors.T,
    "flat": lambda vectors: vectors.reshape(-1), "rounded": lambda vectors: np.round(vectors),
}  # fmt: skip


def add_in_place(vectors: Embeddings) -> None:
    vectors += 1


#: What makes other vectors of them.
CHANGES: dict[str, Callable[[Embeddings], Any]] = {
    "+=": add_in_place, "set": lambda vectors: vectors.__setitem__(0, 1.0), "fill": lambda vectors: vectors.fill(2),
    "out": lambda vectors: np.multiply(vectors, 2, out=vectors), "at": lambda vectors: np.add.at(vectors, [0], 1),
    "sort": lambda vectors: vectors.sort(),
}  # fmt: skip


@pytest.fixture
def vectors() -> Embeddings:
    return Embeddings.of(np.arange(12, dtype=np.float32).reshape(3, 4), origin=Origin(lambda: "print"))


@pytest.mark.parametrize("how", WHOLE)
def test_whole_vectors_keep_their_origin(vectors: Embeddings, how: str) -> None:
    assert WHOLE[how](vectors).fingerprint == "print"


@pytest.mark.parametrize("how", OTHER)
def test_other_numbers_have_no_origin(vectors: Embeddings, how: str) -> None:
    assert getattr(OTHER[how](vectors), "fingerprint", None) is None
    assert vectors.fingerprint == "print"


@pytest.mark.parametrize("how", CHANGES)
def test_vectors_that_were_changed_have_no_origin(vectors: Embeddings, how: str) -> None:
    kept = vectors.copy()
    CHANGES[how](vectors)
    assert vectors.fingerprint is None and kept.fingerprint == "print"


def test_arithmetic_is_that_of_arrays(vectors: Embeddings) -> None:
    plain = np.asarray(vectors)
    assert isinstance(vectors - 1, Embeddings) and np.array_equal(vectors - 1, plain - 1)
    assert isinstance(vectors.max(), np.float32) and vectors.max() == 11
    assert all(map(np.array_equal, np.divmod(vectors, 5), np.divmod(plain, 5)))
    assert np.array_equal(np.add.reduce(vectors, axis=1), plain.sum(axis=1))
    assert bool((vectors == plain).all())


def test_vectors_of_a_model_have_its_fingerprint_and_do_not_keep_it_alive(tiny_bert: Path) -> None:
    model = FlagModel(tiny_bert, devices="cpu", dtype="float32")
    found = model.encode(["a cat", "a dog"])
    other = FlagModel(tiny_bert, devices="cpu", dtype="bfloat16").encode("a cat")
    assert model.encode("a cat").fingerprint == model.fingerprint != other.fingerprint
    gone, fingerprint = weakref.ref(model), model.fingerprint
    del model
    gc.collect()
    assert gone() is None
    assert found[0].fingerprint == fingerprint


def test_a_model_whose_files_are_gone_is_unknown(caplog: pytest.LogCaptureFixture) -> None:
    def gone() -> str:
        raise FileNotFoundError("weights")

    vectors = Embeddings.of(np.ones((1, 2)), origin=Origin(gone))
    assert vectors.fingerprint is None and "weights" in caplog.text
    assert pickle.loads(pickle.dumps(vectors)).origin is None


def test_a_mask_of_vectors_and_some_outputs_are_as_of_any_array() -> None:
    vectors = Embeddings.of(np.ones((2, 2), np.float32), origin=Origin.known("a model"))
    assert vectors.mean(where=np.isfinite(vectors)) == 1
    assert np.mean(vectors, where=vectors > 0.5) == 1
    given = np.empty((2, 2), np.float32)
    quotient, rest = np.divmod(vectors, 2, out=(None, given))
    assert rest is given and (quotient == 0).all() and (rest == 1).all()
