"""What pipelines of Ray Data need beside an encoder: a reader that keeps strings, and a sink that writes shards.

`bge encode --ray` does without Ray Data, whose order and failure semantics are its own (docs/scale.md); these are for
those whose pipeline it is.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable, Iterator
from typing import Any, Final

import numpy as np

from ..data.formats import STDIN
from ..data.records import Place, Record, RecordReader, read_records
from ..errors import ArgumentError, DataError, import_extra
from ..files.atomic import OutputFolder, SharedFolder
from ..inference.pipeline import Encoded
from ..inference.shard_stores import METADATA, LocalShards, shard_name
from ..inference.shards import (
    SHARD_SIZE,
    Dtype,
    Shard,
    ShardPlan,
    ShardPlanner,
    ShardRun,
    describe,
    prepared,
    write_shard,
)
from .recipes import ModelRecipe

_ray: Any = import_extra("ray", "ray")
_data: Any = import_extra("ray.data", "ray")
_block: Any = import_extra("ray.data.block", "ray")
_datasource: Any = import_extra("ray.data.datasource", "ray")
#: Rows of a block that the reader gives.
_ROWS: Final = 4096
#: From here on shards are numbered whose place in the order is not known yet.
_UNPLACED: Final = 1 << 40


def read_texts(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], **reading: Any) -> Any:
    """A dataset of Ray Data with the columns `id` and `text`, both strings as they are in the files.

    Ray's own `read_json(lines=True)` makes the number 1 of an id "0001" in a file where all are digits. A file is read
    by one task. Records without an id are numbered in their file, behind its name.

    Args:
        paths: As `read_records` takes them; all nodes must see them.
        reading: Further arguments of `read_records`.

    Raises:
        DataError: a file cannot be read.
        MissingExtraError: the package `ray` is not installed.

    Example:
        >>> from bgekit.distributed import BgeEncoder, read_texts
        >>> texts = read_texts("corpus/*.jsonl")  # doctest: +SKIP
        >>> texts.map_batches(BgeEncoder, fn_constructor_args=["BAAI/bge-m3"], concurrency=4)  # doctest: +SKIP
    """
    reader = read_records(paths, **reading)
    if STDIN in reader.files:
        raise ArgumentError("standard input (-) cannot be read by other machines: give files that all nodes see")
    reader.name_rows()

    return _data.read_datasource(_Texts(reader))


class _Texts(_datasource.Datasource):
    """The files of a reader, a task for each."""

    def __init__(self, reader: RecordReader) -> None:
        self._reader = reader

    def estimate_inmemory_data_size(self) -> int | None:
        """Bytes of the files."""
        return self._reader.size

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[Any]:
        """A task for each file, however many are wanted."""
        shared = _ray.put(self._reader)

        def task(number: int, file: str) -> Any:
            metadata = _block.BlockMetadata(num_rows=None, size_bytes=None, input_files=[file], exec_stats=None)
            return _datasource.ReadTask(lambda: _tables(_ray.get(shared), number), metadata)

        return [task(number, file) for number, file in enumerate(self._reader.files)]


def _tables(reader: RecordReader, source: int) -> Iterator[Any]:
    """Tables of the records of one file."""
    import pyarrow

    schema = pyarrow.schema([("id", pyarrow.string()), ("text", pyarrow.string())])
    ids, texts = list[str](), list[str]()
    for record in reader.at(Place(source)):
        if record.place is None or record.place.source != source:
            break
        ids.append(record.id)
        texts.append(record.text)
        if len(ids) == _ROWS:
            yield pyarrow.table([ids, texts], schema=schema)
            ids, texts = [], []
    yield pyarrow.table([ids, texts], schema=schema)


class ShardDatasink(_datasource.Datasink):
    """A sink of Ray Data (`Dataset.write_datasink`) that writes shards as `bge encode` does, for `load_shards`.

    Rows are in the order in which Ray Data hands them over: that of the input only where it was told to preserve it,
    so ids tell which vector is which. A write task that is repeated leaves nothing behind, and the manifest comes last.

    Example:
        >>> from bgekit.distributed import ModelRecipe, ShardDatasink
        >>> sink = ShardDatasink("/shared/vectors", ModelRecipe("BAAI/bge-m3"))  # doctest: +SKIP
        >>> vectors.write_datasink(sink)  # doctest: +SKIP
    """

    def __init__(
        self, folder: str | os.PathLike[str], model: ModelRecipe, *, id_column: str = "id", text_column: str = "text",
        vector_column: str = "embedding", kind: str = "document", shard_size: int = SHARD_SIZE,
        dtype: Dtype = "float32", store_texts: bool = False, overwrite: bool = False,
    ) -> None:  # fmt: skip
        """A sink.

        Args:
            folder: The output, which all nodes see under the same path.
            model: What has made the vectors; it is loaded once, where the sink is used, for the manifest.
            id_column: Column of ids.
            text_column: Column of texts.
            vector_column: Column of vectors.
            kind: The role that texts were encoded in.
            shard_size: Most texts of a shard.
            dtype: Number format of the stored vectors.
            store_texts: Keep the texts beside the ids.
            overwrite: Remove shards that are there.
        """
        self._folder = SharedFolder.of(folder)
        self._model, self._columns, self._overwrite = model, (id_column, text_column, vector_column), overwrite
        self._settings: dict[str, Any] = {
            "kind": kind, "max_length": model.options.get("max_length"), "batch_size": None, "dtype": dtype,
            "shard_size": shard_size, "store_texts": store_texts,
        }  # fmt: skip
        self._held = contextlib.ExitStack()
        self._run: ShardRun | None = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_held": None, "_run": None}

    def on_write_start(self, schema: Any = None) -> None:
        """Take the folder, and begin a manifest.

        Raises:
            OutputError: it holds shards, or another process writes there.
        """
        with self._model.load() as model:
            model.settle()
            _, settings = prepared(model, (), **self._settings)
            manifest = describe(model, settings)
        folder = self._held.enter_context(OutputFolder(self._folder.path))
        self._held.enter_context(folder.shared(self._folder))
        self._run = ShardRun(LocalShards(folder), manifest)
        self._run.begin(resume=False, overwrite=self._overwrite)

    def write(self, blocks: Iterable[Any], ctx: Any) -> tuple[int, list[tuple[int, dict[str, Any]]]]:
        """Write the rows of some blocks; number of the task, and number and facts of each shard."""
        store, written = LocalShards(self._folder), list[tuple[int, dict[str, Any]]]()
        for records, vectors in self._parts(blocks):
            # A number of its own, so that a task that is repeated meets nobody.
            index = _UNPLACED + secrets.randbits(40)
            shard = Shard.of(records, index=index, first=0, position=0)
            written.append((index, write_shard(store, shard, Encoded(vectors), self._settings)))
        return ctx.task_idx, written

    def on_write_complete(self, write_result: Any) -> None:
        """Give shards their numbers, and complete the manifest."""
        if self._run is None:
            return
        store, planner, first = LocalShards(self._folder), ShardPlanner((), SHARD_SIZE), 0
        parts = sorted(write_result.write_returns, key=lambda part: part[0])
        for number, (index, facts) in enumerate(each for _, written in parts for each in written):
            for suffix in (".npy", ".ids.jsonl", METADATA):
                with contextlib.suppress(FileNotFoundError):
                    os.replace(
                        self._folder.path / shard_name(index, suffix), self._folder.path / shard_name(number, suffix)
                    )
            facts = {**facts, "first": first}
            store.finish(number, facts)
            plan = ShardPlan(number, first, facts["texts"], facts["input_sha256"], first + facts["texts"])
            planner.count(plan)
            self._run.done(plan, facts)
            first += facts["texts"]
        self._remove_unplaced()
        self._run.finish(planner)
        self._held.close()

    def on_write_failed(self, error: Exception) -> None:
        """Let the folder go."""
        self._remove_unplaced()
        self._held.close()

    def _remove_unplaced(self) -> None:
        for path in self._folder.path.glob("shard-*"):
            number = path.name.removeprefix("shard-").partition(".")[0]
            if number.isdigit() and int(number) >= _UNPLACED:
                path.unlink(missing_ok=True)

    def _parts(self, blocks: Iterable[Any]) -> Iterator[tuple[list[Record], Any]]:
        """Records and vectors [n, dimension] of each shard."""
        size: int = self._settings["shard_size"]
        records, vectors = list[Record](), list[Any]()
        for block in blocks:
            columns = _block.BlockAccessor.for_block(block).to_batch_format("numpy")
            missing = [name for name in self._columns if name not in columns]
            if missing:
                raise DataError(f"the dataset has no column {' or '.join(missing)}; it has {', '.join(columns)}")
            ids, texts, rows = (columns[name] for name in self._columns)
            for id, text, row in zip(ids.tolist(), texts.tolist(), rows, strict=True):
                if not isinstance(id, str) or not isinstance(text, str):
                    raise DataError(
                        f"ids and texts are strings, not {id!r:.40} and {text!r:.40}: read_texts keeps them"
                    )
                records.append(Record(id, text))
                vectors.append(row)
                if len(records) == size:
                    yield records, np.asarray(vectors, dtype=np.float32)
                    records, vectors = [], []
        if records:
            yield records, np.asarray(vectors, dtype=np.float32)
