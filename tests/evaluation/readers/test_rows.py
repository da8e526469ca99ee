"""Kinds whose data is one file of rows a split."""

from __future__ import annotations

import json
import math

import pytest

from bgekit.errors import DataError
from bgekit.evaluation.readers.detect import read_tasks
from bgekit.evaluation.tasks.reranking import RerankingGroup
from bgekit.evaluation.tasks.summarization import SummaryGroup

STS = [{"sentence1": "a", "sentence2": "b", "score": 1.5}, {"sentence1": "c", "sentence2": "d", "score": 3}]
PAIRS = [{"sentence1": "a", "sentence2": "b", "label": 1}, {"sentence1": "c", "sentence2": "d", "label": 0}]
LABELLED = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
GROUPS = [{"query": "q", "positive": ["a"], "negative": ["b", "c"]}]


def read(path, **options):
    (task,) = read_tasks(path, **options)
    return task


def left_out(task):
    return {exclusion.reason: (exclusion.count, exclusion.examples) for exclusion in task.exclusions}


# --- pairs


def test_sts(tree):
    task = read(tree({"test.jsonl": STS}))
    assert (task.kind, task.name, task.split, task.main_metric) == ("sts", "Data", "test", "cosine_spearman")
    assert (task.first, task.second, task.scores) == (["a", "c"], ["b", "d"], [1.5, 3.0])
    assert not task.query_instruction and not task.comparable


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("test.csv", "sentence1,sentence2,score\na,b,1.5\nc,d,3\n"),
        ("test.tsv.gz", "Text1\tText2\tSimilarity\na\tb\t1.5\nc\td\t3\n"),
        ("test.jsonl", [{"premise": "a", "hypothesis": "b", "score": "1.5"},
                        {"premise": "c", "hypothesis": "d", "score": "3"}]),
        ("test.ndjson.gz", [{"Sentence_1": "a", "Sentence 2": "b", "similarity_score": 1.5, "genre": "x"},
                            {"Sentence_1": "c", "Sentence 2": "d", "similarity_score": 3, "genre": "x"}]),
    ],
)  # fmt: skip
def test_formats_and_names_of_columns(tree, name, content):
    task = read(tree({name: content}))
    assert (task.kind, task.first, task.second, task.scores) == ("sts", ["a", "c"], ["b", "d"], [1.5, 3.0])


def test_parquet(tree):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    root = tree({"README.md": "x"})
    parquet.write_table(pa.Table.from_pylist(PAIRS), root / "test.parquet")
    assert read(root).labels == [1, 0]


def test_pair_classification(tree):
    rows = [
        *PAIRS,
        {"sentence1": "e", "sentence2": "f", "label": "1"},
        {"sentence1": "g", "sentence2": "h", "label": False},
    ]
    task = read(tree({"test.jsonl": rows}))
    assert (task.kind, task.main_metric, task.labels) == ("pair_classification", "max_ap", [1, 0, 1, 0])


