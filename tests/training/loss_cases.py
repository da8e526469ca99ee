"""Random batches, a tiny network and one instance of every loss, for the tests of losses on one and many processes.

`main` is one process of several.
"""

from __future__ import annotations

import functools
import itertools
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bgekit.networks.heads import TokenHeads
from bgekit.networks.packing import Packed
from bgekit.networks.unified import TokenOutputs
from bgekit.training.loop.gradient_cache import cached_backward, plain_backward
from bgekit.training.losses.contrastive import Contrastive, FalseNegatives
from bgekit.training.losses.distributed import LossValue
from bgekit.training.losses.listwise import GroupLoss
from bgekit.training.losses.matryoshka import Matryoshka
from bgekit.training.losses.sts import CoSent, ScoredMse
from bgekit.training.losses.unified import Unified

VOCABULARY, WIDTH, ROWS = 40, 12, 13


@dataclass
class Rows:
    """A batch, or the rows of one process of it."""

    queries: Packed
    passages: Packed
    groups: tuple[int, ...]
    query_keys: Tensor
    passage_keys: Tensor
    positive_keys: list[Tensor]
    teacher: Tensor | None
    in_batch: bool
    size: int
    scores: Tensor | None

    def part(self, start: int, stop: int) -> Rows:
        """Rows start..stop, as the process that has them sees them."""
        first = [0, *itertools.accumulate(self.groups)]
        low, high = first[start], first[stop]
        return Rows(
            self.queries.take(range(start, stop)), self.passages.take(range(low, high)), self.groups[start:stop],
            self.query_keys[start:stop], self.passage_keys[low:high], self.positive_keys[start:stop],
            None if self.teacher is None else self.teacher[low:high], self.in_batch, self.size,
            None if self.scores is None else self.scores[start:stop],
        )  # fmt: skip


def key(text: list[int]) -> int:
    return hash(tuple(text))


def make_rows(groups: list[int], seed: int = 0, *, in_batch: bool = True, teacher: bool = True) -> Rows:
    """Random rows among which texts recur: copies of positives, of queries, of negatives."""
    draw = random.Random(seed)

    def text() -> list[int]:
        return [draw.randrange(1, VOCABULARY) for _ in range(draw.randrange(1, 9))]

    queries, passages, known = [], [], []
    for size in groups:
        query = draw.choice(queries) if queries and draw.random() < 0.15 else text()
        group = []
        for _ in range(size):
            roll = draw.random()
            if passages and roll < 0.15:
                group.append(draw.choice(passages))
            elif roll < 0.2:
                group.append(query)
            else:
                group.append(text())
        others = [draw.choice(passages) for _ in range(draw.randrange(0, 3))] if passages else []
        known.append(torch.tensor([key(other) for other in [*others, group[0]]][: draw.randrange(0, 4)]).long())
        queries.append(query)
        passages.extend(group)
    judged = torch.tensor([draw.gauss(0, 2) for _ in passages], dtype=torch.float64)
    if groups:
        judged[draw.randrange(len(passages))] = torch.nan  # the row of this passage has no teacher
    return Rows(
        Packed.of(queries), Packed.of(passages), tuple(groups), torch.tensor([key(q) for q in queries]).long(),
        torch.tensor([key(p) for p in passages]).long(), known, judged if teacher else None, in_batch, len(groups),
        torch.tensor([round(draw.random(), 1) for _ in groups], dtype=torch.float64),
    )  # fmt: skip


class Network(nn.Module):
    """Mean of token vectors, two layers; vectors of length 1, or one score."""

    def __init__(self, out: int = WIDTH, dropout: float = 0.0) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.dropout = nn.Dropout(dropout)
        self.hidden = nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, out)
        self.register_buffer("shift", torch.zeros(1))  # data-parallel wrappers send buffers around

    def forward(self, batch: Packed) -> Tensor:
        tokens = self.dropout(self.tokens(batch.input_ids))
        owner = torch.arange(len(batch.lengths)).repeat_interleave(batch.lengths_tensor)
        mean = tokens.new_zeros(len(batch.lengths), WIDTH).index_add(0, owner, tokens)
        mean = mean / batch.lengths_tensor[:, None]
        vectors = self.out(self.dropout(self.hidden(mean).tanh())) + self.shift
        return vectors[:, 0] if vectors.shape[1] == 1 else nn.functional.normalize(vectors, dim=-1)


