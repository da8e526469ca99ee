"""What goes wrong in real life, end to end: an error that says what, or a right result, never silence."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from bgekit import FlagModel
from bgekit.errors import ArgumentError, CheckpointError, NumericalError, TextTypeError, WorkerError
from precisions import BFLOAT16

Texts = Callable[..., list[str]]
Make = Callable[..., Path]

#: Ctrl-C must end a run within 3 s; the rest is what a busy test machine adds.
SECONDS_TO_STOP = 6
#: A killed worker must be an error in less than 10 s.
SECONDS_TO_NOTICE = 10


@pytest.fixture(scope="module")
def model(tiny_bert: Path) -> FlagModel:
    return FlagModel(tiny_bert, use_fp16=False, devices="cpu")


@pytest.fixture(scope="module")
def slow_folder(make_model: Make) -> Path:
    """Random weights in a network that needs seconds for one window of long texts."""
    return make_model("bert", hidden_size=384, num_hidden_layers=3, intermediate_size=1536)


@pytest.fixture(scope="module")
def many(texts: Texts) -> list[str]:
    """More than is encoded before a test interrupts it."""
    return texts(30_000, longest=60)


# --- texts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["encode", "encode_queries", "encode_corpus", "encode_query", "encode_document"])
@pytest.mark.parametrize("bad", [None, 7, float("nan"), b"bytes", ["nested"], ("a", "b")])
def test_what_is_no_text_is_named_with_its_index(model: FlagModel, method: str, bad: object) -> None:
    for texts in (["a", "b", "c", bad, "e"], iter(["a", "b", "c", bad, "e"])):
        with pytest.raises(TextTypeError, match=rf"index 3 is .*\({type(bad).__name__}\)"):
            getattr(model, method)(texts)


def test_the_index_is_that_of_the_whole_input(model: FlagModel) -> None:
    texts: list[Any] = [f"text {number}" for number in range(5000)]
    texts[4321] = None
    with pytest.raises(TypeError, match="index 4321"):
        model.encode(texts)
    with pytest.raises(TypeError, match="index 4321"):
        list(model.encode_blocks([texts[:3000], texts[3000:]]))


def test_empty_and_blank_texts_are_encoded_as_they_are(model: FlagModel) -> None:
    blank = ["", " ", "\t\n", "\u3000", "\u200b", "\ufeff"]
    vectors = model.encode(blank)
    assert vectors.shape == (6, 32) and np.isfinite(vectors).all()
    ids = model.tokenizer([""])["input_ids"][0]
    assert len(ids) == 2  # nothing but [CLS] and [SEP]
    assert np.allclose(vectors, vectors[0], atol=1e-6)  # WordPiece sees nothing in any of them
    assert model.encode("").shape == (32,)
    assert model.encode_queries([""]).shape == (1, 32)


def test_a_megabyte_of_text_is_cut_and_counted(model: FlagModel, caplog: pytest.LogCaptureFixture) -> None:
    megabyte = "word " * 210_000
    with caplog.at_level(logging.WARNING, "bgekit"):
        vectors = model.encode(["a", megabyte, "b", megabyte, "x" * 1_100_000, megabyte])
    assert vectors.truncated == (1, 3, 5)  # one word of a million letters is one unknown token
    assert "3 of 6 texts were too long" in caplog.text  # copies count: their texts were cut too
    assert np.allclose(vectors[1], model.encode("word " * 62), atol=1e-6)
    assert np.array_equal(vectors[1], vectors[5])


def test_truncation_is_counted_in_windows_too(model: FlagModel, caplog: pytest.LogCaptureFixture) -> None:
    long = "word " * 100
    with caplog.at_level(logging.WARNING, "bgekit"):
        results = list(model.encode_blocks([["a", long, long], ["b"], [long]]))
    assert [result.truncated for result in results] == [[1, 2], [], [0]]
    assert "3 of 5 texts were too long" in caplog.text


def test_nul_bytes_reach_the_tokenizer(model: FlagModel) -> None:
    vectors = model.encode(["cat\x00", "\x00", "cat \x00 dog", "cat", "cat dog"])
    assert np.isfinite(vectors).all() and vectors.repaired == ()
    # What a NUL means is the tokenizer's to say; this one drops it.
    assert model.tokenizer(["cat \x00 dog"])["input_ids"] == model.tokenizer(["cat dog"])["input_ids"]
    assert np.abs(vectors[[0, 2]] - vectors[[3, 4]]).max() < 1e-6


def test_lone_surrogates_are_replaced_and_counted(model: FlagModel, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "bgekit"):
        vectors = model.encode(["fine", "a \ud800 b", "\udfff", "a \ud800 b", "a \ufffd b"])
    assert vectors.repaired == (1, 2, 3)
    assert "3 of 5 texts held lone surrogates" in caplog.text
    assert np.array_equal(vectors[1], vectors[4])  # equal once repaired, so computed once
    listed = list(model.encode_blocks([["x"], ["\ud800", "y"]]))
    assert [result.repaired for result in listed] == [[], [0]]


def test_odd_strings_are_strings(model: FlagModel) -> None:
    class Text(str):
        pass

    vectors = model.encode([Text("cat"), np.str_("cat"), "cat"])
    assert np.array_equal(vectors, vectors[[2, 2, 2]])
    assert np.abs(model.encode([np.str_("cat")]) - vectors[2]).max() < 1e-6
    assert model.encode(Text("cat")).shape == (32,)
    assert model.encode(np.array(["cat", "dog"])).shape == (2, 32)
    assert model.encode({"cat", "dog"}).shape == (2, 32)
    assert model.encode(("cat", "dog")).shape == (2, 32)


# --- arguments -------------------------------------------------------------------------------------------------------


def test_unknown_arguments_are_refused_by_name(model: FlagModel, tiny_bert: Path) -> None:
    for method in ("encode", "encode_queries", "encode_corpus", "encode_query", "encode_document"):
        with pytest.raises(TypeError, match="batchsize"):
            getattr(model, method)(["a"], batchsize=4)
    with pytest.raises(TypeError, match="use_fp61"):
        FlagModel(tiny_bert, use_fp61=True)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="pooling"):
        FlagModel(tiny_bert, pooling="cls")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="folder"):
        model.save(folder="x")  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "arguments",
    [
        {"batch_size": 0},
        {"batch_size": -1},
        {"batch_size": 2.5},
        {"max_length": 0},
        {"max_length": 2},
        {"max_length": 65},
    ],
)
def test_impossible_arguments_are_refused(model: FlagModel, arguments: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(arguments))):
        model.encode(["a"], **arguments)


@pytest.mark.parametrize("name", ["batch_size", "query_max_length", "passage_max_length", "truncate_dim"])
@pytest.mark.parametrize("value", [0, -3, "many", 1.5, True])
def test_impossible_defaults_are_refused(tiny_bert: Path, name: str, value: Any) -> None:
    with pytest.raises(ArgumentError, match=rf"{name} must be a positive number of (texts|tokens|dimensions), not"):
        FlagModel(tiny_bert, **{name: value})


def test_whole_numbers_of_any_kind_are_numbers(model: FlagModel) -> None:
    vectors = model.encode(["a", "b"], batch_size=np.int64(1), max_length=np.int32(8))
    assert vectors.shape == (2, 32)
    for batch_size in (0, "many"):
        with pytest.raises(ArgumentError, match="batch_size"):
            next(model.encode_blocks([["a"]], batch_size=batch_size))


def test_contradictions_are_refused(model: FlagModel) -> None:
    with pytest.raises(ArgumentError, match="two names of one argument"):
        model.encode("a", instruction="x", prompt="y")
    with pytest.raises(ArgumentError, match="prompt_name"):
        model.encode("a", instruction="x", prompt_name="query")
    with pytest.raises(ArgumentError, match=r"no prompt named 'passages'.*'query'"):
        model.encode("a", prompt_name="passages")
    with pytest.raises(ArgumentError, match="different widths: 3 and 4"):
        model.similarity(np.ones((2, 3)), np.ones((2, 4)))


# --- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", BFLOAT16])
def test_damaged_weights_are_an_error_that_names_the_text(tiny_bert: Path, tmp_path: Path, precision: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_bert, folder)
    weights = load_file(folder / "model.safetensors")
    model = FlagModel(tiny_bert, devices="cpu")
    weights["embeddings.word_embeddings.weight"][model.tokenizer.convert_tokens_to_ids("river")] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    broken = FlagModel(folder, dtype=precision, devices="cpu")
    texts = ["a cat"] * 3 + ["by the river"] + ["a dog"] * 3000
    with pytest.raises(NumericalError, match=r"index 3 .*by the river"):
        broken.encode(texts)
    with pytest.raises(NumericalError, match=r"index 5002 .*by the river"):
        broken.encode(text for text in [f"a cat {number}" for number in range(5002)] + ["by the river"])
    assert broken.encode(["a cat", "a dog"]).shape == (2, 32)


def test_weights_that_were_cut_off_are_named(tiny_bert: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_bert, folder)
    os.truncate(folder / "model.safetensors", 5000)
    with pytest.raises(CheckpointError, match=str(folder / "model.safetensors")):
        FlagModel(folder)


# --- threads, servers ------------------------------------------------------------------------------------------------


def test_eight_threads_at_once(model: FlagModel, texts: Texts) -> None:
    parts = [texts(150, seed=seed) for seed in range(24)]
    lengths = [8 + seed % 3 * 28 for seed in range(24)]
    expected = [model.encode(part, max_length=length) for part, length in zip(parts, lengths, strict=True)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda part, length: model.encode(part, max_length=length), parts, lengths))
    for result, right in zip(results, expected, strict=True):
        assert np.array_equal(result, right) and result.truncated == right.truncated


def test_single_texts_from_many_threads(model: FlagModel, texts: Texts) -> None:
    some = texts(400)
    expected = np.stack([model.encode_queries(text) for text in some])
    with ThreadPoolExecutor(8) as pool:
        assert np.array_equal(np.stack(list(pool.map(model.encode_queries, some))), expected)


def test_inside_an_event_loop(model: FlagModel, texts: Texts) -> None:
    """An endpoint may call encode directly (it blocks) or in a thread, many at a time."""
    some = texts(60)
    expected = model.encode(some)

    async def serve() -> list[Any]:
        direct = model.encode(some)
        return [direct, *await asyncio.gather(*(asyncio.to_thread(model.encode, some) for _ in range(12)))]

    for result in asyncio.run(serve()):
        assert np.array_equal(result, expected)


def test_two_devices_from_inside_a_servers_thread(tiny_bert: Path, texts: Texts) -> None:
    """Workers start from a thread of a running event loop, and threads that come meanwhile get right answers."""
    parts = [texts(2100 + 100 * seed, seed=seed, longest=12) for seed in range(4)]
    one = FlagModel(tiny_bert, use_fp16=False, devices="cpu")
    expected = [one.encode(part) for part in parts]

    async def serve(model: FlagModel) -> list[Any]:
        return await asyncio.gather(*(asyncio.to_thread(model.encode, part) for part in parts))

    with FlagModel(tiny_bert, use_fp16=False, devices=["cpu", "cpu"]) as model:
        for result, right in zip(asyncio.run(serve(model)), expected, strict=True):
            assert np.abs(result - right).max() < 1e-6


def test_a_script_without_a_main_guard_may_use_several_devices(tiny_bert: Path) -> None:
    program = (
        "from bgekit import FlagModel\n"
        f"model = FlagModel({str(tiny_bert)!r}, devices=['cpu', 'cpu'])\n"
        "print(model.encode([f'text number {i}' for i in range(5000)]).shape)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert result.stdout == "(5000, 32)\n", result.stderr[-2000:]
    assert "Error" not in result.stderr and "Warning" not in result.stderr


# --- workers and signals ---------------------------------------------------------------------------------------------


def test_a_worker_killed_in_the_middle_is_noticed_at_once(slow_folder: Path, many: list[str]) -> None:
    with FlagModel(slow_folder, use_fp16=False, devices=["cpu", "cpu"]) as model:
        few = [f"text {number}" for number in range(2100)]
        assert model.encode(few).shape == (2100, 384)  # the worker is up
        process = model._pool.workers[0].process
        killed: list[float] = []

        def kill() -> None:
            killed.append(time.monotonic())
            os.kill(process.pid, signal.SIGKILL)

        timer = threading.Timer(1.5, kill)
        timer.start()
        with pytest.raises(WorkerError, match=rf"device cpu \(process {process.pid}\) was killed by signal 9"):
            model.encode(many)
        assert time.monotonic() - killed[0] < SECONDS_TO_NOTICE
        assert model.encode(few).shape == (2100, 384)  # a new worker


def test_a_worker_that_cannot_start_is_an_error(tiny_bert: Path, texts: Texts, monkeypatch: pytest.MonkeyPatch) -> None:
    with FlagModel(tiny_bert, use_fp16=False, devices=["cpu", "cpu"]) as model:
        monkeypatch.setattr(sys, "executable", "/bin/false")
        start = time.monotonic()
        with pytest.raises(WorkerError, match=r"device cpu .* ended with exit code 1"):
            model.encode(texts(6000, longest=20))
        assert time.monotonic() - start < SECONDS_TO_NOTICE
        monkeypatch.undo()
        assert model.encode(texts(6000, longest=20)).shape == (6000, 32)


def test_an_interpreter_that_is_not_there(tiny_bert: Path, texts: Texts, monkeypatch: pytest.MonkeyPatch) -> None:
    with FlagModel(tiny_bert, use_fp16=False, devices=["cpu"] * 3) as model:
        monkeypatch.setattr(sys, "executable", "/not/there")
        with pytest.raises(OSError, match="/not/there"):
            model.encode(texts(6000, longest=5))
        monkeypatch.undo()
        assert model.encode(texts(6000, longest=5)).shape == (6000, 32)


PROGRAM = """
import sys, time
from bgekit import FlagModel
model = FlagModel({folder!r}, use_fp16=False, devices={devices})
if len(model.devices) > 1:
    model.encode([f"{{n}}" for n in range(2100)])  # the workers are up
