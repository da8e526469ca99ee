"""LoRA adapters: against peft itself, and what cannot be merged."""

import errno
import json
import logging
import shlex
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from bgekit.errors import CardError, CheckpointError, OutputError
from bgekit.merging import mix_models
from bgekit.models.hub import resolve

WEIGHTS = "model.safetensors"


@pytest.fixture
def adapter(pair, tmp_path):
    """Make an adapter of random weights with peft; returns its folder and what peft makes of it."""
    peft = pytest.importorskip("peft")
    from transformers import AutoModel

    def make(name="adapter", **options):
        settings = {"r": 4, "lora_alpha": 6, "target_modules": ["query", "dense"], "bias": "none"} | options
        torch.manual_seed(0)
        model = peft.get_peft_model(AutoModel.from_pretrained(pair[0]), peft.LoraConfig(**settings))
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "lora_" in key:
                    parameter.normal_(0, 0.1)
        model.save_pretrained(tmp_path / name)
        return tmp_path / name, dict(model.merge_and_unload().state_dict())

    return make


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"query": 2}, "alpha_pattern": {"query": 9, "layer.1.output.dense": 3}},
        {"target_modules": ["word_embeddings", "value"]},
        {"bias": "all"},
        {"modules_to_save": ["pooler"]},
    ],
)
def test_alone_is_what_peft_makes_of_it(adapter, tmp_path, options):
    folder, expected = adapter(**options)
    mix_models([folder], "encoder", [1.0], tmp_path / "out")
    merged = load_file(tmp_path / "out" / WEIGHTS)
    for name in merged:
        torch.testing.assert_close(merged[name], expected[name], rtol=1e-5, atol=1e-6)


def test_beside_a_model_it_is_its_base_and_its_delta(adapter, pair, examples, tmp_path):
    from bgekit.merging import mix_models_with_data

    folder, expected = adapter()
    mix_models([pair[1], folder], "encoder", [0.5, 0.5], tmp_path / "out")
    merged, other = load_file(tmp_path / "out" / WEIGHTS), load_file(pair[1] / WEIGHTS)
    for name in merged:
        torch.testing.assert_close(merged[name], (expected[name] + other[name]) / 2, rtol=1e-5, atol=1e-6)
    content = json.loads((tmp_path / "out" / "merge.json").read_text())["models"][1]
    assert content["base"] == str(pair[0])
    assert len(content["adapter_weights"]) == 64
    losses = mix_models_with_data([folder, pair[1]], "encoder", examples).losses
    mix_models([folder], "encoder", [1.0], tmp_path / "alone")
    assert mix_models_with_data([tmp_path / "alone", pair[1]], "encoder", examples).losses == pytest.approx(losses)


