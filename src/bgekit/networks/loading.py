"""A checkpoint -> a model of transformers: the one loader; at the end, the precision that its device is fast in.

A model is as the constructor of its class makes it, with the weights of the checkpoint. transformers 5 builds it on
the meta device, fills in what the checkpoint holds, and leaves the rest to the class's `_init_weights`. That of a class
with code of its own knows of layers at most: a buffer that is not saved (a rotary `inv_freq`) then holds whatever was
in memory, and a layer beside such a buffer can lose the weights that were just read
(findings/transformers5_unsaved_buffers.sh). Here such a class is constructed for real, and given the weights.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from ..errors import ArgumentError, BgekitError, CheckpointError
from ..models.checkpoint_files import (
    ADAPTER_CONFIG,
    read_tensors,
    refuse_low_rank,
    safetensors_header,
    weight_files,
    weight_names,
    wrapper_prefix,
)
from .cpu_products import has_bfloat16, has_fast_int8
from .packing import register

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


def load_published(
    folder: Path,
    choose: Callable[[Any], Any],
    *,
    dtype: torch.dtype,
    without: Sequence[str] = (),
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    **options: Any,
) -> PreTrainedModel:
    """A model of transformers, in evaluation mode on the CPU, with all its weights from the checkpoint.

    Args:
        folder: The checkpoint.
        choose: Its config -> the class whose `from_pretrained` makes the model.
        dtype: Type of the weights.
        without: Parts of the names of weights that the checkpoint may lack; they are new then.
        trust_remote_code: Allow architectures that the checkpoint brings as Python code.
        allow_pickle: Allow `.bin` weights.
        options: What else is set in the config.

    Raises:
        CheckpointError: files are missing or damaged, or the weights do not fit the config.
    """
    files = weight_files(folder, allow_pickle=allow_pickle)
    if (folder / ADAPTER_CONFIG).is_file():
        # transformers would add it where peft is installed, and nowhere else.
        raise CheckpointError(
            f"{folder} holds a whole model and an adapter beside it ({ADAPTER_CONFIG}), and nothing says whether the "
            "weights have it in them already: move the adapter's files to a folder of their own, and merge it with "
            "`bge merge` if it is to count"
        )
    for file in files:
        if file.suffix == ".safetensors":
            safetensors_header(file)
    register()
    expected = (*without, "position_ids")

    def load(auto: Any, place: Path | None, **weights: Any) -> tuple[PreTrainedModel, list[str]]:
        """A model, and the names of weights that it lacks."""
        loaded, report = from_pretrained(
            auto, place, config, dtype=dtype, trust_remote_code=trust_remote_code, **weights
        )
        refuse_low_rank(folder, report["unexpected_keys"])
        return loaded, [key for key in sorted(report["missing_keys"]) if not any(part in key for part in expected)]

    with _told(folder, files), quiet_transformers():
        config = read_network(folder, trust_remote_code, **options)
        model, missing = load(choose(config), folder, use_safetensors=None if allow_pickle else True)
        if missing and (prefix := wrapper_prefix(weight_names(files), model.state_dict(), model.base_model_prefix)):
            tensors = {name.removeprefix(prefix): value for file in files for name, value in read_tensors(file)}
            model, missing = load(type(model), None, state_dict=tensors)
            if not missing:
                logger.warning("the names of the weights in %s begin with %s, which is left out", folder, prefix)
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} weights of {type(model).__name__}, such as {missing[0]}: "
            "the weights do not belong to this config.json"
        )
    return model.eval()


def read_network(folder: Path, trust_remote_code: bool, **options: Any) -> Any:
    """The config of transformers in a checkpoint, without a question to the user.

    Args:
        folder: The checkpoint.
        trust_remote_code: Allow configs that the checkpoint brings as Python code.
        options: What else is set in the config.
    """
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, **options)


def stored_prefix(
    folder: Path, choose: Callable[[Any], Any], *, trust_remote_code: bool = False, allow_pickle: bool = False
) -> str:
    """Prefix that a wrapper has put before the names of a checkpoint's weights, "" where there was none.

    Args:
        folder: The checkpoint.
        choose: Its config -> the class of transformers that its network is.
        trust_remote_code: Allow architectures that the checkpoint brings as Python code.
        allow_pickle: Allow `.bin` weights.

    Raises:
        CheckpointError: files are missing or damaged.
    """
    files = weight_files(folder, allow_pickle=allow_pickle)
    names = weight_names(files)
    with _told(folder, files), quiet_transformers():
        config = read_network(folder, trust_remote_code)
        network = sketch(choose(config), config, torch.float32, trust_remote_code)
    return wrapper_prefix(names, network.state_dict(), network.base_model_prefix)


@contextlib.contextmanager
def _told(folder: Path, files: Sequence[Path]) -> Iterator[None]:
    """Errors of transformers while it reads a checkpoint, as errors that name the checkpoint."""
    from huggingface_hub.errors import StrictDataclassError  # A field of a config that is not of its type.

    try:
        yield
    except BgekitError:
        raise
    except (pickle.UnpicklingError, EOFError) as error:
        raise CheckpointError(f"{files[0]} is damaged or holds more than weights") from error
    except (OSError, ValueError, RuntimeError, KeyError, StrictDataclassError) as error:
        raise CheckpointError(f"cannot load the model in {folder}: {error}") from error


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' bar and its report: what matters of it, missing weights, is an error of ours."""
    from transformers.utils import logging as reports

    bars, verbosity = reports.is_progress_bar_enabled(), reports.get_verbosity()
    reports.disable_progress_bar()
    reports.set_verbosity_error()
    try:
        yield
    finally:
        reports.set_verbosity(verbosity)
        if bars:
            reports.enable_progress_bar()


