from __future__ import annotations

import json
import re

from bgekit.display.pages import escape
from bgekit.evaluation.report.report import markdown

MODELS = ["org/model_a", "org/model_a [256 dimensions]", "模型|B"]
TASKS = ["SciFact", "LCQMC", "Ocnli", "Rerank", "Reviews"]


def test_every_number_is_there(make_report):
    report = make_report(MODELS, TASKS)
    text = markdown(report)
    for result in report.results:
        for value in (*result.metrics.values(), *result.published.values(), result.reference):
            assert f"{value:.2f}" in text
        assert all(fingerprint in text for fingerprint in result.fingerprints.values())
    for comparison in report.comparisons:
        assert f"[{comparison.ci_low:+.2f}, {comparison.ci_high:+.2f}]".replace("[", r"\[").replace("]", r"\]") in text
        assert escape(comparison.conclusion) in text
        for item in (*comparison.regressions, *comparison.improvements):
            assert escape(item.text.strip()) in text
    for _, value in report.environment["versions"].items():
        assert value in text
    assert escape("2 queries without a relevant document (q301, q<302>)") in text
    assert "61.5" in text  # Short details.


def test_a_cell_does_not_hold_whole_documents_and_nothing_is_a_dash_in_each_row(make_report):
    report = make_report(MODELS[:2], ["SciFact"])
    for each in report.comparisons:
        for item in (*each.regressions, *each.improvements):
            item.detail["relevant"] = "a word " * 200
    for result in report.results:
        object.__setattr__(result, "reference", None)
    text = markdown(report)
    assert "a word…" in text and max(len(cell) for line in text.splitlines() for cell in line.split(" | ")) < 700
    assert "| Task | Split | Metric | Model | Score | Items | Seconds |" in text
    assert "| nDCG@10 |" in text and "| seconds |" not in text


def test_tables_have_as_many_cells_in_each_row(make_report):
    lines = markdown(make_report(MODELS, TASKS)).splitlines()
    width = None
    for line in lines:
        if not line.startswith("|"):
            width = None
            continue
        cells = len(re.findall(r"(?<!\\)\|", line))
        assert cells == (width := width or cells), line


def test_texts_are_shown_and_do_nothing(make_report):
    text = markdown(make_report(["a\n# head", "<img src=x>"], ["SciFact"]))
    body = re.sub(r"```json.*?```", "", text, flags=re.DOTALL)
    assert not re.search(r"(?<!\\)<", body)
    assert "\n# head" not in text
    assert r"\<script\>alert('x')\</script\> &amp; \"quotes\" \| pipes \`code\` \*stars\*".replace(r"\"", '"') in body


def test_the_card_is_whole(make_report):
    report = make_report(MODELS[:1], ["SciFact"])
    (block,) = re.findall(r"```json\n(.*?)\n```", markdown(report), flags=re.DOTALL)
    assert json.loads(block) == report.results[0].card


def test_an_empty_report_is_no_error(make_report):
    assert markdown(make_report([], [])).startswith("# Evaluation: No result")
