"""Batches: what the model sees, keys and labels, and equal batches for any number of processes and workers."""

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from bgekit.data.training_rows import Row
from bgekit.errors import ArgumentError
from bgekit.inference.tokenization import TextTokenizer
from bgekit.models.card import Prompt
from bgekit.models.card_reading import read_card
from bgekit.training.batches.collator import Collator, StepDataset
from bgekit.training.batches.sampler import PlanOptions, Sampling

from ..conftest import row, scored


@pytest.fixture
def collator(tokenizer):
    return lambda **options: Collator(tokenizer, **{"query_max_len": 64, "passage_max_len": 64} | options)


@pytest.fixture
def steps(write, load, collator):
    """Steps on rows: `steps(rows, PlanOptions(4), rank=1, world=2)`."""

    def steps(rows, options=PlanOptions(4), *, sampling=Sampling(3), rank=0, world=1, load_options=None, **collating):  # noqa: B008
        data = load(write("a.jsonl", rows), **load_options or {})
        return StepDataset(data, options, sampling, collator(**collating), rank=rank, world=world)

    return steps


def sequences(packed):
    return [part.tolist() for part in packed.input_ids.split(list(packed.lengths))] if packed.lengths else []


def draw(*rows, group=3, teacher=False):
    return [Sampling(group, teacher=teacher).draw(one, 0) for one in rows]


def ids(tokenizer, text, prompt=Prompt(), length=64):
    return TextTokenizer(tokenizer, prompt, length)([text]).ids[0]


# --- what the model sees


def test_texts_as_the_model_sees_them(collator, tokenizer):
    query, passage = Prompt("search the query: "), Prompt("doc: ")
    batch = collator(query_prompt=query, passage_prompt=passage)(
        draw(Row("a cat", ("the dog",), ("a bird", "tree")), Row("river", ("green",), index=1)), size=2
    )
    assert sequences(batch.queries) == [ids(tokenizer, "a cat", query), ids(tokenizer, "river", query)]
    assert batch.groups == (3, 1) and len(batch) == 2 and batch.rows == (0, 1)
    passages = sequences(batch.passages)
    assert passages[0] == ids(tokenizer, "the dog", passage) and passages[3] == ids(tokenizer, "green", passage)
    assert sorted(passages[1:3]) == sorted(ids(tokenizer, text, passage) for text in ("a bird", "tree"))
    assert batch.tokens == sum(batch.queries.lengths) + sum(batch.passages.lengths)
    assert (batch.size, batch.offset, batch.in_batch) == (2, 0, True)
    assert batch.teacher is None and batch.scores is None and batch.queries.skip is None


def test_a_rows_prompt_stands_in_for_the_models(collator, tokenizer):
    rows = [Row("cat", ("dog",), prompt=prompt, index=i) for i, prompt in enumerate(["find", "", None])]
    batch = collator(query_prompt=Prompt("query: "), query_format="{} | {}")(draw(*rows), size=3)
    expected = ["find | cat", "cat", "query: cat"]
    assert sequences(batch.queries) == [ids(tokenizer, text) for text in expected]
    assert sequences(batch.passages) == [ids(tokenizer, "dog")] * 3


def test_none_never_becomes_text(collator, tokenizer):
    batch = collator(query_format="Instruct: {}\\nQuery: {}")(draw(Row("cat", ("dog",))), size=1)
    assert sequences(batch.queries) == [ids(tokenizer, "cat")]
    batch = collator(query_format="Instruct: {}\\nQuery: {}")(draw(Row("cat", ("dog",), prompt="find")), size=1)
    assert sequences(batch.queries) == [ids(tokenizer, "Instruct: find\nQuery: cat")]


def test_prompts_with_a_suffix_survive_truncation(collator, tokenizer):
    batch = collator(query_format="<{}>{}</>", query_max_len=12)(
        draw(Row("cat " * 50, ("dog",), prompt="find"), Row("cat", ("dog",), prompt="find", index=1)), size=2
    )
    long, short = sequences(batch.queries)
    assert len(long) == 12 and long[-4:] == short[-4:]
    assert batch.truncated == (1, 0)
    assert short == ids(tokenizer, "cat", Prompt.from_format("find", "<{}>{}</>"))


@pytest.mark.parametrize("kind", ["symmetric_sts", "symmetric_clustering", "symmetric_class", None])
def test_symmetric_rows_have_the_instruction_on_both_sides(collator, tokenizer, kind):
    both = kind in ("symmetric_sts", "symmetric_clustering")
    batch = collator(query_prompt=Prompt("q: "), passage_prompt=Prompt("p: "))(
        draw(Row("cat", ("dog",), type=kind), Row("cat", ("dog",), type=kind, prompt="x: ", index=1)), size=2
    )
    expected = ["q: dog", "x: dog"] if both else ["p: dog"] * 2
    assert sequences(batch.passages) == [ids(tokenizer, text) for text in expected]


