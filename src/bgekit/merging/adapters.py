"""LoRA adapters (arXiv:2106.09685) as peft saves them: what they add to the weights of their base."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from ..errors import CheckpointError
from ..models.checkpoint import read_json
from .tensors import Stored, stored_tensors

CONFIG: Final = "adapter_config.json"
_WEIGHTS: Final = ("adapter_model.safetensors", "adapter_model.bin")
_LOW_RANK: Final = re.compile(r"^(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<part>[AB])(\.weight)?$")
#: Ways to begin training that leave the base as it is; others (PiSSA, LoftQ, ...) change it.
_PLAIN_STARTS: Final = ("gaussian", "eva", "orthogonal")


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no model."""
    return (folder / CONFIG).is_file() and any((folder / name).is_file() for name in _WEIGHTS)


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
        config = read_json(folder / CONFIG)
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

    def apply(self, tensors: Mapping[str, Stored], find: Callable[[str], str | None]) -> dict[str, Stored]:
        """The tensors of its base with what it adds.

        Args:
            tensors: The base's.
            find: A name in the adapter -> the base's name, None where there is no such weight.

        Raises:
            CheckpointError: it has weights that do not fit the base.
        """
        own = {name.removeprefix("base_model.model."): value for name, value in stored_tensors(self.file).items()}
        pairs: dict[str, dict[str, Stored]] = {}
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

    def _sum(self, module: str, weight: Stored, pair: Mapping[str, Stored], embedding: bool) -> Stored:
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

        def read(rows: slice) -> Tensor:
            if transposed:
                added = a.whole()[:, rows].double().T @ b.whole().double().T
            else:
                added = b.read(rows).double() @ a.whole().double()
            return weight.read(rows).double() + scale * added

        return Stored(weight.dtype, weight.shape, read)

    def _scale(self, module: str, rank: int) -> float:
        alpha = float(self.config.get("lora_alpha") or 8)
        for pattern, value in (self.config.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                alpha = float(value)
                break
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)
