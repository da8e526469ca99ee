"""What is relevant to a query beyond its own row is no negative of it; labelled pairs become rows."""

from __future__ import annotations

import json
import logging

import pytest

from bgekit.data.training_rows import InputRow, Row, copy_key
from bgekit.errors import ArgumentError, DataError
from bgekit.mining.known_pairs import PairCounts, Relevant, rows_of_pairs
from bgekit.mining.mining import Mining, mine
from bgekit.mining.negatives import Choice
from bgekit.mining.teacher import score

POOL = [f"passage {number}" for number in range(40)]
#: One query in three spellings, a positive in each; and another query.
ROWS = [
    {"query": "who wrote it", "pos": ["passage 0"], "neg": ["Passage 1", "old"]},
    {"query": "Who  wrote it", "pos": ["passage 1"]},
    {"query": "another", "pos": ["passage 5"]},
    {"query": " WHO WROTE IT", "pos": ["passage 2", "passage 3"]},
]
OWN = {"passage 0", "passage 1", "passage 2", "passage 3"}


def test_relevant_passages_are_found_by_query():
    rows = [InputRow(1, {}, Row(query, positives)) for query, positives in
            (("b", ("x", "y")), ("a", ("z",)), ("B ", ("Y", "w")))]  # fmt: skip
    relevant = Relevant.of_rows(rows)
    assert set(relevant.to("b")) == {copy_key(text) for text in "xyw"}
    assert relevant.to("A") == [copy_key("z")]
    assert relevant.to("c") == Relevant((), ()).to("c") == []
    assert relevant.digest == Relevant.of_rows(rows[::-1]).digest != Relevant((), ()).digest


@pytest.mark.parametrize("miners", [("dense",), ("random",), ("bm25",)])
def test_positives_of_all_rows_with_the_query_are_no_negatives(mined, miners):
    rows, report = mined(ROWS, POOL, range=(0, 40), negatives=36, miners=miners)
    for row in rows:
        if row["query"] != "another":
            assert set(row["neg"]) == set(POOL) - OWN
        else:
            assert len(row["neg"]) == 36 and "passage 5" not in row["neg"]
    assert report["left_out"]["positive of the same query"] > 0


def test_without_a_pool_positives_of_other_rows_are_candidates_of_others_only(mined):
    rows, _ = mined(ROWS, None, range=(0, 40), negatives=9, fill=False)
    assert all(not OWN & set(row["neg"]) for row in rows if row["query"] != "another")
    assert set(rows[2]["neg"]) >= OWN


def test_what_another_row_marks_is_not_kept_as_a_negative(mined):
    rows, _ = mined(ROWS, POOL, range=(0, 40), negatives=3, keep_existing=True)
    assert rows[0]["neg"][0] == "old" and len(rows[0]["neg"]) == 4


def test_near_copies_of_other_rows_positives_are_copies(mined):
    long = "the quick brown fox jumps over the lazy dog by the river"
    rows = [{"query": "q", "pos": ["something else"]}, {"query": "Q", "pos": [long]}]
    pool = [f"{long}!", *POOL[:6]]
    found, report = mined(rows, pool, range=(0, 9), negatives=7, near_duplicates=0.8)
    assert all(f"{long}!" not in row["neg"] for row in found)
    assert report["left_out"]["near copy"] == 2


def test_guards_on_scores_compare_with_all_positives_of_the_query(mined, embedder):
    model = embedder()
    rows, _ = mined(ROWS[:2], POOL, range=(0, 40), negatives=30, margin=0.0, fill=False, models=[model])
    positives = {row["pos"][0]: row["pos_scores"][0] for row in rows}
    for row in rows:
        assert max(row["neg_scores"]) <= min(positives.values()) + 2e-6


BEIR = "query-id\tcorpus-id\tscore\nq1\td7\t1\nq1\td8\t2\nq2\td9\t1\nq1\td6\t0\n"
TREC = "q1 0 d7 1\nq1 0 d8 2\nq2 0 d9 1\n\nq1 0 d6 0\n"
LINES = "".join(
    json.dumps({"qid": query, "docid": document, "relevance": relevance}) + "\n"
    for query, document, relevance in (("q1", "d7", 1), ("q1", "d8", 2), ("q2", "d9", 1), ("q1", "d6", 0))
)


@pytest.fixture
def judged(tmp_path, write, embedder):
    """Mine with judgements: `judged({"a.tsv": content}, rows)` -> negatives of each row."""

    def run(files, rows, *, pool=None, **options):
        for name, content in files.items():
            (tmp_path / name).write_text(content)
        records = [{"_id": f"d{number}", "text": text} for number, text in enumerate(POOL)] if pool is None else pool
        task = Mining(
            write("in.jsonl", rows), str(tmp_path / "out.jsonl"), pool=(write("pool.jsonl", records),),
            qrels=tuple(str(tmp_path / name) for name in files), choice=Choice(negatives=39, first=0, last=40),
            **options,
        )  # fmt: skip
        report = mine(task, [embedder()])
        with open(task.output) as lines:
            return [set(json.loads(line)["neg"]) for line in lines], report

    return run


@pytest.mark.parametrize(("name", "content"), [("qrels.tsv", BEIR), ("qrels.trec", TREC), ("q.jsonl", LINES)])
def test_what_is_judged_relevant_is_no_negative(judged, name, content, caplog):
    rows = [
        {"query": "first", "query_id": "q1", "pos": ["passage 0"]},
        {"query": "second", "query_id": "q2", "pos": ["passage 1"]},
        {"query": "First", "pos": ["passage 2"]},
    ]
    (first, second, third), report = judged({name: content}, rows)
    assert first == third == set(POOL) - {f"passage {number}" for number in (0, 2, 7, 8)}
    assert second == set(POOL) - {"passage 1", "passage 9"}
    assert report["left_out"]["judged relevant"] == 5
    assert "judgements" not in caplog.text


