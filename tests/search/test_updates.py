"""Documents come and go: what an index holds afterwards is what it would hold if it were built of it."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import random
import re
import shutil
import signal
import tarfile
import time
import traceback
from pathlib import Path

import numpy as np
import pytest

from bgekit.data.records import Record, read_records
from bgekit.errors import ArgumentError, DataError, OutputError
from bgekit.files.atomic import OutputFolder
from bgekit.inference.shards import Chunks, encode_to_shards, load_shards
from bgekit.search import updates
from bgekit.search.build import index_records, index_shards
from bgekit.search.index import SearchIndex
from bgekit.search.segments import STRUCTURE_FROM
from bgekit.search.updates import _merged


def record(name, text=None, **metadata):
    return Record(str(name), text or f"text {name}", metadata=metadata)


def content(index):
    """What an index holds, by id (and passage): text and metadata."""
    table = index.metadata
    rows = [{} for _ in range(len(index))] if table is None else table.to_pylist()
    found = {}
    for (name, text), known in zip(index.live.rows(), rows, strict=True):
        assert name not in found
        found[name] = (text, {column: value for column, value in known.items() if value is not None})
    assert len(index) == len(found)
    return found


def check(index, model, where=None):
    """Every text is found by its own vector, before all others, with the score and the row that belong to it."""
    held = content(index)
    names = list(held)
    if not names:
        assert index.search(np.ones((1, index.dimension)), 3, model=model) == [[]]
        return
    queries = np.stack([model.vector(text) for text, _ in held.values()])
    for name, (hit,) in zip(names, index.search(queries, 1, model=model), strict=True):
        assert (hit.text, round(hit.score, 5)) == (held[name][0], 1)
    scores, rows = index.nearest(queries, min(5, len(names)), model=model)
    products = queries @ queries.T
    assert np.allclose(scores, -np.sort(-products, axis=1)[:, : scores.shape[1]], atol=1e-5)
    assert all(held[names[row[0]]][0] == held[name][0] for name, row in zip(names, rows, strict=True))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "index"


@pytest.fixture
def model(embedder):
    return embedder()


@pytest.fixture
def index(model, folder):
    records = [record(n, year=2000 + n, lang="en" if n % 2 else "fr") for n in range(20)]
    return index_records(model, records, folder)[0]


def test_documents_are_added_replaced_and_removed(index, model, folder):
    before = model.encoded
    report = index.add(model, [record("new", year=1999), record(3, "other", year=7), record(4, year=2004, lang="fr")])
    # The third is there as it is.
    assert (report.added, report.encoded, report.removed, report.rows) == (2, 2, 1, 21)
    assert model.encoded == before + 2
    held = content(index)
    assert (held["new"], held["3"], held["4"]) == (
        ("text new", {"year": 1999}), ("other", {"year": 7}), ("text 4", {"year": 2004, "lang": "fr"}),
    )  # fmt: skip
    check(index, model)
    removal = index.remove(["new", "5"], dry_run=True)
    assert (removal.documents, removal.rows, removal.first_ids, len(index)) == (2, 2, ("5", "new"), 21)
    index.remove(["new", "5"])
    assert index.remove(where="year < 2003 and lang = 'fr'").documents == 2
    assert sorted(content(index)) == sorted({str(n) for n in range(20)} - {"5", "0", "2"})
    assert [hit.id for hit in index.search(model.vector("text 5"), 20, model=model)[0]].count("5") == 0
    assert index.rows_where("lang = 'fr'").tolist() == [
        row for row, known in enumerate(index.metadata.to_pylist()) if known["lang"] == "fr"
    ]
    check(index, model)
    held = content(index)
    report = index.compact()
    assert (report.removed, report.rows) == (5, 17)
    assert content(index) == held == content(SearchIndex.load(folder))
    assert sorted(each.name for each in folder.iterdir()) == ["index.json", "segment-000004"]
    assert index.compact().bytes_written == 0
    check(index, model)


def test_an_interrupted_addition_goes_on(index, embedder, tmp_path):
    path = write(tmp_path / "new.jsonl", [{"id": f"n{n}", "text": f"new {n}"} for n in range(30)])
    model, calls = embedder(), []
    original = model._compute

    def interrupted(blocks, *rest):
        for encoded in original(blocks, *rest):
            calls.append(1)
            if len(calls) == 3:
                raise KeyboardInterrupt
            yield encoded

    model._compute = interrupted
    with pytest.raises(KeyboardInterrupt):
        index.add(model, read_records(path), shard_size=10)
    assert len(SearchIndex.load(index.folder)) == 20
    fresh = embedder()
    report = index.add(fresh, read_records(path), shard_size=10)
    assert (report.added, report.encoding.kept, fresh.encoded, len(index)) == (30, 20, 10, 50)
    assert not list(index.folder.glob("building*"))
    check(index, fresh)


def test_what_is_one_shard_is_encoded_without_files(index, model, monkeypatch):
    monkeypatch.setattr(updates, "encode_to_shards", lambda *_, **__: pytest.fail("written to shards"))
    report = index.add(model, [record(f"n{n}", year=n) for n in range(3)])
    encoding = report.encoding
    assert (encoding.texts, encoding.kept, encoding.shards, encoding.skipped) == (3, 0, 1, 0)
    assert content(index)["n2"] == ("text n2", {"year": 2})
    check(index, model)


@pytest.mark.parametrize("shard_size", [2, 1024])
def test_an_index_without_texts_takes_documents(model, tmp_path, shard_size):
    encode_to_shards(model, [record(n) for n in range(5)], tmp_path / "shards")
    index = index_shards(load_shards(tmp_path / "shards"), tmp_path / "index")
    index.add(model, [record(n, "another") for n in (3, 7, 8)], shard_size=shard_size)
    assert content(index) == {str(n): (None, {}) for n in (0, 1, 2, 4, 3, 7, 8)}
    scores, rows = index.nearest(model.vector("another")[None], 3, model=model)
    assert (np.round(scores, 5) == 1).all() and sorted(rows[0].tolist()) == [4, 5, 6]


def test_metadata_alone_costs_no_text(index, model):
    before = model.encoded
    report = index.add(model, [record(3, year=7, lang="en")])
    assert (report.added, report.encoded, report.removed) == (1, 0, 1)
    assert (model.encoded, content(index)["3"]) == (before, ("text 3", {"year": 7, "lang": "en"}))


def test_passages_of_a_document_are_replaced_together(folder, tiny_bert):
    from bgekit import FlagModel

    model = FlagModel(tiny_bert)
    long = [f"the cat reads {word} books. " * 3 for word in ("red", "green", "blue", "small")]
    index, _ = index_records(model, [Record("a", "".join(long)), Record("a#1", "a dog")], folder, chunks=Chunks(20, 0))
    passages = len(index)
    assert (index.documents, passages > 4) == (2, True)
    report = index.add(model, [Record("a", "".join(long[:2]))])
    assert report.removed >= 2 and report.encoded < 2
    assert (index.documents, len(index)) == (2, passages - report.removed + report.added)
    index.remove(["a"])
    assert [hit.id for hit in index.ask(model, ["cat"])[0]] == ["a#1"]
    with pytest.raises(DataError, match="'a'"):
        index.remove(["a"])


def write(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class TestSynchronising:
    """`index_records` on an index that is there: it then holds exactly its input."""

    def test_only_new_texts_are_encoded(self, model, folder, tmp_path):
        path = write(tmp_path / "a.jsonl", [{"id": f"d{n}", "text": f"text {n}"} for n in range(50)])
        index_records(model, read_records(path), folder)
        rows = [{"id": f"d{n}", "text": f"text {n}"} for n in range(10, 60)]
        rows[5] |= {"text": "changed"}
        rows[6] |= {"id": "renamed"}
        write(path, rows)
        model.encoded = 0
        index, report = index_records(model, read_records(path), folder)
        assert (model.encoded, report.texts, report.kept, len(index)) == (11, 50, 39, 50)
        assert content(index) == {row["id"]: (row["text"], {}) for row in rows}
        check(index, model)
        assert index_records(model, read_records(path), folder)[1] is None

    def test_a_moved_file_and_an_inserted_paragraph(self, folder, tmp_path, tiny_bert, monkeypatch):
        from bgekit import FlagModel

        model, encoded = FlagModel(tiny_bert), []
        original = model.encode_blocks
        monkeypatch.setattr(
            model, "encode_blocks",
            lambda blocks, **rest: original((encoded.extend(texts) or texts for texts in blocks), **rest),
        )  # fmt: skip
        paragraphs = [f"The {a} {b} reads and writes by the river." for a in ("red", "blue") for b in ("cat", "dog")]
        (tmp_path / "notes").mkdir()
        (tmp_path / "notes" / "a.md").write_text("\n\n".join(paragraphs))
        chunks = Chunks(16, 0)

        def synchronised():
            encoded.clear()
            return index_records(model, read_records(tmp_path / "notes"), folder, chunks=chunks)[0]

        whole = len(synchronised())
        assert whole == len(encoded) == 4
        (tmp_path / "notes" / "a.md").rename(tmp_path / "notes" / "b.md")
        assert {name for name, _ in synchronised().live.rows()} == {f"b.md#{n}" for n in range(4)}
        assert encoded == []
        paragraphs.insert(1, "A small bird runs fast in the mountain.")
        (tmp_path / "notes" / "b.md").write_text("\n\n".join(paragraphs))
        index = synchronised()
        assert (encoded, len(index)) == (["A small bird runs fast in the mountain."], 5)
        assert [content(index)[f"b.md#{n}"][0] for n in range(5)] == paragraphs

    def test_columns_come_and_go_without_encoding(self, model, folder, tmp_path):
        rows = [{"id": f"d{n}", "text": f"text {n}", "year": n, "lang": "en"} for n in range(9)]
        path = write(tmp_path / "a.jsonl", rows)
        index_records(model, read_records(path, keep=["year"]), folder)
        model.encoded = 0
        for keep in (["year", "lang"], ["lang"], [], ["year"]):
            index, _ = index_records(model, read_records(path, keep=keep), folder)
            assert content(index) == {row["id"]: (row["text"], {name: row[name] for name in keep}) for row in rows}
        rows[3]["year"] = 99
        write(path, rows)
        index, _ = index_records(model, read_records(path, keep=["year"]), folder)
        assert (model.encoded, content(index)["d3"], len(index.facts.segments)) == (0, ("text 3", {"year": 99}), 2)
        check(index, model)

    def test_a_type_that_changes_in_the_input_is_told(self, model, folder, tmp_path, caplog):
        path = tmp_path / "a.csv"
        path.write_text("id,text,code\n1,x,7\n2,y,8\n")
        index_records(model, read_records(path, keep="code"), folder)
        path.write_text("id,text,code\n1,x,7\n2,y,A8\n")
        index, _ = index_records(model, read_records(path, keep="code"), folder)
        assert content(index) == {"1": ("x", {"code": "7"}), "2": ("y", {"code": "A8"})}
        assert "the column code was int64 and is string now" in caplog.text

    def test_what_was_added_is_dropped(self, model, folder, tmp_path):
        path = write(tmp_path / "a.jsonl", [{"id": "a", "text": "x"}, {"id": "b", "text": "y"}])
        index, _ = index_records(model, read_records(path), folder)
        index.add(model, [record("more")])
        assert index_records(model, read_records(path), folder)[1].kept == 2
        assert set(content(SearchIndex.load(folder))) == {"a", "b"}
        index.remove(["a"])
        index_records(model, read_records(path), folder)
        assert index.refresh() and set(content(index)) == {"a", "b"}

    def test_equal_lines_are_as_often_there_as_in_the_input(self, model, folder):
        for count in (3, 5, 2, 2):
            index, _ = index_records(model, [record("a")] * count + [record("b")], folder)
            assert sorted(name for name, _ in index.live.rows()) == ["a"] * count + ["b"]


def test_a_new_column_is_null_in_old_rows_and_another_type_is_refused(index, model, tmp_path):
    index.add(model, [record("a", price=1.5, year=1), record("b", price=None, year=2.5)])
    rows = {name: known for name, (_, known) in content(index).items()}
    assert (rows["a"], rows["b"], rows["1"]) == ({"price": 1.5, "year": 1}, {"year": 2.5}, {"year": 2001, "lang": "en"})
    assert index.facts.metadata["columns"] == {"year": "double", "lang": "string", "price": "double"}
    held = content(index)
    with pytest.raises(DataError, match=r"column year is of the type string in what is added and double in .*index"):
        index.add(model, [record("c", year="2020")])
    assert content(index) == held == content(SearchIndex.load(index.folder))
    # Cells have the type of the column where they can be read so.
    path = tmp_path / "a.csv"
    path.write_text("id,text,lang,year\nc,x,12,\nd,y,007,3\n")
    index.add(model, read_records(path, keep=["lang", "year"]))
    assert (content(index)["c"], content(index)["d"]) == (("x", {"lang": "12"}), ("y", {"lang": "007", "year": 3.0}))
    path.write_text("id,text,year\ne,x,soon\n")
    with pytest.raises(DataError, match="string in what is added and double in"):
        index.add(model, read_records(path, keep="year"))
    index.compact()
    assert content(index)["1"] == ("text 1", {"year": 2001.0, "lang": "en"})


def test_records_without_ids_replace_only_those_of_their_file(model, folder, tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    index, _ = index_records(model, read_records(tmp_path / "a.txt"), folder)
    for text in ("three\nfour\n", "three\nfive\n"):
        (tmp_path / "b.txt").write_text(text)
        index.add(model, read_records(tmp_path / "b.txt"))
    assert {text for text, _ in content(index).values()} == {"one", "two", "three", "five"}
    reader = read_records(tmp_path / "b.txt")
    next(reader)
    with pytest.raises(ArgumentError, match="numbered already"):
        index.add(model, reader)


def test_options_that_contradict_the_index_are_refused(model, folder, tmp_path):
    path = write(tmp_path / "a.jsonl", [{"id": "a", "body": "x", "text": "z"}])
    index, _ = index_records(model, read_records(path, text_field="body"), folder)
    with pytest.raises(ArgumentError, match="text_field='body' and what is added with text_field='text'"):
        index.add(model, read_records(path, text_field="text"))
    assert len(index) == 1


def test_ids_that_are_not_there(index, model):
    held = content(index)
    with pytest.raises(
        DataError, match=r"no documents of 7 of the ids: 'x0', 'x1', 'x2', 'x3', 'x4' and 2 more\. Nothing"
    ):
        index.remove(["3", *(f"x{n}" for n in range(7))])
    assert content(index) == held
    removal = index.remove(["3", "x"], ignore_missing=True)
    assert (removal.documents, removal.missing, "3" in content(index)) == (1, 1, False)
    with pytest.raises(DataError, match="'3'"):
        index.remove(["3"])
    for wrong in ({}, {"ids": ["1"], "where": "year = 1"}, {"ids": "1"}):
        with pytest.raises(ArgumentError):
            index.remove(**wrong)
    with pytest.raises(ArgumentError, match="there is no column"):
        index.remove(where="yaer = 1")


def test_another_model_or_width_is_refused(index, embedder, model, caplog):
    other = embedder(name="other")
    other.salt = "x"
    with pytest.raises(
        ArgumentError, match=r"made with table and cannot take vectors of other.*Add with --model table"
    ):
        index.add(other, [record("a")])
    with pytest.raises(ArgumentError, match="16 dimensions, the model's have 8"):
        index.add(embedder(8), [record("a")])
    assert len(index) == 20
    index.add(embedder(precision="bfloat16"), [record("a")])
    assert "made in float32 and its new texts are encoded in bfloat16" in caplog.text
    assert len(index) == 21


def test_all_documents_can_go_and_come_back(index, model):
    index.remove(where="year > 0")
    assert (len(index), index.documents, index.nearest(np.ones(16), 2)[1].tolist()) == (0, 0, [[-1, -1]])
    assert index.search(np.ones(16), 2) == [[]]
    index.compact()
    index.add(model, [record("a", year="now")])
    check(index, model)


def test_a_reader_goes_on_with_the_state_that_it_opened(index, model, folder):
    reader = SearchIndex.load(folder)
    held, answer = content(reader), reader.search(model.vector("text 3"), 30, model=model)
    index.remove(["3"])
    index.add(model, [record("a")])
    index.compact()
    assert not (folder / "vectors.npy").exists()
    assert (content(reader), reader.search(model.vector("text 3"), 30, model=model)) == (held, answer)
    assert reader.refresh() and not reader.refresh()
    assert content(reader) == content(index) != held
    assert [hit.id for hit in reader.search(model.vector("text a"), 1, model=model)[0]] == ["a"]
    shutil.rmtree(folder)
    with pytest.raises(OutputError, match="not an index"):
        reader.refresh()
    assert content(reader) == content(index)


def test_a_map_has_the_rows_that_are_there(index, model, tmp_path):
    from pyarrow import parquet

    from bgekit.search.vector_map import write_map

    index.add(model, [record("a", year=1), record(3, "b", year=2)])
    index.remove(["5"])
    write_map(index, tmp_path / "map.parquet", neighbors=2)
    table = parquet.read_table(tmp_path / "map.parquet")
    held = content(index)
    assert table["id"].to_pylist() == list(held)
    assert table["year"].to_pylist() == [known["year"] for _, known in held.values()]
    assert all(np.array_equal(row["vector"], model.vector(row["text"])) for row in table.to_pylist())


def test_refresh_opens_only_what_is_new(index, model, monkeypatch):
    reader, opened = SearchIndex.load(index.folder), []
    original = updates.open_stored
    index.add(model, [record("a")])
    from bgekit.search import storage

    monkeypatch.setattr(storage, "mapped", lambda path, shape: opened.append(path) or np.load(path))
    assert reader.refresh() and original
    assert {path.parent.name for path in opened if path.suffix == ".npy"} == {"segment-000001"}


def test_an_index_that_is_opened_while_it_changes_is_read_again(index, model, folder, monkeypatch):
    from bgekit.search import index as module

    original, states = module.read_facts, []

    def slow(path):
        facts = original(path)
        if len(states) < 3:  # It is another one before its files are open.
            states.append(facts)
            writer.remove([str(len(states))])
            writer.compact()
        return facts

    writer = SearchIndex.load(folder)
    monkeypatch.setattr(writer, "refresh", lambda: None, raising=False)
    monkeypatch.setattr(module, "read_facts", slow)
    assert len(SearchIndex.load(folder)) == 17
    # What is gone for good is said.
    shutil.rmtree(next(folder.glob("segment-*")))
    with pytest.raises(OutputError, match=r"vectors\.npy is missing"):
        SearchIndex.load(folder)


def test_segments_stay_few_and_rows_are_seldom_written_again():
    live, written = [1_000_000], 0
    for day in range(400):
        count = _merged(live, 1000 + day % 7 * 300)
        merged = sum(live[len(live) - count :]) + 1000 + day % 7 * 300
        written += merged
        live = [*live[: len(live) - count], merged]
        assert len(live) <= 22 and live[0] == 1_000_000
    assert written < 4 * sum(live[1:])


def test_many_small_additions(index, model, monkeypatch):
    for n in range(100, 115):
        index.add(model, [record(n, year=n), record(n - 1, f"again {n}", year=n)])
        assert len(index.facts.segments) < 15
    assert len(index) == 20 + 16
    check(index, model)


@pytest.mark.parametrize("index_type", ["hnsw", "ivf", "int8"])
def test_approximate_types(model, folder, index_type, monkeypatch):
    pytest.importorskip("faiss", reason="approximate indexes need the extra faiss")
    records = [record(n, year=n) for n in range(700)]
    index, _ = index_records(model, records, folder, index_type=index_type)
    index.add(model, [record(n, year=n) for n in range(690, 720)])
    index.remove([str(n) for n in range(0, 700, 3)])
    assert index.facts.index_type == index_type
    assert [bool(segment.structure) for segment in index.facts.segments] == [True, False]
    reader = SearchIndex.load(folder)
    queries = np.stack([model.vector(f"text {n}") for n in range(720)])
    for each in (index, reader):
        found = [hits[0].id for hits in each.search(queries, 1, model=model)]
        assert all(found[n] == str(n) for n in range(720) if n % 3 or n >= 700)
        assert not {f"{n}" for n in range(0, 700, 3)} & {hit.id for hits in each.search(queries, 9) for hit in hits}
        (hits,) = each.search(queries[1], 5, where="year > 710", model=model)
        assert len(hits) == 5 and all(hit.metadata["year"] > 710 for hit in hits)
    index.compact()
    assert [bool(segment.structure) for segment in index.facts.segments] == [True]
    assert index.search(queries[1], 5, model=model) == reader.search(queries[1], 5, model=model)
    monkeypatch.setattr(updates, "STRUCTURE_FROM", 20)
    assert STRUCTURE_FROM > 20
    index.add(model, [record(n, year=n) for n in range(1000, 1030)])
    assert [bool(segment.structure) for segment in index.facts.segments] == [True, True]
    assert index.search(model.vector("text 1003"), 1, model=model)[0][0].id == "1003"


def test_a_folder_of_0_1_0_takes_documents(tmp_path, monkeypatch):
    from bgekit import FlagModel

    written = Path(__file__).parents[1] / "written_by_0_1_0" / "written.tar.xz"
    with tarfile.open(written) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    model, index = FlagModel("model", devices="cpu", use_fp16=False), SearchIndex.load("index")
    assert (index.documents, index.facts.generation) == (12, 0)
    report = index.add(model, [Record("d0", "another text"), Record("d12", "a mountain")])
    assert (report.added, report.removed, len(index)) == (2, 1, 13)
    assert index.remove(["d1"]).documents == 1
    assert sorted(content(index)) == sorted({f"d{n}" for n in range(13)} - {"d1"})
    assert (tmp_path / "index" / "ids.npy").exists()
    index.compact()
    assert [hit.id for hit in index.ask(model, ["a mountain"], 1)[0]] == ["d12"]
    # What the files hold is again what the index holds.
    report = index_records(model, read_records("corpus.jsonl"), "index")[1]
    assert (report.texts, report.texts - report.kept) == (12, 2)


class TestDamage:
    """What is missing or damaged is an error that names the file, also of later segments."""

    @pytest.fixture
    def segments(self, index, model, folder):
        index.add(model, [record("a", year=1), record(3, "b", year=2)])
        return folder

    @pytest.mark.parametrize(
        "name", ["vectors.npy", "rows.jsonl", "offsets.npy", "metadata.arrow", "deleted-000001.npy"]
    )
    @pytest.mark.parametrize("change", ["gone", "short", "empty"])
    def test_files(self, segments, name, change):
        path = segments / name if name.startswith("deleted") else segments / "segment-000001" / name
        before = path.read_bytes()
        path.unlink()
        if change != "gone":
            path.write_bytes(before[: len(before) // 2 if change == "short" else 0])
        with pytest.raises(OutputError, match=name.replace(".", r"\.")):
            SearchIndex.load(segments)

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda facts: facts | {"version": 9}, "version 9"),
            (lambda facts: facts | {"segments": [{"folder": ""}]}, "damaged"),
            (lambda facts: facts | {"extra": 1}, "damaged"),
            (lambda facts: {name: facts[name] for name in facts if name != "generation"}, "damaged"),
            (lambda facts: facts | {"deleted": facts["deleted"] | {"rows": 2}}, "another state"),
        ],
    )
    def test_facts(self, segments, change, said):
        path = segments / "index.json"
        path.write_text(json.dumps(change(json.loads(path.read_text()))))
        with pytest.raises(OutputError, match=said):
            SearchIndex.load(segments)

    def test_one_writer_at_a_time(self, segments, index, model):
        with OutputFolder(segments):
            for change in (lambda: index.add(model, [record("x")]), lambda: index.remove(["a"]), index.compact):
                with pytest.raises(OutputError, match=rf"being written by process {os.getpid()}: wait for it"):
                    change()
            assert len(SearchIndex.load(segments)) == 21

    def test_no_index(self, tmp_path, model):
        with pytest.raises(OutputError, match="not an index"):
            updates.remove_documents(tmp_path, ["a"])
        assert not list(tmp_path.iterdir())


def changes(model, path):
    """Changes of an index, one of each sort."""
    path = write(path, [{"id": str(n), "text": f"line {n}", "year": n} for n in range(15, 30)])

    def synchronise(opened):
        index_records(model, read_records(path, keep="year"), opened.folder)

    def add(opened):
        opened.add(model, [record(n, f"changed {n}", year=n) for n in range(18, 23)])

    return [add, lambda opened: opened.remove(["3", "4"]), lambda opened: opened.compact(), synchronise]


class Gone(BaseException):
    """The end of a process in the middle of a write."""


@contextlib.contextmanager
def broken_off(how):
    """What comes of a change whose disk is full (but for the try that ends well), or whose process is gone."""
    try:
        yield
    except Gone:
        assert how == "killed"
    except OutputError as error:
        assert how == "full" and re.search("cannot write .*: No space left on device", str(error))  # noqa: PT017


@pytest.mark.parametrize("how", ["full", "killed"])
def test_a_change_that_breaks_off_at_any_write_leaves_the_old_state(index, model, folder, tmp_path, monkeypatch, how):
    """At each write of each change in turn: the disk is full, or the process is gone without a word."""
    index.add(model, [record("a", year=1), record(3, "b", year=2)])
    model.encode(["x"])
    original = os.replace
    for number, change in enumerate(changes(model, tmp_path / "corpus.jsonl")):
        old = content(SearchIndex.load(folder))
        for at in range(100):
            copy = tmp_path / f"copy-{number}-{at}"
            shutil.copytree(folder, copy)
            done = 0

            def replace(source, target, at=at):
                nonlocal done
                done += 1
                if done > at:
                    raise OSError(errno.ENOSPC, "No space left on device") if how == "full" else Gone
                original(source, target)

            with monkeypatch.context() as patched:
                patched.setattr(os, "replace", replace)
                if how == "killed":  # Nobody tidies up.
                    patched.setattr(Path, "unlink", lambda *_, **__: None)
                    patched.setattr(shutil, "rmtree", lambda *_, **__: None)
                with broken_off(how):
                    change(SearchIndex.load(copy))
            after = content(SearchIndex.load(copy))
            if done <= at:
                new = after
                break
            assert after == old
            # It can be done again, and leaves nothing of the first try.
            change(SearchIndex.load(copy))
            again = SearchIndex.load(copy)
            named = {segment.folder for segment in again.facts.segments}
            assert {each.name for each in copy.iterdir() if each.is_dir()} == named - {""}
            assert not list(copy.glob("**/*.tmp"))
            new = content(again)
            shutil.rmtree(copy)
        assert at > 1
        change(SearchIndex.load(folder))
        assert content(SearchIndex.load(folder)) == new
    check(SearchIndex.load(folder), model)


def test_random_changes(model, folder, tmp_path):
    """Whatever is done in whatever order, the index holds what a dictionary does."""
    generator, held = random.Random(0), {}
    index, _ = index_records(model, [record(0, n=0)], folder)
    held["0"] = ("text 0", {"n": 0})
    reader = SearchIndex.load(folder)
    for _ in range(40):
        what = generator.choice(["add", "add", "remove", "where", "compact", "sync"])
        names = generator.sample(range(40), generator.randint(1, 12))
        records = [record(n, f"text {generator.randint(0, 50)}", n=generator.randint(0, 9)) for n in names]
        if what == "add":
            index.add(model, records)
            held |= {each.id: (each.text, dict(each.metadata)) for each in records}
        elif what == "remove":
            index.remove(map(str, names), ignore_missing=True)
            held = {name: known for name, known in held.items() if int(name) not in names}
        elif what == "where" and index.metadata is not None:
            index.remove(where="n < 3")
            held = {name: known for name, known in held.items() if known[1]["n"] >= 3}
        elif what == "compact":
            index.compact()
        elif what == "sync":
            kept = generator.sample(sorted(held), len(held) // 2)
            records += [Record(name, held[name][0], metadata=held[name][1]) for name in kept if int(name) not in names]
            index_records(model, records, folder)
            held = {each.id: (each.text, dict(each.metadata)) for each in records}
            index.refresh()
        assert content(index) == held
        assert index.documents == len(held)
        if generator.random() < 0.3:
            reader.refresh()
            assert content(reader) == held
            check(reader, model)


def test_messages_of_readers_and_writers(index, model, caplog):
    with caplog.at_level(logging.WARNING):
        index.add(model, [record("a")])
        index.remove(["a"])
        index.compact()
    assert not caplog.messages


def held_after(number, held):
    """What is done in the change of a number, and what the index holds after it."""
    generator = random.Random(number)
    what = generator.choice(["add", "add", "remove", "where", "compact", "synchronise"])
    names = [f"d{each}" for each in generator.sample(range(400), 60)]
    new = {name: generator.randint(0, 99) for name in names}
    if what == "add":
        return (what, new), held | new
    if what == "remove":
        gone = generator.sample(sorted(held), len(held) // 8)
        return (what, gone), {name: n for name, n in held.items() if name not in gone}
    if what == "where":
        least = generator.randint(0, 30)
        return (what, least), {name: n for name, n in held.items() if n >= least}
    if what == "synchronise":
        kept = {name: held[name] for name in generator.sample(sorted(held), len(held) * 3 // 4)}
        return (what, kept | new), kept | new
    return (what, None), held


def numbered(held):
    return [Record(name, f"{name} is {n}", metadata={"n": n}) for name, n in held.items()]


def changing(folder, model, number, held, told):
    """One change after another, until the process is killed; what is done is told."""
    index = SearchIndex.load(folder)
    while True:
        (what, which), held = held_after(number, held)
        if what == "add":
            index.add(model, numbered(which))
        elif what == "remove":
            index.remove(which)
        elif what == "where":
            index.remove(where=f"n < {which}")
        elif what == "compact":
            index.compact()
        else:
            index_records(model, numbered(which), folder)
        os.write(told, b"%d\n" % number)
        number += 1


def reading(folder, model, done):
    """Opens, refreshes and searches; every answer is one whole state."""
    rounds = 0
    while not done.exists():
        index = SearchIndex.load(folder)
        for _ in range(5):
            rounds += 1
            table, vectors = index.metadata, index.live
            for row in random.Random(rounds).sample(range(len(index)), min(5, len(index))):
                name, text = vectors.row(row)
                assert text == f"{name} is {table['n'][row].as_py()}"
                assert np.array_equal(vectors.vectors(np.array([row]))[0], model.vector(text))
                (hit, *_) = index.search(model.vector(text), 2, model=model)[0]
                assert (hit.id, hit.text) == (name, text)
                (hit,) = index.ask(None, [name], 1, mode="bm25")[0]
                assert (hit.id, hit.text) == (name, text)
            index.refresh()
    return rounds


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
@pytest.mark.parametrize("kills", [6, pytest.param(100, marks=pytest.mark.slow)])
def test_a_process_that_is_killed_leaves_the_old_state_or_the_new(model, folder, tmp_path, kills):
    held = {f"d{n}": n % 100 for n in range(300)}
    index_records(model, numbered(held), folder, parts=["bm25"])
    done, generator, changes, broken = tmp_path / "done", random.Random(1), 0, 0
    reader = os.fork()
    if reader == 0:
        code = 1
        try:
            code = 0 if reading(folder, model, done) else 2
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    try:
        for _ in range(kills):
            end, told = os.pipe()
            writer = os.fork()
            if writer == 0:
                try:
                    changing(folder, model, changes, held, told)
                except BaseException:
                    traceback.print_exc()
                os._exit(1)
            os.close(told)
            time.sleep(generator.uniform(0, 0.5))
            os.kill(writer, signal.SIGKILL)
            assert os.WIFSIGNALED(os.waitpid(writer, 0)[1]), "the writer failed"
            with open(end, "rb") as said:
                finished = len(said.read().splitlines())
            for _ in range(finished):
                held = held_after(changes, held)[1]
                changes += 1
            now = {name: known["n"] for name, (_, known) in content(SearchIndex.load(folder)).items()}
            if now != held:
                broken += 1
                held = held_after(changes, held)[1]
                changes += 1
            assert now == held
    finally:
        done.touch()
        code = os.waitstatus_to_exitcode(os.waitpid(reader, 0)[1])
    assert code == 0, "the reader failed"
    print(f"{kills} kills in {changes} changes; after {broken} the change was there before it was told")
    index = SearchIndex.load(folder)
    index.remove(["d0"], ignore_missing=True)
    index.add(model, [record("d0", n=1)])
    index.compact()
    assert sorted(each.name for each in folder.iterdir()) == ["index.json", index.facts.segments[0].folder]
