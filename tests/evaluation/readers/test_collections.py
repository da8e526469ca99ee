"""Retrieval in its three layouts, and what is wrong with real files of them."""

from __future__ import annotations

import hashlib
import logging
import re
import tracemalloc

import pytest

from bgekit.data.records import Record
from bgekit.errors import DataError
from bgekit.evaluation.readers.detect import read_tasks
from bgekit.evaluation.tasks.retrieval import RetrievalTask

from .conftest import CORPUS, QRELS, QUERIES, jsonl


def read(path, **options) -> RetrievalTask:
    (task,) = read_tasks(path, **options)
    assert isinstance(task, RetrievalTask)
    return task


def left_out(task):
    return {exclusion.reason: exclusion.count for exclusion in task.exclusions}


# --- how files are written


def test_unquoted_tables_keep_their_lines(tree):
    root = tree({
        "corpus.tsv": '_id\ttext\nd1\t"Come in, she said.\nd2\tWho is there?\nd3\t"Nobody," he said.\n',
        "queries.tsv": '_id\ttext\nq1\t"who\nq2\twhere"\n', "qrels/test.tsv": QRELS,
    })  # fmt: skip
    task = read(root)
    assert task.queries == {"q1": '"who', "q2": 'where"'}
    for _ in range(2):  # Documents are read anew for each pass, also long after the first.
        assert [record.text for record in task.corpus.read()] == [
            '"Come in, she said.', "Who is there?", '"Nobody," he said.'
        ]  # fmt: skip
    assert read(root, quoting="none").queries == task.queries
    with pytest.raises(DataError, match="--quoting none"):
        read(root, quoting="csv")


def test_files_in_another_encoding(tree):
    root = tree({"corpus.jsonl": CORPUS, "queries.jsonl": QUERIES, "qrels/test.tsv": QRELS})
    (root / "corpus.jsonl").write_bytes(
        '{"_id": "d1", "text": "这里是答案"}\n{"_id": "d2", "text": "那里"}\n'.encode("gbk")
    )
    with pytest.raises(DataError, match=r"corpus\.jsonl, line 1.*--encoding gb18030 reads it"):
        read(root)
    task = read(root, encoding="gb18030")
    assert [record.text for record in task.corpus.read()] == [record.text for record in task.corpus.read()]
    assert next(iter(task.corpus.read())).text == "这里是答案"


# --- BEIR


def test_beir(beir):
    root = beir()
    task = read(root)
    assert (task.name, task.split, task.main_metric, task.query_instruction) == ("Data", "test", "ndcg_at_10", True)
    assert task.queries == {"q1": "what is a", "q2": "what is b"}
    assert task.qrels == {"q1": {"d1": 1, "d2": 0}, "q2": {"d2": 2}}
    assert task.exclusions == () and task.published == {} and not task.comparable and not task.skip_identical_ids
    file = str(root / "corpus.jsonl")
    expected = [Record("d1", "A about a", file, 1), Record("d2", "about b", file, 2), Record("d3", "about c", file, 3)]
    assert list(task.corpus.read()) == list(task.corpus.read()) == expected
    assert task.corpus.ids == ["d1", "d2", "d3"]


@pytest.mark.parametrize("form", ["plain", "gz", "csv", "parquet"])
def test_every_format_gives_the_same_task(tree, form):
    table = "_id,title,text\nd1,A,about a\nd2,,about b\nd3,,about c\n"
    files = {
        "plain": {"corpus.jsonl": CORPUS, "queries.jsonl": QUERIES, "qrels/test.tsv": QRELS},
        "gz": {"corpus.jsonl.gz": CORPUS, "queries.jsonl.gz": QUERIES, "qrels/test.tsv.gz": QRELS},
        "csv": {"corpus.csv": table, "queries.tsv": "id\tquery\nq1\twhat is a\nq2\twhat is b\n", "qrels.tsv": QRELS},
        "parquet": {"queries.jsonl": QUERIES, "qrels/test.csv": QRELS.replace("\t", ",")},
    }
    root = tree(files[form])
    if form == "parquet":
        pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        rows = [{"title": None} | row for row in CORPUS]
        parquet.write_table(pa.Table.from_pylist(rows), root / "corpus.parquet")
    task = read(root)
    assert task.split == "test" and task.qrels == {"q1": {"d1": 1, "d2": 0}, "q2": {"d2": 2}}
    assert [record.text for record in task.corpus.read()] == ["A about a", "about b", "about c"]
    digest = hashlib.sha256()
    for part in ("d1", "A about a", "d2", "about b", "d3", "about c"):
        digest.update(f"{len(part)}:{part}".encode())
    assert task.corpus.digest == digest.hexdigest()