print("ready", flush=True)
model.encode(("word " * 60 + str(n) for n in range(10**9)))
"""


def interrupted(folder: Path, devices: list[str], sent: signal.Signals) -> tuple[float, subprocess.Popen[str], str]:
    """Send a signal to a program in the middle of a window that takes many seconds; how long it took to end."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(folder=str(folder), devices=devices)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(1.5)
    start = time.monotonic()
    os.killpg(process.pid, sent)  # as a terminal does: to the whole group
    try:
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    return time.monotonic() - start, process, errors


@pytest.mark.parametrize("devices", [["cpu"], ["cpu", "cpu"]], ids=["one", "two"])
def test_ctrl_c_ends_everything_soon(slow_folder: Path, devices: list[str]) -> None:
    seconds, process, errors = interrupted(slow_folder, devices, signal.SIGINT)
    assert "KeyboardInterrupt" in errors
    assert seconds < SECONDS_TO_STOP
    assert no_process_of_group(process.pid)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C as on a terminal: scripts start their background jobs with SIGINT ignored."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("devices", [["cpu"], ["cpu", "cpu"]], ids=["one", "two"])
def test_a_model_goes_on_after_ctrl_c(slow_folder: Path, many: list[str], devices: list[str]) -> None:
    """As in a notebook: the cell is interrupted, the next one uses the model again."""
    before = threading.active_count()
    with FlagModel(slow_folder, use_fp16=False, devices=devices) as model:
        few = many[:20]
        expected = model.encode(few)
        timer = threading.Timer(1.5, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            model.encode(many)
        timer.join()
        assert np.abs(model.encode(few) - expected).max() < 1e-6
        deadline = time.monotonic() + SECONDS_TO_STOP
        while threading.active_count() > before and time.monotonic() < deadline:
            time.sleep(0.05)
        assert threading.active_count() == before


def test_workers_end_with_a_parent_that_was_killed(slow_folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(folder=str(slow_folder), devices=["cpu", "cpu"])],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60  # a worker first ends the window that it has
    while not no_process_of_group(process.pid) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert no_process_of_group(process.pid)


def no_process_of_group(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_reader_who_stops_frees_the_workers(slow_folder: Path, texts: Texts) -> None:
    with FlagModel(slow_folder, use_fp16=False, devices=["cpu", "cpu"]) as model:
        before = threading.active_count()
        stream = model.encode_blocks([texts(2048, longest=3, seed=0), *(texts(2048, seed=n) for n in range(1, 6))])
        next(stream)
        process = model._pool.workers[0].process
        start = time.monotonic()
        stream.close()
        assert time.monotonic() - start < SECONDS_TO_STOP
        assert process.poll() is not None
        deadline = time.monotonic() + SECONDS_TO_STOP
        while threading.active_count() > before and time.monotonic() < deadline:
            time.sleep(0.05)
        assert threading.active_count() == before


def test_a_reader_who_pauses_keeps_nobody_waiting(tiny_bert: Path, texts: Texts) -> None:
    """Neither another thread nor the same one, which would wait for itself for ever."""
    some = texts(5000, longest=10)
    with FlagModel(tiny_bert, use_fp16=False, devices=["cpu", "cpu"]) as model:
        expected = model.encode(some)
        paused = model.encode_blocks([some[:2500], some[2500:]] * 3)
        first = next(paused)
        assert np.abs(model.encode(some) - expected).max() < 1e-6
        with ThreadPoolExecutor(1) as pool:
            assert np.abs(pool.submit(model.encode, some).result(timeout=60) - expected).max() < 1e-6
        rest = [first, *paused]
        assert np.abs(np.concatenate([part.vectors for part in rest]) - np.tile(expected, (3, 1))).max() < 1e-6


def test_the_error_of_a_text_source_is_the_callers(tiny_bert: Path, texts: Texts) -> None:
    def failing(count: int) -> Iterator[str]:
        yield from (f"{number}" for number in range(count))
        raise ConnectionError("the database is gone")

    with FlagModel(tiny_bert, use_fp16=False, devices=["cpu", "cpu"]) as model:
        for count in (3, 7000):
            with pytest.raises(ConnectionError, match="the database is gone"):
                model.encode(failing(count))
        assert model.encode(texts(4500, longest=5)).shape == (4500, 32)
