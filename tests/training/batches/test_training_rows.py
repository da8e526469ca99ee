"""Rows of training data: what is accepted, what is refused and how, and what a row becomes when it is drawn."""

import gzip
import json
import math
import os
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgekit.data import training_rows as store
from bgekit.data.columns import Line
from bgekit.data.formats import BadRow
from bgekit.data.training_rows import LONGEST_ROW, Row, text_key
from bgekit.data.training_rows import row_of as row_of_line
from bgekit.errors import ArgumentError, DataError, OutputError
from bgekit.training.batches.sampler import Sampling

from ..conftest import row, scored, to_jsonl

FULL = {
    "query": "q", "pos": ["a", "b"], "neg": ["c"], "pos_scores": [1, 2.5], "neg_scores": [-3], "prompt": "Find: ",
    "type": "normal", "batch_size": 4, "id": 7,
}  # fmt: skip


# --- one row


def row_of(fields):
    return row_of_line(Line("train.jsonl", 1, fields))


def test_all_fields():
    assert row_of(FULL) == Row(
        "q", ("a", "b"), ("c",), (1.0, 2.5), (-3.0,), prompt="Find: ", type="normal", batch_size=4
    )


@pytest.mark.parametrize("missing", [{}, {"neg": None, "pos_scores": None, "prompt": None, "type": None}, {"neg": []}])
def test_only_query_and_positives_are_needed(missing):
    assert row_of({"query": "q", "pos": ["a"], **missing}) == Row("q", ("a",))


def test_a_scored_pair():
    assert row_of({"query": "q", "pos": ["a"], "score": 3}).score == 3.0


