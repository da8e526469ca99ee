"""Maps of indexes: what is in the Parquet file, and what it is written from."""

import json

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from bgekit.errors import ArgumentError, DataError, OutputError
from bgekit.inference.similarity import unit
from bgekit.search import SearchIndex, draw_map, write_map

RNG = np.random.default_rng(5)


def clustered(rows=400, width=16):
    """Vectors around four directions; row 7 is nearly row 3, row 11 is like none."""
    centres = np.eye(width, dtype=np.float32)[RNG.integers(4, size=rows)]
    vectors = unit(centres + 0.12 * RNG.standard_normal((rows, width)).astype(np.float32))
    vectors[7] = unit(vectors[3] + 0.001)
    vectors[11] = -unit(vectors[:10].sum(axis=0))
    return vectors


def test_the_file(shards_of, tmp_path, monkeypatch):
    vectors = clustered()
    folder, file = shards_of(vectors, ids=[f"doc {row}" for row in range(400)]), tmp_path / "map.parquet"
    monkeypatch.setattr("bgekit.search.vector_map._ROWS", 150)
    report = write_map(folder, file, neighbors=4, near_threshold=0.9999)
    table = parquet.read_table(file)
    assert table.column_names == ["id", "text", "near_copy", "lone", "neighbors", "vector"]
    assert parquet.ParquetFile(file).num_row_groups == 3
    assert table.schema.field("vector").type == pa.list_(pa.float32(), 16)
    assert table.schema.field("neighbors").type == pa.struct(
        [("ids", pa.list_(pa.int32())), ("distances", pa.list_(pa.float32()))]
    )
    assert table["id"].to_pylist()[:2] == ["doc 0", "doc 1"]
    assert table["text"].to_pylist()[399] == "text 399"
    np.testing.assert_array_equal(np.asarray(table["vector"].to_pylist(), np.float32), vectors)
    rows = table.to_pylist()
    assert [row["neighbors"]["ids"][0] for row in rows] == list(range(400))
    assert {len(row["neighbors"]["ids"]) for row in rows} == {len(row["neighbors"]["distances"]) for row in rows} == {5}
    for row in rows[::50]:
        for other, distance in zip(*row["neighbors"].values(), strict=True):
            assert distance == pytest.approx(1 - float(np.dot(row["vector"], vectors[other])), abs=1e-5)
    assert {at for at, row in enumerate(rows) if row["near_copy"]} == {3, 7}
    alone = [at for at, row in enumerate(rows) if row["lone"]]
    assert len(alone) == report.lone == 4 and 11 in alone
    nearest = np.array([1 - row["neighbors"]["distances"][1] for row in rows])
    assert max(nearest[alone]) < report.lone_below <= min(np.delete(nearest, alone))
    assert (report.texts, report.dimension, report.near_copies, report.method) == (400, 16, 2, "exact")
    assert json.loads(table.schema.metadata[b"bgekit"])["near_threshold"] == 0.9999
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_metadata_columns(shards_of, tmp_path):
    file = tmp_path / "map.parquet"
    metadata = pa.table({"year": pa.array([2020, None, 2022]), "text": ["a", "b", "c"], "tags": [["x"], [], None]})
    report = write_map(shards_of(clustered()[:3]), file, metadata=metadata)
    table = parquet.read_table(file)
    assert report.columns == ("year", "text_1", "tags")
    assert table["year"].to_pylist() == [2020, None, 2022] and table.schema.field("year").type == pa.int64()
    assert table["text_1"].to_pylist() == ["a", "b", "c"]
    assert table["tags"].to_pylist() == [["x"], [], None]
    assert table["text"].to_pylist() == ["text 0", "text 1", "text 2"]
    # Two other texts are all that there are; of three, none is lone.
    assert (report.neighbors, report.lone, report.lone_below) == (2, 0, None)
    with pytest.raises(ArgumentError, match=r"a row per text, 3, not 2"):
        write_map(shards_of(clustered()[:3]), file, metadata=metadata.slice(1))


def test_copies_of_one_text_are_no_lone_texts(shards_of, tmp_path):
    report = write_map(shards_of(np.tile(clustered()[:1], (300, 1))), tmp_path / "map.parquet", near_threshold=1)
    assert (report.near_copies, report.lone) == (300, 0)


@pytest.mark.parametrize("rows", [1, 2])
def test_very_few_texts(shards_of, tmp_path, rows):
    file = tmp_path / "map.parquet"
    assert write_map(shards_of(clustered()[:rows]), file).neighbors == rows - 1
    draw_map(file)


def test_lone_surrogates(embedder, tmp_path):
    from bgekit.data.records import Record
    from bgekit.inference import encode_to_shards

    encode_to_shards(embedder(), [Record("a\ud83d", "b \ud83d")], tmp_path / "shards", store_texts=True)
    write_map(tmp_path / "shards", tmp_path / "map.parquet")
    assert parquet.read_table(tmp_path / "map.parquet")["text"].to_pylist() == ["b \ufffd"]


def test_what_cannot_be_mapped(shards_of, tmp_path):
    folder, file = shards_of(clustered()[:5]), tmp_path / "map.parquet"
    with pytest.raises(ArgumentError, match=r"map\.csv: a map is a Parquet file"):
        write_map(folder, tmp_path / "map.csv")
    with pytest.raises(ArgumentError, match=r"near_threshold is a cosine.* not 95"):
        write_map(folder, file, near_threshold=95)
    with pytest.raises(ArgumentError, match="neighbors must be a positive number"):
        write_map(folder, file, neighbors=0)
    with pytest.raises(DataError, match="keeps no texts: encode with --store-texts"):
        write_map(shards_of(clustered()[:5], store_texts=False), file)
    with pytest.raises(OutputError, match="neither an index nor a folder of encoded shards"):
        write_map(tmp_path, file)
    assert not file.exists()


def test_an_error_leaves_what_was_there(shards_of, tmp_path):
    file = tmp_path / "map.parquet"
    file.write_bytes(b"before")
    folder = shards_of(clustered()[:50])
    index = SearchIndex.load(folder)
    names = folder / "shard-00000.ids.jsonl"
    names.write_bytes(names.read_bytes().replace(b'"id": "33"', b'"no": "33"'))
    with pytest.raises(OutputError, match="row 33 of the index is damaged"):
        write_map(index, file)
    assert file.read_bytes() == b"before"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([folder.name, "map.parquet"])
