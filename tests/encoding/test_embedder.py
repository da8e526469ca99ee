"""FlagModel as users call it: shapes, prompts, duplicates, truncation, types, threads."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bgekit import FlagModel
from bgekit.encoding.engine import Engine
from bgekit.errors import ArgumentError, CardError, NumericalError, TextTypeError

Texts = Callable[..., list[str]]


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
    assert np.array_equal(vectors[0], vectors[1])  # WordPiece drops white space


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
    assert "2 of 4 texts were too long" in caplog.text or "1 of 4" in caplog.text
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


def test_a_suffix_survives_truncation(model: FlagModel) -> None:
    from bgekit.encoding.tokenization import TextTokenizer
    from bgekit.models.prompts import Prompt

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


def test_not_a_number_names_the_text(make_model: Callable[..., Path], texts: Texts) -> None:
    broken = FlagModel(make_model("distilbert"), use_fp16=False, devices="cpu")
    token = broken.tokenizer.convert_tokens_to_ids("river")
    with torch.no_grad():
        broken._engine.encoder.backbone.model.embeddings.word_embeddings.weight[token] = float("nan")
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
    windows = model.encode_windows(texts(64, seed=number) for number in range(50))
    next(windows)
    windows.close()
    assert threading.active_count() == before


def test_rerankers_are_sent_to_their_class(make_model: Callable[..., Path]) -> None:
    with pytest.raises(CardError, match="FlagReranker"):
        FlagModel("BAAI/bge-reranker-base")
    with pytest.raises(CardError, match="FlagReranker"):
        FlagModel(make_model(name="bge-reranker-v2-m3"))
