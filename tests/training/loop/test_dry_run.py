"""What `--dry-run` shows."""

from types import SimpleNamespace

import pytest

from bgekit.models.card import Prompt
from bgekit.training.batches.collator import Collator, PairCollator, StepDataset
from bgekit.training.batches.sampler import PlanOptions, Sampling
from bgekit.training.loop.dry_run import Footprint, dry_run

from ..conftest import row, scored


@pytest.fixture
def shown(write, load, tokenizer):
    """The text for files: `shown({"a.jsonl": rows}, PlanOptions(4), query_max_len=8)`."""

    def shown(files, options=PlanOptions(4), *, sampling=Sampling(3), load_options=None, run=None, **collating):  # noqa: B008
        data = load(*(write(name, rows) for name, rows in files.items()), **load_options or {})
        made = Collator(tokenizer, **{"query_max_len": 64, "passage_max_len": 64} | collating)
        return dry_run(StepDataset(data, options, sampling, made), **run or {})

    return shown


def test_the_whole(shown):
    text = shown(
        {"a.jsonl": [row(i, i % 4) for i in range(10)], "b.jsonl": [row(i) for i in range(10, 16)]},
        load_options={"weights": [1.0, 2.0]}, query_prompt=Prompt("search: "), run={"epochs": 2.5},
    )  # fmt: skip
    lines = text.splitlines()
    header, first, second = (line.split() for line in lines[1:4])
    assert header[:3] == ["dataset", "rows", "weight"]
    assert first[:4] == ["a.jsonl", "10", "1", "43.8%"] and second[:4] == ["b.jsonl", "6", "2", "56.2%"]
    assert first[5] == "0/1/3" and second[5] == "3/3/3"
    assert ".jsonl, line " in text and "positive" in text and "negative" in text
    assert "4 per epoch, 10 in 2.5 epochs" in text and "4 in all" in text
    assert "negatives of a query: the passages of all rows" in text
    assert "a.jsonl: 3 rows have fewer than 2 negatives" in text
    assert shown({"c.jsonl": [row(i, 2) for i in range(4)]}).endswith("No warnings\n")


def test_the_example_is_what_the_ids_say(shown):
    text = shown({"a.jsonl": [{"query": "cat", "pos": ["dog"]}]}, query_prompt=Prompt("search "))
    assert "query     [4 tokens] [CLS] search cat [SEP]" in text
    assert "positive  [3 tokens] [CLS] dog [SEP]" in text


def test_teachers_scores_and_notes(shown):
    text = shown(
        {
            "a.jsonl": [scored(i) for i in range(4)],
            "b-no_in_batch_neg.jsonl": [row(i, type="symmetric_class") for i in range(4)],
            "c.jsonl": [{"query": f"{i}", "pos": ["x"], "score": 0.5} for i in range(4)],
        },
        PlanOptions(4, same_dataset=True), sampling=Sampling(2, teacher=True),
        load_options={"teacher": True, "same_dataset": True},
    )  # fmt: skip
    assert "teacher scores" in text and "no in-batch negatives, type symmetric_class" in text and "scored pairs" in text
    assert any(word in text for word in ("(teacher ", "score     0.5", "the row's own passages only"))


def test_truncation(shown):
    rows = [{"query": "cat", "pos": ["dog " * (60 if i % 2 else 2)]} for i in range(10)]
    text = shown({"a.jsonl": rows}, passage_max_len=16)
    assert "0%/50%" in text
    assert "a.jsonl: 50% of the passages are cut at 16 tokens: raise --passage-max-length" in text
    assert "of the queries are cut" not in text
    assert "share of queries/passages beyond 64/16 tokens" in text


def test_longer_than_the_model_takes(shown):
    """To raise what the model caps would change nothing."""
    rows = [{"query": "cat", "pos": ["dog " * 60]} for _ in range(4)]
    text = shown({"a.jsonl": rows}, passage_max_len=16, most=16)
    assert "cut at 16 tokens: the model takes no more; split the texts" in text and "--passage-max-length" not in text
    text = shown({"a.jsonl": rows}, query_prompt=Prompt("a cat and a dog and a tree "), query_max_len=8, most=8)
    assert "of the 8 tokens of a query: shorten it" in text


