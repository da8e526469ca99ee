"""What goes wrong in contrastive training, recognised from the run's own numbers and named with its remedy."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .collate import Limit

logger = logging.getLogger(__name__)

#: Logged steps that are looked at together.
WINDOW: Final = 5
#: Share of texts that may be cut before it is said.
TRUNCATED: Final = 0.1
#: Share of rows whose hard negative may beat the positive at the start.
SUSPECT: Final = 0.3


@dataclass
class Diagnosis:
    """Watches a run; each finding is logged once.

    Attributes:
        temperature: Similarities are divided by it.
        normalized: Whether vectors have length 1, so that similarities lie in [-1, 1].
        findings: What was found, by a short name.
    """

    temperature: float
    normalized: bool = True
    findings: dict[str, str] = field(default_factory=dict)
    _recent: list[dict[str, float]] = field(default_factory=list)

    def before(
        self, candidates: int, truncated: Mapping[Limit, float], trained: str | None, declared: str | None,
        idle: Mapping[str, int],
    ) -> list[str]:  # fmt: skip
        """What can be seen before the first step.

        Args:
            candidates: Passages that each query chooses from.
            truncated: Share of texts that each limit cuts.
            trained: The query instruction of this run.
            declared: The one that the model's card had.
            idle: Rows without any negative, by dataset.

        Returns:
            The new findings.
        """
        found = dict(self._of_temperature(candidates))
        for limit, share in truncated.items():
            if share > TRUNCATED:
                found[f"truncated {limit.plural}"] = (
                    f"{share:.0%} of the {limit.plural} are longer than {limit.tokens} tokens and lose their end: "
                    f"{limit.remedy}"
                )
        if some := [f"{count:,} rows of {name}" for name, count in idle.items() if count]:
            found["no negatives"] = (
                f"{', '.join(some)} have no negatives, and passages of other rows are none: nothing is learnt from "
                "them. Mine some (bge mine), or leave them out"
            )
        if trained is not None and declared is not None and trained != declared:
            found["instruction"] = (
                f"the model was made for the query instruction {declared!r}, and is trained with {trained!r}. The "
                "saved model will use the new one; what was encoded with the old one does not fit it"
            )
        return self._report(found)

    def after(self, logs: Mapping[str, Any]) -> list[str]:
        """What the numbers of a logged step show, together with those before.

        Args:
            logs: `loss`, `positive`, `negative` (mean similarities), `accuracy`, `suspect` (share of rows with an own
                negative above the positive), `candidates`, `grad_norm`, as far as they are there.

        Returns:
            The new findings.
        """
        numbers = {key: float(value) for key, value in logs.items() if isinstance(value, int | float)}
        if "loss" not in numbers:
            return []
        found = {}
        if not math.isfinite(numbers["loss"]) or not math.isfinite(numbers.get("grad_norm", 0.0)):
            found["not finite"] = (
                "the loss or its gradient is not finite: lower --learning_rate, or train with --bf16 instead of --fp16"
            )
        if not self._recent and numbers.get("suspect", 0.0) > SUSPECT:
            found["false negatives"] = (
                f"for {numbers['suspect']:.0%} of the rows a negative of their own lies nearer to the query than the "
                "positive: many of them are probably relevant. Mine again with a margin (bge mine --margin), or mask "
                "them (--false_negative_ratio 0.95)"
            )
        self._recent = [*self._recent, numbers][-WINDOW:]
        if len(self._recent) == WINDOW:
            found |= dict(self._of_window())
        return self._report(found)

    def _of_temperature(self, candidates: int) -> Iterator[tuple[str, str]]:
        if not self.normalized or candidates < 2:
            return
        # With similarities in [-1, 1] no model gets below this loss.
        least = math.log1p((candidates - 1) * math.exp(-2 / self.temperature))
        if least > 0.1 * math.log(candidates):
            yield (
                "temperature high",
                (
                    f"at --temperature {self.temperature} the loss cannot fall below {least:.2f} with {candidates} "
                    f"passages to choose from (ln {candidates} is {math.log(candidates):.2f}), whatever the model "
                    "learns: take 0.01 to 0.05"
                ),
            )
        if self.temperature < 0.005:
            yield (
                "temperature low",
                (
                    f"at --temperature {self.temperature} a difference of 0.01 in similarity counts "
                    f"{math.exp(0.01 / self.temperature):,.0f}-fold: few pairs get all the gradient, and training "
                    "jumps: take 0.01 to 0.05"
                ),
            )

    def _of_window(self) -> Iterator[tuple[str, str]]:
        """Collapse: every passage is as near as any other, and the loss is that of guessing."""
        gaps = [row["positive"] - row["negative"] for row in self._recent if {"positive", "negative"} <= row.keys()]
        guesses = [math.log(max(row.get("candidates", 0.0), 2.0)) for row in self._recent]
        alike = len(gaps) == WINDOW and max(map(abs, gaps)) < 0.01 * (1 if self.normalized else self.temperature)
        guessing = all(
            abs(row["loss"] - guess) < 0.05 * guess for row, guess in zip(self._recent, guesses, strict=True)
        )
        if alike and guessing:
            yield (
                "collapse",
                (
                    f"the model gives every passage the same similarity, and its loss of "
                    f"{self._recent[-1]['loss']:.2f} is that of guessing: it has collapsed. Start again with a lower "
                    "--learning_rate and some --warmup_ratio; check that positives and negatives are not the same texts"
                ),
            )

    def _report(self, found: Mapping[str, str]) -> list[str]:
        new = {name: sentence for name, sentence in found.items() if name not in self.findings}
        self.findings |= new
        for sentence in new.values():
            logger.warning("%s", sentence)
        return list(new.values())
