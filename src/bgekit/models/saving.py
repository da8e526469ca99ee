"""A checkpoint on disk that every library loads with the same vectors, complete or not there at all.

Everything is written into a folder beside the target, flushed to the disk, and renamed. A full disk, an exception or a
lost machine leaves the target as it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..errors import ArgumentError, BgekitError, NumericalError, OutputError
from .card import DenseLayer, ModelCard
from .checkpoint import read_json, read_tensors, weight_files
from .leftovers import check_place, usual_modes, working_names
from .score_map import moved
from .side_files import dense_folder, hub_id, readme, side_files

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast

    from ..encoding.embedder import FlagModel
    from .encoder import Encoder

logger = logging.getLogger(__name__)

#: The text of the self-test: case, an accent, Chinese, digits and punctuation, so that a wrong tokenizer shows.
SELFTEST_TEXT: Final = "Self-test: 文本向量 of 2 Élan vital, done."

_TOKENIZER_FILES: Final = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
    "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model", "chat_template.jinja",
)  # fmt: skip
#: Kept as they are beside unchanged weights: terms of use, and the further heads of BGE-M3.
KEPT_FILES: Final = ("LICENSE*", "LICENCE*", "NOTICE*", "sparse_linear.pt", "colbert_linear.pt")


def save_model(model: FlagModel, path: Path, *, overwrite: bool = False) -> None:
    """Save a model with what its card says, overridden fields included, and a self-test.

    The weights are those of the checkpoint, in the precision that they are stored in there.

    Args:
        model: The model.
        path: Folder to make.
        overwrite: Replace a model that is there.

    Raises:
        OutputError: the folder exists, or cannot be written.
        NumericalError: the model gives another vector when it is loaded again.
    """
    import torch

    from .encoder import encoder_class, load_encoder
    from .loading import stored_prefix

    path = target_folder(path, overwrite)  # Before the work, not after it.
    trust, pickles = model._spec.trust_remote_code, model._spec.allow_pickle
    # Loaded anew: what differs from one load to the next is no property of the model, and shows here.
    encoder = load_encoder(model.folder, model.card, trust_remote_code=trust, allow_pickle=pickles)
    selftest = make_selftest(encoder, model.tokenizer, model.card, torch.device("cpu"))
    cosine, least = model._selftest_cosine(selftest)
    if not cosine >= least:
        raise NumericalError(
            f"{model.folder} gives other vectors each time it is loaded (a cosine of {cosine:.5f}, not {least}), so it "
            "is not saved: something in it is neither among its weights nor made by its code"
        )
    prefix = stored_prefix(model.folder, encoder_class, trust_remote_code=trust, allow_pickle=pickles)
    write_checkpoint(
        path, card=model.card, source=model.folder, prefix=prefix, selftest=selftest, overwrite=overwrite,
        allow_pickle=pickles, remote_code=trust,
    )  # fmt: skip


def make_selftest(
    encoder: Encoder, tokenizer: PreTrainedTokenizerFast, card: ModelCard, device: torch.device
) -> dict[str, Any]:
    """The self-test of a model: a text and its vector without prompt, as `FlagModel` checks it at load.

    Args:
        encoder: The network in float32, on `device`, giving all its dimensions.
        tokenizer: The tokenizer; it is left as it is.
        card: The card that is saved with it.
        device: Where the network is.

    Raises:
        NumericalError: the vector has NaN or infinity.
    """
    import numpy as np
    import torch
    from tokenizers import Tokenizer

    from .packing import Packed

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()
    backend.enable_truncation(card.max_length)
    with torch.inference_mode():
        vector = encoder(Packed.of([backend.encode(SELFTEST_TEXT).ids]).to(device))[0].float().cpu().numpy()
    if not bool(np.isfinite(vector).all()):
        raise NumericalError(
            f"{card.name} gives NaN or infinity as the vector of {SELFTEST_TEXT!r}: its weights are damaged"
        )
    # The shortest decimal number that is read back as the same float32.
    values = [float(str(value)) for value in vector]
    return {"text": SELFTEST_TEXT, "max_length": card.max_length, "vector": values}


def write_checkpoint(
    path: Path,
    *,
    card: ModelCard,
    source: Path,
    weights: Mapping[str, Tensor] | None = None,
    dense: Sequence[Mapping[str, Tensor]] | None = None,
    tokenizer: PreTrainedTokenizerFast | None = None,
    selftest: Mapping[str, Any] | None = None,
    origin: str = "",
    overwrite: bool = False,
    allow_pickle: bool = False,
    remote_code: bool = False,
    prefix: str = "",
) -> None:
    """Write a checkpoint in the universal layout, atomically.

    Args:
        path: Folder to make.
        card: What the checkpoint says of itself.
        source: Checkpoint that config, tokenizer and licence are taken from, and the weights unless given.
        weights: Weights of the transformer by their names there; floating ones are stored as `card.dtype`. None
            copies the source's: safetensors byte by byte, `.bin` files (if allowed) converted tensor by tensor.
        dense: `weight` and `bias` of each of `card.dense`; None copies the source's.
        tokenizer: A tokenizer to save instead of the source's.
        selftest: What `make_selftest` gave for the new weights, None for no self-test.
        origin: A sentence for the README on how new weights came about.
        overwrite: Replace a checkpoint that is there.
        allow_pickle: Read `.bin` weights of the source.
        remote_code: Copy the source's Python files.
        prefix: What the names of the source's weights begin with and the result's do not (`stored_prefix`).

    Raises:
        OutputError: the folder exists or holds something else, or it cannot be written.
        CheckpointError: the source is damaged.
    """
    if dense is not None and len(dense) != len(card.dense):
        raise ArgumentError(f"the card has {len(card.dense)} dense layers, but weights of {len(dense)} are given")
    with atomic_folder(target_folder(path, overwrite)) as folder:
        if weights is None:
            copy_weights(source, folder, allow_pickle, prefix)
            copy_matching(source, folder, KEPT_FILES)
        else:
            save_tensors(as_stored(weights, card.dtype), folder)
            copy_matching(source, folder, KEPT_FILES[:3])
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
        for name, content in side_files(card, selftest, _versions()).items():
            write_json(folder / name, content)
        for module in read_json(folder / "modules.json", list):
            (folder / module["path"]).mkdir(exist_ok=True)
        text = readme(
            card, name=path.name, base_model=hub_id(card.name), source=source / "README.md", origin=origin
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


def target_folder(path: Path, overwrite: bool) -> Path:
    """The folder to make, links resolved: a link to it stays one."""
    path = path.expanduser().resolve()
    if not path.exists():
        check_place(path, doing="save the model to")
        return path
    if not path.is_dir():
        raise OutputError(f"{path} is a file; give a folder that does not exist yet")
    if not any(path.iterdir()):
        return path
    if not overwrite:
        raise OutputError(f"{path} exists; pass overwrite=True to replace the model there, or give another folder")
    if not (path / "config.json").is_file():
        raise OutputError(f"{path} holds no model (no config.json), so it is not replaced; give another folder")
    return path


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A new folder that becomes `path` if the block ends well, and vanishes otherwise."""
    from safetensors import SafetensorError

    with working_names(path) as (working, replaced):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            working.mkdir()
            yield working
            _flush(working)
            if path.exists():
                _exchange(path, working, replaced)
            else:
                working.rename(path)
            _flush_folder(path.parent)
        except BgekitError:
            raise
        except (OSError, SafetensorError) as error:
            reason = error.strerror or error if isinstance(error, OSError) else error
            raise OutputError(f"cannot save the model to {path}: {reason}; what was there is unchanged") from error
        finally:
            # Whatever ended the block, Ctrl-C too; what cannot be removed takes space, no more.
            shutil.rmtree(working, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def _exchange(path: Path, working: Path, replaced: Path) -> None:
    path.rename(replaced)
    try:
        working.rename(path)
    except BaseException:
        replaced.rename(path)
        raise


def _flush(folder: Path) -> None:
    usual_modes(folder)
    for root, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(root, name), "rb") as file:
                os.fsync(file.fileno())
        _flush_folder(Path(root))


