"""The model that pre-training starts from: a checkpoint or random weights, a tokenizer, and the card of the result.

With a tokenizer that is not the checkpoint's, shared tokens keep their vectors and new ones start from old ones.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from ..errors import ArgumentError, CardError, CheckpointError
from ..inference.tokenization import load_tokenizer
from ..models.card import ModelCard, Prompt
from ..models.card_reading import read_card, usable_length
from ..models.checkpoint_files import (
    hidden_size,
    padding_position,
    position_limit,
    weight_files,
    weight_names,
)
from ..models.hub import resolve
from ..networks.encoder import can_pack
from ..networks.loading import load_published
from ..networks.packing import PACKED_ATTENTION, register
from ..networks.saving import KEPT_FILES, copy_matching, write_tokenizer
from .options import PretrainModelArguments
from .retromae import head_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)
#: Head and decoder, beside the weights of the encoder.
BESIDE: Final = "retromae.safetensors"
#: What the weights of heads are called.
_HEADS: Final = ("cls.", "lm_head.", "vocab_transform.", "vocab_layer_norm.", "vocab_projector.", "head.", "decoder.")
#: Special tokens that keep their vectors by what they are for.
_ROLES: Final = ("pad", "unk", "cls", "sep", "mask", "bos", "eos")


@dataclass(frozen=True)
class InitialModel:
    """A model that pre-training starts from.

    Attributes:
        lm: A masked language model of transformers in float32, unpadded where its architecture can be.
        tokenizer: Its tokenizer.
        card: What the result will say of itself.
        folder: Config, tokenizer and licence of the result, for `write_checkpoint`.
        beside: Head and decoder of the run that made the checkpoint; nothing if it was no such run.
    """

    lm: Any
    tokenizer: PreTrainedTokenizerFast
    card: ModelCard
    folder: Path
    beside: Mapping[str, Tensor]


@contextmanager
def initial_model(model: PretrainModelArguments, max_length: int) -> Iterator[InitialModel]:
    """The model to start from; its folder is gone afterwards.

    Args:
        model: The command's arguments.
        max_length: Tokens of a sequence.

    Raises:
        CheckpointError: files are missing or damaged.
        ArgumentError: the architecture has no masked-LM head, or arguments do not fit it.
    """
    with tempfile.TemporaryDirectory(prefix="bgekit-pretrain-") as made:
        folder = Path(made)
        source = None
        beside: Mapping[str, Tensor] = {}
        if model.config_name:
            tokenizer_source = _tokenizer_folder(model.tokenizer_name or model.config_name, model)
            tokenizer = load_tokenizer(tokenizer_source)
            lm = _random(model, tokenizer)
            name = model.config_name
        else:
            name = model.model_name_or_path
            source = tokenizer_source = resolve(
                name, revision=model.revision, cache_dir=model.cache_dir, allow_pickle=model.allow_pickle
            )
            lm, beside = _loaded(source, name, model.allow_pickle)
        card = _card(source, name, lm.config)
        if source is not None:
            tokenizer = load_tokenizer(source, lower_case=card.lower_case)
            if model.tokenizer_name:
                tokenizer_source = _tokenizer_folder(model.tokenizer_name, model)
                card = replace(card, lower_case=False)
                old, tokenizer = tokenizer, load_tokenizer(tokenizer_source)
                adapt(lm, old, tokenizer)
        _check(lm, tokenizer, name, max_length)
        lm.config.architectures = [type(lm.base_model).__name__]
        lm.config.save_pretrained(folder)
        write_tokenizer(tokenizer_source, folder, None, card.max_length)
        if source is not None:
            copy_matching(source, folder, (*KEPT_FILES, "README.md"))
        if can_pack(lm.base_model):
            register()
            lm.set_attn_implementation(PACKED_ATTENTION)
        yield InitialModel(lm, tokenizer, card, folder, beside)


def _tokenizer_folder(name: str, model: PretrainModelArguments) -> Path:
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    try:
        return resolve(name, cache_dir=model.cache_dir)
    except CheckpointError as error:
        if model.config_name == name:
            raise ArgumentError(f"--config-name {name} has no tokenizer: give one with --tokenizer-name") from error
        raise


def _random(model: PretrainModelArguments, tokenizer: PreTrainedTokenizerFast) -> Any:
    """A model of random weights in the sizes of a config, for a tokenizer."""
    from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForMaskedLM

    name = str(model.config_name)
    if not Path(name).expanduser().is_dir() and name in CONFIG_MAPPING:
        config = AutoConfig.for_model(name)
    else:
        config = AutoConfig.from_pretrained(
            Path(name).expanduser() if (Path(name).expanduser() / "config.json").is_file() else
            resolve(name, revision=model.revision, cache_dir=model.cache_dir, card_only=True),
            trust_remote_code=False,
        )  # fmt: skip
    _check_head(config, name)
    for key, value in _overrides(model.config_overrides, config).items():
        setattr(config, key, value)
    config = _with_layer_types(config)
    config.vocab_size = max(tokenizer.get_vocab().values()) + 1
    for role in ("pad", "bos", "eos", "cls", "sep", "mask"):
        if (number := getattr(tokenizer, f"{role}_token_id")) is not None:
            setattr(config, f"{role}_token_id", number)
    try:
        return AutoModelForMaskedLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    except (ValueError, RuntimeError, ZeroDivisionError) as error:
        raise ArgumentError(f"--config-name {name} {model.config_overrides or ''}: {error}") from error


def _with_layer_types(config: Any) -> Any:
    """A config whose list of kinds of layers, where it has one, is as long as its number of layers now says."""
    types = getattr(config, "layer_types", None)
    if types is None or len(types) == config.num_hidden_layers:
        return config
    wanted = config.num_hidden_layers
    if len(types) > wanted:
        config.layer_types = types[:wanted]
        return config
    facts = config.to_dict()
    del facts["layer_types"]
    return type(config).from_dict(facts)  # Which makes the list by the architecture's own rule.


def _overrides(given: str | None, config: Any) -> dict[str, Any]:
    """`a=1,b=0.5` as values of the types that the config has."""
    found: dict[str, Any] = {}
    for part in (given or "").split(","):
        name, equals, text = part.strip().partition("=")
        if not part.strip():
            continue
        if not equals or not hasattr(config, name):
            raise ArgumentError(
                f"--config-overrides: {part.strip()!r} is not a name=value of a {config.model_type} config"
            )
        then = getattr(config, name)
        try:
            if isinstance(then, bool):
                found[name] = {"true": True, "false": False}[text.lower()]
            else:
                found[name] = type(then)(text) if isinstance(then, int | float) else text
        except (ValueError, KeyError) as error:
            raise ArgumentError(f"--config-overrides: {name} must be a {type(then).__name__}, not {text!r}") from error
    return found


def _loaded(source: Path, name: str, allow_pickle: bool) -> tuple[Any, Mapping[str, Tensor]]:
    """The masked language model of a checkpoint; its head is new where the checkpoint has none."""
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForMaskedLM

    files = weight_files(source, allow_pickle=allow_pickle)
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {source / 'config.json'}: {error}") from error
    _check_head(config, name)
    lm = load_published(
        source, lambda _: AutoModelForMaskedLM, dtype=torch.float32, without=_HEADS, allow_pickle=allow_pickle
    ).train()
    beside: Mapping[str, Tensor] = load_file(source / BESIDE) if (source / BESIDE).is_file() else {}
    if beside:
        head = head_of(lm)
        own = {key.removeprefix("head."): value for key, value in beside.items() if key.startswith("head.")}
        try:
            head.load_state_dict(own, strict=False)
        except RuntimeError as error:
            raise CheckpointError(f"{source / BESIDE} does not fit {source / 'config.json'}: {error}") from error
        logger.info("%s was pre-trained by bgekit: training continues with its head and decoder", name)
    elif not any(key.startswith(_HEADS) for key in weight_names(files)):
        logger.info("%s has no masked-LM head: a new one is trained with it", name)
    return lm, beside


def _check_head(config: Any, name: str) -> None:
    from transformers import MODEL_FOR_MASKED_LM_MAPPING

    if type(config) not in MODEL_FOR_MASKED_LM_MAPPING:
        raise ArgumentError(
            f"{name} is of the type {config.model_type}, which has no masked language models: RetroMAE trains BERT, "
            "RoBERTa, XLM-RoBERTa and the like"
        )


def _check(lm: Any, tokenizer: PreTrainedTokenizerFast, name: str, max_length: int) -> None:
    limit = position_limit(lm.config.to_dict())
    if limit is not None and max_length > limit:
        raise ArgumentError(f"--max-length {max_length} is more than {name} can take: {limit} tokens")
    rows = lm.get_input_embeddings().weight.shape[0]
    if max(tokenizer.get_vocab().values()) >= rows:
        raise ArgumentError(f"the tokenizer of {name} has more tokens than its {rows:,} embeddings")


def _card(source: Path | None, name: str, config: Any) -> ModelCard:
    """The card of the result: the first token's vector is what is trained, whatever was pooled before."""
    facts = config.to_dict()
    # A folder's name must not look like an id on the hub.
    name = str(Path(name).expanduser().resolve()) if Path(name).expanduser().is_dir() else name
    card = None
    if source is not None:
        silent: dict[str, Any] = {}
        for given in (silent, {"pooling": "cls"}):  # Where nothing says how it pools, the rest of the card counts.
            try:
                card = read_card(source, name, **given)
                break
            except CardError as error:
                logger.debug("%s: %s", name, error)
    if card is None:
        card = ModelCard(
            name=name, pooling="cls", normalize=True, prompts={"query": Prompt(), "document": Prompt()},
            max_length=usable_length(facts), dimension=hidden_size(facts), architecture=config.model_type,
            position_limit=position_limit(facts),
        )  # fmt: skip
    elif card.pooling != "cls" or card.dense:
        logger.info("%s pools %s; the pre-trained model pools cls, which is what is trained", name, card.pooling)
    return replace(
        card, pooling="cls", normalize=True, dense=(), dimension=hidden_size(facts), similarity="cosine",
        include_prompt=True, dtype="float32", selftest=None, calibration=None, notice=None, pretrained_only=True,
        matryoshka_dims=(),
    )  # fmt: skip


