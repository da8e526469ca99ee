"""`bge pretrain` from a command line to a model that `bge finetune` takes."""

import json
import logging
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest

import forked
from bgekit import FlagModel
from bgekit.cli.main import main
from bgekit.inference import embedder
from bgekit.models.card_reading import read_card
from bgekit.training.loop.checkpoints import last_whole_checkpoint
from conftest import check_modes

#: The run of `result` is drawn: it comes before what concerns single tests.
pytestmark = pytest.mark.usefixtures("quick_figures")


def arguments(start, data: str, output: Path, *more: str) -> list[str]:
    return [
        *(["--model", str(start)] if start else []), "--train-data", data, "--output-dir", str(output),
        "--per-device-train-batch-size", "8", "--max-seq-length", "64", "--learning-rate", "2e-3",
        "--logging-steps", "5", "--report-to", "none", "--cache-path", str(output.parent / "cache"),
        "--disable-tqdm", "true", "--use-cpu", *more,
    ]  # fmt: skip


def pretrain(*given: str) -> int:
    return main(["pretrain", *given])


def weights(folder: Path, name: str = "model") -> dict:
    from safetensors.numpy import load_file

    return load_file(folder / f"{name}.safetensors")


def history(output: Path, name: str) -> list[float]:
    return [row[name] for row in json.loads((output / "training.json").read_text())["history"] if name in row]


@pytest.fixture(scope="module")
def result(models, documentation, tmp_path_factory) -> Path:
    """A tiny BERT after 80 steps on real texts."""
    output = tmp_path_factory.mktemp("result") / "out"
    more = ["--max-steps", "80", "--save-strategy", "no", "--validation-split", "0.1", "--eval-steps", "40"]
    assert pretrain(*arguments(models("bert"), documentation, output, *more)) == 0
    return output


def test_losses_fall_on_real_text(result):
    for name in ("loss", "encoder_loss", "decoder_loss", "eval_loss", "eval_encoder_loss", "eval_decoder_loss"):
        values = history(result, name)
        assert values[-1] < values[0] - 0.3, name
    assert len(history(result, "eval_loss")) == 3  # At the start, half-way, in the end.
    assert all(0 <= value <= 1 for value in history(result, "decoder_accuracy"))
    assert min(history(result, "tokens_per_second")) > 0
    assert (result / "training.html").exists() and (result / "training.png").exists()
    facts = json.loads((result / "training.json").read_text())
    assert facts["method"] == "RetroMAE" and facts["texts"]["texts"] > 300
    assert not [path for path in result.iterdir() if path.name.startswith(".")]


def test_the_result_says_that_it_is_no_embedder(result, caplog, monkeypatch):
    monkeypatch.setattr(embedder, "_noticed", set())
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            model = FlagModel(result, devices="cpu")
    assert caplog.text.count("not yet an embedder") == 1
    assert model.card.pretrained_only and model.card.pooling == "cls"
    readme = (result / "README.md").read_text()
    assert "pretrained-only" in readme.split("---")[1] and "must be\nfine-tuned" in readme
    assert "\n# out\n\nPre-trained (RetroMAE) from `tiny-bert` on " in readme and "bge finetune --model out " in readme
    assert "| docs.jsonl |" in readme and "| encoder loss |" in readme and str(result.parent) not in readme
    check_modes(result)
    stored = json.loads((result / "config_sentence_transformers.json").read_text())
    assert stored["bgekit"]["pretrained_only"] is True
    from sentence_transformers import SentenceTransformer

    texts = ["the bird", "a cat"]
    got = SentenceTransformer(str(result)).encode(texts)
    assert np.allclose(got, FlagModel(result, use_fp16=False, devices="cpu").encode(texts), atol=1e-5)


def test_saved_again_it_is_still_none(result, tmp_path):
    FlagModel(result, devices="cpu").save(tmp_path / "copy")
    assert read_card(tmp_path / "copy").pretrained_only


