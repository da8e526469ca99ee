"""Ray itself, with two nodes in this machine: a run, and the pieces for pipelines of Ray Data."""

import json

import numpy as np
import pytest

from bgekit import FlagModel
from bgekit.data import read_records
from bgekit.distributed import ModelRecipe, RayCluster, encode_on_cluster
from bgekit.errors import ArgumentError, TextTypeError
from bgekit.inference import encode_to_shards, load_shards
from conftest import WORDS
from distributed.clusters import contents, nodes, write_lines


@pytest.fixture(scope="module")
def cluster():
    with nodes(2) as started, RayCluster(started.address) as connected:
        yield connected


@pytest.fixture
def corpus(tmp_path):
    rows = [{"id": f"{n:04}", "text": f"{WORDS[n % 50]} {WORDS[n % 7]} {n}"} for n in range(300)]
    return write_lines(tmp_path / "corpus.jsonl", rows)


def test_two_nodes_write_the_bytes_of_one_process(cluster, corpus, tiny_bert, tmp_path):
    encode_to_shards(FlagModel(tiny_bert), read_records(corpus), tmp_path / "one", shard_size=20)
    encode_on_cluster(cluster, ModelRecipe(str(tiny_bert)), read_records(corpus), tmp_path / "many", shard_size=20)
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


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