def test_a_scored_pair_of_sentences_has_one_prompt_for_both_or_none():
    pair = {"sentence1": "a", "sentence2": "b", "score": 4.2, "label": "x"}
    assert row_of(pair) == Row("a", ("b",), prompt="", type="symmetric_sts", score=4.2)
    assert row_of(pair | {"prompt": "Compare: "}).prompt == "Compare: "
    for change, message in (({"score": "x"}, "score must"), ({"sentence2": ""}, "sentence2 is an empty string")):
        with pytest.raises(BadRow, match=message):
            row_of(pair | change)
    with pytest.raises(BadRow, match="no field score"):
        row_of({"sentence1": "a", "sentence2": "b"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": None}, "query must be a string, not null"),
        ({"query": 5}, "query must be a string, not 5 (int)"),
        ({"query": " \n"}, "query is blank"),
        ({"query": ""}, "query is an empty string"),
        ({"pos": []}, "pos is empty"),
        ({"pos": [""]}, "pos[0] is an empty string"),
        ({"pos": "a text"}, "pos must be a list of strings, not 'a text' (str)"),
        ({"pos": ["a", 1]}, "pos[1] must be a string, not 1 (int)"),
        ({"neg": ["c", None]}, "neg[1] must be a string, not null"),
        ({"neg": {"c": 1}}, "neg must be a list"),
        ({"pos_scores": [1]}, "pos_scores has 1 numbers for 2 texts in pos"),
        ({"neg_scores": [1, 2]}, "neg_scores has 2 numbers for 1 texts in neg"),
        ({"neg_scores": [math.nan]}, "neg_scores[0] must be a finite number, not nan"),
        ({"pos_scores": [1, math.inf]}, "pos_scores[1] must be a finite number, not inf"),
        ({"pos_scores": [1, 10**400]}, "pos_scores[1] must be a finite number"),
        ({"pos_scores": [1, "2"]}, "pos_scores[1] must be a number, not '2' (str)"),
        ({"pos_scores": [1, True]}, "pos_scores[1] must be a number"),
        ({"pos_scores": 1}, "pos_scores must be a list of numbers"),
        ({"prompt": 3}, "prompt must be a string"),
        ({"type": ["x"]}, "type must be a string"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1"),
        ({"batch_size": 2.0}, "batch_size must be a whole number of at least 1"),
        ({"score": 1.0}, "a scored pair"),
        ({"neg": ["x" * (LONGEST_ROW + 1)]}, "its texts have 8,388,6"),
    ],
)
def test_bad_rows_say_why(change, message):
    with pytest.raises(BadRow) as problem:
        row_of(FULL | change)
    assert message in str(problem.value)


@pytest.mark.parametrize("name", ["query", "pos"])
def test_missing_fields_are_named_with_those_there_are(name):
    with pytest.raises(BadRow, match=f"no field {name}; it has .*neg"):
        row_of({key: value for key, value in FULL.items() if key != name})


def test_lone_surrogates_are_replaced():
    assert row_of({"query": "a\ud800", "pos": ["\ud83d\ude00"]}) == Row("a\ufffd", ("\U0001f600",))


def test_keys_are_equal_up_to_case_and_white_space():
    assert text_key(" A  b\n") == text_key("a B") != text_key("ab")
    assert -(2**63) <= text_key("x") < 2**63


# --- drawing


ROWS = st.builds(
    lambda positives, negatives, index, kind: Row(
        "q", tuple(map(str, range(positives))), tuple(f"n{i}" for i in range(negatives)),
        tuple(map(float, range(positives))), tuple(-1.0 - i for i in range(negatives)), type=kind, index=index,
    ),
    st.integers(1, 4), st.integers(0, 12), st.integers(0, 1 << 40),
    st.sampled_from([None, "normal", "only_1neg", "symmetric_class", "symmetric_sts"]),
)  # fmt: skip


@given(ROWS, st.integers(1, 10), st.integers(0, 1000), st.integers(0, 50), st.booleans())
def test_examples(row, group, seed, visit, repeat):
    sampling = Sampling(group, repeat, teacher=True, seed=seed)
    example = sampling.draw(row, visit)
    assert example == sampling.draw(row, visit)
    positive, *negatives = example.passages
    assert positive == row.positives[example.positive]
    wanted = {"only_1neg": 1, "symmetric_class": min(group - 1, len(row.negatives))}.get(row.type, group - 1)
    count = wanted if repeat else min(wanted, len(row.negatives))
    assert len(negatives) == (count if row.negatives else 0)
    if negatives:
        often = [negatives.count(text) for text in row.negatives]
        assert sum(often) == len(negatives) and max(often) - min(often) <= 1
    assert example.teacher is not None
    scores = dict(zip((*row.positives, *row.negatives), (*row.pos_scores, *row.neg_scores), strict=True))
    assert list(example.teacher) == [scores[text] for text in example.passages]


def test_every_positive_and_negative_is_drawn():
    one = Row("q", ("a", "b", "c"), tuple(map(str, range(10))), index=3)
    examples = [Sampling(4).draw(one, visit) for visit in range(200)]
    assert {example.positive for example in examples} == {0, 1, 2}
    assert {text for example in examples for text in example.passages[1:]} == set(one.negatives)
    assert len({example.passages for example in examples}) > 150


def test_seed_and_index_change_the_draw():
    negatives = tuple(map(str, range(100)))
    rows = [Row("q", ("a",), negatives, index=index) for index in (0, 1)]
    drawn = {Sampling(8, seed=seed).draw(one, 0).passages for seed in (0, 1) for one in rows}
    assert len(drawn) == 4


def test_no_teacher_unless_asked_for_and_complete():
    assert Sampling(2).draw(Row("q", ("a",), ("b",), (1.0,), (2.0,)), 0).teacher is None
    assert Sampling(2, teacher=True).draw(Row("q", ("a",), ("b",), (1.0,)), 0).teacher is None
    assert Sampling(2, teacher=True).draw(Row("q", ("a",), (), (1.0,)), 0).teacher == (1.0,)


def test_shuffled_positives_keep_their_words():
    text = " ".join(f"word{i}" for i in range(40))
    drawn = {Sampling(1, shuffle_ratio=1.0).draw(Row("q", (text,)), visit).passages[0] for visit in range(50)}
    assert len(drawn) == 6
    assert all(sorted(one.replace(" ", "")) == sorted(text.replace(" ", "")) for one in drawn)
    short = Row("q", ("short",))
    assert Sampling(1, shuffle_ratio=1.0).draw(short, 0).passages == ("short",)
    assert Sampling(1, shuffle_ratio=0.0).draw(Row("q", (text,)), 0).passages == (text,)


@pytest.mark.parametrize("options", [{"group_size": 0}, {"shuffle_ratio": 2}, {"seed": -1}])
def test_impossible_sampling(options):
    with pytest.raises(ArgumentError):
        Sampling(**options)


# --- files


def test_rows_of_a_file(write, load):
    data = load(write("a.jsonl", [FULL, row(1), {"query": "中文", "pos": ["é"]}]))
    assert len(data) == 3
    assert data[0] == Row("q", ("a", "b"), ("c",), (1.0, 2.5), (-3.0,), "Find: ", "normal", None, 4, 0, 0)
    assert data[2] == data[-1] == Row("中文", ("é",), index=2)
    assert [one.index for one in data[1:]] == [1, 2]
    with pytest.raises(IndexError):
        data[3]


def test_gzip_blank_lines_and_bom(write, load):
    content = to_jsonl([row(0)]) + "\n" + to_jsonl([row(1)])
    zipped = load(write("a.jsonl.gz", gzip.compress(content.encode())))
    assert [one.query for one in zipped] == ["query 0", "query 1"]
    assert zipped.place(1).endswith("a.jsonl.gz, line 3")
    assert len(load(write("b.json", b"\xef\xbb\xbf" + content.encode()))) == 2


def test_many_rows_at_random(write, load):
    data = load(
        write("a.jsonl", [row(i, i % 5) for i in range(700)]), write("b.jsonl", [row(i) for i in range(700, 900)])
    )
    assert len(data) == 900
    for index in (0, 127, 128, 699, 700, 899, 512):
        assert data[index].query == f"query {index}"
        assert data[index].index == index
    assert data[700].dataset == 1
    assert data.place(700).endswith("b.jsonl, line 1")


def test_data_can_be_pickled(write, load):
    data = load(write("a.jsonl", [row(i) for i in range(3)]))
    assert list(pickle.loads(pickle.dumps(data))) == list(data)


def test_all_bad_lines_are_reported(write, load):
    lines = [json.dumps(row(0)), "{broken", json.dumps({"query": "q", "pos": []}), '["a"]', json.dumps(row(1))]
    first = write("a.jsonl", "\n".join(lines))
    second = write("b.jsonl", to_jsonl([row(0, pos_scores=[math.nan])]))
    with pytest.raises(DataError) as error:
        load(first, second)
    message = str(error.value)
    assert message.startswith("4 problems in the training data:")
    assert f"{first}, line 2: not valid JSON" in message
    assert f"{first}, line 3: pos is empty" in message
    assert f"{first}, line 4: a JSON object is expected" in message
    assert f"{second}, line 1: pos_scores[0] must be a finite number, not nan" in message
    assert "nothing was trained" in message and '{"query"' in message


def test_ten_are_shown_and_the_rest_counted(write, load):
    with pytest.raises(DataError) as error:
        load(write("a.jsonl", [{"query": i, "pos": ["a"]} for i in range(50)]))
    assert str(error.value).count("query must be a string") == 10
    assert "50 problems" in str(error.value) and "... and 40 more" in str(error.value)


def test_wrong_encodings(write, load):
    good = to_jsonl([row(0)]).encode()
    latin = write("latin.jsonl", good + '{"query": "é", "pos": ["a"]}\n'.encode("latin-1"))
    wide = write("wide.jsonl", to_jsonl([row(0)]).encode("utf-16"))
    with pytest.raises(DataError) as error:
        load(latin, wide)
    assert f"{latin}, line 2: not valid UTF-8: byte 0xe9" in str(error.value)
    assert f"{wide} is UTF-16" in str(error.value)


def test_a_line_of_ten_megabytes(write, load):
    path = write("a.jsonl", [row(0), row(1, pos=["x" * 10_000_000])])
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: its texts have 10,000,0\d\d bytes"):
        load(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "[\n{}\n]", "line 2: no field query"),
        ("a.txt", "plain\n", "line 1: no field query"),
        ("a.csv", "query,pos\nq,p\n", "line 2: pos must be a list"),
        ("a.jsonl.gz", "not zipped", "is not gzipped"),
        ("a.jsonl.gz", gzip.compress(to_jsonl([row(0)] * 100).encode(), mtime=0)[:-20], "is damaged or cut off"),
    ],
)
def test_files_of_other_forms(write, load, name, content, message):
    with pytest.raises(DataError, match=message):
        load(write(name, content))


