"""`tokenizer.json` -> the tokenizer of the library `tokenizers` that transformers would make of it, without it.

transformers 5 takes the vocabulary of the file, and for the tokenizers of BERT, RoBERTa and XLM-R writes down itself
what stands around it: how text is normalised and split, and which special tokens go where. That is repeated here for
these three, and for files that are used as they are (`PreTrainedTokenizerFast`). What is not plain is left to
transformers: `stored_tokenizer` returns None where a file has settings that it would drop or tokens that it would add.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

#: Model types that compute without transformers, and the tokenizer that is theirs if nothing names another.
_OWN: Final = {"bert": "BertTokenizer", "roberta": "RobertaTokenizer", "xlm-roberta": "XLMRobertaTokenizer"}
#: Tokenizers that use a file as it is.
_AS_IT_IS: Final = ("PreTrainedTokenizerFast", "TokenizersBackend")
_BERT_TOKENS: Final = {
    "unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]",
}  # fmt: skip
_ROBERTA_TOKENS: Final = {
    "bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "cls_token": "<s>", "unk_token": "<unk>",
    "pad_token": "<pad>", "mask_token": "<mask>",
}  # fmt: skip
#: Special tokens that each has where its settings name no others.
_TOKENS: Final = {
    "BertTokenizer": _BERT_TOKENS, "RobertaTokenizer": _ROBERTA_TOKENS, "XLMRobertaTokenizer": _ROBERTA_TOKENS,
}  # fmt: skip
#: What the part `model` of a file must say beside its vocabulary, as each makes one with just these settings.
_MODELS: Final[dict[str, dict[str, Any]]] = {
    "BertTokenizer": {"type": "WordPiece", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100},
    "RobertaTokenizer": {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": "",
        "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
    },
    "XLMRobertaTokenizer": {"type": "Unigram", "unk_id": 3, "byte_fallback": False},
}  # fmt: skip
#: Settings that change tokens in other ways than is repeated here.
_UNUSUAL: Final = ("auto_map", "fast_tokenizer_files", "split_special_tokens", "init_inputs")


@dataclass(frozen=True, eq=False)
class StoredTokenizer:
    """A tokenizer as encoding needs it, with the names that transformers' has.

    Attributes:
        backend_tokenizer: The tokenizer; it cuts and pads nothing, and must stay so: `copy` it to change it.
        model_input_names: What the network is given.
        special_tokens_map: Special tokens by their roles, such as `cls_token`; None for a role without one.
    """

    backend_tokenizer: Tokenizer
    model_input_names: tuple[str, ...]
    special_tokens_map: Mapping[str, str | None]

    def copy(self) -> Tokenizer:
        """A tokenizer with the same vocabulary, which is not copied, and settings of its own."""
        from tokenizers import Tokenizer

        own = self.backend_tokenizer
        parts = own.model, own.normalizer, own.pre_tokenizer, own.post_processor, own.decoder
        made = _assembled(*parts, _added(own))
        # Tokens with an id of their own choice, between which there are holes, get it from a file only.
        return made if _states(_added(made)) == _states(_added(own)) else Tokenizer.from_str(own.to_str())


def stored_tokenizer(folder: Path) -> StoredTokenizer | None:
    """The tokenizer of a checkpoint; None where it must be loaded by transformers."""
    from tokenizers import Tokenizer

    config, settings = _json(folder / "config.json"), _json(folder / "tokenizer_config.json", {})
    named, legacy = _json(folder / "special_tokens_map.json", {}), _json(folder / "added_tokens.json", {})
    text = _text(folder / "tokenizer.json")
    if text is None or not all(isinstance(each, dict) for each in (config, settings, named, legacy)):
        return None
    kind = _kind(config, settings)
    if kind is None or any(settings.get(name) for name in _UNUSUAL):
        return None
    try:
        content, parsed = json.loads(text), Tokenizer.from_str(text)
    except Exception:  # The tokenizers library raises plain Exception for damaged files; transformers tells of them.
        return None
    if "added_tokens_decoder" not in settings:
        settings = settings | named
    tokens = {**_TOKENS.get(kind, {}), **_special_tokens(settings)}
    added = _added(parsed)
    if not _all_known(tokens, settings, legacy, added) or not _is_written_by(kind, content, tokens):
        return None
    parts = (parsed.normalizer, parsed.pre_tokenizer, parsed.post_processor)
    if kind in _TOKENS:
        parts = _MAKERS[kind](content, settings, tokens, parsed.token_to_id)
    elif parsed.post_processor is None:
        return None
    backend = _assembled(parsed.model, *parts, parsed.decoder, added)
    if _states(_added(backend)) != _states(added):
        return None
    defaults = ("input_ids", "token_type_ids", "attention_mask")
    inputs = settings.get("model_input_names") or (defaults if kind == "BertTokenizer" else defaults[::2])
    return StoredTokenizer(backend, tuple(inputs), tokens)


def _kind(config: Mapping[str, Any], settings: Mapping[str, Any]) -> str | None:
    """The class of transformers that a tokenizer is of, None where it is none of those repeated here."""
    own = _OWN.get(str(config.get("model_type")))
    named = settings.get("tokenizer_class") or config.get("tokenizer_class") or own
    if own is None or not isinstance(named, str):
        return None
    if named in _AS_IT_IS:
        return named
    named = named.removesuffix("Fast")
    return named if named in _TOKENS else None


def _special_tokens(settings: Mapping[str, Any]) -> dict[str, str | None]:
    """Special tokens that settings name, by their roles."""
    found: dict[str, str | None] = {}
    for role, token in settings.items():
        content = token.get("content") if isinstance(token, dict) else token
        if role.endswith("_token") and (content is None or isinstance(content, str)):
            found[role] = content
    return found


def _all_known(
    tokens: Mapping[str, str | None],
    settings: Mapping[str, Any],
    legacy: Mapping[str, Any],
    added: Mapping[int, AddedToken],
) -> bool:
    """Whether the added tokens of a file are all that settings name, as settings describe them."""
    known = {token.content: token for token in added.values()}
    special = {token for token in tokens.values() if token is not None}
    if not all(token in known and known[token].special for token in special):
        return False
    if not known.keys() >= {*_further(settings), *legacy}:
        return False
    if "added_tokens_decoder" not in settings:
        return True
    from tokenizers import AddedToken

    try:
        described = {int(row): AddedToken(**token) for row, token in settings["added_tokens_decoder"].items()}
    except (TypeError, ValueError, AttributeError):
        return False
    return _states(described) == _states(added)


def _further(settings: Mapping[str, Any]) -> Iterator[str]:
    """Special tokens without a role."""
    for name in ("extra_special_tokens", "additional_special_tokens", "model_specific_special_tokens"):
        tokens = settings.get(name) or ()
        for token in tokens.values() if isinstance(tokens, dict) else tokens:
            yield token["content"] if isinstance(token, dict) else str(token)


def _is_written_by(kind: str, content: Mapping[str, Any], tokens: Mapping[str, str | None]) -> bool:
    """Whether a class of transformers makes the same model of a file's vocabulary as the file has."""
    if kind not in _MODELS:
        return True
    model, expected = content["model"], _MODELS[kind]
    # "" and null mean the same.
    if any((model.get(name, value) or None) != (value or None) for name, value in expected.items()):
        return False
    if any(tokens[role] is None for role in _TOKENS[kind]):
        return False
    if kind == "BertTokenizer":
        return bool(model.get("unk_token") == tokens["unk_token"])
    return kind == "XLMRobertaTokenizer" or content.get("normalizer") is None


