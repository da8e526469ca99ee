"""Diagnosis of training: what goes wrong, by the run's own numbers, with a remedy for each."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from ..batches.collator import Batch, Limit, StepDataset
from ..losses.listwise import Groups

logger = logging.getLogger(__name__)
#: Share of texts that may be cut before it is said.
TRUNCATED: Final = 0.1
#: Share of rows whose hard negative may beat the positive at the start.
SUSPECT: Final = 0.3
#: Share of texts without any lexical weight from which on the head is told to be dying: of random ReLUs hardly any text
#: of some words has none.
EMPTY: Final = 0.2
#: Rows of the probe for collapse, passages of each, and steps between two looks at it: it costs about 1 % of a run.
PROBE_ROWS: Final = 4
PROBE_GROUP: Final = 4
PROBE_STEPS: Final = 10
#: A spread of scores is lost when it is at most this share of the first one; or 40 times that, if scores (by the
#: temperature) so near each other give the loss of guessing; or when it is nothing but the rounding of the scores.
#: A new head spreads scores by 0.01 to 0.04; of a collapsed network 1e-6 is left, and up to 1e-3 of one that is tiny.
SPREAD_LOST: Final = 0.005
GUESSING: Final = 2e-3
ROUNDING: Final = 4e-6


@dataclass
class Findings:
    """Findings of a run that is watched; each is logged once.

    Attributes:
        findings: Sentences by short names.
    """

    findings: dict[str, str] = field(default_factory=dict, kw_only=True)

    def after(self, logs: Mapping[str, Any]) -> list[str]:
        """Look at the numbers of a logged step; returns the new findings. Here nothing is looked for."""
        return []

    def report(self, found: Mapping[str, str]) -> list[str]:
        """Log findings by their names unless they have been made before; returns those that are new."""
        new = {name: sentence for name, sentence in found.items() if name not in self.findings}
        self.findings |= new
        for sentence in new.values():
            logger.warning("%s", sentence)
        return list(new.values())


@dataclass
class Diagnosis(Findings):
    """Findings of contrastive training and of rerankers.

    Attributes:
        temperature: Similarities are divided by it.
        normalized: Whether vectors have length 1, so that similarities lie in [-1, 1].
    """

    temperature: float
    normalized: bool = True
    _begun: bool = field(default=False, init=False)

    def before(
        self, candidates: int, truncated: Mapping[Limit, float], trained: str | None, declared: str | None,
        idle: Mapping[str, int],
    ) -> list[str]:  # fmt: skip
        """Look at what can be seen before the first step.

        Args:
            candidates: Passages that each query chooses from.
            truncated: Share of texts that each limit cuts.
            trained: The query instruction of this run.
            declared: The one that the model's card had.
            idle: Rows without any negative, by dataset.

        Returns:
            The new findings.
        """
        found = self._of_temperature(candidates)
        for limit, share in truncated.items():
            if share > TRUNCATED:
                found[f"truncated {limit.plural}"] = (
                    f"{share:.0%} of the {limit.plural} are longer than {limit.tokens} tokens and lose their end: "
                    f"{limit.remedy}"
                )
        if some := [f"{count:,} rows of {name}" for name, count in idle.items() if count]:
            found["no negatives"] = (
                f"{', '.join(some)} have no negatives, and passages of other rows do not count as negatives: "
                "nothing is learnt from these rows. Mine negatives (bge mine), or leave the rows out"
            )
        if trained is not None and declared is not None and trained != declared:
            found["instruction"] = (
                f"the model was made for the query instruction {declared!r}, and is trained with {trained!r}. The "
                "saved model will use the new one; what was encoded with the old one does not fit it"
            )
        return self.report(found)

    def after(self, logs: Mapping[str, Any]) -> list[str]:
        """Look at the numbers of a logged step.

        Args:
            logs: `loss`, `suspect` (share of rows with an own negative above the positive), `idle` (share of rows
                without any negative), `empty` (share of texts without a lexical weight), `grad_norm`, as far as they
                are there.

        Returns:
            The new findings.
        """
        numbers = {key: float(value) for key, value in logs.items() if isinstance(value, int | float)}
        if "loss" not in numbers:
            return []
        found = {}
        if not math.isfinite(numbers["loss"]) or not math.isfinite(numbers.get("grad_norm", 0.0)):
            found["not finite"] = (
                "the loss or its gradient is not finite: lower --learning-rate, or train with --bf16 instead of --fp16"
            )
        if not self._begun and numbers.get("suspect", 0.0) > SUSPECT:
            found["false negatives"] = (
                f"for {numbers['suspect']:.0%} of the rows a negative of their own lies nearer to the query than the "
                "positive: many of them are probably relevant. Mine again with a margin (bge mine --margin), or mask "
                "them (--false-negative-ratio 0.95)"
            )
        self._begun = True
        if idle := numbers.get("idle", 0.0):
            found["no negatives"] = (
                f"{max(idle, 0.001):.1%} of the rows just trained on have no negative left, because all passages that "
                "they are compared with are known positives of their query, or there are none: nothing is learnt from "
                "these rows. Mine negatives (bge mine), put rows with one query together, or leave the rows out"
            )
        if (empty := numbers.get("empty", 0.0)) > EMPTY:
            # A weight of 0 lets no gradient through: such a text stays as it is.
            found["dead lexical weights"] = (
                f"{empty:.0%} of the texts just trained on have no lexical weight left: all of them are 0, and there "
                "the head learns nothing more. Start again with a lower --learning-rate, or with steps for the heads "
                "alone (--heads-warmup-steps) before the encoder moves"
            )
        return self.report(found)

    def _of_temperature(self, candidates: int) -> dict[str, str]:
        found: dict[str, str] = {}
        if not self.normalized or candidates < 2:
            return found
        # With similarities in [-1, 1] no model gets below this loss.
        least = math.log1p((candidates - 1) * math.exp(-2 / self.temperature))
        if least > 0.1 * math.log(candidates):
            found["temperature high"] = (
                f"at --temperature {self.temperature} the loss cannot fall below {least:.2f} with {candidates} "
                f"passages to choose from (ln {candidates} is {math.log(candidates):.2f}), whatever the model "
                "learns: take 0.01 to 0.05"
            )
        if self.temperature < 0.005:
            found["temperature low"] = (
                f"at --temperature {self.temperature} a difference of 0.01 in similarity counts "
                f"{math.exp(0.01 / self.temperature):,.0f}-fold: few pairs get all the gradient, and training "
                "jumps: take 0.01 to 0.05"
            )
        return found


class CollapseWatch(TrainerCallback):
    """A look from time to time whether the network still gives passages of some fixed rows different scores.

    It looks without dropout, whose noise would hide that all passages have one score, and through what the network
    itself gives, which a loss of guessing does not tell from a head that is new. It takes two looks in a row to find a
    collapse, or the one at the end of the training.
    """

    def __init__(
        self, diagnosis: Diagnosis, network: nn.Module, steps: StepDataset, table: Callable[[Batch], Tensor]
    ) -> None:
        """Choose the rows.

        Args:
            diagnosis: Gets what is found.
            network: What is trained.
            steps: The data.
            table: Scores [n, g] of each query of a batch for some passages, NaN where there is none.
        """
        self._diagnosis, self._network, self._table = diagnosis, network, table
        self._batch = probe(steps)
        self._first: float | None = None
        self._next, self._suspected = 0, False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Remember the scores before the first step."""
        if state.is_world_process_zero:
            self._first = self._look(args.device)[0]
            self._next = state.global_step + PROBE_STEPS

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look, unless it was looked at just before."""
        if state.is_world_process_zero and state.global_step >= self._next:
            self._next = state.global_step + PROBE_STEPS
            suspected, self._suspected = self._suspected, self._collapsed(args.device)
            if suspected and self._suspected:
                self._tell()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look at what training ends with."""
        if state.is_world_process_zero and self._collapsed(args.device):
            self._tell()

    def _collapsed(self, device: torch.device) -> bool:
        spread, level = self._look(device)
        if spread is None or not math.isfinite(spread):  # What is not a number is another finding.
            return False
        first = self._first or 0.0
        guessing = min(40 * SPREAD_LOST * first, GUESSING * self._diagnosis.temperature)
        return spread <= max(SPREAD_LOST * first, guessing, ROUNDING * max(level, 1.0))

    def _look(self, device: torch.device) -> tuple[float | None, float]:
        """The spread of the scores of a query, as a mean over queries (None where nothing is compared); their size."""
        training = self._network.training
        self._network.eval()
        try:
            with torch.no_grad():
                table = self._table(self._batch.to(device)).double().cpu()
        finally:
            self._network.train(training)
        table = table[(~table.isnan()).sum(1) > 1]
        if not len(table):
            return None, 0.0
        spread = (table - table.nanmean(1, keepdim=True)).square().nanmean(1).sqrt().mean()
        return float(spread), float(table.abs().nanmean())

    def _tell(self) -> None:
        self._diagnosis.report({
            "collapse": "the model gives all passages the same score: it has collapsed. Start again with a lower "
            "--learning-rate and some --warmup-ratio; check that positives and negatives are not the same texts"
        })  # fmt: skip


