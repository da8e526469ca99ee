"""Weights from examples and by search."""

import math

import numpy as np
import pytest
import torch

from bgekit import FlagModel, FlagReranker
from bgekit.errors import ArgumentError, DataError, NumericalError
from bgekit.merging import Merging, Validation, merge, mix_models_with_data
from bgekit.merging.merge_weights import (
    Trial,
    best,
    group_loss,
    in_batch_loss,
    read_examples,
    search,
    softmax_weights,
    trials_table,
)


def test_published_formula():
    losses = [0.4, 1.9, 7.0]
    powers = np.exp(-np.array(losses) / 5.0)
    np.testing.assert_allclose(softmax_weights(losses, 5.0), powers / powers.sum(), rtol=1e-12)
    assert softmax_weights([1.0, 1.0], 5.0) == (0.5, 0.5)
    assert softmax_weights([0.0, 5000.0], 0.1) == (1.0, 0.0)
    assert math.fsum(softmax_weights([9000.0, 9001.0], 5.0)) == pytest.approx(1)


def test_impossible_losses_and_temperatures():
    with pytest.raises(ArgumentError, match="temperature"):
        softmax_weights([1.0], 0)
    with pytest.raises(NumericalError):
        softmax_weights([1.0, math.nan], 5)


def test_in_batch_loss_against_its_formula():
    generator = np.random.default_rng(0)
    queries, passages = generator.normal(size=(2, 6)), generator.normal(size=(7, 6))
    q, p = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (queries, passages))
    scores = q @ p.T / 0.05
    expected = sum(np.log(np.exp(scores[row]).sum()) - scores[row, target] for row, target in ((0, 0), (1, 3)))
    assert in_batch_loss(torch.tensor(queries), torch.tensor(passages), (3, 4)) == pytest.approx(expected, rel=1e-10)


def test_group_loss_against_its_formula():
    scores = [1.0, 0.5, -2.0, 3.0, 3.5]
    expected = sum(math.log(sum(math.exp(each) for each in group)) - group[0] for group in (scores[:3], scores[3:]))
    assert group_loss(torch.tensor(scores), (3, 2)) == pytest.approx(expected, rel=1e-6)


def brute_embedder_loss(folder, rows, batch):
    model = FlagModel(folder, use_fp16=False, devices="cpu")
    total = 0.0
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        texts = [text for row in part for text in row.passages]
        queries, passages = model.encode_queries([row.row.query for row in part]), model.encode_corpus(texts)
        scores = np.asarray(queries) @ np.asarray(passages).T / 0.05
        first = np.cumsum([0, *(len(row.passages) for row in part)])
        total += sum(np.log(np.exp(scores[i]).sum()) - scores[i, first[i]] for i in range(len(part)))
    return total / len(rows)


def test_embedders_on_examples(pair, examples, tmp_path):
    merged = mix_models_with_data(pair, "encoder", examples, output_path=tmp_path / "out", neg_number=3)
    rows = read_examples(examples, "encoder", 3, 0)
    assert [len(row.passages) for row in rows] == [4] * 5
    assert merged.losses == pytest.approx([brute_embedder_loss(folder, rows, 2) for folder in pair], rel=1e-3)
    assert merged.weights == softmax_weights(merged.losses, 5.0)
    again = mix_models_with_data(pair, "encoder", examples, neg_number=3)
    assert again.weights == merged.weights


def test_rerankers_on_examples(rerankers, examples, tmp_path):
    merged = mix_models_with_data(rerankers, "reranker", examples, output_path=tmp_path / "out", temperature=1.0)
    rows = read_examples(examples, "reranker", 7, 0)
    for folder, loss in zip(rerankers, merged.losses, strict=True):
        with FlagReranker(folder, devices="cpu") as model:
            groups = [model.compute_score([(row.row.query, text) for text in row.passages]) for row in rows]
        expected = np.mean([np.log(np.exp(group).sum()) - group[0] for group in map(np.array, groups)])
        assert loss == pytest.approx(expected, rel=1e-3)
    assert merged.weights == softmax_weights(merged.losses, 1.0)


