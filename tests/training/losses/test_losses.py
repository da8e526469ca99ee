"""Losses against their formulas, written out row by row in float64."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from bgekit.errors import ArgumentError, DataError
from bgekit.mining.negatives import Guards
from bgekit.training.losses.contrastive import Contrastive, FalseNegatives, blockwise
from bgekit.training.losses.listwise import GroupLoss
from bgekit.training.losses.matryoshka import Matryoshka
from bgekit.training.losses.sts import SCORED_LOSSES, CoSent, ScoredLoss, ScoredMse
from training.loss_cases import Rows, make_rows

TEMPERATURE = 0.1


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors this small are slower on several."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_vectors(rows: Rows, width: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(n, width, generator=generator, dtype=torch.float64) for n in (rows.size, sum(rows.groups))]
    queries, passages = (normalize(vectors, dim=-1).requires_grad_() for vectors in made)
    return queries, passages


def first_passages(rows: Rows) -> list[int]:
    return [sum(rows.groups[:i]) for i in range(rows.size)]


def known_positives(rows: Rows) -> list[set[int]]:
    """For each row the keys of what is no negative of it: positives of all rows with its query, and the query."""
    first = first_passages(rows)
    queries, passages = rows.query_keys.tolist(), rows.passage_keys.tolist()
    own = [{*rows.positive_keys[i].tolist(), passages[first[i]], queries[i]} for i in range(rows.size)]
    return [set().union(*(own[k] for k in range(rows.size) if queries[k] == queries[i])) for i in range(rows.size)]


def not_negatives(rows: Rows) -> list[set[int]]:
    """For each row the passages other than its positive that are no negatives by their texts."""
    first, passages = first_passages(rows), rows.passage_keys.tolist()
    return [
        {j for j, text in enumerate(passages) if text in known} - {first[i]}
        for i, known in enumerate(known_positives(rows))
    ]


def log_softmax_at(target: int, others: set[int], logits: Tensor) -> Tensor:
    chosen = sorted({target, *others})
    return logits[target] - logits[chosen].exp().sum().log()


def brute_contrastive(
    queries: Tensor, passages: Tensor, rows: Rows, *, in_batch: bool = True, masked: FalseNegatives | None = None,
    distillation: str | None = None,
) -> Tensor:  # fmt: skip
    first, banned = first_passages(rows), not_negatives(rows)
    total = torch.zeros((), dtype=torch.float64)
    for i in range(rows.size):
        similarity = passages @ queries[i]
        group = list(range(first[i], first[i] + rows.groups[i]))
        positive = float(similarity.detach()[first[i]])
        negatives = set(range(len(passages)) if in_batch else group) - banned[i] - {first[i]}
        if masked is not None and masked.margin is not None:
            negatives = {j for j in negatives if float(similarity.detach()[j]) <= positive - masked.margin}
        if masked is not None and masked.ratio is not None:
            most = positive - (1 - masked.ratio) * abs(positive)
            negatives = {j for j in negatives if float(similarity.detach()[j]) <= most}
        if masked is not None and masked.teacher is not None and rows.teacher is not None:
            negatives = {j for j in negatives if j not in group or not float(rows.teacher[j]) >= masked.teacher}
        logits = similarity / TEMPERATURE
        judged = None
        if distillation is not None and rows.teacher is not None and not rows.teacher[group].isnan().any():
            judged = [float(t) for t in rows.teacher[group].exp() / rows.teacher[group].exp().sum()]
            negatives |= set(group[1:])
        if distillation == "m3_kd_loss" and judged is not None:
            for place, (member, weight) in enumerate(zip(group, judged, strict=True)):
                candidates = (negatives | {first[i]}) - set(group[:place])
                total = total - weight * log_softmax_at(member, candidates, logits)
            continue
        total = total - log_softmax_at(first[i], negatives, logits)
        if distillation == "kl_div" and judged is not None:
            for member, weight in zip(group, judged, strict=True):
                total = total - weight * log_softmax_at(member, set(group), logits)
    return total / rows.size


def brute_backwards(queries: Tensor, passages: Tensor, rows: Rows) -> Tensor:
    """Positives that look for their query."""
    first, total = first_passages(rows), torch.zeros((), dtype=torch.float64)
    texts, known = rows.passage_keys.tolist(), known_positives(rows)
    for i in range(rows.size):
        answers = [k for k in range(rows.size) if texts[first[i]] in known[k]]
        others = set(range(rows.size)) - set(answers)
        total = total - log_softmax_at(i, others, queries @ passages[first[i]] / TEMPERATURE)
    return total / rows.size


def assert_equal(loss: Any, brute: Any, rows: Rows, tolerance: float = 1e-12, **options: Any) -> None:
    """Values and gradients."""
    queries, passages = random_vectors(rows)
    value = loss(queries, passages, rows)
    expected = brute(queries, passages, rows, **options)
    assert value.loss.item() == pytest.approx(expected.item(), abs=tolerance, rel=tolerance)
    assert float(value.metrics["loss"]) == pytest.approx(expected.item(), abs=tolerance, rel=tolerance)
    own = torch.autograd.grad(value.loss, (queries, passages))
    if not expected.requires_grad:
        assert all(float(gradient.abs().max()) == 0 for gradient in own)
        return
    reference = torch.autograd.grad(expected, (queries, passages), allow_unused=True)
    for found, wanted in zip(own, reference, strict=True):
        difference = found if wanted is None else found - wanted
        assert float(difference.abs().max()) <= tolerance * max(1.0, float(found.abs().max()))


GROUPS = [3, 1, 5, 2, 1, 4, 2, 2, 3]
ENTRIES = 60  # a few rows a block


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("in_batch", [True, False])
@pytest.mark.parametrize("distillation", [None, "kl_div", "m3_kd_loss"])
@pytest.mark.parametrize(
    "masked", [FalseNegatives(), FalseNegatives(margin=0.1), FalseNegatives(ratio=0.8), FalseNegatives(teacher=1.0)]
)
def test_contrastive_is_its_formula(seed: int, in_batch: bool, distillation: Any, masked: FalseNegatives) -> None:
    loss = Contrastive(
        TEMPERATURE, in_batch=in_batch, false_negatives=masked, distillation=distillation, entries=ENTRIES
    )
    rows = make_rows(GROUPS, seed)
    assert_equal(loss, brute_contrastive, rows, in_batch=in_batch, masked=masked, distillation=distillation)


@settings(max_examples=40, deadline=None)
@given(
    groups=st.lists(st.integers(1, 6), min_size=1, max_size=9),
    seed=st.integers(0, 10_000),
    in_batch=st.booleans(),
    distillation=st.sampled_from([None, "kl_div", "m3_kd_loss"]),
    entries=st.sampled_from([1, 30, 10_000]),
)
def test_any_group_sizes(groups: list[int], seed: int, in_batch: bool, distillation: Any, entries: int) -> None:
    rows = make_rows(groups, seed, in_batch=in_batch)  # the batch, not the loss, says that groups stand alone
    loss = Contrastive(TEMPERATURE, distillation=distillation, entries=entries)
    assert_equal(loss, brute_contrastive, rows, 1e-11, in_batch=in_batch, distillation=distillation)


@settings(max_examples=20, deadline=None)
@given(groups=st.lists(st.integers(1, 4), min_size=1, max_size=9), seed=st.integers(0, 10_000))
def test_both_ways_is_the_mean_of_both_directions(groups: list[int], seed: int) -> None:
    rows = make_rows(groups, seed)

    def brute(queries: Tensor, passages: Tensor, rows: Rows) -> Tensor:
        return (brute_contrastive(queries, passages, rows) + brute_backwards(queries, passages, rows)) / 2

    assert_equal(Contrastive(TEMPERATURE, both_ways=True, entries=ENTRIES), brute, rows, 1e-11)


def test_kl_div_without_a_teacher_is_the_plain_loss() -> None:
    rows = make_rows(GROUPS, teacher=False)
    for kind in ("kl_div", "m3_kd_loss"):
        assert_equal(Contrastive(TEMPERATURE, distillation=kind), brute_contrastive, rows)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "loss",
    [
        Contrastive(TEMPERATURE, both_ways=True, entries=ENTRIES),
        Contrastive(TEMPERATURE, distillation="m3_kd_loss", entries=ENTRIES),
        Contrastive(TEMPERATURE, distillation="kl_div", in_batch=False),
        Matryoshka(Contrastive(TEMPERATURE), dims=[3, 2]),
        CoSent(scale=3.0),
        ScoredMse(),
    ],
)
def test_gradcheck(loss: Any) -> None:
    rows = make_rows([1] * 4 if isinstance(loss, CoSent | ScoredMse) else [3, 1, 2], seed=2)
    queries, passages = random_vectors(rows, width=3)
    assert torch.autograd.gradcheck(lambda q, p: loss(q, p, rows).loss, (queries, passages))


def test_copies_of_the_positive_are_no_negatives() -> None:
    """Two rows with one positive: without masking, the best possible loss would be ln 2."""
    rows = make_rows([1, 1], teacher=False)
    rows.query_keys, rows.passage_keys = torch.tensor([1, 2]), torch.tensor([7, 7])
    rows.positive_keys = [torch.tensor([], dtype=torch.long)] * 2
    queries, passages = random_vectors(rows)
    value = Contrastive(TEMPERATURE)(queries, passages, rows)
    assert value.loss.item() == 0
    assert float(value.metrics["excluded"]) == 1


def test_rows_without_any_negative_have_no_loss_and_a_gradient_of_zero() -> None:
    rows = make_rows([1, 1, 1], in_batch=False)
    queries, passages = random_vectors(rows)
    value = Contrastive(TEMPERATURE)(queries, passages, rows)
    assert value.loss.item() == 0
    assert all(float(g.abs().max()) == 0 for g in torch.autograd.grad(value.loss, (queries, passages)))


def test_metrics() -> None:
    rows = make_rows([2, 1, 2], teacher=False)
    rows.query_keys, rows.passage_keys = torch.tensor([1, 2, 3]), torch.tensor([11, 12, 13, 14, 15])
    rows.positive_keys = [torch.tensor([], dtype=torch.long)] * 3
    queries = torch.eye(3, dtype=torch.float64)
    similarity = [[0.9, 0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4, 0.5], [0.6, 0.5, 0.4, 0.8, 0.3]]
    value = Contrastive(TEMPERATURE)(queries, torch.tensor(similarity, dtype=torch.float64).T, rows)
    expected = {"accuracy": 2 / 3, "positive": (0.9 + 0.3 + 0.8) / 3, "hardest": (0.4 + 0.5 + 0.6) / 3, "excluded": 0.0}
    expected["idle"] = 0.0
    expected |= {"accuracy": 2 / 3, "negative": (0.25 + 0.3 + 0.45) / 3}
    expected["positive"] = (0.9 + 0.3 + 0.8) / 3
    expected["gap"] = expected["positive"] - expected["negative"]
    assert {name: float(v) for name, v in value.metrics.items() if name != "loss"} == pytest.approx(expected)
    assert not any(metric.requires_grad for metric in value.metrics.values())


@pytest.mark.parametrize("seed", range(3))
def test_cosent_is_the_sum_over_all_pairs(seed: int) -> None:
    rows = make_rows([1] * 17, seed)  # scores are rounded to a tenth: there are ties

    def brute(queries: Tensor, passages: Tensor, rows: Rows) -> Tensor:
        cosines, total = cosine_similarity(queries, passages), torch.ones((), dtype=torch.float64)
        for i in range(rows.size):
            for j in range(rows.size):
                if rows.scores[i] > rows.scores[j]:  # type: ignore[index]
                    total = total + (20 * (cosines[j] - cosines[i])).exp()
        return total.log()

    assert_equal(CoSent(), brute, rows)


def test_cosent_of_equal_scores_is_zero() -> None:
    rows = make_rows([1] * 4)
    rows.scores = torch.ones(4)
    queries, passages = random_vectors(rows)
    loss = CoSent()(queries, passages, rows).loss
    assert loss.item() == 0
    assert float(torch.autograd.grad(loss, queries)[0].abs().max()) == 0


def test_losses_of_scored_pairs_name_what_is_missing() -> None:
    rows = make_rows([1, 1])
    queries, passages = random_vectors(rows)
    rows.scores = None
    with pytest.raises(DataError, match=r'"score": 0\.8'):
        CoSent()(queries, passages, rows)
    rows = make_rows([1, 2])
    with pytest.raises(DataError, match="one passage each, not 3 for 2"):
        ScoredMse()(*random_vectors(rows), rows)


@settings(max_examples=30, deadline=None)
@given(
    groups=st.lists(st.integers(1, 6), min_size=1, max_size=9),
    seed=st.integers(0, 10_000),
    distillation=st.sampled_from([0.0, 0.7]),
)
def test_group_loss_is_its_formula(groups: list[int], seed: int, distillation: float) -> None:
    """Short and uneven batches of a reranker: each group is what the batch says, not a view of the batch size.

    Copies of positives are no negatives where no teacher judges them.
    """
    rows = make_rows(groups, seed)
    scores = torch.randn(sum(groups), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    scores.requires_grad_()
    expected, hits = torch.zeros((), dtype=torch.float64), []
    for size, start, known in zip(groups, first_passages(rows), known_positives(rows), strict=True):
        own, teacher = scores[start : start + size] / 0.5, rows.teacher[start : start + size]  # type: ignore[index]
        taught = distillation > 0 and not teacher.isnan().any()
        keys = rows.passage_keys[start : start + size].tolist()
        counted = [0, *(place for place in range(1, size) if taught or keys[place] not in known)]
        expected = expected + own[counted].exp().sum().log() - own[0]
        if taught:
            expected = expected - distillation * (teacher.softmax(0) * own.log_softmax(0)).sum()
        hits += [float(own[0] > own[counted[1:]].max())] if len(counted) > 1 else []
    expected = expected / rows.size
    value = GroupLoss(temperature=0.5, distillation=distillation)(scores, rows)
    assert value.loss.item() == pytest.approx(expected.item(), rel=1e-12, abs=1e-12)
    assert float(value.metrics["accuracy"]) == pytest.approx(sum(hits) / max(1, len(hits)))
    own, reference = (torch.autograd.grad(loss, scores)[0] for loss in (value.loss, expected))
    assert torch.allclose(own, reference, rtol=1e-11, atol=1e-12)


def test_matryoshka_is_the_weighted_mean_over_cut_vectors() -> None:
    rows = make_rows(GROUPS)

    def brute(queries: Tensor, passages: Tensor, rows: Rows) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for dim, weight in ((6, 1.0), (3, 2.0)):
            cut = [vectors[:, :dim] / vectors[:, :dim].norm(dim=1, keepdim=True) for vectors in (queries, passages)]
            total = total + weight / 3 * brute_contrastive(cut[0], cut[1], rows)
        return total

    assert_equal(Matryoshka(Contrastive(TEMPERATURE), dims=[3, 6], weights=[2.0, 1.0]), brute, rows, 1e-11)


def test_half_precision_vectors_are_compared_in_float32() -> None:
    rows = make_rows(GROUPS, teacher=False)
    vectors = [v.detach().bfloat16() for v in random_vectors(rows)]
    loss = Contrastive(0.01)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = loss(vectors[0], vectors[1], rows).loss
    assert half.dtype == torch.float32
    assert float(half) == pytest.approx(float(loss(vectors[0].double(), vectors[1].double(), rows).loss), rel=1e-5)


def test_blocks_give_the_dense_result() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, columns = (torch.randn(n, 8, dtype=torch.float64, generator=generator).requires_grad_() for n in (37, 50))

    def block(some: Tensor, every: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        logits = some @ every.T
        target = torch.arange(part.start, part.stop)
        return torch.nn.functional.cross_entropy(logits, target, reduction="sum"), logits.detach().sum()[None]

    dense, _ = block(rows, columns, slice(0, 37))
    reference = torch.autograd.grad(dense, (rows, columns))
    for entries in (1, 150, 10**6):
        total, sums = blockwise(rows, columns, block, statistics=1, entries=entries)
        assert float(total) == pytest.approx(float(dense), rel=1e-13)
        assert float(sums[0]) == pytest.approx(float((rows @ columns.T).sum()), rel=1e-9)
        for own, expected in zip(torch.autograd.grad(total, (rows, columns)), reference, strict=True):
            assert float((own - expected).abs().max()) < 1e-12


LARGE = """
import sys, torch
from bgekit.training.losses import Contrastive
from training.loss_cases import Rows
n, m, d = (int(v) for v in sys.argv[1:])
torch.set_num_threads(1)
def run(n, m, entries):
    keys = torch.arange(m)
    rows = Rows(None, None, (m // n,) * n, -1 - keys[:n], keys, [keys[:0]] * n, None, True, n, None)
    vectors = [torch.nn.functional.normalize(torch.randn(k, d), dim=-1).requires_grad_() for k in (n, m)]
    Contrastive(0.02, entries=entries)(*vectors, rows).loss.backward()
run(64, 128, 1 << 20)
def most():  # `ru_maxrss` of a process begins with that of the one that started it.
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
before = most()
run(n, m, 1 << 20)
print(most() - before)
"""


def test_large_batches_take_the_memory_of_a_block() -> None:
    """4,096 x 16,384 similarities are 256 MiB, and several times that once differentiated; a block is 4 MiB."""
    command = [sys.executable, "-c", LARGE, "4096", "16384", "16"]
    environment = {"PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert int(done.stdout) < 110 * 1024  # KiB; 68 to 75 MiB were measured


@pytest.mark.parametrize("in_batch", [True, False])
@pytest.mark.parametrize("kind", ["vectors", "both ways", "scores"])
def test_positives_of_an_equal_query_are_no_negatives(kind: str, in_batch: bool) -> None:
    """Query 1 has the positives 11, 12 and 13 in two rows: none is pushed away, wherever it stands."""
    rows = make_rows([3, 4], teacher=False, in_batch=in_batch)
    rows.query_keys, rows.positive_keys = torch.tensor([1, 1]), [torch.tensor([11]), torch.tensor([12, 13])]
    # A copy of the other row's drawn positive, and one of the positive that was not drawn; a true negative, 99.
    rows.passage_keys = torch.tensor([11, 12, 13, 12, 11, 1, 99])
    if kind == "scores":
        values = [torch.zeros(7, dtype=torch.float64, requires_grad=True)]
        loss = GroupLoss()(*values, rows)
    else:
        values = [*random_vectors(rows)]
        loss = Contrastive(TEMPERATURE, both_ways=kind == "both ways", entries=7)(*values, rows)
    gradient = torch.autograd.grad(loss.loss, values)[-1].reshape(7, -1).abs().sum(1)
    # Of in-batch negatives, 99 is one for both rows; else for the second alone.
    both = in_batch and kind != "scores"
    assert (gradient > 0).tolist() == [both, False, False, True, False, False, True]
    assert float(loss.metrics["idle"]) == (0 if both else 0.5)


@pytest.mark.parametrize("positive", [0.8, 0.0, -0.2])
def test_a_share_of_a_similarity_is_that_of_mining(positive: float) -> None:
    most = Guards(margin=0.1, max_positive_ratio=0.9).ceilings(positive)
    similarity = torch.linspace(-1, 1, 41, dtype=torch.float64)[None] + 0.001
    for name, masked in (("margin", FalseNegatives(margin=0.1)), ("max_positive_ratio", FalseNegatives(ratio=0.9))):
        found = masked.by_similarity(similarity, torch.tensor([[positive]], dtype=torch.float64))
        assert found is not None and torch.equal(found, similarity > most[name])
        assert most[name] <= positive  # What is nearer than the positive is masked, whatever its sign.


def test_impossible_settings() -> None:
    with pytest.raises(ArgumentError, match="above 0, not 0"):
        Contrastive(temperature=0)
    with pytest.raises(ArgumentError, match="kl_div or m3_kd_loss"):
        Contrastive(distillation="kl")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="not -1"):
        FalseNegatives(ratio=-1)
    with pytest.raises(ArgumentError, match=r"above 0, such as 0\.95, not nan"):
        FalseNegatives(ratio=math.nan)
    with pytest.raises(ArgumentError, match="finite number, not inf"):
        FalseNegatives(margin=math.inf)
    with pytest.raises(ArgumentError, match="1 weights for 2"):
        Matryoshka(Contrastive(), dims=[1, 2], weights=[1.0])
    rows = make_rows([1, 1])
    with pytest.raises(ArgumentError, match="vectors have 6 dimensions: 7"):
        Matryoshka(Contrastive(), dims=[7])(*random_vectors(rows), rows)
    assert math.isfinite(float(Contrastive(1e-6)(*random_vectors(rows), rows).loss))


def test_every_name_of_a_loss_for_scored_pairs_has_its_loss() -> None:
    assert tuple(SCORED_LOSSES) == get_args(ScoredLoss)