def test_queries_of_judgements_by_a_file_of_their_texts(judged, write):
    queries = write("queries.jsonl", [{"_id": "q1", "text": "FIRST"}, {"_id": "q2", "text": "not there"}])
    (first,), _ = judged({"a.tsv": BEIR}, [{"query": "first", "pos": ["passage 0"]}], queries=queries)
    assert first == set(POOL) - {f"passage {number}" for number in (0, 7, 8)}


def test_judgements_that_name_texts_instead_of_ids(judged, caplog):
    lines = "".join(json.dumps({"query": "first", "docid": text, "score": 1}) + "\n" for text in ("PASSAGE 4", "gone"))
    with caplog.at_level(logging.WARNING):
        (first,), _ = judged({"a.jsonl": lines}, [{"query": "first", "pos": ["passage 0"]}])
    assert first == set(POOL) - {"passage 0", "passage 4"}
    assert "1 of 2 judgements" in caplog.text


def test_judgements_that_fit_nothing_are_an_error(judged):
    with pytest.raises(DataError, match=r"no judgement.*such as q1.*query_id.*--queries"):
        judged({"a.tsv": BEIR}, [{"query": "first", "pos": ["passage 0"]}])
    with pytest.raises(DataError, match=r"b.trec, line 2: no judgement"):
        judged({"b.trec": "q1 0 d1 1\nq1 d1\n"}, [{"query": "first", "pos": ["passage 0"]}])
    with pytest.raises(ArgumentError, match="qrels"):
        judged({}, [{"query": "first", "pos": ["passage 0"]}], queries="queries.jsonl")


def test_scoring_says_that_negatives_are_positives_elsewhere(tmp_path, write, caplog):
    class Teacher:
        fingerprint = "t"

        def compute_score(self, pairs, **_):
            return [0.0] * len(pairs)

    with caplog.at_level(logging.WARNING):
        score(Teacher(), write("in.jsonl", ROWS), str(tmp_path / "out.jsonl"))
    assert "1 negatives" in caplog.text


def pair(first, second, label):
    return {"sentence1": first, "sentence2": second, "label": label}


def test_groups(write):
    file = write("pairs.jsonl", [
        pair("a", "p1", 1), pair("b", "n", 0), pair("A ", "n1", "0"), pair("a", "P1", 1), pair("a", "p 1", 0),
        pair("a", "a", 0), pair("c", "p", 1.0), pair("a", "x", 2),
    ])  # fmt: skip
    counts = PairCounts()
    assert list(rows_of_pairs(file, counts)) == [
        {"query": "a", "pos": ["p1"], "neg": ["n1"]}, {"query": "c", "pos": ["p"], "neg": []}
    ]  # fmt: skip
    assert counts == PairCounts(8, {"2": 1}, conflicts=1, copies=2, rows=2, without_positives=1, negatives=1)
    with pytest.raises(ArgumentError, match="label 1"):
        list(rows_of_pairs(file, counts, negative_labels=("1",)))


def test_bad_lines(write):
    file = write("pairs.jsonl", [pair("a", "b", 1), pair("a", "", 1), {"sentence1": "a", "sentence2": "b"}])
    with pytest.raises(DataError, match=r"(?s)line 2: sentence2 must be .*line 3: no field label") as failed:
        list(rows_of_pairs(file, PairCounts()))
    assert "2 lines cannot be used" in str(failed.value)


def test_ocnli(shared_path):
    file = shared_path("data", "Ocnli", "train_3k_3way.jsonl")
    pairs = [json.loads(line) for line in file.open(encoding="utf-8")]
    label_of = {}
    for each in pairs:
        label_of.setdefault((each["sentence1"], each["sentence2"]), set()).add(each["label"])
    counts = PairCounts()
    rows = list(rows_of_pairs(str(file), counts))
    assert counts.pairs == len(pairs)
    assert len(rows) == counts.rows > 500
    assert counts.negatives > 200
    assert counts.other_labels == {"neutral": sum(each["label"] == "neutral" for each in pairs)}
    for row in rows:
        assert all("entailment" in label_of.get((row["query"], text), {"entailment"}) for text in row["pos"])
        assert all("contradiction" in label_of.get((row["query"], text), {"contradiction"}) for text in row["neg"])
    wide = PairCounts()
    list(rows_of_pairs(str(file), wide, negative_labels=("contradiction", "neutral")))
    assert wide.negatives > counts.negatives
    assert not wide.other_labels


def test_labels_as_tables_have_them(write):
    file = write("pairs.jsonl", [pair("a", "p", "1.0"), pair("a", "n", "0.0"), pair("a", "q", " Entailment ")])
    assert list(rows_of_pairs(file, PairCounts())) == [{"query": "a", "pos": ["p", "q"], "neg": ["n"]}]


def test_labels_of_another_set_are_an_error(write):
    file = write("pairs.jsonl", [pair("a", "p", "yes"), pair("a", "n", "no"), pair("a", "o", 0)])
    with pytest.raises(DataError, match=r"pairs.jsonl has no pair with .* \(1, entailment\).*: no, yes\. Name yours"):
        list(rows_of_pairs(file, PairCounts()))
    assert list(rows_of_pairs(file, PairCounts(), positive_labels=["Yes"], negative_labels=["NO"])) == [
        {"query": "a", "pos": ["p"], "neg": ["n"]}
    ]
