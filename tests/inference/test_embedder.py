"""FlagModel as users call it: shapes, prompts, duplicates, truncation, types, threads."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModel, BertTokenizer

from bgekit import FlagModel, FlagReranker
from bgekit.errors import ArgumentError, CardError, NumericalError, TextTypeError
from bgekit.inference.engine import Engine
from precisions import needs_bfloat16

Texts = Callable[..., list[str]]
WORDS = "the cat dog river mountain is of a large small red house and tree by walk".split()


def random_texts(count: int) -> list[str]:
    generator = np.random.default_rng(7)
    return [" ".join(generator.choice(WORDS, size=generator.integers(0, 80))) for _ in range(count)]


@pytest.fixture(scope="module")
def model(tiny_bert: Path) -> FlagModel:
    return FlagModel(tiny_bert, use_fp16=False, devices="cpu")


def test_shapes(model: FlagModel) -> None:
    assert model.encode("one text").shape == (32,)
    assert model.encode(["one", "two"]).shape == (2, 32)
    assert model.encode([]).shape == (0, 32)
    assert model.encode(text for text in ("a", "b", "c")).shape == (3, 32)
    assert model.encode(np.array(["a", "b"])).shape == (2, 32)
    assert model.encode(["a"]).dtype == np.float32
    assert np.allclose(np.linalg.norm(model.encode(["a", "b"]), axis=1), 1, atol=1e-6)


def test_tensors_on_request(model: FlagModel) -> None:
    assert isinstance(model.encode(["a"], convert_to_numpy=False), torch.Tensor)
    assert isinstance(model.encode("a", convert_to_tensor=True), torch.Tensor)


@pytest.mark.parametrize("bad", [None, 3, 1.5, b"bytes", ["nested"]])
def test_what_is_no_text_is_a_type_error_with_its_index(model: FlagModel, bad: object) -> None:
    with pytest.raises(TextTypeError, match="index 2"):
        model.encode(["a", "b", bad])
    with pytest.raises(TypeError):
        model.encode(["a", "b", bad])
    with pytest.raises(TextTypeError, match="index 3001"):
        model.encode([*["a"] * 3001, bad])


@pytest.mark.parametrize("bad", [None, 3, b"bytes", {"a": 1}])
def test_what_is_no_list_of_texts_is_a_type_error(model: FlagModel, bad: Any) -> None:
    with pytest.raises(TextTypeError):
        model.encode(bad)


def test_unknown_arguments_are_rejected_by_name(model: FlagModel, tiny_bert: Path) -> None:
    with pytest.raises(TypeError, match="batchsize"):
        model.encode(["a"], batchsize=3)
    with pytest.raises(TypeError, match="use_fp61"):
        FlagModel(tiny_bert, use_fp61=True)
    for impossible in ({"batch_size": 0}, {"max_length": 0}, {"max_length": 65}):
        with pytest.raises(ArgumentError):
            model.encode(["a"], **impossible)


def test_empty_whitespace_and_odd_texts_are_encoded_as_they_are(model: FlagModel) -> None:
    vectors = model.encode(["", "   ", "\n\t", "a\x00b", "ａ", "\u200b", "🙂"])
    assert np.isfinite(vectors).all()
    assert np.allclose(vectors[0], vectors[1], atol=1e-6)  # WordPiece drops white space


def test_lone_surrogates_are_replaced_and_counted(model: FlagModel, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "bgekit"):
        vectors = model.encode(["fine", "bad \ud800 text", "pair \ud83d\ude42"])
    assert vectors.repaired == (1, 2)
    assert np.array_equal(vectors[1:], model.encode(["bad \ufffd text", "pair 🙂"]))
    assert "surrogates" in caplog.text


def test_a_megabyte_is_cut_and_counted(model: FlagModel, caplog: pytest.LogCaptureFixture) -> None:
    long = "word " * 200_000
    with caplog.at_level(logging.WARNING, "bgekit"):
        vectors = model.encode(["short", long, "short too", long])
    assert vectors.truncated == (1, 3)
    assert "2 of 4 texts were too long" in caplog.text
    assert np.allclose(vectors[1], model.encode("word " * 100), atol=1e-6)


def test_max_length_cuts_exactly(model: FlagModel) -> None:
    exact = "the cat in the house"  # seven tokens with [CLS] and [SEP]
    assert model.encode([exact], max_length=7).truncated == ()
    cut = model.encode([exact + " by the river"], max_length=7)
    assert cut.truncated == (0,)
    assert np.allclose(cut[0], model.encode(exact), atol=1e-6)


def test_equal_texts_are_computed_once(model: FlagModel, monkeypatch: pytest.MonkeyPatch, texts: Texts) -> None:
    computed: list[int] = []
    original = Engine._forward

    def counting(self: Engine, batch: Any) -> Any:
        computed.append(len(batch.lengths))
        return original(self, batch)

    monkeypatch.setattr(Engine, "_forward", counting)
    distinct = texts(50)
    many = [distinct[i % 50] for i in range(5000)]
    vectors = model.encode(many)
    assert sum(computed) == len(set(distinct))
    assert np.array_equal(vectors, vectors[:50][np.arange(5000) % 50])
    computed.clear()
    assert np.array_equal(model.encode(iter(many)), vectors)
    assert sum(computed) == len(set(distinct))


@pytest.fixture
def rounding(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Each batch is rounded otherwise, much more than on any machine; sizes of the batches."""
    sizes: list[int] = []
    original = Engine._forward

    def rounded(self: Engine, batch: Any) -> Any:
        sizes.append(len(batch.lengths))
        return original(self, batch) + 1e-3 * len(sizes)

    monkeypatch.setattr(Engine, "_forward", rounded)
    return sizes