def test_fine_tuning_takes_it_and_makes_an_embedder(result, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(embedder, "_noticed", set())
    rows = [{"query": f"a {word}", "pos": [f"the {word}"]} for word in ("cat", "dog", "tree", "river")]
    data = tmp_path / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "tuned"
    given = [
        "--model", str(result), "--train-data", str(data), "--output-dir", str(output), "--max-steps", "2",
        "--report-to", "none", "--disable-tqdm", "true", "--use-cpu", "--cache-path", str(tmp_path / "cache"),
        "--save-strategy", "no",
    ]  # fmt: skip
    assert main(["finetune", *given]) == 0
    assert not FlagModel(output, devices="cpu").card.pretrained_only
    assert "not yet an embedder" not in caplog.text
    readme = (output / "README.md").read_text()
    assert "pretrained-only" not in readme and "encode_queries" in readme


def test_going_on_from_a_result_keeps_head_and_decoder(result, documentation, tmp_path, caplog):
    output = tmp_path / "more"
    with caplog.at_level(logging.INFO, logger="bgekit"):
        more = ["--max-steps", "1", "--save-strategy", "no", "--validation-split", "0.1"]
        assert pretrain(*arguments(result, documentation, output, *more)) == 0
    assert history(output, "eval_loss")[0] == pytest.approx(history(result, "eval_loss")[-1], rel=1e-4)


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta", "distilbert", "modernbert"])
def test_other_architectures(models, documentation, tmp_path, kind):
    output = tmp_path / "out"
    more = [
        "--max-steps",
        "12",
        "--save-strategy",
        "no",
        "--gradient-accumulation-steps",
        "2",
        "--learning-rate",
        "5e-3",
    ]
    assert pretrain(*arguments(models(kind), documentation, output, *more)) == 0
    assert history(output, "loss")[-1] < history(output, "loss")[0]
    import torch
    import transformers

    model = transformers.AutoModel.from_pretrained(output)
    vector = FlagModel(output, use_fp16=False, devices="cpu").encode(["the cat"])
    ids = torch.tensor([FlagModel(output, devices="cpu").tokenizer("the cat")["input_ids"]])
    hidden = model.eval()(input_ids=ids).last_hidden_state[:, 0]
    assert np.allclose(torch.nn.functional.normalize(hidden).detach(), vector, atol=1e-5)


def test_from_random_weights(models, documentation, tmp_path):
    output = tmp_path / "out"
    sizes = "hidden_size=24,num_hidden_layers=1,num_attention_heads=2,intermediate_size=48,max_position_embeddings=80"
    more = ["--config-name", "bert", "--config-overrides", sizes, "--tokenizer-name", str(models("bert"))]
    assert pretrain(*arguments(None, documentation, output, "--max-steps", "2", "--save-strategy", "no", *more)) == 0
    assert FlagModel(output, devices="cpu").dimension == 24
    assert json.loads((output / "config.json").read_text())["num_hidden_layers"] == 1


@pytest.mark.parametrize("layers", [2, 24])
def test_from_random_weights_with_another_number_of_layers(models, documentation, tmp_path, layers):
    """ModernBERT's config lists the kind of each of its 22 layers."""
    output = tmp_path / "out"
    sizes = f"hidden_size=16,num_hidden_layers={layers},num_attention_heads=2,intermediate_size=16"
    more = ["--config-name", "modernbert", "--config-overrides", sizes, "--tokenizer-name", str(models("bert"))]
    assert pretrain(*arguments(None, documentation, output, "--max-steps", "1", "--save-strategy", "no", *more)) == 0
    types = json.loads((output / "config.json").read_text())["layer_types"]
    assert len(types) == layers and types[:2] == ["full_attention", "sliding_attention"]


def test_another_tokenizer(models, documentation, tmp_path):
    output = tmp_path / "out"
    more = ["--max-steps", "2", "--save-strategy", "no", "--tokenizer-name", str(models("xlm-roberta"))]
    assert pretrain(*arguments(models("bert"), documentation, output, *more)) == 0
    model = FlagModel(output, devices="cpu")
    from bgekit.inference.tokenization import load_tokenizer

    assert model.tokenizer.get_vocab() == load_tokenizer(models("xlm-roberta")).get_vocab()
    assert model.encode(["the cat"]).shape == (1, 32)


def test_validation_and_the_best_checkpoint(models, documentation, tmp_path):
    data = tmp_path / "eval.txt"
    data.write_text("\n".join(json.loads(line)["text"][:80].replace("\n", " ") for line in open(documentation))[:6000])
    output = tmp_path / "out"
    more = [
        "--eval-data", str(data), "--max-steps", "12", "--eval-strategy", "steps", "--eval-steps", "4",
        "--load-best-model-at-end", "true", "--early-stopping-patience", "5",
    ]  # fmt: skip
    assert pretrain(*arguments(models("bert"), documentation, output, *more)) == 0
    facts = json.loads((output / "training.json").read_text())
    rows = [row for row in facts["history"] if "eval_loss" in row]
    assert [row["step"] for row in rows] == [0, 4, 8, 12]
    best = min(rows, key=lambda row: row["eval_loss"])
    assert facts["best_checkpoint"].endswith(f"checkpoint-{best['step']}")
    for name, value in weights(Path(facts["best_checkpoint"])).items():
        assert np.array_equal(value, weights(output)[name])


def test_killed_and_resumed_it_is_the_same_run(documentation, tmp_path):
    from conftest import make_tiny

    start = make_tiny(tmp_path / "start")  # With dropout.
    more = ["--max-steps", "20", "--save-strategy", "steps", "--save-steps", "4", "--save-total-limit", "2"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"

    def begin(output: Path, *further: str) -> BaseProcess:
        given = arguments(start, documentation, output, *more, *further)
        return forked.start_module("bgekit.pretraining.run", given)

    forked.finish([begin(whole)])
    process = begin(broken)
    deadline = time.monotonic() + 120
    while last_whole_checkpoint(broken) is None and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "it ended before it could be killed"
    forked.finish([begin(broken, "--resume-from-checkpoint", "true")])
    for name in ("model", "retromae"):
        first, second = weights(whole, name), weights(broken, name)
        assert first.keys() == second.keys()
        assert all(np.array_equal(value, second[key]) for key, value in first.items())


def test_two_processes_train_what_one_does(models, documentation, tmp_path):
    more = [
        "--max-steps",
        "3",
        "--save-strategy",
        "no",
        "--optim",
        "sgd",
        "--logging-steps",
        "1",
        "--learning-rate",
        "0.1",
    ]
    outputs = {name: tmp_path / name for name in ("one", "two")}
    given = {name: arguments(models("bert"), documentation, output, *more) for name, output in outputs.items()}
    given["two"][given["two"].index("--per-device-train-batch-size") + 1] = "4"
    forked.finish([forked.start_module("bgekit.pretraining.run", given["one"])])
    forked.torchrun("bgekit.pretraining.run", given["two"], world=2)
    assert history(outputs["one"], "decoder_loss") == pytest.approx(history(outputs["two"], "decoder_loss"), rel=1e-4)
    moved = 0.0
    start = weights(models("bert"))
    for file in ("model", "retromae"):
        first, second = weights(outputs["one"], file), weights(outputs["two"], file)
        for name, value in first.items():
            assert np.allclose(value, second[name], atol=1e-5), name
            if file == "model":
                moved = max(moved, float(np.abs(value - start[name]).max()))
    assert moved > 1e-3


def test_bf16_and_checkpointing(models, documentation, tmp_path):
    output = tmp_path / "out"
    more = ["--max-steps", "6", "--save-strategy", "no", "--bf16", "true", "--gradient-checkpointing", "true"]
    assert pretrain(*arguments(models("bert"), documentation, output, *more)) == 0
    assert np.isfinite(history(output, "loss")).all()
    assert all(value.dtype == np.float32 for value in weights(output).values() if value.dtype.kind == "f")


def test_dry_run(models, documentation, tmp_path, capsys):
    assert pretrain(*arguments(models("bert"), documentation, tmp_path / "out", "--dry-run")) == 0
    shown = capsys.readouterr().out
    assert "400 texts" in shown and "[MASK]" in shown and "[CLS]" in shown
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--encoder-mlm-probability", "1.5"], "--encoder-mlm-probability"),
        (["--max-seq-length", "200"], "--max-length 200"),
        (["--max-seq-length", "2"], "leaves no room"),
        (["--load-best-model-at-end", "true"], "--validation-split"),
        (["--config-name", "bert"], "--config-name"),
        (["--config-overrides", "hidden_size=3"], "--config-overrides"),
        (["--train-data", "/nowhere.txt"], "/nowhere.txt"),
        (["--model", "/nowhere"], "/nowhere"),
        (["--eval-split", "test"], "--validation-split"),
        (["--tokenizer-name", "/nowhere"], "/nowhere"),
        (["--temperature", "1"], "--temperature"),
    ],
)
def test_arguments_that_cannot_work_are_one_line(models, documentation, tmp_path, capsys, given, says):
    # What only the model or the files show is no wrong usage.
    code = 1 if "/nowhere" in says or "--max-seq-length" in given else 2
    assert pretrain(*arguments(models("bert"), documentation, tmp_path / "out", *given)) == code
    error = capsys.readouterr().err
    assert says in error.splitlines()[-1] and "Traceback" not in error


def test_models_that_cannot_be_masked(make_model, documentation, tmp_path, capsys):
    for kind in ("qwen3", "t5"):
        assert pretrain(*arguments(make_model(kind), documentation, tmp_path / kind)) == 1
        assert "masked" in capsys.readouterr().err.splitlines()[-1]


def test_a_used_folder_is_left_alone(models, documentation, tmp_path, capsys):
    output = tmp_path / "out"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    assert pretrain(*arguments(models("bert"), documentation, output)) == 1
    assert "or --overwrite to start over" in capsys.readouterr().err