def test_prompt_tokens_that_do_not_count(collator, tokenizer):
    make = collator(query_prompt=Prompt("search the query: "), include_prompt=False)
    batch = make(draw(Row("cat", ("dog",)), Row("cat", ("dog",), prompt="find ", index=1)), size=2)
    skips = [TextTokenizer(tokenizer, Prompt(text), 64).prompt_length for text in ("search the query: ", "find ")]
    assert batch.queries.skip == tuple(skips) and batch.passages.skip == (0, 0)
    assert sequences(batch.queries)[1] == ids(tokenizer, "find cat")


def test_truncation_is_counted(collator):
    batch = collator(query_max_len=8, passage_max_len=6)(
        draw(Row("cat " * 20, ("dog " * 20,), ("dog", "cat " * 9)), Row("cat", ("dog",), index=1)), size=2
    )
    assert max(batch.queries.lengths) == 8 and max(batch.passages.lengths) == 6
    assert batch.truncated == (1, 2)


def test_the_card_decides(tiny_bert, tokenizer):
    card = read_card(tiny_bert, query=Prompt("find: "), document=Prompt("doc: "))
    made = Collator.of(tokenizer, card, query_max_len=1000, passage_max_len=30)
    assert (made.query_prompt, made.passage_prompt) == (Prompt("find: "), Prompt("doc: "))
    assert (made.query_max_len, made.passage_max_len) == (card.max_length, 30)
    queries, passages = made.limits()
    assert "the model takes no more" in queries.remedy and passages.remedy == "raise --passage-max-length"


def test_a_wrong_format_is_an_error_at_once(tokenizer):
    with pytest.raises(ArgumentError, match="two slots"):
        Collator(tokenizer, query_format="{}")


# --- keys, teachers, scores


def test_keys(collator):
    one = Row("A cat", ("The dog", "other"), ("a  CAT", "the dog "))
    batch = collator()(draw(one, group=3), size=1)
    (query, *positives), _ = collator().keys([["a cat", "the dog", "other"], ["something else"]])
    assert batch.query_keys.tolist() == [query]
    assert query in batch.passage_keys[1:]
    assert batch.positive_keys[0].tolist() == positives
    assert batch.passage_keys.dtype == batch.query_keys.dtype == batch.positive_keys[0].dtype == torch.long


def test_a_shuffled_positive_keeps_its_key(collator):
    text = " ".join(f"word{i}" for i in range(40))
    example = Sampling(1, shuffle_ratio=1.0, seed=1).draw(Row("q", (text,)), 0)
    assert example.passages[0] != text
    assert collator()([example], size=1).passage_keys.tolist() == collator().keys([[text]])[0]


@pytest.mark.parametrize(
    ("cased", "one", "other"),
    [
        (True, "US", "us"), (True, "Turkey", "turkey"), (True, "if x:\n    y", "if x: y"), (True, "caf\u00e9", "cafe"),
        (False, "US", "us"), (False, "if x:\n    y", "if x: y"), (False, "caf\u00e9", "cafe"), (False, "a-b", "a - b"),
    ],
)  # fmt: skip
def test_texts_are_equal_where_the_tokenizer_makes_them_so(bytes_tokenizer, tokenizer, cased, one, other):
    made = Collator(bytes_tokenizer if cased else tokenizer, query_prompt=Prompt("find: "), passage_max_len=8)
    row = Row(one, ("x " * 40 + "y",), (other, "x " * 40 + "z"))
    batch = made([Sampling(3).draw(row, 0)], size=1)
    assert (batch.query_keys[0] in batch.passage_keys) == (not cased)
    # What the model never sees of a text tells it apart all the same.
    assert len({*batch.passage_keys.tolist(), *batch.query_keys.tolist()}) == 3 + cased


def test_teachers_and_scores(collator):
    first = Row("a", ("b",), ("c", "d"), (5.0,), (2.0, 1.0))
    second = Row("e", ("f",), (), (3.0,), index=1)
    examples = draw(first, second, teacher=True)
    batch = collator()(examples, size=2)
    assert batch.teacher.tolist() == [*examples[0].teacher, 3.0] and batch.teacher.dtype == torch.float32
    pairs = collator()(draw(Row("a", ("b",), score=0.5), Row("c", ("d",), score=2, index=1)), size=2)
    assert pairs.scores.tolist() == [0.5, 2.0] and pairs.groups == (1, 1) and pairs.teacher is None


def test_pickling_and_moving(collator):
    batch = collator()(draw(Row("a", ("b",), ("c", "d"), (5.0,), (2.0, 1.0)), teacher=True), size=1)
    copy = pickle.loads(pickle.dumps(batch)).to(torch.device("cpu"))
    assert sequences(copy.passages) == sequences(batch.passages)
    assert torch.equal(copy.teacher, batch.teacher) and copy.groups == batch.groups and copy.scores is None
    again = pickle.loads(pickle.dumps(collator(query_prompt=Prompt("x "))))
    assert sequences(again(draw(Row("a", ("b",))), size=1).queries)


# --- steps


