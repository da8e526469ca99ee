"""BGE-M3: three outputs from one pass, equal to FlagEmbedding's formulas on plain transformers, and its methods."""

from __future__ import annotations

import itertools
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer

from bgekit import BGEM3FlagModel, FlagModel, load_model
from bgekit.data import read_records
from bgekit.errors import ArgumentError, CheckpointError, NumericalError, OutputError, TextTypeError
from bgekit.inference import encode_to_shards, load_shards
from bgekit.models import read_card
from bgekit.networks import TokenHeads
from bgekit.networks.heads import write_heads
from m3_models import make_m3
from precisions import BFLOAT16

ALL = {"return_dense": True, "return_sparse": True, "return_colbert_vecs": True}
MODES = ("colbert", "sparse", "dense", "sparse+dense", "colbert+sparse+dense")


def real_texts(shared_path, count: int) -> list[str]:
    """English and Chinese passages, with an empty text, a single letter, and one of more than 512 tokens."""
    found = []
    for name in ("Cranfield", "CMRC2018Retrieval"):
        lines = itertools.islice((shared_path("data", name) / "corpus.jsonl").open(encoding="utf-8"), count)
        found += [json.loads(line)["text"][: 40 * (row % 12 + 1)] for row, line in enumerate(lines)]
    chosen = found[: count // 2] + found[count : count + count // 2 - 3]
    return [*chosen, "", "a", " ".join(found[:40])]


@pytest.fixture(scope="module")
def texts(texts) -> list[str]:
    return texts(40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, texts) -> Path:
    """A tiny model of the kind, as FlagEmbedding writes it. Do not change its files: copy the folder."""
    return make_m3(tmp_path_factory.mktemp("m3") / "bge-m3", texts, dim=24)


@pytest.fixture(scope="module")
def model(folder) -> BGEM3FlagModel:
    return BGEM3FlagModel(folder, use_fp16=False, devices="cpu")


class Plain:
    """FlagEmbedding's formulas on plain transformers in float32, one text at a time."""

    def __init__(self, folder: Path, max_length: int = 512) -> None:
        self.tokenizer, self.model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
        self.sparse, self.colbert = (
            torch.load(folder / f"{name}_linear.pt", weights_only=True) for name in ("sparse", "colbert")
        )
        names = ("cls_token", "eos_token", "pad_token", "unk_token")
        self.unused = {self.tokenizer.convert_tokens_to_ids(getattr(self.tokenizer, name)) for name in names}
        self.max_length = max_length

    @torch.inference_mode()
    def encode(self, text: str):
        inputs = self.tokenizer(text, truncation=True, max_length=self.max_length, return_tensors="pt")
        hidden = self.model.eval()(**inputs).last_hidden_state[0]
        weights = torch.relu(hidden @ self.sparse["weight"].T + self.sparse["bias"])[:, 0]
        lexical: dict[str, float] = {}
        for token, weight in zip(inputs["input_ids"][0].tolist(), weights.tolist(), strict=True):
            if token not in self.unused and weight > 0:
                lexical[str(token)] = max(weight, lexical.get(str(token), 0.0))
        vectors = normalize(hidden[1:] @ self.colbert["weight"].T + self.colbert["bias"], dim=-1)
        return normalize(hidden[0], dim=-1).numpy(), lexical, vectors.numpy()

    def score(self, query: str, passage: str, weights=(1.0, 1.0, 1.0)) -> dict[str, float]:
        (dense, lexical, vectors), (others) = self.encode(query), self.encode(passage)
        scores = {
            "dense": float(dense @ others[0]),
            "sparse": sum(weight * others[1].get(token, 0.0) for token, weight in lexical.items()),
            "colbert": float((vectors @ others[2].T).max(1).sum() / len(vectors)),
        }
        w = dict(zip(("dense", "sparse", "colbert"), weights, strict=True))
        two = (scores["sparse"] * w["sparse"] + scores["dense"] * w["dense"]) / (w["sparse"] + w["dense"])
        three = sum(scores[name] * w[name] for name in w) / sum(weights)
        return {**scores, "sparse+dense": two, "colbert+sparse+dense": three}


def check_equal(found, expected, atol: float = 1e-5) -> None:
    """Outputs of several texts against those of each."""
    for row, (dense, lexical, vectors) in enumerate(expected):
        np.testing.assert_allclose(found["dense_vecs"][row], dense, atol=atol)
        assert found["lexical_weights"][row] == pytest.approx(lexical, abs=atol)
        np.testing.assert_allclose(found["colbert_vecs"][row], vectors, atol=atol)


# --- equal to the formulas ---------------------------------------------------------------------------------------


def test_all_outputs_of_real_texts_equal_plain_transformers(shared_path, tmp_path):
    texts = real_texts(shared_path, 200)
    folder = make_m3(tmp_path / "m3", texts, dim=48, pieces=6000)
    plain, model = Plain(folder), BGEM3FlagModel(folder, use_fp16=False, devices="cpu")
    found = model.encode(texts, **ALL)
    assert len(texts) == 200 and found["dense_vecs"].truncated == (199,)
    check_equal(found, [plain.encode(text) for text in texts])
    pairs = list(zip(texts[:40], texts[160:], strict=True))
    for weights in (None, (0.4, 0.2, 0.4)):
        scores = model.compute_score(pairs, weights_for_different_modes=weights)
        expected = [plain.score(*pair, weights or (1.0, 1.0, 1.0)) for pair in pairs]
        for mode in MODES:
            np.testing.assert_allclose(scores[mode], [each[mode] for each in expected], atol=1e-5)


def test_the_golden_lexical_weights_match_as_published(shared_path, model):
    """Weights of BAAI/bge-m3 by FlagEmbedding; its README has 0.19554901 for these two texts (in float16)."""
    golden = json.loads((shared_path("data", "golden") / "m3_golden_lexical.json").read_text(encoding="utf-8"))
    weights = golden["lexical_weights"]
    assert model.compute_lexical_matching_score(weights[0], weights[1]) == pytest.approx(0.195545, abs=1e-6)
    scores = model.compute_lexical_matching_score(weights[:2], weights)
    assert scores.shape == (2, 5) and scores[0, 1] == scores[1, 0] and scores[1, 4] == 0
    np.testing.assert_allclose(scores[0, 0], sum(weight**2 for weight in weights[0].values()))


@pytest.mark.slow
def test_flag_embedding_gives_the_same_numbers(shared_path, tmp_path):
    """FlagEmbedding 1.4.2 on the same weights: `benchmarks/m3.py setup` makes its environment."""
    python = os.environ.get("FLAGEMBEDDING_PYTHON")
    if python is None:
        pytest.skip("needs FLAGEMBEDDING_PYTHON, the interpreter of an environment with FlagEmbedding 1.4.2")
    texts = real_texts(shared_path, 200)
    folder = make_m3(tmp_path / "m3", texts, pieces=6000)
    pairs = list(zip(texts[:40], texts[160:], strict=True))
    (tmp_path / "input.json").write_text(json.dumps({"texts": texts, "pairs": pairs}))
    program = """
import json, sys
import numpy as np
from FlagEmbedding import BGEM3FlagModel
folder, file, out = sys.argv[1:]
given = json.load(open(file))
model = BGEM3FlagModel(folder, use_fp16=False, devices="cpu", batch_size=16)
found = model.encode(given["texts"], return_dense=True, return_sparse=True, return_colbert_vecs=True)
# One pair at a time: padding takes part in the scores of several.
scores = [model.compute_score(pair, weights_for_different_modes=[0.4, 0.2, 0.4]) for pair in given["pairs"]]
words = [model.convert_id_to_token(weights) for weights in found["lexical_weights"][:20]]
lexical = [{token: float(weight) for token, weight in each.items()} for each in found["lexical_weights"]]
words = [{token: float(weight) for token, weight in each.items()} for each in words]
np.savez(out, dense=found["dense_vecs"], **{f"colbert{n}": v for n, v in enumerate(found["colbert_vecs"])})
json.dump({"lexical": lexical, "scores": scores, "words": words}, open(out + ".json", "w"))
"""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    command = [python, "-c", program, str(folder), str(tmp_path / "input.json"), str(tmp_path / "out.npz")]
    subprocess.run(command, check=True, env=environment, cwd=tmp_path, timeout=600)
    arrays, theirs = np.load(tmp_path / "out.npz"), json.loads((tmp_path / "out.npz.json").read_text())
    model = BGEM3FlagModel(folder, use_fp16=False, devices="cpu")
    found = model.encode(texts, **ALL)
    their_vectors = [arrays[f"colbert{row}"] for row in range(len(texts))]
    check_equal(found, list(zip(arrays["dense"], theirs["lexical"], their_vectors, strict=True)))
    scores = model.compute_score(pairs, weights_for_different_modes=[0.4, 0.2, 0.4])
    for mode in MODES:
        np.testing.assert_allclose(scores[mode], [each[mode] for each in theirs["scores"]], atol=1e-5)
    for weights, words in zip(found["lexical_weights"], theirs["words"], strict=False):
        ours = model.convert_id_to_token(weights)
        assert ours.keys() == words.keys()  # Of ids that look alike, they keep the last one's weight.
        assert all(ours[word] >= words[word] - 1e-5 for word in words)


# --- forms -------------------------------------------------------------------------------------------------------


def test_what_is_not_asked_for_is_none(model, texts):
    assert {name for name, value in model.encode(texts[:2]).items() if value is not None} == {"dense_vecs"}
    found = model.encode(texts[:2], return_dense=False, return_sparse=True)
    assert found["dense_vecs"] is None and found["colbert_vecs"] is None and len(found["lexical_weights"]) == 2
    with pytest.raises(ArgumentError, match="ask for an output"):
        model.encode(texts[:2], return_dense=False)


def test_a_single_text_gives_single_outputs(model, texts):
    one, many = model.encode(texts[0], **ALL), model.encode(texts[:1], **ALL)
    assert one["dense_vecs"].shape == (64,) and one["colbert_vecs"].shape[1] == 24
    assert one["lexical_weights"] == many["lexical_weights"][0]
    assert all(isinstance(weight, float) for weight in one["lexical_weights"].values())
    assert json.loads(json.dumps(one["lexical_weights"])) == one["lexical_weights"]


def test_sparse_arrays_and_ragged_vectors_hold_the_same(model, texts):
    plain, found = model.encode(texts, **ALL), model.encode(texts, **ALL, sparse_format="csr", colbert_format="ragged")
    matrix, ragged = found["lexical_weights"], found["colbert_vecs"]
    assert matrix.shape == (len(texts), model.embedder.vocabulary) and matrix.has_sorted_indices
    for row, weights in enumerate(plain["lexical_weights"]):
        part = slice(matrix.indptr[row], matrix.indptr[row + 1])
        assert dict(zip(map(str, matrix.indices[part]), matrix.data[part].tolist(), strict=True)) == weights
    assert ragged.offsets[-1] == len(ragged.values) == sum(map(len, plain["colbert_vecs"])) and len(ragged) == len(
        texts
    )
    for one, other in zip(plain["colbert_vecs"], ragged, strict=True):
        assert np.array_equal(one, other)
    expected = model.compute_lexical_matching_score(plain["lexical_weights"], plain["lexical_weights"])
    np.testing.assert_allclose(model.compute_lexical_matching_score(matrix, matrix), expected, rtol=1e-5)


def test_no_texts_give_empty_outputs(model):
    found = model.encode([], **ALL, sparse_format="csr", colbert_format="ragged")
    assert found["dense_vecs"].shape == (0, 64) and found["lexical_weights"].shape == (0, model.embedder.vocabulary)
    assert found["colbert_vecs"].values.shape == (0, 24) and len(found["colbert_vecs"]) == 0
    assert model.compute_score([]) == {mode: [] for mode in MODES}


def test_impossible_forms_are_errors(model):
    with pytest.raises(ArgumentError, match="sparse_format is 'dict' or 'csr', not 'coo'"):
        model.encode(["a"], sparse_format="coo")
    with pytest.raises(ArgumentError, match="colbert_format"):
        model.encode(["a"], colbert_format="padded")


def test_words_are_decoded_and_of_two_that_look_alike_the_larger_weight_stays(model):
    tokenizer = model.tokenizer
    ids = {piece: tokenizer.convert_tokens_to_ids(piece) for piece in ("▁s", "s")}
    assert tokenizer.unk_token_id not in ids.values()
    for first, second in ((0.25, 0.75), (0.75, 0.25)):
        weights = {str(ids["▁s"]): first, str(ids["s"]): second}
        assert model.convert_id_to_token(weights) == {"s": 0.75}
        assert model.convert_id_to_token([weights]) == {"s": 0.75}
        assert model.convert_id_to_token([weights, {}]) == [{"s": 0.75}, {}]
        assert model.convert_id_to_token(weights, pieces=True) == {"▁s": first, "s": second}


def test_scores_of_one_pair_are_numbers(model, texts):
    one, many = model.compute_score((texts[0], texts[1])), model.compute_score([(texts[0], texts[1])])
    assert one == {mode: scores[0] for mode, scores in many.items()}
    outputs = [model.encode(text, **ALL) for text in texts[:2]]
    vectors, weights = ([each[name] for each in outputs] for name in ("colbert_vecs", "lexical_weights"))
    assert one["colbert"] == pytest.approx(float(model.colbert_score(*vectors)), abs=1e-6)
    assert one["sparse"] == pytest.approx(model.compute_lexical_matching_score(*weights), abs=1e-6)


def test_scores_do_not_depend_on_how_pairs_are_grouped(monkeypatch, model, texts):
    pairs = [(query, passage) for query in texts[:3] for passage in texts]
    whole = model.compute_score(pairs)
    monkeypatch.setattr("bgekit.inference.m3._PAIRS", 7)
    assert model.compute_score(iter(pairs)) == whole


@pytest.mark.parametrize("weights", [(1, 1), (1, -1, 0), (1, float("nan"), 1)])
def test_impossible_weights_of_modes_are_errors(model, weights):
    with pytest.raises(ArgumentError, match="weights_for_different_modes are three numbers"):
        model.compute_score(("a", "b"), weights_for_different_modes=weights)


def test_what_is_no_pair_is_an_error_with_its_index(model):
    with pytest.raises(TextTypeError, match="index 1"):
        model.compute_score([("a", "b"), ("a",)])
    with pytest.raises(TextTypeError, match="pairs of a query and a passage"):
        model.compute_score("a")
    with pytest.raises(ArgumentError, match="two dicts, two lists of dicts"):
        model.compute_lexical_matching_score({}, [])
    with pytest.raises(ArgumentError, match="two texts"):
        model.colbert_score(np.zeros((2, 4)), np.zeros((2, 5)))


def test_queries_and_passages_have_their_instructions_and_lengths(folder, texts, caplog):
    model = BGEM3FlagModel(
        folder, use_fp16=False, query_instruction_for_retrieval="ask", query_instruction_format="{}: {}",
        query_max_length=20, passage_max_length=30, return_sparse=True, devices="cpu",
    )  # fmt: skip
    long = " ".join(texts)
    asked = model.encode_queries([texts[0][:20]])["lexical_weights"]
    assert asked == model.encode([f"ask: {texts[0][:20]}"])["lexical_weights"]
    with caplog.at_level(logging.WARNING):
        assert model.encode_queries(long, return_colbert_vecs=True)["colbert_vecs"].shape == (19, 24)
        assert model.encode_corpus(long, return_colbert_vecs=True)["colbert_vecs"].shape == (29, 24)
    assert "1 of 1 texts were too long" in caplog.text
    assert model.encode(long, return_colbert_vecs=True)["colbert_vecs"].shape == (29, 24)
    assert model.encode([long, "a"])["dense_vecs"].truncated == (0,)
    assert model.encode(long, max_length=8, return_colbert_vecs=True)["colbert_vecs"].shape == (7, 24)


def test_leading_dimensions_are_kept_of_both_kinds_of_vectors(folder, model, texts):
    short = BGEM3FlagModel(folder, use_fp16=False, truncate_dim=8, devices="cpu").encode(texts[:3], **ALL)
    whole = model.encode(texts[:3], **ALL)
    assert short["dense_vecs"].shape == (3, 8)
    for one, other in zip(short["colbert_vecs"], whole["colbert_vecs"], strict=True):
        np.testing.assert_allclose(one, other[:, :8] / np.linalg.norm(other[:, :8], axis=1, keepdims=True), atol=1e-5)


# --- bits, streams, devices --------------------------------------------------------------------------------------


def same(one, other) -> bool:
    return (
        np.array_equal(one["dense_vecs"], other["dense_vecs"])
        and one["lexical_weights"] == other["lexical_weights"]
        and len(one["colbert_vecs"]) == len(other["colbert_vecs"])
        and all(map(np.array_equal, one["colbert_vecs"], other["colbert_vecs"]))
    )


@pytest.fixture(scope="module")
def with_heads(bge_small_en, tmp_path_factory) -> Path:
    """The real bge-small-en-v1.5 with random heads."""
    folder = tmp_path_factory.mktemp("heads") / "bge-small-en-v1.5"
    shutil.copytree(bge_small_en, folder)
    folder.chmod(0o755)
    torch.manual_seed(0)
    write_heads(TokenHeads(384, sparse=True, multi_vector=128), folder)
    return folder


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")
@pytest.mark.parametrize("dtype", ["float32", BFLOAT16])
def test_all_outputs_depend_on_the_text_alone(with_heads, shared_path, dtype):
    texts = [text[:1500] for text in real_texts(shared_path, 60)[::2]]
    model = BGEM3FlagModel(with_heads, dtype=dtype, devices="cpu")
    whole = model.encode(texts, **ALL)
    assert same(model.encode(texts[::-1], **ALL, batch_size=3), {key: value[::-1] for key, value in whole.items()})
    for row in (0, 7, len(texts) - 3, len(texts) - 1):
        assert same(model.encode(texts[row : row + 1], **ALL), {key: v[row : row + 1] for key, v in whole.items()})
    # Nor on what else is asked for.
    assert np.array_equal(FlagModel(with_heads, dtype=dtype, devices="cpu").encode(texts), whole["dense_vecs"])
    assert model.encode(texts, return_dense=False, return_sparse=True)["lexical_weights"] == whole["lexical_weights"]


def test_several_devices_give_the_same(folder, texts):
    many = [f"{text} {number}" for number in range(60) for text in texts]
    with BGEM3FlagModel(folder, use_fp16=False, devices=["cpu", "cpu"]) as model:
        assert same(
            model.encode(many, **ALL), BGEM3FlagModel(folder, use_fp16=False, devices="cpu").encode(many, **ALL)
        )


def test_streams_give_the_same_and_equal_texts_are_computed_once(monkeypatch, model, texts):
    monkeypatch.setattr("bgekit.inference.model._MULTI_BLOCK", 8)
    monkeypatch.setattr("bgekit.inference.embedder.FlagModel.block_size", 8)
    repeated = [*texts, *texts[:5], texts[0].upper(), *texts[:5]]
    tokens = []
    monkeypatch.setattr(model.embedder._spec.__class__, "pack", counted(model.embedder._spec.__class__.pack, tokens))
    whole = model.encode((text for text in repeated), **ALL)
    assert sum(tokens) == len(set(repeated))
    assert same({key: value[-5:] for key, value in whole.items()}, model.encode(texts[:5], **ALL))


def counted(pack, counts):
    def call(self, tokens, batch):
        counts.append(len(batch))
        return pack(self, tokens, batch)

    return call


def test_what_is_no_text_is_an_error_with_its_index(model):
    with pytest.raises(TextTypeError, match="index 1"):
        model.encode(["a", None], **ALL)
    with pytest.raises(TextTypeError):
        model.encode(7, **ALL)


# --- heads and files ---------------------------------------------------------------------------------------------


def test_a_missing_head_is_an_error_when_its_output_is_asked_for(folder, tmp_path, texts):
    copy = tmp_path / "m3"
    shutil.copytree(folder, copy)
    (copy / "sparse_linear.pt").unlink()
    shutil.rmtree(copy / "heads")
    model = BGEM3FlagModel(copy, use_fp16=False, devices="cpu")
    assert model.outputs == ("dense", "multi-vector")
    assert len(model.encode(texts[:2], return_colbert_vecs=True)["colbert_vecs"]) == 2
    for call in (
        lambda: model.encode(texts[:2], return_sparse=True),
        lambda: model.compute_score((texts[0], texts[1])),
        lambda: BGEM3FlagModel(copy, return_sparse=True),
    ):
        with pytest.raises(CheckpointError, match=r"no head for the output 'sparse': no sparse_linear\.pt"):
            call()


def test_a_plain_model_has_dense_vectors_alone(tiny_bert):
    model = BGEM3FlagModel(tiny_bert, use_fp16=False, devices="cpu")
    assert model.outputs == ("dense",) and model.encode(["a"])["dense_vecs"].shape == (1, 32)
    with pytest.raises(CheckpointError, match="'multi-vector'"):
        model.encode(["a"], return_colbert_vecs=True)


def test_a_width_that_the_head_does_not_have_is_an_error(folder):
    assert BGEM3FlagModel(folder, colbert_dim=24, devices="cpu").embedder.token_dimension == 24
    with pytest.raises(ArgumentError, match=r"colbert_dim=32, but the head in .* gives 24"):
        BGEM3FlagModel(folder, colbert_dim=32, devices="cpu")


def test_a_damaged_head_shows_as_an_error_and_not_as_missing_words(folder, tmp_path):
    copy = tmp_path / "m3"
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / "heads")
    for name in ("sparse", "colbert"):
        weights = torch.load(copy / f"{name}_linear.pt", weights_only=True)
        torch.save({key: value * torch.nan for key, value in weights.items()}, copy / f"{name}_linear.pt")
    model = BGEM3FlagModel(copy, use_fp16=False, devices="cpu")
    for output in ("return_sparse", "return_colbert_vecs"):
        with pytest.raises(NumericalError, match="index 0 has NaN"):
            model.encode(["a cat"], **{output: True})


