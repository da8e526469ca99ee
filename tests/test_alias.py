"""The alias package: the same class under the name that users know, and clear words for what is not there."""

import subprocess
import sys

import numpy as np
import pytest

import bgekit
import FlagEmbedding
from bgekit.errors import ArgumentError, BgekitError

#: The public names of FlagEmbedding 1.2 and 1.4 that are not here.
MISSING = (
    "BGEM3FlagModel FlagLLMModel FlagICLModel FlagPseudoMoEModel LLMEmbedder FlagLLMReranker "
    "LayerWiseFlagLLMReranker LightWeightFlagLLMReranker AbsEmbedder AbsReranker EmbedderModelClass "
    "RerankerModelClass"
).split()


def test_it_is_the_same_class():
    from FlagEmbedding import FlagModel

    assert FlagModel is FlagEmbedding.FlagModel is bgekit.FlagModel


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
    with pytest.raises(ArgumentError, match="encoder-only-m3"):
        FlagEmbedding.FlagAutoModel.from_finetuned(str(tiny_bert), model_class="encoder-only-m3")
    with pytest.raises(TypeError, match="nonsense"):
        FlagEmbedding.FlagAutoModel.from_finetuned(str(tiny_bert), nonsense=1)
    with pytest.raises(ArgumentError, match="from_finetuned"):
        FlagEmbedding.FlagAutoModel()


def test_import_is_quick():
    program = "import sys, FlagEmbedding; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"