class _Surface:
    """Reads tokens of a vocabulary as what they stand for: the text, and whether a word begins there."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        settings = json.loads(tokenizer.backend_tokenizer.to_str())
        self._wordpiece = settings["model"]["type"] == "WordPiece"
        parts = json.dumps([settings.get("pre_tokenizer"), settings.get("decoder")])
        self._bytes = _bytes_of_characters() if '"ByteLevel"' in parts else None

    def __call__(self, token: str) -> tuple[str | bytes, bool]:
        """The text of a token, or its bytes where they are a part of a character; whether it begins a word."""
        if self._wordpiece:
            return token.removeprefix("##"), not token.startswith("##")
        if self._bytes is not None:
            raw = bytes(self._bytes[character] for character in token if character in self._bytes)
            try:
                token = raw.decode("utf-8").replace(" ", "\u2581")
            except UnicodeDecodeError:
                return raw, False
        return token.lstrip("\u2581"), token.startswith("\u2581")


def _bytes_of_characters() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}


def adapt(lm: Any, old: PreTrainedTokenizerFast, new: PreTrainedTokenizerFast) -> dict[str, int]:
    """Give a masked language model the vocabulary of another tokenizer, in place.

    A token of both vocabularies (the same text, both at the beginning of a word or both not) keeps its embedding and
    its bias in the head; so do special tokens by what they are for. A new token begins with the mean of the embeddings
    of the old tokens that its text consists of, or where there are none, of all old tokens.

    Args:
        lm: The model.
        old: Its tokenizer.
        new: The other one.

    Returns:
        How many tokens were `kept`, `composed` of old ones, and `unknown` to the old vocabulary.
    """
    rows = _rows(old, new)
    size = max(new.get_vocab().values()) + 1
    old_padding = padding_position(lm.config.model_type, lm.config.pad_token_id)
    before = [table.detach().clone() for table in _tables(lm)]
    lm.resize_token_embeddings(size, mean_resizing=False)
    counts = {"kept": 0, "composed": 0, "unknown": 0}
    for number in range(size):
        found = rows.get(number, [])
        counts["composed" if len(found) > 1 else "kept" if found else "unknown"] += 1
    for now, then in zip(_tables(lm), before, strict=True):
        mean = then.mean(0)
        for number in range(size):
            now.data[number] = then[rows[number]].mean(0) if number in rows else mean
    lm.config.vocab_size = size
    # The row that has no gradient is that of padding, wherever that is now.
    lm.get_input_embeddings().padding_idx = new.pad_token_id
    for role in _ROLES:
        setattr(lm.config, f"{role}_token_id", getattr(new, f"{role}_token_id"))
    lm.tie_weights()
    _move_positions(lm, old_padding)
    logger.info(
        "the vocabulary of %d tokens becomes one of %d: %d kept, %d composed of old ones, %d unknown to the old one",
        len(before[0]), size, counts["kept"], counts["composed"], counts["unknown"],
    )  # fmt: skip
    return counts


def _rows(old: PreTrainedTokenizerFast, new: PreTrainedTokenizerFast) -> dict[int, list[int]]:
    """Old tokens that each new token starts from."""
    old_surface, new_surface = _Surface(old), _Surface(new)
    special = set(old.all_special_ids)
    known = {old_surface(token): number for token, number in old.get_vocab().items() if number not in special}
    rows: dict[int, list[int]] = {}
    backend = old.backend_tokenizer
    for token, number in new.get_vocab().items():
        text, begins = new_surface(token)
        if (text, begins) in known:
            rows[number] = [known[text, begins]]
            continue
        if not text or isinstance(text, bytes):
            continue
        # The inside of a word is spelt after a word that is left out again.
        spelt = backend.encode(text if begins else f"a{text}", add_special_tokens=False)
        first = 0 if begins else 1
        pieces = [
            piece for piece, span in zip(spelt.ids, spelt.offsets, strict=True)
            if piece != old.unk_token_id and span[1] > first and piece not in special
        ]  # fmt: skip
        if pieces:
            rows[number] = pieces
    for role in _ROLES:
        then, now = (getattr(each, f"{role}_token_id") for each in (old, new))
        if now is not None and then is not None:
            rows[now] = [then]
    return rows


def _tables(lm: Any) -> list[Tensor]:
    """Parameters with a row for each token: the embeddings, those of the head where they are others, and its bias."""
    embeddings, head = lm.get_input_embeddings().weight, lm.get_output_embeddings()
    own = [] if head.weight.data_ptr() == embeddings.data_ptr() else [head.weight]
    return [embeddings, *own, *([] if head.bias is None else [head.bias])]


def _move_positions(lm: Any, old_padding: int | None) -> None:
    """RoBERTa counts positions from the padding token's id on: where that changes, their embeddings move along."""
    new_padding = padding_position(lm.config.model_type, lm.config.pad_token_id)
    layer = lm.base_model.embeddings
    if old_padding is None or new_padding is None or old_padding == new_padding:
        return
    layer.padding_idx = new_padding
    table: Tensor = layer.position_embeddings.weight.data
    moved = table[old_padding + 1 :].clone()
    count = min(len(moved), len(table) - new_padding - 1)
    table[: new_padding + 1] = 0
    table[new_padding + 1 : new_padding + 1 + count] = moved[:count]
    layer.position_embeddings.padding_idx = new_padding
