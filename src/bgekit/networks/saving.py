"""A checkpoint on disk that every library loads with the same vectors, complete or not there at all.

Everything is written into a folder beside the target, flushed to the disk, and renamed. A full disk, an exception or a
lost machine leaves the target as it was.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from .._version import package_versions
from ..display.pages import render
from ..errors import ArgumentError
from ..files.atomic import atomic_folder, target_folder, write_json
from ..models.calibration_map import moved
from ..models.card import CONFIG_KEY, DenseLayer, ModelCard, RerankerCard
from ..models.checkpoint_files import read_json, read_tensors, weight_files
from ..models.sentence_transformers_files import dense_folder, front_matter, hub_id, readme, side_files
from .loading import quiet_transformers

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast

    from .cross_encoder import CrossEncoder
    from .heads import TokenHeads

logger = logging.getLogger(__name__)
#: The first three are always written.
_TOKENIZER_FILES: Final = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
    "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model", "chat_template.jinja",
)  # fmt: skip
#: Terms of use, kept as they are.
KEPT_FILES: Final = ("LICENSE*", "LICENCE*", "NOTICE*")


def write_checkpoint(
    path: Path,
    *,
    card: ModelCard,
    source: Path,
    weights: Mapping[str, Tensor] | None = None,
    dense: Sequence[Mapping[str, Tensor]] | None = None,
    heads: TokenHeads | None = None,
    tokenizer: PreTrainedTokenizerFast | None = None,
    selftest: Mapping[str, Any] | None = None,
    origin: str = "",
    overwrite: bool = False,
    allow_pickle: bool = False,
    remote_code: bool = False,
    prefix: str = "",
    title: str | None = None,
) -> None:
    """Write a checkpoint in the universal layout, atomically.

    Args:
        path: Folder to make.
        card: What the checkpoint says of itself.
        source: Checkpoint that config, tokenizer and licence are taken from, and the weights unless given.
        weights: Weights of the transformer by their names there; floating ones are stored as `card.dtype`. None
            copies the source's: safetensors byte by byte, `.bin` files (if allowed) converted tensor by tensor.
        dense: `weight` and `bias` of each of `card.dense`; None copies the source's.
        heads: Heads for lexical weights and multi-vectors; None copies the source's, unless weights are given.
        tokenizer: A tokenizer to save instead of the source's.
        selftest: What `make_selftest` gave for the new weights, None for no self-test.
        origin: A sentence for the README on how new weights came about.
        overwrite: Replace a checkpoint that is there.
        allow_pickle: Read `.bin` weights of the source.
        remote_code: Copy the source's Python files.
        prefix: What the names of the source's weights begin with and the result's do not (`stored_prefix`).
        title: Title of the README; by default the folder's name.

    Raises:
        OutputError: the folder exists or holds something else, or it cannot be written.
        CheckpointError: the source is damaged.

    Example:
        >>> from pathlib import Path
        >>> from bgekit.models import read_card, resolve
        >>> from bgekit.networks import write_checkpoint
        >>> folder = resolve("BAAI/bge-small-en-v1.5")
        >>> write_checkpoint(Path("saved"), card=read_card(folder, "BAAI/bge-small-en-v1.5"), source=folder)
        >>> Path("saved/modules.json").exists()
        True
    """
    if dense is not None and len(dense) != len(card.dense):
        raise ArgumentError(f"the card has {len(card.dense)} dense layers, but weights of {len(dense)} are given")
    import torch

    from .heads import copy_heads, write_heads

    with atomic_folder(target_folder(path, overwrite)) as folder:
        if weights is None:
            copy_weights(source, folder, allow_pickle, prefix)
        else:
            save_tensors(as_stored(weights, card.dtype), folder)
        copy_matching(source, folder, KEPT_FILES)
        if heads is not None:
            write_heads(heads, folder, getattr(torch, card.dtype))
        elif weights is None:
            copy_heads(source, folder)
        for number, layer in enumerate(card.dense):
            given = None if dense is None else as_stored(dense[number], card.dtype)
            _write_dense(source, folder / dense_folder(number), layer, given, allow_pickle)
        _write_config(source, folder, None if weights is None else card.dtype)
        if remote_code:
            copy_matching(source, folder, ("*.py",))
        write_tokenizer(source, folder, tokenizer, card.max_length, remote_code)
        if selftest is not None:
            selftest = {**selftest, "weights": weights_digest(folder)}
        if card.calibration is not None:
            then = weights_digest(source, allow_pickle=allow_pickle) if weights is None and dense is None else None
            card = replace(card, calibration=moved(card.calibration, then, weights_digest(folder)))
        for name, content in side_files(card, selftest, package_versions("transformers", "torch")).items():
            write_json(folder / name, content)
        for module in read_json(folder / "modules.json", list):
            (folder / module["path"]).mkdir(exist_ok=True)
        text = readme(
            card, name=title or path.name, base_model=hub_id(card.name), source=source / "README.md", origin=origin
        )  # fmt: skip
        (folder / "README.md").write_text(text, encoding="utf-8")


def weights_digest(folder: Path, *, allow_pickle: bool = False) -> str:
    """sha256 (hex) of the weights of a checkpoint: tells a self-test of other weights from one that fails."""
    digest = hashlib.sha256()
    for file in [*weight_files(folder, allow_pickle=allow_pickle), *sorted(folder.glob("*/model.safetensors"))]:
        with file.open("rb") as content:
            while block := content.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def copy_weights(source: Path, folder: Path, allow_pickle: bool, prefix: str = "") -> None:
    """The source's safetensors byte by byte; `.bin` files (if allowed), and names with a prefix, tensor by tensor."""
    files = weight_files(source, allow_pickle=allow_pickle)
    if prefix or files[0].suffix != ".safetensors":
        tensors = (pair for file in files for pair in _tensors(file))
        save_tensors({name.removeprefix(prefix): value for name, value in tensors}, folder)
        return
    for file in files:
        shutil.copyfile(file, folder / file.name)
    if files[0].name != "model.safetensors":
        shutil.copyfile(source / "model.safetensors.index.json", folder / "model.safetensors.index.json")