def test_a_folder_that_flag_embedding_wrote_says_what_it_is(folder):
    card = read_card(folder, "my-run")
    assert (card.pooling, card.normalize, card.heads) == ("cls", True, ("sparse", "multi-vector"))
    assert load_model(folder, devices="cpu").outputs == ("dense", "sparse", "multi-vector")


def test_a_saved_model_gives_the_same_outputs(folder, model, tmp_path, texts):
    model.save(tmp_path / "saved")
    saved = BGEM3FlagModel(tmp_path / "saved", use_fp16=False, devices="cpu")
    assert same(saved.encode(texts, **ALL), model.encode(texts, **ALL))
    for name in ("sparse_linear", "colbert_linear"):
        assert (tmp_path / "saved" / "heads" / f"{name}.safetensors").is_file()
        before, after = (torch.load(at / f"{name}.pt", weights_only=True) for at in (folder, tmp_path / "saved"))
        assert all(torch.equal(before[key], after[key]) for key in before)
    from sentence_transformers import SentenceTransformer

    vectors = SentenceTransformer(str(tmp_path / "saved"), device="cpu").encode(texts)
    np.testing.assert_allclose(vectors, model.encode(texts)["dense_vecs"], atol=1e-5)


def test_other_architectures_take_heads(make_model, tmp_path, texts):
    for kind in ("mpnet", "modernbert"):
        folder = make_model(kind, pooling="mean")
        write_heads(TokenHeads(32, sparse=True, multi_vector=8), folder)
        model = BGEM3FlagModel(folder, use_fp16=False, devices="cpu")
        found, dense = (
            model.encode(texts[:6], **ALL),
            FlagModel(folder, use_fp16=False, devices="cpu").encode(texts[:6]),
        )
        np.testing.assert_allclose(found["dense_vecs"], dense, atol=1e-6)
        assert [len(each) for each in found["colbert_vecs"]] == [
            len(ids) - 1 for ids in model.tokenizer(texts[:6], truncation=True, max_length=64)["input_ids"]
        ]