def test_scored_pairs_do_not_mix_with_other_rows(write, load):
    pair = {"query": "q", "pos": ["a"], "score": 0.5}
    assert load(write("pairs.jsonl", [pair, pair])).datasets[0].scored
    with pytest.raises(DataError, match=r"line 3: it has no score, other than line 1"):
        load(write("a.jsonl", [pair, pair, row(1), row(2)]))


def test_empty_data(write, load):
    with pytest.raises(DataError, match="there is no row"):
        load(write("a.jsonl", ""))
    data = load(write("a.jsonl", ""), write("b.jsonl", [row(0)]))
    assert len(data) == 1 and "a.jsonl is empty" in data.warnings[0]


def test_missing_paths(write, load, tmp_path):
    with pytest.raises(DataError, match="there is no training data at nowhere"):
        load("nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty has no training data"):
        load(tmp_path / "empty")


def test_distillation_needs_scores(write, load):
    complete = write("a.jsonl", [scored(1), scored(2)])
    assert load(complete, teacher=True).datasets[0].teacher
    assert not load(complete).datasets[0].teacher
    partly = write("b.jsonl", [scored(1), row(2), scored(3, neg_scores=None)])
    for same_dataset in (False, True):
        with pytest.raises(DataError) as error:
            load(partly, teacher=True, same_dataset=same_dataset)
        assert "line 2: no pos_scores and neg_scores, which knowledge distillation needs" in str(error.value)
        assert "line 3" in str(error.value) and "2 problems" in str(error.value)
    without = write("c.jsonl", [row(1)])
    with pytest.raises(DataError, match=r"c\.jsonl, line 1"):
        load(complete, without, teacher=True)
    data = load(complete, without, teacher=True, same_dataset=True)
    assert [dataset.teacher for dataset in data.datasets] == [True, False]


