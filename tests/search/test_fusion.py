"""Fusion by weights and by ranks, and the file of fitted weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgekit.errors import ArgumentError, OutputError
from bgekit.models.calibration_map import made_for_facts
from bgekit.search.fusion import (
    FUSION,
    FittedWeights,
    Found,
    Gain,
    by_ranks,
    by_weights,
    candidates,
    comparable,
    read_fusion,
    write_fusion,
)

DENSE = np.array([0.8, 0.7, 0.6, 0.4]), np.array([7, 1, 2, 9])
WORDS = np.array([12.0, 9.0, 3.0]), np.array([2, 5, 1])


def test_weighted_scores_are_summed_over_modes_and_a_missing_score_counts_as_0() -> None:
    scores, rows = by_weights({"dense": DENSE, "bm25": WORDS}, {"dense": 0.5, "bm25": 0.5}, top_k=10)
    by_hand = {7: 0.5, 1: 0.4375 + 0.125, 2: 0.375 + 0.5, 9: 0.25, 5: 0.375}
    assert rows.tolist() == sorted(by_hand, key=lambda row: -by_hand[row])
    assert dict(zip(rows.tolist(), scores.tolist(), strict=True)) == pytest.approx(by_hand)


def test_one_weight_alone_gives_the_list_of_that_mode() -> None:
    found = {"dense": DENSE, "bm25": WORDS}
    assert by_weights(found, {"dense": 1.0, "bm25": 0.0}, top_k=10)[1].tolist() == DENSE[1].tolist()
    assert by_weights(found, {"dense": 0.0, "bm25": 0.2}, top_k=2)[1].tolist() == WORDS[1][:2].tolist()


def test_rows_that_are_none_are_no_candidates() -> None:
    padded = np.array([0.9, -np.inf, -np.inf]), np.array([3, -1, -1])
    assert candidates({"dense": padded, "bm25": WORDS}).tolist() == [1, 2, 3, 5]
    assert by_weights({"dense": padded}, {"dense": 1.0}, top_k=5)[1].tolist() == [3]
    assert by_ranks({"dense": padded}, top_k=5)[1].tolist() == [3]


def test_nothing_found_is_an_empty_list() -> None:
    empty = np.empty(0), np.empty(0, np.int64)
    assert by_ranks({"dense": empty, "bm25": empty}, top_k=5)[1].tolist() == []
    assert by_weights({"dense": empty, "bm25": empty}, {"dense": 1.0, "bm25": 1.0}, top_k=5)[1].tolist() == []


def test_reciprocal_ranks_are_those_of_the_paper() -> None:
    scores, rows = by_ranks({"dense": DENSE, "bm25": WORDS}, top_k=10)
    by_hand = {7: 1 / 61, 1: 1 / 62 + 1 / 63, 2: 1 / 63 + 1 / 61, 9: 1 / 64, 5: 1 / 62}
    assert dict(zip(rows.tolist(), scores.tolist(), strict=True)) == pytest.approx(by_hand)
    assert rows.tolist() == [2, 1, 7, 5, 9]


def test_of_equal_sums_the_earlier_row_comes_first() -> None:
    found = {"dense": (np.array([1.0, 1.0, 1.0]), np.array([9, 4, 6])), "bm25": (np.array([5.0]), np.array([8]))}
    assert by_weights(found, {"dense": 0.5, "bm25": 0.5}, top_k=3)[1].tolist() == [4, 6, 8]
    assert by_ranks({"a": (DENSE[0][:2], np.array([5, 3])), "b": (DENSE[0][:2], np.array([3, 5]))}, 2)[1].tolist() == [
        3, 5,
    ]  # fmt: skip


lists = st.lists(st.integers(0, 30), unique=True, max_size=12).flatmap(
    lambda rows: st.tuples(
        st.lists(st.floats(0.001, 100), min_size=len(rows), max_size=len(rows)).map(
            lambda scores: np.sort(np.array(scores))[::-1]
        ),
        st.just(np.array(rows, np.int64)),
    )
)


@given(lists, lists, st.floats(0, 1), st.floats(0.01, 1000))
def test_a_mode_s_own_unit_and_the_order_of_modes_change_nothing(
    first: Found, second: Found, weight: float, unit: float
) -> None:
    weights = {"dense": weight, "bm25": 1 - weight}
    scores, rows = by_weights({"dense": first, "bm25": second}, weights, top_k=10)
    again, same = by_weights({"bm25": second, "dense": first}, weights, top_k=10)
    assert rows.tolist() == same.tolist() and scores.tolist() == again.tolist()
    scaled, _ = by_weights({"dense": first, "bm25": (unit * second[0], second[1])}, weights, top_k=10)
    np.testing.assert_allclose(scaled, scores, rtol=1e-9)


def test_scores_not_above_0_keep_their_scale() -> None:
    assert comparable([-2.0, -4.0]).tolist() == [-2.0, -4.0]
    assert comparable([4.0, -4.0, -np.inf]).tolist() == [1.0, -1.0, -np.inf]
    assert comparable([]).tolist() == []


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"dense": 1.0}, "no weight for bm25"),
        ({"dense": 0.5, "bm25": 0.2, "lexical": 0.3}, "lexical has a weight, and nothing was searched by it"),
        ({"dense": -0.5, "bm25": 0.2}, "from 0 on: {'dense': -0.5}"),
        ({"dense": float("nan"), "bm25": 0.2}, "from 0 on"),
        ({"dense": 0.0, "bm25": 0.0}, "at least one mode needs a weight"),
    ],
)
def test_weights_that_cannot_be_used_are_refused(weights: dict[str, float], said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        by_weights({"dense": DENSE, "bm25": WORDS}, weights, top_k=3)


@pytest.fixture
def fitted(embedder: Callable[..., Any]) -> FittedWeights:
    model = embedder(8)
    made_for = made_for_facts(model.similarity_facts(), model.card)
    return FittedWeights(
        {"dense": 0.7, "bm25": 0.3}, model.card.name, made_for, "mine", "f" * 64, 225, "ndcg_at_10",
        {"dense": 40.0, "bm25": 35.0, "hybrid": 42.0},
        {"dense": Gain(2.0, 0.5, 3.5), "bm25": Gain(7.0, None, None)},
    )  # fmt: skip


def test_fitted_weights_are_read_as_they_were_written_to_a_folder_or_a_file(
    fitted: FittedWeights, tmp_path: Path
) -> None:
    assert read_fusion(tmp_path) is None
    write_fusion(tmp_path, fitted)
    assert read_fusion(tmp_path) == fitted == read_fusion(tmp_path / FUSION)
    write_fusion(tmp_path / "own.json", fitted)
    assert read_fusion(tmp_path / "own.json") == fitted


def test_fitted_weights_hold_for_their_model_alone(
    fitted: FittedWeights, embedder: Callable[..., Any], tmp_path: Path
) -> None:
    write_fusion(tmp_path, fitted)
    stored = read_fusion(tmp_path)
    assert stored is not None
    stored.check_model(embedder(8))
    with pytest.raises(ArgumentError, match=r"fitted for another model .*dimension was 8 and is 16.*bge calibrate"):
        stored.check_model(embedder(16), str(tmp_path / FUSION))


def test_a_damaged_file_of_weights_is_named(fitted: FittedWeights, tmp_path: Path) -> None:
    for content in (b"{", b"[]", b"{}", json.dumps({"version": 2}).encode()):
        (tmp_path / FUSION).write_bytes(content)
        with pytest.raises(OutputError, match=f"{FUSION} holds no fitted weights"):
            read_fusion(tmp_path)
    write_fusion(tmp_path, replace(fitted, weights={"dense": 0.0}))
    with pytest.raises(OutputError, match="at least one mode"):
        read_fusion(tmp_path)
