"""What `FlagModel.save` writes, what it does when it cannot, and that nothing is lost on the way."""

import json
import os
import re
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bgekit import FlagModel, read_card
from bgekit.errors import ArgumentError, CardError, CheckpointError, OutputError
from bgekit.files import atomic
from bgekit.models.card import Prompt
from bgekit.networks import saving
from precisions import BFLOAT16, INT8

EXPECTED = {
    "1_Pooling/config.json", "README.md", "config.json", "config_sentence_transformers.json", "model.safetensors",
    "modules.json", "sentence_bert_config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json",
    "vocab.txt",
}  # fmt: skip


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def read(folder, name):
    return json.loads((folder / name).read_text("utf-8"))


def contents(folder):
    return {name: (folder / name).read_bytes() for name in files(folder)}


@pytest.fixture
def copy(tiny_bert, tmp_path):
    """A checkpoint of one's own to change."""
    return shutil.copytree(tiny_bert, tmp_path / "source")


@pytest.fixture
def saved(tiny_bert, tmp_path):
    FlagModel(tiny_bert).save(tmp_path / "saved")
    return tmp_path / "saved"


# --- the layout -------------------------------------------------------------------------------------------------


def test_has_every_file_and_no_other(saved):
    assert files(saved) == EXPECTED
    assert (saved / "2_Normalize").is_dir()


def test_side_files_have_the_form_that_all_releases_read(saved):
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    assert read(saved, "modules.json") == [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (path, kind) in enumerate(kinds)
    ]
    assert read(saved, "1_Pooling/config.json") == {
        "word_embedding_dimension": 32,
        "pooling_mode_cls_token": True,
        "pooling_mode_mean_tokens": False,
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
        "pooling_mode_weightedmean_tokens": False,
        "pooling_mode_lasttoken": False,
        "include_prompt": True,
        "pooling_mode": "cls",
    }
    assert read(saved, "sentence_bert_config.json") == {"max_seq_length": 64, "do_lower_case": True}
    main = read(saved, "config_sentence_transformers.json")
    assert main["__version__"]["sentence_transformers"] == "2.7.0"
    assert (main["prompts"], main["default_prompt_name"]) == ({"query": "", "document": ""}, None)
    assert main["similarity_fn_name"] == "cosine"
    assert main["bgekit"]["format"] == 1


@pytest.mark.parametrize("pooling", ["cls", "mean", "max", "weighted_mean", "last_token"])
def test_text_embeddings_inference_finds_its_fields(make_model, tmp_path, pooling):
    """The structs PoolConfig and STConfig of its router, and the types that it asks for."""
    FlagModel(make_model(pooling=pooling), query_instruction_for_retrieval="q: ").save(tmp_path / "saved")
    pool = read(tmp_path / "saved", "1_Pooling/config.json")
    assert isinstance(pool["pooling_mode_cls_token"], bool)
    assert isinstance(pool["pooling_mode_mean_tokens"], bool)
    assert [key for key, on in pool.items() if key.startswith("pooling_mode_") and on] == [
        {"weighted_mean": "pooling_mode_weightedmean_tokens", "last_token": "pooling_mode_lasttoken"}.get(
            pooling, f"pooling_mode_{pooling}_token" + ("" if pooling == "cls" else "s")
        )
    ]
    assert type(read(tmp_path / "saved", "sentence_bert_config.json")["max_seq_length"]) is int
    prompts = read(tmp_path / "saved", "config_sentence_transformers.json")["prompts"]
    assert all(isinstance(key, str) and isinstance(value, str) for key, value in prompts.items())
    assert read(tmp_path / "saved", "config.json")["model_type"] == "bert"
    assert (tmp_path / "saved" / "tokenizer.json").is_file()