def whole(datasets, key):
    """The global batch that the parts of all processes make."""
    parts = [dataset[key] for dataset in datasets]
    assert len({(part.size, part.in_batch) for part in parts}) == 1
    assert [part.offset for part in parts] == [sum(map(len, parts[:rank])) for rank in range(len(parts))]
    return (
        [ids for part in parts for ids in sequences(part.queries)],
        [ids for part in parts for ids in sequences(part.passages)],
        sum((part.groups for part in parts), ()),
        sum((part.rows for part in parts), ()),
        torch.cat([part.passage_keys for part in parts]).tolist(),
        None if parts[0].teacher is None else torch.cat([part.teacher for part in parts]).tolist(),
        None if parts[0].scores is None else torch.cat([part.scores for part in parts]).tolist(),
    )


KINDS = {
    "negatives": lambda i: row(i, i % 4),
    "none": lambda i: {"query": f"query {i}", "pos": [f"pos {i}", f"other {i}"]},
    "teacher": scored,
    "scored": lambda i: {"query": f"query {i}", "pos": [f"pos {i}"], "score": i / 2},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("world", [2, 3, 4])
def test_batches_are_equal_for_every_number_of_processes(steps, kind, world):
    rows = [KINDS[kind](i) for i in range(13)]
    teacher = kind == "teacher"
    options = {"sampling": Sampling(3, teacher=teacher), "load_options": {"teacher": teacher}}
    one = steps(rows, PlanOptions(5), **options)
    many = [steps(rows, PlanOptions(5), rank=rank, world=world, **options) for rank in range(world)]
    assert len(one) == len(many[0]) == 3
    for key in (0, 1, 2, (3, 1)):
        assert whole(many, key) == whole([one], key)


@pytest.mark.parametrize("kind", KINDS)
def test_a_process_without_rows_has_the_same_kind_of_batch(steps, kind):
    teacher = kind == "teacher"
    last = steps([KINDS[kind](i) for i in range(2)], PlanOptions(4), rank=3, world=4,
                 sampling=Sampling(3, teacher=teacher), load_options={"teacher": teacher})[0]  # fmt: skip
    assert (len(last), last.size, last.offset) == (0, 2, 2)
    assert last.queries.lengths == last.passages.lengths == last.groups == ()
    assert last.passage_keys.dtype == torch.long and last.queries.input_ids.dtype == torch.long
    assert (last.teacher is not None) == teacher and (last.scores is not None) == (kind == "scored")


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2), st.integers(0, 3), st.integers(0, 3))
def test_resuming_is_asking_for_later_steps(steps_of_real_length, seed, epoch, start):
    made = steps_of_real_length(seed)
    made.set_epoch(epoch)
    uninterrupted = [whole([made], index) for index in range(len(made))]
    resumed = steps_of_real_length(seed)
    loader = DataLoader(resumed, batch_size=None, sampler=[(epoch, step) for step in range(start, len(made))])
    assert [sequences(batch.passages) for batch in loader] == [batch[1] for batch in uninterrupted[start:]]


@pytest.fixture(scope="module")
def steps_of_real_length(tmp_path_factory, tokenizer):
    from bgekit.training.batches.datasets import load_data

    from ..conftest import to_jsonl

    folder = tmp_path_factory.mktemp("steps")
    (folder / "a.jsonl").write_text(to_jsonl([row(i, i % 5) for i in range(23)]), encoding="utf-8")
    data = load_data([folder / "a.jsonl"], cache=folder / "cache")
    return lambda seed: StepDataset(
        data, PlanOptions(6, seed=seed, group_by_length=True), Sampling(3, seed=seed), Collator(tokenizer)
    )


def test_any_number_of_workers_gives_the_same_batches(steps_of_real_length):
    made = steps_of_real_length(1)
    alone = [whole([made], (epoch, index)) for epoch in (0, 1) for index in range(len(made))]
    keys = [(epoch, step) for epoch in (0, 1) for step in range(len(made))]
    loader = DataLoader(made, batch_size=None, sampler=keys, num_workers=2)
    assert [sequences(batch.passages) for batch in loader] == [batch[1] for batch in alone]
    made.set_epoch(1)
    assert [batch.rows for batch in made] == [batch[3] for batch in alone[len(made) :]]


def test_negatives_do_not_depend_on_the_batch(steps):
    rows = [row(i, 30) for i in range(12)]
    small, large = steps(rows, PlanOptions(3)), steps(rows, PlanOptions(12, group_by_length=True))

    def passages(dataset):
        found = {}
        for batch in dataset:
            parts, place = sequences(batch.passages), 0
            for number, group in zip(batch.rows, batch.groups, strict=True):
                found[number] = parts[place : place + group]
                place += group
        return found

    assert passages(small) == passages(large)
    first = passages(small)
    small.set_epoch(1)
    assert passages(small) != first


def test_in_batch_negatives_of_a_dataset(write, load, collator):
    data = load(write("a-no_in_batch_neg.jsonl", [row(0), row(1)]))
    assert not StepDataset(data, PlanOptions(2), Sampling(2), collator())[0].in_batch