def probe(steps: StepDataset) -> Batch:
    """A small batch of rows from all over the data, the same in each run on it."""
    every = np.concatenate([data.rows for data in steps.data.datasets])
    kinds = {bool(data.scored) for data in steps.data.datasets}
    chosen = every[np.linspace(0, len(every) - 1, min(PROBE_ROWS, len(every))).astype(int)]
    sampling = replace(steps.sampling, group_size=min(steps.sampling.group_size, PROBE_GROUP), teacher=False)
    examples = [sampling.draw(steps.data[int(row)], 0) for row in chosen]
    if len(kinds) > 1:  # A batch has scores for all of its rows, or for none.
        examples = [replace(each, row=replace(each.row, score=None)) for each in examples]
    return steps.collator(examples, size=len(examples))


def scores_of_groups(scores: Tensor, batch: Batch) -> Tensor:
    """[m] -> [n, g]: the scores of each row's own passages, NaN where there is none or it is a copy."""
    groups = Groups(batch.groups, scores.device)
    return groups.table(scores, torch.nan).masked_fill(_copies(batch)[groups.index], torch.nan)


def scores_of_all(queries: Tensor, passages: Tensor, batch: Batch) -> Tensor:
    """[n, m]: the similarities of all queries and passages, NaN for copies of passages."""
    return without_copies(queries.float() @ passages.float().T, batch)


def without_copies(scores: Tensor, batch: Batch) -> Tensor:
    """[n, m] scores of all queries and passages, NaN for copies of passages."""
    return scores.masked_fill(_copies(batch), torch.nan)


def _copies(batch: Batch) -> Tensor:
    """[m] bool: passages (or pairs) with the token ids of an earlier one, which no model can tell from it."""
    parts = [tuple(ids.tolist()) for ids in batch.passages.input_ids.split(batch.passages.lengths)]
    seen: set[tuple[int, ...]] = set()
    found = [ids in seen or bool(seen.add(ids)) for ids in parts]  # type: ignore[func-returns-value]
    return torch.tensor(found, device=batch.passages.input_ids.device)
