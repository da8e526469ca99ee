"""The manifest and the per-shard facts of a folder of encoded shards: names, reading, comparing."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..errors import OutputError

if TYPE_CHECKING:
    from .base import Embedder

logger = logging.getLogger(__name__)

MANIFEST: Final = "manifest.json"
FORMAT: Final = "bgekit shards"
VERSION: Final = 1

_FACTS: Final = frozenset(
    ("first", "texts", "tokens", "truncated", "repaired", "input_sha256", "vectors_sha256", "ids_sha256")
)


def shard_name(index: int, suffix: str) -> str:
    """Name of a file of a shard: `shard-00012.npy`."""
    return f"shard-{index:05d}{suffix}"


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a folder of shards.

    Raises:
        OutputError: it is missing, damaged, or of another kind or version.
    """
    try:
        content = _read_json(path)
    except DamagedJson as error:
        raise OutputError(f"{error}; --overwrite starts anew") from error
    if content is None:
        raise OutputError(f"{path.parent} is no folder of encoded shards: it has no {path.name}")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise OutputError(f"{path} is no manifest of encoded shards; use another folder, or --overwrite")
    if content.get("version") != VERSION:
        raise OutputError(f"{path} has version {content.get('version')}; this bgekit knows version {VERSION}")
    return content


def read_facts(path: Path) -> dict[str, Any] | None:
    """What is known of one finished shard, None when it is not finished or its facts are damaged.

    Raises:
        OutputError: the file cannot be read.
    """
    try:
        facts = _read_json(path)
    except DamagedJson as error:
        logger.warning("%s: the shard is encoded again", error)
        return None
    return facts if isinstance(facts, dict) and _FACTS <= facts.keys() else None


class DamagedJson(OutputError):
    """A file that should hold JSON does not."""


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DamagedJson(f"{path} is damaged ({error})") from error
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror or error}") from error


def json_bytes(content: dict[str, Any]) -> bytes:
    """JSON for a file; in ASCII, because ids can hold lone surrogates."""
    return (json.dumps(content, indent=1) + "\n").encode()


def describe(model: Embedder, settings: dict[str, Any]) -> dict[str, Any]:
    """The part of a manifest that is known from the start: how the vectors are made."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "complete": False,
        "model_card": model.card.to_dict(),
        "model_fingerprint": model.fingerprint,
        "precision": model.precision,
        "settings": settings,
    }


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What differs in how the vectors of two manifests are made, in words."""
    found = []
    before, now = _comparable(old), _comparable(new)
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            found.append(f"{key} was {before.get(key)!r:.80} and is {now.get(key)!r:.80} now")
    if len(found) > 1:  # A fingerprint tells nobody anything where there is something to tell.
        found = [each for each in found if not each.startswith("model fingerprint ")]
    if found and old["model_card"].get("name") != new["model_card"].get("name"):
        found.insert(0, f"model was {old['model_card'].get('name')} and is {new['model_card'].get('name')} now")
    return found


def _comparable(manifest: dict[str, Any]) -> dict[str, Any]:
    # The name a model goes by does not matter as long as the weights and the card are the same.
    card = {f"model {key}": value for key, value in manifest["model_card"].items() if key not in ("name", "family")}
    rest = {"model fingerprint": manifest["model_fingerprint"], "precision": manifest["precision"]}
    return json.loads(json.dumps(card | rest | manifest["settings"]))
