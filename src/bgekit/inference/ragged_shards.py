"""Files of a shard for outputs with a number of rows of its own for each text.

shard-00000.sparse.npz    lexical weights [n, vocabulary], as `scipy.sparse.save_npz` writes a csr array
shard-00000.multi.npy     vectors of the tokens of all texts, end to end [N, dim]
shard-00000.offsets.npy   [n + 1] int64: text i has the vectors from offsets[i] to offsets[i + 1]
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from ..errors import NumericalError, OutputError
from .ragged import LexicalCsr, Ragged

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from ..files.hashing import HashedFile
    from .pipeline import Encoded

#: Endings of the files -> the facts that hold their hashes.
RAGGED_FILES: Final = {
    ".sparse.npz": "sparse_sha256",
    ".multi.npy": "multi_vectors_sha256",
    ".offsets.npy": "offsets_sha256",
}


def write_ragged(
    create: Callable[[str], AbstractContextManager[HashedFile]],
    name: str,
    encoded: Encoded,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Write the files of a shard.

    Args:
        create: Opens a file of the folder, by its name, to be written.
        name: Name of the shard, without ending.
        encoded: Results of its texts.
        settings: Those of the manifest.

    Returns:
        Their facts: hashes, and the number of vectors.

    Raises:
        OutputError: they cannot be written.
        NumericalError: a vector is too large for the number format of the output.
    """
    outputs, facts = settings.get("outputs", ()), dict[str, Any]()

    def write(suffix: str, content: Any) -> None:
        with create(f"{name}{suffix}") as file:
            file.write(content)
            facts[RAGGED_FILES[suffix]] = file.sha256

    if "sparse" in outputs:
        csr = LexicalCsr.of(encoded.ragged["sparse"])
        shape = np.array([len(csr.indptr) - 1, settings["vocabulary"]])
        buffer = io.BytesIO()
        np.savez(
            buffer, data=csr.data, indices=csr.indices, indptr=csr.indptr, shape=shape, format=b"csr", _is_array=True
        )
        write(".sparse.npz", buffer.getbuffer())
    if "multi-vector" in outputs:
        joined = Ragged.of(encoded.ragged["multi-vector"])
        with np.errstate(over="ignore"):  # Looked for in the next line.
            values = joined.values.astype(settings["dtype"], copy=False)
        if not np.isfinite(values).all():
            raise NumericalError(f"a vector of a token is too large for {values.dtype}")
        with create(f"{name}.multi.npy") as file:
            np.save(file, values)  # type: ignore[arg-type]
            facts[RAGGED_FILES[".multi.npy"]] = file.sha256
        write(".offsets.npy", _npy(joined.offsets))
        facts["token_vectors"] = len(values)
    return facts


def _npy(array: npt.NDArray[Any]) -> memoryview:
    """An array as the bytes of a file."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getbuffer()


def read_lexical(path: Path, texts: int) -> LexicalCsr:
    """The lexical weights of the texts of a shard.

    Raises:
        OutputError: the file is missing or damaged, or holds other texts.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = LexicalCsr(arrays["data"], arrays["indices"], arrays["indptr"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise OutputError(f"{path} is missing or damaged ({error}); make it again") from error
    if len(found.indptr) != texts + 1:
        raise OutputError(f"{path} has {len(found.indptr) - 1} rows, its shard has {texts} texts; make it again")
    return found
