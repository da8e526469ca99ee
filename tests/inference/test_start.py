"""From files to the first vector without transformers: equal to the bit, the same errors, nothing heavy imported."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bgekit import FlagModel, FlagReranker
from bgekit.cli.main import main
from bgekit.errors import BgekitError, CheckpointError
from bgekit.inference import tokenization
from bgekit.inference.stored_tokenizer import StoredTokenizer, stored_tokenizer
from bgekit.inference.tokenization import backend_of, load_tokenizer, open_tokenizer
from bgekit.networks import cross_encoder, encoder
from conftest import WORDS
from precisions import AVAILABLE

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")
WEIGHTS = "model.safetensors"
HEAVY = ("transformers", "scipy", "torch._dynamo", "sklearn", "pandas", "sympy", "huggingface_hub", "jinja2")
TEXTS = ["The cat, the dog.", "vector search " * 200, "x", "中文 模型 [PAD] [MASK] and  spaces ", "Élan VITAL <mask>"]
PAIRS = [("cat", "the river"), ("what is a vector?", "a bird by the river " * 40), ("[PAD]", "中文")]


def through_transformers(patch):
    """Load as all other architectures are loaded."""
    patch.setattr(encoder, "stored_bert", lambda *args, **options: None)
    patch.setattr(cross_encoder, "stored_classifier", lambda *args, **options: None)
    patch.setattr(tokenization, "stored_tokenizer", lambda folder: None)


@pytest.fixture
def both_ways(monkeypatch):
    """What a function gives straight from files, and through transformers."""

    def call(function):
        direct = function()
        with monkeypatch.context() as patch:
            through_transformers(patch)
            return direct, function()

    return call


def check_vectors(folder, both_ways, precisions=AVAILABLE):
    for precision in precisions:
        models = both_ways(lambda: FlagModel(folder, dtype=precision, devices="cpu"))  # noqa: B023
        direct, published = models
        assert isinstance(direct._engine.tokenizer, StoredTokenizer)
        assert direct._engine.network.backbone.folder is not None
        assert published._engine.network.backbone.folder is None
        np.testing.assert_array_equal(direct.encode(TEXTS), published.encode(TEXTS))
        assert direct.encode(TEXTS).truncated == published.encode(TEXTS).truncated
        for text in TEXTS[::2]:
            np.testing.assert_array_equal(direct.encode(text), published.encode(text))


@pytest.mark.parametrize("name", ["bge-small-en-v1.5", "bge-small-zh-v1.5"])
def test_vectors_of_real_models(shared_path, both_ways, name):
    check_vectors(shared_path("models", name), both_ways)


def test_vectors_of_a_packaged_model(minilm, both_ways):
    check_vectors(minilm, both_ways)


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta"])
@pytest.mark.parametrize("pooling", ["cls", "mean", "last_token"])
def test_vectors_of_all_families(make_model, both_ways, kind, pooling):
    check_vectors(make_model(kind, pooling=pooling), both_ways)


@pytest.fixture
def changed(make_model, tmp_path):
    """A copy of a tiny checkpoint with other weights or settings."""

    def make(kind="bert", weights=None, config=None, source=None):
        folder = shutil.copytree(source or make_model(kind), tmp_path / "changed")
        if weights is not None:
            save_file(weights(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})
        if config is not None:
            read = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(config(read)))
        return folder

    return make


def old_names(weights):
    """As layer norms were called in the first years."""
    renamed = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    return {
        next((name.replace(new, old) for new, old in renamed.items() if name.endswith(new)), name): value
        for name, value in weights.items()
    }


@pytest.mark.parametrize(
    "weights",
    [
        pytest.param(lambda w: {name: value.half() for name, value in w.items()}, id="float16"),
        pytest.param(lambda w: {name: value.bfloat16() for name, value in w.items()}, id="bfloat16"),
        pytest.param(lambda w: {name: value.double() for name, value in w.items()}, id="float64"),
        pytest.param(lambda w: {f"bert.{name}": value for name, value in w.items()}, id="prefix"),
        pytest.param(
            lambda w: (
                {f"bert.{name}": value for name, value in w.items()}
                | {
                    "cls.predictions.decoder.weight": torch.ones(3, 32),
                    "bert.embeddings.position_ids": torch.arange(64),
                }
            ),
            id="of a class with a head",
        ),
        pytest.param(lambda w: {k: v for k, v in w.items() if "pooler" not in k}, id="without pooler"),
        pytest.param(lambda w: w | {"extra.weight": torch.ones(3)}, id="more"),
        pytest.param(old_names, id="old names"),
    ],
)
def test_weights_in_other_forms(changed, both_ways, weights):
    check_vectors(changed(weights=weights), both_ways)


def test_weights_in_several_files(changed, both_ways):
    folder = changed("xlm-roberta")
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    places = {name: f"model-{number % 3 + 1:05}-of-00003.safetensors" for number, name in enumerate(weights)}
    for file in set(places.values()):
        save_file({k: v for k, v in weights.items() if places[k] == file}, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    check_vectors(folder, both_ways, ["float32"])


@pytest.mark.parametrize("without", ["layer_norm_eps", "hidden_act", "pad_token_id", "type_vocab_size"])
def test_what_a_config_leaves_out_is_what_transformers_has_for_it(changed, both_ways, without):
    check_vectors(changed(config=lambda c: {k: v for k, v in c.items() if k != without}), both_ways, ["float32"])


@pytest.mark.parametrize("act", ["gelu_new", "gelu_pytorch_tanh", "relu"])
def test_other_activations(changed, both_ways, act):
    check_vectors(changed(config=lambda c: {**c, "hidden_act": act}), both_ways, ["float32"])


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta"])
@pytest.mark.parametrize("labels", [1, 2])
def test_scores_of_rerankers(make_reranker, both_ways, kind, labels):
    folder = make_reranker(kind, labels=labels)
    for precision in AVAILABLE:
        direct, published = both_ways(lambda: FlagReranker(folder, dtype=precision, devices="cpu"))  # noqa: B023
        assert direct._engine.network.backbone.folder is not None
        assert published._engine.network.backbone.folder is None
        assert isinstance(direct._engine.tokenizer, StoredTokenizer)
        # To the bit: the head's weights lie in the file as they do for transformers.
        assert direct.compute_score(PAIRS, max_length=60) == published.compute_score(PAIRS, max_length=60)


def test_scores_of_half_a_reranker(changed, make_reranker, both_ways):
    folder = changed(source=make_reranker("roberta"), weights=lambda w: {k: v.half() for k, v in w.items()})
    direct, published = both_ways(lambda: FlagReranker(folder, devices="cpu"))
    assert direct._engine.network.backbone.folder is not None
    assert direct.compute_score(PAIRS) == published.compute_score(PAIRS)


def without(part):
    return lambda weights: {name: value for name, value in weights.items() if part not in name}


def reshaped(name, *shape):
    return lambda weights: {**weights, name: torch.ones(shape)}


QUERY = "encoder.layer.1.attention.self.query"


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"weights": without(f"{QUERY}.bias")}, id="a bias is missing"),
        pytest.param({"weights": without("token_type")}, id="a table is missing"),
        pytest.param({"weights": without("layer.1")}, id="a layer is missing"),
        pytest.param({"weights": reshaped(f"{QUERY}.weight", 32, 30)}, id="another shape"),
        pytest.param({"weights": reshaped("pooler.dense.weight", 30, 32)}, id="a pooler of another shape"),
        pytest.param({"weights": reshaped(f"{QUERY}.lora_A.default.weight", 4, 32)}, id="LoRA"),
        pytest.param({"config": lambda c: {**c, "num_hidden_layers": 3}}, id="another model's config"),
        pytest.param({"config": lambda c: {**c, "num_attention_heads": 5}}, id="heads that do not divide"),
        pytest.param({"config": lambda c: {**c, "vocab_size": 7}}, id="another vocabulary"),
        pytest.param({"config": lambda c: {**c, "hidden_act": "nothing"}}, id="an unknown activation"),
    ],
)
def test_errors_of_weights_are_those_of_transformers(changed, both_ways, change):
    check_errors(changed(**change), both_ways)


def test_a_config_with_words_for_a_number_is_an_error_that_names_both(changed):
    folder = changed(config=lambda c: {**c, "layer_norm_eps": "small"})
    with pytest.raises(CheckpointError, match="layer_norm_eps") as caught:
        FlagModel(folder, devices="cpu")
    assert str(folder) in str(caught.value)


def write_adapter(folder):
    (folder / "adapter_config.json").write_text("{}")


def cut_off(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-10])


def lose_a_shard(folder):
    (folder / WEIGHTS).rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_pickle(folder):
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def spoil(name):
    return lambda folder: (folder / name).write_text("{")


def lose_tokenizer(folder):
    for name in ("tokenizer.json", "vocab.txt"):
        (folder / name).unlink()


@pytest.mark.parametrize(
    "damage",
    [
        write_adapter, cut_off, lose_a_shard, write_pickle, spoil(WEIGHTS), spoil("config.json"),
        spoil("tokenizer.json"), spoil("tokenizer_config.json"), lose_tokenizer,
    ],
)  # fmt: skip
def test_errors_of_files_are_those_of_transformers(changed, both_ways, damage):
    folder = changed()
    damage(folder)
    check_errors(folder, both_ways)


def check_errors(folder, both_ways):
    def said():
        with pytest.raises(BgekitError) as caught:
            FlagModel(folder, devices="cpu")
        return type(caught.value), str(caught.value)

    direct, published = both_ways(said)
    assert direct == published
    assert str(folder) in direct[1]


def test_pickles_and_unusual_configs_are_left_to_transformers(changed):
    folder = changed(config=lambda c: {**c, "position_embedding_type": "relative_key"})
    assert encoder.stored_bert(folder) is None
    write_pickle(folder)
    assert encoder.stored_bert(folder, allow_pickle=True) is None


def backends(folder, *, lower_case=False):
    """What is tokenised with, straight from the file and through transformers, as JSON."""
    own = open_tokenizer(folder, lower_case=lower_case)
    assert isinstance(own, StoredTokenizer)
    published = load_tokenizer(folder, lower_case=lower_case)
    assert list(own.model_input_names) == published.model_input_names
    return json.loads(backend_of(own).to_str()), json.loads(backend_of(published).to_str())


def settings_of(folder, **changes):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("lower_case", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {}, {"do_lower_case": False}, {"strip_accents": True}, {"tokenize_chinese_chars": False},
        {"tokenizer_class": "PreTrainedTokenizerFast"}, {"tokenizer_class": "BertTokenizerFast"},
        {"model_input_names": ["input_ids", "attention_mask"]}, {"extra_special_tokens": ["[MASK]"]},
    ],
    ids=str,
)  # fmt: skip
def test_the_tokenizer_of_bert_is_that_of_transformers(changed, settings, lower_case):
    folder = changed()
    settings_of(folder, **settings)
    direct, published = backends(folder, lower_case=lower_case)
    assert direct == published


def test_added_tokens(changed):
    from tokenizers import AddedToken
    from transformers import AutoTokenizer

    folder = changed()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([AddedToken("newword", normalized=True), AddedToken("<tag>", lstrip=True, special=True)])
    tokenizer.save_pretrained(folder)
    direct, published = backends(folder)
    assert direct == published
    assert {"newword", "<tag>"} <= {token["content"] for token in direct["added_tokens"]}
    own, text = open_tokenizer(folder).copy(), "a Newword and <tag>, cat"
    assert own.encode(text).ids == tokenizer(text)["input_ids"]


@pytest.mark.parametrize(
    "settings",
    [
        {"extra_special_tokens": ["<unheard>"]}, {"cls_token": "<s>"}, {"split_special_tokens": True},
        {"unk_token": "[MASK]"}, {"tokenizer_class": "CanineTokenizer"}, {"added_tokens_decoder": {}},
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_change_the_tokenizer_are_left_to_transformers(changed, settings):
    folder = changed()
    settings_of(folder, **settings)
    assert stored_tokenizer(folder) is None


def unigram(folder, normalizer=None):
    """A tokenizer of XLM-R's kind."""
    from tokenizers import Tokenizer, models
    from transformers import XLMRobertaTokenizer

    pieces = ["<s>", "<pad>", "</s>", "<unk>", *(f"▁{word}" for word in WORDS), *"abcdefghijklmnopqrstuvwxyz▁中文"]
    vocab = [(piece, -float(place)) for place, piece in enumerate(dict.fromkeys(pieces))]
    made = XLMRobertaTokenizer(vocab=[*vocab, ("<mask>", 0.0)], model_max_length=64)
    if normalizer is not None:
        made.backend_tokenizer.normalizer = normalizer
    made.save_pretrained(folder)
    (folder / "vocab.txt").unlink(missing_ok=True)
    assert isinstance(Tokenizer.from_file(str(folder / "tokenizer.json")).model, models.Unigram)


