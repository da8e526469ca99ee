"""The unified loss of BGE-M3 against FlagEmbedding's formulas in float64, with tensors of the whole vocabulary."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from bgekit.errors import ArgumentError
from bgekit.models.head_files import OUTPUTS, Output
from bgekit.networks.maxima import Rectangles, mean_of_maxima
from bgekit.networks.packing import Packed
from bgekit.networks.unified import TokenOutputs
from bgekit.training.losses.contrastive import Contrastive, FalseNegatives
from bgekit.training.losses.unified import Unified
from training.loss_cases import VOCABULARY, WIDTH, Rows, framed, make_rows

SPECIAL = (1, 2, 3)
GROUPS = [3, 1, 2, 4, 3, 1]
TEMPERATURE = 0.1


def outputs_of(texts: Packed, heads: Sequence[Output] = OUTPUTS, seed: int = 0) -> TokenOutputs:
    """Random outputs; a third of the weights is 0, as behind a ReLU."""
    draw = torch.Generator().manual_seed(seed)
    tokens = len(texts.input_ids)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    dense = torch.nn.functional.normalize(normal(len(texts.lengths), WIDTH), dim=-1).requires_grad_()
    weights = (normal(tokens) + 0.4).relu().requires_grad_()
    vectors = torch.nn.functional.normalize(normal(tokens - len(texts.lengths), WIDTH), dim=-1).requires_grad_()
    there = {"dense": dense, "sparse": weights, "multi-vector": vectors}
    return TokenOutputs(*(there[head] if head in heads else None for head in OUTPUTS))


def rows_of(groups: Sequence[int] = GROUPS, **options: object) -> Rows:
    """Rows whose texts have at least two tokens, as with any tokenizer of these models."""
    return framed(make_rows(list(groups), seed=4, **options))  # type: ignore[arg-type]


def reference_scores(queries: TokenOutputs, passages: TokenOutputs, rows: Rows) -> dict[Output, Tensor]:
    """FlagEmbedding's: a tensor of the vocabulary, and a loop over pairs."""

    def lexical(outputs: TokenOutputs, texts: Packed) -> Tensor:
        lines = []
        assert outputs.weights is not None
        for ids, weights in zip(
            texts.input_ids.split(texts.lengths), outputs.weights.split(texts.lengths), strict=True
        ):
            columns = [weights[ids == word].max() if (ids == word).any() else weights.new_zeros(())
                       for word in range(VOCABULARY)]  # fmt: skip
            lines.append(torch.stack(columns) * torch.tensor([word not in SPECIAL for word in range(VOCABULARY)]))
        return torch.stack(lines)

    found: dict[Output, Tensor] = {}
    if queries.dense is not None and passages.dense is not None:
        found["dense"] = queries.dense @ passages.dense.T
    if queries.weights is not None:
        found["sparse"] = lexical(queries, rows.queries) @ lexical(passages, rows.passages).T
    if queries.vectors is not None and passages.vectors is not None:
        sides = [
            each.split([length - 1 for length in texts.lengths])
            for each, texts in ((queries.vectors, rows.queries), (passages.vectors, rows.passages))
        ]
        found["multi-vector"] = torch.stack([
            torch.stack([(query @ passage.T).max(1).values.sum() / len(query) for passage in sides[1]])
            for query in sides[0]
        ])  # fmt: skip
    return found


def not_counted(rows: Rows) -> Tensor:
    """[n, m]: known positives, and the query itself, of all rows with the same query."""
    first = [0, *itertools.accumulate(rows.groups)]
    mask = torch.zeros(len(rows.groups), len(rows.passage_keys), dtype=torch.bool)
    for row, query in enumerate(rows.query_keys.tolist()):
        known = {query}
        for other, same in enumerate(rows.query_keys.tolist()):
            if same == query:
                known |= {*rows.positive_keys[other].tolist(), int(rows.passage_keys[first[other]])}
        mask[row] = torch.tensor([int(key) in known for key in rows.passage_keys])
        mask[row, first[row]] = False
        if not rows.in_batch:
            own = range(first[row], first[row + 1])
            mask[row] |= torch.tensor([place not in own for place in range(len(mask[row]))])
    return mask