def test_bitext(tree):
    task = read(tree({"test.jsonl": [{"source": "你好", "target": "hello"}, {"source": "", "target": "x"}]}))
    assert (task.kind, task.main_metric, task.first, task.second) == ("bitext", "f1", ["你好"], ["hello"])
    assert left_out(task) == {"pairs with an empty text": (1, ("line 2",))}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"sentence1": "a", "sentence2": "b"}, r"line 3: no field score; it has sentence1, sentence2"),
        ({"sentence1": "a", "sentence2": "b", "score": math.nan}, r"line 3: the field score must be a number, not nan"),
        (
            {"sentence1": "a", "sentence2": "b", "score": "high"},
            r"line 3: the field score must be a number, not 'high'",
        ),
        ({"sentence1": "a", "sentence2": "b", "score": True}, r"line 3: the field score must be a number, not True"),
        ({"sentence1": "a", "sentence2": "b", "score": None}, r"line 3: the field score must be a number, not null"),
        (
            {"sentence1": "a", "sentence2": 5, "score": 1},
            r"line 3: the field sentence2 must be a string, not 5 \(int\)",
        ),
    ],
)
def test_bad_scores(tree, row, message):
    with pytest.raises(DataError, match=rf"test.jsonl, {message}"):
        read(tree({"test.jsonl": [*STS, row]}))


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("neutral", r"line 3: the label 'neutral' is one of three .*make entailment 1"),
        (2, r"line 3: the label must be 1 \(they belong together\) or 0, not 2"),
        (0.7, r"line 3: .*not 0.7 .* a column called score"),
        (None, r"line 3: .*not null"),
    ],
)
def test_labels_that_are_not_binary(tree, label, message):
    with pytest.raises(DataError, match=rf"test.jsonl, {message}"):
        read(tree({"test.jsonl": [*PAIRS, {"sentence1": "a", "sentence2": "b", "label": label}]}))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([STS[0], STS[0]], r"has the same score in all 2 rows"),
        ([PAIRS[0]], r"has the label 1 in all 1 rows: both 0 and 1"),
        ([STS[0] | {"label": 1}], r"has pairs with both a score \(sts\) and a label"),
        ([STS[0] | {"text1": "a", "text2": "b"}], r"sentence1 and sentence2 or text1 and text2; leave one pair out"),
        ([{"sentence1": " ", "sentence2": "b", "label": 1}], r"leaves nothing to evaluate: 1 pairs with an empty text"),
    ],
)
def test_pairs_that_say_nothing(tree, rows, message):
    with pytest.raises(DataError, match=message):
        read(tree({"test.jsonl": rows}))


# --- classification and clustering


def test_classification(tree):
    rows = [{"text": "c", "label": 1}, {"text": "", "label": 0}, {"text": "d", "label": 0.0}]
    task = read(tree({"test.jsonl": rows, "train.csv": "text,label\na,1\nb,0\n"}))
    assert (task.kind, task.main_metric, task.split) == ("classification", "accuracy", "test")
    assert (task.texts, task.labels, task.train_texts, task.train_labels) == (
        ["c", "d"],
        ["1", "0"],
        ["a", "b"],
        ["1", "0"],
    )
    assert (task.samples_per_label, task.experiments) == (8, 10)
    assert left_out(task) == {"texts that are empty": (1, ("line 2",))}


def test_classification_as_mteb_runs_the_task_of_that_name(tree, tmp_path):
    tree({"test.jsonl": LABELLED, "train.jsonl": LABELLED}).rename(tmp_path / "IFlyTek")
    task = read(tmp_path / "IFlyTek")
    assert (task.samples_per_label, task.experiments) == (32, 5)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"test.jsonl": LABELLED}, r"test.jsonl has no train split beside it"),
        ({"train.jsonl": LABELLED}, r"train.jsonl is the train split itself"),
        (
            {"test.jsonl": LABELLED, "train.jsonl": [{"text": "a"}]},
            r"train.jsonl has the fields text; classification n",
        ),
        (
            {"test.jsonl": LABELLED, "train.jsonl": [{"text": "a", "label": "z"}]},
            r"no label in common: the one has x, y",
        ),
        (
            {"test.jsonl": [*LABELLED, {"text": "a", "label": None}], "train.jsonl": LABELLED},
            r"test.jsonl, line 3: the f",
        ),
        (
            {"test.jsonl": [*LABELLED, {"text": "a", "label": 0.5}], "train.jsonl": LABELLED},
            r"must be a label .* not 0.5",
        ),
    ],
)
def test_classification_that_cannot_be(tree, files, message):
    with pytest.raises(DataError, match=message):
        read(tree(files))


def test_clustering(tree):
    rows = [{"sentences": ["a", "b", ""], "labels": [1, "y", 2]}, {"sentences": [], "labels": []}]
    task = read(tree({"test.jsonl": rows}))
    assert (task.kind, task.main_metric, task.sets) == ("clustering", "v_measure", [(["a", "b"], ["1", "y"])])
    assert left_out(task) == {
        "texts that are empty": (1, ("line 1, text 3",)),
        "problems without a text": (1, ("line 2",)),
    }


def test_clustering_of_unequal_lists(tree):
    with pytest.raises(DataError, match=r"test.jsonl, line 1: 2 sentences have 1 labels"):
        read(tree({"test.jsonl": [{"sentences": ["a", "b"], "labels": ["x"]}]}))


