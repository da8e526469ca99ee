"""The page of a training run: the conclusion in words, honest axes, nothing that means nothing."""

import re

import pytest

pytest.importorskip("matplotlib")

from bgekit.training.loop.training_page import save_page


def page_of(folder, history, **changed):
    values = {
        "name": "tuned", "base": "/some/where/bge-small-en-v1.5", "datasets": [(["a/rows.jsonl", "b.jsonl"], 400)],
        "facts": {"time": "5 min", "evaluation data": ""}, "arguments": {"--learning-rate": "1e-05"}, "kept": None,
        "history": history, "first_stage": "alone", "findings": {},
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    return save_page(folder, **{**values, **changed}) and (folder / "training.html").read_text("utf-8")


def evaluated(scores, **more):
    return [{"step": 10 * place, "eval_score": score, "eval_x_ndcg_at_10": score, **more}
            for place, score in enumerate(scores)]  # fmt: skip


def test_it_says_what_training_brought_and_on_what(tmp_path):
    log = [{"step": step, "loss": 2.0 if step < 10 else 1.0, "learning_rate": 1e-5} for step in range(1, 31)]
    page = page_of(tmp_path, log + evaluated([80.0, 85.5, 84.0]), kept=10, findings={"x": "something <odd>"})
    assert "x: nDCG@10 rose from 80.00 to 85.50 (+5.50); the weights of step 10 are kept." in page
    assert "The loss went from 2 to 1 (means over the first and the last 3 values)." in page
    assert "something &lt;odd&gt;" in page
    assert page.count("/some/where/bge-small-en-v1.5") == 1 and "rows.jsonl and 1 more files" in page
    # One task: no mean beside it, and no best of the learning rate.
    assert "Mean of" not in page and ">best<" not in page
    # The score, the loss and the learning rate.
    assert page.count("<figure") == 3 and (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("scores", "more", "message"),
    [
        ([80.0, 79.0], {}, "Training made it no better: x: nDCG@10 was 80.00 before it, and 79.00 at best afterwards"),
        ([80.0, 85.0], {"eval_alone_x_ndcg_at_10": 87.0}, "the first stage alone scores 87.00 (-2.00)"),
        ([80.0, 85.0], {}, "The last evaluation was the best one: more steps may help."),
    ],
)
def test_what_a_reader_must_not_miss_is_at_the_top(tmp_path, scores, more, message):
    kept = 10 if scores[1] > scores[0] else 0
    assert message in page_of(tmp_path, evaluated(scores, **more), kept=kept)


def test_what_was_better_than_the_last_step_is_not_kept_back(tmp_path):
    page = page_of(tmp_path, evaluated([80.0, 85.5, 84.0]))
    assert "The best score was 85.50 at step 10: --load-best-model-at-end true keeps" in page
    assert "The best score was" not in page_of(tmp_path / "kept", evaluated([80.0, 85.5, 84.0]), kept=10)
    assert "The best score was" not in page_of(tmp_path / "last", evaluated([80.0, 84.0, 85.5]))


def test_scores_of_pairs_are_no_cosines(tmp_path):
    log = [{"step": step, "positive": 4.0 + step, "negative": -6.0, "hardest": -2.0} for step in range(1, 4)]
    page = page_of(tmp_path, log, pairs=True)
    assert "Scores of queries and passages" in page and "cosine" not in page
    # All of the curve is in the picture, of vectors that keep their lengths, too.
    for pairs in (True, False):
        page = page_of(tmp_path, log, pairs=pairs)
        assert max(float(each) for each in re.findall(r">(\d\.?\d*)</text>", page)) >= 5


def test_noise_does_not_fill_an_axis_and_pages_without_a_log_are_not_written(tmp_path):
    page = page_of(tmp_path, evaluated([80.0, 80.01, 80.02]))
    ticks = [float(each) for each in re.findall(r">(\d\d\.\d)</text>", page)]
    assert max(ticks) - min(ticks) >= 1
    assert page_of(tmp_path / "none", []) is False


def test_without_scores_it_says_where_to_get_them(tmp_path):
    assert "bge eval says what the model is worth" in page_of(tmp_path, [{"step": 1, "loss": 1.0}])
