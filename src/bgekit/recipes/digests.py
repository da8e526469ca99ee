"""What an input is, as a digest of its content: of a file, of a folder, of a model."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from ..encoding.outputs import OutputFolder, file_sha256, file_status
from ..errors import CheckpointError
from ..models.checkpoint import resolve

#: Digests of files from this size on are kept as long as these stay untouched; smaller ones are read each time.
_LARGE: Final = 32 << 20
_KEPT: Final = "digests.json"
#: What a model's folder says of how it came about, which differs from run to run and decides nothing.
_ACCOUNTS: Final = re.compile(r"README.*|(training|pretraining|merging|merge)\.(json|html|png)|.*\.pyc")
_HUB_ID: Final = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


class Digests:
    """Digests of files and folders; those of large files are remembered in a folder."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / _KEPT
        self._known: dict[str, Any] = {}
        self._changed = False
        try:
            known = json.loads(self._file.read_bytes())
            self._known = known if isinstance(known, dict) else {}
        except (OSError, ValueError):
            pass  # None yet, or damaged: they are computed again.

    def keep(self, folder: OutputFolder) -> None:
        """Write what is remembered."""
        if self._changed:
            with folder.create(_KEPT) as file:
                file.write(json.dumps(self._known, indent=1).encode())
            self._changed = False

    def path(self, path: Path) -> str | None:
        """The digest of a file or folder, None if it is not there.

        Hidden files and checkpoints do not count, nor what a model says of its making.

        Raises:
            OutputError: it cannot be read.
        """
        if path.is_file():
            return self._of_file(path)
        if not path.is_dir():
            return None
        model = (path / "config.json").is_file()
        digest = hashlib.sha256()
        for name, file in _files(path, path):
            if not (model and _ACCOUNTS.fullmatch(file.name)):
                digest.update(f"{name}:{self._of_file(file)}\n".encode())
        return digest.hexdigest()

    def model(self, name: str) -> str | None:
        """The digest of a model in a folder or package, None if there is none; a name on the hub stands for itself."""
        folder = Path(os.path.expanduser(name))  # Which leaves ~ of nobody as it is.
        if folder.is_dir():
            return self.path(folder)
        if name.startswith("packaged:"):
            try:
                return self.path(resolve(name))
            except CheckpointError:
                return None
        return f"named {name}" if _HUB_ID.fullmatch(name) else None

    def _of_file(self, path: Path) -> str:
        status = file_status(path) if path.stat().st_size >= _LARGE else None
        if status is None:
            return file_sha256(path)
        known = self._known.get(str(path.resolve()))
        if not isinstance(known, list) or known[:-1] != status:
            known = self._known[str(path.resolve())] = [*status, file_sha256(path)]
            self._changed = True
        return str(known[-1])


def _files(folder: Path, root: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.iterdir(), key=lambda each: each.name):
        if path.name.startswith((".", "checkpoint-")) or path.name == "__pycache__":
            continue
        if path.is_dir():
            yield from _files(path, root)
        elif path.is_file():
            yield path.relative_to(root).as_posix(), path