def _bert(content: Mapping[str, Any], settings: Mapping[str, Any], tokens: Any, identify: Any) -> tuple[Any, ...]:
    from tokenizers import normalizers, pre_tokenizers, processors

    normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
        lowercase=settings.get("do_lower_case", True),
    )
    first, last = tokens["cls_token"], tokens["sep_token"]
    template = processors.TemplateProcessing(
        single=f"{first}:0 $A:0 {last}:0",
        pair=f"{first}:0 $A:0 {last}:0 $B:1 {last}:1",
        special_tokens=[(first, identify(first)), (last, identify(last))],
    )
    return normalizer, pre_tokenizers.BertPreTokenizer(), template


def _roberta(content: Mapping[str, Any], settings: Mapping[str, Any], tokens: Any, identify: Any) -> tuple[Any, ...]:
    from tokenizers import pre_tokenizers, processors

    space, (first, last) = settings.get("add_prefix_space", False), (tokens["cls_token"], tokens["sep_token"])
    trim = settings.get("trim_offsets", True)
    template = processors.RobertaProcessing((last, identify(last)), (first, identify(first)), trim, space)
    return None, pre_tokenizers.ByteLevel(add_prefix_space=space), template


def _xlm_roberta(
    content: Mapping[str, Any], settings: Mapping[str, Any], tokens: Any, identify: Any
) -> tuple[Any, ...]:
    from tokenizers import normalizers, pre_tokenizers, processors

    steps = content.get("normalizer") or {}
    steps = steps["normalizers"] if steps.get("type") == "Sequence" else [steps]
    maps = [step["precompiled_charsmap"] for step in steps if step.get("type") == "Precompiled"]
    normalizer = normalizers.Precompiled(base64.b64decode(maps[0])) if maps else None
    scheme = "always" if settings.get("add_prefix_space", True) else "never"
    words = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme)]
    )
    first, last = tokens["bos_token"], tokens["eos_token"]
    template = processors.TemplateProcessing(
        single=[first, "$A", last],
        pair=[first, "$A", last, last, "$B", last],
        special_tokens=[(first, identify(first)), (last, identify(last))],
    )
    return normalizer, words, template


#: Normaliser, pre-tokenizer and post-processor as the class of transformers makes them, of a file and its settings.
_MAKERS: Final = {"BertTokenizer": _bert, "RobertaTokenizer": _roberta, "XLMRobertaTokenizer": _xlm_roberta}


def _assembled(
    model: Any, normalizer: Any, pre_tokenizer: Any, post_processor: Any, decoder: Any, added: Mapping[int, AddedToken]
) -> Tokenizer:
    """A tokenizer of these parts, which it shares."""
    from tokenizers import Tokenizer

    made = Tokenizer(model)
    parts = {
        "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": post_processor, "decoder": decoder,
    }  # fmt: skip
    for name, part in parts.items():
        if part is not None:
            setattr(made, name, part)
    made.add_tokens([added[row] for row in sorted(added)])
    return made


def _added(tokenizer: Tokenizer) -> dict[int, AddedToken]:
    """Added tokens by their ids."""
    return dict(tokenizer.get_added_tokens_decoder())


def _states(added: Mapping[int, AddedToken]) -> dict[int, Any]:
    """All that describes added tokens, of which `==` compares the text alone."""
    return {row: token.__getstate__() for row, token in added.items()}


def _text(path: Path) -> str | None:
    """The content of a file, None where there is none or it is no text."""
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, UnicodeDecodeError):
        return None


def _json(path: Path, missing: Any = None) -> Any:
    """The content of a JSON file; `missing` where there is none, None where it is damaged."""
    text = _text(path)
    if text is None:
        return None if path.exists() else missing
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None
