from __future__ import annotations

from pathlib import Path

import pytest

from bgekit.training.loop.training_log import log_line, outcome

NEXT = "bge eval --data mini --model tuned"
CURVES = "model in tuned; curves in tuned/training.html; next: " + NEXT


def row(step, score, **more):
    return {"step": step, "epoch": step / 10, "eval_score": score, "eval_mini_ndcg_at_10": score, **more}


def said(history, **options):
    facts = {"steps": 30, "measure": "eval_score", "higher": True, "kept": None, "drawn": True, "following": NEXT}
    return outcome(history, Path("tuned"), **{**facts, **options})


def test_an_entry_of_the_log_is_a_line_of_names_and_numbers():
    logs = {"loss": 1.23456, "grad_norm": 0.5, "learning_rate": 2e-5, "suspect": 0.25, "tokens": 12345.0, "epoch": 0.5}
    assert log_line(logs, 5, 30) == (
        "step 5/30: loss 1.235, gradient norm 0.5, learning rate 2e-05, suspect 0.25, tokens 12,345"
    )
    assert log_line({"train_runtime": 216.4, "train_loss": 1.2, "epoch": 1, "total_flos": 1e9}, 30, 30) == ""


def test_an_evaluation_is_a_line_with_the_first_stage_beside_each_score():
    assert log_line(row(10, 91.046), 10, 30) == "step 10/30: evaluation: mini nDCG@10 91.05"
    beside = {"eval_first_stage_score": 86.92, "eval_first_stage_mini_ndcg_at_10": 86.92}
    assert log_line(row(10, 63.86, **beside), 10, 30) == (
        "step 10/30: evaluation: mini nDCG@10 63.86 (first stage alone 86.92)"
    )
    two = {"eval_score": 80.0, "eval_a_ndcg_at_10": 70.0, "eval_b_b_cosine_spearman": 90.0, "eval_runtime": 3.1}
    line = log_line(two, 10, 30)
    assert line.startswith("step 10/30: evaluation: mean score 80.00, a nDCG@10 70.00, b") and "3.1" not in line


@pytest.mark.parametrize(
    ("history", "options", "sentence"),
    [
        (
            [row(0, 86.92), row(20, 91.05), row(30, 90)], {"kept": 20},
            "mini nDCG@10 86.92 -> 91.05, best at step 20; " + CURVES,
        ),
        (
            [row(0, 86.92), row(20, 91.05), row(30, 90)], {},
            "mini nDCG@10 86.92 -> 90.00 after 30 steps (best 91.05 at step 20; --load-best-model-at-end true keeps "
            "the best); " + CURVES,
        ),
        (
            [row(0, 86.92), row(30, 80)], {"kept": 0},
            "mini nDCG@10 86.92 -> 86.92, no better than before: the weights are those it began with; "
            + CURVES,
        ),
        (
            [row(0, 60, eval_first_stage_score=86.92), row(30, 90, eval_first_stage_score=86.92)], {"kept": 30},
            "mini nDCG@10 60.00 -> 90.00, best at step 30; first stage alone 86.92; " + CURVES,
        ),
        (
            [{"step": 1, "loss": 2.0}, {"step": 30, "loss": 0.5}, {"step": 30, "train_loss": 1.0}], {"drawn": False},
            "loss 2.0000 -> 0.5000, 30 steps; model in tuned; next: " + NEXT,
        ),
        (
            [{"step": 0, "eval_loss": 3.0}, {"step": 30, "eval_loss": 2.5}],
            {"measure": "eval_loss", "higher": False, "drawn": False},
            "loss 3.0000 -> 2.5000 after 30 steps; model in tuned; next: " + NEXT,
        ),
        ([], {"drawn": False}, "30 steps; model in tuned; next: " + NEXT),
    ],
)  # fmt: skip
def test_the_last_sentence_says_what_a_run_brought(history, options, sentence):
    assert said(history, **options) == sentence
