"""What release 0.1.0 left on disk opens, gives the same, and goes on: make.py says how the files were made."""

import json
import logging
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from bgekit import FlagModel
from bgekit.data import read_records
from bgekit.inference import encode_to_shards, load_shards
from bgekit.search import SearchIndex, index_records, index_shards

from .make import QUESTIONS, RUN

WRITTEN = Path(__file__).with_name("written.tar.xz")


@pytest.fixture
def old(tmp_path, monkeypatch):
    """The files, in the working directory of the test."""
    with tarfile.open(WRITTEN) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def model(old):
    return FlagModel("model", devices="cpu", use_fp16=False)


def hits(index, model):
    return [[hit.id for hit in row] for row in index.ask(model, QUESTIONS, top_k=3)]


def test_shards(old, model):
    vectors = np.load("vectors.npy")
    shards = load_shards("shards")
    assert np.abs(np.asarray(shards.vectors()) - vectors).max() < 1e-5
    assert hits(SearchIndex.load("shards"), model) == json.loads(Path("hits.json").read_text())
    report = encode_to_shards(model, read_records("corpus.jsonl"), "shards", shard_size=5)
    assert (report.texts, report.kept, report.shards) == (12, 12, 3)


def test_interrupted_shards_go_on(old, model):
    kept = {path.name: path.stat().st_mtime_ns for path in Path("interrupted").glob("shard-*")}
    assert len(kept) > 1
    encode_to_shards(model, read_records("corpus.jsonl"), "interrupted", shard_size=2)
    assert {name: Path("interrupted", name).stat().st_mtime_ns for name in kept} == kept
    assert np.abs(np.asarray(load_shards("interrupted").vectors()) - np.load("vectors.npy")).max() < 1e-5


def test_an_index(old, model, caplog):
    caplog.set_level(logging.WARNING, "bgekit")
    index = SearchIndex.load("index")
    assert hits(index, model) == json.loads(Path("hits.json").read_text())
    before = Path("index/vectors.npy").stat().st_mtime_ns
    index_records(model, read_records("corpus.jsonl"), "index")
    assert Path("index/vectors.npy").stat().st_mtime_ns == before, "nothing has changed, so nothing is built"
    assert hits(index_shards(load_shards("shards"), "second"), model) == json.loads(Path("hits.json").read_text())
    assert not caplog.records


@pytest.mark.filterwarnings("ignore:.*has moved:DeprecationWarning")
def test_pickled_vectors(old):
    vectors = pickle.loads(Path("vectors.pickle").read_bytes())
    assert np.array_equal(np.asarray(vectors), np.load("vectors.npy"))
    assert type(vectors).__name__ == "Embeddings"


def test_a_training_run_goes_on(old):
    pytest.importorskip("accelerate")
    from bgekit.training.embedder import main

    cached = {path.name: path.stat().st_mtime_ns for path in Path("cache").iterdir()}
    assert main([*RUN, "--resume_from_checkpoint", "true"]) == 0
    state = json.loads(Path("run/checkpoint-4/trainer_state.json").read_text())
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    assert losses == pytest.approx(json.loads(Path("losses.json").read_text()), abs=1e-4)
    assert {name: Path("cache", name).stat().st_mtime_ns for name in cached} == cached, "the checked rows were read"
