"""What is known of an index, as index.json says it: how its vectors were made, and how they are searched."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from ..encoding.manifest import json_bytes
from ..encoding.outputs import OutputFolder
from ..encoding.shardset import ShardSet
from ..errors import ArgumentError, OutputError

FACTS: Final = "index.json"
APPROXIMATE: Final = "index.faiss"
FORMAT: Final = "bgekit index"
VERSION: Final = 1

IndexType = Literal["exact", "hnsw", "ivf"]
INDEX_TYPES: Final = ("exact", "hnsw", "ivf")


@dataclass(frozen=True)
class Facts:
    """How an index was made.

    Attributes:
        index_type: `exact`, `hnsw` or `ivf`.
        count: Vectors in it.
        dimension: Their width.
        model_card: Card of the model that made them.
        model_fingerprint: Of that model.
        precision: Number format that it computed in.
        settings: Of the encode: kind, maximum length, chunk size, fields of the input...
        input: What was encoded, to see whether it has changed; None when that cannot be told.
    """

    index_type: IndexType
    count: int
    dimension: int
    model_card: dict[str, Any]
    model_fingerprint: str
    precision: str
    settings: dict[str, Any]
    input: Any = field(default=None)

    @property
    def model_name(self) -> str:
        """The name that the model was given by."""
        return str(self.model_card["name"])

    @property
    def similarity(self) -> str:
        """`cosine` or `dot`, or `euclidean` for vectors of length 1."""
        return str(self.model_card["similarity"])

    @property
    def unit_vectors(self) -> bool:
        """Whether all stored vectors have length 1; in float16 they have it only nearly."""
        return bool(self.model_card["normalize"]) and self.settings["dtype"] == "float32"

    @property
    def chunked(self) -> bool:
        """Whether documents were split into passages."""
        return self.settings.get("chunk_size") is not None


def check_similarity(name: str, similarity: str, *, unit_vectors: bool) -> None:
    """Raise ArgumentError if a model's vectors are compared in a way that indexes cannot.

    Of vectors of length 1 the Euclidean distance has the same order as the dot product.
    """
    if similarity == "manhattan" or (similarity == "euclidean" and not unit_vectors):
        raise ArgumentError(
            f"vectors of {name} are compared by their {similarity} distance, indexes by cosine or dot product: score "
            "them with model.similarity"
        )


def facts_of_shards(shards: ShardSet, index_type: IndexType = "exact", source: Any = None) -> Facts:
    """The facts of an index over encoded shards.

    Raises:
        ArgumentError: their vectors are not compared by cosine or dot product.
    """
    manifest = shards.manifest
    card = manifest["model_card"]
    check_similarity(card["name"], card["similarity"], unit_vectors=card["normalize"])
    return Facts(
        index_type, len(shards), shards.dimension, manifest["model_card"], manifest["model_fingerprint"],
        manifest["precision"], manifest["settings"], source,
    )  # fmt: skip


def read_facts(folder: Path) -> Facts:
    """The facts of an index folder.

    Raises:
        OutputError: they are missing, damaged, or of another kind or version.
    """
    path = folder / FACTS
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise OutputError(f"{folder} is no index: it has no {FACTS}") from error
    except ValueError as error:
        raise OutputError(f"{path} is damaged ({error}); build the index again") from error
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror or error}") from error
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise OutputError(f"{path} does not describe an index; build it in another folder")
    version = content.pop("version", None)
    if version != VERSION:
        raise OutputError(f"{path} has version {version}; this bgekit knows version {VERSION}. Build the index again")
    if content.keys() != {each.name for each in dataclasses.fields(Facts)}:
        raise OutputError(f"{path} is damaged (other fields than it should have); build the index again")
    return Facts(**content)


def write_facts(folder: OutputFolder, facts: Facts) -> None:
    """Write index.json, the last file of an index."""
    with folder.create(FACTS) as file:
        file.write(json_bytes({"format": FORMAT, "version": VERSION, **dataclasses.asdict(facts)}))
    folder.sync()
