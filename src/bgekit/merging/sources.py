"""Models that are merged, their tensors on disk: a checkpoint, or a LoRA adapter together with its base."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CheckpointError
from ..files.hashing import file_sha256
from ..models.card import DenseLayer
from ..models.card_reading import is_classifier
from ..models.checkpoint_files import (
    ADAPTER_CONFIG,
    RENAMED,
    read_config,
    read_json,
    read_tensors,
    refuse_low_rank,
    safetensors_header,
    weight_files,
)
from ..models.hub import resolve
from ..networks.cross_encoder import classifier_class
from ..networks.encoder import encoder_class
from ..networks.loading import stored_prefix
from ..networks.saving import weights_digest
from .methods import Rows

logger = logging.getLogger(__name__)
#: What a class with a head puts before the names of its transformer's weights.
_PREFIX: Final = re.compile(
    r"^(bert|roberta|distilbert|mpnet|electra|deberta|ernie|camembert|xlm_roberta|transformer|model)\."
)
#: Weights that an embedding is not computed with; one model may have them and another not.
_UNUSED: Final = re.compile(r"(^|\.)(pooler|cls|lm_head|position_ids|predictions)(\.|$)")
#: One weight under two names, of which a checkpoint may have either.
_TIED: Final = (("shared.weight", "encoder.embed_tokens.weight"),)
#: Types that can be merged, by their names in safetensors files.
DTYPES: Final = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
#: Bytes of a tensor after which its file is opened anew: what was read of a mapped file counts as memory until then.
_MAPPED: Final = 1 << 24


@dataclass(frozen=True)
class StoredTensor:
    """A tensor on disk.

    Attributes:
        dtype: The type that it is stored in.
        shape: Its shape.
        open: Opens it: what comes back reads rows of it (of a scalar the one row [1]), in the type that it is stored in
            or, where they are computed, in float64. What the file takes of memory goes with the opened tensor.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    open: Callable[[], Rows]

    @property
    def rows(self) -> int:
        """Size of the first dimension; 1 of a scalar."""
        return self.shape[0] if self.shape else 1

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> Tensor:
        """The tensor itself."""
        return self.open()(slice(0, self.rows)).reshape(self.shape)


def stored_tensors(file: Path) -> dict[str, StoredTensor]:
    """The tensors of a weight file by their names. None of a safetensors file is read yet; a pickle is mapped.

    Raises:
        CheckpointError: the file is damaged, or holds a type that cannot be merged.
    """
    found = {}
    if file.suffix == ".safetensors":
        for name, entry in safetensors_header(file).items():
            if entry["dtype"] not in DTYPES:
                raise CheckpointError(f"{file} stores {name} as {entry['dtype']}: quantised weights cannot be merged")
            found[name] = StoredTensor(DTYPES[entry["dtype"]], tuple(entry["shape"]), partial(_opened, file, name))
        return found
    for name, tensor in read_tensors(file):
        if isinstance(tensor, Tensor):
            if tensor.dtype not in DTYPES.values():
                raise CheckpointError(f"{file} stores {name} as {tensor.dtype}, which cannot be merged")
            rows = tensor if tensor.ndim else tensor.reshape(1)
            found[name] = StoredTensor(tensor.dtype, tuple(tensor.shape), partial(getattr, rows, "__getitem__"))
    return found


def _opened(file: Path, name: str) -> Rows:
    """A tensor of a safetensors file, of which slices are read."""
    part: Any = None
    mapped = 0

    def read(rows: slice) -> Tensor:
        nonlocal part, mapped
        try:
            if part is None or mapped > _MAPPED:
                tensors, mapped = safe_open(file, framework="pt"), 0
                part = tensors.get_slice(name)
                if not part.get_shape():
                    part = tensors.get_tensor(name).reshape(1)
            content: Tensor = part[rows]
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"cannot read {file}: {error}") from error
        mapped += content.nbytes
        return content

    return read


