"""Blocks of inputs: checked, cleaned, equal ones found; the rows their results go to; the arrays that come out."""

from __future__ import annotations

import copy
import gc
import logging
import pickle
import tracemalloc
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgekit import FlagModel
from bgekit.data.encodings import repair
from bgekit.display import terminal
from bgekit.display.terminal import Progress
from bgekit.errors import ArgumentError, NumericalError, TextTypeError
from bgekit.inference.pipeline import Embeddings, Encoded, Origin, Pipeline
from precisions import needs_bfloat16

TEXTS = st.lists(st.sampled_from(["a", "b", "c", "d", "\ud800", "\ufffd"]), max_size=40)


def vector_of(text: str) -> list[float]:
    return [float(ord(text[0])), float(len(text))]


class Network:
    """Vectors from the characters; every text that starts with d counts as cut, with b as split."""

    def __init__(self) -> None:
        self.blocks: list[list[str]] = []

    def __call__(self, blocks: Iterable[list[str]]) -> Iterator[Encoded]:
        for texts in blocks:
            self.blocks.append(texts)
            marks = [[row for row, text in enumerate(texts) if text.startswith(letter)] for letter in "db"]
            vectors = np.array([vector_of(text) for text in texts], np.float32)
            yield Encoded(vectors, len(texts), marks[0], split=marks[1])

    @property
    def computed(self) -> list[str]:
        return [text for texts in self.blocks for text in texts]


def pipeline(
    compute: Callable[[Iterator[list[str]]], Iterator[Encoded]] | None = None, **options: Any
) -> Pipeline[str]:
    return Pipeline(compute or Network(), 2, model="model", **options)


def in_lists(texts: list[Any], size: int) -> list[list[Any]]:
    return [texts[first : first + size] for first in range(0, len(texts), size)]


@given(texts=TEXTS, size=st.integers(1, 9), stays=st.booleans())
def test_what_comes_out_belongs_to_what_went_in(texts: list[str], size: int, stays: bool) -> None:
    network = Network()
    clean = [repair(text)[0] for text in texts]
    result = pipeline(network).collect(texts if stays else iter(texts), size=size)
    assert result.vectors.tolist() == [vector_of(text) for text in clean]
    assert result.truncated == [row for row, text in enumerate(clean) if text.startswith("d")]
    assert result.split == [row for row, text in enumerate(clean) if text.startswith("b")]
    assert result.repaired == [row for row, text in enumerate(texts) if text == "\ud800"]
    assert sorted(network.computed) == sorted(set(clean))  # equal texts once in the whole input
    assert result.tokens == len(network.computed)


@given(texts=TEXTS, size=st.integers(1, 9))
def test_a_block_for_itself_has_all_it_needs(texts: list[str], size: int) -> None:
    network, seen = Network(), 0
    for own, result in zip(in_lists(texts, size), pipeline(network).run(in_lists(texts, size)), strict=True):
        clean = [repair(text)[0] for text in own]
        assert result.vectors.tolist() == [vector_of(text) for text in clean]
        assert result.truncated == [row for row, text in enumerate(clean) if text.startswith("d")]
        assert result.repaired == [row for row, text in enumerate(own) if text == "\ud800"]
        assert sorted(network.computed[seen:]) == sorted(set(clean))
        seen = len(network.computed)


@given(texts=st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("abc")), max_size=20), stays=st.booleans())
def test_equal_pairs_are_computed_once(texts: list[tuple[str, str]], stays: bool) -> None:
    computed: list[tuple[str, str]] = []

    def compute(blocks: Iterator[list[tuple[str, str]]]) -> Iterator[Encoded]:
        for pairs in blocks:
            computed.extend(pairs)
            yield Encoded(np.array([[ord(left), ord(right)] for left, right in pairs], np.float32))

    made = Pipeline(compute, 2, model="model", valid=lambda pair, _: (pair, False))  # type: ignore[arg-type, return-value]
    result = made.collect(texts if stays else iter(texts), size=3)
    assert result.vectors.tolist() == [[ord(left), ord(right)] for left, right in texts]
    assert sorted(computed) == sorted(set(texts))


