from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from bgekit.display.terminal import columns
from bgekit.evaluation.report.page import html
from bgekit.evaluation.report.report import console, markdown

LONG = "/data/experiments/2026-11/bge-small-en-v1.5-finetuned-on-support-tickets-with-hard-negatives 模型名字也很长"
MODELS = ["BAAI/bge-small-en-v1.5", "BAAI/bge-small-en-v1.5 [no instruction]", LONG]
TASKS = [
    "SciFact",
    "一个中文数据集的名字也可以非常非常长以至于一行放不下所以需要截断",
    "Ocnli",
    "Rerank",
    "Reviews",
]


@pytest.mark.parametrize("width", [40, 60, 80, 120])
@pytest.mark.parametrize("models", [1, 3])
def test_no_line_is_wider_than_the_screen(make_report, width, models):
    text = console(make_report(MODELS[:models], TASKS), width)
    assert max(map(columns, text.splitlines())) <= width


def test_the_terminal_decides_without_a_width(make_report, monkeypatch):
    monkeypatch.setenv("COLUMNS", "64")
    assert console(make_report(MODELS, TASKS)) == console(make_report(MODELS, TASKS), 64)


def test_scores_published_scores_and_differences_are_shown(make_report):
    report = make_report(MODELS, TASKS)
    lines = console(report, 100).splitlines()
    for result in report.results:
        row = f"{result.main_score:8.2f}{result.reference:11.2f}{result.main_score - result.reference:+8.2f}"
        assert any(line.endswith(row) for line in lines)


def test_a_score_published_on_other_data_is_marked_and_not_subtracted(make_report):
    text = console(make_report(MODELS[:1], ["SciFact"], comparable=False, reference=70.5), 80)
    assert "70.50*       –" in text
    assert "not comparable" in text


def test_without_any_published_score_there_is_no_such_column(make_report):
    text = console(make_report(MODELS[:1], ["SciFact"], reference=None), 80)
    assert "published" not in text and "score" in text


def test_exclusions_comparisons_and_notes_are_shown(make_report):
    report = make_report(MODELS[:2], ["SciFact"])
    text = " ".join(console(report, 100).split())
    (comparison,) = report.comparisons
    assert "excluded: 2 queries without a relevant document (q301, q<302>)" in text
    assert f"[{comparison.ci_low:+.2f}, {comparison.ci_high:+.2f}]" in text
    assert f"p = {comparison.p_value:.3f} ({comparison.p_adjusted:.3f} corrected)" in text
    assert comparison.conclusion in text
    assert "task Missing was not found in <data>" in text


def test_how_a_task_was_scored_is_in_every_report(make_report):
    report = make_report(MODELS[:2], ["SciFact"], notes=("7 queries have the id of a document <b>",))
    assert " ".join(console(report, 100).split()).count("note: 7 queries have the id of a document <b>") == 1
    assert markdown(report).count("7 queries have the id of a document") == 1
    assert "<li>7 queries have the id of a document &lt;b&gt;</li>" in html(report)
    assert json.loads(json.dumps(report.to_dict()))["results"][0]["notes"] == [
        "7 queries have the id of a document <b>"
    ]


def test_documents_do_not_steer_the_terminal(make_report):
    text = console(make_report(["evil\x1b[2J\r", "b"], ["SciFact\x07"]), 80)
    assert all(character.isprintable() for character in text.replace("\n", ""))


def test_means_are_over_all_tasks_or_none(make_report):
    report = make_report(MODELS[:2], TASKS)
    del report.results[-1]
    text = console(report, 100)
    own = [result.main_score for result in report.results if result.label == MODELS[0]]
    assert f"{sum(own) / len(own):.2f}" in text.split("Mean over 5 tasks")[1]
    assert "not measured on every task" in text


def test_an_empty_report_is_no_error(make_report):
    report = make_report([], [])
    assert "Missing" in console(report, 80)


def test_undefined_scores_are_dashes(make_report):
    text = console(make_report(MODELS[:1], ["SciFact"], main_score=float("nan"), reference=None), 80)
    assert "nan" not in text and "–" in text


def with_means(report):
    """The report as one of several tasks, with the mean over them and a comparison of too few items."""
    first = report.comparisons[0]
    few = replace(first, ci_low=None, ci_high=None, doubt="too few items (8 independent ones; an interval needs 50)")
    mean = replace(first, task="the mean over 5 tasks", split="", over_tasks=5, together=2, difference=1.5, units=900)
    report.comparisons[0] = replace(few, together=2, units=40)
    return replace(report, means=[mean])


def test_the_correction_the_mean_and_too_few_items_are_said_in_every_form(make_report):
    report = with_means(make_report(MODELS[:2], TASKS))
    for form in (lambda each: console(each, 100), markdown, html):
        text = " ".join(re.sub(r"<[^>]*>|\\", " ", form(report)).split())
        assert report.correction.replace("<", " ") in text and "all 2 comparisons of this report together" in text
        assert "Mean over 5 tasks" in text and "+1.50" in text
        assert "too few items" in text
    assert "of 5 tasks: 101 won" in console(report, 100) and "(40 independent)" in console(report, 100)
    assert report.to_dict()["mean_comparisons"][0]["over_tasks"] == 5
    assert report.to_dict()["correction"] == report.correction


def test_one_comparison_is_not_corrected(make_report):
    report = make_report(MODELS[:2], ["SciFact"])
    assert report.correction == "" and "Corrected p values" not in console(report, 80)