def _tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    import torch

    # Old pickles can hold numbers beside their tensors.
    return ((name, value) for name, value in read_tensors(file) if isinstance(value, torch.Tensor))


def as_stored(tensors: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """Tensors on the CPU, floating ones in the type that a checkpoint stores."""
    import torch

    stored = getattr(torch, dtype)
    moved = {name: _with_own_storage(tensor.detach().cpu()) for name, tensor in tensors.items()}
    return {name: each.to(stored) if each.is_floating_point() else each for name, each in moved.items()}


def _with_own_storage(tensor: Tensor) -> Tensor:
    """A tensor with a storage of its own: DeepSpeed lays all weights into one, which safetensors refuses to write."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def save_tensors(tensors: dict[str, Tensor], folder: Path) -> None:
    """Write tensors as `model.safetensors`, in shards with an index from 5 GB on; tied weights once."""
    from huggingface_hub import save_torch_state_dict

    save_torch_state_dict(tensors, folder, metadata={"format": "pt"})


def _write_dense(
    source: Path, folder: Path, layer: DenseLayer, given: dict[str, Tensor] | None, allow_pickle: bool
) -> None:
    import torch

    folder.mkdir()
    if given is None:
        files = weight_files(source / layer.folder, allow_pickle=allow_pickle)
        given = dict(pair for file in files for pair in _tensors(file))
    tensors = {f"linear.{name.removeprefix('linear.')}": value.contiguous() for name, value in given.items()}
    save_tensors(tensors, folder)
    # The one file that sentence-transformers 2.7 reads here. Everything newer, bgekit too, prefers the other.
    buffer = io.BytesIO()  # Written to a file directly, torch hides the reason of a failure.
    torch.save(tensors, buffer)
    (folder / "pytorch_model.bin").write_bytes(buffer.getbuffer())


def _write_config(source: Path, folder: Path, dtype: str | None) -> None:
    """The source's `config.json` byte by byte, or with the type of new weights where that is another one."""
    config = read_json(source / "config.json")
    name = "dtype" if "dtype" in config else "torch_dtype"
    if dtype is None or config.get(name) == dtype:
        shutil.copyfile(source / "config.json", folder / "config.json")
    else:
        write_json(folder / "config.json", {**config, name: dtype})


def write_tokenizer(
    source: Path, folder: Path, tokenizer: PreTrainedTokenizerFast | None, max_length: int,
    trust_remote_code: bool = False,
) -> None:  # fmt: skip
    """The files of `tokenizer`, by default of the source's, for transformers 4 and 5; no question is asked."""
    if tokenizer is None:
        copy_matching(source, folder, _TOKENIZER_FILES)
    if any(not (folder / name).is_file() for name in _TOKENIZER_FILES[:3]):
        # A checkpoint of another age: transformers 5 writes no special_tokens_map.json.
        from transformers import AutoTokenizer

        # Left to its default, it asks on the terminal whether to trust the code of a checkpoint that has some.
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
        with tempfile.TemporaryDirectory(dir=folder) as made:
            tokenizer.save_pretrained(made)
            for file in Path(made).iterdir():
                if file.name in _TOKENIZER_FILES and not (folder / file.name).exists():
                    shutil.move(file, folder / file.name)
        specials = folder / "special_tokens_map.json"
        if not specials.is_file():
            write_json(specials, {key: str(value) for key, value in tokenizer.special_tokens_map.items()})
    path = folder / "tokenizer_config.json"
    settings = read_json(path)
    mended = _portable(settings) | {"model_max_length": max_length}
    if mended != settings:
        write_json(path, mended)


def _portable(settings: dict[str, Any]) -> dict[str, Any]:
    """Tokenizer settings in words that transformers 4 knows and 5 still understands."""
    settings = dict(settings)
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(settings.get("extra_special_tokens"), list):  # There, a dict of named tokens.
        extra = settings.pop("extra_special_tokens")
        settings |= {"additional_special_tokens": extra} if extra else {}
    return settings


def copy_matching(source: Path, folder: Path, patterns: Sequence[str]) -> None:
    """Files of the source whose names match."""
    for pattern in patterns:
        for file in source.glob(pattern):
            if file.is_file():
                shutil.copyfile(file, folder / file.name)


_TAGS: Final = ("reranker", "cross-encoder", "bgekit")


def write_reranker(
    path: Path,
    *,
    card: RerankerCard,
    source: Path,
    network: CrossEncoder | None = None,
    tokenizer: PreTrainedTokenizerFast | None = None,
    origin: str = "",
    overwrite: bool = False,
    allow_pickle: bool = False,
    remote_code: bool = False,
    prefix: str = "",
    title: str | None = None,
) -> None:
    """Write a reranker atomically: config, safetensors, tokenizer, README.

    `AutoModelForSequenceClassification` of transformers and `CrossEncoder` of sentence-transformers load it with equal
    logits. What the card says beyond that is in `config.json`, which both keep.

    Args:
        path: Folder to make.
        card: What the checkpoint says of itself; `dtype` is what weights are stored in.
        source: Checkpoint that tokenizer and licence are taken from, and config and weights unless given.
        network: Its weights and config are saved; None copies the source's.
        tokenizer: A tokenizer to save instead of the source's.
        origin: A sentence for the README on how new weights came about.
        overwrite: Replace a checkpoint that is there.
        allow_pickle: Read `.bin` weights of the source.
        remote_code: Copy the source's Python files.
        prefix: What the names of the source's weights begin with and the result's do not (`stored_prefix`).
        title: Title of the README; by default the folder's name.

    Raises:
        OutputError: the folder exists or holds something else, or it cannot be written.
        CheckpointError: the source is damaged.

    Example:
        >>> from pathlib import Path
        >>> from bgekit.models import read_reranker_card, resolve
        >>> from bgekit.networks import write_reranker
        >>> folder = resolve("BAAI/bge-reranker-base")
        >>> write_reranker(Path("saved-reranker"), card=read_reranker_card(folder), source=folder)
    """
    with atomic_folder(target_folder(path, overwrite)) as folder:
        if network is None:
            copy_weights(source, folder, allow_pickle, prefix)
            config = read_json(source / "config.json")
        else:
            with quiet_transformers():
                network.published.save_pretrained(folder, state_dict=as_stored(network.weights(), card.dtype))
            config = {**read_json(folder / "config.json"), "dtype": card.dtype}
        write_json(folder / "config.json", {**config, CONFIG_KEY: card.settings()})
        copy_matching(source, folder, KEPT_FILES)
        if remote_code:
            copy_matching(source, folder, ("*.py",))
        write_tokenizer(source, folder, tokenizer, card.max_length, remote_code)
        name, prompts = title or path.name, {"query": card.query, "passage": card.document}
        text = render(
            "models/reranker_readme.md.jinja", name=name, quoted=json.dumps(name), origin=origin, card=card,
            front_matter=front_matter(source / "README.md", "text-ranking", _TAGS, hub_id(card.name)),
            instructions=[(f"{role}_instruction_for_rerank", each.prefix) for role, each in prompts.items() if each],
        )  # fmt: skip
        (folder / "README.md").write_text(text, encoding="utf-8")