@pytest.mark.parametrize("batch_size", [None, 1, 3])
def test_equal_tokens_are_computed_once_and_get_one_vector(
    model: FlagModel, rounding: list[int], batch_size: int | None
) -> None:
    alike = ["A cat  in the house", "a CAT in\tthe house", "a cat in the house ", "a cat in the house\n"]
    others = ["a dog", "the river", "A DOG", "one two three"]
    vectors = model.encode([alike[0], *others, *alike[1:]], batch_size=batch_size)
    assert sum(rounding) == 4
    assert all(np.array_equal(vectors[0], vectors[row]) for row in (5, 6, 7))
    assert np.array_equal(vectors[1], vectors[3])
    assert not np.allclose(vectors[1], vectors[2])


def test_texts_that_are_equal_as_far_as_they_are_read_get_one_vector(model: FlagModel, rounding: list[int]) -> None:
    texts = [f"a cat in the house {rest}" for rest in ("by the river", "of a dog", "")]
    vectors = model.encode(texts, max_length=7, batch_size=1)
    assert len(rounding) == 1
    assert (vectors == vectors[0]).all()
    assert vectors.truncated == (0, 1)


def test_equal_tokens_get_one_vector_across_blocks(
    model: FlagModel, rounding: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FlagModel, "block_size", 2)
    texts = ["a cat", "a dog", "A CAT", "the river", "A  cat", "A DOG", "the RIVER"]
    for listed in (texts, iter(texts)):
        vectors = model.encode(listed, prompt="find: ")
        assert len(np.unique(vectors, axis=0)) == 3
        assert np.array_equal(vectors[[0, 1, 3]], vectors[[4, 5, 6]])
        assert np.array_equal(vectors[0], vectors[2])


def test_equal_tokens_of_a_window_get_one_vector(model: FlagModel, rounding: list[int]) -> None:
    (encoded,) = model.encode_blocks([["a cat", "the dog", "A CAT", "the dog"]], batch_size=1)
    assert len(rounding) == 2 and encoded.tokens == 8
    assert np.array_equal(encoded.vectors[0], encoded.vectors[2])


