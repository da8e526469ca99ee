"""Ray itself, with two nodes in this machine: a run, and the pieces for pipelines of Ray Data."""

import json
import os
import signal
import threading
import time

import fsspec
import numpy as np
import pytest

from bgekit import FlagModel
from bgekit.cli.main import main
from bgekit.data import read_records
from bgekit.distributed import ModelRecipe, RayCluster, encode_on_cluster
from bgekit.errors import ArgumentError, TextTypeError
from bgekit.inference import encode_to_shards, load_shards
from conftest import WORDS
from distributed.clusters import contents, nodes, processes, write_lines


@pytest.fixture(scope="module")
def cluster(object_store):
    # Nodes have what reaches the store from their environment; actors, from their nodes.
    with pytest.MonkeyPatch.context() as patch:
        for name, value in object_store.environment.items():
            patch.setenv(name, value)
        with nodes(2) as started, RayCluster(started.address) as connected:
            yield connected


def put(url, content):
    files, path = fsspec.core.url_to_fs(url)
    files.pipe_file(path, content)


def stored(url):
    """Content by name of all files below a URL."""
    files, path = fsspec.core.url_to_fs(url)
    files.invalidate_cache()
    return {name.removeprefix(path).lstrip("/"): files.cat_file(name) for name in files.find(path)}


@pytest.fixture
def corpus(tmp_path):
    rows = [{"id": f"{n:04}", "text": f"{WORDS[n % 50]} {WORDS[n % 7]} {n}"} for n in range(300)]
    return write_lines(tmp_path / "corpus.jsonl", rows)


def test_two_nodes_write_the_bytes_of_one_process(cluster, corpus, tiny_bert, tmp_path):
    encode_to_shards(FlagModel(tiny_bert), read_records(corpus), tmp_path / "one", shard_size=20)
    encode_on_cluster(cluster, ModelRecipe(str(tiny_bert)), read_records(corpus), tmp_path / "many", shard_size=20)
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


def test_a_process_that_is_told_to_stop_finishes_its_shards_and_others_do_the_rest(
    cluster, tiny_bert, tmp_path, caplog
):
    rows = [{"id": f"{n:04}", "text": f"{WORDS[n % 50]} {WORDS[n % 7]} {n}"} for n in range(3000)]
    corpus = write_lines(tmp_path / "corpus.jsonl", rows)
    encode_to_shards(FlagModel(tiny_bert), read_records(corpus), tmp_path / "one", shard_size=20)

    def stop_one():
        while len(list((tmp_path / "many").glob("shard-*[0-9].json"))) < 6:
            time.sleep(0.01)
        os.kill(processes("ShardActor")[0], signal.SIGTERM)

    thread = threading.Thread(target=stop_one)
    thread.start()
    encode_on_cluster(cluster, ModelRecipe(str(tiny_bert)), read_records(corpus), tmp_path / "many", shard_size=20)
    thread.join()
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    (told,) = [record.message for record in caplog.records if record.name.startswith("bgekit.distributed")]
    assert told.endswith("was told to stop: others do what it had not begun")