def reference_loss(
    scores: dict[Output, Tensor], rows: Rows, weights: Sequence[float], together: Sequence[float], distil: bool
) -> Tensor:
    """The mean over rows of FlagEmbedding's loss, with any heads and weights."""
    targets = torch.tensor([0, *itertools.accumulate(rows.groups)])[:-1]
    outside = not_counted(rows)
    of = dict(zip(OUTPUTS, weights, strict=False))
    every = sum(weight * scores[head] for head, weight in zip(OUTPUTS, together, strict=True) if head in scores)

    def logits(table: Tensor) -> Tensor:
        return (table / TEMPERATURE).masked_fill(outside, -1e9)

    def entropy(table: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(logits(table), targets)

    if len(scores) == 1:
        return entropy(next(iter(scores.values())))
    loss = sum(of[head] * entropy(table) for head, table in scores.items()) + weights[3] * entropy(every)
    loss = loss / (len(scores) + 1)
    if distil:
        teacher = logits(every.detach()).softmax(1)
        learnt = sum(
            -of[head] * (teacher * logits(table).log_softmax(1)).sum(1).mean() for head, table in scores.items()
        )
        loss = (loss + learnt / len(scores)) / 2
    return loss


SUBSETS = [heads for count in (1, 2, 3) for heads in itertools.combinations(OUTPUTS, count)]


@pytest.mark.parametrize("heads", SUBSETS, ids="+".join)
@pytest.mark.parametrize("in_batch", [True, False])
@pytest.mark.parametrize("distil", [False, True])
def test_loss_and_gradients_are_those_of_the_formulas(heads: tuple[Output, ...], in_batch: bool, distil: bool) -> None:
    rows = rows_of(in_batch=in_batch, teacher=False)
    queries, passages = outputs_of(rows.queries, heads), outputs_of(rows.passages, heads, seed=1)
    leaves = [each for each in (*queries, *passages) if each is not None]
    for weights, together in (((1, 0.1, 1, 1), (1, 0.3, 1)), ((0.5, 2, 0, 1), (1, 1, 1))):
        loss = Unified(
            Contrastive(TEMPERATURE), torch.tensor(SPECIAL), heads, weights, together, entries=60
        )  # fmt: skip
        value = loss(queries, passages, rows, distil=distil)
        expected = reference_loss(reference_scores(queries, passages, rows), rows, weights, together, distil)
        assert value.loss.item() == pytest.approx(expected.item(), rel=1e-12)
        gradients = [torch.autograd.grad(each, leaves) for each in (value.loss, expected)]
        for leaf, found, wanted in zip(leaves, *gradients, strict=True):
            # What is 0 is so behind a ReLU, which lets no gradient through.
            assert torch.allclose(found, wanted * (leaf != 0), rtol=1e-10, atol=1e-13)


def test_blocks_change_nothing() -> None:
    rows = rows_of(teacher=False)
    queries, passages = outputs_of(rows.queries), outputs_of(rows.passages, seed=1)
    leaves = [each for each in (*queries, *passages) if each is not None]
    found = []
    for entries in (1, 400, 1 << 24):
        value = Unified(Contrastive(TEMPERATURE), torch.tensor(SPECIAL), entries=entries)(queries, passages, rows)
        found.append((value.loss, *torch.autograd.grad(value.loss, leaves)))
    for other in found[1:]:
        assert all(torch.allclose(first, second, rtol=1e-12) for first, second in zip(found[0], other, strict=True))


def test_dense_alone_is_the_contrastive_loss() -> None:
    """With a teacher and false negatives, too."""
    rows = rows_of()
    queries, passages = outputs_of(rows.queries, ["dense"]), outputs_of(rows.passages, ["dense"], seed=1)
    for in_batch, distillation in itertools.product((True, False), (None, "kl_div", "m3_kd_loss")):
        contrastive = Contrastive(
            TEMPERATURE, in_batch=in_batch, distillation=distillation,
            false_negatives=FalseNegatives(margin=-0.1, ratio=1.2, teacher=2.0),
        )  # fmt: skip
        plain = contrastive(queries.dense, passages.dense, rows)  # type: ignore[arg-type]
        unified = Unified(contrastive, torch.tensor(SPECIAL), ("dense",))(queries, passages, rows)
        assert unified.loss.item() == pytest.approx(plain.loss.item(), rel=1e-12)
        for name, metric in plain.metrics.items():
            assert float(unified.metrics[name]) == pytest.approx(float(metric), rel=1e-9), name


@pytest.mark.parametrize("in_batch", [True, False])
def test_a_teacher_counts_for_every_score(in_batch: bool) -> None:
    """The loss of a head is that of its own scores with the same teacher."""
    rows = rows_of(in_batch=in_batch)
    queries, passages = outputs_of(rows.queries), outputs_of(rows.passages, seed=1)
    for distillation in ("kl_div", "m3_kd_loss"):
        contrastive = Contrastive(TEMPERATURE, distillation=distillation)
        every = Unified(contrastive, torch.tensor(SPECIAL), loss_weights=(1, 1, 1, 0))(queries, passages, rows)
        alone = 0.0
        for head in OUTPUTS:
            sides = (outputs_of(rows.queries, [head]), outputs_of(rows.passages, [head], seed=1))
            alone += Unified(contrastive, torch.tensor(SPECIAL), (head,))(*sides, rows).loss.item()
        assert every.loss.item() == pytest.approx(alone / 4, rel=1e-12)


def test_metrics_say_which_head_does_what() -> None:
    rows = rows_of(teacher=False)
    queries, passages = outputs_of(rows.queries), outputs_of(rows.passages, seed=1)
    dead = TokenOutputs(queries.dense, torch.zeros_like(queries.weights), queries.vectors)  # type: ignore[arg-type]
    loss = Unified(Contrastive(TEMPERATURE), torch.tensor(SPECIAL))
    metrics = loss(queries, passages, rows).metrics
    scores, outside = reference_scores(queries, passages, rows), not_counted(rows)
    targets = torch.tensor([0, *itertools.accumulate(rows.groups)])[:-1]
    for head, table in scores.items():
        best = table.masked_fill(outside, -math.inf).argmax(1)
        assert float(metrics[f"{head} accuracy"]) == pytest.approx(float((best == targets).double().mean()))
    empty = float(metrics["empty"])
    assert 0 <= empty < 0.3
    texts = len(rows.queries.lengths) + len(rows.passages.lengths)
    assert float(loss(dead, passages, rows).metrics["empty"]) >= len(rows.queries.lengths) / texts


def test_scores_of_texts_of_any_lengths() -> None:
    draw = torch.Generator().manual_seed(0)
    for lengths in ([1], [5, 1, 1, 9, 40, 41, 38, 2], [7] * 4):
        vectors = torch.randn(sum(lengths), 3, generator=draw)
        queries = torch.randn(5, 3, generator=draw)
        rectangles = Rectangles.of(lengths, vectors.device)
        assert len(rectangles.index) <= 1.2 * sum(lengths) + 8
        found = mean_of_maxima(queries, torch.tensor([2, 3]), vectors[rectangles.index], rectangles)
        best = torch.stack([(queries @ part.T).amax(1) for part in vectors.split(lengths)], 1)
        assert torch.allclose(found, torch.stack([best[:2].mean(0), best[2:].mean(0)]))
    assert Rectangles.of([], torch.device("cpu")).maxima(torch.zeros(2, 0)).shape == (2, 0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"heads": ()}, "heads are some of dense, sparse, multi-vector, not none"),
        ({"loss_weights": (1, 1, 1)}, "4 loss weights"),
        ({"score_weights": (1, -1, 1)}, "3 score weights of at least 0"),
        ({"heads": ("sparse",), "score_weights": (1, 0, 1)}, "score weights of the heads sparse are all 0"),
        ({"contrastive": Contrastive(both_ways=True)}, "both_ways"),
    ],
)
def test_impossible_options_are_errors(options: dict[str, object], says: str) -> None:
    with pytest.raises(ArgumentError, match=says):
        Unified(**{"contrastive": Contrastive(), "special": torch.tensor(SPECIAL), **options})  # type: ignore[arg-type]