def test_a_vector_does_not_depend_on_its_company(model: FlagModel, texts: Texts) -> None:
    some = texts(300)
    together = model.encode(some)
    order = np.random.default_rng(0).permutation(len(some))
    shuffled = model.encode([some[i] for i in order])
    alone = np.stack([model.encode(text) for text in some[:60]])
    small_batches = model.encode(some, batch_size=3)
    assert np.abs(shuffled - together[order]).max() < 1e-6
    assert np.abs(alone - together[:60]).max() < 1e-6
    assert np.abs(small_batches - together).max() < 1e-6


@needs_bfloat16
def test_half_precision_stays_close_whatever_the_company(tiny_bert: Path, texts: Texts) -> None:
    half = FlagModel(tiny_bert, dtype="bfloat16", devices="cpu")
    some = texts(200)
    together, alone = half.encode(some), np.stack([half.encode(text) for text in some])
    assert (together * alone).sum(1).min() > 0.9995


def test_out_takes_arrays_and_memmaps(model: FlagModel, tmp_path: Path, texts: Texts) -> None:
    some = texts(70)
    out = np.lib.format.open_memmap(tmp_path / "v.npy", mode="w+", dtype=np.float16, shape=(70, 32))
    result = model.encode(some, out=out)
    assert np.shares_memory(result, out)
    assert np.allclose(out, model.encode(some), atol=1e-3)
    out32 = np.zeros((70, 32), np.float32)
    model.encode((text for text in some), out=out32)
    assert np.array_equal(out32, model.encode(some))
    for wrong in (np.zeros((69, 32), np.float32), np.zeros((70, 31), np.float32), np.zeros((70, 32), np.int32)):
        with pytest.raises(ArgumentError):
            model.encode(some, out=wrong)
    with pytest.raises(ArgumentError, match="more texts"):
        model.encode(iter(some), out=np.zeros((60, 32), np.float32))


def test_instructions(make_model: Callable[..., Path]) -> None:
    folder = make_model(name="bge-small-en-v1.5")
    english = "Represent this sentence for searching relevant passages: "
    own = FlagModel(folder, use_fp16=False, devices="cpu")
    plain, prompted = own.encode("query"), own.encode(english + "query")
    assert np.array_equal(own.encode_queries("query"), prompted)
    assert np.array_equal(own.encode_query(["query"])[0], prompted)
    assert np.array_equal(own.encode_corpus("query"), plain)
    assert np.array_equal(own.encode_queries("query", instruction=None), plain)
    assert np.array_equal(own.encode_queries("query", instruction=""), plain)
    assert np.array_equal(own.encode("query", prompt_name="query"), prompted)
    for off in (None, ""):
        without = FlagModel(folder, query_instruction_for_retrieval=off, use_fp16=False, devices="cpu")
        assert np.array_equal(without.encode_queries("query"), plain)
    other = FlagModel(folder, query_instruction_for_retrieval="find: ", use_fp16=False, devices="cpu")
    assert np.array_equal(other.encode_queries("query"), own.encode("find: query"))
    formatted = FlagModel(
        folder, query_instruction_for_retrieval="find", query_instruction_format="<{}> {}", use_fp16=False
    )
    assert np.array_equal(formatted.encode_queries("query"), own.encode("<find> query"))
    with pytest.raises(ArgumentError, match="no prompt named"):
        own.encode("x", prompt_name="nothing")


def test_a_format_without_an_instruction_is_that_of_the_models_own(make_model: Callable[..., Path]) -> None:
    folder = make_model(name="bge-small-en-v1.5")
    english = "Represent this sentence for searching relevant passages: "
    formatted = FlagModel(folder, query_instruction_format="<{}> {}", use_fp16=False, devices="cpu")
    plain = FlagModel(folder, query_instruction_for_retrieval=None, query_instruction_format="<{}> {}", use_fp16=False)
    assert np.array_equal(formatted.encode_queries("query"), formatted.encode(f"<{english}> query"))
    assert np.array_equal(plain.encode_queries("query"), formatted.encode("query"))
    assert np.array_equal(formatted.encode_corpus("query"), formatted.encode("query"))
    with pytest.raises(ArgumentError, match=r"two slots \{\}"):
        FlagModel(folder, query_instruction_format="{}", devices="cpu")


