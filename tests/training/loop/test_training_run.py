"""What a run that goes on must have in common with the one that wrote its checkpoint."""

from __future__ import annotations

import contextlib
from dataclasses import fields
from typing import Any

import pytest

from bgekit.errors import ArgumentError
from bgekit.training.loop.arguments import EmbedderArguments, RerankerArguments
from bgekit.training.loop.checkpoints import JUDGING, check_same_run, mark_whole
from bgekit.training.loop.options import WITHOUT_EFFECT, DataArguments, ModelArguments, RerankerDataArguments
from bgekit.training.loop.training_run import _MAY_CHANGE, run_identity

DATA = "fingerprint of the rows"


def parts(args: type) -> tuple[Any, ...]:
    data = RerankerDataArguments if args is RerankerArguments else DataArguments
    given = {"output_dir": "out", "report_to": "none", "use_cpu": True}
    return args(**given), ModelArguments("model"), data(["rows.jsonl"])


def another(value: Any) -> Any:
    """A value that is not this one."""
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int | float) else "another"


@pytest.mark.parametrize("kind", [EmbedderArguments, RerankerArguments])
def test_every_argument_counts_but_those_that_are_named(kind, tmp_path):
    made = parts(kind)
    mark_whole(tmp_path, run_identity(made[0], DATA, *made[1:]))
    unnoticed = set()
    for part in made:
        for each in fields(part):
            if not each.init or each.name == "deepspeed":
                continue
            before = getattr(part, each.name)
            setattr(part, each.name, another(before))
            with contextlib.suppress(ArgumentError):
                check_same_run(tmp_path, run_identity(made[0], DATA, *made[1:]))
                unnoticed.add(each.name)
            setattr(part, each.name, before)
    assert unnoticed <= _MAY_CHANGE | WITHOUT_EFFECT.keys() | JUDGING
    assert {"max_grad_norm", "bf16", "lr_scheduler_type", "warmup_steps", "adam_beta2"}.isdisjoint(unnoticed)


def test_the_best_is_told_by_the_same_data(tmp_path):
    args, *more = parts(EmbedderArguments)
    args.eval_data, args.metric_for_best_model = ["data"], "eval_score"
    mark_whole(tmp_path, run_identity(args, DATA, *more, measured=["these"]))
    check_same_run(tmp_path, run_identity(args, DATA, *more, measured=["these"]))
    with pytest.raises(ArgumentError, match="evaluation data"):
        check_same_run(tmp_path, run_identity(args, DATA, *more, measured=["others"]))
    args.metric_for_best_model = "eval_loss"
    with pytest.raises(ArgumentError, match=r"--metric-for-best-model \(eval_score there, eval_loss here\)"):
        check_same_run(tmp_path, run_identity(args, DATA, *more, measured=["these"]))
    args.eval_data = []  # It is measured no more.
    check_same_run(tmp_path, run_identity(args, DATA, *more))


def test_a_file_of_deepspeed_counts_by_its_content(tmp_path):
    args, *more = parts(EmbedderArguments)
    for name, content in (("a", '{"gradient_clipping": 1}'), ("b", '{"gradient_clipping":1}'), ("c", "{}")):
        (tmp_path / name).write_text(content)
    args.deepspeed = str(tmp_path / "a")
    (tmp_path / "checkpoint").mkdir()
    mark_whole(tmp_path / "checkpoint", run_identity(args, DATA, *more))
    args.deepspeed = str(tmp_path / "b")
    check_same_run(tmp_path / "checkpoint", run_identity(args, DATA, *more))
    args.deepspeed = str(tmp_path / "c")
    with pytest.raises(ArgumentError, match="--deepspeed"):
        check_same_run(tmp_path / "checkpoint", run_identity(args, DATA, *more))
