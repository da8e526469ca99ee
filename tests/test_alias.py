"""The alias package: the same class under the name that users know, and clear words for what is not there."""

import importlib
import json
import logging
import runpy
import subprocess
import sys

import numpy as np
import pytest
import torch

import bgekit
import FlagEmbedding
from bgekit.errors import ArgumentError, BgekitError
from flagembedding_paths import PATHS

#: The public names of FlagEmbedding 1.2 and 1.4 that are not here.
MISSING = (
    "FlagLLMModel FlagICLModel FlagPseudoMoEModel LLMEmbedder FlagLLMReranker "
    "LayerWiseFlagLLMReranker LightWeightFlagLLMReranker AbsEmbedder AbsReranker EmbedderModelClass "
    "RerankerModelClass"
).split()


def test_it_is_the_same_class():
    from FlagEmbedding.inference.embedder.encoder_only.m3 import M3Embedder

    from FlagEmbedding import BGEM3FlagModel, FlagModel

    assert FlagModel is FlagEmbedding.FlagModel is bgekit.FlagModel
    assert BGEM3FlagModel is M3Embedder is bgekit.BGEM3FlagModel


def test_star_import_gives_what_is_there():
    names = {}
    exec("from FlagEmbedding import *", names)
    assert names["FlagModel"] is bgekit.FlagModel
    assert "FlagAutoModel" in names


@pytest.mark.parametrize("name", MISSING)
def test_other_names_say_what_there_is(name):
    with pytest.raises(ImportError, match=rf"no {name}: .+") as raised:
        exec(f"from FlagEmbedding import {name}")
    assert isinstance(raised.value, BgekitError)
    with pytest.raises(ImportError, match="alias package of bgekit"):
        getattr(FlagEmbedding, name)


def test_unknown_names_are_ordinary_errors():
    assert not hasattr(FlagEmbedding, "something")
    with pytest.raises(AttributeError, match="alias of bgekit"):
        _ = FlagEmbedding.something
    with pytest.raises(ImportError):
        exec("from FlagEmbedding import something")


def test_auto_model_gives_the_same_vectors(make_model, texts):
    folder = make_model(name="bge-small-zh-v1.5")
    model = FlagEmbedding.FlagAutoModel.from_finetuned(str(folder), use_fp16=False, devices="cpu")
    assert type(model) is bgekit.FlagModel
    plain = bgekit.FlagModel(folder, use_fp16=False)
    np.testing.assert_array_equal(model.encode_queries(texts(4)), plain.encode_queries(texts(4)))
    assert model.card.prompt("query").prefix.startswith("为这个句子")


def test_auto_model_knows_bge_m3_by_its_name_and_by_its_kind(make_model):
    folder = make_model(name="bge-m3")
    model = FlagEmbedding.FlagAutoModel.from_finetuned(str(folder), use_fp16=False, devices="cpu")
    assert type(model) is bgekit.BGEM3FlagModel
    assert sorted(model.encode("a cat")) == ["colbert_vecs", "dense_vecs", "lexical_weights"]
    other = make_model()
    found = FlagEmbedding.FlagAutoModel.from_finetuned(str(other), model_class="encoder-only-m3", devices="cpu")
    assert type(found) is bgekit.BGEM3FlagModel


def test_auto_model_takes_the_arguments_of_the_original(tiny_bert, texts):
    model = FlagEmbedding.FlagAutoModel.from_finetuned(
        str(tiny_bert), model_class="encoder-only-base", normalize_embeddings=True, use_fp16=False, use_bf16=False,
        query_instruction_for_retrieval="ask", devices="cpu", pooling_method="mean", trust_remote_code=None,
        query_instruction_format="{}: {}", truncate_dim=8, batch_size=4,
    )  # fmt: skip
    assert (model.card.pooling, model.card.prompt("query").prefix, model.dimension) == ("mean", "ask: ", 8)
    np.testing.assert_allclose(
        model.encode_queries(texts(2)), model.encode([f"ask: {text}" for text in texts(2)]), atol=1e-6
    )


def test_auto_model_refuses_what_it_would_get_wrong(tiny_bert):
    with pytest.raises(ArgumentError, match="decoder-only-icl"):
        FlagEmbedding.FlagAutoModel.from_finetuned(str(tiny_bert), model_class="decoder-only-icl")
    with pytest.raises(TypeError, match="nonsense"):
        FlagEmbedding.FlagAutoModel.from_finetuned(str(tiny_bert), nonsense=1)
    with pytest.raises(ArgumentError, match="from_finetuned"):
        FlagEmbedding.FlagAutoModel()