def test_texts_of_equal_tokens_have_one_vector_wherever_they_stand() -> None:
    """Batches round differently: of equal token sequences the first one's result counts."""

    def compute(blocks: Iterator[list[str]]) -> Iterator[Encoded]:
        for number, texts in enumerate(blocks):
            vectors = np.full((len(texts), 2), number, np.float32)
            yield Encoded(vectors, keys=[text.lower().encode() for text in texts])

    result = pipeline(compute).collect(["a", "b", "A", "c", "B", "a", "A"], size=2)
    assert result.vectors[:, 0].tolist() == [0, 0, 0, 1, 0, 0, 0]


def test_the_index_of_what_is_no_text_counts_from_the_first() -> None:
    results = pipeline().run([["a", "b"], ["c", "d"], [5]])
    assert len(next(results).vectors) == 2
    next(results)
    with pytest.raises(TextTypeError, match="index 4 is 5 \\(int\\)"):
        next(results)


def test_long_values_are_not_printed_whole() -> None:
    with pytest.raises(TextTypeError) as caught:
        pipeline().collect([list(range(10_000))])
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("wrong", [{"a": 1}, b"ab", bytearray(b"ab"), 7])
def test_things_that_only_look_like_lists_of_texts(tiny_bert: Path, wrong: Any) -> None:
    with pytest.raises(TextTypeError, match="texts must be a string or an iterable of strings"):
        FlagModel(tiny_bert, devices="cpu").encode(wrong)


def test_texts_of_a_stream_are_not_kept() -> None:
    """A gigabyte of streamed texts must not stay in memory to find equal ones: 16 bytes of each do."""

    def compute(blocks: Iterator[list[str]]) -> Iterator[Encoded]:
        for texts in blocks:
            yield Encoded(np.zeros((len(texts), 2), np.float32))

    stream = (f"{number} " + "x" * 100_000 for number in range(400))
    tracemalloc.start()
    pipeline(compute).collect(stream, size=10)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8_000_000


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("whole", [True, False])
def test_the_text_of_a_bad_vector_is_named(bad: float, whole: bool) -> None:
    def compute(blocks: Iterator[list[str]]) -> Iterator[Encoded]:
        for texts in blocks:
            vectors = np.zeros((len(texts), 2), np.float32)
            vectors[-1, 1] = bad if len(texts) == 3 else 0
            yield Encoded(vectors)

    texts = ["x", "y", "x", "y", "a", "b", "x" if whole else "a", "river" * 100]
    made = pipeline(compute)
    with pytest.raises(NumericalError, match=r"index 7 .*river") as caught:
        made.collect(texts, size=4) if whole else list(made.run(in_lists(texts, 4)))
    assert len(str(caught.value)) < 500


def counted(blocks: Iterator[list[str]]) -> Iterator[Encoded]:
    """Vectors that count on from 0."""
    first = 0
    for texts in blocks:
        yield Encoded(np.arange(first, first + 2 * len(texts), dtype=np.float32).reshape(-1, 2))
        first += 2 * len(texts)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_callers_array_is_filled_in_place(dtype: Any) -> None:
    out = np.full((5, 2), -1, dtype)
    vectors = pipeline(counted).collect(list("abcde"), out=out).vectors
    assert np.shares_memory(vectors, out) and vectors.dtype == dtype
    assert out.ravel().tolist() == list(range(10))


def test_arrays_that_do_not_fit() -> None:
    read_only = np.zeros((5, 2), np.float32)
    read_only.flags.writeable = False
    for wrong in (
        np.zeros((4, 2), np.float32),
        np.zeros((5, 3), np.float32),
        np.zeros(5),
        np.zeros((5, 2), int),
        read_only,
    ):
        with pytest.raises(ArgumentError, match="out"):
            pipeline(counted).collect(list("abcde"), out=wrong)
    with pytest.raises(ArgumentError, match="room for 4 vectors, but there are more"):
        pipeline(counted).collect(iter("abcde"), out=np.zeros((4, 2), np.float32))
    with pytest.raises(ArgumentError, match="room for 6 vectors, but there were only 5"):
        pipeline(counted).collect(iter("abcde"), out=np.zeros((6, 2), np.float32))