@dataclass(frozen=True)
class Options:
    """Options for finding models, and for how far they are trusted (see `bgekit.models.hub.resolve`).

    Example:
        >>> from bgekit.merging import Merging, Options
        >>> models = ["BAAI/bge-small-en-v1.5", "fine-tuned"]
        >>> task = Merging(models, weights=[0.5, 0.5], options=Options(revision="main"))
    """

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
    tensors: Mapping[str, StoredTensor]
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

    def dense(self, layer: DenseLayer) -> dict[str, StoredTensor]:
        """`weight` and `bias` of a dense layer behind the pooling."""
        places = [each / layer.folder for each in (*self.adapters, self.folder)]
        # Where none has weights, the error names the checkpoint's own.
        place = next((each for each in places if _has_weights(each)), places[-1])
        files = weight_files(place, allow_pickle=self.options.allow_pickle)
        return {name.removeprefix("linear."): value for file in files for name, value in stored_tensors(file).items()}

    @property
    def tokenizer_folder(self) -> Path:
        """Folder of its tokenizer: the adapter's, if that brings one."""
        return next((each for each in self.adapters if (each / "tokenizer.json").is_file()), self.folder)

    def digest(self) -> dict[str, str]:
        """sha256 (hex) of its weights, and of an adapter's."""
        found = {"weights": weights_digest(self.folder, allow_pickle=self.options.allow_pickle)}
        if self.adapter is not None:
            found = {"base": str(self.folder), "base_weights": found["weights"]}
            found["adapter_weights"] = file_sha256(self.adapter.file)
        return found


def open_source(name: str, options: Options) -> Source:
    """The model of a name or folder; no weights are read yet.

    Raises:
        CheckpointError: there is no such model, or its files are damaged.
    """
    path = Path(name).expanduser()
    folder = path
    if not is_adapter(path) or (path / "config.json").is_file():
        folder = resolve(
            name, revision=options.revision, cache_dir=options.cache_dir, allow_pickle=options.allow_pickle,
            trust_remote_code=options.trust_remote_code,
        )  # fmt: skip
    if is_adapter(folder) and not _has_weights(folder):
        return _adapted(name, folder, options)
    prefix = _prefix(folder, options)
    found, files = dict[str, StoredTensor](), {}
    for file in weight_files(folder, allow_pickle=options.allow_pickle):
        tensors = {name.removeprefix(prefix): value for name, value in stored_tensors(file).items()}
        files[file] = list(tensors)
        found |= tensors
    refuse_low_rank(folder, found)
    return Source(name, folder, options, found, files)


def _prefix(folder: Path, options: Options) -> str:
    """Prefix that a wrapper has put before the names of weights; the merged model's do without."""
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


