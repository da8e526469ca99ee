"""Weights that several processes of one machine share: what one of them has converted, the others map.

The fused CPU network keeps its weights in oneDNN's layout, made at load from those in the file, which every process
would do again and keep for itself. `share` writes them to memory that has a descriptor (Linux: memfd), which worker
processes inherit, and `opened` makes the same network of it. The table of words is not among them: it lies in the file
of the checkpoint, which is mapped anyway.

A tensor in oneDNN's layout is made of memory and a description of it, by the function that torch's compiled models
use for their constants (`aoti_torch_create_tensor_from_blob_v2`). Where torch or the system lacks what this needs,
`share` returns None, and every process makes weights of its own.
"""

from __future__ import annotations

import ctypes
import io
import logging
import mmap
import os
import pickle
import weakref
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from .encoder import FusedBackbone
from .stored_bert import stored_bert

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)
#: Tensors keep their place relative to such a line of the cache: it decides how their products are rounded.
_LINE: Final = 64
_WORDS: Final = "words"


class SharedWeights:
    """The weights of a network in memory with a descriptor, and the network around them.

    Attributes:
        handle: The descriptor of the memory.
        size: Bytes of it.
        content: The pickled network.
    """

    def __init__(self, handle: int, size: int, content: bytes) -> None:
        self.handle, self.size, self.content = handle, size, content
        weakref.finalize(self, os.close, handle)


def share(network: nn.Module, backbone: object) -> SharedWeights | None:
    """The weights of a network, for other processes; None where they cannot be shared.

    Args:
        network: The network.
        backbone: What computes its transformer.
    """
    if not isinstance(backbone, FusedBackbone) or backbone.folder is None or not hasattr(os, "memfd_create"):
        return None
    if _tensor_of_blob() is None:
        return None
    handle = os.memfd_create("bgekit-weights")
    content = io.BytesIO()
    pickler = _Pickler(content, handle, backbone.fused.words)
    try:
        pickler.dump(network)
    except (pickle.PicklingError, TypeError, AttributeError, OSError, RuntimeError) as error:
        os.close(handle)  # No memory for a second copy, or something in the network cannot be written down.
        logger.info("workers make weights of their own, as these cannot be shared: %s", error)
        return None
    return SharedWeights(handle, pickler.end, content.getvalue())


def opened(handle: int, size: int, content: bytes, folder: Path) -> Any:
    """The network that `share` was given.

    Args:
        handle: The descriptor of the memory.
        size: Bytes of it.
        content: The pickled network.
        folder: The checkpoint.
    """
    # A private mapping: nobody can write into the weights of another process.
    memory = mmap.mmap(handle, size, access=mmap.ACCESS_COPY)
    stored = stored_bert(folder)
    assert stored is not None, "share has seen it"
    network: Any = _Unpickler(content, memory, stored.embeddings.word_embeddings.weight).load()
    network.memory = memory  # Tensors in oneDNN's layout do not hold it themselves.
    return network


class _Pickler(pickle.Pickler):
    """Writes tensors to memory of their own, and where they are in place of them."""

    def __init__(self, file: io.BytesIO, handle: int, words: Tensor) -> None:
        super().__init__(file, protocol=5)
        self.handle, self.words, self.end = handle, words, 0
        #: Places by the identity of tensors, which live as long as the network.
        self._places: dict[int, tuple[Any, ...]] = {}

    def persistent_id(self, value: Any) -> Any:
        """None for what is no tensor."""
        if not isinstance(value, Tensor) or isinstance(value, nn.Parameter):  # The latter have a tensor in them.
            return None
        if value is self.words:
            return _WORDS
        if id(value) not in self._places:
            self._places[id(value)] = self._written(value)
        return self._places[id(value)]

    def _written(self, tensor: Tensor) -> tuple[Any, ...]:
        description = None
        if tensor.is_mkldnn:
            address, size = torch.ops.mkldnn.data_ptr(tensor), torch.ops.mkldnn._nbytes(tensor)
            description = torch.ops.mkldnn._get_mkldnn_serialized_md(tensor).numpy().tobytes()
        else:
            tensor = tensor.detach().contiguous()
            address, size = tensor.data_ptr(), tensor.nbytes
        start = -(-self.end // _LINE) * _LINE + address % _LINE
        self.end = start + size
        os.ftruncate(self.handle, self.end)
        os.pwrite(self.handle, ctypes.string_at(address, size), start)
        return start, size, tensor.dtype, tuple(tensor.shape), description


class _Unpickler(pickle.Unpickler):
    """Makes tensors of memory."""

    def __init__(self, content: bytes, memory: mmap.mmap, words: Tensor) -> None:
        super().__init__(io.BytesIO(content))
        self.memory, self.words = memory, words

    def persistent_load(self, place: Any) -> Tensor:
        """The tensor that was written to a place."""
        if place == _WORDS:
            return self.words
        start, size, dtype, shape, description = place
        if description is not None:
            make = _tensor_of_blob()
            assert make is not None, "the process that wrote it is of the same torch"
            return make(self.memory, start, dtype, shape, description)
        if not size:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(self.memory, dtype=dtype, count=size // dtype.itemsize, offset=start).view(shape)


@lru_cache(maxsize=1)
def _tensor_of_blob() -> Callable[[mmap.mmap, int, torch.dtype, tuple[int, ...], bytes], Tensor] | None:
    """The function that makes a tensor in oneDNN's layout of memory; None where torch does not have it."""
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        create, layout = library.aoti_torch_create_tensor_from_blob_v2, library.aoti_torch_layout__mkldnn()
        codes = {
            torch.float32: library.aoti_torch_dtype_float32(),
            torch.bfloat16: library.aoti_torch_dtype_bfloat16(),
            torch.int8: library.aoti_torch_dtype_int8(),
        }
        steal = torch._C._aoti.alloc_tensor_by_stealing_from_void_ptr
        for name in ("data_ptr", "_nbytes", "_get_mkldnn_serialized_md"):
            getattr(torch.ops.mkldnn, name)
    except (OSError, AttributeError) as error:
        logger.debug("this torch cannot share weights in oneDNN's layout: %s", error)
        return None
    capsule = ctypes.pythonapi.PyCapsule_New
    capsule.restype, capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]

    def make(memory: mmap.mmap, start: int, dtype: torch.dtype, shape: tuple[int, ...], description: bytes) -> Tensor:
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory, start))
        integers = ctypes.c_int64 * len(shape)
        strides = torch.empty(shape, device="meta").stride()
        made = ctypes.c_void_p()
        failed = create(
            ctypes.c_void_p(address), ctypes.c_int64(len(shape)), integers(*shape), integers(*strides),
            ctypes.c_int64(0), ctypes.c_int32(codes[dtype]), ctypes.c_int32(0), ctypes.c_int32(0), ctypes.byref(made),
            ctypes.c_int32(layout), description, ctypes.c_int64(len(description)),
        )  # fmt: skip
        if failed:
            raise RuntimeError("torch makes no tensor of shared memory")
        tensor: Tensor = steal(capsule(made, None, None))
        return tensor

    return make
