"""Indexes and encoded shards at URLs as folders of the local cache, where they can be mapped into memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..data.documents import made_here
from ..errors import OutputError
from ..files.remote import is_url
from ..files.transfer import local_copy
from ..inference.shard_stores import copied_shards
from .storage import FACTS
from .updates import BUILDING


def local_index(folder: str | os.PathLike[str]) -> Path:
    """A folder of an index or of encoded shards on the local disk; of one at a URL, the copy in the cache.

    The copy stays as long as the URL has the same, and is made again where it is damaged.

    Raises:
        OutputError: neither is at the URL, or it cannot be copied.
    """
    if not is_url(folder):
        return Path(folder)
    url = os.fspath(folder)
    made = made_here(url)
    if made is None:
        raise OutputError(f"{url} is neither an index nor a folder of encoded shards, or does not exist")
    return copied_shards(url) if made == "shards" else local_copy(url, FACTS, _files_of_index).folder


def _files_of_index(_: bytes, names: Iterable[str]) -> Iterator[str]:
    """All but what is hidden, and what a build that was killed has left."""
    for name in names:
        parts = name.split("/")
        if name != FACTS and not any(part.startswith((".", BUILDING)) for part in parts):
            yield name
