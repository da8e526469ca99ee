"""Windows of texts: checked, cleaned, equal texts found; and the array their vectors go to."""

from __future__ import annotations

import logging
import tracemalloc
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgekit.data.unicode import repair
from bgekit.errors import ArgumentError, NumericalError, TextTypeError
from bgekit.inference.embeddings import Embeddings, Encoded
from bgekit.inference.pipeline import Collector, Tally, Window, checked_windows, split, with_progress

TEXTS = st.lists(st.sampled_from(["a", "b", "c", "d", "\ud800", "\ufffd"]), max_size=40)


def vector_of(text: str) -> list[float]:
    return [float(ord(text[0])), float(len(text))]


def encode(windows: Iterable[Window]) -> Iterator[tuple[Window, Encoded]]:
    """Vectors from the characters; every text that starts with d counts as cut."""
    for window in windows:
        cut = [row for row, text in enumerate(window.texts) if text.startswith("d")]
        vectors = np.array([vector_of(text) for text in window.texts], np.float32).reshape(-1, 2)
        yield window, Encoded(vectors, len(window.texts), cut)


@given(texts=TEXTS, size=st.integers(1, 9), stays=st.booleans())
def test_what_comes_out_belongs_to_what_went_in(texts: list[str], size: int, stays: bool) -> None:
    windows = list(checked_windows(split(texts, size), across=True, texts_stay=stays))
    clean = [repair(text)[0] for text in texts]
    collector = Collector(2, len(texts) if stays else None, None)
    for window, encoded in encode(windows):
        collector.add(window, encoded)
    result = collector.result()
    assert np.asarray(result).tolist() == [vector_of(text) for text in clean]
    assert result.truncated == tuple(row for row, text in enumerate(clean) if text.startswith("d"))
    assert result.repaired == tuple(row for row, text in enumerate(texts) if text == "\ud800")
    computed = [text for window in windows for text in window.texts]
    assert sorted(computed) == sorted(set(clean))  # equal texts once in the whole input


@given(texts=TEXTS, size=st.integers(1, 9))
def test_a_window_for_itself_has_all_it_needs(texts: list[str], size: int) -> None:
    windows = checked_windows(split(texts, size), across=False, texts_stay=False)
    rows = 0
    for window, encoded in encode(windows):
        own = texts[rows : rows + size]
        clean = [repair(text)[0] for text in own]
        result = window.restore(encoded)
        assert result.vectors.tolist() == [vector_of(text) for text in clean]
        assert result.truncated == [row for row, text in enumerate(clean) if text.startswith("d")]
        assert result.repaired == [row for row, text in enumerate(own) if text == "\ud800"]
        assert sorted(window.texts) == sorted(set(clean))
        rows += len(own)
    assert rows == len(texts)


def test_the_index_of_what_is_no_text_counts_from_the_first() -> None:
    windows = checked_windows(split(["a", "b", "c", "d", 5], 2), across=True, texts_stay=False)  # type: ignore[list-item]
    assert len(next(windows).texts) == 2
    next(windows)
    with pytest.raises(TextTypeError, match="index 4 is 5 \\(int\\)"):
        next(windows)


def test_long_values_are_not_printed_whole() -> None:
    with pytest.raises(TextTypeError) as caught:
        list(checked_windows([[list(range(10_000))]], across=True, texts_stay=True))  # type: ignore[list-item]
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("wrong", [{"a": 1}, b"ab", bytearray(b"ab")])
def test_things_that_only_look_like_lists_of_texts(wrong: Any) -> None:
    with pytest.raises(TextTypeError):
        list(split(wrong, 5))


def test_texts_of_a_stream_are_not_kept() -> None:
    """A gigabyte of streamed texts must not stay in memory to find equal ones: 16 bytes of each do."""
    stream = (f"{number} " + "x" * 100_000 for number in range(400))
    tracemalloc.start()
    for _ in checked_windows(split(stream, 10), across=True, texts_stay=False):
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8_000_000


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_the_text_of_a_bad_vector_is_named(bad: float) -> None:
    window = next(checked_windows([["a", "b", "a", "river" * 100]], across=True, texts_stay=True))
    vectors = np.zeros((3, 2), np.float32)
    window.check(Encoded(vectors))
    vectors[2, 1] = bad
    with pytest.raises(NumericalError, match=r"index 3 .*river") as caught:
        window.check(Encoded(vectors))
    assert len(str(caught.value)) < 500


def filled(collector: Collector, rows: int) -> Collector:
    window = Window(0, rows, ["x"] * rows, list(range(rows)))
    collector.add(window, Encoded(np.arange(2 * rows, dtype=np.float32).reshape(rows, 2)))
    return collector


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_callers_array_is_filled_in_place(dtype: Any) -> None:
    out = np.full((5, 2), -1, dtype)
    result = filled(Collector(2, 5, out), 5).result()
    assert isinstance(result, Embeddings) and np.shares_memory(result, out) and result.dtype == dtype
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
            Collector(2, 5, wrong)
    with pytest.raises(ArgumentError, match="room for 4 vectors, but there are more"):
        filled(Collector(2, None, np.zeros((4, 2), np.float32)), 5)
    with pytest.raises(ArgumentError, match="room for 6 vectors, but there were only 5"):
        filled(Collector(2, None, np.zeros((6, 2), np.float32)), 5).result()


def test_a_stream_grows_its_array() -> None:
    collector = Collector(2, None, None)
    for start in range(0, 3000, 7):
        rows = list(range(start, start + 7))
        collector.add(Window(start, 7, ["x"] * 7, rows), Encoded(np.array([[row, -row] for row in rows], np.float32)))
    result = collector.result()
    assert result.shape == (3003, 2)
    assert np.array_equal(result[:, 0], np.arange(3003))


def test_nothing_is_logged_when_nothing_happened(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "bgekit"):
        tally = Tally()
        tally.add(3, Encoded(np.zeros((3, 2), np.float32)))
        tally.log("model")
    assert not caplog.records


def test_progress_counts_texts_and_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    windows = list(checked_windows(split(["a", "b", "a"] * 20, 6), across=True, texts_stay=True))
    results = list(with_progress(encode(windows), 60, True))
    assert len(results) == 10
    shown = capsys.readouterr().err
    assert "60/60" in shown and "texts/s" in shown and "tokens/s" in shown
    list(with_progress(encode(windows), 60, False))
    list(with_progress(encode(windows), 60, None))  # not a terminal
    assert capsys.readouterr().err == ""


def test_what_is_derived_from_embeddings_is_plain() -> None:
    import copy
    import pickle

    vectors = Embeddings.of(np.ones((3, 2), np.float32), (1,), (2,))
    assert (vectors.truncated, vectors.repaired) == ((1,), (2,))
    derived = (vectors[1:], vectors + 1, vectors @ vectors.T, copy.copy(vectors), pickle.loads(pickle.dumps(vectors)))
    for each in derived:
        assert each.truncated == () and each.repaired == ()
