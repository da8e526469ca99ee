"""A model moved to another tokenizer: shared tokens keep their vectors, new ones start from old ones."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any, Final

from torch import Tensor

from ..models.checkpoint_files import padding_position

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

_ROLES: Final = ("pad", "unk", "cls", "sep", "mask", "bos", "eos")


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