def test_readme_is_a_model_card(copy, tmp_path):
    from huggingface_hub import metadata_load

    (copy / "README.md").write_text("---\nlicense: mit\nlanguage:\n- zh\ntags:\n- mine\nbase_model: a/b\n---\n# Old\n")
    FlagModel(copy, query_instruction_for_retrieval="ask | ").save(tmp_path / "saved")
    front = metadata_load(tmp_path / "saved" / "README.md")
    assert front["library_name"] == "sentence-transformers"
    assert front["pipeline_tag"] == "sentence-similarity"
    assert (front["license"], front["language"], front["base_model"]) == ("mit", ["zh"], "a/b")
    assert {"sentence-transformers", "mine"} <= set(front["tags"])
    text = (tmp_path / "saved" / "README.md").read_text("utf-8")
    assert "cls" in text
    assert '"ask \\| {text}"' in text


@pytest.mark.parametrize("readme", ["no front matter", "---\n: : [\n---\n", "---\n- a\n---\n"])
def test_a_readme_that_cannot_be_parsed_does_not_stop_a_save(copy, tmp_path, readme):
    (copy / "README.md").write_text(readme)
    FlagModel(copy).save(tmp_path / "saved")
    assert "library_name: sentence-transformers" in (tmp_path / "saved" / "README.md").read_text()


def test_terms_of_use_and_heads_go_along(copy, tmp_path):
    for name in ("LICENSE", "NOTICE.txt"):
        (copy / name).write_text(name)
    (copy / "optimizer.pt").write_text("large")
    torch.save({"weight": torch.randn(1, 32).half(), "bias": torch.randn(1).half()}, copy / "sparse_linear.pt")
    FlagModel(copy).save(tmp_path / "saved")
    heads = {"sparse_linear.pt", "heads/sparse_linear.safetensors"}
    assert files(tmp_path / "saved") == EXPECTED | {"LICENSE", "NOTICE.txt"} | heads
    before, after = (
        torch.load(folder / "sparse_linear.pt", weights_only=True) for folder in (copy, tmp_path / "saved")
    )
    assert all(torch.equal(before[name], after[name]) and after[name].dtype == torch.float16 for name in before)


# --- weights, config and tokenizer ------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("use_fp16", [True, False])
def test_weights_and_config_are_copied_byte_by_byte(make_model, tmp_path, stored, use_fp16):
    source = make_model()
    tensors = {name: tensor.to(stored) for name, tensor in load_file(source / "model.safetensors").items()}
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    FlagModel(source, use_fp16=use_fp16).save(tmp_path / "saved")
    for name in ("model.safetensors", "config.json", "tokenizer.json", "vocab.txt"):
        assert (tmp_path / "saved" / name).read_bytes() == (source / name).read_bytes(), name


def test_shards_are_copied_with_their_index(make_model, tmp_path, texts):
    from transformers import AutoModel

    source = make_model()
    AutoModel.from_pretrained(source).save_pretrained(tmp_path / "parts", max_shard_size="50KB")
    (source / "model.safetensors").unlink()
    for part in (tmp_path / "parts").glob("model*"):
        shutil.copy(part, source)
    model = FlagModel(source, use_fp16=False)
    model.save(tmp_path / "saved")
    shards = {name for name in files(source) if name.startswith("model-")}
    assert len(shards) > 1
    assert files(tmp_path / "saved") == EXPECTED - {"model.safetensors"} | shards | {"model.safetensors.index.json"}
    again = FlagModel(tmp_path / "saved", use_fp16=False)
    np.testing.assert_array_equal(model.encode(texts(5)), again.encode(texts(5)))


@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
def test_a_pickle_is_converted_by_consent_only(make_model, tmp_path, stored):
    source = make_model()
    tensors = {name: tensor.to(stored) for name, tensor in load_file(source / "model.safetensors").items()}
    torch.save(tensors | {"epoch": 3}, source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="allow_pickle"):
        FlagModel(source)
    FlagModel(source, allow_pickle=True).save(tmp_path / "saved")
    written = load_file(tmp_path / "saved" / "model.safetensors")
    assert written.keys() == tensors.keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in tensors.items())
    assert {tensor.dtype for tensor in written.values()} == {stored}