# --- the cache


def test_checked_files_are_found_again_by_content(write, load, tmp_path, monkeypatch):
    path = write("a.jsonl", [row(0), row(1)])
    load(path)
    written = list((tmp_path / "cache").iterdir())
    assert [file.suffix for file in written] == [".arrow"]
    with monkeypatch.context() as patch:
        patch.setattr(store, "_write", None)  # Not called again, also for a copy with another name.
        assert len(load(path)) == len(load(write("copy.jsonl", [row(0), row(1)]))) == 2
    times = os.stat(path)
    changed = write("a.jsonl", [row(0), row(2)])  # As many bytes, at the same time.
    os.utime(changed, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert load(changed)[1].query == "query 2"


def test_bad_files_leave_nothing(write, load, tmp_path):
    with pytest.raises(DataError):
        load(write("a.jsonl", [row(0), {"query": "q"}]))
    assert not list((tmp_path / "cache").iterdir())


def test_a_damaged_cache_is_made_anew(write, load, tmp_path):
    path = write("a.jsonl", [row(i) for i in range(300)])
    load(path)
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(file.read_bytes()[:1000])
    assert len(load(path)) == 300


def test_an_interruption_leaves_nothing_half_written(write, load, tmp_path, monkeypatch):
    path = write("a.jsonl", [row(0)])

    def interrupted(source, temporary, *_):
        temporary.write(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store, "_write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load(path)
    assert not list((tmp_path / "cache").iterdir())
    abandoned = tmp_path / "cache" / "old.arrow.1-2.tmp"
    abandoned.write_bytes(b"half")
    os.utime(abandoned, (0, 0))
    load(path)
    assert [file.suffix for file in (tmp_path / "cache").iterdir()] == [".arrow"]


def test_a_full_disk_is_said(write, load, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "_write", full)
    with pytest.raises(OutputError, match=r"No space left on device.*--cache-path"):
        load(write("a.jsonl", [row(0)]))


# --- datasets


def test_folders_and_names(write, load, tmp_path):
    write("all/b.jsonl", [row(0)])
    write("all/a.jsonl", [row(1)])
    write("all/dataset.json", "{\n}")
    write("all/README.md", "read")
    write("all/.hidden.jsonl", "broken")
    write("all/classes-no_in_batch_neg/c.jsonl", [row(2)])
    write("all/d-no_in_batch_neg.jsonl.gz", gzip.compress(to_jsonl([row(3)]).encode()))
    data = load(tmp_path / "data" / "all", weights=[2.5])
    found = [(dataset.spec.name, dataset.spec.in_batch_negatives) for dataset in data.datasets]
    assert found == [
        ("all/a.jsonl", True), ("all/b.jsonl", True), ("all/d-no_in_batch_neg.jsonl.gz", False),
        ("all/classes-no_in_batch_neg/c.jsonl", False),
    ]  # fmt: skip
    assert {dataset.spec.weight for dataset in data.datasets} == {2.5}
    inside = load(tmp_path / "data" / "all" / "classes-no_in_batch_neg")
    assert not inside.datasets[0].spec.in_batch_negatives
    assert not load(write("e.jsonl", [row(0)]), in_batch_negatives=False).datasets[0].spec.in_batch_negatives


def test_files_of_one_name_go_by_their_paths(write, load):
    paths = write("x/train.jsonl", [row(0)]), write("y/train.jsonl", [row(1)]), write("z.jsonl", [row(2)])
    assert [dataset.spec.name for dataset in load(*paths).datasets] == [paths[0], paths[1], "z.jsonl"]


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [1.0, -1.0], [1.0, math.nan], [1.0, math.inf]])
def test_impossible_weights(write, load, weights):
    with pytest.raises(ArgumentError):
        load(write("a.jsonl", [row(0)]), write("b.jsonl", [row(0)]), weights=weights)


