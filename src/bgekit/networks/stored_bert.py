"""A checkpoint of the BERT family, straight from its files: what the fused CPU network is made of.

To import transformers and the modules of its models costs more than all else between the start of a process and its
first vector. The fused network needs none of them: it reads a tree of weights. Here that tree is made of `config.json`
and the mapped safetensors, by the names that transformers gives to its modules. A weight is converted when it is asked
for, and nothing is kept of it: memory has the file's pages, which processes share, and what the network makes of them.

What is not plain is left to transformers: `stored_bert` and `stored_classifier` return None where weights are missing,
have other shapes or more than one meaning, or where the config asks for anything unusual. Whoever asked loads the
published class then (`loading.py`), which says in the words that it always had what is wrong with a checkpoint.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import torch
from torch import Tensor, nn

from ..models.checkpoint_files import (
    ADAPTER_CONFIG,
    RENAMED,
    has_low_rank,
    read_config,
    read_tensors,
    safetensors_format,
    weight_files,
)


@dataclass(frozen=True)
class _Family:
    """What a model type stands for in transformers.

    Attributes:
        encoder: The class of the transformer.
        prefix: What a class with a head puts before the names of the transformer's weights.
        classifier: The class that scores pairs.
        pooled: Whether its head reads the transformer's pooler; if not it has two layers of its own.
        defaults: What the config says where it says nothing.
    """

    encoder: str
    prefix: str
    classifier: str
    pooled: bool
    defaults: Mapping[str, Any]


#: Of all configs of the family. Sizes that a config does not state are left to transformers.
_DEFAULTS: Final = {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "type_vocab_size": 2}
_SIZES: Final = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "max_position_embeddings", "type_vocab_size",
)  # fmt: skip
_ROBERTA: Final = {**_DEFAULTS, "pad_token_id": 1}
_FAMILIES: Final = {
    "bert": _Family(
        "BertModel", "bert", "BertForSequenceClassification", True, {**_DEFAULTS, "pad_token_id": 0},
    ),
    "roberta": _Family("RobertaModel", "roberta", "RobertaForSequenceClassification", False, _ROBERTA),
    "xlm-roberta": _Family("XLMRobertaModel", "roberta", "XLMRobertaForSequenceClassification", False, _ROBERTA),
    "camembert": _Family("CamembertModel", "roberta", "CamembertForSequenceClassification", False, _ROBERTA),
}  # fmt: skip
#: Types that weights are stored in; others (8-bit ones, integers) are left to transformers.
_FLOATS: Final = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class StoredLinear:
    """The weights of a linear layer, as they lie in a file.

    Attributes:
        stored: [out, in] in any floating type.
        stored_bias: [out].
    """

    def __init__(self, weights: _Weights, name: str) -> None:
        self.stored, self.stored_bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        self.out_features, self.in_features = self.stored.shape

    @property
    def weight(self) -> Tensor:
        """In float32; where the file has another type, converted each time."""
        return self.stored.float()

    @property
    def bias(self) -> Tensor:
        """In float32."""
        return self.stored_bias.float()

    def module(self) -> nn.Linear:
        """The layer as torch computes it, in float32."""
        linear = nn.Linear(self.in_features, self.out_features, device="meta")
        linear.weight = nn.Parameter(self.weight, requires_grad=False)
        linear.bias = nn.Parameter(self.bias, requires_grad=False)
        return linear


@dataclass(frozen=True, eq=False)
class StoredBert:
    """The tree of modules of a `BertModel` or one of its relatives, with weights as they lie in files.

    Attributes:
        published: Name of the class in transformers.
        config: The config of the checkpoint, what it leaves out included.
        embeddings: Tables of words, positions and token types, and the norm after them.
        encoder: The layers.
    """

    published: str
    config: SimpleNamespace
    embeddings: SimpleNamespace
    encoder: SimpleNamespace


class StoredClassifier(nn.Module):
    """The head of a sequence classifier, by the names that its modules have in transformers.

    Attributes:
        published: Name of the class in transformers.
        config: The config of the checkpoint, what it leaves out included.
    """

    def __init__(self, published: str, prefix: str, config: SimpleNamespace) -> None:
        super().__init__()
        self.published, self.base_model_prefix, self.config = published, prefix, config
        self.add_module(prefix, nn.Module())
        self.dropout = nn.Identity()

    @property
    def base_model(self) -> nn.Module:
        """What the head needs of the transformer: its pooler, if it has one."""
        return self.get_submodule(self.base_model_prefix)


class Pooler(nn.Module):
    """The pooler of BERT: a layer on the first token."""

    def __init__(self, dense: nn.Linear) -> None:
        super().__init__()
        self.dense = dense

    def forward(self, hidden: Tensor) -> Tensor:
        """[n, L, h] -> [n, h]."""
        return torch.tanh(self.dense(hidden[:, 0]))


class TwoLayerHead(nn.Module):
    """The head of RoBERTa's classifiers: two layers on the first token."""

    def __init__(self, dense: nn.Linear, out_proj: nn.Linear) -> None:
        super().__init__()
        self.dense, self.out_proj = dense, out_proj

    def forward(self, hidden: Tensor) -> Tensor:
        """[n, L, h] -> [n, labels]."""
        logits: Tensor = self.out_proj(torch.tanh(self.dense(hidden[:, 0])))
        return logits


