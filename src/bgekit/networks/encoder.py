"""The network: packed tokens -> vectors (transformer, pooling, dense head, normalisation)."""

from __future__ import annotations

import contextlib
import copy
import inspect
import logging
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ..errors import ArgumentError, CardError, CheckpointError, import_extra
from ..models.card import DenseLayer, ModelCard
from ..models.checkpoint_files import hidden_size, padding_position, read_config, read_tensors, weight_files
from ..models.head_files import HEAD_FILES, Output
from .cpu_inference import FusedEncoder, can_fuse
from .cpu_products import in_equal_parts, threads_of
from .cpu_training import use_quick_dropout
from .heads import FusedHeads, Outputs, TokenHeads, read_heads
from .loading import cast, load_published
from .packing import PACKED_ATTENTION, Packed
from .pooling import Select, pool, rows_needed, select_rows
from .stored_bert import StoredBert, stored_bert

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)
#: Weights of the layers from which on it pays to convert them with all threads: those of bge-large.
_MANY_WEIGHTS: Final = 1 << 28
_HALF: Final = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Backbone(Protocol):
    """A transformer: packed batch -> token vectors; implementations differ in speed only."""

    def __call__(self, batch: Packed, select: Select) -> Tensor:
        """[T, h] for `all`, [n, h] for `first` and `last`."""
        ...

    def with_all(self, batch: Packed, select: Select) -> tuple[Tensor, Tensor]:
        """[T, h] the vectors of all tokens, and what a call gives for `select`."""
        ...


class _PublishedBackbone(nn.Module):
    """A transformer that computes the last layer for all tokens, whichever are wanted."""

    def with_all(self, batch: Packed, select: Select) -> tuple[Tensor, Tensor]:
        """See `Backbone`; differentiable."""
        hidden = self(batch, "all")
        return hidden, select_rows(hidden, batch, select)


class PackedBackbone(_PublishedBackbone):
    """A Hugging Face transformer run unpadded, with its own published code and weights."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        config = model.config
        self.padding_position = padding_position(config.model_type, config.pad_token_id)
        self.arguments: dict[str, Any] = {"use_cache": False} if hasattr(config, "use_cache") else {}

    def forward(self, batch: Packed, select: Select) -> Tensor:
        """See `Backbone`; differentiable."""
        output = self.model(
            input_ids=batch.input_ids[None],
            position_ids=batch.positions_for(self.padding_position)[None],
            packed=batch,
            **_token_types(None if batch.token_types is None else batch.token_types[None]),
            **self.arguments,
        )
        return select_rows(output.last_hidden_state[0], batch, select)


class PaddedBackbone(_PublishedBackbone):
    """A Hugging Face transformer whose architecture cannot run unpadded (MPNet, T5, BLOOM, ...)."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Packed, select: Select) -> Tensor:
        """See `Backbone`; differentiable."""
        inputs = padded_inputs(batch, self.model.config.pad_token_id or 0)
        hidden = self.model(**inputs).last_hidden_state
        return select_rows(hidden[inputs["attention_mask"].bool()], batch, select)


def padded_inputs(batch: Packed, padding: int) -> dict[str, Tensor]:
    """A packed batch as the arguments [n, L] of a model of transformers, padded on the right.

    Args:
        batch: The sequences.
        padding: Id of the padding token.
    """
    column = torch.arange(max(batch.lengths), device=batch.input_ids.device)
    mask = column[None, :] < batch.lengths_tensor[:, None]
    padded = batch.input_ids.new_full(mask.shape, padding)
    padded[mask] = batch.input_ids
    types = None
    if batch.token_types is not None:
        types = torch.zeros_like(padded)
        types[mask] = batch.token_types
    return {"input_ids": padded, "attention_mask": mask.long(), **_token_types(types)}


def _token_types(types: Tensor | None) -> dict[str, Tensor]:
    """Token types as an argument, of models that have them."""
    return {} if types is None else {"token_type_ids": types}