def test_small_datasets_of_a_folder_are_put_together(write, load, tmp_path):
    sizes = {"f/a": 10, "f/b": 3, "f/c": 2, "g/d": 1, "g/e": 1}
    for name, size in sizes.items():
        write(f"{name}.jsonl", [row(i, query=f"{name} {i}") for i in range(size)])
    folders = [tmp_path / "data" / name for name in "fg"]
    data = load(*folders, same_dataset=True, small_threshold=5, drop_threshold=3)
    assert [(dataset.spec.name, len(dataset)) for dataset in data.datasets] == [("f/a.jsonl", 10), ("f (2 small)", 5)]
    assert data[10].query == "f/b 0" and data[13].query == "f/c 0" and data[13].dataset == 1
    assert "2 rows, fewer than drop_threshold=3" in data.warnings[0]
    assert len(load(*folders, small_threshold=5, drop_threshold=3).datasets) == 5


def test_type_and_batch_size_of_the_first_row(write, load):
    data = load(write("a.jsonl", [row(0, type="symmetric_sts", batch_size=6), row(1)]), write("b.jsonl", [row(2)]))
    first, second = (dataset.spec for dataset in data.datasets)
    assert (first.type, first.batch_size, first.symmetric) == ("symmetric_sts", 6, True)
    assert (second.type, second.batch_size, second.symmetric) == (None, None, False)


