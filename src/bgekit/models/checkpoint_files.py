"""The files of a checkpoint: `config.json` and weights, with their names, types and damage; adapters are told apart.

Weights are safetensors; a pickled `.bin` is read only by explicit consent, and then without code execution.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shlex
import struct
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from ..errors import CheckpointError
from ..files.hashing import content_sha256

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)
#: Beside an adapter's weights, what peft says of it.
ADAPTER_CONFIG: Final = "adapter_config.json"
#: Matrices of LoRA (arXiv:2106.09685) as peft and others name them. Names that torch gives to parametrisations belong
#: to networks that are made with LoRA in them (jina-embeddings-v3).
_LOW_RANK: Final = re.compile(
    r"^(?!.*parametrizations\.).*\blora_(A|B|embedding_A|embedding_B|magnitude_vector|down|up)\b"
)
#: What weights of a layer norm were called in the first years, and what they are called now.
RENAMED: Final = {"gamma": "weight", "beta": "bias"}
_SAFETENSORS_DTYPES: Final = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def refuse_adapter(folder: Path) -> None:
    """Raise CheckpointError if a folder that is not a whole model holds an adapter."""
    if not (folder / ADAPTER_CONFIG).is_file():
        return
    config = read_json(folder / ADAPTER_CONFIG)
    kind, base = config.get("peft_type"), config.get("base_model_name_or_path")
    of = f"of {base}, not a model: it holds what is added to that model's weights" if base else "and not a model"
    if kind != "LORA":
        raise CheckpointError(
            f"{folder} is an adapter (peft, {kind}) {of}. Make a model of both with peft's merge_and_unload() and give "
            "that"
        )
    pickled = " --allow-pickle" if not any(folder.glob("adapter_model*.safetensors")) else ""
    command = (
        f"bge merge --models {shlex.quote(str(folder))} --weights 1 --output {shlex.quote(f'{folder.name}-merged')}"
    )
    raise CheckpointError(
        f"{folder} is a LoRA adapter {of}. Make a model of both and give that folder:\n  {command}{pickled}"
    )


def refuse_low_rank(folder: Path, names: Iterable[str]) -> None:
    """Raise CheckpointError if names of weights that no network has are those of LoRA matrices."""
    found = sorted(filter(_LOW_RANK.match, names))
    if found:
        raise CheckpointError(
            f"the weights in {folder} hold {len(found)} LoRA matrices that were not merged, such as {found[0]}: "
            "without them the model is another one. Where it was trained, save it after peft's merge_and_unload(); or "
            "save the adapter alone (save_pretrained of the peft model) and merge that: bge merge --models ADAPTER "
            "--weights 1 --output FOLDER"
        )


def has_low_rank(names: Iterable[str]) -> bool:
    """Whether any of the names of weights is that of a LoRA matrix."""
    return any(map(_LOW_RANK.match, names))


def read_json(path: Path, kind: type = dict, *, missing_ok: bool = False) -> Any:
    """The content of a JSON file, which must be an object, or a list if `kind` says so.

    Args:
        path: The file.
        kind: What it holds.
        missing_ok: A file that is not there is an empty one.

    Raises:
        CheckpointError: the file is not valid JSON, or holds something else.
    """
    if missing_ok and not path.is_file():
        return kind()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if not isinstance(content, kind):
        raise CheckpointError(f"{path} is damaged: it holds a {type(content).__name__} instead of a {kind.__name__}")
    return content


#: Model types whose positions start at pad_token_id + 1, and which give all padding tokens the position pad_token_id.
OFFSET_POSITIONS: Final = frozenset(
    {
        "roberta",
        "xlm-roberta",
        "xlm-roberta-xl",
        "camembert",
        "mpnet",
        "roberta-prelayernorm",
        "data2vec-text",
    }
)

_DTYPES: Final = ("float64", "float32", "float16", "bfloat16")


def read_config(folder: Path) -> dict[str, Any]:
    """The content of a checkpoint's `config.json`.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    path = folder / "config.json"
    if not path.is_file():
        refuse_adapter(folder)
        raise CheckpointError(f"{folder} is not a model: it has no config.json")
    return cast(dict[str, Any], read_json(path))


