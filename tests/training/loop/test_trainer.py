"""What of transformers' Trainer is used that is not public, and what no run of the other tests shows."""

import inspect
import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer

from bgekit.errors import CheckpointError
from bgekit.pretraining.retromae import PretrainingTrainer
from bgekit.training.loop.checkpoints import ModelFiles, check_same_run, mark_whole
from bgekit.training.loop.trainer import StepTrainer


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("_load_from_checkpoint", ["self", "resume_from_checkpoint", "model"]),
        ("_load_best_model", ["self"]),
        ("_save_checkpoint", ["self", "model", "trial"]),
    ],
)
def test_private_methods_of_trainer_are_what_they_were(name, parameters):
    assert list(inspect.signature(getattr(Trainer, name)).parameters) == parameters
    if name in vars(StepTrainer):
        assert list(inspect.signature(getattr(StepTrainer, name)).parameters) == parameters


def test_no_other_private_method_of_trainer_is_replaced():
    own = {name for kind in (StepTrainer, PretrainingTrainer) for name in vars(kind) if name in dir(Trainer)}
    private = {name for name in own if name.startswith("_") and not name.endswith("__")}
    assert private == {"_load_from_checkpoint", "_load_best_model"}


@pytest.mark.parametrize("name", ["train", "save_model", "evaluate", "log", "training_step", "get_batch_samples"])
def test_public_methods_take_what_trainer_gives(name):
    given = inspect.signature(getattr(Trainer, name)).parameters
    taken = inspect.signature(getattr(StepTrainer, name)).parameters
    assert list(given) == list(taken) or {"args", "kwargs"} <= taken.keys()


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Linear(2, 2)


def test_weights_that_are_missing_are_named(tmp_path):
    from safetensors.torch import save_file

    network = Tiny()
    files = ModelFiles(network, lambda folder, title: None, {"": "model."})
    save_file({"weight": torch.ones(2, 2), "bias": torch.zeros(2)}, tmp_path / "model.safetensors")
    files.load(tmp_path)
    assert torch.equal(network.model.weight, torch.ones(2, 2))
    save_file({"weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks 1 weights, such as model\.bias"):
        files.load(tmp_path)


def test_a_checkpoint_of_the_first_release_is_compared_by_what_it_noted(tmp_path):
    """0.1.0 noted fewer arguments; its training_args.json has those of Trainer."""
    (tmp_path / "training_args.json").write_text(json.dumps({"bf16": False, "max_grad_norm": 1.0}))
    mark_whole(tmp_path, {"data": "same", "--learning_rate": 1e-3})
    now: dict[str, Any] = {
        "data": "same", "evaluation data": None, "--learning_rate": 1e-3, "--bf16": False, "--quoting": "auto",
    }  # fmt: skip
    check_same_run(tmp_path, now)
    for change, says in (
        ({"--bf16": True}, "--bf16"),
        ({"--learning_rate": 1}, "--learning-rate"),
        ({"data": ""}, "data"),
    ):
        with pytest.raises(Exception, match=f"differs in {says}"):
            check_same_run(tmp_path, now | change)


def best(trainer: Any, *scores: float) -> list[bool]:
    """For each score whether it is to be saved."""
    asked = []
    for step, score in enumerate(scores, start=1):
        trainer.state.global_step, trainer.control.should_save = step, False
        StepTrainer._note_best(trainer, score)
        asked.append(trainer.control.should_save)
        if score > (trainer.state.best_metric or float("-inf")):  # As Trainer does.
            trainer.state.best_metric = score
    return asked


@pytest.mark.parametrize("wanted", [True, False])
def test_the_best_is_saved_where_it_is_wanted_in_the_end(wanted):
    args = SimpleNamespace(greater_is_better=True, load_best_model_at_end=wanted, output_dir="out")
    state = SimpleNamespace(best_metric=None, best_global_step=None, best_model_checkpoint=None, global_step=0)
    trainer = SimpleNamespace(args=args, state=state, control=SimpleNamespace(should_save=False))
    assert best(trainer, float("nan"), 1.0, 1.0, 2.0, 0.0) == [False, wanted, False, wanted, False]
    assert state.best_model_checkpoint == ("out/checkpoint-4" if wanted else None)


def test_data_have_the_fingerprint_that_the_first_release_gave_them(write, load):
    rows = [{"query": f"q{number}", "pos": [f"p{number}"], "neg": ["n"]} for number in range(3)]
    files = write("a.jsonl", rows), write("b.JSONL", [{"query": "q", "pos": ["p"], "neg": ["n"]}])
    fingerprints = [load(*files, max_rows=most).fingerprint for most in (None, 2)]
    assert fingerprints == [
        "e1e9927c31b03a6b788760a592bc59f5b3b12fcb911612f0de1c099befdd5d23",
        "0e0e029195b4950bc2f53cd54090412817ddd86f4949bf0e339693d384d3c7dc",
    ]
