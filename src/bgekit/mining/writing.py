"""Files that get their names when they are complete."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import OutputError
from .rows import line_of


def write_lines(output: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows to a file; until they are complete, what was there before stays.

    Raises:
        OutputError: it cannot be written.
    """
    write_together([(output, map(line_of, rows))])


def write_together(files: Sequence[tuple[str | os.PathLike[str], Iterable[bytes]]]) -> None:
    """Write bytes to files; none gets its name before all are complete. Otherwise as `write_lines`."""
    unnamed: dict[Path, Path] = {}
    try:
        for name, chunks in files:
            path = Path(name)
            unnamed[path] = path.with_name(f".{path.name}.tmp")
            with _writing(path), unnamed[path].open("wb") as file:
                for chunk in chunks:
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
        for path, temporary in unnamed.items():
            with _writing(path):
                os.replace(temporary, path)
    finally:
        for temporary in unnamed.values():
            with contextlib.suppress(OSError):  # The error that led here is the one to report.
                temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
