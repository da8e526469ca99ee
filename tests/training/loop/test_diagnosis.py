"""Collapse is found whatever dropout does, and never where a network tells passages apart."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bgekit.training.batches.collator import Collator, PairCollator, StepDataset
from bgekit.training.batches.sampler import PlanOptions, Sampling
from bgekit.training.loop.diagnosis import CollapseWatch, Diagnosis, scores_of_all, scores_of_groups

from ..conftest import row

ARGS = SimpleNamespace(device=torch.device("cpu"))


class Head(nn.Module):
    """Scores, or vectors, that differ by `spread`; with dropout that hides it."""

    def __init__(self, spread: float, level: float = 0.0, width: int | None = None) -> None:
        super().__init__()
        self.spread, self.level, self.width = spread, level, width
        self.dropout = nn.Dropout(0.5)

    def forward(self, packed):
        firsts = torch.tensor([float(ids.sum()) for ids in packed.input_ids.split(packed.lengths)])
        values = self.dropout(self.level + self.spread * firsts.sin())
        if self.width is None:
            return values
        return nn.functional.normalize(torch.stack([torch.ones_like(values), values], 1), dim=1)


@pytest.fixture
def watch(write, load, tokenizer):
    """A watch over a reranker, or an embedder: `watch(head)`."""

    def watch(head, rows=None):
        made = (PairCollator if head.width is None else Collator)(tokenizer)
        data = load(write("a.jsonl", rows or [row(i) for i in range(9)]))
        steps = StepDataset(data, PlanOptions(4), Sampling(4), made)
        pairs = lambda batch: scores_of_groups(head(batch.passages), batch)  # noqa: E731
        vectors = lambda batch: scores_of_all(head(batch.queries), head(batch.passages), batch)  # noqa: E731
        diagnosis = Diagnosis(1.0, normalized=head.width is not None)
        return CollapseWatch(diagnosis, head, steps, pairs if head.width is None else vectors), diagnosis

    return watch


def run(watch, head, spreads) -> None:
    """A log every ten steps; the spread of the scores at each."""
    watch.on_train_begin(ARGS, SimpleNamespace(is_world_process_zero=True, global_step=0), None)
    for number, spread in enumerate(spreads, start=1):
        head.spread = spread
        watch.on_log(ARGS, SimpleNamespace(is_world_process_zero=True, global_step=10 * number), None)
    watch.on_train_end(ARGS, SimpleNamespace(is_world_process_zero=True, global_step=10 * len(spreads)), None)


@pytest.mark.parametrize("width", [None, 2])
@pytest.mark.parametrize(
    ("level", "first", "spreads", "found"),
    [
        (0.0, 0.02, [0.02, 0.019, 0.021], False),  # A new head in its first steps.
        (0.0, 0.02, [0.02, 1e-6, 1e-6, 0.02], True),  # Twice in a row.
        (0.0, 0.02, [1e-6, 0.02, 1e-6, 0.02], False),
        (0.0, 0.02, [0.02, 1e-7], True),  # What is left in the end.
        (5.0, 0.02, [0.0], True),
        (0.0, 0.0, [0.0, 0.0], True),  # A head that has been constant from the start.
        (0.0, 0.0, [0.0, 0.03, 0.05], False),
    ],
)
def test_collapse_is_told_from_a_new_head(watch, width, level, first, spreads, found):
    head = Head(first, level, width).train()
    looking, diagnosis = watch(head)
    run(looking, head, spreads)
    assert ("collapse" in diagnosis.findings) == found
    assert head.training


def test_passages_that_are_equal_are_no_collapse(watch):
    head = Head(0.02)
    looking, diagnosis = watch(head, [row(i, pos=["the same"], neg=["The  same"]) for i in range(4)])
    run(looking, head, [0.02])
    assert not diagnosis.findings
