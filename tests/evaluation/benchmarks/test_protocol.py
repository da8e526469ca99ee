"""Protocols of named tasks."""

from __future__ import annotations

import pytest

from bgekit.evaluation.benchmarks.definitions import protocol_of


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("AmazonCounterfactualClassification", {"samples_per_label": 32}),
        ("EmotionClassification", {"samples_per_label": 16}),
        ("YelpReviewFullClassification.v2", {"samples_per_label": 128}),
        ("IFlyTek", {"samples_per_label": 32, "experiments": 5}),
        ("waimai", {"samples_per_label": 32}),
        ("TNews.V2", {"samples_per_label": 32}),
        ("Banking77Classification", {}),
        ("ArguAna", {"skip_identical_ids": True}),
        ("T2Retrieval", {"skip_identical_ids": True}),
        ("fiqa", {"skip_identical_ids": True}),
        ("amazon_counterfactual", {"samples_per_label": 32}),
        ("SciFact", {}),
        ("of my own", {}),
    ],
)
def test_protocol(name, expected):
    assert protocol_of(name) == expected


def test_the_answer_is_the_callers_own():
    protocol_of("ArguAna").clear()
    assert protocol_of("ArguAna")
