"""The unified loss of BGE-M3 (arXiv:2402.03216, section 3.3), with the memory of a block of pairs.

Dense, lexical and multi-vector scores are trained one by one and together. With s_h the score of a query and a
passage by the head h, and s = sum over h of a_h s_h that of all together:

    L  = (sum over h of w_h CE(s_h) + w CE(s)) / (number of heads + 1)
    L' = sum over h of w_h KL(softmax(s), softmax(s_h)) / number of heads        (self-distillation; s is the teacher)

and the loss is L, or (L + L') / 2 with self-distillation. All softmaxes are over the candidates of the row, all scores
divided by the temperature. One head alone has CE(s_h).
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import torch
from torch import Tensor

from ...errors import ArgumentError
from ...models.head_files import OUTPUTS, Output
from ...networks.heads import TokenWeights, distinct_weights, lexical_scores
from ...networks.maxima import Rectangles, mean_of_maxima
from ...networks.packing import Packed
from ...networks.unified import TokenOutputs
from .contrastive import STATISTICS, Compared, Contrastive, contrastive_metrics, ragged_blockwise
from .distributed import LossValue, Pool, full_precision, of_global_batch
from .listwise import TextBatch

#: Weights of the losses of dense, lexical and multi-vector scores and of all together, as FlagEmbedding's code has
#: them; those of the paper are all 1.
LOSS_WEIGHTS: Final = (1.0, 0.1, 1.0, 1.0)
#: Weights of dense, lexical and multi-vector scores in the sum of all; those of the paper are all 1.
SCORE_WEIGHTS: Final = (1.0, 0.3, 1.0)
#: Products of vectors of tokens held at once: 64 MiB in float32, and three times that while a block is differentiated.
_ENTRIES: Final = 1 << 24


@dataclass(frozen=True, eq=False)
class Unified:
    """Cross entropy of the positive by each head's scores and by all together, and self-distillation.

    Candidates, known positives and a teacher's scores are those of `contrastive`, for all scores alike; which negatives
    score like positives is told by the scores of all heads together.

    Attributes:
        contrastive: What rows are compared with; its loss is that of each score. One way only.
        special: [s] int64 ids of the tokens without a lexical weight.
        heads: Which of `OUTPUTS` there are.
        loss_weights: Of dense, lexical and multi-vector scores, and of all together.
        score_weights: Of the three in the sum of all.
        entries: Products of vectors of tokens held at once.

    Example:
        >>> import torch
        >>> from bgekit.training.losses import Contrastive, Unified
        >>> Unified(Contrastive(temperature=0.02), special=torch.tensor([0, 1, 2, 3])).heads
        ('dense', 'sparse', 'multi-vector')
    """

    contrastive: Contrastive
    special: Tensor
    heads: tuple[Output, ...] = OUTPUTS
    loss_weights: Sequence[float] = LOSS_WEIGHTS
    score_weights: Sequence[float] = SCORE_WEIGHTS
    entries: int = _ENTRIES

    def __post_init__(self) -> None:
        if self.contrastive.both_ways:
            raise ArgumentError("passages look for their queries (both_ways) by dense vectors alone")
        if not self.heads or not set(self.heads) <= set(OUTPUTS):
            raise ArgumentError(f"heads are some of {', '.join(OUTPUTS)}, not {', '.join(self.heads) or 'none'}")
        for name, weights, count in (("loss", self.loss_weights, 4), ("score", self.score_weights, 3)):
            if len(weights) != count or min(weights) < 0:
                raise ArgumentError(f"there are {count} {name} weights of at least 0, not {list(weights)}")
        if not sum(self.score_weight.values()):
            raise ArgumentError(f"the score weights of the heads {', '.join(self.heads)} are all 0")

    @cached_property
    def loss_weight(self) -> Mapping[Output, float]:
        """The weight of each head's loss; that of a head alone is 1."""
        if len(self.heads) == 1:
            return {self.heads[0]: 1.0}
        return {head: weight for head, weight in zip(OUTPUTS, self.loss_weights, strict=False) if head in self.heads}

    @cached_property
    def score_weight(self) -> Mapping[Output, float]:
        """The weight of each head's score in the sum of all."""
        return {head: weight for head, weight in zip(OUTPUTS, self.score_weights, strict=True) if head in self.heads}

    def __call__(
        self, queries: TokenOutputs, passages: TokenOutputs, batch: TextBatch, *, distil: bool = False
    ) -> LossValue:
        """The loss of what the network gives of the texts of this process.

        Args:
            queries: Of n queries.
            passages: Of m passages.
            batch: What is known of the rows.
            distil: Whether each head also learns from all together.
        """
        with full_precision(*queries.there, *passages.there) as tensors:
            queries, passages = queries.of(tensors[: len(queries.there)]), passages.of(tensors[len(queries.there) :])
            compared = self.contrastive.compared(batch)
            asking, own = (
                _Side.of(queries, batch.queries, self.special),
                _Side.of(passages, batch.passages, self.special),
            )
            answers = own.everywhere(compared.pool)
            block = _Block(self, compared, asking, answers, distil)
            total, sums = ragged_blockwise(
                asking.tensors, answers.tensors, block, asking.parts(answers, self.entries),
                statistics=STATISTICS + 2 * len(self.heads),
            )  # fmt: skip
            texts = sums.new_tensor([asking.empty + own.empty, len(asking) + len(own)])
            return of_global_batch(total, batch.size, torch.cat([sums, texts]), self._metrics)

    def scores(self, queries: TokenOutputs, passages: TokenOutputs, batch: TextBatch) -> dict[Output, Tensor]:
        """[n, m] scores of all queries and passages of this process, by head."""
        asking = _Side.of(queries, batch.queries, self.special)
        counts = (len(batch.queries.lengths), len(batch.passages.lengths))
        own = Pool(counts, batch.passage_keys.device, across=False)
        return _scores(asking, _Side.of(passages, batch.passages, self.special).everywhere(own), self.heads)

    def _metrics(self, sums: Tensor, size: int) -> dict[str, Tensor]:
        metrics = contrastive_metrics(sums[:STATISTICS], size)
        rows = sums[1].clamp(min=1)  # Those that have negatives.
        for place, head in enumerate(self.heads):
            loss, hits = sums[STATISTICS + 2 * place : STATISTICS + 2 * place + 2]
            metrics |= {f"{head} loss": loss / max(size, 1), f"{head} accuracy": hits / rows}
        if "sparse" in self.heads:
            metrics["empty"] = sums[-2] / sums[-1].clamp(min=1)
        return metrics


