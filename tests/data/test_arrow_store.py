"""Rows in Arrow files: any of them by its number, and notes that come last."""

from __future__ import annotations

import pickle

import pytest

from bgekit.data.arrow_store import ArrowStore, stored, write_batches
from bgekit.errors import DataError, OutputError
from bgekit.files.atomic import atomic_file

pa = pytest.importorskip("pyarrow")
SCHEMA = pa.schema([("text", pa.string()), ("number", pa.int32())])


def batches(sizes):
    start = 0
    for size in sizes:
        rows = [{"text": f"text {number}", "number": number} for number in range(start, start + size)]
        yield pa.RecordBatch.from_pylist(rows, schema=SCHEMA)
        start += size


def write(path, sizes, notes=dict):
    with atomic_file(path) as file:
        write_batches(file, SCHEMA, batches(sizes), notes)
    return ArrowStore(path)


@pytest.mark.parametrize("sizes", [(), (3,), (4, 4), (4, 4, 1)])
def test_any_row_by_its_number(tmp_path, sizes):
    for notes in ({}, {"seen": 3}):
        store = write(tmp_path / "a.arrow", sizes, lambda notes=notes: notes)
        again = pickle.loads(pickle.dumps(store))
        for each in (store, again):
            assert len(each) == sum(sizes) and each.notes == notes
            assert [each.value("text", number) for number in range(len(each))] == [
                f"text {n}" for n in range(len(each))
            ]
            assert each.column("number").tolist() == list(range(sum(sizes)))
        store.close()


def test_what_is_damaged_is_made_anew_and_what_fails_leaves_nothing(tmp_path, caplog):
    path = tmp_path / "cache" / "a.arrow"
    with pytest.raises(OutputError, match=r"cannot write numbers to \S+cache: full\. Name another .* --cache-path"):
        stored(path, lambda: ArrowStore(path), lambda file: (_ for _ in ()).throw(OSError(28, "full")), "numbers")
    assert not list(path.parent.iterdir())

    def make(file):
        write_batches(file, SCHEMA, batches([2]), dict)

    assert len(stored(path, lambda: ArrowStore(path), make, "numbers")) == 2
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="is damaged"):
        ArrowStore(path)
    assert len(stored(path, lambda: ArrowStore(path), make, "numbers")) == 2 and "made again" in caplog.text