def hidden_size(config: Mapping[str, Any]) -> int:
    """Width of the token vectors.

    Raises:
        CheckpointError: the config does not say it.
    """
    for key in ("hidden_size", "d_model", "n_embd", "dim"):
        if key in config:
            return int(config[key])
    raise CheckpointError("config.json does not say the hidden size")


def padding_position(model_type: str, pad_token_id: int | None) -> int | None:
    """The position that a model of `OFFSET_POSITIONS` gives to padding tokens, which is their id; None for others."""
    return (pad_token_id or 0) if model_type in OFFSET_POSITIONS else None


def position_limit(config: Mapping[str, Any]) -> int | None:
    """Maximum number of tokens that the position embeddings allow, None without a fixed limit."""
    limit = config.get("max_position_embeddings") or config.get("n_positions")
    kind = config.get("model_type") or ""
    if limit is None or kind in ("t5", "mt5", "umt5"):
        return None
    padding = padding_position(kind, config.get("pad_token_id"))
    return int(limit) - (0 if padding is None else padding + 1)


def declared_dtype(config: Mapping[str, Any]) -> str | None:
    """The number format that the weights were saved in, as the config has it; None when it does not say."""
    for key in ("dtype", "torch_dtype"):  # transformers renamed it in release 5.
        if config.get(key) in _DTYPES:
            return str(config[key])
    return None


def weight_files(folder: Path, *, allow_pickle: bool = False) -> list[Path]:
    """The files that hold the weights of a checkpoint: safetensors, or `.bin` where that is allowed.

    Raises:
        CheckpointError: there are none, a shard is missing, or there are only pickles and `allow_pickle` is false.
    """
    found = _files(folder, "model.safetensors")
    if found:
        return found
    pickles = _files(folder, "pytorch_model.bin")
    if pickles and allow_pickle:
        return pickles
    if pickles:
        raise CheckpointError(
            f"{folder} has only {pickles[0].name}, a pickle, and no model.safetensors. "
            "Pass allow_pickle=True (--allow-pickle) if you trust where it came from."
        )
    refuse_adapter(folder)
    raise CheckpointError(f"{folder} has no weights (model.safetensors)")


def weight_names(files: Iterable[Path]) -> list[str]:
    """The names of the weights in files.

    Raises:
        CheckpointError: a file is damaged.
    """
    found: list[str] = []
    for file in files:
        is_safe = file.suffix == ".safetensors"
        found += safetensors_header(file) if is_safe else (name for name, _ in read_tensors(file))
    return found


def wrapper_prefix(names: Collection[str], expected: Iterable[str], base: str) -> str:
    """Prefix that a wrapper has put before the names of a network's weights, "" where there was none.

    Wrappers are DistributedDataParallel (`module.`), torch.compile (`_orig_mod.`), sentence-transformers
    (`0.auto_model.`), a class of one's own (`model.`), and any of them in another.

    Args:
        names: The names in a checkpoint.
        expected: The names in the network.
        base: What a network with a head puts before the names of its transformer, without the point; transformers adds
            and removes that itself.

    Raises:
        CheckpointError: there are several such networks, and nothing says which is meant.
    """
    inner = f"{base}." if base else ""
    wanted = {form for name in expected for form in (name, name.removeprefix(inner))}
    counts: Counter[str] = Counter()
    for name in names:
        modern = re.sub(r"LayerNorm\.(gamma|beta)$", lambda old: f"LayerNorm.{RENAMED[old[1]]}", name)
        parts = modern.split(".")
        # The longest known name wins: `0.dense.weight` is not a prefix `0.dense.` before a weight called `weight`.
        place = next((at for at in range(len(parts)) if ".".join(parts[at:]) in wanted), None)
        if place is not None:
            counts["".join(f"{part}." for part in parts[:place]).removesuffix(inner)] += 1
    if not counts:
        return ""
    (first, most), *others = counts.most_common()
    rivals = [prefix for prefix, count in others if count == most and prefix]
    if first and rivals and not counts[""] == most:
        raise CheckpointError(
            f"the checkpoint holds several networks, with names that begin with {first} and {rivals[0]}: save the one "
            "that is meant by itself"
        )
    return "" if counts[""] == most else first