@dataclass(frozen=True, eq=False)
class _Side:
    """What scores read of some texts; None for a head that there is not.

    Attributes:
        counts: Vectors of each text.
        dense: [n, d].
        terms: Lexical weights.
        vectors: [N, c], those of tokens end to end, without each text's first.
        places: Where texts are among the vectors that maxima are taken of; for passages only.
    """

    counts: tuple[int, ...]
    dense: Tensor | None = None
    terms: TokenWeights | None = None
    vectors: Tensor | None = None
    places: Rectangles | None = None

    @classmethod
    def of(cls, outputs: TokenOutputs, texts: Packed, special: Tensor) -> _Side:
        """What a network gave of some texts."""
        weights = outputs.weights
        return cls(
            tuple(length - 1 for length in texts.lengths),
            outputs.dense,
            None if weights is None else distinct_weights(weights, texts, special.to(weights.device)),
            outputs.vectors,
        )

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def empty(self) -> int:
        """Texts without any lexical weight."""
        return 0 if self.terms is None else int((self.terms.counts == 0).sum())

    @property
    def tensors(self) -> list[Tensor]:
        """What is differentiated."""
        found = (self.dense, None if self.terms is None else self.terms.weights, self.vectors)
        return [each for each in found if each is not None]

    def everywhere(self, pool: Pool) -> _Side:
        """The passages of all processes of a pool, with their vectors in rectangles."""
        device = self.tensors[0].device
        counts = tuple(pool.rows(torch.tensor(self.counts, dtype=torch.long, device=device), 1).tolist())
        entries = 0 if self.terms is None else len(self.terms.tokens)
        within = Pool((entries, sum(self.counts)), device, across=len(pool.counts) > 1)
        terms, vectors, places = self.terms, self.vectors, None
        if terms is not None:
            terms = TokenWeights(
                within.rows(terms.tokens, 0), within.rows(terms.weights, 0), pool.rows(terms.counts, 1)
            )  # fmt: skip
        if vectors is not None:
            places = Rectangles.of(counts, device)
            vectors = within.rows(vectors, 1)[places.index]
        return _Side(counts, None if self.dense is None else pool.rows(self.dense, 1), terms, vectors, places)

    def parts(self, passages: _Side, entries: int) -> list[tuple[slice, tuple[slice, ...]]]:
        """Slices of these texts whose scores with passages fit into memory, each with those of `tensors`."""
        words = [0] * len(self) if self.terms is None else self.terms.counts.tolist()
        vectors = [0] * len(self) if self.vectors is None else list(self.counts)
        places = 0 if passages.vectors is None else len(passages.vectors)
        bounds, held = [0], 0
        for text in range(len(self)):
            more = len(passages) * (1 + words[text]) + places * vectors[text]
            if held and held + more > entries:
                bounds, held = [*bounds, text], 0
            held += more
        first_word, first_vector = ([0, *itertools.accumulate(each)] for each in (words, vectors))
        found = []
        for start, stop in itertools.pairwise([*bounds, len(self)]):
            slices = (
                (self.dense, slice(start, stop)),
                (self.terms, slice(first_word[start], first_word[stop])),
                (self.vectors, slice(first_vector[start], first_vector[stop])),
            )
            found.append((slice(start, stop), tuple(cut for each, cut in slices if each is not None)))
        return found if len(self) else []

    def cut(self, rows: slice, tensors: Sequence[Tensor]) -> _Side:
        """Some of the texts, with other tensors in the place of those that are differentiated."""
        given, terms = iter(tensors), self.terms
        dense = None if self.dense is None else next(given)
        if terms is not None:
            first = int(terms.counts[: rows.start].sum())
            weights = next(given)
            terms = TokenWeights(terms.tokens[first : first + len(weights)], weights, terms.counts[rows])
        vectors = None if self.vectors is None else next(given)
        return _Side(self.counts[rows], dense, terms, vectors, self.places)