@pytest.mark.parametrize("words", [20, 200])
def test_pairs_are_cut_as_a_whole(write, load, tokenizer, words):
    rows = [{"query": "cat", "pos": ["dog " * words], "neg": ["tree " * words]} for _ in range(4)]

    def text(length):
        data = load(write("a.jsonl", rows), in_batch_negatives=False)
        return dry_run(StepDataset(data, PlanOptions(4), Sampling(2), PairCollator(tokenizer, max_len=length)))

    assert ("a.jsonl: 100% of the pairs are cut at 64 tokens: raise --max-length" in text(64)) == (words == 200)
    assert f"{words + 4}/{words + 4}/{words + 4}" in text(64) and "pair tokens" in text(64)
    assert "share of pairs beyond 64 tokens" in text(64)
    assert "are cut at" not in text(512) and "_max_len" not in text(64)
    assert "positive  [24 tokens] [CLS] cat [SEP] dog" in text(512) or words == 200


@pytest.mark.parametrize(
    ("run", "says"),
    [
        ({"epochs": 3.0}, "5 per epoch, 15 in 3 epochs;"),
        ({"epochs": 0.5}, "5 per epoch, 3 in 0.5 epochs;"),
        ({"epochs": 3.0, "accumulation": 4}, "2 per epoch (5 batches, 4 per step), 6 in 3 epochs;"),
        ({"epochs": 3.0, "max_steps": 7}, "5 per epoch, 7 in 1.4 epochs (--max-steps);"),
        ({"accumulation": 8, "max_steps": 7}, "1 per epoch (5 batches, 8 per step), 7 in 7 epochs (--max-steps);"),
    ],
)
def test_steps_are_counted_as_they_will_be(shown, run, says):
    assert says in shown({"a.jsonl": [row(i) for i in range(18)]}, run=run)


def test_warnings(shown):
    rows = [row(0), row(0), row(1, pos=["Query  1"]), row(2, neg=["pos 2", "x"])]
    text = shown({"a.jsonl": rows, "empty.jsonl": []})
    assert "1 rows are equal to an earlier one; they are kept" in text
    assert "a.jsonl: 1 rows have the query itself as a positive" in text
    assert "a.jsonl: 1 rows have a positive among their negatives" in text
    assert "empty.jsonl is empty" in text


def test_copies_are_those_of_the_tokenizer(write, load, tokenizer, bytes_tokenizer):
    data = load(write("a.jsonl", [row(0, pos=["Turkey"], neg=["turkey"]), row(1, pos=["Query 1"])]))
    for made, counts in ((tokenizer, (1, 1)), (bytes_tokenizer, (0, 0))):
        text = dry_run(StepDataset(data, PlanOptions(2), Sampling(2), Collator(made, passage_max_len=64)))
        assert ("1 rows have a positive among their negatives" in text) == bool(counts[0])
        assert ("1 rows have the query itself as a positive" in text) == bool(counts[1])


def test_instruction_mismatch(shown):
    rows = [row(i, prompt="find the cat: ") for i in range(3)] + [row(3, prompt="search: "), row(4)]
    text = shown({"a.jsonl": rows}, query_prompt=Prompt("search: "))
    assert "3 of 5 rows have a prompt of their own (1 different ones, most often 'find the cat: ')" in text
    assert "the model puts 'search: ' before queries" in text
    assert "prompt of their own" not in shown({"b.jsonl": [row(0, prompt="search: ")]}, query_prompt=Prompt("search: "))


def test_a_model_of_another_language(shown):
    text = shown({"a.jsonl": [{"query": "кот", "pos": ["собака"]}]})
    assert "a.jsonl: 33% of the tokens are unknown to the model" in text


