from __future__ import annotations

import base64
import dataclasses
import hashlib
import re
from html import unescape
from html.parser import HTMLParser

import pytest

pytest.importorskip("matplotlib")

from bgekit.display.terminal import printable
from bgekit.evaluation.report.page import html
from bgekit.evaluation.report.summary import score_interval

MODELS = ["org/model_a", "org/model_a [256 dimensions]", "模型 <B>"]
TASKS = ["SciFact", "中文<检索>", "Ocnli", "Rerank", "Reviews"]
EVIL = '"><script>alert(1)</script><img src=x onerror=alert(1)>\u202e\x00\ud800'
#: Elements without an end; of SVG those that matplotlib closes in themselves are checked as such.
VOID = {"meta", "br"}


class Page(HTMLParser):
    """Checks nesting, and collects elements, attributes and text."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.words, self.raw = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())
        self.ids = [value for _, attributes in self.elements for name, value in attributes if name == "id"]

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, attributes))
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names)), (tag, names)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, attributes))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)


@pytest.fixture(scope="module")
def page(make_report):
    report = make_report(MODELS, TASKS)
    text = html(report)
    return report, text, Page(text)


def test_it_is_well_formed(page):
    _, text, parsed = page
    assert text.startswith("<!DOCTYPE html>")
    assert len(parsed.ids) == len(set(parsed.ids))
    assert [tag for tag, _ in parsed.elements].count("h1") == 1


def test_links_within_the_page_lead_somewhere(page):
    _, text, parsed = page
    wanted = {
        value[1:] for _, attributes in parsed.elements for name, value in attributes if name in ("href", "xlink:href")
    }
    wanted |= set(re.findall(r"url\(#([^)]*)\)", text))
    assert wanted <= set(parsed.ids)


def test_nothing_is_fetched_from_elsewhere(page):
    _, text, parsed = page
    assert not re.search(r"https?:|//[a-z]+\.|@import|data:", text)
    for tag, attributes in parsed.elements:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "form", "image", "metadata")
        for name, value in attributes:
            assert name not in ("src", "srcset", "action") and not name.startswith("on")
            if "href" in name:
                assert value.startswith("#")


def test_only_our_script_may_run(page):
    _, text, _ = page
    (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in text


def test_every_number_is_there(page):
    report, _, parsed = page
    for result in report.results:
        for value in (*result.metrics.values(), *result.published.values(), result.reference):
            assert f"{value:.2f}" in parsed.text
        assert f"{result.main_score - result.reference:+.2f}" in parsed.text
        assert all(fingerprint in parsed.text for fingerprint in result.fingerprints.values())
    for comparison in report.comparisons:
        assert f"[{comparison.ci_low:+.2f}, {comparison.ci_high:+.2f}]" in parsed.text
        assert f"{comparison.difference:+.2f}" in parsed.text
        assert comparison.conclusion in parsed.text
        for item in (*comparison.regressions, *comparison.improvements):
            assert printable(item.text) in parsed.text and item.id in parsed.text
    for value in report.environment["versions"].values():
        assert value in parsed.text
    assert "2 queries without a relevant document (q301, q<302>)" in parsed.text
    assert "Represent this sentence for searching relevant passages: " in parsed.text


def test_each_kind_of_plot_is_there(page):
    _, text, _ = page
    labels = {unescape(label) for label in re.findall(r'role="img" aria-label="([^"]*)"', text)}
    for word in ("Main score", "Difference of two", "Recall among", "Similarities", "Each item"):
        assert any(word in label for label in labels), word


def test_texts_of_data_are_only_text(make_report, make_one_result):
    result = make_one_result(EVIL, EVIL, "retrieval", card={EVIL: EVIL}, setting={EVIL: EVIL}, published={EVIL: 1.0})
    report = make_report([EVIL + "a", EVIL + "b"], [EVIL])
    report.results.append(result)
    report.notes.append(EVIL)
    text = html(report)
    parsed = Page(text)
    assert [tag for tag, _ in parsed.elements].count("script") == 1
    assert "img" not in [tag for tag, _ in parsed.elements]
    assert "<script>alert(1)</script>" in parsed.text
    assert not re.search("[\u202e\x00\ud800]", text)
    text.encode()


def test_one_model_on_one_task_needs_no_comparison(make_report):
    parsed = Page(html(make_report(MODELS[:1], ["SciFact"])))
    assert "What can be concluded" not in parsed.text
    assert re.search(r"95\s%\sinterval", parsed.text) and re.search(r"\d\d\.\d\d to \d\d\.\d\d", parsed.text)


@pytest.mark.usefixtures("quick_figures")
def test_many_models_get_a_table_of_all_against_all(make_report):
    models = [f"model {number}" for number in range(9)]
    parsed = Page(html(make_report(models, ["SciFact", "LCQMC"])))
    assert "Tasks on which the row is significantly better" in parsed.text
    assert all(model in parsed.text for model in models)


def test_dimensions_of_one_model_make_a_curve(make_report, make_one_result):
    report = make_report([], [])
    for dimension in (None, 256, 128):
        label = f"m [{dimension}]" if dimension else "m"
        setting = {"dimension": dimension} if dimension else {}
        report.results.append(make_one_result(label, "SciFact", "retrieval", model="m", setting=setting))
    assert "Score against dimension" in html(report)
    del report.results[1:]
    assert "Score against dimension" not in html(report)


def test_results_without_items_details_or_references_are_no_error(make_report):
    report = make_report(
        MODELS, TASKS, items=None, details={}, reference=None, published={}, exclusions=(), main_score=float("nan")
    )
    Page(html(report))
    Page(html(make_report([], [])))


def test_the_order_of_models_decides_their_colours_everywhere(page):
    _, text, _ = page
    legend = re.search(r'<ul class="legend">(.*?)</ul>', text, flags=re.DOTALL)
    assert re.findall(r"--s(\d)", legend[1]) == ["1", "2", "3"]


def test_only_a_score_that_is_significantly_best_is_bold_and_no_column_is_empty(make_report):
    report = make_report(["one", "two"], ["SciFact"])
    for p_value, bold in ((0.001, 1), (0.4, 0)):
        compared = [dataclasses.replace(each, p_adjusted=p_value) for each in report.comparisons]
        results = [dataclasses.replace(each, reference=None, reused=each.label == "two") for each in report.results]
        page = html(dataclasses.replace(report, results=results, comparisons=compared))
        assert page.count('class="best"') == bold
        assert ">Published</" not in page and "12.3 (vectors reused)" in page
        # With one task and two models the conclusion stands once.
        assert page.count(compared[0].conclusion) == 1


def test_the_interval_of_a_score_holds_it_and_needs_items(make_one_result):
    retrieval, sts = (make_one_result("m", "t", kind) for kind in ("retrieval", "sts"))
    for result in (retrieval, sts):
        low, high = score_interval(result)
        assert low < result.main_score < high and high - low < 15
    assert score_interval(make_one_result("m", "t", "retrieval", count=20)) is None
    assert score_interval(dataclasses.replace(retrieval, items=None)) is None
