"""Reading a folder of shards that `encode_to_shards` wrote."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import OutputError
from .manifest import MANIFEST, read_manifest


def load_shards(folder: str | os.PathLike[str]) -> ShardSet:
    """The vectors, ids and manifest of a folder that `bge encode` wrote.

    Raises:
        OutputError: it is no such folder, or its run was interrupted.
    """
    return ShardSet(folder)


class ShardSet:
    """Encoded shards. Vectors are memory-mapped: what is not looked at is not read.

    Attributes:
        folder: The folder.
        manifest: The content of its manifest.json.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder / MANIFEST)
        if not self.manifest["complete"]:
            raise OutputError(f"{self.folder} is not finished: run the same bge encode again, it goes on from there")

    def __len__(self) -> int:
        return int(self.manifest["texts"])

    @property
    def dimension(self) -> int:
        """Width of the vectors."""
        return int(self.manifest["settings"]["dimension"])

    @property
    def has_texts(self) -> bool:
        """Whether the texts are stored (`bge encode --store-texts`)."""
        return bool(self.manifest["settings"]["store_texts"])

    @cached_property
    def ids(self) -> list[str]:
        """The ids of all vectors, in order."""
        return [row["id"] for shard in self.manifest["shards"] for row in self._rows(shard)]

    def texts(self) -> list[str] | None:
        """The texts of all vectors, in order; None when they are not stored."""
        if not self.has_texts:
            return None
        return [row["text"] for shard in self.manifest["shards"] for row in self._rows(shard)]

    def iter_shards(self) -> Iterator[tuple[list[str], npt.NDArray[Any]]]:
        """Ids and memory-mapped vectors [n, dimension] of each shard.

        Raises:
            OutputError: a file is missing or damaged.
        """
        for shard in self.manifest["shards"]:
            yield [row["id"] for row in self._rows(shard)], self._vectors(shard)

    def vectors(self) -> npt.NDArray[Any]:
        """All vectors [n, dimension] in memory, in the format they are stored in."""
        result = np.empty((len(self), self.dimension), dtype=self.manifest["settings"]["dtype"])
        row = 0
        for shard in self.manifest["shards"]:
            part = self._vectors(shard)
            result[row : row + len(part)] = part
            row += len(part)
        return result

    def _vectors(self, shard: dict[str, Any]) -> npt.NDArray[Any]:
        path = self.folder / shard["vectors"]
        try:
            vectors: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise OutputError(f"{path} is missing or damaged: {error}") from error
        if vectors.shape != (shard["texts"], self.dimension):
            raise OutputError(f"{path} has the shape {vectors.shape}, not {(shard['texts'], self.dimension)}")
        return vectors

    def _rows(self, shard: dict[str, Any]) -> Iterator[dict[str, str]]:
        path, count = self.folder / shard["ids"], 0
        try:
            with path.open("rb") as file:
                for line in file:
                    count += 1
                    yield json.loads(line)
        except (OSError, ValueError) as error:
            raise OutputError(f"{path} is missing or damaged: {error}") from error
        if count != shard["texts"]:
            raise OutputError(f"{path} has {count} lines, its shard has {shard['texts']} vectors")