def stored_bert(folder: Path, *, trust_remote_code: bool = False, allow_pickle: bool = False) -> StoredBert | None:
    """The transformer of a checkpoint; None where it must be loaded by transformers.

    Args:
        folder: The checkpoint.
        trust_remote_code: Whether a class that the checkpoint brings would be used.
        allow_pickle: Allow `.bin` weights, which are left to transformers.

    Raises:
        CheckpointError: files are missing or damaged.
    """
    found = _opened(folder, trust_remote_code, allow_pickle)
    if found is None:
        return None
    family, config, weights = found
    # A checkpoint of a class with a head has the transformer under a prefix, and the head beside it.
    if weights.below(f"{family.prefix}.") and not weights.below("embeddings."):
        weights = weights.inside(f"{family.prefix}.")
    return _transformer(family, config, weights)


def stored_classifier(
    folder: Path, *, trust_remote_code: bool = False, allow_pickle: bool = False
) -> tuple[StoredClassifier, StoredBert] | None:
    """The head of a classifier, and the transformer below it; None where transformers must load them.

    Arguments and errors as `stored_bert`.
    """
    found = _opened(folder, trust_remote_code, allow_pickle)
    if found is None:
        return None
    family, config, weights = found
    hidden, labels = config.hidden_size, _labels(config)
    stored = _transformer(family, config, weights.inside(f"{family.prefix}."))
    pooler = f"{family.prefix}.pooler.dense"
    last = "classifier" if family.pooled else "classifier.out_proj"
    shapes = {last: (labels, hidden), pooler if family.pooled else "classifier.dense": (hidden, hidden)}
    if stored is None or weights.below("embeddings.") or not all(weights.has(name, *shapes[name]) for name in shapes):
        return None
    classifier = StoredClassifier(family.classifier, family.prefix, config)
    if family.pooled:
        classifier.base_model.pooler = Pooler(StoredLinear(weights, pooler).module())
        classifier.classifier = StoredLinear(weights, last).module()
    else:
        first = StoredLinear(weights, "classifier.dense").module()
        classifier.classifier = TwoLayerHead(first, StoredLinear(weights, last).module())
    return classifier, stored