# --- groups


def test_reranking(tree):
    rows = [
        *GROUPS,
        {"query": "r", "positive": [], "negative": ["b"]},
        {"query": "s", "positive": ["b"], "negative": []},
        {"query": "", "positive": ["b"], "negative": ["c"]},
        {"query": "t", "positive": "d", "negative": ["e"]},
    ]
    task = read(tree({"test.jsonl": rows}))
    assert (task.kind, task.main_metric, task.query_instruction) == ("reranking", "map", True)
    assert task.groups == [RerankingGroup("q", ["a"], ["b", "c"], "1"), RerankingGroup("t", ["d"], ["e"], "5")]
    assert left_out(task) == {
        "queries without a positive": (1, ("line 2",)), "queries without a negative": (1, ("line 3",)),
        "queries that are empty": (1, ("line 4",)),
    }  # fmt: skip


def test_training_rows_are_a_reranking_task(tree):
    rows = [{"query": "q", "pos": ["a"], "neg": ["b"], "pos_scores": [1.0], "prompt": "x", "id": "own"}]
    root = tree({"train.jsonl": rows})
    for path in (root, root / "train.jsonl"):
        task = read(path)
        assert (task.kind, task.main_metric, task.split, task.name) == ("reranking", "map", "train", "Data")
        assert task.groups == [RerankingGroup("q", ["a"], ["b"], "own")]


def test_training_rows_without_negatives(tree):
    with pytest.raises(DataError, match=r"leaves nothing to evaluate: 1 queries without a negative \(line 1\)"):
        read(tree({"train.jsonl": [{"query": "q", "pos": ["a"], "neg": []}]}))


def test_groups_of_wrong_types(tree):
    with pytest.raises(DataError, match=r"line 1: the field negative must be a list of strings, not of 5 \(int\)"):
        read(tree({"test.jsonl": [{"query": "q", "positive": ["a"], "negative": [5]}]}))
    with pytest.raises(DataError, match=r"line 1: the field negative must be a list of strings, not null"):
        read(tree({"test.jsonl": [{"query": "q", "positive": ["a"], "negative": None}]}))


def test_summarization(tree):
    row = {"text": "t", "human_summaries": ["h"], "machine_summaries": ["m", "n"], "relevance": [1, 2.5]}
    task = read(tree({"test.jsonl": [row, row | {"human_summaries": []}]}))
    assert (task.kind, task.main_metric) == ("summarization", "cosine_spearman")
    assert task.groups == [SummaryGroup("t", ["h"], ["m", "n"], [1.0, 2.5])]
    assert left_out(task) == {"texts without a summary": (1, ("line 2",))}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"relevance": [1]}, r"line 1: 2 machine_summaries have 1 values of relevance"),
        ({"relevance": [1, None]}, r"line 1: the field relevance must be a number, not null"),
        ({"relevance": 3}, r"line 1: the field relevance must be a list of numbers"),
    ],
)
def test_summaries_without_ratings(tree, change, message):
    row = {"text": "t", "human_summaries": ["h"], "machine_summaries": ["m", "n"], "relevance": [1, 2.5]}
    with pytest.raises(DataError, match=message):
        read(tree({"test.jsonl": [row | change]}))


# --- unusual texts


def test_line_breaks_and_odd_characters_stay(tree):
    text = "a\nb\u2028c\ud800 \x00"
    rows = f'{{"sentence1": {json.dumps(text)}, "sentence2": "b", "label": 1}}\n' + json.dumps(PAIRS[1]) + "\n"
    assert read(tree({"test.jsonl": rows})).first[0] == text