class DenseHead(nn.Module):
    """The `Dense` modules of sentence-transformers."""

    def __init__(self, layers: tuple[DenseLayer, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(e.in_features, e.out_features, bias=e.bias) for e in layers)
        self.activations = [_activation(e) for e in layers]

    def forward(self, vectors: Tensor) -> Tensor:
        """[n, in] -> [n, out], float32."""
        for layer, activation in zip(self.layers, self.activations, strict=True):
            vectors = activation(layer(vectors))
        return vectors


def _activation(layer: DenseLayer) -> nn.Module:
    known: dict[str, type[nn.Module]] = {
        kind.__name__: kind for kind in (nn.Identity, nn.Tanh, nn.ReLU, nn.GELU, nn.Sigmoid, nn.SiLU)
    }
    if layer.activation not in known:
        raise CardError(f"{layer.folder} uses the activation {layer.activation!r}; known: {', '.join(known)}")
    return known[layer.activation]()


class Encoder(nn.Module):
    """Packed tokens -> vectors. One class for inference, mining, evaluation and training.

    Example:
        >>> from bgekit.models import read_card, resolve
        >>> from bgekit.networks import Packed, load_encoder
        >>> folder = resolve("BAAI/bge-small-en-v1.5")
        >>> encoder = load_encoder(folder, read_card(folder, "BAAI/bge-small-en-v1.5"))
        >>> encoder(Packed.of([[2, 7, 8, 3], [2, 9, 3]])).shape
        torch.Size([2, 384])
    """

    def __init__(self, backbone: Backbone, card: ModelCard, *, truncate_dim: int | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = DenseHead(card.dense)
        self.pooling = card.pooling
        self.normalize = card.normalize
        self.truncate_dim = truncate_dim
        #: What gives the outputs beside the dense one: loaded when one is asked for, or set by training.
        self.heads: TokenHeads | None = None

    @property
    def padded(self) -> bool:
        """Whether the network computes padding too."""
        return isinstance(self.backbone, PaddedBackbone)

    @property
    def exact(self) -> bool:
        """Whether the bits of a vector depend on its own tokens alone, not on its company or the threads."""
        return isinstance(self.backbone, FusedBackbone)

    @property
    def config(self) -> Any:
        """The config of the transformer, None for the fused CPU path."""
        return None if isinstance(self.backbone, FusedBackbone) else self.backbone.model.config  # type: ignore[attr-defined]

    def forward(self, batch: Packed) -> Tensor:
        """[n, dimension] float32, one vector for each sequence of the batch; differentiable."""
        return self._dense(self.backbone(batch, rows_needed(self.pooling)), batch)

    def outputs(self, batch: Packed, wanted: Collection[Output], excluded: Tensor) -> Outputs:
        """Several outputs of each sequence from one pass; differentiable where `forward` is.

        The dense vector is that of `forward`, to the bit on the fused CPU path.

        Args:
            batch: The sequences.
            wanted: The outputs; those beside `dense` need `heads`.
            excluded: int64 ids of tokens that get no lexical weight.
        """
        if not any(output in HEAD_FILES for output in wanted):
            return Outputs(self(batch))
        assert self.heads is not None, "whoever asks for an output has loaded its head"
        dense = None
        if "dense" in wanted:
            hidden, rows = self.backbone.with_all(batch, rows_needed(self.pooling))
            dense = self._dense(rows, batch)
        else:
            hidden = self.backbone(batch, "all")
        return Outputs(
            dense,
            self.heads.weights(hidden, batch, excluded) if "sparse" in wanted else None,
            self.heads.vectors(hidden, batch, self.truncate_dim) if "multi-vector" in wanted else None,
        )

    def load_heads(self, folder: Path, wanted: Collection[Output]) -> None:
        """Load the heads for some outputs from a checkpoint, where they are not there yet.

        Raises:
            CheckpointError: a head is missing or damaged, or has another shape; the message names its file.
        """
        there = () if self.heads is None else self.heads.outputs
        if all(output in there for output in HEAD_FILES if output in wanted):
            return
        heads = read_heads(folder, hidden_size(read_config(folder)), {*there, *wanted})
        if isinstance(self.backbone, FusedBackbone):
            self.heads = FusedHeads(heads, self.backbone.fused.dtype)
        else:
            self.heads = heads.to(next(self.parameters()).device)

    def _dense(self, hidden: Tensor, batch: Packed) -> Tensor:
        """[n, dimension] of the rows that pooling reads."""
        vectors = pool(hidden, batch, self.pooling)
        if self.head.layers:
            vectors = in_equal_parts(self.head, vectors) if self.exact else self.head(vectors)
        if self.truncate_dim is not None:
            # Matryoshka (arXiv:2205.13147): the leading dimensions are an embedding, once normalised.
            vectors = vectors[:, : self.truncate_dim]
        return normalize(vectors, dim=-1) if self.normalize else vectors


def load_transformer(
    folder: Path,
    *,
    dtype: torch.dtype,
    packed: bool = True,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> PreTrainedModel:
    """The transformer of a checkpoint, in evaluation mode on the CPU, packed where its architecture can.

    Args:
        folder: The checkpoint.
        dtype: Type of the weights.
        packed: Whether it is to run unpadded; it takes packed batches only then.
        trust_remote_code: Allow architectures that the checkpoint brings as Python code.
        allow_pickle: Allow `.bin` weights.

    Raises:
        CheckpointError: files are missing or damaged, or the weights do not fit the config.
    """
    model = load_published(
        folder,
        encoder_class,
        dtype=dtype,
        without=("pooler",),
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
    )
    if packed and can_pack(model):
        model.set_attn_implementation(PACKED_ATTENTION)
    return model


def encoder_class(config: Any) -> Any:
    """The class of transformers whose `from_pretrained` makes the transformer of an embedder."""
    from transformers import AutoModel, T5EncoderModel

    return T5EncoderModel if config.model_type in ("t5", "mt5", "umt5") else AutoModel


def can_pack(model: PreTrainedModel) -> bool:
    """Whether the architecture leaves attention to the interface and takes positions from its caller."""
    parameters = inspect.signature(model.forward).parameters
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    uses_interface = bool(getattr(model, "_supports_attention_backend", False))
    return uses_interface and "position_ids" in parameters and takes_any


def load_encoder(
    folder: Path,
    card: ModelCard,
    *,
    precision: str = "float32",
    device: torch.device | None = None,
    truncate_dim: int | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> Encoder:
    """The encoder of a checkpoint, ready for inference on `device`.

    Args:
        folder: The checkpoint.
        card: Its card.
        precision: `float32`, `bfloat16`, `float16`, or `int8` (CPU, BERT family).
        device: Where to compute, the CPU by default.
        truncate_dim: Keep this many leading dimensions.
        trust_remote_code: Allow architectures that the checkpoint brings as Python code.
        allow_pickle: Allow `.bin` weights.

    Raises:
        CheckpointError: files are missing or damaged.
        CardError: the precision is not possible for this architecture.

    Example:
        >>> from bgekit.models import read_card, resolve
        >>> from bgekit.networks import load_encoder
        >>> folder = resolve("BAAI/bge-small-en-v1.5")
        >>> encoder = load_encoder(folder, read_card(folder, "BAAI/bge-small-en-v1.5"))
    """
    device = device or torch.device("cpu")
    allowed = {"trust_remote_code": trust_remote_code, "allow_pickle": allow_pickle}
    stored = stored_bert(folder, **allowed) if device.type == "cpu" else None
    if stored is None or not can_fuse(stored):
        backbone = inference_backbone(
            load_transformer(folder, dtype=loading_dtype(precision, device), **allowed), precision, device
        )
    else:
        backbone = fused_backbone(stored, precision, folder)
    logger.debug("%s runs as %s in %s on %s", folder, type(backbone).__name__, precision, device)
    encoder = Encoder(backbone, card, truncate_dim=truncate_dim)
    load_head(encoder.head, folder, card, allow_pickle)
    return encoder.to(device).eval()


def loading_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Type that weights are loaded as: the fused CPU path prepares its own from float32 ones."""
    return _HALF.get(precision, torch.float32) if device.type != "cpu" else torch.float32


def inference_backbone(model: PreTrainedModel, precision: str, device: torch.device) -> Backbone:
    """The fastest way there is to compute a transformer on a device.

    Args:
        model: The transformer, loaded as `loading_dtype` says, on the CPU.
        precision: `float32`, `bfloat16`, `float16`, or `int8` (CPU, BERT family).
        device: Where it will compute.

    Raises:
        CardError: the precision is not possible for this architecture.
    """
    if device.type == "cpu" and can_fuse(model):
        return fused_backbone(model, precision)
    if precision == "int8":
        raise CardError(f"dtype='int8' is there for BERT, RoBERTa and XLM-R, not for {type(model).__name__}")
    dtype = _HALF.get(precision, torch.float32)
    return (PackedBackbone if can_pack(model) else PaddedBackbone)(cast(model, dtype))


def fused_backbone(model: PreTrainedModel | StoredBert, precision: str, folder: Path | None = None) -> FusedBackbone:
    """The inference-only network of a model for which `can_fuse` is true.

    Args:
        model: The model.
        precision: `float32`, `bfloat16` or `int8`.
        folder: The checkpoint that `model` is, if that is stored.
    """
    config = model.config
    weights = config.num_hidden_layers * config.hidden_size * (4 * config.hidden_size + 2 * config.intermediate_size)
    # Threads of OpenMP wait for the next operation by spinning: for short ones that is most of all.
    with threads_of(1) if weights < _MANY_WEIGHTS else contextlib.nullcontext():
        fused = FusedEncoder(model, "int8" if precision == "int8" else _HALF.get(precision, torch.float32))
    return FusedBackbone(fused, folder)


class FusedBackbone:
    """The inference-only CPU path: the same numbers from fewer, fused operations.

    Attributes:
        fused: The network.
        folder: The checkpoint whose file its table of words is mapped from; None where it is memory of its own.
    """

    def __init__(self, fused: Any, folder: Path | None = None) -> None:
        self.fused, self.folder = fused, folder

    def __call__(self, batch: Packed, select: Select) -> Tensor:
        """See `Backbone`; not differentiable."""
        hidden: Tensor = self.fused(batch.input_ids, batch.lengths, select, batch.token_types)
        return hidden

    def with_all(self, batch: Packed, select: Select) -> tuple[Tensor, Tensor]:
        """See `Backbone`. The rows of `select` are computed as without the others, so they have the same bits."""
        selects: tuple[Select, ...] = ("all",) if select == "all" else ("all", select)
        results: list[Tensor] = self.fused.several(batch.input_ids, batch.lengths, selects, batch.token_types)
        return results[0], results[-1]


def load_head(head: DenseHead, folder: Path, card: ModelCard, allow_pickle: bool) -> None:
    """Load the weights of dense layers from their folders in a checkpoint."""
    for module, layer in zip(head.layers, card.dense, strict=True):
        files = weight_files(folder / layer.folder, allow_pickle=allow_pickle)
        weights = {key.removeprefix("linear."): value.float() for file in files for key, value in read_tensors(file)}
        try:
            module.load_state_dict(weights)
        except RuntimeError as error:
            raise CheckpointError(f"{files[0]} does not fit its config.json: {error}") from error


#: Names of what is in a pooler. It is not part of an embedding: what learns there would never get a gradient, for which
#: data-parallel training would wait.
_POOLER: Final = r"(.*\.)?pooler\..*"
_POSITIONS = re.compile(r"(^|\.)(position_embeddings|wpe|embed_positions)\.")


class Trainable:
    """What a trainer asks of a network around a model of transformers: checkpointing of activations, weights to save.

    Activations are computed again in the backward pass instead of kept, with `--gradient-checkpointing`. Its reentrant
    form would find no gradient behind frozen embeddings, so it is off unless asked for.
    """

    @property
    def transformer(self) -> Any:
        """The model of transformers, with its adapters."""
        raise NotImplementedError

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: Mapping[str, Any] | None = None, **layers: Any
    ) -> None:
        """Switch it on, under the name of transformers 5.24; `layers` says which layers and where to keep them."""
        self._checkpoint("activation", activation_checkpointing_kwargs, layers)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None, **layers: Any
    ) -> None:
        """Switch it on, under the name that transformers has up to 5.20."""
        self._checkpoint("gradient", gradient_checkpointing_kwargs, layers)

    def gradient_checkpointing_disable(self) -> None:
        """Switch it off."""
        self.transformer.gradient_checkpointing_disable()

    def _checkpoint(self, what: str, given: Mapping[str, Any] | None, layers: Mapping[str, Any]) -> None:
        options = {f"{what}_checkpointing_kwargs": {"use_reentrant": False, **(given or {})}}
        try:
            getattr(self.transformer, f"{what}_checkpointing_enable")(**options, **layers)
        except ValueError as error:  # So transformers says it, from the class of the model or of a part of it.
            raise ArgumentError(f"--gradient-checkpointing cannot be used here: {error}") from error

    def weights(self) -> dict[str, Tensor]:
        """The model's weights by their names in a checkpoint; adapters (peft) merged."""
        model = self.transformer
        if hasattr(model, "merge_and_unload"):
            model = copy.deepcopy(model).merge_and_unload()
        return dict(model.state_dict())


class TrainableEncoder(Trainable, nn.Module):
    """The encoder with what a trainer asks of a model."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    @property
    def transformer(self) -> Any:
        """The model of transformers in it."""
        return self.encoder.backbone.model  # type: ignore[attr-defined]

    def forward(self, batch: Packed) -> Tensor:
        """Vectors [n, d] in float32, differentiable."""
        return self.encoder(batch)

    def dense(self) -> list[dict[str, Tensor]]:
        """Weights of the dense layers behind pooling."""
        return [dict(layer.state_dict()) for layer in self.encoder.head.layers]


def load_trainable(
    folder: Path, card: ModelCard, *, fix_position_embedding: bool = False, trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> TrainableEncoder:  # fmt: skip
    """The encoder of a checkpoint for training, on the CPU.

    Args:
        folder: The checkpoint.
        card: Its card; pooling and normalisation are what it says.
        fix_position_embedding: Leave the position embeddings as they are.
        trust_remote_code: Allow architectures that the checkpoint brings as Python code.
        allow_pickle: Allow `.bin` weights.

    Raises:
        CheckpointError: files are missing or damaged.
        ArgumentError: there are no position embeddings to fix.
    """
    model = load_transformer(
        folder, dtype=torch.float32, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle
    )
    backbone = (PackedBackbone if can_pack(model) else PaddedBackbone)(model)
    encoder = Encoder(backbone, card)
    load_head(encoder.head, folder, card, allow_pickle)
    fixed = 0
    for name, parameter in model.named_parameters():
        position = _POSITIONS.search(name) is not None
        fixed += position
        if re.fullmatch(_POOLER, name) or (fix_position_embedding and position):
            parameter.requires_grad_(False)
    if fix_position_embedding and not fixed:
        raise ArgumentError(f"{card.name} has no position embeddings to fix: leave out --fix-position-embedding")
    use_quick_dropout(model)
    return TrainableEncoder(encoder).train()


def add_lora(network: TrainableEncoder, *, rank: int, alpha: float, dropout: float, modules: list[str] | None) -> None:
    """Freeze the transformer and give it low-rank adapters (arXiv:2106.09685) that are trained instead.

    Args:
        network: Changed in place.
        rank: Rank of the adapters.
        alpha: Their scale is alpha / rank.
        dropout: On their input.
        modules: Names of the layers that get them, a pooler's excepted; all linear layers by default.

    Raises:
        MissingExtraError: peft is not installed.
        ArgumentError: there are no such layers.
    """
    peft: Any = import_extra("peft", "lora")
    pooled = any(re.fullmatch(_POOLER, name) for name, _ in network.transformer.named_modules())
    config = peft.LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=modules or "all-linear", bias="none",
        task_type="FEATURE_EXTRACTION", exclude_modules=_POOLER if pooled else None,
    )  # fmt: skip
    try:
        adapted = peft.get_peft_model(network.transformer, config)
    except ValueError as error:
        raise ArgumentError(f"--use-lora: {error}") from error
    use_quick_dropout(adapted)
    network.encoder.backbone.model = adapted  # type: ignore[attr-defined]
