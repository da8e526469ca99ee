"""`bge finetune` from a command line to a model that loads everywhere."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import forked
from bgekit import FlagModel
from bgekit.cli.main import main
from bgekit.training.loop.checkpoints import last_whole_checkpoint
from conftest import check_modes, read_readme

pytestmark = pytest.mark.usefixtures("quick_figures")
PAIRS = [("cat", "bird"), ("dog", "tree"), ("house", "river"), ("mountain", "blue"), ("red", "walk"), ("read", "learn")]


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> str:
    from conftest import make_tiny

    # Without dropout, so that what should be equal is.
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return str(make_tiny(tmp_path_factory.mktemp("start") / "tiny", **still))


@pytest.fixture(scope="module")
def dropping(tmp_path_factory) -> str:
    from conftest import make_tiny

    return str(make_tiny(tmp_path_factory.mktemp("start") / "dropping"))


@pytest.fixture
def rows(tmp_path: Path) -> str:
    lines = [
        {
            "query": f"a {query} {number}",
            "pos": [f"the {passage} {number}"],
            "neg": [f"some {PAIRS[number][1]}", "an it"],
        }
        for number in range(len(PAIRS))
        for query, passage in PAIRS
    ]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def arguments(start: str, rows: str, output: Path, *more: str) -> list[str]:
    return [
        "--model", start, "--train-data", rows, "--output-dir", str(output), "--per-device-train-batch-size", "6",
        "--train-group-size", "2", "--learning-rate", "1e-3", "--logging-steps", "2", "--report-to", "none",
        "--cache-path", str(output.parent / "cache"), "--disable-tqdm", "true", "--use-cpu", *more,
    ]  # fmt: skip


def finetune(*given: str) -> int:
    return main(["finetune", *given])


def test_a_run_says_what_it_brought_in_words(start, rows, tmp_path, capsys, monkeypatch):
    """No dictionaries, and no name of a folder that is gone; long texts are said once."""
    monkeypatch.chdir(tmp_path)
    task = tmp_path / "task"
    (task / "qrels").mkdir(parents=True)
    documents = [{"_id": str(number), "text": f"the {passage} " * 40} for number, (_, passage) in enumerate(PAIRS)]
    queries = [{"_id": f"q{number}", "text": f"a {query}"} for number, (query, _) in enumerate(PAIRS)]
    for name, lines in (("corpus", documents), ("queries", queries)):
        (task / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    judged = "".join(f"q{number}\t{number}\t1\n" for number in range(len(PAIRS)))
    (task / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    given = arguments(start, rows, Path("tuned"), "--max-steps", "4", "--eval-data", "task", "--eval-steps", "2")
    assert finetune(*given, "--load-best-model-at-end", "true", "--save-steps", "2") == 0
    shown = capsys.readouterr()
    said = shown.err.splitlines()
    assert not shown.out and ".tmp" not in shown.err and "scratch" not in shown.err and "{" not in shown.err
    (last,) = [line for line in said if "next: " in line]
    assert last.startswith("task nDCG@10 ") and " -> " in last and ("best at step" in last or "no better" in last)
    assert last.endswith("model in tuned; curves in tuned/training.html; next: bge eval --data task --model tuned")
    assert sum(line.startswith("step 2/4: loss ") for line in said) == 1
    assert sum("evaluation: task nDCG@10" in line for line in said) == 3
    assert sum("too long for tuned" in line for line in said) <= 1


@pytest.mark.parametrize("shown", [True, False])
def test_an_evaluation_while_training_says_how_far_it_is(start, rows, tmp_path, capsys, monkeypatch, shown):
    from bgekit.display import terminal

    monkeypatch.setattr(terminal, "_EVERY", 0.0)  # A line for each step instead of one every 30 seconds.
    pairs = [{"sentence1": f"a {first}", "sentence2": f"the {second}", "score": n} for n, (first, second) in
             enumerate(PAIRS * 3)]  # fmt: skip
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    more = ["--max-steps", "1", "--eval-data", str(data), "--eval-steps", "1"]
    given = arguments(start, rows, tmp_path / "tuned", *more)
    given[given.index("--disable-tqdm") + 1] = "false" if shown else "true"
    assert finetune(*given) == 0
    err = capsys.readouterr().err
    assert ("\npairs: texts: " in err) == shown
    assert "evaluation: pairs " in err and "INFO" not in err


def test_tensorboard_gets_every_number(start, rows, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    given = arguments(start, rows, tmp_path / "tuned", "--max-steps", "4")
    given[given.index("--report-to") + 1] = "tensorboard"
    assert finetune(*given) == 0
    (file,) = (tmp_path / "tuned" / "runs").rglob("events.out.tfevents.*")
    events = EventAccumulator(str(file)).Reload()
    assert {"train/loss", "train/gap", "train/learning_rate"} <= set(events.Tags()["scalars"])
    history = json.loads((tmp_path / "tuned" / "training.json").read_text())["history"]
    losses = {row["step"]: row["loss"] for row in history if "loss" in row}
    found = {each.step: each.value for each in events.Scalars("train/loss")}
    assert found == pytest.approx(losses)


def weights(folder: Path) -> dict:
    from safetensors.numpy import load_file

    return load_file(folder / "model.safetensors")


@pytest.mark.draws
def test_it_learns_and_the_result_is_a_complete_model(start, rows, tmp_path, monkeypatch):
    output = tmp_path / "out"
    more = ["--num-train-epochs", "4", "--save-strategy", "no", "--query-instruction-for-retrieval", "find: "]
    assert finetune(*arguments(start, rows, output, *more)) == 0
    model, before = FlagModel(output, use_fp16=False), FlagModel(start, use_fp16=False)
    assert str(model.card.prompt("query")) == "find: "
    assert model.card.pooling == before.card.pooling

    def right(one: FlagModel) -> float:
        queries = one.encode_queries([f"a {query} 1" for query, _ in PAIRS])
        passages = one.encode_corpus([f"the {passage} 1" for _, passage in PAIRS])
        return float(((queries @ passages.T).argmax(1) == np.arange(len(PAIRS))).mean())

    assert right(model) > right(before)
    facts = json.loads((output / "training.json").read_text())
    losses = [row["loss"] for row in facts["history"] if "loss" in row]
    assert losses[-1] < losses[0]
    assert facts["base_model"] == start and facts["data"]["datasets"][0]["rows"] == 36
    assert {"accuracy", "positive", "negative", "gap", "grad_norm", "learning_rate"} <= set(facts["history"][0])
    assert (output / "training.html").exists() and (output / "training.png").exists()
    assert not [path for path in output.iterdir() if path.name.startswith(".tmp")]
    from sentence_transformers import SentenceTransformer

    texts = ["the bird", "a cat"]
    assert np.allclose(SentenceTransformer(str(output)).encode(texts), model.encode(texts), atol=1e-5)
    assert facts["findings"].keys() <= {"false negatives"}
    for example in ("bgekit", "sentence_transformers"):
        text, front = read_readme(output, monkeypatch, example)
    assert "Fine-tuned from `tiny` on 36 rows by bgekit." in text and "| train.jsonl | 36 |" in text
    assert "| `--learning-rate` | `0.001` |" in text and "![Curves of the training run](training.png)" in text
    assert str(tmp_path) not in text and start not in text and "base_model" not in front


def test_a_model_trained_to_be_cut_says_so(start, rows, tmp_path):
    once = ["--max-steps", "1", "--save-strategy", "no"]
    assert finetune(*arguments(start, rows, tmp_path / "cut", *once, "--matryoshka-dims", "16", "8", "32")) == 0
    assert FlagModel(tmp_path / "cut").card.matryoshka_dims == (8, 16)
    # Trained on without it, it need not be one any more.
    assert finetune(*arguments(str(tmp_path / "cut"), rows, tmp_path / "whole", *once)) == 0
    assert FlagModel(tmp_path / "whole").card.matryoshka_dims == ()


def test_the_gradient_cache_changes_nothing(start, rows, tmp_path):
    for name, more in (("plain", []), ("cached", ["--grad-cache-chunk", "4"])):
        more = [*more, "--optim", "sgd"]  # Adam makes steps of gradients that are zero but for rounding.
        assert (
            finetune(*arguments(start, rows, tmp_path / name, "--max-steps", "3", "--save-strategy", "no", *more)) == 0
        )
    plain, cached = weights(tmp_path / "plain"), weights(tmp_path / "cached")
    for name, value in plain.items():
        assert np.allclose(value, cached[name], atol=1e-4), name


def test_activations_computed_again_change_nothing(start, rows, tmp_path):
    steps = ["--max-steps", "2", "--save-strategy", "no", "--optim", "sgd"]
    for name, more in (("kept", []), ("again", ["--gradient-checkpointing", "true", "--torch-empty-cache-steps", "1"])):
        assert finetune(*arguments(start, rows, tmp_path / name, *steps, *more)) == 0
    kept, again = weights(tmp_path / "kept"), weights(tmp_path / "again")
    assert all(np.allclose(value, again[name], atol=1e-6) for name, value in kept.items())


@pytest.mark.parametrize(("loss", "scale"), [("cosent", 5), ("mse", 1)])
def test_pairs_with_a_similarity(start, tmp_path, loss, scale):
    pairs = [(f"a {q} {n}", f"the {p} {n}", scale * (q == r)) for n in range(2) for q, _ in PAIRS for r, p in PAIRS]
    for name, form in (
        ("sentences", lambda first, second, score: {"sentence1": first, "sentence2": second, "score": score}),
        ("rows", lambda first, second, score: {"query": first, "pos": [second], "score": score}),
    ):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(form(*pair)) + "\n" for pair in pairs))
        more = ["--scored-loss", loss, "--num-train-epochs", "4", "--save-strategy", "no"]
        assert finetune(*arguments(start, str(tmp_path / f"{name}.jsonl"), tmp_path / name, *more)) == 0
        losses = [row["loss"] for row in json.loads((tmp_path / name / "training.json").read_text())["history"][:-1]]
        assert losses[-1] < losses[0]
    # The model has no prompt, so that both forms say the same.
    first, second = weights(tmp_path / "sentences"), weights(tmp_path / "rows")
    assert all(np.array_equal(value, second[name]) for name, value in first.items())


def test_a_score_that_is_no_cosine_is_no_target(start, tmp_path, capsys):
    (tmp_path / "sts.jsonl").write_text('{"sentence1": "a cat", "sentence2": "a dog", "score": 4.2}\n' * 6)
    assert finetune(*arguments(start, str(tmp_path / "sts.jsonl"), tmp_path / "out", "--scored-loss", "mse")) == 1
    assert "4.2" in capsys.readouterr().err


def test_a_run_of_models_alone_is_not_gone_on_with(start, rows, tmp_path, capsys):
    steps = ["--max-steps", "2", "--save-steps", "1", "--save-only-model", "true"]
    assert finetune(*arguments(start, rows, tmp_path / "out", *steps)) == 0
    assert finetune(*arguments(start, rows, tmp_path / "out", *steps, "--resume-from-checkpoint", "true")) == 1
    assert "optimiser" in capsys.readouterr().err


@pytest.mark.draws
def test_validation_while_training_and_the_best_checkpoint(start, rows, tmp_path):
    data = tmp_path / "eval.jsonl"
    lines = [{"query": f"a {q} 9", "positive": [f"the {p} 9"], "negative": ["an it", "some tree"]} for q, p in PAIRS]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    output = tmp_path / "out"
    more = [
        "--eval-data", str(data), "--num-train-epochs", "2", "--save-strategy", "epoch",
        "--load-best-model-at-end", "true", "--early-stopping-patience", "5",
    ]  # fmt: skip
    assert finetune(*arguments(start, rows, output, *more)) == 0
    facts = json.loads((output / "training.json").read_text())
    evaluated = [row for row in facts["history"] if "eval_score" in row]
    assert [row["step"] for row in evaluated] == [0, 6, 12]
    assert facts["best_checkpoint"]
    best = max(evaluated, key=lambda row: row["eval_score"])
    assert facts["best_checkpoint"].endswith(f"checkpoint-{best['step']}")
    for name, value in weights(Path(facts["best_checkpoint"])).items():
        assert np.array_equal(value, weights(output)[name])
    check_modes(output)
    before, after = evaluated[0]["eval_score"], best["eval_score"]
    text = (output / "README.md").read_text()
    assert "| score | before | after |" in text and f"| {before:.4g} | {after:.4g} |" in text
    assert "# checkpoint-6\n\nFine-tuned from `tiny`" in (output / "checkpoint-6" / "README.md").read_text()


@pytest.fixture
def ruin(start, rows, tmp_path):
    """Train with data that calls only the model that it starts from perfect: `ruin("--max-steps", "4")`."""
    data, model = tmp_path / "eval.jsonl", FlagModel(start, use_fp16=False)
    pairs = [(f"a {q}", f"the {p}") for q, _ in PAIRS for _, p in PAIRS]
    vectors = model.encode([text for pair in pairs for text in pair]).reshape(len(pairs), 2, -1)
    scores = (vectors[:, 0] * vectors[:, 1]).sum(1).tolist()
    lines = [{"sentence1": a, "sentence2": b, "score": score} for (a, b), score in zip(pairs, scores, strict=True)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = [
        "--eval-data", str(data), "--eval-strategy", "steps", "--eval-steps", "2", "--learning-rate", "1e-2",
        "--load-best-model-at-end", "true", "--max-steps", "6", "--save-steps", "2",
    ]  # fmt: skip

    def ruin(*more: str, folder: Path = tmp_path / "out") -> dict:
        assert finetune(*arguments(start, rows, folder, *given, *more)) == 0
        return json.loads((folder / "training.json").read_text())

    return ruin


def is_start(output: Path, start: str) -> bool:
    return all(np.array_equal(value, weights(output)[name]) for name, value in weights(Path(start)).items())


def test_a_model_that_gets_worse_is_the_one_it_was(start, ruin, tmp_path, caplog):
    output = tmp_path / "out"
    facts = ruin()
    scores = [row["eval_score"] for row in facts["history"] if "eval_score" in row]
    assert len(scores) == 4 and max(scores[1:]) < scores[0]
    assert facts["best_checkpoint"].endswith("checkpoint-0") and is_start(output, start)
    assert "the weights that it began with" in caplog.text
    # It still is where the run goes on after an interruption.
    for step in (4, 6):
        shutil.rmtree(output / f"checkpoint-{step}")
    facts = ruin("--resume-from-checkpoint", "true", "--save-total-limit", "1")
    assert facts["best_checkpoint"].endswith("checkpoint-0") and is_start(output, start)
    assert facts["steps"] == 6 and [path.name for path in output.glob("checkpoint-*")] == ["checkpoint-0"]


def test_the_best_model_is_saved_between_checkpoints_too(start, rows, tmp_path):
    data = tmp_path / "eval.jsonl"
    lines = [{"sentence1": f"a {q}", "sentence2": f"the {p}", "score": q == r} for q, _ in PAIRS for r, p in PAIRS]
    data.write_text("".join(json.dumps({**line, "score": float(line["score"])}) + "\n" for line in lines))
    more = [
        "--eval-data", str(data), "--eval-strategy", "steps", "--eval-steps", "3", "--save-steps", "300",
        "--load-best-model-at-end", "true", "--num-train-epochs", "2",
    ]  # fmt: skip
    assert finetune(*arguments(start, rows, tmp_path / "out", *more)) == 0
    facts = json.loads((tmp_path / "out" / "training.json").read_text())
    scores = {row["step"]: row["eval_score"] for row in facts["history"] if "eval_score" in row}
    best = max(scores, key=scores.__getitem__)
    assert best > 0 and facts["best_checkpoint"].endswith(f"checkpoint-{best}")
    assert all(
        np.array_equal(value, weights(tmp_path / "out")[name])
        for name, value in weights(tmp_path / "out" / f"checkpoint-{best}").items()
    )


def test_the_start_counts_for_early_stopping(start, ruin, tmp_path):
    assert ruin("--early-stopping-patience", "1")["steps"] == 2
    assert is_start(tmp_path / "out", start)
    # More patience, and the same run goes on.
    assert ruin("--early-stopping-patience", "2", "--resume-from-checkpoint", "true")["steps"] == 4


def test_the_best_checkpoint_is_found_where_the_folder_is_now(start, ruin, tmp_path, capsys):
    ruin()
    output, moved = tmp_path / "out", tmp_path / "moved"
    again = ["--resume-from-checkpoint", "true"]
    shutil.copytree(output, moved)
    facts = ruin(*again, folder=moved)
    assert facts["best_checkpoint"] == str(moved / "checkpoint-0") and is_start(moved, start)
    shutil.rmtree(moved)
    shutil.move(output, moved)
    facts = ruin(*again, folder=moved)
    assert facts["best_checkpoint"] == str(moved / "checkpoint-0") and is_start(moved, start)
    shutil.rmtree(moved / "checkpoint-0")
    with pytest.raises(AssertionError):
        ruin(*again, folder=moved)
    assert "checkpoint-0, the best checkpoint so far, is not there any more" in capsys.readouterr().err


def test_the_best_is_gone_back_to_where_no_checkpoints_are_asked_for(start, ruin, tmp_path):
    assert ruin("--save-strategy", "no")["best_checkpoint"].endswith("checkpoint-0")
    assert is_start(tmp_path / "out", start)


def test_the_end_is_measured_whatever_the_delay(ruin):
    facts = ruin("--eval-strategy", "epoch", "--eval-delay", "3", "--max-steps", "6")
    assert [row["step"] for row in facts["history"] if "eval_score" in row] == [0, 6]


def test_checkpoints_are_saved_as_asked_for_and_the_best_besides(ruin, tmp_path):
    ruin("--save-steps", "5")
    assert {path.name for path in (tmp_path / "out").glob("checkpoint-*")} == {
        "checkpoint-0", "checkpoint-5", "checkpoint-6"
    }  # fmt: skip


def test_killed_and_resumed_it_is_the_same_run(dropping, rows, tmp_path):
    start = dropping
    more = ["--max-steps", "20", "--save-strategy", "steps", "--save-steps", "5", "--save-total-limit", "2"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    given = arguments(start, rows, broken, *more)
    process = forked.start_module("bgekit.training.embedder", given, threads=torch.get_num_threads())
    deadline = time.monotonic() + 120
    while last_whole_checkpoint(broken) is None and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.join()
    assert not (broken / "config.json").exists()
    # A checkpoint that was not finished: it must be passed over.
    half = broken / "checkpoint-19"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    assert finetune(*arguments(start, rows, broken, *more)) == 1
    assert finetune(*arguments(start, rows, broken, *more, "--resume-from-checkpoint", "true")) == 0
    assert finetune(*arguments(start, rows, whole, *more)) == 0
    first, second = weights(whole), weights(broken)
    assert all(np.array_equal(value, second[name]) for name, value in first.items())


def test_lora_trains_adapters_and_saves_them_merged(start, rows, tmp_path, monkeypatch):
    output = tmp_path / "out"
    more = [
        "--use-lora",
        "true",
        "--lora-rank",
        "4",
        "--max-steps",
        "4",
        "--save-strategy",
        "steps",
        "--save-steps",
        "2",
    ]
    assert finetune(*arguments(start, rows, output, *more)) == 0
    assert weights(output).keys() == weights(Path(start)).keys()
    assert FlagModel(output, use_fp16=False).encode("the cat").shape == (32,)
    check_modes(output)
    assert "| `--lora-rank` | `4` |" in read_readme(output, monkeypatch, "bgekit")[0]
    assert finetune(*arguments(start, rows, output, *more, "--resume-from-checkpoint", "true", "--max-steps", "6")) == 0


def test_dropout_of_adapters_is_the_quick_one(start):
    from bgekit.models.card_reading import read_card
    from bgekit.networks.cpu_training import Dropout
    from bgekit.networks.encoder import add_lora, load_trainable

    network = load_trainable(Path(start), read_card(Path(start), "start"))
    add_lora(network, rank=2, alpha=4, dropout=0.25, modules=None)
    kinds = {type(module) for module in network.modules() if isinstance(module, torch.nn.Dropout)}
    assert kinds == {Dropout}
    assert 0.25 in {module.p for module in network.modules() if isinstance(module, Dropout)}


def test_a_dry_run_shows_the_data_and_trains_nothing(start, rows, tmp_path, capsys):
    output = tmp_path / "out"
    assert finetune(*arguments(start, rows, output, "--dry-run")) == 0
    shown = capsys.readouterr().out
    assert "[CLS] a " in shown and "Memory" in shown
    assert not output.exists()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"query": "a", "pos": []}', "pos"),
        ('{"query": 3, "pos": ["b"]}', "query"),
        ('{"query": "a", "pos": ["b"], "neg": ["c"], "pos_scores": [NaN], "neg_scores": [1]}', "pos_scores"),
        ("{not json", "line 2"),
    ],
)
def test_bad_rows_end_it_before_the_first_step(start, rows, tmp_path, capsys, line, says):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"query": "a", "pos": ["b"]}\n' + line + "\n")
    assert finetune(*arguments(start, str(path), tmp_path / "out")) == 1
    error = capsys.readouterr().err
    assert says in error and "bad.jsonl" in error and "2" in error
    assert not (tmp_path / "out" / "config.json").exists()


def test_an_output_with_content_is_left_alone(start, rows, tmp_path, capsys):
    output = tmp_path / "out"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    assert finetune(*arguments(start, rows, output)) == 1
    error = capsys.readouterr().err
    assert "--resume-from-checkpoint" in error and "or --overwrite to start over" in error


def test_two_processes_train_what_one_does(start, rows, tmp_path):
    """The same global batches and negatives, gradients over all of them."""
    more = ["--max-steps", "3", "--save-strategy", "no", "--negatives-cross-device", "true", "--optim", "sgd"]
    one, two = tmp_path / "one", tmp_path / "two"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    assert finetune(*arguments(start, rows, one, *more)) == 0
    halves = arguments(start, rows, two, *more)
    halves[halves.index("--per-device-train-batch-size") + 1] = "3"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run([*launcher, "-m", "bgekit.training.embedder", *halves], env=environment, check=True, timeout=200)
    first, second = weights(one), weights(two)
    for name, value in first.items():
        assert np.allclose(value, second[name], atol=1e-4), name


def test_two_processes_save_and_go_on(dropping, rows, tmp_path):
    output = tmp_path / "out"

    def train(steps: int, *more: str) -> None:
        given = ["--max-steps", str(steps), "--save-strategy", "steps", "--save-steps", "2", "--save-total-limit", "1"]
        forked.torchrun("bgekit.training.embedder", arguments(dropping, rows, output, *given, *more), world=2)

    train(2)
    assert last_whole_checkpoint(output).name == "checkpoint-2"
    (output / "checkpoint-4").mkdir()  # What a run that was killed there has left.
    (output / "checkpoint-4" / "rng_state_1.pth").write_bytes(b"half")
    train(4, "--resume-from-checkpoint", "true")
    assert [path.name for path in output.glob("checkpoint-*")] == ["checkpoint-4"]
    assert {f"rng_state_{rank}.pth" for rank in (0, 1)} <= {path.name for path in (output / "checkpoint-4").iterdir()}


def test_another_run_is_not_gone_on_with(start, rows, tmp_path, capsys):
    output = tmp_path / "out"
    steps = ["--max-steps", "2", "--save-strategy", "steps", "--save-steps", "1"]
    assert finetune(*arguments(start, rows, output, *steps)) == 0
    assert finetune(*arguments(start, rows, output, *steps, "--resume-from-checkpoint", "true", "--seed", "7")) == 1
    assert "--seed (42 there, 7 here)" in capsys.readouterr().err
    others = {
        "--train-group-size": ["3"], "--data-seed": ["9"], "--learning-rate": ["9"], "--temperature": ["0.5"],
        "--optim": ["sgd"], "--use-lora": ["true"], "--group-by-length": ["true"], "--passage-max-len": ["9"],
        "--max-grad-norm": ["0.1"], "--bf16": ["true"],
    }  # fmt: skip
    for name, value in others.items():
        again = [*steps, "--resume-from-checkpoint", "true", name, *value]
        assert finetune(*arguments(start, rows, output, *again)) == 1
        assert f"differs in {name} (" in capsys.readouterr().err
    more = ["--max-steps", "3", "--grad-cache-chunk", "2", "--resume-from-checkpoint", "true"]
    assert finetune(*arguments(start, rows, output, *more)) == 0
    assert finetune(*arguments(start, rows, output, "--max-steps", "1", "--overwrite-output-dir")) == 0
    assert [path.name for path in output.glob("checkpoint-*")] == ["checkpoint-1"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--leraning-rate", "1"], "--learning-rate"),
        (["--label-smoothing-factor", "0.1"], "--label-smoothing-factor"),
        (["--load-best-model-at-end", "true"], "--eval-data"),
        (["--temperature", "0"], "temperature"),
        (["--early-stopping-patience", "0", "--eval-data", "x"], "--early-stopping-patience"),
        (["--accelerator-config", "{bad"], "--accelerator-config is not a JSON"),
        (["--resume-from-checkpoint", "/nowhere"], "/nowhere"),
    ],
)
def test_arguments_that_cannot_work_are_one_line(start, rows, tmp_path, capsys, given, says):
    code = 1 if says == "/nowhere" else 2  # All but that folder are wrong usage.
    assert finetune(*arguments(start, rows, tmp_path / "out", *given)) == code
    error = capsys.readouterr().err
    assert says in error and "Traceback" not in error


def test_what_a_network_does_not_support_is_one_line(make_model, rows, tmp_path, capsys):
    start = str(make_model("mpnet"))
    assert finetune(*arguments(start, rows, tmp_path / "out", "--gradient-checkpointing", "true")) == 1
    assert "--gradient-checkpointing cannot be used here" in capsys.readouterr().err


def test_a_dry_run_needs_no_output(start, rows, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = arguments(start, rows, tmp_path / "out", "--dry-run")
    place = given.index("--output-dir")
    before = set(tmp_path.iterdir())
    assert finetune(*given[:place], *given[place + 2 :]) == 0
    assert set(tmp_path.iterdir()) - before <= {tmp_path / "cache"}
