"""Within a group, what is known to be a positive is no negative."""

from __future__ import annotations

import pytest
import torch

from bgekit.data.training_rows import Row
from bgekit.training.batches.collator import PairCollator
from bgekit.training.batches.sampler import Example
from bgekit.training.losses.listwise import GroupLoss, Groups


@pytest.fixture
def batch(tokenizer):
    """Two rows: the second passages of both are positives, one by another case; so is a copy of the drawn positive."""
    first = Row("the cat", ("the bird", "the tree"), index=0)
    second = Row("the dog", ("the river",), index=1)
    examples = [
        Example(first, 1, ("the tree", "The  Bird", "the river", "the tree")),
        Example(second, 0, ("the river", "the tree")),
    ]
    return PairCollator(tokenizer)(examples, size=2)


def test_places_of_known_positives(batch):
    groups = Groups(batch.groups, torch.device("cpu"))
    assert groups.known_positives(batch).tolist() == [[False, True, False, True], [False] * 4]


def test_they_are_not_pushed_away(batch):
    scores = torch.zeros(6, requires_grad=True)
    value = GroupLoss()(scores, batch)
    value.loss.backward()
    assert value.loss.item() == pytest.approx(torch.tensor(2.0).log().item())
    assert scores.grad.tolist() == pytest.approx([-0.25, 0.0, 0.25, 0.0, -0.25, 0.25])
    assert float(value.metrics["accuracy"]) == 0


def test_queries_are_no_texts_of_their_own(batch):
    assert batch.queries.input_ids.numel() == 0
    assert batch.tokens == batch.passages.input_ids.numel() > 0
