"""FlagReranker against plain transformers, and what it does with every kind of input."""

from __future__ import annotations

import itertools
import json
import logging
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bgekit
from bgekit import FlagReranker
from bgekit.errors import ArgumentError, BgekitError, CardError, CheckpointError, NumericalError, TextTypeError
from bgekit.inference.engine import Engine
from bgekit.inference.tokenization import token_windows
from bgekit.networks.encoder import FusedBackbone, PackedBackbone
from bgekit.networks.loading import cpu_has_fast_bfloat16
from bgekit.search.index import PairScorer
from precisions import needs_bfloat16

KINDS = ["bert", "roberta", "xlm-roberta", "modernbert", "distilbert", "mpnet"]


@pytest.fixture(scope="module")
def pairs(texts):
    return list(zip(texts(12, seed=1, longest=8), texts(12, seed=2, longest=30), strict=True))


@pytest.fixture(scope="module")
def reranker(tiny_reranker):
    return FlagReranker(tiny_reranker)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_to_transformers(make_reranker, plain_logits, pairs, kind):
    folder = make_reranker(kind)
    reranker = FlagReranker(folder)
    backbone = reranker._engine.network._backbone[0]
    fused = kind in ("bert", "roberta", "xlm-roberta") and torch.backends.mkldnn.is_available()
    assert isinstance(backbone, FusedBackbone if fused else type(None) if kind == "mpnet" else PackedBackbone)
    expected = plain_logits(folder, pairs)[:, 0]
    assert expected.std() > 0.1
    np.testing.assert_allclose(reranker.compute_score(pairs), expected, atol=1e-5)
    np.testing.assert_allclose(reranker.compute_score(pairs, batch_size=1), expected, atol=1e-5)


@needs_bfloat16
@pytest.mark.parametrize("kind", ["bert", "xlm-roberta", "modernbert"])
def test_half_precision_is_near(make_reranker, plain_logits, pairs, kind):
    folder = make_reranker(kind)
    expected = plain_logits(folder, pairs)[:, 0]
    reranker = FlagReranker(folder, dtype="bfloat16")
    assert reranker.precision == "bfloat16"
    np.testing.assert_allclose(reranker.compute_score(pairs), expected, atol=0.15)


def test_use_fp16_is_the_fast_format(tiny_reranker):
    assert FlagReranker(tiny_reranker).precision == "float32"
    assert FlagReranker(tiny_reranker, True).precision == ("bfloat16" if cpu_has_fast_bfloat16() else "float32")


def test_token_types_count(make_reranker, plain_logits, pairs, tmp_path):
    """A BERT that is told that all tokens are of one segment gives other scores: ours are those of two."""
    folder = make_reranker("bert")
    reranker = FlagReranker(folder)
    assert reranker._engine.network.token_types == 2
    tokens = reranker._request.preprocessor(reranker.tokenizer)(pairs[:1])
    whole = reranker.tokenizer(*pairs[0])
    assert (tokens.ids[0], tokens.types[0]) == (whole["input_ids"], whole["token_type_ids"])
    assert 1 in tokens.types[0]


def test_mean_pooling_of_modernbert(make_reranker, plain_logits, pairs):
    folder = make_reranker("modernbert", classifier_pooling="mean")
    np.testing.assert_allclose(FlagReranker(folder).compute_score(pairs), plain_logits(folder, pairs)[:, 0], atol=1e-5)


def test_two_labels_are_log_odds(make_reranker, plain_logits, pairs):
    folder = make_reranker("bert", labels=2)
    logits = plain_logits(folder, pairs)
    reranker = FlagReranker(folder)
    np.testing.assert_allclose(reranker.compute_score(pairs), logits[:, 1] - logits[:, 0], atol=2e-5)
    probabilities = logits.softmax(1)[:, 1]
    np.testing.assert_allclose(reranker.compute_score(pairs, normalize=True), probabilities, atol=1e-5)


def test_more_labels_are_refused(make_reranker):
    with pytest.raises(CardError, match=r"tells 3 classes apart \(LABEL_0, .*one output"):
        FlagReranker(make_reranker("bert", labels=3))


def test_an_embedder_is_refused(tiny_bert):
    with pytest.raises(CardError, match=r"is not a reranker: .*BertModel.*FlagModel"):
        FlagReranker(tiny_bert)


def test_an_embedder_refuses_a_reranker(tiny_reranker):
    with pytest.raises(CardError, match="FlagReranker"):
        bgekit.FlagModel(tiny_reranker, pooling_method="cls")