def test_a_suffix_survives_truncation(model: FlagModel) -> None:
    from bgekit.inference.tokenization import TextTokenizer
    from bgekit.models.card import Prompt

    tokenize = TextTokenizer(model.tokenizer, Prompt("[", "]", apart=True), 16)
    left, right, sep, cls = model.tokenizer.convert_tokens_to_ids(["[", "]", "[SEP]", "[CLS]"])
    tokens = tokenize(["word " * 50, "cat"])
    assert tokens.truncated == [0]
    for ids in tokens.ids:
        assert ids[:2] == [cls, left]
        assert ids[-2:] == [right, sep]
    assert len(tokens.ids[0]) == 16


def test_truncated_dimensions_are_normalised_after_the_cut(model: FlagModel, tiny_bert: Path) -> None:
    short = FlagModel(tiny_bert, truncate_dim=8, use_fp16=False, devices="cpu")
    whole = np.asarray(model.encode(["a", "b"]))[:, :8]
    assert short.dimension == 8
    assert np.allclose(short.encode(["a", "b"]), whole / np.linalg.norm(whole, axis=1, keepdims=True), atol=1e-6)
    with pytest.raises(ArgumentError):
        FlagModel(tiny_bert, truncate_dim=33)


def test_similarity(model: FlagModel) -> None:
    a, b = model.encode(["a", "b"]), model.encode(["c", "d", "e"])
    assert np.allclose(model.similarity(a, b), a @ b.T, atol=1e-6)
    assert model.similarity(a[0], 3 * b).shape == (1, 3)
    assert np.allclose(model.similarity(a[0], 3 * b), a[:1] @ b.T, atol=1e-6)
    with pytest.raises(ArgumentError, match=r"of vectors, as model.encode\(texts\) gives them: .*'a cat'"):
        model.similarity("a cat", ["a dog"])  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "order"), [("euclidean", 2), ("manhattan", 1)])
def test_distances_are_negative_scores(tiny_bert: Path, tmp_path: Path, name: str, order: int) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_bert, folder)
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"similarity_fn_name": name}))
    model = FlagModel(folder, use_fp16=False, devices="cpu")
    a, b = np.asarray(model.encode(["a cat", "the river"])), np.asarray(model.encode(["a cat", "dog", "tree"]))
    scores = model.similarity(a, 3 * b)
    expected = -torch.cdist(torch.from_numpy(a).double(), 3 * torch.from_numpy(b).double(), p=order).numpy()
    assert scores.dtype == np.float32 and np.abs(scores - expected).max() < 1e-5
    assert model.similarity(a[0], a[0]) == 0  # exactly: no rounding of large numbers that cancel out
    assert model.similarity(np.empty((0, 32)), b).shape == (0, 3)
    with pytest.raises(ArgumentError, match="different widths: 32 and 31"):
        model.similarity(a, b[:, :31])
    sentence_transformers = pytest.importorskip("sentence_transformers")
    theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu").similarity(a, 3 * b)
    assert np.abs(scores - theirs.numpy()).max() < 1e-4
    model.save(tmp_path / "saved")
    assert FlagModel(tmp_path / "saved", devices="cpu").card.similarity == name


@pytest.fixture
def cased(tiny_bert: Path, tmp_path: Path) -> Path:
    """A model whose tokenizer keeps case, but whose sentence_bert_config.json asks for lowercase."""
    folder = tmp_path / "cased"
    shutil.copytree(tiny_bert, folder)
    BertTokenizer(vocab=str(folder / "vocab.txt"), do_lower_case=False, model_max_length=64).save_pretrained(folder)
    return folder