def test_more_warnings(shown):
    text = shown(
        {"a.jsonl": [row(i, batch_size=2) for i in range(4)], "b-no_in_batch_neg.jsonl": [row(4, 0), row(5)]},
        query_prompt=Prompt("the cat and the dog and the bird and the tree: "), query_max_len=20,
    )  # fmt: skip
    assert "a.jsonl: its batch_size counts only with --same-dataset-within-batch" in text
    assert "a.jsonl: the instruction takes" in text and "of the 20 tokens of a query" in text
    assert "b-no_in_batch_neg.jsonl: 1 rows have no negatives, and passages of other rows do not count" in text
    text = shown(
        {"a.jsonl": [row(i) for i in range(9)], "b.jsonl": [row(i, type="symmetric_sts") for i in range(3)]},
        PlanOptions(8, same_dataset=True, drop_last=True), query_prompt=Prompt("q: "),
    )  # fmt: skip
    assert "b.jsonl: its 3 rows do not fill a batch of 4" in text and "a.jsonl: its" not in text
    assert "3 rows have the query's instruction before passages, too" in text


CONFIG = SimpleNamespace(
    hidden_size=384, num_hidden_layers=12, intermediate_size=1536, num_attention_heads=12,
    attention_probs_dropout_prob=0.1,
)  # fmt: skip


def test_memory(shown):
    text = shown({"a.jsonl": [row(i) for i in range(4)]}, run={"footprint": Footprint.of(CONFIG, 33_360_000)})
    assert "16 bytes for each of 33,360,000 trained parameters\n" in text
    assert "the whole batch" in text and "12 layers x (10.2 x 384 + 2 x 1536) numbers of 4 bytes" in text
    assert "--grad-cache-chunk 32 or --gradient-checkpointing" in text


def test_memory_by_option():
    def footprint(**options):
        return Footprint.of(CONFIG, 33_360_000, **options)

    lengths = [128] * 64
    plain = footprint().activations(lengths)
    # Measured with saved-tensor hooks on bge-small-en-v1.5 while training: 46.4 kB a token and layer at 128 tokens.
    assert plain / sum(lengths) / 12 == pytest.approx(46_365, rel=0.02)
    assert footprint().activations([32] * 64) / (32 * 64) / 12 == pytest.approx(32_544, rel=0.02)
    assert footprint(half=True).activations(lengths) == pytest.approx(plain / 2, abs=1)
    assert footprint(checkpointing=True).activations(lengths) < plain / 5
    # Measured on all-MiniLM-L6-v2, of the same sizes, on a CPU: 25.1 kB in float32, 15.9 kB in bf16, at any length.
    for half, bytes_ in ((False, 25_112), (True, 15_896)):
        assert footprint(lean=True, half=half).activations(lengths) / sum(lengths) / 12 == pytest.approx(bytes_, 0.02)
    assert footprint().state() == 16 * 33_360_000
    assert footprint(trained=1_000_000).state() < footprint().state() < footprint(half=True, world=2).state()


def test_names_of_other_architectures():
    distil = SimpleNamespace(dim=768, n_layers=6, n_heads=12, hidden_dim=3072, attention_dropout=0.1)
    made = Footprint.of(distil, 10)
    assert (made.hidden, made.layers, made.heads, made.intermediate, made.dropout) == (768, 6, 12, 3072, True)
    assert Footprint.of(SimpleNamespace(d_model=512, num_layers=6, num_heads=8, d_ff=1024), 10).intermediate == 1024


@pytest.mark.parametrize(
    ("parts", "marks"),
    [
        (("SciFact", "train.jsonl"), ("807", "cut at 128 tokens")),
        (("SimCLUE", "train.jsonl"), ("10,000",)),
    ],
)
def test_real_data(shared_path, load, minilm, parts, marks):
    from bgekit.inference.tokenization import load_tokenizer
    from bgekit.models.hub import resolve

    data = load(shared_path("data", *parts))
    made = Collator(load_tokenizer(resolve(minilm)))
    text = dry_run(StepDataset(data, PlanOptions(64), Sampling(2), made))
    assert all(mark in text for mark in marks)