def test_no_room_for_the_copy_that_is_loaded(adapter, pair, examples, tmp_path, monkeypatch):
    from bgekit.merging import mix_models_with_data

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("bgekit.merging.merged_model.write_weights", full)
    with pytest.raises(OutputError, match=r"cannot write a copy of \S+ with its base .* No space left .* TMPDIR"):
        mix_models_with_data([adapter()[0], pair[1]], "encoder", examples, output_path=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_no_plain_sum(adapter, tmp_path, edit):
    folder, _ = adapter()
    config = folder / "adapter_config.json"
    for changes in ({"use_dora": True}, {"init_lora_weights": "pissa"}, {"peft_type": "IA3"}):
        before = config.read_text()
        edit(config, **changes)
        with pytest.raises(CheckpointError, match="merge_and_unload"):
            mix_models([folder], "encoder", [1.0], tmp_path / "out")
        config.write_text(before)
    edit(config, base_model_name_or_path="")
    with pytest.raises(CheckpointError, match="does not name its base"):
        mix_models([folder], "encoder", [1.0], tmp_path / "out")
    edit(config, base_model_name_or_path=str(tmp_path / "gone"))
    with pytest.raises(CheckpointError, match=r"the base model of the adapter .*gone"):
        mix_models([folder], "encoder", [1.0], tmp_path / "out")


def test_what_does_not_fit_the_base(adapter, make_model, tmp_path, edit):
    folder, _ = adapter()
    file = folder / "adapter_model.safetensors"
    stored = load_file(file)
    save_file({**stored, "base_model.model.strange.lora_A.weight": torch.ones(4, 32)}, file)
    with pytest.raises(CheckpointError, match="strange"):
        mix_models([folder], "encoder", [1.0], tmp_path / "out")
    save_file(stored, file)
    edit(folder / "adapter_config.json", base_model_name_or_path=str(make_model("bert", intermediate_size=48)))
    with pytest.raises(CheckpointError, match="does not fit its base"):
        mix_models([folder], "encoder", [1.0], tmp_path / "out")


def told_command(message):
    """The arguments of the `bge` command that a message gives."""
    return shlex.split(message.split("bge ", 1)[1].splitlines()[0])


def test_given_as_a_model_it_says_what_it_is_and_the_command_makes_the_model(adapter, tmp_path, monkeypatch):
    from bgekit import FlagModel, FlagReranker
    from bgekit.cli.main import main

    folder, expected = adapter("my adapter")
    monkeypatch.chdir(tmp_path)
    for kind in (FlagModel, FlagReranker):
        with pytest.raises(CheckpointError, match=r"LoRA adapter of .*model-a, not a model") as caught:
            kind(folder, devices="cpu")
    assert main(told_command(str(caught.value))) == 0
    FlagModel(tmp_path / "my adapter-merged", devices="cpu")
    merged = load_file(tmp_path / "my adapter-merged" / WEIGHTS)
    for name in merged:
        torch.testing.assert_close(merged[name], expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "command",
    [
        ["finetune", "--model-name-or-path", "ADAPTER", "--train-data", "x.jsonl", "--output-dir", "out"],
        ["finetune-reranker", "--model-name-or-path", "ADAPTER", "--train-data", "x.jsonl", "--output-dir", "out"],
        ["pretrain", "--model-name-or-path", "ADAPTER", "--train-data", "x.txt", "--output-dir", "out"],
        ["info", "ADAPTER"],
        ["encode", "--model", "ADAPTER", "x.txt", "--output", "out"],
    ],
)
def test_every_verb_says_so(adapter, tmp_path, monkeypatch, capfd, command):
    from bgekit.cli.main import main

    folder, _ = adapter()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.txt").write_text("a text\n")
    (tmp_path / "x.jsonl").write_text('{"query": "a", "pos": ["b"], "neg": ["c"]}\n')
    assert main([str(folder) if part == "ADAPTER" else part for part in command]) != 0
    said = capfd.readouterr().err
    assert "is a LoRA adapter of" in said
    assert f"bge merge --models {folder} --weights 1 --output adapter-merged" in said


def test_with_a_config_beside_it_too(adapter, pair):
    from bgekit import FlagModel

    folder, _ = adapter()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(pair[0] / name, folder)
    with pytest.raises(CheckpointError, match="LoRA adapter of"):
        FlagModel(folder, devices="cpu", pooling_method="cls")


def test_adapters_of_other_kinds_and_pickled_ones_are_told_apart(adapter, edit):
    folder, _ = adapter()
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"--output adapter-merged --allow-pickle$"):
        resolve(str(folder))
    edit(folder / "adapter_config.json", peft_type="IA3")
    with pytest.raises(CheckpointError, match=r"adapter \(peft, IA3\).*merge_and_unload"):
        resolve(str(folder))


def say(folder, **sides):
    """Write side files of sentence-transformers into an adapter's folder."""
    files = {
        "pooling": ("1_Pooling/config.json", lambda mode: {"pooling_mode": mode}),
        "max_length": ("sentence_bert_config.json", lambda length: {"max_seq_length": length}),
        "prompts": ("config_sentence_transformers.json", lambda prompts: {"prompts": prompts}),
    }
    for name, value in sides.items():
        file, content = files[name]
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(json.dumps(content(value)))
    return folder


