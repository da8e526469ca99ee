"""A merged model on disk: first a bare checkpoint of merged weights, then what every saved model has."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from ..display.pages import render
from ..errors import BgekitError, CheckpointError, NumericalError, OutputError
from ..files.atomic import atomic_folder, target_folder, write_json
from ..inference.embedder import make_selftest
from ..inference.tokenization import load_tokenizer
from ..models.card import DenseLayer, ModelCard, RerankerCard
from ..models.checkpoint_files import read_json, stored_dtype
from ..models.sentence_transformers_files import hub_id, short_names, shown_name
from ..networks.encoder import load_trainable
from ..networks.saving import KEPT_FILES, copy_matching, save_tensors, write_checkpoint, write_reranker, write_tokenizer
from .merge_page import save_page
from .merge_weights import Trial
from .methods import Average, Method, Rows, Stack
from .sources import DTYPES, Card, Kind, Source, StoredTensor, card_of, is_optional

logger = logging.getLogger(__name__)
#: What was merged, how, and with which weights.
PROVENANCE: Final = "merge.json"
#: Elements of a block that is merged at a time: 0.5 MB in float64, which caches hold and the heap uses again.
BLOCK: Final = 1 << 16


@dataclass(frozen=True)
class Parts:
    """Models that agree.

    Attributes:
        sources: The models.
        base: The base model, None without.
        kind: What they are.
        card: What the result says of itself.
        cards: What each model says of itself.
        lead: Number of the model whose card, tokenizer and licence the result gets; weights and config have the form
            of the first.
    """

    sources: Sequence[Source]
    base: Source | None
    kind: Kind
    card: Card
    cards: Sequence[Card]
    lead: int

    @property
    def everyone(self) -> list[Source]:
        """The models, and the base if there is one."""
        return [*self.sources, *([self.base] if self.base is not None else [])]

    @property
    def title(self) -> str:
        """Name of the result in messages while it has no folder of its own."""
        names = [source.name for source in self.sources]
        return f"the merge of {', '.join(names)}" if len(names) > 1 else f"{names[0]} with its base"


def save_merged(
    parts: Parts, method: Method, path: Path, provenance: Mapping[str, Any] | None, *,
    trials: Sequence[Trial] | None = None, overwrite: bool = False,
) -> None:  # fmt: skip
    """Write the merged model; the folder is complete or not there.

    Args:
        parts: The models.
        method: How they are merged, with weights.
        path: Folder to make.
        provenance: Content of merge.json; None for a candidate that is measured and thrown away, which also has no
            self-test.
        trials: Trials of a search, to be drawn.
        overwrite: Replace a model that is there.

    Raises:
        OutputError: the folder exists or cannot be written.
        NumericalError: a merged weight is not finite.
        CheckpointError: the models do not fit together, or one is damaged.
    """
    target = target_folder(path, overwrite)
    with atomic_folder(target) as folder:
        scratch = folder / ".working"
        stage = scratch / "stage"
        try:
            stage.mkdir(parents=True)
            _write_stage(parts, method, stage)
            made = scratch / "made"
            with named(scratch, parts.title):
                _write_complete(parts, stage, made, target.name, selftest=provenance is not None)
            if provenance is not None:
                write_json(made / PROVENANCE, provenance)
                add_to_readme(made / "README.md", provenance)
            if trials is not None and provenance is not None:
                save_page(trials, made, name=target.name, provenance=provenance)
            for each in list(made.iterdir()):
                os.replace(each, folder / each.name)
            shutil.rmtree(scratch)
        except OutputError as error:
            # It names a folder of ours; what contains this block knows the caller's.
            if isinstance(error.__cause__, OSError):
                raise error.__cause__ from None
            raise


@contextlib.contextmanager
def named(folder: Path, title: str) -> Iterator[None]:
    """An error about what is in a folder that will be gone names what it was instead.

    Args:
        folder: The folder; what is below it counts as well.
        title: What the error says.
    """
    try:
        yield
    except BgekitError as error:
        message = re.sub(rf"{re.escape(str(folder))}[^\s,;:'\")]*", lambda _: title, str(error))
        if message == str(error):
            raise
        raise type(error)(message) from error.__cause__


@contextlib.contextmanager
def adapted(parts: Parts, number: int) -> Iterator[Path]:
    """A folder from which one of the models can be loaded: its own, or for an adapter that of its sum, for a while."""
    source = parts.sources[number]
    if source.adapter is None:
        yield source.folder
        return
    with tempfile.TemporaryDirectory(prefix="bgekit-merge-") as scratch:
        stage = Path(scratch)
        alone = Parts([source], None, parts.kind, parts.cards[number], [parts.cards[number]], 0)
        try:
            _write_stage(alone, Average((1.0,)), stage)
        except BgekitError:  # What is wrong with a model, also where that is an OSError.
            raise
        except OSError as error:
            raise OutputError(
                f"cannot write a copy of {source.name} with its base to {scratch}: {error.strerror or error}; TMPDIR "
                "names another place"
            ) from error
        with named(stage, alone.title):
            yield stage


def add_to_readme(file: Path, provenance: Mapping[str, Any]) -> None:
    """Say in a README what was merged; models of the hub also in its front matter."""
    from huggingface_hub import metadata_load, metadata_save

    models = provenance["models"]
    names = [model["name"] for model in models]
    front = metadata_load(file) or {}
    front.pop("base_model", None)
    public = [name for name in names if hub_id(name)]
    front |= {"base_model": public, "base_model_relation": "merge"} if public else {}
    front["tags"] = [*front.get("tags", []), *(["merge"] if "merge" not in front.get("tags", []) else [])]
    metadata_save(file, front)
    # Where folders lie here is nothing for others.
    shown = [name if hub_id(name) else short for name, short in zip(names, short_names(names), strict=True)]
    weights = [(name, f"{model['weight']:.4f}") for name, model in zip(shown, models, strict=True)]
    settings = ", ".join(
        f"{name} {value:g}" for name, value in provenance["method"].items() if name not in ("method", "weights")
    )
    method = provenance["method"]["method"] + (f" ({settings})" if settings else "")
    method += f", base {shown_name(provenance['base']['name'])}" if provenance["base"] else ""
    section = render("merging/merge_report.md.jinja", weights=weights, method=method, provenance=PROVENANCE)
    file.write_text(file.read_text(encoding="utf-8").rstrip("\n") + "\n\n" + section, encoding="utf-8")


def _write_stage(parts: Parts, method: Method, stage: Path) -> None:
    """Merged weights with config and tokenizer: what the network is loaded from."""
    first, lead = parts.sources[0], parts.sources[parts.lead]
    write_weights(combined_weights(parts), method, first, stage)
    config = read_json(first.folder / "config.json")
    dtype = stored_dtype(stage)
    write_json(stage / "config.json", config | {"dtype" if "dtype" in config else "torch_dtype": dtype})
    write_tokenizer(lead.tokenizer_folder, stage, None, parts.card.max_length, lead.options.trust_remote_code)
    copy_matching(lead.folder, stage, (*KEPT_FILES, "README.md"))
    if first.options.trust_remote_code:
        copy_matching(first.folder, stage, ("*.py",))
    if isinstance(parts.card, ModelCard) and parts.card.dense:
        layers = [card.dense for card in parts.cards if isinstance(card, ModelCard)]
        if parts.base is not None:
            # A bare encoder has no card, since nothing says how it pools, and no head.
            card = card_of(parts.base, "encoder", needed=False)
            layers.append(card.dense if isinstance(card, ModelCard) else ())
        for layer, head in zip(parts.card.dense, merged_dense(parts, layers, method), strict=True):
            (stage / layer.folder).mkdir(parents=True)
            save_tensors({f"linear.{name}": value for name, value in head.items()}, stage / layer.folder)


def _write_complete(parts: Parts, stage: Path, made: Path, name: str, *, selftest: bool) -> None:
    trusted = parts.sources[0].options.trust_remote_code
    origin = f"Merged from {len(parts.sources)} model{'s' * (len(parts.sources) > 1)} by bgekit."
    dtype = stored_dtype(stage) or parts.card.dtype
    if isinstance(parts.card, RerankerCard):
        card = replace(parts.card, name=name, dtype=dtype)
        write_reranker(made, card=card, source=stage, origin=origin, remote_code=trusted, title=name)
        return
    # Thresholds of the models that were merged say nothing of the result's similarities.
    embedder = replace(parts.card, name=name, dtype=dtype, calibration=None, selftest=None)
    test = _selftest(stage, embedder, trusted) if selftest else None
    write_checkpoint(made, card=embedder, source=stage, selftest=test, origin=origin, remote_code=trusted, title=name)


def _selftest(stage: Path, card: ModelCard, trust_remote_code: bool) -> dict[str, Any]:
    # Not the fused network, which would have a second copy of the weights.
    network = load_trainable(stage, card, trust_remote_code=trust_remote_code).eval()
    tokenizer = load_tokenizer(stage, lower_case=card.lower_case, trust_remote_code=trust_remote_code)
    return make_selftest(network.encoder, tokenizer, card, torch.device("cpu"))


@dataclass(frozen=True)
class Combined:
    """One tensor of the result and where it comes from.

    Attributes:
        stored: Its type and shape: the first model's.
        models: The tensor of each model; the first's alone, and no base, where another does not have it.
        base: The base model's.
    """

    stored: StoredTensor
    models: Sequence[StoredTensor]
    base: StoredTensor | None = None


def combined_weights(parts: Parts) -> dict[str, Combined]:
    """The tensors that are merged, by the first model's names.

    Raises:
        CheckpointError: a weight is missing in a model, or has another shape or kind of number there.
    """
    first, *others = parts.everyone
    found = {}
    used: list[set[str]] = [set() for _ in others]
    for name, stored in first.tensors.items():
        theirs = [source.find(name) for source in others]
        if lacking := [source.name for source, own in zip(others, theirs, strict=True) if own is None]:
            if not is_optional(name, parts.kind):
                raise CheckpointError(f"{lacking[0]} has no weight {name}, which {first.name} has")
            logger.info("%s is taken from %s: %s has no such weight", name, first.name, lacking[0])
            found[name] = Combined(stored, [stored])
            continue
        names = [own for own in theirs if own is not None]
        for seen, own in zip(used, names, strict=True):
            seen.add(own)
        tensors = [stored, *(source.tensors[own] for source, own in zip(others, names, strict=True))]
        _check_alike(name, parts.everyone, tensors)
        base = tensors[-1] if parts.base is not None else None
        found[name] = Combined(stored, tensors[: len(parts.sources)], base)
    for source, seen in zip(others, used, strict=True):
        extra = [name for name in source.tensors if name not in seen and first.find(name) is None]
        if wrong := [name for name in extra if not is_optional(name, parts.kind)]:
            raise CheckpointError(f"{first.name} has no weight {wrong[0]}, which {source.name} has")
    return found


def write_weights(weights: Mapping[str, Combined], method: Method, first: Source, folder: Path) -> None:
    """Write merged weights as safetensors, in as many files as the first model has.

    Args:
        weights: What `combined_weights` found.
        method: How they are merged.
        first: The first model.
        folder: Where to.

    Raises:
        NumericalError: a merged weight is NaN or infinite, or too large for the type that it is stored in.
        OSError: the files cannot be written.
    """
    places: dict[str, str] = {}
    for file, names in first.files.items():
        target = file.name.replace("pytorch_model", "model").removesuffix(file.suffix) + ".safetensors"
        stored = {name: weights[name].stored for name in names}
        write_safetensors(folder / target, stored, lambda name: merged_tensor(name, weights[name], method))
        places |= dict.fromkeys(names, target)
    if len(first.files) > 1:
        total = sum(each.stored.size for each in weights.values())
        index = {"metadata": {"total_size": total}, "weight_map": places}
        write_json(folder / "model.safetensors.index.json", index)


def write_safetensors(file: Path, tensors: Mapping[str, StoredTensor], merged: Callable[[str], Tensor]) -> None:
    """Write a safetensors file, one tensor at a time; the library's own writer wants all of them in memory.

    Args:
        file: The file to make.
        tensors: Type and shape of each tensor by its name.
        merged: The tensor of a name, in this type and shape.

    Raises:
        OSError: it cannot be written.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))  # Wide types first: aligned.
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        begin, end = end, end + tensors[name].size
        kind = next(kind for kind, dtype in DTYPES.items() if dtype == tensors[name].dtype)
        header[name] = {"dtype": kind, "shape": tensors[name].shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as output:
        output.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            output.write(merged(name).view(-1).view(torch.uint8).numpy().data)


def merged_dense(parts: Parts, layers: Sequence[Sequence[DenseLayer]], method: Method) -> list[dict[str, Tensor]]:
    """`weight` and `bias` of each dense layer behind the pooling, merged.

    Args:
        parts: The models; where the base lacks a head, as a bare encoder does, the heads are averaged.
        layers: The dense layers of each model, and of the base if there is one.
        method: How they are merged.
    """
    everyone, count = parts.everyone, len(parts.sources)
    equal = Average((1 / count,) * count)
    heads = []
    for number, _ in enumerate(layers[0]):
        own = [source.dense(each[number]) for source, each in zip(everyone, layers, strict=True) if number < len(each)]
        whole = len(own) == len(everyone)
        head = {}
        for name, stored in own[0].items():
            tensors = [each[name] for each in own]
            _check_alike(f"dense layer {number}, {name}", everyone[: len(own)], tensors)
            one = Combined(stored, tensors[:count], tensors[-1] if whole and parts.base is not None else None)
            head[name] = merged_tensor(f"dense.{number}.{name}", one, method if whole else equal)
        heads.append(head)
    return heads


def merged_tensor(name: str, weight: Combined, method: Method) -> Tensor:
    """A merged tensor, in the type that it is stored in.

    Raises:
        NumericalError: a value is NaN or infinite, or too large for the type.
    """
    stored = weight.stored
    whole = not stored.dtype.is_floating_point
    if whole or len(weight.models) < len(method.weights) or (method.needs_base and weight.base is None):
        tensor = stored.read().to(stored.dtype, copy=True)
        if whole and not all(torch.equal(tensor, model.read()) for model in weight.models[1:]):
            # Such as positions, which are not averaged.
            logger.warning("%s holds whole numbers in which the models differ: the first model's are taken", name)
        return tensor
    step = max(1, BLOCK // max(math.prod(stored.shape[1:]), 1))
    blocks = [slice(start, min(start + step, stored.rows)) for start in range(0, stored.rows, step)]
    stack = Stack(name, blocks, [_wide(model) for model in weight.models], _wide(weight.base) if weight.base else None)
    merged = torch.empty(stored.rows, *stored.shape[1:], dtype=stored.dtype)
    for rows, block in zip(blocks if merged.numel() else (), method.combine(stack), strict=False):
        merged[rows] = block
        if not bool(torch.isfinite(merged[rows]).all()):
            raise NumericalError(
                f"the merged {name} has values that are NaN or infinite as "
                f"{str(stored.dtype).removeprefix('torch.')}: a model is damaged, or its weights are too far from the "
                "others'"
            )
    return merged.view(stored.shape)


def _check_alike(name: str, sources: Sequence[Source], tensors: Sequence[StoredTensor]) -> None:
    first, stored = sources[0], tensors[0]
    for source, tensor in zip(sources[1:], tensors[1:], strict=True):
        if tensor.shape != stored.shape:
            raise CheckpointError(
                f"{name} has the shape {list(stored.shape)} in {first.name} and {list(tensor.shape)} in {source.name}"
            )
        if tensor.dtype != stored.dtype and not (tensor.dtype.is_floating_point and stored.dtype.is_floating_point):
            raise CheckpointError(
                f"{name} is stored as {stored.dtype} in {first.name} and as {tensor.dtype} in {source.name}"
            )


def _wide(stored: StoredTensor) -> Rows:
    opened = stored.open()
    return lambda rows: opened(rows).to(torch.float64, copy=True)