def test_old_spelling(pair, examples, caplog):
    merged = mix_models_with_data(pair, "encoder", example_ata=examples)
    assert "example_ata" in caplog.text
    assert len(merged.weights) == 2
    with pytest.raises(ArgumentError, match="one of the two"):
        mix_models_with_data(pair, "encoder", examples, example_ata=examples)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "no examples"),
        ([{"query": "a"}], "the examples, line 1: no field pos"),
        ([{"query": "a", "pos": []}], "pos is empty"),
        (["a"], "an object"),
        ([{"query": "a", "pos": ["b"], "score": 0.5}], "scored pair"),
    ],
)
def test_examples_that_cannot_be_used(rows, words):
    with pytest.raises(DataError, match=words):
        read_examples(rows, "encoder", 7, 0)


def test_file_of_examples(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"query": "a", "pos": ["b", "c"], "neg": ["d"]}\nnonsense\n')
    with pytest.raises(DataError, match=r"rows\.jsonl, line 2"):
        read_examples(file, "encoder", 2, 0)
    file.write_text('{"query": "a", "pos": ["b", "c"], "neg": ["d"]}\n')
    (example,) = read_examples(file, "encoder", 2, 0)
    assert example.passages == ("b", "d", "d")


def test_examples_without_negatives(pair):
    rows = [{"query": "a", "pos": ["b"]}]
    with pytest.raises(DataError, match="negatives"):
        read_examples(rows, "reranker", 7, 0)
    with pytest.raises(ArgumentError, match="batch_size"):
        mix_models_with_data(pair, "encoder", rows, batch_size=1)


# --- search -----------------------------------------------------------------------------------------------------


def judge(target):
    asked = []

    def measured(weights):
        asked.append(weights)
        score = -sum((a - b) ** 2 for a, b in zip(weights, target, strict=True))
        return Trial(weights, score, {"task": score})

    return measured, asked


def test_search_of_two_tries_the_whole_line():
    measured, asked = judge((0.3, 0.7))
    trials = search(measured, 2, 11)
    assert len(asked) == len(trials) == 11
    assert best(trials).weights == pytest.approx((0.3, 0.7))


def test_search_of_three_climbs():
    measured, asked = judge((0.6, 0.1, 0.3))
    trials = search(measured, 3, 11)
    assert len({tuple(round(weight, 6) for weight in weights) for weights in asked}) == len(asked)
    assert all(math.fsum(weights) == pytest.approx(1) for weights in asked)
    assert best(trials).weights == pytest.approx((0.6, 0.1, 0.3), abs=0.05)


def test_of_equal_scores_the_most_even_weights_win():
    trials = [Trial((1 - weight, weight), 1.0, {}) for weight in (0.0, 0.5, 1.0)]
    assert best(trials).weights == (0.5, 0.5)


def test_a_best_model_alone_is_called_a_copy():
    trials = [Trial((1 - weight, weight), weight, {"task": weight}) for weight in (0.0, 0.5, 1.0)]
    assert trials_table(trials, ["a/one", "b/two"]).endswith("is better than two alone: the result is a copy of it")
    assert "copy" not in trials_table(trials[:2], ["a/one", "b/two"])


def test_rerankers_are_not_judged_on_data_without_passages(pair, rerankers, tmp_path):
    rows = [f"cat {row},dog {row % 3},{row % 5}" for row in range(9)]
    (tmp_path / "alike").mkdir()
    (tmp_path / "alike" / "test.csv").write_text("\n".join(["sentence1,sentence2,score", *rows]))
    validation = Validation([str(tmp_path / "alike")], first_stage=str(pair[0]))
    with pytest.raises(ArgumentError, match=r"a reranker cannot be measured on alike \(sts\)"):
        merge(Merging(rerankers), tmp_path / "out", validation=validation)
    assert [path.name for path in tmp_path.iterdir()] == ["alike"]
