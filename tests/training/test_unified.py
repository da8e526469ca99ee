"""`bge finetune --unified-finetuning`: dense vectors, lexical weights and multi-vectors trained together."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import forked
from bgekit import BGEM3FlagModel
from bgekit.cli.main import main
from bgekit.models.head_files import head_paths
from bgekit.networks.heads import TokenHeads, write_heads
from bgekit.training.loop.checkpoints import last_whole_checkpoint
from bgekit.training.loop.diagnosis import EMPTY, Diagnosis

from .test_embedder import PAIRS, arguments, rows, weights  # noqa: F401

pytestmark = pytest.mark.usefixtures("quick_figures")
UNIFIED = ["--unified_finetuning", "True", "--use_self_distill", "True", "--self_distill_start_step", "1"]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny encoder with dropout and without heads."""
    from conftest import make_tiny

    return str(make_tiny(tmp_path_factory.mktemp("start") / "tiny"))


def heads_of(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of all heads, by file and name."""
    from safetensors.torch import load_file

    paths = [head_paths(folder, output)[1] for output in ("sparse", "multi-vector")]
    return {f"{path.name}.{name}": value for path in paths if path.exists() for name, value in load_file(path).items()}


def finetune(*given: str) -> int:
    return main(["finetune", *given])


def test_a_model_with_three_outputs_is_trained_judged_and_read(start, rows, tmp_path, capsys):  # noqa: F811
    """By upstream's names of arguments; judged by each output; heads alone first, so the encoder moves less."""
    task = tmp_path / "task"
    (task / "qrels").mkdir(parents=True)
    documents = [{"_id": str(number), "text": f"the {passage} 1"} for number, (_, passage) in enumerate(PAIRS)]
    queries = [{"_id": f"q{number}", "text": f"a {query} 2"} for number, (query, _) in enumerate(PAIRS)]
    for name, lines in (("corpus", documents), ("queries", queries)):
        (task / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    judged = "".join(f"q{number}\t{number}\t1\n" for number in range(len(PAIRS)))
    (task / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    output = tmp_path / "out"
    more = ["--max-steps", "4", "--eval-data", str(task), "--eval-steps", "4", "--heads-warmup-steps", "2",
            "--colbert_dim", "8", "--save-strategy", "no", "--same_task_within_batch", "True"]  # fmt: skip
    assert finetune(*arguments(start, rows, output, *UNIFIED, *more)) == 0
    said = capsys.readouterr().err
    assert "sparse accuracy" in said and "multi-vector loss" in said and "empty" in said
    for name in ("dense task nDCG@10", "sparse task nDCG@10", "multi-vector task nDCG@10"):
        assert name in said
    model = BGEM3FlagModel(str(output), use_fp16=False)
    outputs = model.encode(["the bird 1"], return_sparse=True, return_colbert_vecs=True)
    assert outputs["colbert_vecs"][0].shape[1] == 8 and isinstance(outputs["lexical_weights"][0], dict)
    assert (output / "sparse_linear.pt").exists() and (output / "colbert_linear.pt").exists()
    assert any(not np.array_equal(value, weights(Path(start))[name]) for name, value in weights(output).items())


def test_heads_alone_leave_the_encoder_as_it_is_and_any_of_them_can_be_chosen(start, rows, tmp_path):  # noqa: F811
    first, second = tmp_path / "first", tmp_path / "second"
    more = ["--unified-finetuning", "true", "--fix-encoder", "true", "--max-steps", "2", "--save-strategy", "no"]
    assert finetune(*arguments(start, rows, first, *more, "--heads", "dense", "sparse")) == 0
    assert all(np.array_equal(value, weights(Path(start))[name]) for name, value in weights(first).items())
    assert {name.partition(".")[0] for name in heads_of(first)} == {"sparse_linear"}
    # From there the other head alone: the one that there is stays, to the bit.
    assert finetune(*arguments(str(first), rows, second, *more, "--heads", "colbert")) == 0
    before, after = heads_of(first), heads_of(second)
    assert len(after) == 4 and all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_new_lexical_head_begins_alive(start, rows, tmp_path, monkeypatch):  # noqa: F811
    """Whatever it is born as: here as one that gives a weight to no token."""

    class Dead(TokenHeads):
        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **options)
            if self.sparse is not None:
                torch.nn.init.constant_(self.sparse.bias, -100)

    monkeypatch.setattr("bgekit.networks.unified.TokenHeads", Dead)
    output = tmp_path / "out"
    more = ["--unified-finetuning", "true", "--heads", "dense", "sparse", "--max-steps", "1", "--save-strategy", "no"]
    assert finetune(*arguments(start, rows, output, *more)) == 0
    model = BGEM3FlagModel(str(output), use_fp16=False)
    passages = [passage for _, passage in PAIRS]
    found = model.encode(passages, return_dense=False, return_sparse=True)["lexical_weights"]
    assert sum(map(len, found)) > len(passages) / 2


def test_killed_and_resumed_it_is_the_same_run(start, rows, tmp_path):  # noqa: F811
    """Across the steps at which the encoder begins to learn, and at which self-distillation begins."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    more = [*UNIFIED[:-1], "6", "--heads-warmup-steps", "5", "--max-steps", "9", "--save-steps", "2"]
    given = arguments(start, rows, broken, *more)
    process = forked.start_module("bgekit.training.embedder", given, threads=torch.get_num_threads())
    deadline = time.monotonic() + 120
    while last_whole_checkpoint(broken) is None and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.join()
    assert not (broken / "config.json").exists()
    assert finetune(*arguments(start, rows, broken, *more, "--resume-from-checkpoint", "true")) == 0
    assert finetune(*arguments(start, rows, whole, *more)) == 0
    assert all(np.array_equal(value, weights(broken)[name]) for name, value in weights(whole).items())
    assert heads_of(whole) and all(
        torch.equal(value, heads_of(broken)[name]) for name, value in heads_of(whole).items()
    )


def test_the_gradient_cache_and_two_processes_train_what_one_does(start, rows, tmp_path):  # noqa: F811
    """The heads alone, then all; without dropout, whose masks differ."""
    from conftest import make_tiny

    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    start = str(make_tiny(tmp_path / "still", **still))
    more = [*UNIFIED, "--max-steps", "3", "--save-strategy", "no", "--optim", "sgd", "--heads-warmup-steps", "1",
            "--negatives-cross-device", "true"]  # fmt: skip
    one, cached, two = tmp_path / "one", tmp_path / "cached", tmp_path / "two"
    assert finetune(*arguments(start, rows, one, *more)) == 0
    assert finetune(*arguments(start, rows, cached, *more, "--grad-cache-chunk", "2")) == 0
    halves = arguments(start, rows, two, *more)
    halves[halves.index("--per-device-train-batch-size") + 1] = "3"
    forked.torchrun("bgekit.training.embedder", halves, world=2)
    for other in (cached, two):
        for name, value in weights(one).items():
            assert np.allclose(value, weights(other)[name], atol=1e-4), name
        for name, head in heads_of(one).items():
            assert torch.allclose(head, heads_of(other)[name], atol=1e-4), name


def test_a_damaged_head_is_an_error_and_lost_heads_are_said(start, rows, tmp_path, capsys):  # noqa: F811
    import shutil

    wrong = tmp_path / "wrong"
    shutil.copytree(start, wrong)
    write_heads(TokenHeads(7, sparse=True), wrong)
    more = ["--max-steps", "1", "--save-strategy", "no"]
    assert finetune(*arguments(str(wrong), rows, tmp_path / "out", *more, "--unified-finetuning", "true")) == 1
    assert "sparse_linear" in capsys.readouterr().err
    assert finetune(*arguments(str(wrong), rows, tmp_path / "plain", *more)) == 0
    assert "heads of the model for sparse are not trained along" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--fix-encoder", "true"], "--fix-encoder needs --unified-finetuning true"),
        (["--unified-finetuning", "true", "--heads", "sprase"], "--heads are some of dense, sparse, multi-vector"),
        (["--unified-finetuning", "true", "--heads", "dense"], "--heads dense is training without"),
        (["--unified-finetuning", "true", "--heads", "sparse", "--use-self-distill", "true"], "several --heads"),
        (["--unified-finetuning", "true", "--loss-weights", "1", "1"], "--loss-weights are 4 numbers"),
        (["--unified-finetuning", "true", "--matryoshka", "true"], "--matryoshka is for dense vectors alone"),
        (["--unified-finetuning", "true", "--fix-encoder", "true", "--heads-warmup-steps", "3"], "in all steps"),
    ],
)
def test_arguments_that_contradict_each_other_are_one_line(start, rows, tmp_path, capsys, given, says):  # noqa: F811
    assert finetune(*arguments(start, rows, tmp_path / "out", *given)) == 2
    assert says in capsys.readouterr().err


def test_dead_lexical_weights_are_found() -> None:
    """Once; FlagEmbedding trains on without a word (its issue 982)."""
    diagnosis = Diagnosis(0.02)
    assert not diagnosis.after({"loss": 1.0, "empty": EMPTY / 2})
    (found,) = diagnosis.after({"loss": 1.0, "empty": 0.75})
    assert "75% of the texts just trained on have no lexical weight left" in found and "--heads-warmup-steps" in found
    assert not diagnosis.after({"loss": 1.0, "empty": 0.9})
