"""Models that are merged, their tensors on disk: a checkpoint, or a LoRA adapter together with its base.

Whether they can be merged, and what exactly differs where they cannot, is found before any weight is read.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import ArgumentError, CardError, CheckpointError
from ..files.hashing import file_sha256
from ..inference.embedder import SELFTEST_TEXT
from ..inference.tokenization import load_tokenizer
from ..models.card import DenseLayer, ModelCard, RerankerCard
from ..models.card_reading import is_classifier, read_card, read_reranker_card
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
from ..networks.loading import quiet_transformers, stored_prefix
from ..networks.saving import weights_digest
from .methods import Rows

logger = logging.getLogger(__name__)
Kind: TypeAlias = Literal["encoder", "reranker"]
Card: TypeAlias = "ModelCard | RerankerCard"
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
#: Bytes of a tensor after which its file is opened again: what was read of a mapped file counts as memory until then.
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
        folder = resolve(name, **vars(options))
    if is_adapter(folder) and not _has_weights(folder):
        return _adapted(name, folder, options)
    prefix = stored_prefix(
        folder, classifier_class if is_classifier(read_config(folder)) else encoder_class,
        trust_remote_code=options.trust_remote_code, allow_pickle=options.allow_pickle,
    )  # fmt: skip
    if prefix:
        # A wrapper has put it there; the merged model's names do without.
        logger.warning("the names of the weights in %s begin with %s, which is left out", folder, prefix)
    found, files = dict[str, StoredTensor](), {}
    for file in weight_files(folder, allow_pickle=options.allow_pickle):
        tensors = {name.removeprefix(prefix): value for name, value in stored_tensors(file).items()}
        files[file] = list(tensors)
        found |= tensors
    refuse_low_rank(folder, found)
    return Source(name, folder, options, found, files)


def is_optional(name: str, kind: Kind) -> bool:
    """Whether no embedding (of rerankers: score) depends on a weight: one model may have it and another not."""
    return _UNUSED.search(name) is not None if kind == "encoder" else name.endswith("position_ids")


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
    try:
        base = open_source(
            str(moved) if moved.is_dir() else adapter.base,
            replace(options, revision=adapter.config.get("revision") or None),
        )
    except CheckpointError as error:
        raise CheckpointError(f"the base model of the adapter {name}: {error}") from error
    return Source(
        name, base.folder, options, adapter.apply(base), base.files, adapter,
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

    def apply(self, base: Source) -> dict[str, StoredTensor]:
        """The tensors of its base with what it adds.

        Raises:
            CheckpointError: it has weights that do not fit the base.
        """
        own = {name.removeprefix("base_model.model."): value for name, value in stored_tensors(self.file).items()}
        pairs: dict[tuple[str, bool], dict[str, StoredTensor]] = {}
        merged = dict(base.tensors)
        for name, value in own.items():
            match = _LOW_RANK.match(name)
            if match is not None:
                pairs.setdefault((match["module"], bool(match["embedding"])), {})[match["part"]] = value
                continue
            if ".lora_" in name:
                raise CheckpointError(f"{self.folder} holds {name}, which is not part of a plain LoRA adapter")
            # A layer that was trained as a whole (modules_to_save, biases) stands in for the base's.
            target = self._target(re.sub(r"\.(base_layer|modules_to_save(\.default)?)(?=\.)", "", name), base)
            there = base.tensors[target].shape
            if value.shape != there:
                raise CheckpointError(f"{target} is {value.shape} in {self.folder}, {there} in its base")
            merged[target] = value
        for (module, embedding), pair in pairs.items():
            target = self._target(f"{module}.weight", base)
            merged[target] = self._sum(module, merged[target], pair, embedding)
        return merged

    def _target(self, name: str, base: Source) -> str:
        found = base.find(name)
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
            raise CheckpointError(f"{self.folder} adapts {module}, which is not a matrix: merge it with peft first")
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
        patterns = self.config.get("alpha_pattern") or {}
        own = (value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", module))
        alpha = float(next(own, self.config.get("lora_alpha") or 8))
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)


#: Fields of a config that do not change what the network computes with given weights.
_IRRELEVANT: Final = frozenset({
    "architectures", "auto_map", "bgekit_reranker", "dtype", "finetuning_task", "gradient_checkpointing", "id2label",
    "initializer_factor", "initializer_range", "label2id", "problem_type", "return_dict", "torch_dtype",
    "transformers_version", "use_cache", "sentence_transformers",
})  # fmt: skip
#: Texts that tokenizers of equal vocabularies and different rules split differently.
_PROBES: Final = (
    SELFTEST_TEXT,
    "Ünïcode, ÉCOLE naïve\u3000ＡＢＣ ½",
    "don't  stop\n\tnow 3.14 🙂",
    "ﬁn [MASK] <s> </s>",
)


def agreed_cards(
    sources: Sequence[Source], kind: Kind, card_from: int | None, pooling: str | None = None
) -> tuple[Card, list[Card]]:
    """The card of the merged model, and those of the models.

    Args:
        sources: The models.
        kind: What they are.
        card_from: Number of the model whose card is taken, also for models that have none; None if all must say the
            same.
        pooling: How embedders pool, None for what each says.

    Raises:
        CardError: they differ in prompts, pooling, normalisation or maximum length, and nothing says whose count.
        CheckpointError: their networks or their tokenizers differ.
        ArgumentError: there is no model of that number.
    """
    if card_from is not None and not 0 <= card_from < len(sources):
        raise ArgumentError(f"card_from={card_from} must be the number of a model, from 0 to {len(sources) - 1}")
    cards = [card_of(each, kind, card_from in (None, place), pooling) for place, each in enumerate(sources)]
    chosen, name = cards[card_from or 0], sources[card_from or 0].name
    assert chosen is not None
    known = [card or chosen for card in cards]
    for source, card in zip(sources, known, strict=True):
        if differing := _differences(_heads(chosen), _heads(card)):
            raise CheckpointError(f"{name} and {source.name} have different heads: {differing}")
    for source, card in zip(sources, known, strict=True) if card_from is None else ():
        if differing := _differences(_use(chosen), _use(card)):
            raise CardError(
                f"{name} and {source.name} are used differently: {differing}. card_from=0 (--card-from 0) makes the "
                f"result one to be used as {name}, 1 as {source.name}"
            )
    return chosen, known


def check_networks(sources: Sequence[Source]) -> None:
    """See to it that all networks and tokenizers are those of the first model.

    Raises:
        CheckpointError: they differ; it names the fields with both values.
    """
    first, *others = sources
    for source in sources:
        if source.tokenizer_folder != source.folder:
            _check_own_tokenizer(source)
    for facts_of, differ in ((_network, "are different networks"), (_tokenizer, "have different tokenizers")):
        facts = facts_of(first)
        for other in others:
            if differing := _differences(facts, facts_of(other)):
                raise CheckpointError(f"{first.name} and {other.name} {differ}: {differing}")


def card_of(source: Source, kind: Kind, needed: bool, pooling: str | None = None) -> Card | None:
    """The card of a model; an adapter's own side files count more than its base's.

    Args:
        source: The model.
        kind: What it is.
        needed: Whether it must have a card; None is returned otherwise.
        pooling: How it pools, None for what it says.
    """
    read: Callable[..., Card] = read_card if kind == "encoder" else read_reranker_card
    name = source.name if source.adapter is None else source.adapter.base
    given = {} if pooling is None else {"pooling": pooling}
    try:
        return read(source.folder, name, adapters=source.adapters, **given)
    except CardError as error:
        if needed:
            raise
        logger.info("%s has no card of its own: %s", source.name, error)
        return None


def _heads(card: Card) -> dict[str, Any]:
    """Layers behind the transformer have weights, so that no choice of a card makes up for a difference."""
    if isinstance(card, RerankerCard):
        return {"labels": card.labels}
    shapes = [f"{e.in_features} -> {e.out_features} {e.activation}{', bias' * e.bias}" for e in card.dense]
    return {"dense layers": shapes}


def _use(card: Card) -> dict[str, Any]:
    """Use of a model (pooling, prompts, ...), by the names that users know."""
    if isinstance(card, RerankerCard):
        prompts = {"query": card.query, "passage": card.document}
        facts: dict[str, Any] = {"max_length": card.max_length}
    else:
        prompts = dict(card.prompts)
        names = ("pooling", "normalize", "max_length", "similarity", "lower_case", "include_prompt", "default_prompt")
        facts = {name: getattr(card, name) for name in (*names, "pretrained_only")}
    return facts | {f"prompt of a {role}": str(prompt) for role, prompt in prompts.items() if prompt}


def _network(source: Source) -> dict[str, Any]:
    """Fields of its config that decide the computation, with the defaults of its architecture."""
    from transformers import AutoConfig

    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(source.folder, trust_remote_code=source.options.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"the config.json in {source.folder} cannot be used: {error}") from error
    return {
        key: value
        for key, value in config.to_dict().items()
        if key not in _IRRELEVANT and not key.startswith(("_", "output_")) and "dropout" not in key
    }


def _check_own_tokenizer(source: Source) -> None:
    """An adapter may bring another tokenizer than its base has; the embeddings must have a row for each token."""
    own, base = _tokenizer(source), _tokenizer(replace(source, adapters=()))
    if own == base:
        return
    tokenizer = load_tokenizer(source.tokenizer_folder, trust_remote_code=source.options.trust_remote_code)
    rows = read_config(source.folder).get("vocab_size")
    if isinstance(rows, int) and max(tokenizer.get_vocab().values()) >= rows:
        raise CheckpointError(
            f"the adapter {source.name} has a tokenizer of {own['tokens']:,} tokens, its base {rows:,} embeddings: "
            "merge it with peft first (merge_and_unload) and give the result"
        )
    logger.warning("the adapter %s has another tokenizer than its base: the adapter's is used", source.name)


def _tokenizer(source: Source) -> dict[str, Any]:
    tokenizer = load_tokenizer(source.tokenizer_folder, trust_remote_code=source.options.trust_remote_code)
    vocabulary = tokenizer.get_vocab()
    digest = hashlib.sha256(repr(sorted(vocabulary.items())).encode("utf-8", "backslashreplace")).hexdigest()
    backend = tokenizer.backend_tokenizer
    ids = [backend.encode(text).ids for text in _PROBES]
    return {
        "tokens": len(vocabulary),
        "vocabulary": digest,
        "special tokens": {name: str(token) for name, token in sorted(tokenizer.special_tokens_map.items())},
        "ids of probes": hashlib.sha256(repr(ids).encode()).hexdigest(),
    }


def _differences(a: dict[str, Any], b: dict[str, Any]) -> str:
    """The names of values that differ, each with both; "" if none do."""
    return ", ".join(
        f"{name} {_short(a.get(name))} / {_short(b.get(name))}" for name in {**a, **b} if a.get(name) != b.get(name)
    )


def _short(value: Any) -> str:
    text = "none" if value is None else repr(value)
    return text if len(text) <= 100 else f"{text[:90]}..."
