import re
from types import SimpleNamespace

import pytest

from bgekit.errors import ArgumentError
from bgekit.evaluation.benchmarks.definitions import MAIN_METRICS, benchmark
from bgekit.evaluation.benchmarks.published_tables import average, our_rows, published_table, render_table

DRIFTING = {
    "mteb-en": {"instructor-xl"},
    "c-mteb": {
        "BAAI/bge-large-zh", "bge-large-zh-noinstruct", "BAAI/bge-base-zh", "multilingual-e5-large", "m3e-base",
        "m3e-large", "multilingual-e5-base", "multilingual-e5-small", "text-embedding-ada-002(OpenAI)", "luotuo",
        "text2vec-base", "text2vec-large",
    },
}  # fmt: skip


def result(task, score, *, label="mine", kind="retrieval", split="test", language="en", metrics=None, **more):
    fields = {
        "label": label, "task": task, "kind": kind, "split": split, "language": language,
        "main_metric": MAIN_METRICS[kind], "main_score": score, "metrics": metrics or {},
        "comparable": True, "setting": {}, "card": {"dimension": 384, "max_length": 512},
    }  # fmt: skip
    return SimpleNamespace(**fields | more)


def everything(name, score=50.0, **more):
    return [
        result(task.key, score, kind=task.kind, split=task.split, language=task.language, **more)
        for task in benchmark(name)
    ]


@pytest.mark.parametrize(("name", "rows"), [("mteb-en", 17), ("c-mteb", 16)])
def test_published_averages_recompute_but_for_the_known_rows(name, rows):
    table = published_table(name)
    assert len(table.rows) == rows
    assert {row.model for row in table.rows if not row.recomputes} == DRIFTING[name]
    for row in table.rows:
        if "v1.5" in row.model:
            assert abs(row.average - row.recomputed) <= 0.02
            assert average(row.scores, benchmark(name).weights) == row.recomputed


def test_cells_are_those_printed(shared_path):
    (seed,) = shared_path("seed").glob("*.txt")
    printed = [line for line in seed.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    ours = [line for name in ("mteb-en", "c-mteb") for line in render_table(name).splitlines() if line.startswith("|")]
    squeezed = [[re.sub(r"\s+", "", line) for line in lines] for lines in (ours, printed)]
    assert squeezed[0] == squeezed[1]


def test_headers_agree_with_the_benchmark():
    for name in ("mteb-en", "c-mteb"):
        table, weights = published_table(name), benchmark(name).weights
        for title, (kind, count) in zip(table.header[-len(weights) :], weights.items(), strict=True):
            counted = re.fullmatch(r"(.*?)(?: \((\d+)\))?", title)
            assert counted[1].replace(" ", "").lower() == kind.replace("_", "")
            assert counted[2] in (None, str(count))


def test_no_average_without_all_kinds():
    with pytest.raises(ArgumentError, match="without clustering"):
        average({"retrieval": 1.0}, {"retrieval": 15, "clustering": 11})


def test_incomplete_results_claim_no_mean():
    table = render_table("mteb-en", [result("SciFact", 71.27), result("SummEval", 30.0, kind="summarization")])
    (row,) = [line for line in table.splitlines() if "(ours)" in line]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:4] == ["mine (ours)", "384", "512", "- (2/56)"]
    assert cells[4:] == ["- (1/15)", "- (0/11)", "- (0/3)", "- (0/4)", "- (0/10)", "30.00", "- (0/12)"]
    assert "only n of the m tasks" in table


def test_complete_results_are_averaged_over_datasets():
    results = everything("c-mteb", 50.0)
    results[0].main_score = 85.0  # one of 35 datasets, one of 8 in retrieval
    table = render_table("c-mteb", results, markdown=False)
    (row,) = [line for line in table.splitlines() if "(ours)" in line]
    assert row.split()[2:] == ["384", "51.00", "54.38", "50.00", "50.00", "50.00", "50.00", "50.00"]
    assert "only n of the m tasks" not in table


def test_the_metric_of_the_table_counts():
    rows, _ = our_rows(
        "c-mteb",
        [result("Ocnli", 60.0, kind="pair_classification", split="validation", language="zh",
                main_metric="max_accuracy", metrics={"max_accuracy": 60.0, "max_ap": 64.57})],
    )  # fmt: skip
    assert list(rows[0].scores.values()) == [64.57]


def test_another_metric_does_not_count():
    pair = result("Ocnli", 60.0, kind="pair_classification", split="validation", main_metric="max_accuracy")
    assert our_rows("c-mteb", [pair])[1] == ["Ocnli (no max_ap)"]


def test_other_splits_languages_and_tasks_do_not_count():
    rows, foreign = our_rows(
        "c-mteb",
        [
            result("LCQMC", 1.0, kind="sts", split="validation", language="zh"),
            result("STS22", 1.0, kind="sts", language="en"),
            result("CMRC2018Retrieval", 1.0, split="dev", language="zh"),
            result("STS22", 2.0, kind="sts", language="zh"),
        ],
    )
    assert list(rows[0].scores.values()) == [2.0]
    assert foreign == ["LCQMC (validation)", "STS22 (test)", "CMRC2018Retrieval (dev)"]
    assert "not part of c-mteb and not counted: LCQMC" in render_table("c-mteb", [result("LCQMC", 1.0)])


def test_inexact_data_is_named():
    table = render_table("mteb-en", [result("STS12", 77.0, kind="sts", comparable=False)])
    assert "not exactly the data of the published scores: STS12" in table


def test_settings_are_rows_of_their_own_and_show_their_dimension():
    results = [result("SciFact", 1.0), result("SciFact", 2.0, label="mine [128]", setting={"dimension": 128})]
    lines = [line.split() for line in render_table("beir", results, markdown=False).splitlines()]
    assert [line[1:] for line in lines if line[:1] == ["mine"]] == [
        ["(ours)", "384", "512", "-", "(1/15)", "-", "(1/15)"],
        ["[128]", "(ours)", "128", "512", "-", "(1/15)", "-", "(1/15)"],
    ]


def test_console_lines_fit_and_align():
    lines = render_table("mteb-en", everything("mteb-en"), markdown=False).splitlines()
    rows = [line for line in lines if re.match(r"(BAAI|mine|gte)", line)]
    assert len({len(line) for line in rows}) == 1 and len(rows[0]) <= 140


def test_rows_are_found_by_name():
    table = published_table("mteb-en")
    assert table.row("BGE-small-en-v1.5").average == 62.17
    assert table.row("BAAI/bge-base-en").scores["retrieval"] == 53.0
    with pytest.raises(ArgumentError, match=r"no row 'x'; it has BAAI/bge-large-en-v1\.5"):
        table.row("x")
    assert published_table("beir") is None
