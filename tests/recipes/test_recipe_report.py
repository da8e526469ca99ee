from __future__ import annotations

from types import SimpleNamespace

import pytest

from bgekit.recipes.recipe_page import as_html, as_markdown, scores_text
from bgekit.recipes.recipe_report import StageProgress


def stage(name, **changed):
    return {
        "name": name, "about": "about <b>", "verb": "finetune", "this_run": "run", "output": f"{name}_out",
        "command": "bge finetune --x '<a_b>'", "seconds": 1234.5, "versions": {"torch": "2.8"}, "platform": "Linux",
    } | changed  # fmt: skip


@pytest.fixture
def content():
    scores = [{"task": "Sci|Fact", "split": "test", "metric": "ndcg_at_10", "model": "<m>", "score": 71.239}]
    compared = {
        "a": "a",
        "b": "<b>",
        "task": "T",
        "difference": 1.2,
        "p_adjusted": 0.0412,
        "conclusion": "a <is> ahead",
    }
    few = compared | {"ci_low": None, "ci_high": None}
    return {
        "recipe": "recipes/small.yaml", "sha256": "ab" * 32, "about": "", "variables": {"data": "/x|y", "list": ["a"]},
        "seconds": 2469.0, "stages": [stage("one", page="one/training.html"), stage("two", about="", versions=None)],
        "evaluations": [
            {"stage": "one", "results": scores, "comparisons": [compared | {"ci_low": -0.1, "ci_high": 2.2}, few]}
        ],
    }  # fmt: skip


def test_the_page_says_what_was_found_before_its_tables_and_escapes_all_of_it(content):
    page = as_html(content)
    assert "<h1>Recipe: small</h1>" in page and "default-src 'none'; style-src 'unsafe-inline'; script-src" in page
    found = [
        page.index(each) for each in ("a &lt;is&gt; ahead", "<h2>Stages", "<h2>Scores: one", "<h2>How it was made")
    ]
    assert found == sorted(found)
    assert "&lt;m&gt;" in page and "about &lt;b&gt;" in page and "<b>" not in page
    assert '<a href="one/report.html">' in page and '<a href="one/training.html">its report</a>' in page
    assert "-0.10 to +2.20" in page and "too few items" in page and "1,234.5" in page and "0.041" in page
    assert "Sci|Fact (test): nDCG@10" in page and "<pre>bge finetune --x &#39;&lt;a_b&gt;&#39;</pre>" in page


def test_the_page_counts_many_comparisons_and_says_where_nothing_was_measured(content):
    (evaluation,) = content["evaluations"]
    compared = evaluation["comparisons"][0]

    def page(*p_values):
        evaluation["comparisons"] = [compared | {"p_adjusted": p, "conclusion": f"p is {p}"} for p in p_values]
        return as_html(content)

    few = page(0.01, 0.3)
    assert "<li>p is 0.01</li>" in few and '<li class="open">p is 0.3</li>' in few
    some = page(0.01, 0.04, 0.3, 1)
    assert "p is 0.04" in some and "p is 0.3" not in some and "of 2 other pairs no difference can be" in some
    assert "None of 4 differences is significant" in page(1, 1, 1, 1)
    many = page(*[0.01] * 7, 0.5)
    assert "7 of 8 differences are significant" in many and "p is 0.01" not in many
    assert "differences" not in page()
    content["evaluations"] = []
    assert "Nothing was measured" in as_html(content)


def test_the_markdown_has_tables_and_commands_as_they_are(content):
    text = as_markdown(content)
    assert text.startswith("# Recipe: small\n\n## Stages\n\n| Stage | Output |") and text.endswith("```\n")
    assert r"| Sci\|Fact (test) | nDCG@10 | \<m\> | 71.24 |" in text
    assert "### one\n\nabout \\<b\\>\n\n```\nbge finetune --x '<a_b>'\n```\n\n### two\n\n```\n" in text
    assert "(<one/report.html>)" in text and "\n\n\n" not in text


def test_scores_for_a_terminal(content):
    assert scores_text(content).splitlines()[1:3] == ["one", "   71.24  nDCG@10 on Sci|Fact (test): <m>"]


def test_progress_of_stages_where_there_is_no_terminal(capsys):
    step = SimpleNamespace(name="one", output="out")
    for quiet in (False, True):
        with StageProgress(quiet=quiet) as progress:
            progress.begins(step, 1, 2, SimpleNamespace(status="missing", reasons=("never run",)))
            progress.runs(step, 1.0, "a line of its log")
            progress.ends(step)
        lines = capsys.readouterr().err.splitlines()
        assert [line.partition(" in ")[0] for line in lines] == (
            [] if quiet else ["[1/2] one: missing (never run)", "[1/2] one: done"]
        )