def test_one_pair_gives_a_number(reranker, pairs):
    expected = reranker.compute_score(pairs)
    for pair in (pairs[0], list(pairs[0])):
        score = reranker.compute_score(pair)
        assert type(score) is float
        assert score == pytest.approx(expected[0], abs=1e-5)
    for one in ([pairs[0]], (pairs[0],), [list(pairs[0])]):
        scores = reranker.compute_score(one)
        assert isinstance(scores, list)
        assert len(scores) == 1
    assert json.loads(json.dumps(expected)) == expected


@pytest.mark.parametrize("empty", [[], (), iter(())])
def test_nothing_gives_nothing(reranker, empty):
    assert reranker.compute_score(empty) == []
    assert reranker.rank("query", []) == []


def test_streams_and_arrays(reranker, pairs):
    expected = reranker.compute_score(pairs)
    assert reranker.compute_score(iter(pairs)) == expected
    assert reranker.compute_score(np.array(pairs)) == expected
    assert reranker.compute_score(tuple(pairs)) == expected


def test_order_does_not_matter(reranker, pairs):
    expected = dict(zip(pairs, reranker.compute_score(pairs), strict=True))
    order = np.random.default_rng(0).permutation(len(pairs))
    shuffled = [pairs[row] for row in order]
    np.testing.assert_allclose(reranker.compute_score(shuffled), [expected[pair] for pair in shuffled], atol=1e-5)


def test_equal_pairs_are_computed_once(reranker, pairs, monkeypatch):
    seen = []
    original = reranker._spec.pack

    def pack(spec, tokens, batch):
        seen.extend(batch)
        return original(tokens, batch)

    monkeypatch.setattr(type(reranker._spec), "pack", pack)
    scores = reranker.compute_score([pairs[0], pairs[1], pairs[0], pairs[0]])
    assert len(seen) == 2
    assert scores[0] == scores[2] == scores[3] != scores[1]


def test_pairs_of_equal_tokens_get_one_score(tiny_reranker, monkeypatch):
    sizes = []
    original = Engine._forward

    def rounded(self, batch):
        sizes.append(len(batch.lengths))
        return original(self, batch) + 1e-2 * len(sizes)

    monkeypatch.setattr(Engine, "_forward", rounded)
    reranker = FlagReranker(tiny_reranker, devices="cpu", long_passages="windows")
    long = " ".join(["the river runs by a house"] * 20)
    pairs = [("a cat", "A dog"), ("a cat", long), ("A  CAT", "a dog "), ("x", "a dog"), ("a CAT", long.upper())]
    scores = reranker.compute_score(pairs, batch_size=1)
    assert scores[0] == scores[2] != scores[3]
    assert scores[1] == scores[4]
    assert scores.windowed == (1, 4)
    before = len(sizes)
    reranker.compute_score([pairs[0], pairs[2]])
    assert sum(sizes[before:]) == 1


def test_normalise_is_a_sigmoid(reranker, tiny_reranker, pairs):
    raw = np.array(reranker.compute_score(pairs))
    expected = 1 / (1 + np.exp(-raw))
    np.testing.assert_allclose(reranker.compute_score(pairs, normalize=True), expected, rtol=1e-12)
    always = FlagReranker(tiny_reranker, normalize=True)
    np.testing.assert_allclose(always.compute_score(pairs), expected, atol=1e-6)
    np.testing.assert_allclose(always.compute_score(pairs, normalize=False), raw, atol=1e-5)
    assert 0 < reranker.compute_score(pairs[0], normalize=True) < 1


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([("a", "b"), ("a", None)], "the passage of the one at index 1 is None"),
        ([("a", "b"), (3, "b")], "the query of the one at index 1 is 3"),
        ([("a", "b"), None], "the one at index 1 is None"),
        ([("a", "b"), "ab"], "the one at index 1 is 'ab'"),
        ([("a", "b", "c")], "the one at index 0"),
        (["a", "b", "c"], "the one at index 0"),
        (["a", None], "the passage of the one at index 0 is None"),
        (["a"], "the one at index 0"),
        ("ab", "not str"),
        (5, "not int"),
        (None, "not NoneType"),
        ({"a": "b"}, "not dict"),
    ],
)
def test_wrong_input_is_a_type_error(reranker, bad, message):
    with pytest.raises(TextTypeError, match=message) as raised:
        reranker.compute_score(bad)
    assert isinstance(raised.value, TypeError)
    assert isinstance(raised.value, BgekitError)


def test_rank(reranker, texts):
    passages = [*texts(6, seed=3, longest=12), texts(1, seed=3, longest=12)[0]]
    hits = reranker.rank("which bird", passages)
    scores = reranker.compute_score([("which bird", passage) for passage in passages])
    assert [hit.index for hit in hits] == sorted(range(7), key=lambda index: (-scores[index], index))
    for hit in hits:
        assert hit.text == passages[hit.index]
        assert hit.score == pytest.approx(scores[hit.index], abs=1e-5)
    assert reranker.rank("which bird", passages, top_k=2) == hits[:2]
    assert hits[0].to_dict() == {"index": hits[0].index, "score": hits[0].score, "text": hits[0].text}
    assert 0 < reranker.rank("which bird", iter(passages), normalize=True)[0].score < 1


