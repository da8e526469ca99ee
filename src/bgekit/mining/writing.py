"""A file of JSON lines that gets its name when it is complete."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import OutputError
from .rows import line_of


def write_lines(output: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows to a file; until they are complete, what was there before stays.

    Raises:
        OutputError: it cannot be written.
    """
    write_chunks(output, map(line_of, rows))


def write_chunks(output: str | os.PathLike[str], chunks: Iterable[bytes]) -> None:
    """Write bytes to a file; as `write_lines`."""
    path = Path(output)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):  # The error that led here is the one to report.
            temporary.unlink(missing_ok=True)
