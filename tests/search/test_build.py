"""An index is made once, made anew when its input changes, and an interrupted build goes on."""

from __future__ import annotations

import json
import os
import time

import numpy as np
import pytest

from bgekit.data.records import Record, read_records
from bgekit.errors import ArgumentError, DataError, MissingExtraError, OutputError
from bgekit.files.atomic import OutputFolder
from bgekit.files.hashing import file_sha256
from bgekit.inference.shards import Chunks, load_shards
from bgekit.search import build as building
from bgekit.search.build import index_records, index_shards
from bgekit.search.index import SearchIndex


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    write(path, range(30))
    return path


def write(path, numbers):
    path.write_text("".join(json.dumps({"_id": f"d{n}", "title": "T", "text": f"text {n}"}) + "\n" for n in numbers))


def names(folder):
    return sorted(os.listdir(folder))


def test_made_once(corpus, embedder, tmp_path):
    model = embedder()
    index, report = index_records(model, read_records(corpus), tmp_path / "index")
    assert report.texts == 30
    (hits,) = index.ask(model, ["T text 7"], 3)
    assert (hits[0].id, hits[0].text, round(hits[0].score, 6)) == ("d7", "T text 7", 1)
    assert names(tmp_path / "index") == ["ids.npy", "index.json", "offsets.npy", "rows.jsonl", "vectors.npy"]
    encoded = model.encoded
    again, report = index_records(model, read_records(corpus), tmp_path / "index")
    assert report is None
    assert model.encoded == encoded
    assert again.ask(model, ["T text 7"], 3) == [hits]


@pytest.mark.parametrize("card", [{"similarity": "manhattan"}, {"similarity": "euclidean", "normalize": False}])
def test_distances_that_an_index_does_not_know_are_refused(corpus, embedder, shards_of, tmp_path, card):
    with pytest.raises(ArgumentError, match=r"compared by their .* distance, indexes by cosine"):
        index_records(embedder(**card), read_records(corpus), tmp_path / "index")
    assert not (tmp_path / "index").exists()
    with pytest.raises(ArgumentError, match=card["similarity"]):
        SearchIndex.load(shards_of(np.eye(4, 16, dtype=np.float32), **card))


def test_distances_of_unit_vectors_have_the_order_of_their_products(corpus, embedder, tmp_path):
    model = embedder(similarity="euclidean")
    index, _ = index_records(model, read_records(corpus), tmp_path / "index")
    (hits,) = index.ask(model, ["T text 7"], 30)
    (distances,) = model.similarity(model.encode_queries(["T text 7"]), model.encode([hit.text for hit in hits]))
    assert hits[0].id == "d7" and list(distances) == sorted(distances, reverse=True)


def test_a_touched_or_moved_file_is_the_same(corpus, embedder, tmp_path):
    index_records(embedder(), read_records(corpus), tmp_path / "index")
    os.utime(corpus, (1, 1))
    assert index_records(embedder(), read_records(corpus), tmp_path / "index")[1] is None
    moved = corpus.rename(tmp_path / "moved.jsonl")
    assert index_records(embedder(), read_records(moved), tmp_path / "index")[1] is None