def test_what_an_adapter_says_of_itself_counts_more_than_its_base(adapter, pair, examples, tmp_path, caplog):
    from bgekit.merging import mix_models_with_data
    from bgekit.models.card_reading import read_card

    first = say(adapter("first")[0], pooling="mean", max_length=40, prompts={"query": "ask: ", "document": "doc: "})
    second = say(adapter("second")[0], pooling="mean", max_length=40, prompts={"query": "ask: ", "document": "doc: "})
    mix_models([first], "encoder", [1.0], tmp_path / "alone")
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert any("pooling of the adapter" in line and "'mean'" in line and "'cls'" in line for line in said)
    assert any("max_length" in line and "40" in line and "64" in line for line in said)
    mix_models([first, second], "encoder", [0.5, 0.5], tmp_path / "both")
    mix_models([pair[1], first], "encoder", [0.5, 0.5], tmp_path / "chosen", card_from=1)
    mix_models_with_data([first, second], "encoder", examples, output_path=tmp_path / "weighed")
    for made in ("alone", "both", "chosen", "weighed"):
        card = read_card(tmp_path / made)
        assert (card.pooling, card.max_length) == ("mean", 40)
        assert [card.prompt(role).prefix for role in ("query", "document")] == ["ask: ", "doc: "]


def test_an_adapter_that_is_used_unlike_its_base_is_not_mixed_with_it_unasked(adapter, pair, tmp_path):
    folder = say(adapter()[0], prompts={"query": "ask: "})
    with pytest.raises(CardError, match="used differently"):
        mix_models([pair[0], folder], "encoder", [0.5, 0.5], tmp_path / "out")


def test_a_copy_of_the_bases_tokenizer_is_no_statement_about_its_length(adapter, pair, tmp_path, edit, caplog):
    from bgekit.models.card_reading import read_card

    folder, _ = adapter()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(pair[0] / name, folder / name)
    base = tmp_path / "base"
    shutil.copytree(pair[0], base)
    edit(base / "sentence_bert_config.json", max_seq_length=32)
    edit(folder / "adapter_config.json", base_model_name_or_path=str(base))
    mix_models([folder], "encoder", [1.0], tmp_path / "out")
    assert read_card(tmp_path / "out").max_length == 32
    assert not caplog.records
    edit(folder / "tokenizer_config.json", model_max_length=48)
    mix_models([folder], "encoder", [1.0], tmp_path / "longer")
    assert read_card(tmp_path / "longer").max_length == 48


def test_an_adapters_own_tokenizer_is_kept_if_the_embeddings_have_its_tokens(adapter, pair, tmp_path, caplog):
    from transformers import AutoTokenizer

    folder, _ = adapter()
    tokenizer = AutoTokenizer.from_pretrained(pair[0], do_lower_case=False)
    tokenizer.save_pretrained(folder)
    mix_models([folder], "encoder", [1.0], tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").tokenize("CAT") == tokenizer.tokenize("CAT")
    assert "another tokenizer" in caplog.text
    tokenizer.add_tokens(["[NEW]"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(CheckpointError, match=r"tokens, its base .* embeddings"):
        mix_models([folder], "encoder", [1.0], tmp_path / "none")


def test_a_rerankers_adapter_keeps_its_own_length_and_instruction(make_reranker, tmp_path, caplog):
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForSequenceClassification

    from bgekit.models.card_reading import read_reranker_card

    base = make_reranker("bert", seed=1)
    made = peft.get_peft_model(
        AutoModelForSequenceClassification.from_pretrained(base), peft.LoraConfig(r=2, target_modules=["query"])
    )
    made.save_pretrained(tmp_path / "adapter")
    config = json.loads((base / "config.json").read_text())
    said = {"max_length": 24, "query": ["ask: ", ""], "document": ["", ""]}
    (tmp_path / "adapter" / "config.json").write_text(json.dumps(config | {"bgekit_reranker": said}))
    mix_models([tmp_path / "adapter"], "reranker", [1.0], tmp_path / "out")
    card = read_reranker_card(tmp_path / "out")
    assert (card.max_length, card.query.prefix) == (24, "ask: ")


def test_pooling_can_be_given_where_no_model_says_it(make_model, tmp_path):
    from bgekit.models.card_reading import read_card

    folder = make_model(pooling=None, name="says-nothing")
    with pytest.raises(CardError, match="pooling_method="):
        mix_models([folder], "encoder", [1.0], tmp_path / "none")
    mix_models([folder], "encoder", [1.0], tmp_path / "out", pooling_method="mean")
    assert read_card(tmp_path / "out").pooling == "mean"