def test_lowercasing_that_the_checkpoint_asks_for(cased: Path, tmp_path: Path) -> None:
    mixed = ["A Cat IN the House", "DOG", "plain", "É ÀB", "", "Fast [SEP] Red [MASK]"]
    asked = FlagModel(cased, use_fp16=False, devices="cpu")
    assert asked.card.lower_case
    vectors = asked.encode(mixed)
    assert np.array_equal(vectors[:2], asked.encode(["a cat in the house", "dog"]))
    assert np.array_equal(asked.encode("CAT", instruction="Find: "), asked.encode("find: cat"))
    asked.save(tmp_path / "saved")
    assert np.array_equal(FlagModel(tmp_path / "saved", use_fp16=False, devices="cpu").encode(mixed), vectors)
    theirs = pytest.importorskip("sentence_transformers")
    for folder in (cased, tmp_path / "saved"):
        assert np.abs(theirs.SentenceTransformer(str(folder), device="cpu").encode(mixed) - vectors).max() < 1e-5
    (cased / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 64, "do_lower_case": False}))
    kept = FlagModel(cased, use_fp16=False, devices="cpu")
    assert not kept.card.lower_case and kept.fingerprint != asked.fingerprint
    assert np.abs(kept.encode(mixed)[:2] - vectors[:2]).max() > 1e-3
    assert np.abs(kept.encode("plain") - vectors[2]).max() < 1e-6


def test_a_spelled_padding_token_is_computed_as_in_transformers(make_model: Callable[..., Path]) -> None:
    folder = make_model("xlm-roberta")
    model = FlagModel(folder, use_fp16=False, devices="cpu")
    some = ["the [PAD] cat", "[PAD]", "a [PAD] [PAD] dog by the river [PAD]", "a dog"]
    plain = AutoModel.from_pretrained(folder).eval()
    for text, vector in zip(some, model.encode(some), strict=True):
        tokens = model.tokenizer(text, return_tensors="pt")
        assert (model.tokenizer.pad_token_id in tokens["input_ids"]) == ("PAD" in text)
        tokens.pop("token_type_ids", None)
        with torch.no_grad():
            expected = plain(**tokens).last_hidden_state[0, 0]
        assert np.abs(vector - (expected / expected.norm()).numpy()).max() < 1e-5


def test_not_a_number_names_the_text(make_model: Callable[..., Path], texts: Texts) -> None:
    broken = FlagModel(make_model("distilbert"), use_fp16=False, devices="cpu")
    token = broken.tokenizer.convert_tokens_to_ids("river")
    with torch.no_grad():
        broken._engine.network.backbone.model.embeddings.word_embeddings.weight[token] = float("nan")
    with pytest.raises(NumericalError, match=r"index 2 .*river"):
        broken.encode(["a cat", "a dog", "by the river"])


def test_out_of_memory_halves_the_budget_and_other_errors_pass(
    make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, texts: Texts
) -> None:
    model = FlagModel(make_model("distilbert"), use_fp16=False, devices="cpu")
    some = texts(400)
    expected, budget, original = model.encode(some), model._engine.token_budget, Engine._forward

    def limited(self: Engine, batch: Any) -> Any:
        if batch.input_ids.numel() > 200:
            raise torch.OutOfMemoryError("no memory")
        return original(self, batch)

    monkeypatch.setattr(Engine, "_forward", limited)
    assert np.abs(model.encode(some) - expected).max() < 1e-6
    assert model._engine.token_budget < budget  # remembered

    def failing(self: Engine, batch: Any) -> Any:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(Engine, "_forward", failing)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        model.encode(some)


def test_threads_and_event_loops_may_share_a_model(model: FlagModel, texts: Texts) -> None:
    parts = [texts(120, seed=seed) for seed in range(8)]
    expected = [model.encode(part) for part in parts]
    with ThreadPoolExecutor(8) as pool:
        for result, right in zip(pool.map(model.encode, parts), expected, strict=True):
            assert np.array_equal(result, right)

    async def served() -> list[Any]:
        return await asyncio.gather(*(asyncio.to_thread(model.encode, part) for part in parts))

    for result, right in zip(asyncio.run(served()), expected, strict=True):
        assert np.array_equal(result, right)


def test_a_reader_who_stops_leaves_no_threads(model: FlagModel, texts: Texts) -> None:
    before = threading.active_count()
    results = model.encode_blocks(texts(64, seed=number) for number in range(50))
    next(results)
    results.close()
    assert threading.active_count() == before