class TokenNetwork(Network):
    """Dense vectors as of `Network`; weights and vectors of tokens that know the mean of their text."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__(dropout=dropout)
        self.heads = TokenHeads(WIDTH, sparse=True, multi_vector=WIDTH // 2)

    def forward(self, batch: Packed) -> TokenOutputs:  # type: ignore[override]
        dense = super().forward(batch)
        owner = torch.arange(len(batch.lengths)).repeat_interleave(batch.lengths_tensor)
        tokens = self.tokens(batch.input_ids) + dense[owner]
        weights = self.heads.sparse(tokens).relu()[:, 0]  # type: ignore[misc]
        vectors = self.heads.multi_vector(tokens[batch.positions > 0])  # type: ignore[misc]
        return TokenOutputs(dense, weights, nn.functional.normalize(vectors, dim=-1))


def make_network(kind: str, dtype: torch.dtype = torch.float64, dropout: float = 0.0) -> Network:
    torch.manual_seed(5)
    if kind == "tokens":
        return TokenNetwork(dropout).double().to(dtype)
    return Network(1 if kind == "scores" else WIDTH, dropout).double().to(dtype)


_contrastive = Contrastive(temperature=0.05, entries=100)
_masked = FalseNegatives(margin=-0.01, ratio=1.05, teacher=2.0)
#: Ids of tokens that are no words.
SPECIAL = torch.tensor([0, 1, 2])


def _unified(contrastive: Contrastive, *, distil: bool = False, **options: Any) -> Any:
    return functools.partial(Unified(contrastive, SPECIAL, entries=900, **options), distil=distil)


#: Name -> (what the loss takes, the loss). Blocks of a few rows, so that several are computed.
CASES: dict[str, tuple[str, Any]] = {
    "contrastive": ("vectors", _contrastive),
    "both ways": ("vectors", Contrastive(temperature=0.05, both_ways=True, entries=50)),
    "false negatives": ("vectors", Contrastive(temperature=0.05, false_negatives=_masked, entries=100)),
    "both ways, false negatives": ("vectors", Contrastive(0.05, both_ways=True, false_negatives=_masked, entries=90)),
    "own group": ("vectors", Contrastive(temperature=0.05, in_batch=False, entries=100)),
    "kl_div": ("vectors", Contrastive(temperature=0.05, distillation="kl_div", distillation_weight=0.7, entries=100)),
    "kl_div, own group": ("vectors", Contrastive(temperature=0.05, distillation="kl_div", in_batch=False)),
    "m3_kd_loss": ("vectors", Contrastive(temperature=0.05, distillation="m3_kd_loss", entries=100)),
    "m3_kd_loss, own group": ("vectors", Contrastive(temperature=0.05, distillation="m3_kd_loss", in_batch=False)),
    "m3_kd_loss, false negatives": (
        "vectors",
        Contrastive(temperature=0.05, distillation="m3_kd_loss", false_negatives=_masked, entries=100),
    ),
    "matryoshka": ("vectors", Matryoshka(_contrastive, dims=[12, 6, 3], weights=[1, 2, 0.5])),
    "matryoshka of m3": ("vectors", Matryoshka(Contrastive(0.05, distillation="m3_kd_loss"), dims=[4, 12])),
    "cosent": ("pairs", CoSent()),
    "mse": ("pairs", ScoredMse()),
    "matryoshka of cosent": ("pairs", Matryoshka(CoSent(scale=5.0), dims=[12, 5])),
    "unified": ("tokens", _unified(_contrastive)),
    "unified, self-distilled": ("tokens", _unified(_contrastive, distil=True, score_weights=(1, 1, 1))),
    "unified, own group, a teacher": (
        "tokens",
        _unified(Contrastive(temperature=0.05, distillation="kl_div", in_batch=False), distil=True),
    ),
    "unified, m3_kd_loss, false negatives": (
        "tokens",
        _unified(Contrastive(temperature=0.05, distillation="m3_kd_loss", false_negatives=_masked), distil=True),
    ),
    "group": ("scores", GroupLoss()),
    "group, distilled": ("scores", GroupLoss(temperature=0.5, distillation=0.3, labels=0.2)),
}

#: Rows of each process; 13 in all.
SPLITS: dict[int, list[list[int]]] = {1: [[13]], 2: [[8, 5], [0, 13]], 4: [[4, 3, 3, 3], [6, 0, 7, 0]]}

#: World -> which of its splits, precision and chunk are computed.
RUNS = {
    world: [
        (number, dtype, chunk)
        for dtype, splits in ((torch.float64, range(len(SPLITS[world]))), (torch.float32, range(1)))
        for number in splits
        for chunk in (None, 3)
    ]
    for world in SPLITS
}


def rows_for(kind: str, size: int = ROWS) -> Rows:
    draw = random.Random(3)
    rows = make_rows([1 if kind == "pairs" else draw.choice([1, 2, 3, 5]) for _ in range(size)], seed=11)
    return framed(rows) if kind == "tokens" else rows


def framed(rows: Rows) -> Rows:
    """The rows with texts as tokenizers make them: between two tokens that are no words."""

    def longer(batch: Packed) -> Packed:
        return Packed.of([[0, *ids.tolist(), 1] for ids in batch.input_ids.split(batch.lengths)])

    return replace(rows, queries=longer(rows.queries), passages=longer(rows.passages))


def step(network: nn.Module, kind: str, loss: Any, rows: Rows, chunk: int | None, **options: Any) -> LossValue:
    """Gradients of the network's parameters, of the rows of this process."""
    batches = [rows.passages] if kind == "scores" else [rows.queries, rows.passages]
    if chunk is None:
        return plain_backward(network, batches, lambda *vectors: loss(*vectors, rows), **options)
    return cached_backward(network, batches, lambda *vectors: loss(*vectors, rows), chunk=chunk, **options)


def gradients(network: nn.Module) -> dict[str, Tensor]:
    found = {name.removeprefix("module."): p.grad.clone() for name, p in network.named_parameters()}  # type: ignore[union-attr]
    network.zero_grad()
    return found


def main(rank: int, world: int, folder: Path) -> None:
    """Write what this process computes to FOLDER/RANK.pt."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    results: dict[tuple[Any, ...], Any] = {}
    for kind, dtype in itertools.product(("vectors", "tokens", "pairs", "scores"), (torch.float64, torch.float32)):
        network = DistributedDataParallel(make_network(kind, dtype))
        for number, of_run, chunk in RUNS[world]:
            split = SPLITS[world][number]
            start = sum(split[:rank])
            rows = rows_for(kind).part(start, start + split[rank])
            for name, (takes, loss) in CASES.items():
                if (takes, of_run) == (kind, dtype):
                    value = step(network, kind, loss, rows, chunk)
                    results[name, number, dtype, chunk] = (value.loss.item(), value.metrics, gradients(network))
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()