def test_digest_and_fingerprint_follow_ids_and_texts(beir):
    first = read(beir())
    moved = read(beir(corpus_jsonl=[{"_id": "d1A", "text": "about a"}, *CORPUS[1:], CORPUS[0]]))
    assert moved.corpus.digest != first.corpus.digest and moved.fingerprint != first.fingerprint


def test_splits_share_the_queries(beir):
    header = "query-id\tcorpus-id\tscore\n"
    root = beir(qrels__test_tsv=f"{header}q1\td1\t1\n", qrels__dev_tsv=f"{header}q2\td2\t1\n")
    assert list(read(root).qrels) == ["q1"] and read(root).exclusions == ()
    assert list(read(root, split="dev").qrels) == ["q2"]
    assert list(read(root, split="validation").qrels) == ["q2"]
    with pytest.raises(DataError, match=r"no split 'trial'; it has dev, test"):
        read(root, split="trial")


def test_task_that_mteb_scores_without_identical_ids(beir, tmp_path):
    beir().rename(tmp_path / "ArguAna")
    assert read(tmp_path / "ArguAna").skip_identical_ids


def test_unknown_ids_are_counted(beir):
    extra = "q1\tnowhere\t1\nq9\td1\t1\n"
    root = beir(qrels__test_tsv=QRELS + extra)
    task = read(root)
    assert left_out(task) == {"judgements of unknown documents": 1, "judgements of unknown queries": 1}
    assert task.exclusions[0].examples == (f"nowhere in {root}/qrels/test.tsv, line 5",)
    assert task.qrels == {"q1": {"d1": 1, "d2": 0}, "q2": {"d2": 2}}


def test_nothing_left_says_why(beir):
    with pytest.raises(DataError, match=r"leaves nothing to evaluate: 2 judgements of unknown documents.*such as d1"):
        read(beir(qrels__test_tsv="query-id\tcorpus-id\tscore\nq1\tX1\t1\nq2\tX2\t1\n"))


