"""20,000 real passages on clusters of two and three nodes, with all kinds of accidents: the bytes of one machine."""

import gzip
import json
import os
import signal

import pytest

from conftest import shared
from distributed.clusters import contents, nodes, processes, run, start, wait_for, write_lines

pytestmark = pytest.mark.slow
SHARD = 512
SETS = ("MSMARCODev600Retrieval", "MLQuestions")


@pytest.fixture(scope="module")
def passages(tmp_path_factory):
    rows = []
    for name in SETS:
        with gzip.open(shared("data", name, "corpus.jsonl.gz"), "rt", encoding="utf-8") as file:
            rows += [{"id": f"{name}-{n}", "text": json.loads(line)["text"]} for n, line in enumerate(file)]
    return write_lines(tmp_path_factory.mktemp("passages") / "passages.jsonl", rows[:20_000])


@pytest.fixture(scope="module")
def encode(passages, bge_small_en):
    """Arguments of `bge encode`; texts are cut at 32 tokens to make it quicker."""

    def arguments(output, *further):
        return (
            "encode", passages, "-o", output, "--model", bge_small_en, "--shard-size", SHARD, "--max-length", 32,
            "--no-progress", *further,
        )  # fmt: skip

    return arguments


@pytest.fixture(scope="module")
def whole(encode, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    run(*encode(out))
    return contents(out)


def some_are_there(out):
    return lambda: len(list(out.glob("shard-*[0-9].json"))) >= 6


def test_two_nodes_write_the_bytes_of_one_machine(encode, whole, tmp_path):
    with nodes(2) as cluster:
        run(*encode(tmp_path / "out", "--ray", cluster.address))
    assert contents(tmp_path / "out") == whole


def test_an_actor_that_is_killed_is_replaced(encode, whole, tmp_path):
    out = tmp_path / "out"
    with nodes(2) as cluster:
        process = start(*encode(out, "--ray", cluster.address))
        wait_for(some_are_there(out), process)
        os.kill(processes("ShardActor")[0], signal.SIGKILL)
        _, said = process.communicate(timeout=900)
    assert process.returncode == 0, said
    assert "an actor on" in said and "done again" in said
    assert contents(out) == whole


@pytest.mark.parametrize("graceful", [False, True], ids=["killed", "told to stop"])
def test_a_node_that_goes_hands_its_shards_back(encode, whole, tmp_path, graceful):
    out = tmp_path / "out"
    with nodes(2) as cluster:
        process = start(*encode(out, "--ray", cluster.address))
        wait_for(some_are_there(out), process)
        cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=graceful)
        _, said = process.communicate(timeout=900)
    assert process.returncode == 0, said
    assert contents(out) == whole


def test_a_driver_that_is_killed_goes_on_with_three_nodes(encode, whole, tmp_path):
    out = tmp_path / "out"
    with nodes(2) as cluster:
        process = start(*encode(out, "--ray", cluster.address))
        wait_for(some_are_there(out), process)
        process.kill()
        process.communicate()
        cluster.add_node(num_cpus=1)
        run(*encode(out, "--ray", cluster.address))
    assert contents(out) == whole


def test_mining_finds_the_negatives_of_one_machine(passages, bge_small_en, tmp_path):
    rows = [json.loads(line)["text"] for line in passages.read_text().splitlines()]
    training = write_lines(
        tmp_path / "train.jsonl", [{"query": text[:60], "pos": [text], "neg": []} for text in rows[:300]]
    )
    arguments = (
        "mine", "--model", bge_small_en, "--input", training, "--candidate-pool", passages, "--max-length", 32,
        "--negatives", 5, "--no-progress", "--quiet",
    )  # fmt: skip
    run(*arguments, "--output", tmp_path / "alone.jsonl")
    with nodes(2) as cluster:
        run(*arguments, "--output", tmp_path / "together.jsonl", "--ray", cluster.address)
    assert (tmp_path / "together.jsonl").read_bytes() == (tmp_path / "alone.jsonl").read_bytes()