@dataclass(frozen=True, eq=False)
class _Block:
    """Loss and statistics of some rows, see `RaggedBlock`."""

    loss: Unified
    compared: Compared
    queries: _Side
    passages: _Side
    distil: bool

    def __call__(self, some: Sequence[Tensor], every: Sequence[Tensor], rows: slice) -> tuple[Tensor, Tensor]:
        """See `RaggedBlock`."""
        loss, compared = self.loss, self.compared
        queries, passages = self.queries.cut(rows, some), self.passages.cut(slice(0, len(self.passages)), every)
        tables = {
            head: compared.candidates(scores, rows) for head, scores in _scores(queries, passages, loss.heads).items()
        }
        weights = loss.score_weight
        together = _sum(weights[head] * tables[head] for head in tables)
        mean = together / sum(weights.values())
        outside = compared.outside(mean, rows)
        each = {head: self._surprise(table, outside, rows) for head, table in tables.items()}
        terms = [loss.loss_weight[head] * value for head, value in each.items()]
        if len(tables) > 1:
            terms.append(loss.loss_weights[3] * self._surprise(together, outside, rows))
        total = _sum(terms) / len(terms)
        if self.distil and len(tables) > 1:
            counted = compared.counted(outside, rows)
            teacher = self._logits(together.detach(), counted).softmax(1)
            learnt = _sum(
                loss.loss_weight[head] * self._divergence(teacher, table, counted) for head, table in tables.items()
            )
            total = (total + learnt / len(tables)) / 2
        hits = [compared.statistics(table, outside, rows)[2] for table in tables.values()]
        seen = [number for value, hit in zip(each.values(), hits, strict=True) for number in (value.detach(), hit)]
        return total, torch.cat([compared.statistics(mean, outside, rows), torch.stack(seen)])

    def _surprise(self, table: Tensor, outside: Tensor, rows: slice) -> Tensor:
        """Sum over rows of the contrastive loss, a teacher's part included."""
        contrastive, compared = self.loss.contrastive, self.compared
        total = compared.surprise(table, outside, rows)
        if contrastive.distillation == "kl_div":
            own = compared.own(table, rows) / contrastive.temperature
            taught = compared.groups.divergence(own, compared.batch.teacher, rows).sum()
            total = total + contrastive.distillation_weight * taught
        return total

    def _logits(self, table: Tensor, counted: Tensor) -> Tensor:
        return (table / self.loss.contrastive.temperature).masked_fill(~counted, -torch.inf)

    def _divergence(self, teacher: Tensor, table: Tensor, counted: Tensor) -> Tensor:
        """Sum over rows of the cross entropy of scores with the teacher's softmax."""
        return -(teacher * self._logits(table, counted).log_softmax(1).masked_fill(~counted, 0.0)).sum()


def _scores(queries: _Side, passages: _Side, heads: Sequence[Output]) -> dict[Output, Tensor]:
    """[n, m] scores by head; those of the passages are laid out in rectangles."""
    found: dict[Output, Tensor] = {}
    for head in heads:
        if head == "dense" and queries.dense is not None and passages.dense is not None:
            found[head] = queries.dense @ passages.dense.T
        elif head == "sparse" and queries.terms is not None and passages.terms is not None:
            found[head] = lexical_scores(queries.terms, passages.terms)
        elif queries.vectors is not None and passages.vectors is not None and passages.places is not None:
            counts = torch.tensor(queries.counts, dtype=torch.long, device=queries.vectors.device)
            found[head] = mean_of_maxima(queries.vectors, counts, passages.vectors, passages.places)
        else:
            raise ArgumentError(f"the network gives nothing for the head {head}")
    return found


def _sum(values: Iterable[Tensor]) -> Tensor:
    return functools.reduce(operator.add, values)