def from_pretrained(
    auto: Any, folder: Path | None, config: Any, *, dtype: torch.dtype, trust_remote_code: bool, **options: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A model, and what transformers reports of its weights; what the checkpoint lacks is as the constructor makes it.

    Args:
        auto: A class of transformers with `from_pretrained`.
        folder: The checkpoint; None where `options` have the weights as `state_dict`.
        config: Its config.
        dtype: Type of the weights.
        trust_remote_code: Allow architectures that the checkpoint brings as Python code.
        options: What else `from_pretrained` is given.

    Raises:
        OSError, ValueError, RuntimeError, KeyError: as `from_pretrained` does.
    """
    made = sketch(auto, config, dtype, trust_remote_code) if _has_own_code(auto, config, trust_remote_code) else None
    with _uninitialised_is_nan(), _without_own_initialisation(made):
        loaded = auto.from_pretrained(
            folder, config=config, dtype=dtype, trust_remote_code=trust_remote_code, output_loading_info=True, **options
        )
    if not isinstance(loaded, tuple):  # A class with a loader of its own (nomic-bert), which reports nothing.
        return cast(loaded, dtype).eval(), _unreported(loaded, folder)
    model, report = loaded
    if made is None and not any(_is_unfilled(tensor) for tensor in (*model.parameters(), *model.buffers())):
        return model, report
    filled = {name: value for name, value in _saved(model).items() if not _is_unfilled(value)}
    if made is not None:
        if folder is not None:
            # True in all places may be what memory was filled with, or what was read: the names say it.
            stored = set(weight_names(weight_files(folder, allow_pickle=True)))
            filled = {name: value for name, value in filled.items() if value.dtype != torch.bool or name in stored}
        _assign(made, filled)
    if made is None or any(tensor.is_meta for tensor in _tensors(made)):
        # Weights are new, or something is computed from weights: the constructor must have had real ones.
        with _default_dtype(dtype):
            made = type(model)(copy.deepcopy(config))
        _assign(made, filled)
    return made.eval(), report


def sketch(auto: Any, config: Any, dtype: torch.dtype, trust_remote_code: bool = False) -> PreTrainedModel:
    """A model whose parameters have shapes only, and whose buffers are real: made in milliseconds, in no memory.

    Args:
        auto: A class of transformers.
        config: Its config.
        dtype: Type of what has no type of its own.
        trust_remote_code: Allow architectures that the config names as Python code.
    """
    config = copy.deepcopy(config)
    with _parameters_on_meta():
        if hasattr(auto, "from_config"):
            return auto.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)  # type: ignore[no-any-return]
        with _default_dtype(dtype):
            return auto(config)  # type: ignore[no-any-return]


def cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The model with weights of another type; buffers that no checkpoint holds are not rounded.

    A rotary `inv_freq` in 16 bits turns the hundredth token by a wrong angle. Such buffers keep the type that the
    constructor gives them where weights are of `dtype`.
    """
    if model.dtype == dtype:
        return model
    if model.is_custom_code():
        made = _bodiless(model, dtype)
        saved = _saved(model).items()
        _assign(made, {name: value.to(dtype) if value.is_floating_point() else value for name, value in saved})
        if not any(tensor.is_meta for tensor in _tensors(made)):
            return made.train(model.training)
    model.to(dtype)  # type: ignore[arg-type]
    restore_unsaved(model, dtype)
    return model


def restore_unsaved(network: nn.Module, dtype: torch.dtype) -> None:
    """Give models of transformers in a network the buffers that no checkpoint holds, as their constructors make them.

    Args:
        network: Changed in place.
        dtype: Type of its weights.
    """
    from transformers import PreTrainedModel

    if not isinstance(network, PreTrainedModel):
        for child in network.children():
            restore_unsaved(child, dtype)
        return
    saved, own = network.state_dict(), dict(network.named_buffers())
    for name, buffer in _bodiless(network, dtype).named_buffers():
        if name in own and name not in saved and not buffer.is_meta:
            module, _, last = name.rpartition(".")
            setattr(network.get_submodule(module), last, buffer.to(own[name].device))


def _bodiless(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """A model as the constructor of its class makes it for weights of a type, without the weights."""
    with _default_dtype(dtype), _parameters_on_meta():
        return type(model)(copy.deepcopy(model.config))


def _has_own_code(auto: Any, config: Any, trust_remote_code: bool) -> bool:
    """Whether the class will come from the checkpoint, or was registered with transformers by another package."""
    mapped = trust_remote_code and auto.__name__ in (getattr(config, "auto_map", None) or {})
    return bool(mapped) or not all(kind.__module__.startswith("transformers.") for kind in (auto, type(config)))


def _unreported(model: PreTrainedModel, folder: Path | None) -> dict[str, Any]:
    """Report of transformers on the weights of a model that its own code has loaded, by their names."""
    names = set(weight_names(weight_files(folder, allow_pickle=True))) if folder is not None else set()
    return {"missing_keys": _saved(model).keys() - names, "unexpected_keys": names - _saved(model).keys()}


def _saved(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    """Parameters, buffers, and tensors that modules keep as plain attributes."""
    yield from model.parameters()
    yield from model.buffers()
    for module in model.modules():
        yield from (value for value in vars(module).values() if isinstance(value, Tensor))


def _assign(model: PreTrainedModel, weights: Mapping[str, Tensor]) -> None:
    model.load_state_dict(dict(weights), strict=False, assign=True)
    model.tie_weights()


def _is_unfilled(tensor: Tensor) -> bool:
    """Whether a tensor holds only what memory is filled with before anything is written to it."""
    if tensor.dtype is torch.bool or not tensor.numel():
        return False
    flat = tensor.detach().reshape(-1)
    # The first value decides nearly always, and is read much sooner than all.
    return all(bool(_is_fill(part).all()) for part in (flat[:1], flat))


def _is_fill(values: Tensor) -> Tensor:
    if values.is_floating_point() or values.is_complex():
        return torch.isnan(values)
    return values == torch.iinfo(values.dtype).max


@contextlib.contextmanager
def _uninitialised_is_nan() -> Iterator[None]:
    """New memory is filled, floating numbers with NaN: what nobody initialises is found, or at least not believed."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@contextlib.contextmanager
def _without_own_initialisation(made: PreTrainedModel | None) -> Iterator[None]:
    """Without the `_init_weights` of classes with code of their own, which may write over weights that were read."""
    from transformers import PreTrainedModel

    models = () if made is None else (each for each in made.modules() if isinstance(each, PreTrainedModel))
    owners = {
        kind
        for model in models
        for kind in type(model).__mro__
        if "_init_weights" in vars(kind) and not kind.__module__.startswith("transformers.")
    }
    with contextlib.ExitStack() as restored:
        for owner in owners:
            restored.callback(setattr, owner, "_init_weights", vars(owner)["_init_weights"])
            owner._init_weights = lambda self, module: None  # type: ignore[attr-defined]
        yield


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Parameters lose their memory as soon as a module has them; all else of a constructor runs as it is written."""
    register = nn.Module.register_parameter

    def bodiless(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None:
            param = nn.Parameter(param.detach().to("meta"), requires_grad=param.requires_grad)
        register(self, name, param)

    nn.Module.register_parameter = bodiless  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


PRECISIONS: Final = ("float32", "bfloat16", "float16", "int8")
_ALIASES: Final = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "half": "float16"}
#: Model types whose activations overflow float16 (T5 was trained in bfloat16; see also FlagEmbedding #702).
_NEED_WIDE_RANGE: Final = frozenset({"t5", "mt5", "umt5", "gemma", "gemma2", "gemma3_text", "qwen3", "qwen2"})


def cpu_has_fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices faster than float32 ones (AMX or AVX512-BF16).

    Measured rates, bfloat16 over float32: 7 with AMX, 2.2 with AVX512-BF16, below 1 with neither.
    """
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def slow_bfloat16(device: torch.device) -> str:
    """What to tell whoever asks for bfloat16 on this device; empty where it pays."""
    if device.type != "cpu" or cpu_has_fast_bfloat16():
        return ""
    return "this CPU has no instructions for bfloat16, which makes it slower than float32"


def half_precision(device: torch.device, model_type: str = "") -> str:
    """The fastest 16-bit format of a device, `float32` where none is faster."""
    if device.type == "cpu":
        return "bfloat16" if cpu_has_fast_bfloat16() else "float32"
    if device.type == "cuda" and model_type in _NEED_WIDE_RANGE:
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "float32" if model_type in _NEED_WIDE_RANGE else "float16"


def other_precisions() -> list[str]:
    """Formats that this machine is worth using in, beside the fastest 16-bit one that `use_fp16` takes."""
    halves = torch.accelerator.is_available() or half_precision(torch.device("cpu")) != "float32"
    return [*(["float32"] if halves else []), *(["int8"] if has_fast_int8() else [])]


def choose_precision(
    device: torch.device, *, dtype: str | torch.dtype | None, use_fp16: bool, use_bf16: bool = False,
    model_type: str = "",
) -> str:  # fmt: skip
    """The format to compute in: `dtype`, else bfloat16 if `use_bf16`, else the fastest 16-bit one if `use_fp16`.

    float32 where none of them is asked for, and for `use_bf16` on a CPU that cannot compute in bfloat16.

    Raises:
        ArgumentError: `dtype` is no known format, or the device cannot compute in it.
    """
    if dtype is None and use_bf16:
        if device.type == "cpu" and not has_bfloat16():
            logger.warning("this CPU cannot compute in bfloat16: float32 is taken in place of it")
            return "float32"
        dtype = "bfloat16"
    if dtype is None:
        return half_precision(device, model_type) if use_fp16 else "float32"
    name = str(dtype).removeprefix("torch.")
    name = _ALIASES.get(name, name)
    if name not in PRECISIONS:
        raise ArgumentError(f"dtype {dtype!r} is not one of {', '.join(PRECISIONS)}")
    if name == "int8" and device.type != "cpu":
        raise ArgumentError(f"dtype='int8' runs on the CPU only, not on {device}")
    if name == "float16" and device.type == "cpu":
        raise ArgumentError("float16 is slow and coarse on CPUs: use dtype='bfloat16', or use_fp16=True to choose")
    if name == "bfloat16" and (remark := slow_bfloat16(device)):
        logger.warning("%s; use_fp16=True chooses what is faster", remark)
    return name