def _files(folder: Path, name: str) -> list[Path]:
    if (folder / name).is_file():
        return [folder / name]
    index = folder / f"{name}.index.json"
    if not index.is_file():
        return []
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{index} is damaged: it has no weight_map")
    shards = sorted({folder / shard for shard in places.values()})
    for shard in shards:
        if not shard.is_file():
            raise CheckpointError(f"{shard} is missing, but {index.name} names it")
    return shards


def safetensors_header(path: Path) -> dict[str, Any]:
    """Names, types and shapes of the tensors in a safetensors file, without reading them.

    Raises:
        CheckpointError: the file is damaged or shorter than its header says.
    """
    return _safetensors_header(path)[0]


def safetensors_format(path: Path) -> str | None:
    """What a safetensors file says it was written by (`pt` for torch), None where it does not say.

    Raises:
        CheckpointError: as `safetensors_header`.
    """
    named = _safetensors_header(path)[1].get("format")
    return None if named is None else str(named)


def _safetensors_header(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors of a safetensors file, and what it says beside them."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > size:
                raise ValueError("the header is longer than the file")
            header: dict[str, Any] = json.loads(file.read(length))
        metadata = header.pop("__metadata__", None) or {}
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: it is not a safetensors file ({error})") from error
    if size < 8 + length + end:
        raise CheckpointError(f"{path} is cut off: it has {size:,} bytes, its header asks for {8 + length + end:,}")
    return header, metadata


def stored_dtype(folder: Path) -> str | None:
    """The floating type that most weights of a checkpoint are stored in, None when no safetensors say it."""
    sizes: dict[str, int] = {}
    for file in _files(folder, "model.safetensors"):
        for entry in safetensors_header(file).values():
            if entry["dtype"] in _SAFETENSORS_DTYPES:
                begin, end = entry["data_offsets"]
                sizes[entry["dtype"]] = sizes.get(entry["dtype"], 0) + end - begin
    return _SAFETENSORS_DTYPES[max(sizes, key=lambda key: sizes[key])] if sizes else None


def read_tensors(file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of one weight file, one at a time, in the type they are stored in.

    Raises:
        CheckpointError: the file is damaged.
    """
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        safetensors_header(file)
        try:
            with safe_open(file, framework="pt") as tensors:
                for key in tensors.keys():
                    yield key, tensors.get_tensor(key)
        except SafetensorError as error:
            raise CheckpointError(f"{file} is damaged: {error}") from error
        return
    import pickle
    import zipfile

    import torch

    try:
        # Before torch 1.6 these files were not archives, which alone can be mapped instead of read.
        mapped = zipfile.is_zipfile(file)
        yield from torch.load(file, map_location="cpu", weights_only=True, mmap=mapped).items()
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{file} is damaged or holds more than weights: {error}") from error


def fingerprint(folder: Path, *, allow_pickle: bool = False, own_code: bool = False) -> str:
    """sha256 (hex) of the weights, of the files that decide how text becomes tokens, and of code that comes with them.

    Args:
        folder: The checkpoint.
        allow_pickle: Whether weights may be stored as pickles.
        own_code: Whether Python files of the checkpoint compute, so that they decide, too.
    """
    digest = hashlib.sha256()
    files = weight_files(folder, allow_pickle=allow_pickle)
    files += [path for path in sorted(folder.glob("*/model.safetensors"))]
    files += [folder / name for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt")]
    for path in files:
        if path.is_file():
            digest.update(f"{path.name}:{content_sha256(path)}\n".encode())
    for path in sorted(folder.rglob("*.py")) if own_code else ():
        digest.update(f"{path.relative_to(folder).as_posix()}:{content_sha256(path)}\n".encode())
    return digest.hexdigest()