# --- shards ------------------------------------------------------------------------------------------------------


@pytest.fixture
def corpus(tmp_path, texts) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"id": str(row), "text": text}) + "\n" for row, text in enumerate(texts)))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".lock"}


OUTPUTS = ("dense", "sparse", "multi-vector")


def test_shards_hold_all_outputs_and_are_made_again_where_one_is_missing(model, corpus, tmp_path, texts):
    out = tmp_path / "out"
    embedder = model.embedder
    encode_to_shards(embedder, read_records(corpus), out, shard_size=16, outputs=OUTPUTS)
    whole, shards = contents(out), load_shards(out)
    assert shards.outputs == OUTPUTS and {f"shard-00002{end}" for end in (".sparse.npz", ".multi.npy")} <= whole.keys()
    expected = model.encode(texts, **ALL, sparse_format="csr")
    assert np.array_equal(shards.vectors(), expected["dense_vecs"])
    rows = [part.matrix(embedder.vocabulary) for part in shards.lexical_parts()]
    import scipy.sparse

    assert (scipy.sparse.vstack(rows) != expected["lexical_weights"]).nnz == 0
    assert (scipy.sparse.load_npz(out / "shard-00001.sparse.npz") != rows[1]).nnz == 0
    vectors = [each for part in shards.multi_vector_parts() for each in part]
    assert all(map(np.array_equal, vectors, expected["colbert_vecs"]))
    for name in ("shard-00000.sparse.npz", "shard-00001.multi.npy", "shard-00002.offsets.npy"):
        (out / name).unlink()
        report = encode_to_shards(embedder, read_records(corpus), out, shard_size=16, outputs=OUTPUTS)
        assert 0 < report.kept < report.texts and contents(out) == whole