@pytest.mark.parametrize(
    ("query", "passages", "message"),
    [("q", ["a", None], "index 1 is None"), (1, ["a"], "the query"), ("q", "a passage", "list of strings, not str")],
)
def test_rank_checks_its_input(reranker, query, passages, message):
    with pytest.raises(TextTypeError, match=message):
        reranker.rank(query, passages)
    with pytest.raises(ArgumentError, match="top_k"):
        reranker.rank("q", ["a"], top_k=0)


def test_query_and_passage_share_the_length(reranker, caplog):
    long = "cat " * 100
    preprocess = reranker._request.preprocessor(reranker.tokenizer)
    cat = reranker.tokenizer("cat", add_special_tokens=False)["input_ids"]
    for pair, query, passage, cut in (
        ((long, long), 48, 13, True),
        (("cat cat", long), 2, 59, True),
        (("cat cat", "cat " * 59), 2, 59, False),
        ((long, "cat"), 48, 1, True),
        (("cat " * 48, "cat"), 48, 1, False),
        (("", ""), 0, 0, False),
    ):
        tokens = preprocess([pair])
        assert tokens.ids[0].count(cat[0]) == query + passage
        assert len(tokens.ids[0]) <= 64
        assert tokens.ids[0].index(reranker.tokenizer.sep_token_id) == query + 1
        assert tokens.truncated == ([0] if cut else [])
    with caplog.at_level(logging.WARNING, "bgekit"):
        scores = reranker.compute_score([("cat", "dog"), ("cat", long), ("cat", long)])
    assert scores.truncated == (1, 2)
    assert "2 of 3 pairs were too long" in caplog.text
    assert reranker.compute_score([("cat", "dog " * 20)], max_length=16).truncated == (0,)
    assert reranker.compute_score([("cat " * 9, "dog")], query_max_length=4).truncated == (0,)


def test_cut_as_transformers_cuts(reranker, tiny_reranker, plain_logits):
    pair = ("which cat", "dog bird " * 60)
    assert reranker.compute_score(pair) == pytest.approx(float(plain_logits(tiny_reranker, [pair])[0, 0]), abs=1e-5)
    short = float(plain_logits(tiny_reranker, [pair], max_length=20)[0, 0])
    assert reranker.compute_score(pair, max_length=20) == pytest.approx(short, abs=1e-5)


def test_windows_of_long_passages(tiny_reranker, reranker, texts, caplog):
    long, short = " ".join(texts(4, seed=5, longest=60)), "a small bird"
    windowed = FlagReranker(tiny_reranker, long_passages="windows", window_overlap=4)
    with caplog.at_level(logging.INFO, "bgekit"):
        scores = windowed.compute_score([("cat", short), ("cat", long), ("cat", long), ("dog", long)])
    assert scores.windowed == (1, 2, 3)
    assert scores.truncated == ()
    assert "3 of 4 passages were long" in caplog.text
    assert scores[0] == pytest.approx(reranker.compute_score(("cat", short)), abs=1e-5)
    ids = reranker.tokenizer(long, add_special_tokens=False)["input_ids"]
    parts = token_windows(ids, 64 - 3 - 1, 4)
    by_hand = reranker.compute_score([("cat", reranker.tokenizer.decode(part)) for part in parts])
    assert scores[1] == pytest.approx(max(by_hand), abs=1e-5)
    assert scores[1] >= reranker.compute_score(("cat", long)) - 1e-5


@given(st.integers(2, 200), st.integers(1, 60), st.none() | st.integers(0, 70))
@settings(max_examples=100, deadline=None)
def test_windows_cover_everything(count, size, overlap):
    count = max(count, size + 1)
    windows = token_windows(list(range(count)), size, overlap)
    assert all(len(window) == size for window in windows)
    assert sorted({token for window in windows for token in window}) == list(range(count))
    assert [window[0] for window in windows] == sorted({window[0] for window in windows})
    # Neighbours share half at most, but for the last one: a long query makes no window for every token.
    assert all(second[0] - first[0] >= size / 2 for first, second in itertools.pairwise(windows[:-1]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 4}, "leaves no room for a passage"),
        ({"max_length": 64, "query_max_length": 61}, "leaves no room for a passage"),
        ({"max_length": 65}, "64 tokens"),
        ({"max_length": -1}, "positive number of tokens"),
        ({"batch_size": 0}, "batch_size"),
        ({"long_passages": "fold"}, "cut, windows"),
        ({"window_overlap": -1}, "window_overlap must be a number of tokens from 0 on, not -1"),
        ({"window_overlap": True}, "window_overlap"),
        ({"dtype": "float7"}, "float7"),
        ({"devices": "cuda:77"}, "cuda:77"),
    ],
)
def test_impossible_arguments(tiny_reranker, options, message):
    with pytest.raises(BgekitError, match=message):
        FlagReranker(tiny_reranker, **options)