def test_queries_that_cannot_be_scored_are_counted(beir):
    queries = [*QUERIES, {"_id": "q3", "text": " "}, {"_id": "q4", "text": "no"}, {"_id": "q5", "text": "unjudged"}]
    task = read(beir(queries_jsonl=queries, qrels__test_tsv=f"{QRELS}q3\td1\t1\nq4\td1\t0\n"))
    assert left_out(task) == {
        "queries without a judgement": 1, "queries that are empty": 1, "queries without a relevant document": 1,
    }  # fmt: skip
    assert list(task.qrels) == list(task.queries) == ["q1", "q2"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corpus_jsonl": [*CORPUS, {"_id": "d2", "text": "x"}]}, r"corpus.jsonl: lines 2 and 4 .* document id 'd2'"),
        ({"queries_jsonl": [*QUERIES, QUERIES[0]]}, r"queries.jsonl: lines 1 and 3 .* query id 'q1'"),
        (
            {"corpus_jsonl": [*CORPUS, {"_id": "d4", "text": None}]},
            r"corpus.jsonl, line 4: the field text must be a st",
        ),
        ({"corpus_jsonl": [*CORPUS, {"text": "x"}]}, r"corpus.jsonl, line 4: no field _id; it has text"),
        ({"corpus_jsonl": [*CORPUS, {"_id": "", "text": "x"}]}, r"line 4: the id _id must be a string or a whole numb"),
        ({"corpus_jsonl": [{"_id": "d1", "body": "x"}]}, r"corpus.jsonl has no text: it has the fields _id, body"),
        ({"corpus_jsonl": [{"text": "x"}]}, r"corpus.jsonl has no id"),
        ({"corpus_jsonl": ""}, r"corpus.jsonl is empty"),
        ({"queries_jsonl": "{bad\n"}, r"queries.jsonl, line 1: not valid JSON"),
        ({"qrels__test_tsv": "q1\td1\t1\n"}, r"test.tsv is empty|judgements begin with a header query-id, corpus-id"),
        ({"qrels__test_tsv": "q1\td1\t1\nq2\td2\t1\n"}, r"test.tsv begins with q1, d1, 1; judgements begin with a he"),
        ({"qrels__test_tsv": QRELS + "q2\td1\thigh\n"}, r"test.tsv, line 5: the field score must be a number, not 'hi"),
        ({"qrels__test_tsv": QRELS + "q2\td1\tnan\n"}, r"test.tsv, line 5: the field score must be a number"),
        ({"qrels__test_tsv": QRELS + "q2\td1\t0.5\n"}, r"test.tsv, line 5: the score must be a whole number, not 0.5"),
        ({"qrels__test_tsv": QRELS + "q1\td1\t0\n"}, r"test.tsv, line 5: document d1 has the relevance 0 .* it has 1"),
        ({"qrels__test_tsv": QRELS + "q2\td1\n"}, r"test.tsv, line 5: it has 2 columns, the header has 3"),
        ({"qrels__test_tsv": None}, r"It looks like retrieval, without qrels"),
        ({"corpus_jsonl": None}, r"It looks like retrieval, without corpus"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_line(beir, changes, message):
    with pytest.raises(DataError, match=message):
        read(beir(**changes))


def test_repeated_judgement_counts_once(beir):
    assert read(beir(qrels__test_tsv=f"{QRELS}q1\td1\t1\n")).qrels["q1"] == {"d1": 1, "d2": 0}


def test_numbers_as_ids(beir):
    task = read(
        beir(
            corpus_jsonl=[{"_id": 1, "text": "x"}], queries_jsonl=[{"_id": 7, "text": "y"}],
            qrels__test_tsv="query_id\tcorpus_id\trelevance\n7\t1\t1.0\n",
        )
    )  # fmt: skip
    assert task.qrels == {"7": {"1": 1}}


def test_documents_without_text_stay(beir, caplog):
    with caplog.at_level(logging.WARNING, "bgekit"):
        task = read(beir(corpus_jsonl=[*CORPUS, {"_id": "d4", "title": "", "text": ""}]))
    assert "corpus.jsonl: 1 documents have no text" in caplog.text
    assert len(task.corpus) == 4 and task.exclusions == ()


@pytest.mark.parametrize("part", ["corpus", "queries"])
def test_truncated_gz(beir, tree, part):
    rows = [{"_id": f"x{i}", "text": hashlib.sha256(b"%d" % i).hexdigest()} for i in range(5000)]
    root = beir(**{f"{part}_jsonl": None})
    whole = tree({f"{part}.jsonl.gz": rows}) / f"{part}.jsonl.gz"
    whole.write_bytes(whole.read_bytes()[:-2000])
    with pytest.raises(DataError, match=rf"{root}/{part}.jsonl.gz is damaged or cut off after line \d+"):
        read(root)


def test_corpus_that_changes_is_noticed(beir):
    root = beir()
    task = read(root)
    (root / "corpus.jsonl").write_text(jsonl(CORPUS[:2]))
    with pytest.raises(DataError, match="has changed since it was checked"):
        list(task.corpus.read())


def test_corpus_is_not_held_in_memory(beir):
    rows = [{"_id": f"d{i}", "text": f"{i} " + "x" * 4000} for i in range(5000)]
    root = beir(corpus_jsonl=rows)
    del rows
    tracemalloc.start()
    task = read(root)
    assert sum(1 for _ in task.corpus.read()) == 5000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4e6  # of 20 MB


# --- FlagEmbedding 1.4


@pytest.fixture
def split_files(tree):
    corpus = [{"id": "d1", "title": "A", "text": "about a"}, {"id": "d2", "title": None, "text": "about b"}]
    return tree(
        {
            "corpus.jsonl": corpus,
            "test_queries.jsonl": [{"id": "q1", "text": "a?"}, {"id": "q9", "text": "unjudged"}],
            "test_qrels.jsonl": [{"qid": "q1", "docid": "d1", "relevance": 1}],
            "dev_queries.jsonl": [{"id": "q2", "text": "b?"}],
            "dev_qrels.jsonl": [{"qid": "q2", "docid": "d2", "relevance": 1}],
        }
    )


def test_flagembedding_1_4(split_files):
    task = read(split_files)
    assert (task.split, task.qrels, task.query_instruction) == ("test", {"q1": {"d1": 1}}, True)
    assert left_out(task) == {"queries without a judgement": 1}
    assert [record.text for record in task.corpus.read()] == ["A about a", "about b"]
    assert read(split_files, split="dev").qrels == {"q2": {"d2": 1}}
    with pytest.raises(DataError, match="no split 'train'; it has dev, test"):
        read(split_files, split="train")


# --- FlagEmbedding 1.2


@pytest.mark.parametrize("names", [("corpus.json", "query.json"), ("a.jsonl", "test_queries.jsonl")])
def test_flagembedding_1_2(tree, names):
    corpus = [{"content": text} for text in ("A is ...", "B is ...", "other", "A is ...")]
    queries = [{"query": "A?", "positive": ["A is ...", "gone"]}, {"query": "B?", "positive": "B is ..."},
               {"query": "C?", "positive": ["nowhere"]}, {"query": "", "positive": ["other"]}]  # fmt: skip
    task = read(tree(dict(zip(names, (corpus, queries), strict=True))))
    assert (task.split, task.query_instruction) == ("test", True)
    assert task.corpus.ids == ["0", "1", "2", "3"]
    assert task.qrels == {"0": {"0": 1, "3": 1}, "1": {"1": 1}}
    assert left_out(task) == {
        "positives that are not in the corpus": 2, "queries without a relevant document": 1,
        "queries that are empty": 1,
    }  # fmt: skip


def test_flagembedding_1_2_by_its_query_file(tree):
    queries = [{"query": "A?", "positive": ["a"]}]
    root = tree({"corpus.json": [{"content": "a"}], "dev.json": queries, "test.json": [*queries, *queries]})
    assert len(read(root).qrels) == 2 and len(read(root, split="dev").qrels) == 1
    assert len(read(root / "dev.json").qrels) == 1


def test_flagembedding_1_2_without_corpus(tree):
    with pytest.raises(DataError, match=r"query.json fits no known form.*fields query, positive(?s:.*)\{\"content\""):
        read(tree({"query.json": [{"query": "A?", "positive": ["a"]}]}))


# --- a data set's own documents as queries

OWN = [{"_id": "d1", "text": "about a"}, {"_id": "q2", "text": "another matter"}]
OWN_QRELS = "query-id\tcorpus-id\tscore\nd1\td2\t1\nq2\td3\t1\n"


@pytest.mark.parametrize(
    ("name", "facts", "skips", "told"),
    [
        (
            "mine",
            None,
            False,
            r"1 query has the id of a document.*the same in 1 of 1: say \"skip_identical_ids\": true",
        ),
        (
            "mine",
            {"skip_identical_ids": True},
            True,
            r"which is left out of what was found for it \(skip_identical_ids\)",
        ),
        ("mine", {"ignore_identical_ids": True}, True, r"which is left out"),
        ("mine", {"skip_identical_ids": False}, False, r"ranked as any other \(no skip_identical_ids\)"),
        ("arguana", None, True, "which is left out"),
        ("arguana", {"skip_identical_ids": False}, False, r"ranked as any other \(no skip_identical_ids\)"),
        ("fiqa", None, True, "which is left out"),
        ("datasets--mteb--fiqa", None, True, "which is left out"),
        ("SciFact", None, False, r"ranked as any other \(no skip_identical_ids\)"),
    ],
)
def test_documents_with_the_id_of_a_query(tree, tmp_path, caplog, name, facts, skips, told):
    files = {"corpus.jsonl": CORPUS, "queries.jsonl": OWN, "qrels/test.tsv": OWN_QRELS}
    if facts:
        files["dataset.json"] = {"task_type": "retrieval", **facts}
    task = read(tree(files).rename(tmp_path / name))
    assert task.skip_identical_ids is skips and len(task.notes) == 1 and re.search(told, task.notes[0])
    # Where it is settled it is said, and not warned of.
    assert ("say" in task.notes[0]) == ("has the id of a document" in caplog.text)


def test_nothing_is_said_where_no_query_has_the_id_of_a_document(beir):
    assert read(beir()).notes == ()