def _flush_folder(folder: Path) -> None:
    if os.name != "posix":
        return  # Folders cannot be opened there.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
    """On the CPU, floating ones in the type that a checkpoint stores."""
    import torch

    stored = getattr(torch, dtype)
    moved = {name: _alone(tensor.detach().cpu()) for name, tensor in tensors.items()}
    return {name: each.to(stored) if each.is_floating_point() else each for name, each in moved.items()}


def _alone(tensor: Tensor) -> Tensor:
    """With a storage of its own: DeepSpeed lays all weights into one, which safetensors refuses to write."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def save_tensors(tensors: dict[str, Tensor], folder: Path) -> None:
    """As `model.safetensors`, in shards with an index from 5 GB on; tied weights once."""
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
        for name in _TOKENIZER_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
    needed = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
    if any(not (folder / name).is_file() for name in needed):
        _complete_tokenizer(source, folder, tokenizer, needed, trust_remote_code)
    path = folder / "tokenizer_config.json"
    settings = read_json(path)
    mended = _portable(settings) | {"model_max_length": max_length}
    if mended != settings:
        write_json(path, mended)


def _complete_tokenizer(
    source: Path, folder: Path, tokenizer: PreTrainedTokenizerFast | None, needed: Sequence[str],
    trust_remote_code: bool,
) -> None:  # fmt: skip
    """Add what a checkpoint of another age does not have (transformers 5 writes no special_tokens_map.json)."""
    from transformers import AutoTokenizer

    # Left to its default, it asks on the terminal whether to trust the code of a checkpoint that has some.
    tokenizer = tokenizer or AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    with tempfile.TemporaryDirectory(dir=folder) as made:
        tokenizer.save_pretrained(made)
        names = {each.name for each in Path(made).iterdir()}
        for name in names & {*needed, *_TOKENIZER_FILES}:
            if not (folder / name).exists():
                shutil.move(Path(made) / name, folder / name)
    specials = folder / "special_tokens_map.json"
    if not specials.is_file():
        write_json(specials, {key: str(value) for key, value in tokenizer.special_tokens_map.items()})


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


def _versions() -> dict[str, str]:
    import torch
    import transformers

    from .. import __version__

    return {"bgekit": __version__, "transformers": transformers.__version__, "pytorch": torch.__version__}


def write_json(path: Path, content: Any) -> None:
    """As UTF-8 for people to read."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
