"""A merged model on disk: first a bare checkpoint of merged weights, then what every saved model has."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..encoding.tokenization import load_tokenizer
from ..errors import BgekitError, OutputError
from ..models.card import ModelCard
from ..models.checkpoint import read_json, stored_dtype
from ..models.saving import (
    KEPT_FILES,
    atomic_folder,
    copy_matching,
    make_selftest,
    save_tensors,
    target_folder,
    write_checkpoint,
    write_json,
    write_tokenizer,
)
from ..reranking.card import RerankerCard
from ..reranking.saving import write_reranker
from .agreement import Card, Kind, card_of
from .combining import combined_weights, merged_dense, write_weights
from .methods import Average, Method
from .report import PROVENANCE, add_to_readme, save_curve
from .searching import Trial
from .sources import Source


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
    def title(self) -> str:
        """What messages call the result while it has no folder of its own."""
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
        trials: Of a search, to be drawn.
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
            made = scratch / "made" / target.name  # Whose name the README has.
            with named(scratch, parts.title):
                _write_complete(parts, stage, made, selftest=provenance is not None)
            if provenance is not None:
                write_json(made / PROVENANCE, provenance)
                add_to_readme(made / "README.md", provenance)
            if trials is not None:
                save_curve(trials, [source.name for source in parts.sources], made)
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


def _write_stage(parts: Parts, method: Method, stage: Path) -> None:
    """Merged weights with config and tokenizer: what the network is loaded from."""
    first, lead = parts.sources[0], parts.sources[parts.lead]
    write_weights(combined_weights(parts.sources, parts.base, parts.kind), method, first, stage)
    config = read_json(first.folder / "config.json")
    dtype = stored_dtype(stage)
    write_json(stage / "config.json", config | {"dtype" if "dtype" in config else "torch_dtype": dtype})
    write_tokenizer(lead.tokenizer_folder, stage, None, parts.card.max_length, lead.options.trust_remote_code)
    copy_matching(lead.folder, stage, (*KEPT_FILES[:3], "README.md"))
    if first.options.trust_remote_code:
        copy_matching(first.folder, stage, ("*.py",))
    if isinstance(parts.card, ModelCard) and parts.card.dense:
        layers = [card.dense for card in parts.cards if isinstance(card, ModelCard)]
        if parts.base is not None:
            layers.append(_layers_of(parts.base))
        for layer, head in zip(parts.card.dense, merged_dense(parts.sources, parts.base, layers, method), strict=True):
            (stage / layer.folder).mkdir(parents=True)
            save_tensors({f"linear.{name}": value for name, value in head.items()}, stage / layer.folder)


def _layers_of(base: Source) -> Any:
    # A bare encoder has no card, since nothing says how it pools, and no head.
    card = card_of(base, "encoder", needed=False)
    return card.dense if isinstance(card, ModelCard) else ()


def _write_complete(parts: Parts, stage: Path, made: Path, *, selftest: bool) -> None:
    options, name = parts.sources[0].options, made.name
    origin = f"Merged from {len(parts.sources)} model{'s' * (len(parts.sources) > 1)} by bgekit."
    dtype = stored_dtype(stage) or parts.card.dtype
    if isinstance(parts.card, RerankerCard):
        card = replace(parts.card, name=name, dtype=dtype)
        write_reranker(made, card=card, source=stage, origin=origin, remote_code=options.trust_remote_code)
        return
    # Thresholds of the models that were merged say nothing of the result's similarities.
    embedder = replace(parts.card, name=name, dtype=dtype, calibration=None, selftest=None)
    test = _selftest(stage, embedder, options.trust_remote_code) if selftest else None
    write_checkpoint(
        made, card=embedder, source=stage, selftest=test, origin=origin, remote_code=options.trust_remote_code
    )  # fmt: skip


def _selftest(stage: Path, card: ModelCard, trust_remote_code: bool) -> dict[str, Any]:
    # Not the fused network, which would have a second copy of the weights.
    from ..training.network import load_trainable

    network = load_trainable(stage, card, trust_remote_code=trust_remote_code).eval()
    tokenizer = load_tokenizer(stage, lower_case=card.lower_case, trust_remote_code=trust_remote_code)
    return make_selftest(network.encoder, tokenizer, card, torch.device("cpu"))