def test_shards_of_other_outputs_or_heads_are_not_gone_on_with(model, folder, corpus, tmp_path):
    encode_to_shards(model.embedder, read_records(corpus), tmp_path / "out", outputs=("dense", "sparse"))
    for outputs in (("dense",), OUTPUTS):
        with pytest.raises(OutputError, match="outputs was"):
            encode_to_shards(model.embedder, read_records(corpus), tmp_path / "out", outputs=outputs)
    copy = tmp_path / "other"
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / "heads")
    torch.save(TokenHeads(64, sparse=True).sparse.state_dict(), copy / "sparse_linear.pt")
    other = FlagModel(copy, use_fp16=False, devices="cpu")
    assert other.fingerprint == model.embedder.fingerprint
    with pytest.raises(OutputError, match="heads was"):
        encode_to_shards(other, read_records(corpus), tmp_path / "out", outputs=("dense", "sparse"))
    with pytest.raises(OutputError, match="holds dense, sparse alone"):
        next(load_shards(tmp_path / "out").multi_vector_parts())


def test_bge_encode_writes_all_outputs(folder, corpus, tmp_path):
    command = [
        sys.executable, "-m", "bgekit", "encode", str(corpus), "-o", str(tmp_path / "out"), "--model", str(folder),
        "--outputs", "sparse", "multi-vector", "--output-dtype", "float16", "--quiet",
    ]  # fmt: skip
    subprocess.run(command, check=True, timeout=300)
    shards = load_shards(tmp_path / "out")
    assert shards.outputs == ("sparse", "multi-vector") and shards.vectors().shape == (40, 0)
    assert next(shards.multi_vector_parts()).values.dtype == np.float16
