"""What `bge finetune` says or refuses before the first step."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from bgekit.cli.main import main
from bgekit.errors import ArgumentError, DataError
from bgekit.models.card_reading import read_card
from bgekit.networks.encoder import add_lora, load_trainable
from bgekit.training.batches.collator import Collator, Limit, StepDataset
from bgekit.training.batches.datasets import check_cosines
from bgekit.training.batches.sampler import PlanOptions, Sampling
from bgekit.training.loop.diagnosis import Diagnosis

from .conftest import row

pytestmark = pytest.mark.usefixtures("quick_figures")


@pytest.fixture(scope="module")
def bare(make_model) -> Path:
    """An encoder whose files say nothing of pooling."""
    return make_model(pooling=None, name="bare-encoder")


@pytest.fixture
def finetune(tiny_bert, write, tmp_path) -> Callable[..., int]:
    """Train for a step: `finetune(rows, "--temperature", "0.5")`; the exit code."""

    def finetune(rows, *more: str) -> int:
        given = [
            "--model", str(tiny_bert), "--train-data", write("a.jsonl", rows), "--output-dir", str(tmp_path / "out"),
            "--cache-path", str(tmp_path / "cache"), "--per-device-train-batch-size", "4", "--train-group-size", "2",
            "--max-steps", "1", "--save-strategy", "no", "--report-to", "none", "--disable-tqdm", "true", "--use-cpu",
        ]  # fmt: skip
        return main(["finetune", *given, *more])

    return finetune


@pytest.mark.parametrize("option", ["--pooling", "--sentence-pooling-method", "--pooling-method"])
def test_what_passes_a_dry_run_starts_where_only_the_caller_says_how_it_pools(finetune, bare, tmp_path, option):
    rows = [row(number) for number in range(4)]
    assert finetune(rows, "--model", str(bare), option, "mean", "--dry-run") == 0
    assert finetune(rows, "--model", str(bare), option, "mean") == 0
    assert read_card(tmp_path / "out").pooling == "mean"


def test_an_unknown_pooling_names_the_option_and_prompts_are_no_news_of_a_bare_encoder(finetune, bare, capsys, caplog):
    rows = [row(number) for number in range(4)]
    assert finetune(rows, "--model", str(bare), "--dry-run") == 1
    error = capsys.readouterr().err
    assert "Pass --pooling, one of" in error and "pooling_method=" not in error
    assert finetune(rows, "--model", str(bare), "--pooling", "cls", "--dry-run") == 0
    assert not [each for each in caplog.records if each.levelno == logging.WARNING and "prompts" in each.getMessage()]


def trained(tmp_path: Path) -> bool:
    return any((tmp_path / "out").glob("*.safetensors"))


def test_scores_that_are_no_cosines_are_named_by_line(finetune, tmp_path, capsys):
    rows = [{"query": "a cat", "pos": ["a dog"], "score": score} for score in (1, -1, 0.5, 4.2, 0, -3)]
    assert finetune(rows, "--scored-loss", "mse") == 1
    error = capsys.readouterr().err
    assert "2 problems in the training data" in error
    assert "a.jsonl, line 4: a score of 4.2 is not a cosine" in error and "a.jsonl, line 6: a score of -3" in error
    assert not trained(tmp_path)
    assert finetune(rows, "--scored-loss", "cosent") == 0


def test_only_scores_that_are_trained_on_count(write, load):
    rows = [{"query": "a cat", "pos": ["a dog"], "score": score} for score in (4.2, 1)] + [row(1)]
    data = load(write("a.jsonl", rows[:2]), write("b.jsonl", rows[2:]))
    with pytest.raises(DataError, match=r"a\.jsonl, line 1"):
        check_cosines(data)
    for seed in range(9):
        data = load(write("a.jsonl", rows[:2]), max_rows=1, seed=seed)
        if data[int(data.datasets[0].rows[0])].score == 1:
            return check_cosines(data)
    raise AssertionError("no seed draws the second row")


def test_lengths_beyond_the_model_are_said(finetune, caplog):
    assert finetune([row(i) for i in range(4)], "--query-max-len", "64", "--passage-max-len", "500") == 0
    said = [record.getMessage() for record in caplog.records if "more than the model takes" in record.getMessage()]
    assert said == ["--passage-max-length 500 is more than the model takes: passages are cut at 64 tokens"]


def test_a_cut_that_no_length_avoids_has_another_remedy(finetune, tmp_path):
    rows = [{"query": f"cat {i}", "pos": ["dog " * 99]} for i in range(4)]
    assert finetune(rows, "--passage-max-len", "128") == 0
    found = json.loads((tmp_path / "out" / "training.json").read_text())["findings"]
    assert "the model takes no more; split the texts" in found["truncated passages"]


@pytest.mark.parametrize(("more", "says"), [(["--temperature", "0.5"], True), (["--temperature", "1"], False)])
def test_a_temperature_without_effect_is_said(finetune, caplog, more, says):
    assert finetune([row(i) for i in range(4)], "--normalize-embeddings", "false", *more) == 0
    assert ("1 is used instead of --temperature 0.5" in caplog.text) == says
    caplog.clear()
    assert finetune([row(i) for i in range(4)], *more, "--overwrite-output-dir") == 0
    assert "is used instead" not in caplog.text


def test_adapters_are_outside_the_pooler(tiny_bert):
    network = load_trainable(tiny_bert, read_card(tiny_bert))
    add_lora(network, rank=2, alpha=4, dropout=0.0, modules=["dense", "query"])
    names = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    assert any("attention.output.dense" in name for name in names) and not any("pooler" in name for name in names)
    network = load_trainable(tiny_bert, read_card(tiny_bert))
    with pytest.raises(ArgumentError, match="--use-lora: "):
        add_lora(network, rank=2, alpha=4, dropout=0.0, modules=["pooler.dense"])


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_more_dimensions_than_there_are(finetune, tmp_path, capsys, more):
    assert finetune([row(i) for i in range(4)], "--matryoshka-dims", "16", "999", *more) == 1
    assert "--matryoshka-dims 999 is more than the 32 dimensions" in capsys.readouterr().err
    assert not trained(tmp_path)


@pytest.mark.parametrize(
    ("negatives", "more", "says"),
    [
        (0, ["--use-inbatch-neg", "false"], "no row has neg"),
        (0, ["--per-device-train-batch-size", "1"], "no row has neg"),
        (3, ["--use-inbatch-neg", "false", "--train-group-size", "1"], "--train-group-size is 1"),
        (0, ["--use-inbatch-neg", "false", "--dry-run"], "no row has neg"),
    ],
)
def test_nothing_to_learn_is_an_error(finetune, tmp_path, capsys, negatives, more, says):
    assert finetune([row(i, negatives) for i in range(4)], *more) == 1
    error = capsys.readouterr().err
    assert "nothing would be learnt" in error and says in error
    assert not trained(tmp_path)


def test_some_rows_to_learn_nothing_from_are_a_finding(finetune, tmp_path):
    assert finetune([row(0, 0), row(1), row(2, 0)], "--use-inbatch-neg", "false") == 0
    found = json.loads((tmp_path / "out" / "training.json").read_text())["findings"]
    assert found["no negatives"].startswith("2 rows of a.jsonl have no negatives")
    assert finetune([row(0, 0), row(1), row(2, 0)], "--overwrite-output-dir") == 0
    assert "no negatives" not in json.loads((tmp_path / "out" / "training.json").read_text())["findings"]


def test_rows_that_have_no_negative_left_are_a_finding(finetune, tmp_path, capsys):
    def findings():
        return json.loads((tmp_path / "out" / "training.json").read_text())["findings"]

    # All passages of a batch are positives of its one query.
    assert finetune([{"query": ["the cat", "The  CAT"][i % 2], "pos": [f"pos {i}"]} for i in range(4)]) == 0
    assert findings()["no negatives"].startswith("100.0% of the rows just trained on have no negative left")
    own = ["--use-inbatch-neg", "false", "--overwrite-output-dir"]
    copies = [row(i, neg=[f"POS {i}", f"query {i}"]) for i in range(3)]
    assert finetune([*copies, row(3)], *own) == 0
    assert findings()["no negatives"].startswith("3 rows of a.jsonl have no negatives")
    assert finetune(copies, *own) == 1
    assert "no row has a neg that is not one of its positives" in capsys.readouterr().err


def test_a_collapsed_model_is_a_finding(finetune, tmp_path):
    assert finetune([row(i) for i in range(8)], "--max-steps", "12", "--learning-rate", "0.1") == 0
    assert "collapsed" in json.loads((tmp_path / "out" / "training.json").read_text())["findings"]["collapse"]
    assert "collapsed" in (tmp_path / "out" / "README.md").read_text()


def test_rows_without_negatives_by_dataset(write, load, tokenizer):
    data = load(
        write("a-no_in_batch_neg.jsonl", [row(i, i) for i in range(3)]),
        write("b.jsonl", [row(i, i) for i in range(3)]),
        write("c-no_in_batch_neg.jsonl", [{"query": "a", "pos": ["b"], "score": 1}] * 2),
        write("d-no_in_batch_neg.jsonl", [row(i, i, type="only_1neg") for i in range(3)]),
    )

    def counts(batch, group, *, world=1, across=True):
        steps = StepDataset(data, PlanOptions(batch), Sampling(group), Collator(tokenizer), world=world)
        return steps.without_negatives(across=across)

    assert counts(4, 2) == [1, 0, 0, 1]
    assert counts(4, 1) == [3, 0, 0, 1]
    assert counts(2, 2, world=2) == [1, 0, 0, 1]
    assert counts(2, 2, world=2, across=False) == [1, 1, 0, 1]


def test_each_finding_is_made_once():
    diagnosis = Diagnosis(0.02)
    limit = Limit("passage_max_len", "passage", 128, most=512)
    found = diagnosis.before(8, {limit: 0.5}, None, None, {"a": 0, "b": 3})
    assert found == [
        "50% of the passages are longer than 128 tokens and lose their end: raise --passage-max-length",
        "3 rows of b have no negatives, and passages of other rows do not count as negatives: nothing is learnt from "
        "these rows. Mine negatives (bge mine), or leave the rows out",
    ]
    assert diagnosis.before(8, {limit: 0.5}, None, None, {"b": 3}) == []
