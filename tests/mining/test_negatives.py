"""The draw of negatives, over randomised corpora, without files."""

from __future__ import annotations

import numpy as np
import pytest

from bgekit.data.training_rows import Row, copy_key
from bgekit.errors import ArgumentError
from bgekit.mining.dedup import jaccard, pieces
from bgekit.mining.negatives import Choice, Draw, Guards, TextStore

WORDS = "red Blue cat  dog\tnew old 中文 tree".split(" ")


class MemoryStore(TextStore):
    def __init__(self, texts):
        self.texts, self.candidates = texts, len(texts)
        self.keys = np.array([copy_key(text) for text in texts], dtype=np.int64)

    def __getitem__(self, number):
        return self.texts[number]


def normal(text):
    return "".join(text.casefold().split())


def variant(generator, text):
    """A copy, up to case and white space."""
    return [text, text.upper(), f"  {text}\n", text.replace(" ", "   "), text.title()][generator.integers(5)]


def test_positives_and_copies_never_come_back():
    short = 0
    for seed in range(1000):
        generator = np.random.default_rng(seed)
        words = lambda: " ".join(generator.choice(WORDS, generator.integers(1, 4)))  # noqa: B023, E731
        row = Row(words(), tuple(words() for _ in range(generator.integers(1, 4))), index=seed)
        texts = [words() for _ in range(generator.integers(1, 60))]
        planted = [variant(generator, text) for text in (row.query, *row.positives) for _ in range(2)]
        texts = [*texts, *planted, *(variant(generator, text) for text in texts[:5]), " "]
        texts = [texts[place] for place in generator.permutation(len(texts))]
        first = int(generator.integers(0, 5))
        choice = Choice(
            negatives=int(generator.integers(1, 12)), first=first, last=first + int(generator.integers(1, 40)),
            sampling=("random", "top")[seed % 2], seed=seed, fill=bool(seed % 3), shares=(2, 1),
            guards=Guards(near_duplicates=0.8 if seed % 5 == 0 else None),
        )  # fmt: skip
        kept = [words()] if seed % 4 == 0 else []
        rankings = [("a", generator.permutation(len(texts))), ("b", generator.permutation(len(texts)))]
        draw = Draw(row, MemoryStore(texts), rankings, choice, kept=kept)
        while found := draw.propose():
            draw.accept(found)
        chosen = [normal(each.text) for each in draw.accepted]
        forbidden = {normal(text) for text in (row.query, *row.positives, *kept)}
        assert not forbidden & set(chosen)
        assert len(set(chosen)) == len(chosen) <= choice.negatives
        assert "" not in chosen
        for each in draw.accepted:
            if each.rank:
                ranking = dict(rankings)[each.miner]
                assert first < each.rank <= choice.last
                assert ranking[each.rank - 1] == each.number
        if choice.fill and choice.guards.near_duplicates is None:
            available = {normal(text) for text in texts} - forbidden - {""}
            assert len(chosen) == min(choice.negatives, len(available))
        if choice.guards.near_duplicates is not None:
            parts = [pieces(each.text) for each in draw.accepted]
            assert all(jaccard(a, b) < 0.8 for i, a in enumerate(parts) for b in parts[:i])
        short += len(chosen) < choice.negatives
    assert 0 < short < 1000


def test_a_draw_does_not_depend_on_the_order_within_the_range():
    texts = [f"text {number}" for number in range(300)]
    row = Row("query", ("positive",), index=3)
    ranking = np.random.default_rng(0).permutation(300)
    swapped = ranking.copy()
    swapped[50:60] = ranking[50:60][::-1]
    first, second = (
        Draw(row, MemoryStore(texts), [("a", order)], Choice(negatives=9)).propose() for order in (ranking, swapped)
    )
    assert [each.text for each in first] == [each.text for each in second]


def test_what_one_miner_places_before_the_range_comes_from_no_other():
    texts = [f"text {number}" for number in range(100)]
    ranking = np.arange(100)
    choice = Choice(negatives=30, first=10, last=60, shares=(1, 1))
    found = Draw(Row("q", ("p",)), MemoryStore(texts), [("a", ranking), ("b", ranking[::-1])], choice).propose()
    assert len(found) == 30
    assert all(10 <= each.number < 90 for each in found)
    assert [each.miner for each in found[:4]] == ["a", "b", "a", "b"]


def test_fill_takes_texts_before_the_range_last():
    texts = [f"text {number}" for number in range(20)]
    found = Draw(Row("q", ("text 3",)), MemoryStore(texts), [("a", np.arange(20))], Choice(negatives=30)).propose()
    assert [each.miner for each in found] == ["a"] * 10 + ["fill"] * 9
    assert {each.number for each in found[10:]} == set(range(10)) - {3}


def test_each_candidate_is_counted_once():
    texts = [f"text {number}" for number in range(60)]
    ranking = np.arange(60)
    choice = Choice(negatives=40, first=0, last=60, shares=(1, 1), guards=Guards(max_score=-1))
    draw = Draw(
        Row("q", ("text 3",)), MemoryStore([*texts, "TEXT 3"]), [("a", ranking), ("b", ranking[::-1])], choice,
        similarity=lambda rows: np.where(rows % 2, 0.0, -2.0),
    )  # fmt: skip
    while found := draw.propose():
        refused = [each for each in found if each.number < 20]
        draw.refuse(refused, "reranker")
        draw.accept([each for each in found if each not in refused])
    assert {each.number for each in draw.accepted} == set(range(20, 60, 2))
    assert draw.refused == {"copy of a positive": 2, "max_score": 29, "reranker": 10}


def test_guards_below_zero():
    assert Guards(max_positive_ratio=0.9).ceilings(-0.2)["max_positive_ratio"] < -0.2
    assert Guards(max_positive_ratio=0.5, margin=0.1, max_score=0.3).ceilings(0.8) == {
        "max_positive_ratio": 0.4, "margin": 0.8 - 0.1, "max_score": 0.3
    }  # fmt: skip


@pytest.mark.parametrize(
    "guard", [{"max_positive_ratio": 95}, {"margin": float("nan")}, {"max_score": float("inf")}, {"near_duplicates": 7}]
)
def test_guards_that_guard_nothing(guard):
    with pytest.raises(ArgumentError):
        Guards(**guard)
