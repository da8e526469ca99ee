"""Tensors on disk, a block of rows at a time: read without mapping the file, written without having them all.

Every tensor is seen as a table [rows, width]: its first dimension, and all others together. A mapped file would count
as memory of the process as far as it was read; what is read here is gone with the block.
"""

from __future__ import annotations

import json
import math
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..models.weights import read_tensors, safetensors_header

#: Elements of a block: 0.5 MB in float64, which caches hold and the heap uses again.
BLOCK: Final = 1 << 16
_DTYPES: Final = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_NAMES: Final = {dtype: name for name, dtype in _DTYPES.items()}
#: Rows of a tensor -> these [n, width].
ReadRows: TypeAlias = Callable[[slice], Tensor]


@dataclass(frozen=True)
class Stored:
    """A tensor on disk.

    Attributes:
        dtype: The type that it is stored in.
        shape: Its shape.
        read: Reads rows of it, in the type that it is stored in or, where they are computed, in float64.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    read: ReadRows

    @property
    def rows(self) -> int:
        """Rows of the table; 1 of a scalar."""
        return self.shape[0] if self.shape else 1

    @property
    def width(self) -> int:
        """Columns of the table."""
        return math.prod(self.shape[1:])

    def blocks(self) -> list[slice]:
        """All rows, in slices of about `BLOCK` elements."""
        step = max(1, BLOCK // max(self.width, 1))
        return [slice(start, min(start + step, self.rows)) for start in range(0, self.rows, step)]

    def whole(self) -> Tensor:
        """The tensor itself."""
        return self.read(slice(0, self.rows)).reshape(self.shape)


def stored_tensors(file: Path) -> dict[str, Stored]:
    """The tensors of a weight file by their names; none is read.

    Raises:
        CheckpointError: the file is damaged, or holds a type that cannot be merged.
    """
    if file.suffix != ".safetensors":
        return _pickled(file)
    header = safetensors_header(file)
    with file.open("rb") as content:
        (length,) = struct.unpack("<Q", content.read(8))
    found = {}
    for name, entry in header.items():
        if entry["dtype"] not in _DTYPES:
            raise CheckpointError(f"{file} stores {name} as {entry['dtype']}: quantised weights cannot be merged")
        dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        if end - begin != math.prod(shape) * dtype.itemsize:
            raise CheckpointError(f"{file} is damaged: {name} has {end - begin:,} bytes, not those of its shape")
        found[name] = Stored(dtype, shape, _Rows(file, 8 + length + begin, dtype, math.prod(shape[1:])))
    return found


@dataclass(frozen=True)
class _Rows:
    file: Path
    start: int
    dtype: torch.dtype
    width: int

    def __call__(self, rows: slice) -> Tensor:
        count, size = rows.stop - rows.start, self.width * self.dtype.itemsize
        content = bytearray(count * size)
        try:
            with self.file.open("rb") as file:
                file.seek(self.start + rows.start * size)
                read = file.readinto(content)
        except OSError as error:
            raise CheckpointError(f"cannot read {self.file}: {error.strerror or error}") from error
        if read != len(content):
            raise CheckpointError(f"{self.file} is cut off")
        if not content:
            return torch.empty(count, self.width, dtype=self.dtype)
        return torch.frombuffer(content, dtype=self.dtype).view(count, self.width)


def _pickled(file: Path) -> dict[str, Stored]:
    """A pickle's tensors; one of before torch 1.6, which cannot be mapped, stays in memory."""

    def load() -> dict[str, Tensor]:
        return {name: value for name, value in read_tensors(file) if isinstance(value, Tensor)}

    tensors = load()
    kept = None if zipfile.is_zipfile(file) else tensors

    def reader(name: str) -> ReadRows:
        def read(rows: slice) -> Tensor:
            # Opened anew each time: what was mapped goes with it.
            tensor = (load() if kept is None else kept)[name]
            return tensor.reshape(tensor.shape[0] if tensor.ndim else 1, -1)[rows].clone()

        return read

    places: dict[object, str] = {}
    found = {}
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES:
            raise CheckpointError(f"{file} stores {name} as {tensor.dtype}, which cannot be merged")
        # Tied weights are one storage under two names: both read the first.
        place = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride())
        found[name] = Stored(tensor.dtype, tuple(tensor.shape), reader(places.setdefault(place, name)))
    return found


def write_safetensors(file: Path, tensors: Mapping[str, Stored], blocks: Callable[[str], Iterable[Tensor]]) -> None:
    """Write a safetensors file, one block after the other.

    Args:
        file: The file to make.
        tensors: Name, type and shape of each tensor.
        blocks: The rows of a tensor, in order, in the type that it is stored in.

    Raises:
        OSError: it cannot be written.
    """
    header, names = _header(tensors)
    with file.open("wb") as output:
        output.write(header)
        for name in names:
            written = 0
            for block in blocks(name):
                assert block.dtype == tensors[name].dtype
                if block.numel():
                    written += output.write(block.contiguous().view(-1).view(torch.uint8).numpy().data)
            assert written == math.prod(tensors[name].shape) * tensors[name].dtype.itemsize, name


def _header(tensors: Mapping[str, Stored]) -> tuple[bytes, Sequence[str]]:
    """The bytes before the data, and the names in the order of the data (as the format asks for: wide types first)."""
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    content: dict[str, object] = {"__metadata__": {"format": "pt"}}
    for name, (begin, end) in zip(names, _places(tensors[name] for name in names), strict=True):
        tensor = tensors[name]
        content[name] = {"dtype": _NAMES[tensor.dtype], "shape": tensor.shape, "data_offsets": [begin, end]}
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, names


def _places(tensors: Iterable[Stored]) -> Iterator[tuple[int, int]]:
    end = 0
    for tensor in tensors:
        begin, end = end, end + math.prod(tensor.shape) * tensor.dtype.itemsize
        yield begin, end