def test_a_stream_grows_its_array() -> None:
    result = pipeline(counted).collect((str(number) for number in range(3003)), size=7).vectors
    assert result.shape == (3003, 2)
    assert np.array_equal(result[:, 0], 2 * np.arange(3003))


def test_vectors_of_another_width_than_expected() -> None:
    """A server may know better than a table how wide its vectors are, unless the caller counts on it."""

    def wider(first: int) -> Callable[[Iterator[list[str]]], Iterator[Encoded]]:
        def compute(blocks: Iterator[list[str]]) -> Iterator[Encoded]:
            for number, texts in enumerate(blocks):
                yield Encoded(np.ones((len(texts), 3 if number >= first else 2), np.float32))

        return compute

    assert pipeline(wider(0)).collect(list("abcba"), size=2).vectors.shape == (5, 3)
    with pytest.raises(ArgumentError, match="width 3, those before had 2"):
        pipeline(wider(1)).collect(list("abcde"), size=2)
    with pytest.raises(ArgumentError, match="width 3, out has 2"):
        pipeline(wider(0)).collect(list("abcde"), out=np.zeros((5, 2), np.float32))


def test_nothing_is_logged_when_nothing_happened(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "bgekit"):
        pipeline().collect(["a", "b", "a"])
    assert not caplog.records


@pytest.mark.parametrize("whole", [True, False])
def test_what_happened_to_texts_is_logged_once(caplog: pytest.LogCaptureFixture, whole: bool) -> None:
    texts = ["d", "a", "d", "\ud800", "d"]
    with caplog.at_level(logging.DEBUG, "bgekit"):
        pipeline().collect(texts, size=2) if whole else list(pipeline().run(in_lists(texts, 2)))
    assert [record.getMessage() for record in caplog.records] == [
        "3 of 5 texts were too long for model and were cut",
        "1 of 5 texts held lone surrogates, now U+FFFD",
    ]


def test_progress_counts_texts_and_tokens(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[float, int]] = []
    pipeline(progress=lambda *counts: told.append(counts)).collect(["a", "b", "a"] * 20, size=6)
    assert told == [(6, 2)] + [(6, 0)] * 9
    monkeypatch.setattr(terminal, "on_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    with Progress("encode", "texts", 60, show=True) as bar:
        pipeline(progress=bar.advance).collect(["a", "b", "a"] * 20, size=6)
    shown = capsys.readouterr().err
    assert "60/60" in shown and "texts/s" in shown and "tokens/s" in shown
    monkeypatch.setattr(terminal, "on_terminal", lambda: False)
    for show in (False, None):
        with Progress("encode", "texts", 60, show=show) as bar:
            pipeline(progress=bar.advance).collect(["a", "b"])
    assert capsys.readouterr().err == ""


def test_every_output_is_taken_and_joined_alike() -> None:
    one = Encoded(np.arange(6, dtype=np.float32).reshape(3, 2), 7, [0, 2], [1], [2])
    taken = one.take(np.array([2, 0, 2, 1]))
    assert taken.vectors[:, 0].tolist() == [4, 0, 4, 2]
    assert (taken.tokens, taken.truncated, taken.repaired, taken.split) == (7, [0, 1, 2], [3], [0, 2])
    both = Encoded.joined([taken, one])
    assert both.vectors[:, 0].tolist() == [4, 0, 4, 2, 0, 2, 4]
    assert (both.tokens, both.truncated, both.repaired, both.split) == (14, [0, 1, 2, 4, 6], [3, 5], [0, 2, 6])


def test_what_is_derived_from_embeddings_is_plain() -> None:
    vectors = Embeddings.of(np.ones((3, 2), np.float32), (1,), (2,))
    assert (vectors.truncated, vectors.repaired) == ((1,), (2,))
    derived = (vectors[1:], vectors + 1, vectors @ vectors.T, copy.copy(vectors), pickle.loads(pickle.dumps(vectors)))
    for each in derived:
        assert each.truncated == () and each.repaired == ()


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


@needs_bfloat16
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