def test_duplicates(write, load):
    paths = write("a.jsonl", [row(0), row(1), row(0)]), write("b.jsonl", [row(1), row(1, prompt="p"), row(2, 2)])
    kept = load(*paths)
    assert kept.duplicates == 2 and "2 rows are equal to an earlier one" in kept.warnings[0]
    assert [dataset.rows.tolist() for dataset in kept.datasets] == [[0, 1, 2], [3, 4, 5]]
    dropped = load(*paths, drop_duplicates=True)
    assert [dataset.rows.tolist() for dataset in dropped.datasets] == [[0, 1], [4, 5]]
    assert dropped[4].prompt == "p"
    whole = load(paths[0], paths[0], drop_duplicates=True)
    assert [len(dataset) for dataset in whole.datasets] == [2, 0]
    assert whole[3].index == 3 and whole[3].dataset == 1


def test_most_rows_of_a_dataset(write, load):
    paths = write("a.jsonl", [row(i) for i in range(50)]), write("b.jsonl", [row(i) for i in range(50, 55)])
    data = load(*paths, max_rows=10, seed=1)
    chosen = data.datasets[0].rows.tolist()
    assert len(set(chosen)) == 10 and chosen == sorted(chosen) and max(chosen) < 50
    assert data.datasets[1].rows.tolist() == [50, 51, 52, 53, 54]
    assert load(*paths, max_rows=10, seed=1).datasets[0].rows.tolist() == chosen
    assert load(*paths, max_rows=10, seed=2).datasets[0].rows.tolist() != chosen
    with pytest.raises(ArgumentError):
        load(*paths, max_rows=0)


def test_the_fingerprint_follows_content_and_selection(write, load):
    path = write("a.jsonl", [row(i) for i in range(9)])
    prints = [load(path).fingerprint, load(path, max_rows=3).fingerprint, load(path, path).fingerprint]
    assert len(set(prints)) == 3
    assert load(write("copy.jsonl", [row(i) for i in range(9)])).fingerprint == prints[0]


# --- real files


@pytest.mark.parametrize(
    ("parts", "rows"),
    [
        (("SciFact", "train.jsonl"), 807),
        (("AFQMC", "train_bge.jsonl"), 10573),
        (("SimCLUE", "train.jsonl"), 10000),
        (("BGEFinetuneDataSTSB", "train.jsonl.gz"), 2701),
    ],
)
def test_real_files(shared_path, load, parts, rows):
    data = load(shared_path("data", *parts))
    assert len(data) == rows
    assert data[rows - 1].positives


def test_the_examples_of_flagembedding(shared_path, load):
    folder = shared_path("data", "flagembedding_examples", "examples", "finetune", "embedder", "example_data")
    data = load(folder, teacher=True, same_dataset=True)
    found = {dataset.spec.name.rpartition("/")[2]: dataset for dataset in data.datasets}
    assert len(found) == 8 and all(len(dataset) == 10 for dataset in found.values())
    assert not found["arXiv_title.jsonl"].spec.in_batch_negatives and found["nq.jsonl"].spec.in_batch_negatives
    assert found["nli.jsonl"].spec.type == "only_1neg" and found["sts.jsonl"].spec.symmetric
    assert found["msmarco.jsonl"].teacher and not found["sts.jsonl"].teacher


def test_training_data_in_another_encoding(write, load):
    path = write("gbk.jsonl", json.dumps({"query": "哪里", "pos": ["这里是答案"]}, ensure_ascii=False).encode("gbk"))
    with pytest.raises(DataError, match="--encoding gb18030 reads it"):
        load(path)
    assert load(path, encoding="gb18030")[0].positives == ("这里是答案",)