@pytest.mark.parametrize(("bias", "activation"), [(True, "activation.Tanh"), (False, "linear.Identity")])
def test_dense_layers(with_dense, tiny_bert, tmp_path, texts, bias, activation):
    source = with_dense(tiny_bert, tmp_path / "dense", bias=bias, activation=f"torch.nn.modules.{activation}")
    model = FlagModel(source, use_fp16=False)
    model.save(tmp_path / "saved")
    assert files(tmp_path / "saved") == EXPECTED | {
        f"2_Dense/{name}" for name in ("config.json", "model.safetensors", "pytorch_model.bin")
    }
    assert read(tmp_path / "saved", "2_Dense/config.json") == read(source, "2_Dense/config.json")
    assert read(tmp_path / "saved", "1_Pooling/config.json")["word_embedding_dimension"] == 32
    assert [module["path"] for module in read(tmp_path / "saved", "modules.json")] == [
        "", "1_Pooling", "2_Dense", "3_Normalize",
    ]  # fmt: skip
    again = FlagModel(tmp_path / "saved", use_fp16=False)
    assert again.dimension == 16
    np.testing.assert_array_equal(model.encode(texts(5)), again.encode(texts(5)))


def test_missing_tokenizer_files_are_made(copy, tmp_path, texts):
    FlagModel(copy).save(tmp_path / "complete")
    for name in ("special_tokens_map.json", "tokenizer.json"):
        (copy / name).unlink(missing_ok=True)
    model = FlagModel(copy, use_fp16=False)
    model.save(tmp_path / "saved")
    assert files(tmp_path / "saved") == EXPECTED
    assert read(tmp_path / "saved", "special_tokens_map.json") == {
        "unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]",
    }  # fmt: skip
    again = FlagModel(tmp_path / "saved", use_fp16=False)
    np.testing.assert_array_equal(model.encode(texts(5)), again.encode(texts(5)))


