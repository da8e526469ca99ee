"""Whether models can be merged, and what exactly differs where they cannot."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, Literal, TypeAlias

from ..errors import ArgumentError, CardError, CheckpointError
from ..inference.embedder import SELFTEST_TEXT
from ..inference.tokenization import load_tokenizer
from ..models.card import ModelCard, RerankerCard
from ..models.card_reading import read_card, read_reranker_card
from ..models.checkpoint_files import read_config
from ..networks.loading import quiet_transformers
from .sources import Source

logger = logging.getLogger(__name__)
Kind: TypeAlias = Literal["encoder", "reranker"]
Card: TypeAlias = "ModelCard | RerankerCard"
#: Fields of a config that do not change what the network computes with given weights.
_IRRELEVANT: Final = frozenset({
    "architectures", "auto_map", "bgekit_reranker", "dtype", "finetuning_task", "gradient_checkpointing", "id2label",
    "initializer_factor", "initializer_range", "label2id", "problem_type", "return_dict", "torch_dtype",
    "transformers_version", "use_cache", "sentence_transformers",
})  # fmt: skip
#: Texts that tokenizers of equal vocabularies and different rules split differently.
_PROBES: Final = (
    SELFTEST_TEXT,
    "Ünïcode, ÉCOLE naïve\u3000ＡＢＣ ½",
    "don't  stop\n\tnow 3.14 🙂",
    "ﬁn [MASK] <s> </s>",
)


def agreed_cards(
    sources: Sequence[Source], kind: Kind, card_from: int | None, pooling: str | None = None
) -> tuple[Card, list[Card]]:
    """The card of the merged model, and those of the models.

    Args:
        sources: The models.
        kind: What they are.
        card_from: Number of the model whose card is taken, also for models that have none; None if all must say the
            same.
        pooling: How embedders pool, None for what each says.

    Raises:
        CardError: they differ in prompts, pooling, normalisation or maximum length, and nothing says whose count.
        CheckpointError: their networks or their tokenizers differ.
        ArgumentError: there is no model of that number.
    """
    if card_from is not None and not 0 <= card_from < len(sources):
        raise ArgumentError(f"card_from={card_from} must be the number of a model, from 0 to {len(sources) - 1}")
    cards = [card_of(each, kind, card_from in (None, place), pooling) for place, each in enumerate(sources)]
    chosen = cards[card_from or 0]
    assert chosen is not None
    for source, card in zip(sources, cards, strict=True):
        if card is not None:
            _check_heads(chosen, card, sources[card_from or 0].name, source.name)
    if card_from is None:
        for source, card in zip(sources[1:], cards[1:], strict=True):
            assert card is not None
            _check_use(chosen, card, sources[0].name, source.name)
    return chosen, [card or chosen for card in cards]


def check_networks(sources: Sequence[Source]) -> None:
    """See to it that all networks and tokenizers are those of the first model.

    Raises:
        CheckpointError: they differ; it names the fields with both values.
    """
    first, *others = sources
    for source in sources:
        if source.tokenizer_folder != source.folder:
            _check_own_tokenizer(source)
    config, tokens = _network(first), _tokenizer(first)
    for other in others:
        differing = _differences(config, _network(other))
        if differing:
            raise CheckpointError(f"{first.name} and {other.name} are different networks: {_listed(differing)}")
        theirs = _tokenizer(other)
        wrong = [name for name in tokens if tokens[name] != theirs[name]]
        if wrong:
            shown = [f"{name} {_short(tokens[name])} / {_short(theirs[name])}" for name in wrong]
            raise CheckpointError(f"{first.name} and {other.name} have different tokenizers: {', '.join(shown)}")


def card_of(source: Source, kind: Kind, needed: bool, pooling: str | None = None) -> Card | None:
    """The card of a model; an adapter's own side files count more than its base's.

    Args:
        source: The model.
        kind: What it is.
        needed: Whether it must have a card; None is returned otherwise.
        pooling: How it pools, None for what it says.
    """
    read: Callable[..., Card] = read_card if kind == "encoder" else read_reranker_card
    name = source.name if source.adapter is None else source.adapter.base
    given = {} if pooling is None else {"pooling": pooling}
    try:
        return read(source.folder, name, adapters=source.adapters, **given)
    except CardError as error:
        if needed:
            raise
        logger.info("%s has no card of its own: %s", source.name, error)
        return None


def _check_heads(first: Card, other: Card, a: str, b: str) -> None:
    """Layers behind the transformer have weights, so that no choice of a card makes up for a difference."""

    def heads(card: Card) -> dict[str, Any]:
        if isinstance(card, RerankerCard):
            return {"labels": card.labels}
        shapes = [f"{e.in_features} -> {e.out_features} {e.activation}{', bias' * e.bias}" for e in card.dense]
        return {"dense layers": shapes}

    if differing := _differences(heads(first), heads(other)):
        raise CheckpointError(f"{a} and {b} have different heads: {_listed(differing)}")


def _check_use(first: Card, other: Card, a: str, b: str) -> None:
    if differing := _differences(_use(first), _use(other)):
        raise CardError(
            f"{a} and {b} are used differently: {_listed(differing)}. card_from=0 (--card-from 0) makes the result one "
            f"to be used as {a}, 1 as {b}"
        )


def _use(card: Card) -> dict[str, Any]:
    """Use of a model (pooling, prompts, ...), by the names that users know."""
    if isinstance(card, RerankerCard):
        prompts = {"query": card.query, "passage": card.document}
        facts: dict[str, Any] = {"max_length": card.max_length}
    else:
        prompts = dict(card.prompts)
        names = ("pooling", "normalize", "max_length", "similarity", "lower_case", "include_prompt", "default_prompt")
        facts = {name: getattr(card, name) for name in (*names, "pretrained_only")}
    return facts | {f"prompt of a {role}": str(prompt) for role, prompt in prompts.items() if prompt}


def _network(source: Source) -> dict[str, Any]:
    """Fields of its config that decide the computation, with the defaults of its architecture."""
    from transformers import AutoConfig

    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(source.folder, trust_remote_code=source.options.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"the config.json in {source.folder} cannot be used: {error}") from error
    content = config.to_dict()
    kept = {
        key: value for key, value in content.items() if key not in _IRRELEVANT and not key.startswith(("_", "output_"))
    }
    return {key: value for key, value in kept.items() if "dropout" not in key}


def _check_own_tokenizer(source: Source) -> None:
    """An adapter may bring another tokenizer than its base has; the embeddings must have a row for each token."""
    own, base = _tokenizer(source), _tokenizer(replace(source, adapters=()))
    if own == base:
        return
    tokenizer = load_tokenizer(source.tokenizer_folder, trust_remote_code=source.options.trust_remote_code)
    rows = read_config(source.folder).get("vocab_size")
    if isinstance(rows, int) and max(tokenizer.get_vocab().values()) >= rows:
        raise CheckpointError(
            f"the adapter {source.name} has a tokenizer of {own['tokens']:,} tokens, its base {rows:,} embeddings: "
            "merge it with peft first (merge_and_unload) and give the result"
        )
    logger.warning("the adapter %s has another tokenizer than its base: the adapter's is used", source.name)


def _tokenizer(source: Source) -> dict[str, Any]:
    tokenizer = load_tokenizer(source.tokenizer_folder, trust_remote_code=source.options.trust_remote_code)
    vocabulary = tokenizer.get_vocab()
    digest = hashlib.sha256(repr(sorted(vocabulary.items())).encode("utf-8", "backslashreplace")).hexdigest()
    backend = tokenizer.backend_tokenizer
    ids = [backend.encode(text).ids for text in _PROBES]
    return {
        "tokens": len(vocabulary),
        "vocabulary": digest,
        "special tokens": {name: str(token) for name, token in sorted(tokenizer.special_tokens_map.items())},
        "ids of probes": hashlib.sha256(repr(ids).encode()).hexdigest(),
    }


def _differences(a: dict[str, Any], b: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {key: (a.get(key), b.get(key)) for key in {**a, **b} if a.get(key) != b.get(key)}


def _listed(differing: dict[str, tuple[Any, Any]]) -> str:
    return ", ".join(f"{name} {_short(a)} / {_short(b)}" for name, (a, b) in differing.items())


def _short(value: Any) -> str:
    text = "none" if value is None else repr(value)
    return text if len(text) <= 100 else f"{text[:90]}..."