def test_rerankers_are_sent_to_their_class(make_model: Callable[..., Path]) -> None:
    with pytest.raises(CardError, match="FlagReranker"):
        FlagModel("BAAI/bge-reranker-base")
    with pytest.raises(CardError, match="FlagReranker"):
        FlagModel(make_model(name="bge-reranker-v2-m3"))


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_order_any_company_any_batch_size(model: FlagModel, data: st.DataObject) -> None:
    """The same text has the same vector, to 1e-6 in float32, wherever and with whatever else it stands."""
    pool = random_texts(40)
    picked = data.draw(st.lists(st.sampled_from(range(len(pool))), min_size=1, max_size=60))
    batch_size = data.draw(st.none() | st.integers(1, 9))
    streamed = data.draw(st.booleans())
    some = [pool[row] for row in picked]
    got = model.encode(iter(some) if streamed else some, batch_size=batch_size)
    assert np.abs(got - np.asarray(model.encode(pool))[picked]).max() < 1e-6
    for first, row in enumerate(picked):  # equal texts have equal bytes
        assert np.array_equal(got[first], got[picked.index(row)])


def test_a_prompt_that_pooling_leaves_out(tiny_bert: Path, tmp_path: Path) -> None:
    """As INSTRUCTOR: the instruction is read by attention, but only the text's own tokens are averaged."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_bert, folder)
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True, "include_prompt": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    prompts = {"prompts": {"query": "search the river: ", "document": ""}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    model = FlagModel(folder, use_fp16=False, devices="cpu")
    assert model.card.include_prompt is False
    some = ["a cat", "the large tree and the red house", "", "by the river " * 40]
    plain = AutoModel.from_pretrained(folder).eval()
    for text, vector in zip(some, model.encode_queries(some), strict=True):
        ids = model.tokenizer("search the river: " + text, truncation=True, max_length=64, return_tensors="pt")
        prompt = len(model.tokenizer("search the river: ")["input_ids"]) - 1  # with [CLS], without [SEP]
        with torch.no_grad():
            expected = plain(**ids).last_hidden_state[0, prompt:].mean(0)
        assert np.abs(vector - (expected / expected.norm()).numpy()).max() < 1e-5
    theirs = pytest.importorskip("sentence_transformers").SentenceTransformer(str(folder), device="cpu")
    assert np.abs(model.encode_queries(some) - theirs.encode(some, prompt_name="query")).max() < 1e-5
    assert np.abs(model.encode(some) - theirs.encode(some)).max() < 1e-5


def test_every_way_to_set_the_length(tiny_bert: Path) -> None:
    long = "cat " * 100
    model = FlagModel(
        tiny_bert, use_fp16=False, devices="cpu", max_length=40, query_max_length=10, passage_max_length=20
    )
    expected = {length: model.encode("cat " * (length - 2)) for length in (5, 10, 20, 40)}
    for vector, length in (
        (model.encode(long), 40),
        (model.encode_queries(long), 10),
        (model.encode_corpus(long), 20),
        (model.encode_queries(long, max_length=5), 5),
        (model.encode(long, max_length=5), 5),
        (next(model.encode_blocks([[long]], role="query")).vectors[0], 10),
        (next(model.encode_blocks([[long]], role="document")).vectors[0], 20),
        (next(model.encode_blocks([[long]], role="plain")).vectors[0], 40),
        (next(model.encode_blocks([[long]], max_length=5)).vectors[0], 5),
    ):
        assert np.abs(vector - expected[length]).max() < 1e-6


def test_a_caller_may_ask_for_more_than_the_card_but_not_more_than_there_is(tiny_bert: Path) -> None:
    short = FlagModel(tiny_bert, use_fp16=False, devices="cpu", max_length=8)
    long = "cat " * 20
    assert short.encode([long]).truncated == (0,)
    assert short.encode([long], max_length=64).truncated == ()
    with pytest.raises(ArgumentError, match="64 tokens"):
        short.encode([long], max_length=65)


@pytest.mark.parametrize("field", ["query_max_length", "passage_max_length"])
def test_lengths_that_cannot_be_are_refused_at_once(tiny_bert: Path, field: str) -> None:
    with pytest.raises(ArgumentError, match=f"{field}=65 is more than .* can take: 64 tokens"):
        FlagModel(tiny_bert, devices="cpu", **{field: 65})
    assert FlagModel(tiny_bert, devices="cpu", **{field: 64}).encode_queries("a").shape == (32,)


def test_truncation_of_copies_in_streams(model: FlagModel) -> None:
    long = "word " * 100
    many = ["a", long, "b"] * 1500
    expected = tuple(range(1, 4500, 3))
    assert model.encode(many).truncated == expected
    assert model.encode(iter(many)).truncated == expected


def test_the_instruction_takes_its_room_from_the_text(make_model: Callable[..., Path]) -> None:
    model = FlagModel(make_model(name="bge-small-en-v1.5"), use_fp16=False, devices="cpu")
    prompt = model.card.prompts["query"].prefix
    used = len(model.tokenizer(prompt, add_special_tokens=False)["input_ids"])
    fits = "cat " * (62 - used)
    assert model.encode_queries([fits, fits + "cat"]).truncated == (1,)
    assert model.encode_corpus([fits, fits + "cat"]).truncated == ()


def test_a_caller_of_an_api_family_still_gets_one_class(tiny_bert: Path) -> None:
    assert type(FlagModel(tiny_bert, devices="cpu")) is FlagModel


@pytest.mark.parametrize("name", ["encode_queries", "encode_corpus", "encode_query", "encode_document"])
def test_the_methods_of_roles_take_what_encode_takes(model: FlagModel, name: str) -> None:
    """By name, position and default, so that editors know them; keywords of the original are set aside as there."""
    first, *named = inspect.signature(getattr(FlagModel, name)).parameters.values()
    expected = list(inspect.signature(FlagModel.encode).parameters.values())
    assert first.name == "self"
    assert named[0].annotation == expected[1].annotation
    assert named[1:] == expected[2:]
    method = getattr(model, name)
    assert np.array_equal(method(["a text"], prompt=None, return_sparse=False), model.encode(["a text"], prompt=None))
    with pytest.raises(ArgumentError, match="no argument 'sparse'"):
        method(["a text"], sparse=True)


def test_blocks_by_their_name_in_0_1_0(model: FlagModel) -> None:
    blocks = [["a river", "a hill"], ["a river"]]
    expected = [result.vectors for result in model.encode_blocks(blocks, role="query")]
    with pytest.deprecated_call(match="encode_blocks"):
        results = model.encode_windows(blocks, kind="query")
    for result, right in zip(results, expected, strict=True):
        assert np.array_equal(result.vectors, right)


def test_arguments_without_names_stand_in_the_order_of_1_2(tiny_bert: Path) -> None:
    with FlagModel(str(tiny_bert), "mean", False, "find: ", False) as model:
        assert (model.card.pooling, model.card.normalize, model.precision) == ("mean", False, "float32")
        assert model.card.prompts["query"].prefix == "find: "
    with pytest.raises(ArgumentError, match=r"FlagModel\(\.\.\., normalize_embeddings=True, use_fp16=False\)"):
        FlagModel("/nowhere/model", True, False)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="use_fp16 is True or False, not 'yes'"):
        FlagModel("/nowhere/model", use_fp16="yes")  # type: ignore[arg-type]


def test_a_model_shows_what_it_is(tiny_bert: Path, make_reranker: Callable[..., Path]) -> None:
    model = FlagModel(tiny_bert, devices="cpu", use_fp16=False)
    assert repr(model) == f"FlagModel({str(tiny_bert)!r}: {model.dimension} dimensions, pooling cls, float32 on cpu)"
    reranker = FlagReranker(make_reranker("bert"), devices="cpu", use_fp16=False)
    assert repr(reranker).startswith("FlagReranker(") and repr(reranker).endswith(": float32 on cpu)")