def test_import_is_quick():
    program = "import sys, FlagEmbedding; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"


#: Paths of the original that forward; all its others are refused with a sentence.
RUN = {
    "BGE_M3.run": "bgekit.training.embedder",
    "baai_general_embedding.finetune.run": "bgekit.training.embedder",
    "baai_general_embedding.retromae_pretrain.run": "bgekit.pretraining.run",
    "reranker.run": "bgekit.training.reranker",
    "finetune.embedder.encoder_only.base": "bgekit.training.embedder",
    "finetune.embedder.encoder_only.m3": "bgekit.training.embedder",
    "finetune.embedder.decoder_only.base": "bgekit.training.embedder",
    "finetune.reranker.encoder_only.base": "bgekit.training.reranker",
}
NAMES = {
    "bge_m3": "BGEM3FlagModel",
    "flag_models": "FlagModel",
    "flag_reranker": "FlagReranker",
    "inference": "FlagAutoModel",
    "inference.auto_embedder": "FlagAutoModel",
    "inference.auto_reranker": "FlagAutoReranker",
    "inference.embedder": "FlagModel",
    "inference.embedder.encoder_only": "FlagModel",
    "inference.reranker": "FlagReranker",
    "inference.reranker.encoder_only": "FlagReranker",
}
#: All that forward, beside the packages above them.
FORWARDS = {
    *NAMES,
    *(name if name.endswith(".run") else f"{name}.__main__" for name in RUN),
    "baai_general_embedding.finetune.hn_mine",
    "inference.embedder.encoder_only.base",
    "inference.embedder.encoder_only.m3",
    "inference.embedder.decoder_only",
    "inference.reranker.encoder_only.base",
}