def byte_pairs(folder):
    """A tokenizer of RoBERTa's kind."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import RobertaTokenizer

    pieces = ["<s>", "<pad>", "</s>", "<unk>", *sorted(ByteLevel.alphabet()), "th", "the", "Ġth", "Ġthe", "<mask>"]
    vocab = {piece: place for place, piece in enumerate(pieces)}
    merges = [("t", "h"), ("th", "e"), ("Ġ", "th"), ("Ġth", "e")]
    RobertaTokenizer(vocab=vocab, merges=merges, model_max_length=64).save_pretrained(folder)
    (folder / "vocab.txt").unlink(missing_ok=True)


@pytest.mark.parametrize("write", [unigram, byte_pairs])
def test_the_tokenizers_of_the_roberta_family(make_model, changed, both_ways, write):
    kind = "xlm-roberta" if write is unigram else "roberta"
    folder = changed(source=make_model(kind, vocab_size=400, pad_token_id=1))
    write(folder)
    direct, published = backends(folder)
    assert direct == published
    check_vectors(folder, both_ways)


def test_a_normalizer_that_transformers_drops_is_dropped(make_model, changed):
    from tokenizers.normalizers import Lowercase

    folder = changed(source=make_model("xlm-roberta", vocab_size=400, pad_token_id=1))
    unigram(folder, Lowercase())
    direct, published = backends(folder)
    assert direct == published


def test_the_tokenizer_of_a_model_is_that_of_transformers_and_made_when_asked_for(tiny_bert):
    from transformers import PreTrainedTokenizerFast

    model = FlagModel(tiny_bert, devices="cpu")
    assert "tokenizer" not in vars(model)
    assert isinstance(model.tokenizer, PreTrainedTokenizerFast)
    assert model.tokenizer is model.tokenizer
    ids = model.tokenizer(TEXTS, truncation=True, max_length=16)["input_ids"]
    backend = backend_of(model._engine.tokenizer)
    backend.enable_truncation(16)
    assert ids == [encoding.ids for encoding in backend.encode_batch(TEXTS)]


def test_the_module_of_a_model_is_that_of_transformers(tiny_bert):
    model = FlagModel(tiny_bert, use_fp16=False, devices="cpu", pooling_method="cls")
    inputs = model.tokenizer(TEXTS[0], return_tensors="pt")
    with torch.inference_mode():
        hidden = model.model(**inputs).last_hidden_state[:, 0]
    np.testing.assert_allclose(torch.nn.functional.normalize(hidden)[0], model.encode(TEXTS[0]), atol=1e-6)


def heavy_modules(code, *arguments):
    """Which of `HEAVY` a process has imported after some code, and what that printed."""
    code += f"\nimport sys\nprint('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=True, timeout=300,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    printed, _, found = run.stdout.rpartition("HEAVY ")
    return found.strip(), printed


def test_a_vector_needs_no_transformers(tiny_bert):
    code = "import sys; from bgekit import FlagModel; print(FlagModel(sys.argv[1], devices='cpu').encode('x').shape)"
    assert heavy_modules(code, tiny_bert) == ("[]", "(32,)\n")


def test_a_score_needs_no_transformers(tiny_reranker):
    code = (
        "import sys; from bgekit import FlagReranker; "
        "print(type(FlagReranker(sys.argv[1], devices='cpu').compute_score(['cat', 'the river'])))"
    )
    assert heavy_modules(code, tiny_reranker) == ("[]", "<class 'float'>\n")


def test_a_question_to_an_index_needs_no_transformers(tiny_bert, tmp_path):
    (tmp_path / "docs.jsonl").write_text('{"id": "a", "text": "the cat"}\n{"id": "b", "text": "the river"}\n')
    search = "import sys; from bgekit.cli.main import main; assert main(['search', *sys.argv[1:]]) == 0"
    index = ["--model", tiny_bert, "--devices", "cpu", "--index", tmp_path / "i", "-q", "x"]
    assert main(list(map(str, ["search", tmp_path / "docs.jsonl", *index]))) == 0
    found, printed = heavy_modules(search, "--index", tmp_path / "i", "--devices", "cpu", "-q", "the cat", "--json")
    assert found == "[]"
    assert json.loads(printed)["results"][0]["id"] == "a"


def test_garbage_collection_is_on_again_after_an_import():
    code = (
        "import gc, bgekit; before = gc.get_freeze_count(); bgekit.FlagModel; "
        "print(gc.isenabled(), gc.get_freeze_count() == before)"
    )
    assert heavy_modules(code)[1] == "True True\n"


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux")
@pytest.mark.parametrize("precision", AVAILABLE)
def test_workers_share_weights_and_give_the_same_vectors(tiny_bert, texts, precision):
    many = texts(2300, longest=8)
    plain = FlagModel(tiny_bert, dtype=precision, devices="cpu")
    alone, few = plain.encode(many), plain.encode(many[:10])
    with FlagModel(tiny_bert, dtype=precision, devices=["cpu", "cpu"]) as model:
        np.testing.assert_array_equal(model.encode(many), alone)
        shared = model._pool._shared
        assert shared is not None
        maps = [open(f"/proc/{process}/maps").read() for process in ("self", model._pool.workers[0].process.pid)]
        assert all("bgekit-weights" in each for each in maps)
        np.testing.assert_array_equal(model.encode(many[:10]), few)
        model.close()
        np.testing.assert_array_equal(model.encode(many), alone)