def test_impossible_arguments_of_a_call(reranker):
    for options in ({"max_length": 65}, {"batch_size": 0}, {"query_max_length": 62}, {"max_length": 3}):
        with pytest.raises(ArgumentError):
            reranker.compute_score(("a", "b"), **options)
    with pytest.raises(TypeError):
        reranker.compute_score(("a", "b"), nonsense=1)


def test_instructions(tiny_reranker, reranker):
    told = FlagReranker(
        tiny_reranker, query_instruction_for_rerank="find", query_instruction_format="{}: {}",
        passage_instruction_for_rerank="text ",
    )  # fmt: skip
    expected = reranker.compute_score(("find: cat", "text dog"))
    assert told.compute_score(("cat", "dog")) == pytest.approx(expected, abs=1e-5)
    assert told.fingerprint != reranker.fingerprint


def test_lone_surrogates_are_repaired(reranker, caplog):
    scores = reranker.compute_score([("cat \ud800", "dog"), ("cat", "dog")])
    assert scores.repaired == (0,)
    assert scores[0] == pytest.approx(reranker.compute_score(("cat \ufffd", "dog")), abs=1e-5)


def test_infinite_scores_are_an_error(make_reranker, pairs):
    broken = FlagReranker(make_reranker("distilbert", seed=9))
    with torch.no_grad():
        broken._engine.network.model.classifier.bias.fill_(float("nan"))
    with pytest.raises(NumericalError, match="the score of the pair at index 0"):
        broken.compute_score(pairs)


@needs_bfloat16
def test_fingerprint_says_what_decides_a_score(tiny_reranker, make_reranker, reranker):
    assert FlagReranker(tiny_reranker).fingerprint == reranker.fingerprint
    others = [
        FlagReranker(tiny_reranker, max_length=32), FlagReranker(tiny_reranker, normalize=True),
        FlagReranker(tiny_reranker, long_passages="windows"), FlagReranker(tiny_reranker, dtype="bfloat16"),
        FlagReranker(make_reranker("bert", seed=2)),
    ]  # fmt: skip
    assert len({reranker.fingerprint, *(other.fingerprint for other in others)}) == 6


def test_it_is_a_reranker_for_evaluation(reranker, pairs):
    judged: PairScorer = reranker
    assert np.asarray(judged.compute_score(pairs[:1])).shape == (1,)


def test_several_devices(tiny_reranker, reranker, texts):
    many = list(zip(texts(2100, seed=6, longest=3), texts(2100, seed=7, longest=4), strict=True))
    with FlagReranker(tiny_reranker, devices=["cpu", "cpu"]) as shared:
        scores = shared.compute_score(many)
        assert len(shared._pool.workers) == 1
    assert not shared._pool.workers
    np.testing.assert_allclose(scores, reranker.compute_score(many), atol=1e-5)


def test_pickles_need_to_be_allowed(make_reranker, tmp_path):
    import shutil

    folder = shutil.copytree(make_reranker("bert"), tmp_path / "pickled")
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="allow_pickle"):
        FlagReranker(folder)
    assert FlagReranker(folder, allow_pickle=True).compute_score(("a", "b")) == pytest.approx(
        FlagReranker(make_reranker("bert")).compute_score(("a", "b")), abs=1e-6
    )


def test_weights_that_are_missing_are_an_error(make_reranker, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(make_reranker("bert"), tmp_path / "headless")
    weights = load_file(folder / "model.safetensors")
    save_file({name: value for name, value in weights.items() if "pooler" not in name}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="pooler"):
        FlagReranker(folder)


def test_the_seeds_snippet(tiny_reranker):
    program = f"""
from FlagEmbedding import FlagReranker
reranker = FlagReranker({str(tiny_reranker)!r}, use_fp16=True) # Setting use_fp16 to True speeds up computation

score = reranker.compute_score(['query', 'passage'])
print(score)

scores = reranker.compute_score([['what is panda?', 'hi'], ['what is panda?', 'The giant panda is a bear.']])
print(scores)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    first, second = done.stdout.splitlines()
    assert isinstance(json.loads(first), float)
    assert len(json.loads(second)) == 2