def python_m(path, *arguments):
    command = [sys.executable, "-m", f"FlagEmbedding.{path}", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("path", PATHS)
def test_every_path_of_the_original_is_here_or_says_what_to_do(path):
    if any(known == path or known.startswith(f"{path}.") for known in FORWARDS):
        assert importlib.import_module(f"FlagEmbedding.{path}").__spec__.origin == "bgekit"
        return
    with pytest.raises(FlagEmbedding.NotOfferedError, match="alias package of bgekit") as raised:
        importlib.import_module(f"FlagEmbedding.{path}")
    named = str(raised.value).split(" but no ")[1].split(":")[0]
    assert path == named or path.startswith(f"{named}.")


@pytest.mark.parametrize("path", NAMES)
def test_modules_that_were_imported_have_their_names(path):
    module = importlib.import_module(f"FlagEmbedding.{path}")
    assert getattr(module, NAMES[path]) is getattr(FlagEmbedding, NAMES[path])
    with pytest.raises(FlagEmbedding.NotOfferedError, match="LLMEmbedder"):
        _ = module.LLMEmbedder
    assert not hasattr(module, "__path_that_nobody_has__")


def test_base_classes_are_the_classes():
    from FlagEmbedding.inference.embedder.encoder_only.base import BaseEmbedder
    from FlagEmbedding.inference.reranker.encoder_only.base import BaseReranker

    assert (BaseEmbedder, BaseReranker) == (bgekit.FlagModel, bgekit.FlagReranker)
    with pytest.raises(FlagEmbedding.NotOfferedError, match="bge finetune"):
        exec("from FlagEmbedding.finetune.embedder.encoder_only.base import EncoderOnlyEmbedderRunner")


def test_paths_that_nobody_had_are_ordinary_errors():
    with pytest.raises(ModuleNotFoundError, match="nonsense"):
        importlib.import_module("FlagEmbedding.nonsense")


@pytest.mark.parametrize("path", RUN)
def test_what_is_run_is_the_entry_of_bgekit(path, monkeypatch):
    entry = importlib.import_module(RUN[path])
    monkeypatch.setattr(entry, "main", lambda: 7)
    monkeypatch.setattr(logging, "basicConfig", lambda **options: None)
    for name in [name for name in sys.modules if name.startswith("FlagEmbedding.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(SystemExit) as end:
        runpy.run_module(f"FlagEmbedding.{path}", run_name="__main__", alter_sys=True)
    assert end.value.code == 7
    logging.getLogger("bgekit").setLevel(logging.NOTSET)


def test_mining_by_its_old_path(tmp_path):
    rows = [{"query": f"q{n}", "pos": [f"p{n}"]} for n in range(6)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    old = ["--input_file", tmp_path / "in.jsonl", "--output_file", tmp_path / "out.jsonl", "--negative_number", "2"]
    done = python_m("baai_general_embedding.finetune.hn_mine", *old, "--random")
    assert done.returncode == 0, done.stderr
    mined = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [len(each["neg"]) for each in mined] == [2] * 6


@pytest.mark.parametrize(
    ("path", "says"),
    [("evaluation.mteb", "bge eval --benchmark mteb-en"), ("BGE_M3.split_data_by_length", "--group_by_length true")],
)
def test_what_cannot_be_run_is_one_line(path, says):
    done = python_m(path, "--model_name_or_path", "x")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert f"no {path}:" in line and says in line


#: Keywords of the original's constructors and methods, as its signatures of 1.2.9 to 1.4.0 have them.
COMMON = {"normalize_embeddings": True, "use_fp16": False, "use_bf16": False, "trust_remote_code": None,
          "query_instruction_for_retrieval": None, "query_instruction_format": "{}{}", "devices": "cpu",
          "batch_size": 256, "query_max_length": 32, "passage_max_length": 48, "convert_to_numpy": True,
          "truncate_dim": None, "cache_dir": None, "passage_instruction_for_retrieval": None,
          "passage_instruction_format": "{}{}", "pooling_method": "cls"}  # fmt: skip
OF_OTHERS = {"colbert_dim": -1, "return_dense": True, "return_sparse": True, "return_colbert_vecs": True,
             "examples_for_task": [{}], "examples_instruction_format": "{}{}{}", "suffix": "x",
             "domain_for_pseudo_moe": "coding"}  # fmt: skip
RERANKER = {"use_fp16": False, "cache_dir": None, "query_instruction_for_rerank": None,
            "query_instruction_format": "{}{}", "passage_instruction_for_rerank": None,
            "passage_instruction_format": "{}{}", "trust_remote_code": False, "batch_size": 128,
            "query_max_length": 16, "max_length": 32, "normalize": False, "devices": ["cpu"],
            "use_bf16": False}  # fmt: skip
OF_OTHER_RERANKERS = {"passage_max_length": 512, "peft_path": "x", "prompt": "x", "cutoff_layers": [8],
                      "compress_layers": [8], "compress_ratio": 2}  # fmt: skip
SCORING = {"use_dataloader": True, "num_workers": 2, "device": "cpu", "compress_layer": [8], **OF_OTHER_RERANKERS}


@pytest.fixture
def warned(caplog, monkeypatch):
    """The warnings that a call makes twice over: each is to come once."""
    monkeypatch.setattr("bgekit.inference.model._said", set())

    def call(function):
        results = [function(), function()]
        lines = [each.getMessage() for each in caplog.records if "has no effect" in each.getMessage()]
        caplog.clear()
        return results[-1], lines

    return call


@pytest.mark.parametrize("entry", ["FlagModel", "FlagAutoModel"])
def test_every_keyword_of_the_originals_embedders(tiny_bert, warned, entry):
    make = FlagEmbedding.FlagModel if entry == "FlagModel" else FlagEmbedding.FlagAutoModel.from_finetuned
    model, said = warned(lambda: make(str(tiny_bert), **COMMON))
    assert not said
    _, said = warned(lambda: make(str(tiny_bert), **COMMON, **OF_OTHERS))
    assert sorted(line.split("=")[0] for line in said) == sorted(OF_OTHERS)
    assert not warned(lambda: make(str(tiny_bert), **dict.fromkeys(OF_OTHERS)))[1]
    options = {"batch_size": 2, "max_length": 16, "convert_to_numpy": True}
    for method in (model.encode, model.encode_queries, model.encode_corpus):
        plain, said = warned(lambda call=method: call(["a cat"], **options, instruction=None, instruction_format=None))
        assert not said
        more = {"return_dense": True, "return_sparse": True, "return_colbert_vecs": True, "task": "qa", "device": "cpu"}
        found, said = warned(lambda call=method, more=more: call(["a cat"], **options, **more))
        assert len(said) == (len(more) if method == model.encode else 0)  # Once a process.
        np.testing.assert_array_equal(plain, found)
        with pytest.raises(TypeError, match="nonsense"):
            method(["a cat"], nonsense=1)


def test_every_keyword_of_the_originals_bge_m3(tiny_bert, warned):
    of_m3 = {"colbert_dim": -1, "return_dense": True, "return_sparse": False, "return_colbert_vecs": False}
    model, said = warned(lambda: FlagEmbedding.BGEM3FlagModel(str(tiny_bert), **COMMON, **of_m3))
    assert not said
    returned = {"return_dense": True, "return_sparse": False, "return_colbert_vecs": False}
    for method in (model.encode, model.encode_queries, model.encode_corpus):
        found, said = warned(lambda call=method: call(["a cat"], batch_size=2, max_length=16, **returned))
        assert not said and found["dense_vecs"].shape == (1, 32) and found["lexical_weights"] is None
        _, said = warned(lambda call=method: call(["a cat"], convert_to_numpy=True, device="cpu"))
        assert len(said) == (2 if method == model.encode else 0)  # Once a process.
        with pytest.raises(TypeError, match="nonsense"):
            method(["a cat"], nonsense=1)


@pytest.mark.parametrize("entry", ["FlagReranker", "FlagAutoReranker"])
def test_every_keyword_of_the_originals_rerankers(tiny_reranker, warned, entry):
    make = FlagEmbedding.FlagReranker if entry == "FlagReranker" else FlagEmbedding.FlagAutoReranker.from_finetuned
    model, said = warned(lambda: make(str(tiny_reranker), **RERANKER))
    assert not said
    _, said = warned(lambda: make(str(tiny_reranker), **RERANKER, **OF_OTHER_RERANKERS))
    assert sorted(line.split("=")[0] for line in said) == sorted(OF_OTHER_RERANKERS)
    assert any("what the query leaves of max_length" in line for line in said)
    pair = ["a cat", "a dog"]
    plain = model.compute_score(pair, batch_size=2, max_length=24, normalize=True, query_max_length=8)
    scores, said = warned(
        lambda: model.compute_score(pair, batch_size=2, max_length=24, normalize=True, query_max_length=8, **SCORING)
    )
    assert scores == plain and len(said) == len(SCORING)
    for call in (lambda: make(str(tiny_reranker), nonsense=1), lambda: model.compute_score(pair, nonsense=1)):
        with pytest.raises(TypeError, match="nonsense"):
            call()


def test_a_format_alone_is_applied_to_the_models_own_instruction(make_model):
    model = bgekit.FlagModel(make_model(name="bge-small-zh-v1.5"), use_fp16=False, devices="cpu")
    instruction = model.card.prompt("query").prefix
    np.testing.assert_array_equal(
        model.encode_queries(["cat"], instruction_format="{}: {}"), model.encode([f"{instruction}: cat"])
    )


def test_network_tokenizer_and_device(tiny_bert, tiny_reranker):
    model = bgekit.FlagModel(tiny_bert, use_fp16=False, devices="cpu")
    assert model.device == torch.device("cpu") and isinstance(model.model, torch.nn.Module)
    inputs = model.tokenizer(["a cat", "a red bird in the tree"], padding=True, return_tensors="pt").to(model.device)
    with torch.no_grad():
        states = model.model(**inputs).last_hidden_state[:, 0]
    found = torch.nn.functional.normalize(states, dim=-1).numpy()
    np.testing.assert_allclose(found, model.encode(["a cat", "a red bird in the tree"]), atol=1e-5)
    reranker = bgekit.FlagReranker(tiny_reranker, devices="cpu")
    inputs = reranker.tokenizer("a cat", "a dog", return_tensors="pt").to(reranker.device)
    with torch.no_grad():
        logit = float(reranker.model(**inputs).logits[0, 0])
    assert reranker.compute_score(["a cat", "a dog"]) == pytest.approx(logit, abs=1e-4)


def test_methods_of_the_original_that_are_not_needed_say_so(tiny_bert, tiny_reranker):
    model = bgekit.FlagModel(tiny_bert, use_fp16=False, devices="cpu")
    reranker = bgekit.FlagReranker(tiny_reranker, devices="cpu")
    pools = ("start_multi_process_pool", "encode_multi_process", "stop_multi_process_pool", "stop_self_pool")
    for name in (*pools, "encode_single_device"):
        with pytest.raises(AttributeError, match=rf"{name} is not needed: encode uses all devices; model.close\(\)"):
            getattr(model, name)(["a cat"])
    for name in (*pools, "compute_score_single_gpu"):
        with pytest.raises(BgekitError, match=rf"{name} is not needed: compute_score uses all devices"):
            getattr(reranker, name)(["a cat"])
    with pytest.raises(BgekitError, match="FlagReranker scores pairs"):
        model.compute_score([["a", "b"]])
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = model.nonsense
    assert not hasattr(reranker, "set_examples")