class TestVerbs:
    """The command line on the cluster, to which this process is connected, with inputs and outputs at URLs."""

    @pytest.fixture
    def bge(self, cluster, capsys):
        def bge(*arguments):
            code = main([*map(str, arguments), "--no-progress"])
            said = capsys.readouterr().err
            assert code == 0, said
            return said

        return bge

    def test_encode_writes_to_a_url_what_one_process_writes(self, bge, bucket, corpus, tiny_bert):
        put(f"{bucket}/corpus.jsonl", corpus.read_bytes())
        for output, more in (("one", ()), ("many", ("--ray", "auto"))):
            bge("encode", f"{bucket}/corpus.jsonl", "-o", f"{bucket}/{output}", "--model", tiny_bert,
                "--shard-size", 20, *more)  # fmt: skip
        assert stored(f"{bucket}/many") == stored(f"{bucket}/one")
        assert len(load_shards(f"{bucket}/many").ids) == 300

    def test_score_and_mine_write_to_a_url_what_one_process_writes(self, bge, bucket, corpus, tiny_bert, tiny_reranker):
        texts = [json.loads(line)["text"] for line in corpus.read_text().splitlines()]
        rows = [{"query": text[:9], "pos": [text], "neg": [texts[n - 1]]} for n, text in enumerate(texts[:140])]
        put(f"{bucket}/train.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
        put(f"{bucket}/corpus.jsonl", corpus.read_bytes())
        for output, more in (("one", ()), ("many", ("--ray", "auto"))):
            bge("score", "--input", f"{bucket}/train.jsonl", "-o", f"{bucket}/{output}/scored.jsonl",
                "--model", tiny_reranker, *more)  # fmt: skip
            bge("mine", "--input", f"{bucket}/train.jsonl", "-o", f"{bucket}/{output}/mined.jsonl", "--negatives", 3,
                "--model", tiny_bert, "--candidate-pool", f"{bucket}/corpus.jsonl", "--range", "1-30",
                *more)  # fmt: skip
        one, many = stored(f"{bucket}/one"), stored(f"{bucket}/many")
        for name in ("scored.jsonl", "mined.jsonl"):
            assert many[name] == one[name] != b""

    def test_eval_writes_to_a_url_the_scores_of_one_process(self, bge, bucket, corpus, tiny_bert):
        rows = [json.loads(line) for line in corpus.read_text().splitlines()]
        files = {
            "corpus.jsonl": [{"_id": row["id"], "text": row["text"]} for row in rows],
            "queries.jsonl": [{"_id": row["id"], "text": row["text"][:9]} for row in rows[:12]],
        }
        for name, content in files.items():
            put(f"{bucket}/data/{name}", "".join(json.dumps(row) + "\n" for row in content).encode())
        judged = "".join(f"{row['id']}\t{row['id']}\t1\n" for row in rows[:12])
        put(f"{bucket}/data/qrels/test.tsv", f"query-id\tcorpus-id\tscore\n{judged}".encode())
        for output, more in (("one", ()), ("many", ("--ray", "auto"))):
            bge("eval", "--data", f"{bucket}/data", "--model", tiny_bert, "-o", f"{bucket}/{output}", *more)
        one, many = (json.loads(stored(f"{bucket}/{name}")["results.json"])["results"][0] for name in ("one", "many"))
        assert many["metrics"] == one["metrics"] and many["main_score"] > 0


def test_a_pipeline_of_ray_data_keeps_strings_and_writes_shards(cluster, corpus, tiny_bert, tmp_path):
    import ray

    from bgekit.distributed import BgeEncoder, ShardDatasink, read_texts

    texts = read_texts(corpus)
    vectors = texts.map_batches(
        BgeEncoder, fn_constructor_args=[str(tiny_bert)], batch_size=50, compute=ray.data.ActorPoolStrategy(size=1),
        num_cpus=1,
    )  # fmt: skip
    vectors.write_datasink(ShardDatasink(tmp_path / "out", ModelRecipe(str(tiny_bert)), shard_size=64))
    shards = load_shards(tmp_path / "out")
    wanted = [json.loads(line) for line in corpus.read_text().splitlines()]
    assert sorted(shards.ids) == [row["id"] for row in wanted]
    order = np.argsort(shards.ids)
    expected = FlagModel(tiny_bert).encode_corpus([row["text"] for row in wanted])
    np.testing.assert_array_equal(shards.vectors()[order], expected)
    assert not [path.name for path in (tmp_path / "out").iterdir() if len(path.name.partition(".")[0]) > 11]


@pytest.fixture(scope="module")
def encoder(tiny_bert):
    from bgekit.distributed import BgeEncoder

    return BgeEncoder(str(tiny_bert))


class TestBatches:
    """A batch as Ray Data hands it over."""

    def test_arrays_and_tables(self, encoder):
        import pyarrow

        texts = ["a cat", "a dog"]
        expected = encoder.model.encode_corpus(texts)
        column = np.array(texts, dtype=object)
        column.flags.writeable = False
        found = encoder({"text": column, "n": np.arange(2)})
        np.testing.assert_array_equal(found["embedding"], expected)
        assert sorted(found) == ["embedding", "n", "text"]
        table = encoder(pyarrow.table({"text": texts}))
        np.testing.assert_array_equal(np.stack(table["embedding"].to_pylist()).astype(np.float32), expected)
        assert encoder({"text": np.array([], dtype=object)})["embedding"].shape == (0, 32)

    def test_what_is_no_batch_of_texts(self, encoder):
        with pytest.raises(ArgumentError, match="the batch has no column text; it has body"):
            encoder({"body": np.array(["x"])})
        with pytest.raises(ArgumentError, match="'numpy' or 'pyarrow', not list"):
            encoder(["x"])
        with pytest.raises(TextTypeError, match="index 1 is 7"):
            encoder({"text": np.array(["x", 7], dtype=object)})