def test_tokenizer_settings_are_in_words_that_transformers_4_knows(copy, tmp_path):
    settings = read(copy, "tokenizer_config.json")
    settings |= {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<x>"], "model_max_length": 10**30}
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    FlagModel(copy).save(tmp_path / "saved")
    written = read(tmp_path / "saved", "tokenizer_config.json")
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert written["additional_special_tokens"] == ["<x>"]
    assert "extra_special_tokens" not in written
    assert written["model_max_length"] == 64


# --- the card is the truth --------------------------------------------------------------------------------------


def test_what_the_caller_set_is_saved(tiny_bert, tmp_path):
    FlagModel(
        tiny_bert, pooling_method="mean", normalize_embeddings=False, query_instruction_for_retrieval="find: ",
        passage_instruction_for_retrieval="read: ", max_length=40,
    ).save(tmp_path / "saved")  # fmt: skip
    card = read_card(tmp_path / "saved")
    assert (card.pooling, card.normalize, card.max_length) == ("mean", False, 40)
    assert (card.prompt("query"), card.prompt("document")) == (Prompt("find: "), Prompt("read: "))
    assert not (tmp_path / "saved" / "2_Normalize").exists()
    assert read(tmp_path / "saved", "tokenizer_config.json")["model_max_length"] == 40
    FlagModel(tmp_path / "saved")  # The self-test is that of the overridden model.


def test_a_family_instruction_is_saved_under_any_name(make_model, tmp_path):
    FlagModel(make_model(name="bge-small-zh-v1.5", pooling=None)).save(tmp_path / "mine")
    card = read_card(tmp_path / "mine")
    assert card.prompt("query").prefix == "为这个句子生成表示以用于检索相关文章："
    assert (card.pooling, card.sources["pooling"], card.sources["query"]) == ("cls", "checkpoint", "checkpoint")


def test_no_instruction_is_saved_as_none_whatever_the_folder_is_called(make_model, tmp_path):
    FlagModel(make_model(name="bge-small-zh-v1.5"), query_instruction_for_retrieval=None).save(
        tmp_path / "bge-small-zh-v1.5"
    )
    assert not read_card(tmp_path / "bge-small-zh-v1.5").prompt("query")


def test_other_prompts_are_kept_and_aliases_follow_the_caller(copy, tmp_path):
    stored = {"query": "q: ", "passage": "p: ", "clustering": "c: "}
    content = {"prompts": stored, "default_prompt_name": "clustering", "similarity_fn_name": "dot"}
    (copy / "config_sentence_transformers.json").write_text(json.dumps(content))
    FlagModel(copy).save(tmp_path / "saved")
    written = read(tmp_path / "saved", "config_sentence_transformers.json")
    assert written["prompts"] == {**stored, "document": "p: "}
    assert (written["default_prompt_name"], written["similarity_fn_name"]) == ("clustering", "dot")
    FlagModel(copy, passage_instruction_for_retrieval="new: ").save(tmp_path / "other")
    written = read(tmp_path / "other", "config_sentence_transformers.json")
    assert written["prompts"] == {**stored, "document": "new: ", "passage": "new: "}


def test_text_after_a_query_is_kept(tiny_bert, tmp_path, texts):
    model = FlagModel(
        tiny_bert, use_fp16=False, query_instruction_for_retrieval="find", query_instruction_format="{}: {} [end]"
    )
    model.save(tmp_path / "saved")
    assert read_card(tmp_path / "saved").prompt("query") == Prompt("find: ", " [end]")
    again = FlagModel(tmp_path / "saved", use_fp16=False)
    np.testing.assert_array_equal(model.encode_queries(texts(5)), again.encode_queries(texts(5)))


def test_all_dimensions_are_saved(tiny_bert, tmp_path):
    FlagModel(tiny_bert, truncate_dim=8).save(tmp_path / "saved")
    assert FlagModel(tmp_path / "saved").dimension == 32
    assert FlagModel(tmp_path / "saved", truncate_dim=8).dimension == 8
    assert len(read_card(tmp_path / "saved").selftest["vector"]) == 32


def test_saving_again_changes_nothing(saved, tmp_path):
    FlagModel(saved).save(tmp_path / "again")
    assert contents(saved) == contents(tmp_path / "again")


# --- the self-test ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", BFLOAT16, INT8])
@pytest.mark.parametrize("truncate_dim", [None, 8])
def test_selftest_is_computed_in_float32(make_model, tmp_path, dtype, truncate_dim):
    source = make_model(pooling="mean", seed=3)
    FlagModel(source, dtype=dtype, truncate_dim=truncate_dim).save(tmp_path / "saved")
    stored = read_card(tmp_path / "saved").selftest
    expected = FlagModel(source, use_fp16=False).encode(stored["text"])
    np.testing.assert_allclose(stored["vector"], expected, atol=1e-6)


def test_selftest_finds_a_wrong_pooling(saved):
    pooling = read(saved, "1_Pooling/config.json")
    pooling |= {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True, "pooling_mode": "mean"}
    (saved / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    with pytest.raises(CheckpointError, match="self-test"):
        FlagModel(saved)
    FlagModel(saved, pooling_method="cls")  # Said to be otherwise by the caller, who is obeyed.


def test_selftest_finds_a_wrong_tokenizer(saved):
    tokenizer = read(saved, "tokenizer.json")
    tokenizer["normalizer"]["lowercase"] = False
    tokenizer["normalizer"]["handle_chinese_chars"] = False
    (saved / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = read(saved, "tokenizer_config.json") | {"do_lower_case": False, "tokenize_chinese_chars": False}
    (saved / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match="self-test"):
        FlagModel(saved)


def test_selftest_of_other_weights_is_a_warning_that_says_what_to_do(saved, caplog):
    """sentence-transformers before 5.4 copies our entry when it saves what it has trained."""
    tensors = load_file(saved / "model.safetensors")
    name = "encoder.layer.1.output.dense.weight"
    save_file({**tensors, name: tensors[name].flip(0)}, saved / "model.safetensors", metadata={"format": "pt"})
    assert saving.weights_digest(saved) != read_card(saved).selftest["weights"]
    model = FlagModel(saved)
    assert "trained or changed since" in caplog.text
    caplog.clear()
    model.save(saved, overwrite=True)
    FlagModel(saved)
    assert caplog.text == ""


@pytest.mark.parametrize("max_length", [4, 8, 64])
def test_selftest_is_not_cut_by_a_shorter_length(saved, max_length):
    FlagModel(saved, max_length=max_length)


def test_selftest_of_a_model_saved_with_a_short_length(tiny_bert, tmp_path):
    FlagModel(tiny_bert, max_length=8).save(tmp_path / "saved")
    FlagModel(tmp_path / "saved", max_length=60)


def test_selftest_knows_its_weights(saved):
    assert read_card(saved).selftest["weights"] == saving.weights_digest(saved)


# --- given weights, as training and merging have them -----------------------------------------------------------


def test_given_weights_are_stored_as_the_card_says(tiny_bert, tmp_path):
    card = replace(read_card(tiny_bert), dtype="bfloat16")
    weights = {name: tensor * 2 for name, tensor in load_file(tiny_bert / "model.safetensors").items()}
    weights["counter"] = torch.tensor([3])
    saving.write_checkpoint(tmp_path / "saved", card=card, source=tiny_bert, weights=weights)
    written = load_file(tmp_path / "saved" / "model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16, torch.int64}
    config = read(tmp_path / "saved", "config.json")
    assert config.get("dtype", config.get("torch_dtype")) == "bfloat16"
    assert "selftest" not in read(tmp_path / "saved", "config_sentence_transformers.json")["bgekit"]
    assert FlagModel(tmp_path / "saved").card.dtype == "bfloat16"


def test_given_dense_layers(with_dense, tiny_bert, tmp_path):
    source = with_dense(tiny_bert, tmp_path / "dense")
    weights = load_file(source / "model.safetensors")
    layer = {"weight": torch.zeros(16, 32), "bias": torch.ones(16)}
    saving.write_checkpoint(tmp_path / "saved", card=read_card(source), source=source, weights=weights, dense=[layer])
    np.testing.assert_allclose(FlagModel(tmp_path / "saved", use_fp16=False).encode("a"), np.full(16, 0.25), atol=1e-6)
    with pytest.raises(ArgumentError, match="1 dense layers"):
        saving.write_checkpoint(tmp_path / "x", card=read_card(source), source=source, weights=weights, dense=[])


def test_a_given_tokenizer_is_saved(tiny_bert, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    tokenizer.add_tokens(["<new>"])
    saving.write_checkpoint(tmp_path / "saved", card=read_card(tiny_bert), source=tiny_bert, tokenizer=tokenizer)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "saved")) == len(tokenizer)
    assert {"tokenizer.json", "special_tokens_map.json"} <= files(tmp_path / "saved")


# --- complete or not at all -------------------------------------------------------------------------------------


def test_an_existing_folder_is_refused(saved, tiny_bert):
    before = contents(saved)
    with pytest.raises(OutputError, match="overwrite=True"):
        FlagModel(tiny_bert, pooling_method="mean").save(saved)
    assert contents(saved) == before
    FlagModel(tiny_bert, pooling_method="mean").save(saved, overwrite=True)
    assert read_card(saved).pooling == "mean"
    assert os.listdir(saved.parent) == ["saved"]


def test_a_model_can_replace_itself(saved, texts):
    (saved / "leftover.txt").write_text("x")
    model = FlagModel(saved, use_fp16=False, query_instruction_for_retrieval="q: ")
    vectors = model.encode(texts(5))
    model.save(saved, overwrite=True)
    np.testing.assert_array_equal(model.encode(texts(5)), vectors)
    assert read_card(saved).prompt("query") == Prompt("q: ")
    assert files(saved) == EXPECTED


def test_what_is_no_model_is_never_replaced(tiny_bert, tmp_path):
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "letter.txt").write_text("dear")
    (tmp_path / "file").write_text("x")
    model = FlagModel(tiny_bert)
    with pytest.raises(OutputError, match="no model"):
        model.save(tmp_path / "documents", overwrite=True)
    with pytest.raises(OutputError, match="is a file"):
        model.save(tmp_path / "file", overwrite=True)
    with pytest.raises(OutputError, match=r"cannot save the model to .*/file/below"):
        model.save(tmp_path / "file" / "below")
    assert files(tmp_path) == {"documents/letter.txt", "file"}


def test_an_empty_folder_and_new_parents_are_fine(tiny_bert, tmp_path):
    (tmp_path / "empty").mkdir()
    FlagModel(tiny_bert).save(tmp_path / "empty")
    FlagModel(tiny_bert).save(str(tmp_path / "new" / "deep" / "model"))
    assert files(tmp_path / "empty") == files(tmp_path / "new" / "deep" / "model") == EXPECTED


@pytest.mark.skipif(os.name != "posix", reason="needs symbolic links")
def test_a_link_stays_a_link(saved, tiny_bert, tmp_path):
    (tmp_path / "latest").symlink_to(saved)
    FlagModel(tiny_bert, pooling_method="max").save(tmp_path / "latest", overwrite=True)
    assert (tmp_path / "latest").is_symlink()
    assert read_card(saved).pooling == "max"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), RuntimeError("bug")])
