"""Models that are merged: a checkpoint, or a LoRA adapter together with its base."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ..errors import CheckpointError
from ..models.card import DenseLayer
from ..models.checkpoint import RENAMED, refuse_low_rank, resolve, weight_files
from ..models.config import read_config
from ..models.encoder import encoder_class
from ..models.loading import stored_prefix
from ..models.saving import weights_digest
from ..reranking.card import is_classifier
from ..reranking.network import classifier_class
from .adapters import Adapter, is_adapter
from .tensors import Stored, stored_tensors

logger = logging.getLogger(__name__)

#: What a class with a head puts before the names of its transformer's weights.
_PREFIX: Final = re.compile(
    r"^(bert|roberta|distilbert|mpnet|electra|deberta|ernie|camembert|xlm_roberta|transformer|model)\."
)
#: Weights that an embedding is not computed with; one model may have them and another not.
_UNUSED: Final = re.compile(r"(^|\.)(pooler|cls|lm_head|position_ids|predictions)(\.|$)")
#: One weight under two names, of which a checkpoint may have either.
_TIED: Final = (("shared.weight", "encoder.embed_tokens.weight"),)


@dataclass(frozen=True)
class Options:
    """How models are found, and how far they are trusted (see `bgekit.models.checkpoint.resolve`)."""

    revision: str | None = None
    cache_dir: str | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False


@dataclass
class Source:
    """A model whose weights are merged.

    Attributes:
        name: As the caller gave it.
        folder: Checkpoint with config, tokenizer and card: the base's, for an adapter.
        options: How it was found.
        tensors: Its weights by the names in the checkpoint; adapters added.
        files: For each of its weight files the names in it.
        adapter: The adapter, None for a checkpoint.
        adapters: Its folder and those of adapters below it, whose side files count more than the checkpoint's.
    """

    name: str
    folder: Path
    options: Options
    tensors: Mapping[str, Stored]
    files: Mapping[Path, list[str]]
    adapter: Adapter | None = None
    adapters: tuple[Path, ...] = ()
    _cores: dict[str, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._cores = {_core(name): name for name in self.tensors}

    def find(self, name: str) -> str | None:
        """Its own name of the weight that another model calls `name`, None if it has none."""
        if name in self.tensors:
            return name
        names = [name, *(other for pair in _TIED if name in pair for other in pair)]
        return next((self._cores[_core(each)] for each in names if _core(each) in self._cores), None)

    def dense(self, layer: DenseLayer) -> dict[str, Stored]:
        """`weight` and `bias` of a dense layer behind the pooling."""
        places = [each / layer.folder for each in (*self.adapters, self.folder)]
        # Where none has weights, the error names the checkpoint's own.
        place = next((each for each in places if _has_weights(each)), places[-1])
        files = weight_files(place, allow_pickle=self.options.allow_pickle)
        return {name.removeprefix("linear."): value for file in files for name, value in stored_tensors(file).items()}

    @property
    def tokenizer_folder(self) -> Path:
        """Where its tokenizer is: beside an adapter, if that brings one."""
        return next((each for each in self.adapters if (each / "tokenizer.json").is_file()), self.folder)

    def digest(self) -> dict[str, str]:
        """sha256 (hex) of its weights, and of an adapter's."""
        found = {"weights": weights_digest(self.folder, allow_pickle=self.options.allow_pickle)}
        if self.adapter is not None:
            from ..encoding.outputs import file_sha256

            found = {"base": str(self.folder), "base_weights": found["weights"]}
            found["adapter_weights"] = file_sha256(self.adapter.file)
        return found


def open_source(name: str, options: Options) -> Source:
    """The model of a name or folder; no weights are read yet.

    Raises:
        CheckpointError: there is no such model, or its files are damaged.
    """
    path = Path(name).expanduser()
    folder = path if is_adapter(path) and not (path / "config.json").is_file() else _resolved(name, options)
    if is_adapter(folder) and not _has_weights(folder):
        return _adapted(name, folder, options)
    prefix = _prefix(folder, options)
    found, files = dict[str, Stored](), {}
    for file in weight_files(folder, allow_pickle=options.allow_pickle):
        tensors = {name.removeprefix(prefix): value for name, value in stored_tensors(file).items()}
        files[file] = list(tensors)
        found |= tensors
    refuse_low_rank(folder, found)
    return Source(name, folder, options, found, files)


def _prefix(folder: Path, options: Options) -> str:
    """What a wrapper has put before the names of weights; the merged model's do without."""
    prefix = stored_prefix(
        folder, classifier_class if is_classifier(read_config(folder)) else encoder_class,
        trust_remote_code=options.trust_remote_code, allow_pickle=options.allow_pickle,
    )  # fmt: skip
    if prefix:
        logger.warning("the names of the weights in %s begin with %s, which is left out", folder, prefix)
    return prefix


def is_unused(name: str) -> bool:
    """Whether no embedding depends on a weight: one model may have it and another not."""
    return _UNUSED.search(name) is not None


def _core(name: str) -> str:
    """A weight's name without what differs between classes and ages of transformers."""
    bare = _PREFIX.sub("", name)
    return re.sub(r"LayerNorm\.(gamma|beta)$", lambda old: f"LayerNorm.{RENAMED[old[1]]}", bare)


def _resolved(name: str, options: Options) -> Path:
    return resolve(
        name, revision=options.revision, cache_dir=options.cache_dir, allow_pickle=options.allow_pickle,
        trust_remote_code=options.trust_remote_code,
    )  # fmt: skip


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("model*.safetensors")) or any(folder.glob("pytorch_model*.bin"))


def _adapted(name: str, folder: Path, options: Options) -> Source:
    adapter = Adapter.read(folder, allow_pickle=options.allow_pickle)
    if not adapter.base:
        raise CheckpointError(f"{folder} is an adapter, and its adapter_config.json does not name its base model")
    # A path of the time when it was trained; beside the adapter, where both were moved together.
    moved = folder / adapter.base
    known: dict[str, Any] = {"revision": adapter.config.get("revision") or None}
    try:
        base = open_source(str(moved) if moved.is_dir() else adapter.base, Options(**{**options.__dict__, **known}))
    except CheckpointError as error:
        raise CheckpointError(f"the base model of the adapter {name}: {error}") from error
    return Source(
        name, base.folder, options, adapter.apply(base.tensors, base.find), base.files, adapter,
        (folder, *base.adapters),
    )  # fmt: skip