class _Weights:
    """Mapped tensors by their names in a network."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def below(self, prefix: str) -> bool:
        """Whether there are any whose names begin so."""
        return any(name.startswith(prefix) for name in self._tensors)

    def inside(self, prefix: str) -> _Weights:
        """Those whose names begin so, by the rest of their names."""
        return _Weights({name[len(prefix) :]: each for name, each in self._tensors.items() if name.startswith(prefix)})

    def fits(self, name: str, *shape: int) -> bool:
        """Whether there is a floating tensor of this name and shape."""
        tensor = self._tensors.get(name)
        return tensor is not None and tensor.dtype in _FLOATS and tuple(tensor.shape) == shape

    def has(self, name: str, out: int, into: int) -> bool:
        """Whether there is a linear layer of this name and shape."""
        return self.fits(f"{name}.weight", out, into) and self.fits(f"{name}.bias", out)


def _opened(
    folder: Path, trust_remote_code: bool, allow_pickle: bool
) -> tuple[_Family, SimpleNamespace, _Weights] | None:
    """Family, config and weights of a checkpoint, None where they are not plain."""
    raw = read_config(folder)
    family = _FAMILIES.get(str(raw.get("model_type")))
    files = weight_files(folder, allow_pickle=allow_pickle)
    if family is None or (folder / ADAPTER_CONFIG).is_file() or (trust_remote_code and "auto_map" in raw):
        return None
    config = SimpleNamespace(**{**family.defaults, **raw})
    if not _is_plain(config) or any(file.suffix != ".safetensors" for file in files):
        return None
    if any(safetensors_format(file) not in (None, "pt") for file in files):
        return None
    tensors: dict[str, Tensor] = {}
    for file in files:
        for name, tensor in read_tensors(file):
            parts = name.split(".")
            if parts[-2:-1] == ["LayerNorm"]:  # As they were called in the first years.
                name = ".".join([*parts[:-1], RENAMED.get(parts[-1], parts[-1])])
            if name in tensors:
                return None
            tensors[name] = tensor
    return None if has_low_rank(tensors) else (family, config, _Weights(tensors))


def _is_plain(config: SimpleNamespace) -> bool:
    """Whether a config says all that is needed, in the types that it should have, and nothing unusual."""
    sizes = [getattr(config, name, None) for name in _SIZES]
    if not all(type(size) is int and size > 0 for size in sizes) or type(config.layer_norm_eps) is not float:
        return False
    padding = config.pad_token_id
    if not (padding is None or (type(padding) is int and 0 <= padding < config.vocab_size)):
        return False
    unusual = ("is_decoder", "add_cross_attention", "quantization_config", "pruned_heads")
    return (
        config.hidden_size % config.num_attention_heads == 0
        and isinstance(config.hidden_act, str)
        and getattr(config, "position_embedding_type", None) in (None, "absolute")
        and not any(getattr(config, name, None) for name in unusual)
    )


def _labels(config: SimpleNamespace) -> int:
    """How many numbers a classifier gives."""
    names = getattr(config, "id2label", None)
    return len(names) if isinstance(names, dict) else int(getattr(config, "num_labels", None) or 2)


def _transformer(family: _Family, config: SimpleNamespace, weights: _Weights) -> StoredBert | None:
    """The tree of modules, None where the weights are not those of the config."""
    hidden, wide, eps = config.hidden_size, config.intermediate_size, config.layer_norm_eps
    tables = {
        "word_embeddings": config.vocab_size,
        "position_embeddings": config.max_position_embeddings,
        "token_type_embeddings": config.type_vocab_size,
    }
    if not all(weights.fits(f"embeddings.{name}.weight", rows, hidden) for name, rows in tables.items()):
        return None
    if not all(weights.has(name, *shape) for name, shape in _linears(config.num_hidden_layers, hidden, wide)):
        return None
    if not all(weights.fits(name, hidden) for name in _norms(config.num_hidden_layers)):
        return None
    # A pooler is not needed, but one of another shape shows that the config is that of another model.
    if weights.below("pooler.") and not weights.has("pooler.dense", hidden, hidden):
        return None

    def norm(name: str) -> SimpleNamespace:
        return SimpleNamespace(weight=weights[f"{name}.weight"], bias=weights[f"{name}.bias"], eps=eps)

    def layer(name: str) -> SimpleNamespace:
        parts = {part: StoredLinear(weights, f"{name}.attention.self.{part}") for part in ("query", "key", "value")}
        output = SimpleNamespace(
            dense=StoredLinear(weights, f"{name}.attention.output.dense"),
            LayerNorm=norm(f"{name}.attention.output.LayerNorm"),
        )
        return SimpleNamespace(
            attention=SimpleNamespace(self=SimpleNamespace(**parts), output=output),
            intermediate=SimpleNamespace(dense=StoredLinear(weights, f"{name}.intermediate.dense")),
            output=SimpleNamespace(
                dense=StoredLinear(weights, f"{name}.output.dense"), LayerNorm=norm(f"{name}.output.LayerNorm")
            ),
        )

    stored = {name: SimpleNamespace(weight=weights[f"embeddings.{name}.weight"]) for name in tables}
    layers = [layer(f"encoder.layer.{number}") for number in range(config.num_hidden_layers)]
    embeddings = SimpleNamespace(**stored, LayerNorm=norm("embeddings.LayerNorm"))
    return StoredBert(family.encoder, config, embeddings, SimpleNamespace(layer=layers))


def _linears(layers: int, hidden: int, wide: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """Names and shapes of the linear layers."""
    for number in range(layers):
        name = f"encoder.layer.{number}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            yield f"{name}.attention.{part}", (hidden, hidden)
        yield f"{name}.intermediate.dense", (wide, hidden)
        yield f"{name}.output.dense", (hidden, wide)


def _norms(layers: int) -> Collection[str]:
    """Names of the weights of the norms."""
    places = [f"encoder.layer.{number}.{part}" for number in range(layers) for part in ("attention.output", "output")]
    return [f"{place}.LayerNorm.{part}" for place in ("embeddings", *places) for part in ("weight", "bias")]