@pytest.mark.parametrize("settled", [0, 60 * 10**9])
def test_a_file_of_the_same_size_and_time_is_known_by_its_content(corpus, embedder, tmp_path, monkeypatch, settled):
    monkeypatch.setattr("bgekit.files.hashing._SETTLED_NS", settled, raising=False)
    index_records(embedder(), read_records(corpus), tmp_path / "index")
    status = corpus.stat()
    time.sleep(0.02)  # More than a tick of the file system's clock.
    with corpus.open("r+b") as file:  # In place, as rsync --inplace and editors do.
        content = file.read()
        file.seek(0)
        file.write(content.replace(b"text 7", b"text 8", 1))
    os.utime(corpus, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert corpus.stat().st_size == status.st_size
    index, report = index_records(embedder(), read_records(corpus), tmp_path / "index")
    assert report is not None
    (hits,) = index.ask(embedder(), ["T text 7"], 30)
    assert all("text 7" not in hit.text for hit in hits)


def test_a_file_that_was_not_touched_is_not_read_again(corpus, embedder, tmp_path, monkeypatch):
    monkeypatch.setattr("bgekit.files.hashing._SETTLED_NS", 0)
    index_records(embedder(), read_records(corpus), tmp_path / "index")
    monkeypatch.setattr("bgekit.files.hashing.file_sha256", lambda _: pytest.fail("read again"))
    assert index_records(embedder(), read_records(corpus), tmp_path / "index")[1] is None


def test_a_changed_file_is_indexed_again(corpus, embedder, tmp_path):
    index_records(embedder(), read_records(corpus), tmp_path / "index")
    write(corpus, range(40))
    index, report = index_records(embedder(), read_records(corpus), tmp_path / "index")
    assert (report.texts, len(index)) == (40, 40)


@pytest.mark.parametrize("change", [{"max_length": 30}, {"chunks": None}])
def test_other_settings_are_another_index(corpus, tmp_path, change, tiny_bert):
    from bgekit import FlagModel

    model = FlagModel(tiny_bert)
    options = {"chunks": Chunks(12, 2)}
    index, _ = index_records(model, read_records(corpus), tmp_path / "index", **options)
    assert index.facts.chunked
    assert index_records(model, read_records(corpus), tmp_path / "index", **options | change)[1] is not None
    assert index_records(model, read_records(corpus), tmp_path / "index", **options | change)[1] is None


def test_another_model_is_another_index(corpus, embedder, tmp_path):
    index_records(embedder(), read_records(corpus), tmp_path / "index")
    index, report = index_records(embedder(dimension=8), read_records(corpus), tmp_path / "index")
    assert report is not None
    assert index.dimension == 8


def test_an_interrupted_build_goes_on(corpus, embedder, tmp_path):
    good = corpus.read_text()
    model = embedder()
    original, calls = model._compute, []

    def interrupted(blocks, *rest):
        for encoded in original(blocks, *rest):
            calls.append(1)
            if len(calls) == 3:
                raise KeyboardInterrupt
            yield encoded

    model._compute = interrupted
    with pytest.raises(KeyboardInterrupt):
        index_records(model, read_records(corpus), tmp_path / "index", shard_size=10)
    with pytest.raises(OutputError, match="an index"):
        SearchIndex.load(tmp_path / "index")
    fresh = embedder()
    _, report = index_records(fresh, read_records(corpus), tmp_path / "index", shard_size=10)
    assert (report.kept, fresh.encoded) == (20, 10)
    assert names(tmp_path / "index") == ["ids.npy", "index.json", "offsets.npy", "rows.jsonl", "vectors.npy"]
    # What was begun with another input is not mixed in.
    write(corpus, range(20, 60))
    model.encoded, calls[:] = 0, []
    with pytest.raises(KeyboardInterrupt):
        index_records(model, read_records(corpus), tmp_path / "index", shard_size=10)
    # Until the new index is complete, the old one is there.
    assert SearchIndex.load(tmp_path / "index").search(fresh.vector("T text 7"), 1)[0][0].id == "d7"
    corpus.write_text(good)
    assert index_records(fresh, read_records(corpus), tmp_path / "index", shard_size=10)[1] is None


def test_a_bad_line_leaves_the_old_index(corpus, embedder, tmp_path):
    model = embedder()
    index_records(model, read_records(corpus), tmp_path / "index")
    corpus.write_text(corpus.read_text() + "{}\n")
    with pytest.raises(DataError, match="line 31"):
        index_records(model, read_records(corpus), tmp_path / "index")
    assert len(SearchIndex.load(tmp_path / "index")) == 30


def test_a_damaged_index_is_made_again(corpus, embedder, tmp_path, caplog):
    index_records(embedder(), read_records(corpus), tmp_path / "index")
    (tmp_path / "index" / "vectors.npy").write_bytes(b"x")
    index, report = index_records(embedder(), read_records(corpus), tmp_path / "index")
    assert report is not None
    assert "vectors.npy" in caplog.text
    assert len(index) == 30


def test_records_without_files_are_indexed_each_time(embedder, tmp_path):
    for _ in range(2):
        index, report = index_records(embedder(), [Record("a", "x"), Record("b", "y")], tmp_path / "index")
        assert report.texts == 2
    assert len(index) == 2


def test_the_type_changes_without_encoding(corpus, embedder, tmp_path):
    pytest.importorskip("faiss", reason="approximate indexes need the extra faiss")
    model = embedder()
    index_records(model, read_records(corpus), tmp_path / "index")
    encoded = model.encoded
    for wanted, got in (("hnsw", "hnsw"), (None, "hnsw"), ("ivf", "ivf"), ("exact", "exact")):
        index, report = index_records(model, read_records(corpus), tmp_path / "index", index_type=wanted)
        assert (index.facts.index_type, report, model.encoded) == (got, None, encoded)
        assert bool(list((tmp_path / "index").glob("index*.faiss"))) == (got != "exact")
    # A new input keeps the type.
    index_records(model, read_records(corpus), tmp_path / "index", index_type="ivf")
    write(corpus, range(5))
    assert index_records(model, read_records(corpus), tmp_path / "index")[0].facts.index_type == "ivf"


def test_without_faiss_it_is_said_before_encoding(corpus, embedder, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    model = embedder()
    with pytest.raises(MissingExtraError, match=r"bgekit\[faiss\]"):
        index_records(model, read_records(corpus), tmp_path / "index", index_type="hnsw")
    assert model.encoded == 0


def test_unknown_type(corpus, embedder, tmp_path):
    with pytest.raises(ArgumentError, match="exact, int8, binary, hnsw, ivf or auto"):
        index_records(embedder(), read_records(corpus), tmp_path / "index", index_type="flat")


def test_shards_are_indexed_once(shards_of, tmp_path, monkeypatch):
    folder = shards_of(np.eye(4, dtype=np.float32))
    index_shards(load_shards(folder), tmp_path / "index")
    monkeypatch.setattr(building, "_write_index", lambda *_: pytest.fail("built again"))
    assert len(index_shards(load_shards(folder), tmp_path / "index")) == 4


def test_an_index_does_not_go_into_a_folder_of_shards(shards_of, embedder, corpus):
    folder = shards_of(np.eye(4, dtype=np.float32))
    with pytest.raises(OutputError, match="another folder"):
        index_records(embedder(), read_records(corpus), folder)


def test_one_writer_at_a_time(corpus, embedder, tmp_path):
    with OutputFolder(tmp_path / "index"), pytest.raises(OutputError, match="being written"):
        index_records(embedder(), read_records(corpus), tmp_path / "index")


def test_lone_surrogates_survive(embedder, tmp_path):
    model = embedder()
    index, _ = index_records(model, [Record("a\udc80", "x \ud800 y")], tmp_path / "index")
    assert (index.ask(model, ["q"])[0][0].id, index.ask(model, ["q"])[0][0].text) == ("a\udc80", "x \ud800 y")


def test_passages_of_a_real_model(tiny_bert, tmp_path):
    from bgekit import FlagModel

    model = FlagModel(tiny_bert)
    long = "the cat reads. " * 60 + "river mountain tree house embedding."
    records = [Record("long", long), Record("short", "a dog runs"), Record("other", "blue code")]
    index, report = index_records(model, records, tmp_path / "index", chunks=Chunks(20, 4))
    assert report.truncated == 0
    assert report.texts == len(index) > 10
    (hits,) = index.ask(model, ["dog runs fast"], 5)
    assert sorted(hit.id for hit in hits) == ["long", "other", "short"]
    assert all(hit.text in long for hit in hits if hit.id == "long")


def test_columns_are_kept_and_others_are_another_index(tmp_path, embedder):
    path = tmp_path / "a.csv"
    path.write_text("id,text,year,lang,code\n1,x,2020,en,007\n2,y,,fr,12\n3,z,2021.5,,1\n")
    index, _ = index_records(embedder(), read_records(path), tmp_path / "index", keep=["year", "code"])
    assert names(tmp_path / "index") == [
        "ids.npy",
        "index.json",
        "metadata.arrow",
        "offsets.npy",
        "rows.jsonl",
        "vectors.npy",
    ]
    facts = json.loads((tmp_path / "index" / "index.json").read_text())
    assert facts["metadata"]["columns"] == {"year": "double", "code": "string"}
    assert facts["metadata"]["sha256"] == file_sha256(tmp_path / "index" / "metadata.arrow")
    assert facts["input"]["options"]["keep"] == ["year", "code"]
    assert [hit.id for hit in index.ask(embedder(), ["q"], where="year > 2020 and code = '1'")[0]] == ["3"]
    again = read_records(path, keep=["year", "code"])
    assert index_records(embedder(), again, tmp_path / "index")[1] is None
    index, report = index_records(embedder(), read_records(path), tmp_path / "index", keep="*")
    assert report is not None
    assert index.metadata.to_pylist()[0] == {"year": 2020.0, "lang": "en", "code": "007"}
    index, report = index_records(embedder(), read_records(path), tmp_path / "index")
    assert (index.metadata, report.texts) == (None, 3)
    (segment,) = (tmp_path / "index").glob("segment-*")
    assert names(tmp_path / "index") == ["index.json", segment.name]
    assert names(segment) == ["ids.npy", "offsets.npy", "rows.jsonl", "vectors.npy"]
    assert "metadata" not in (tmp_path / "index" / "index.json").read_text()


def test_columns_of_records_without_files(tmp_path, embedder):
    records = [Record("a", "x", metadata={"n": 1, "m": 2}), Record("b", "y", metadata={"n": 3})]
    for keep, expected in ((None, ["n", "m"]), ("*", ["n", "m"]), (["n"], ["n"]), ([], None)):
        index, _ = index_records(embedder(), records, tmp_path / "index", keep=keep)
        assert (index.metadata and index.metadata.column_names) == expected


def test_the_type_changes_and_metadata_stays(tmp_path, embedder):
    pytest.importorskip("faiss", reason="approximate indexes need the extra faiss")
    records = [Record(str(row), f"text {row}", metadata={"n": row}) for row in range(500)]
    index_records(embedder(), records, tmp_path / "index")
    for index_type in ("hnsw", "ivf", "exact"):
        building.with_type(tmp_path / "index", index_type)
        index = SearchIndex.load(tmp_path / "index")
        assert index.facts.index_type == index_type
        assert [hit.id for hit in index.ask(embedder(), ["text 7"], 3, where="n in (7, 8)")[0]][:1] == ["7"]


def test_many_rows_are_stored_in_few_batches(tmp_path, shards_of):
    rows = [{"n": row} for row in range(1000)]
    index_shards(load_shards(shards_of(np.eye(1000, 8, dtype=np.float32) + 1, metadata=rows)), tmp_path / "index")
    table = SearchIndex.load(tmp_path / "index").metadata
    assert (table.column("n").num_chunks, table.column("n").to_pylist()) == (1, list(range(1000)))