_WEIGHTS: Final = ("adapter_model.safetensors", "adapter_model.bin")
_LOW_RANK: Final = re.compile(r"^(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<part>[AB])(\.weight)?$")
#: Ways to begin training that leave the base as it is; others (PiSSA, LoftQ, ...) change it.
_PLAIN_STARTS: Final = ("gaussian", "eva", "orthogonal")


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no model."""
    return (folder / ADAPTER_CONFIG).is_file() and any((folder / name).is_file() for name in _WEIGHTS)


@dataclass
class Adapter:
    """An adapter.

    Attributes:
        folder: Where it is.
        file: Its weights.
        base: Name of its base model, as it was when it was trained; "" if it does not say.
        config: The content of adapter_config.json.
    """

    folder: Path
    file: Path
    base: str
    config: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path, *, allow_pickle: bool = False) -> Adapter:
        """The adapter in a folder.

        Raises:
            CheckpointError: it is damaged, or of a kind that is not a plain sum of base and product.
        """
        config = read_json(folder / ADAPTER_CONFIG)
        file = next(folder / name for name in _WEIGHTS if (folder / name).is_file())
        if file.suffix == ".bin" and not allow_pickle:
            raise CheckpointError(
                f"{folder} has only {file.name}, a pickle. Pass allow_pickle=True (--allow-pickle) if you trust where "
                "it came from."
            )
        start = config.get("init_lora_weights")
        unusual = [name for name in ("use_dora", "layer_replication", "target_parameters") if config.get(name)]
        if config.get("peft_type") != "LORA" or unusual or (isinstance(start, str) and start not in _PLAIN_STARTS):
            kind = ", ".join(unusual) or (config.get("peft_type") if config.get("peft_type") != "LORA" else start)
            raise CheckpointError(
                f"{folder} is an adapter of the kind {kind}; plain LoRA can be merged. Merge it with peft first "
                "(merge_and_unload) and give the result"
            )
        return cls(folder, file, str(config.get("base_model_name_or_path") or ""), config)

    def apply(self, tensors: Mapping[str, StoredTensor], find: Callable[[str], str | None]) -> dict[str, StoredTensor]:
        """The tensors of its base with what it adds.

        Args:
            tensors: The base's.
            find: A name in the adapter -> the base's name, None where there is no such weight.

        Raises:
            CheckpointError: it has weights that do not fit the base.
        """
        own = {name.removeprefix("base_model.model."): value for name, value in stored_tensors(self.file).items()}
        pairs: dict[str, dict[str, StoredTensor]] = {}
        merged = dict(tensors)
        for name, value in own.items():
            match = _LOW_RANK.match(name)
            if match is not None:
                side = "embedding" if match["embedding"] else "linear"
                pairs.setdefault(f"{side} {match['module']}", {})[match["part"]] = value
                continue
            if ".lora_" in name:
                raise CheckpointError(f"{self.folder} holds {name}, which is no part of a plain LoRA adapter")
            # A layer that was trained as a whole (modules_to_save, biases) stands in for the base's.
            target = self._target(re.sub(r"\.(base_layer|modules_to_save(\.default)?)(?=\.)", "", name), find)
            if value.shape != tensors[target].shape:
                raise CheckpointError(
                    f"{target} is {value.shape} in {self.folder}, {tensors[target].shape} in its base"
                )
            merged[target] = value
        for key, pair in pairs.items():
            side, module = key.split(" ", 1)
            target = self._target(f"{module}.weight", find)
            merged[target] = self._sum(module, merged[target], pair, side == "embedding")
        return merged

    def _target(self, name: str, find: Callable[[str], str | None]) -> str:
        found = find(name)
        if found is None:
            raise CheckpointError(f"{self.folder} changes {name}, which its base model does not have")
        return found

    def _sum(
        self, module: str, weight: StoredTensor, pair: Mapping[str, StoredTensor], embedding: bool
    ) -> StoredTensor:
        """Weight + scale * B A; its transpose where the layer keeps its weight transposed."""
        if set(pair) != {"A", "B"}:
            raise CheckpointError(f"{self.folder} is damaged: {module} lacks one of lora_A and lora_B")
        a, b = pair["A"], pair["B"]
        transposed = embedding or bool(self.config.get("fan_in_fan_out"))
        if any(len(each.shape) != 2 for each in (a, b, weight)):
            raise CheckpointError(f"{self.folder} adapts {module}, which is no matrix: merge it with peft first")
        out, into = (weight.shape[1], weight.shape[0]) if transposed else weight.shape
        if (b.shape[0], a.shape[1], b.shape[1]) != (out, into, a.shape[0]):
            raise CheckpointError(f"{self.folder} does not fit its base: {module} is {weight.shape} there")
        scale = self._scale(module, a.shape[0])

        def opened() -> Rows:
            base, left, right = weight.open(), b.read().double(), a.read().double()

            def read(rows: slice) -> Tensor:
                added = right[:, rows].T @ left.T if transposed else left[rows] @ right
                return base(rows).double() + scale * added

            return read

        return StoredTensor(weight.dtype, weight.shape, opened)

    def _scale(self, module: str, rank: int) -> float:
        alpha = float(self.config.get("lora_alpha") or 8)
        for pattern, value in (self.config.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                alpha = float(value)
                break
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)
