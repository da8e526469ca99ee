"""The network of a reranker: packed pairs -> scores, for inference and for training."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from ..errors import CardError
from ..models.card_reading import is_classifier
from ..models.checkpoint_files import read_config
from .cpu_inference import can_fuse
from .cpu_products import in_equal_parts
from .cpu_training import use_quick_dropout
from .encoder import (
    Backbone,
    FusedBackbone,
    PackedBackbone,
    Trainable,
    can_pack,
    fused_backbone,
    inference_backbone,
    loading_dtype,
    padded_inputs,
)
from .loading import cast, load_published
from .packing import PACKED_ATTENTION, Packed, register
from .pooling import pool, rows_needed
from .stored_bert import StoredClassifier, stored_classifier

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..models.card import Pooling

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Head:
    """The head by which a published class makes logits of its transformer's output.

    Attributes:
        modules: Names of the modules that take part, `base.` for those inside the transformer.
        apply: The model and pooled vectors [n, h] -> logits [n, labels], by the model's own modules.
    """

    modules: tuple[str, ...]
    apply: Callable[[Any, Tensor], Tensor]


def _pooler_logits(model: Any, first: Tensor) -> Tensor:
    return model.classifier(model.dropout(model.base_model.pooler(first[:, None])))


def _first_logits(model: Any, first: Tensor) -> Tensor:
    return model.classifier(first[:, None])


# Functions with names, of those heads that processes share with their network (`sharing.py`).
_POOLER: Final = Head(("base.pooler", "dropout", "classifier"), _pooler_logits)
_FIRST: Final = Head(("classifier",), _first_logits)
_MODERN_BERT: Final = Head(
    ("head", "drop", "classifier"), lambda model, pooled: model.classifier(model.drop(model.head(pooled)))
)
_DISTIL_BERT: Final = Head(
    ("pre_classifier", "dropout", "classifier"),
    lambda model, first: model.classifier(model.dropout(torch.relu(model.pre_classifier(first)))),
)
#: Published classes whose head reads one vector per sequence, so that the transformer below it can run unpadded.
_HEADS: Final = {
    "BertForSequenceClassification": _POOLER,
    "ErnieForSequenceClassification": _POOLER,
    "RobertaForSequenceClassification": _FIRST,
    "XLMRobertaForSequenceClassification": _FIRST,
    "XLMRobertaXLForSequenceClassification": _FIRST,
    "CamembertForSequenceClassification": _FIRST,
    "Data2VecTextForSequenceClassification": _FIRST,
    "ElectraForSequenceClassification": _FIRST,
    "ModernBertForSequenceClassification": _MODERN_BERT,
    "DistilBertForSequenceClassification": _DISTIL_BERT,
}
#: Parts of the names of weights that a checkpoint without a head lacks.
_NEW: Final = ("pooler", "classifier", "head.", "score.")


class CrossEncoder(Trainable, nn.Module):
    """Packed pairs -> scores. One class for inference, mining, evaluation and training.

    Attributes:
        model: The published class, with the weights under their published names.

    Example:
        >>> import torch
        >>> from bgekit.models import resolve
        >>> from bgekit.networks import Packed, load_cross_encoder
        >>> network = load_cross_encoder(resolve("BAAI/bge-reranker-base"))
        >>> with torch.inference_mode():
        ...     scores = network(Packed.of([[2, 7, 3, 8, 3], [2, 9, 3, 7, 3]]))
        >>> scores.shape
        torch.Size([2])
    """

    def __init__(self, model: PreTrainedModel | StoredClassifier, backbone: Backbone | None = None) -> None:
        """Use a sequence classifier of transformers.

        Args:
            model: The classifier, with one or two labels; as it is stored, it needs a backbone.
            backbone: What computes its transformer; by default the transformer itself, unpadded where it can be.
        """
        super().__init__()
        self.model = model
        # In a tuple, what is not a submodule of its own: its weights are those of `model` and must not be listed twice.
        # `model` may get adapters around it, which are within this one, too.
        self._published = (model,)
        self.head = head_of(model)
        self.pooling: Pooling = "mean" if getattr(model.config, "classifier_pooling", "cls") == "mean" else "cls"
        if not isinstance(model, StoredClassifier):
            register()
            if backbone is None and self.head is not None:
                model.set_attn_implementation(PACKED_ATTENTION)
                backbone = PackedBackbone(model.base_model)
        self._backbone = (backbone,)
        takes = isinstance(model, StoredClassifier) or "token_type_ids" in inspect.signature(model.forward).parameters
        #: How many token types the network has.
        self.token_types = int(getattr(model.config, "type_vocab_size", 0) or 0) if takes else 0

    @property
    def transformer(self) -> Any:
        """The published class, or the adapters around it."""
        return self.model

    @property
    def published(self) -> Any:
        """The published class itself, whatever adapters are around it in `model`."""
        return self._published[0]

    @property
    def backbone(self) -> Backbone | None:
        """What computes the transformer; None where the classifier is run as a whole."""
        return self._backbone[0]

    @property
    def padded(self) -> bool:
        """Whether the network computes padding too."""
        return self.backbone is None

    @property
    def exact(self) -> bool:
        """Whether the bits of a score depend on its own pair alone, not on its company or the threads."""
        return isinstance(self._backbone[0], FusedBackbone)

    @property
    def config(self) -> Any:
        """The config of the classifier."""
        return self.model.config

    def forward(self, batch: Packed) -> Tensor:
        """Scores [n] float32, one for each pair of the batch; differentiable unless loaded for inference."""
        logits = self.logits(batch)
        # Of two classes the log-odds of the second: its sigmoid is the softmax's probability of the second.
        return logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]

    def logits(self, batch: Packed) -> Tensor:
        """[n, labels] float32."""
        backbone = self._backbone[0]
        if backbone is None or self.head is None:
            inputs = padded_inputs(batch, self.config.pad_token_id or 0)
            result: Tensor = self.model(**inputs).logits.float()
            return result
        pooled = pool(backbone(batch, rows_needed(self.pooling)), batch, self.pooling)
        # The head is a thousandth of the work, and half precision would round the scores.
        with torch.autocast(pooled.device.type, enabled=False):
            weight = next(parameter for part in self._head_parts() for parameter in part.parameters())
            head, pooled = partial(self.head.apply, self.published), pooled.to(weight.dtype)
            return (in_equal_parts(head, pooled) if self.exact else head(pooled)).float()

    def _head_parts(self) -> Iterator[nn.Module]:
        """The modules of the head, which adapters may have replaced by now."""
        for name in self.head.modules if self.head is not None else ():
            yield self.published.get_submodule(name.replace("base.", f"{self.published.base_model_prefix}."))


def head_of(model: PreTrainedModel | StoredClassifier) -> Head | None:
    """The function by which the class makes logits of pooled vectors; None where it is run as a whole, padded."""
    if isinstance(model, StoredClassifier):
        return _HEADS[model.published]
    kind = type(model)
    if not kind.__module__.startswith("transformers.models.") or not can_pack(model.base_model):
        return None
    return _HEADS.get(kind.__name__)


def load_cross_encoder(
    folder: Path,
    *,
    precision: str = "float32",
    device: torch.device | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> CrossEncoder:
    """The reranker of a checkpoint, ready for inference on `device`.

    Args:
        folder: The checkpoint.
        precision: `float32`, `bfloat16`, `float16`, or `int8` (CPU, BERT family).
        device: Where to compute, the CPU by default.
        trust_remote_code: Allow architectures that the checkpoint brings as Python code.
        allow_pickle: Allow `.bin` weights.

    Raises:
        CheckpointError: files are missing or damaged.
        CardError: the precision is not possible for this architecture.

    Example:
        >>> from bgekit.models import resolve
        >>> from bgekit.networks import load_cross_encoder
        >>> network = load_cross_encoder(resolve("BAAI/bge-reranker-base"))
    """
    device = device or torch.device("cpu")
    if device.type == "cpu":
        stored = stored_classifier(folder, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
        if stored is not None and can_fuse(stored[1]):
            return CrossEncoder(stored[0], fused_backbone(stored[1], precision, folder)).eval()
    dtype = loading_dtype(precision, device)
    model = load_classifier(
        folder, dtype, new_head=False, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle
    )
    backbone: Backbone | None = None
    if head_of(model) is not None:
        model.set_attn_implementation(PACKED_ATTENTION)
        backbone = inference_backbone(model.base_model, precision, device)
    elif precision == "int8":
        raise CardError(f"dtype='int8' is there for BERT, RoBERTa and XLM-R, not for {type(model).__name__}")
    else:
        model = cast(model, getattr(torch, precision))
    network = CrossEncoder(model, backbone)
    head = [part.float() for part in network._head_parts()]
    if isinstance(backbone, FusedBackbone):  # It has a copy of the transformer's weights: these are freed.
        for name, part in list(model.base_model.named_children()):
            if part not in head:
                delattr(model.base_model, name)
    logger.debug("%s runs as %s in %s on %s", folder, type(backbone or model).__name__, precision, device)
    return network.to(device).eval()


def load_trainable(folder: Path, *, trust_remote_code: bool = False, allow_pickle: bool = False) -> CrossEncoder:
    """The reranker of a checkpoint for training: float32, on the CPU, differentiable.

    A checkpoint of a bare encoder gets a new head with one output, drawn from torch's generator: seed it before.

    Args:
        folder: The checkpoint, a classifier or a bare encoder.
        trust_remote_code: Allow architectures that the checkpoint brings as Python code.
        allow_pickle: Allow `.bin` weights.

    Raises:
        CheckpointError: files are missing or damaged.

    Example:
        >>> from bgekit.models import resolve
        >>> from bgekit.networks import load_trainable
        >>> network = load_trainable(resolve("BAAI/bge-reranker-base"))
        >>> all(parameter.requires_grad for parameter in network.parameters())
        True
    """
    new_head = not is_classifier(read_config(folder))
    network = CrossEncoder(load_classifier(folder, torch.float32, new_head, trust_remote_code, allow_pickle))
    use_quick_dropout(network)
    return network.train()


def classifier_class(config: Any) -> Any:
    """The class of transformers whose `from_pretrained` makes a reranker."""
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification


def load_classifier(
    folder: Path, dtype: torch.dtype, new_head: bool, trust_remote_code: bool, allow_pickle: bool
) -> PreTrainedModel:
    """The published classifier of a checkpoint, in evaluation mode on the CPU.

    Args:
        folder: The checkpoint.
        dtype: Type of the weights.
        new_head: Whether a checkpoint without a head gets a new one.
        trust_remote_code: Allow architectures that the checkpoint brings as Python code.
        allow_pickle: Allow `.bin` weights.

    Raises:
        CheckpointError: files are missing or damaged.
        CardError: the config does not say what padding is, where the class needs it.
    """
    model = load_published(
        folder,
        classifier_class,
        dtype=dtype,
        without=_NEW if new_head else (),
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
        **({"num_labels": 1} if new_head else {}),
    )
    if model.config.pad_token_id is None and head_of(model) is None:
        raise CardError(f"the config.json of {folder} has no pad_token_id, which {type(model).__name__} needs")
    return model