@pytest.mark.parametrize(
    "row",
    [
        {"positive": ["a", "b"], "negative": ["c"], "grades": [1, 3]},
        {"positive": ["a", "b"], "negative": ["c"], "relevance": [1, 3, 0]},
        {"positive": ["a", "b"], "negative": ["c"], "positive_scores": [1.0, 3.0], "negative_scores": [0]},
        {"pos": ["a", "b"], "neg": ["c"], "pos_scores": [1, 3], "neg_scores": [0]},
        {"positive": ["a", "c"], "negative": ["b"], "scores": [1, 0, 3]},
        {"documents": ["a", "b", "c"], "labels": [1, 3, 0]},
        {"passages": ["a", "b", "c"], "scores": [1, 3, -1]},
    ],
)
def test_grades_of_reranking_rows(tree, row):
    task = read(tree({"test.jsonl": [{"query": "q", **row}]}))
    (group,) = task.groups
    assert dict(zip(group.positives, group.grades, strict=True)) == {"a": 1, "b": 3} and group.negatives == ["c"]
    assert task.notes[0].startswith("1 of 1 queries have passages of several grades")


def test_a_query_whose_passages_are_all_relevant_counts_where_grades_differ(tree):
    rows = [
        {"query": query, "positive": ["a", "b"], "negative": [], "grades": grades}
        for query, grades in (("p", [2, 1]), ("r", [2, 2]))
    ]
    task = read(tree({"test.jsonl": rows}))
    assert [group.query for group in task.groups] == ["p"] and left_out(task) == {
        "queries without a negative": (1, ("line 2",))
    }


def test_grades_that_say_nothing_leave_the_task_as_it_is(tree):
    plain = read(tree({"test.jsonl": [{"query": "q", "positive": ["a", "b"], "negative": ["c"]}]}))
    graded = [{"query": "q", "positive": ["a", "b"], "negative": ["c"], "grades": [1, 1, 0]}]
    assert read(tree({"test.jsonl": graded})).fingerprint == plain.fingerprint and plain.notes == ()


def test_scores_of_a_teacher_are_no_grades(tree):
    rows = [{"query": "q", "pos": ["a"], "neg": ["b"], "pos_scores": [1], "neg_scores": [0]}]
    for teacher in ({"pos_scores": [0.93]}, {"pos_scores": [9], "neg_scores": [4]}):
        task = read(tree({"test.jsonl": [*rows, {**rows[0], **teacher}]}))
        assert task.groups[0].grades == () and task.groups[1].negatives == ["b"]
        assert task.notes[0].startswith("pos_scores and neg_scores are a teacher's scores, not grades")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"positive": ["a"], "negative": ["b"], "grades": [0.5]}, "a grade in grades must be a whole number, not 0.5"),
        (
            {"positive": ["a"], "negative": ["b"], "grades": [1, 2, 3]},
            "1 positive and 1 negative have 3 values of gra",
        ),
        ({"documents": ["a", "b"], "labels": [1]}, "2 documents have 1 values of labels"),
    ],
)
def test_grades_that_cannot_be(tree, row, message):
    with pytest.raises(DataError, match=f"line 1: {message}"):
        read(tree({"test.jsonl": [{"query": "q", **row}]}))


def test_pairs_as_lists_of_unequal_length(tree):
    with pytest.raises(DataError, match="line 1: it has 2 sent1 and 1 sent2 and 2 labels"):
        read(tree({"test.jsonl": [{"sent1": ["a", "b"], "sent2": ["c"], "labels": [1, 0]}]}))


def test_remarks_of_the_description_and_of_the_rows_are_both_kept(tree):
    rows = [{"query": "q", "pos": ["a"], "neg": ["b"], "pos_scores": [0.5]}]
    described = {"task_type": "reranking", "cut": 3}
    first, second = read(tree({"test.jsonl": rows, "dataset.json": described})).notes
    assert first.startswith("dataset.json has cut") and second.startswith("pos_scores are a teacher's scores")


def test_rows_of_several_languages_are_said_to_be_one_task(tree):
    rows = [
        {"sentence1": f"a {n}", "sentence2": f"b {n}", "score": n % 5, "lang": lang}
        for n, lang in enumerate(["en", "de", "en", "fr"] * 3)
    ]
    (note,) = read(tree({"test.jsonl": rows})).notes
    assert note.startswith("its rows are of 3 languages (de, en, fr) and were scored together")
    one = [row | {"lang": "en"} for row in rows]
    assert read(tree({"test.jsonl": one})).notes == ()