@pytest.mark.parametrize(
    ("module", "function"),
    [(saving, "copy_weights"), (saving, "write_tokenizer"), (atomic, "usual_modes"), (atomic, "_sync")],
    ids=["weights", "tokenizer", "modes", "sync"],
)
@pytest.mark.parametrize("exists", [False, True])
def test_a_failure_leaves_everything_as_it_was(saved, tiny_bert, monkeypatch, error, module, function, exists):
    target = saved if exists else saved.parent / "new"
    before, real = contents(saved), getattr(module, function)

    def fails(*arguments):
        if function != "_sync":
            real(*arguments)
        raise error

    monkeypatch.setattr(module, function, fails)
    model = FlagModel(tiny_bert, pooling_method="mean")
    with pytest.raises(OutputError if isinstance(error, OSError) else type(error)) as raised:
        model.save(target, overwrite=exists)
    if isinstance(error, OSError):
        assert re.search("No space left on device", str(raised.value))
    assert contents(saved) == before
    assert os.listdir(saved.parent) == ["saved"]


def test_a_failed_exchange_is_undone(saved, tiny_bert, monkeypatch):
    before, rename = contents(saved), type(saved).rename

    def fails(path, target):
        if path.name.endswith(".tmp"):
            raise OSError(5, "Input/output error")
        return rename(path, target)

    model = FlagModel(tiny_bert, pooling_method="mean")
    monkeypatch.setattr(type(saved), "rename", fails)
    with pytest.raises(OutputError, match="Input/output error"):
        model.save(saved, overwrite=True)
    assert contents(saved) == before
    assert os.listdir(saved.parent) == ["saved"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a file size limit that can be set")
@pytest.mark.parametrize("pickled", [False, True])
def test_a_file_that_the_system_refuses_to_write(copy, tmp_path, pickled):
    import resource

    if pickled:
        torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
        (copy / "model.safetensors").unlink()
    model = FlagModel(copy, allow_pickle=True)
    # Python ignores the signal that comes with it; what pytest itself writes meanwhile is short.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(OutputError, match="cannot save the model"):
            model.save(tmp_path / "saved")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == ["source"]


def test_a_damaged_source_is_an_error_that_names_the_file(tiny_bert, tmp_path):
    source = shutil.copytree(tiny_bert, tmp_path / "source")
    model = FlagModel(source)
    (source / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        model.save(tmp_path / "saved")
    assert os.listdir(tmp_path) == ["source"]


def test_a_reranker_has_nothing_to_save(tmp_path):
    with pytest.raises(CardError, match="reranker"):
        FlagModel("BAAI/bge-reranker-base").save(tmp_path / "saved")
