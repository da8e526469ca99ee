"""What FlagEmbedding's users pass to models and ask of them that has no use here, and what holds instead."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from ..errors import ArgumentError, BgekitError

logger = logging.getLogger(__name__)

_DENSE: Final = "a model has its dense vectors here, which encode returns as an array"
_EXAMPLES: Final = "queries are encoded without in-context examples"
_LANGUAGE_MODEL: Final = "it belongs to rerankers on language models; this one is a cross-encoder"
_DEVICES: Final = "all devices of the model are used; devices= of the class names them"

#: Keywords of the original's embedders (1.2 to 1.4) without a use here -> what holds instead.
OF_EMBEDDERS: Final[Mapping[str, str]] = {
    "colbert_dim": _DENSE,
    "return_dense": _DENSE,
    "return_sparse": _DENSE,
    "return_colbert_vecs": _DENSE,
    "examples_for_task": _EXAMPLES,
    "examples_instruction_format": _EXAMPLES,
    "suffix": "what follows a query comes from the model's card, or from query_instruction_format=",
    "domain_for_pseudo_moe": "models with experts by domain are not in bgekit",
}
#: The same of their methods.
OF_ENCODE: Final[Mapping[str, str]] = {
    "return_dense": _DENSE,
    "return_sparse": _DENSE,
    "return_colbert_vecs": _DENSE,
    "task": "the card's prompts are used; pass those of another task as instruction=",
    "device": _DEVICES,
}
#: The same of rerankers and of `compute_score`.
OF_RERANKERS: Final[Mapping[str, str]] = {
    "passage_max_length": "the passage has what the query leaves of max_length",
    "device": _DEVICES,
    "peft_path": f"{_LANGUAGE_MODEL}. `bge merge` puts an adapter into its base",
    "prompt": _LANGUAGE_MODEL,
    "cutoff_layers": _LANGUAGE_MODEL,
    "compress_layer": _LANGUAGE_MODEL,
    "compress_layers": _LANGUAGE_MODEL,
    "compress_ratio": _LANGUAGE_MODEL,
    "use_dataloader": "texts are tokenised by threads while the model computes",
    "num_workers": "texts are tokenised by threads while the model computes",
}

_WORKERS: Final = "is not needed: {} uses all devices; model.close(), or `with {}(...) as model:`, ends the workers"
_POOLS: Final = (
    "encode_single_device", "encode_queries_single_device", "compute_score_single_gpu", "compute_score_single_device",
    "start_multi_process_pool", "encode_multi_process", "compute_score_multi_process", "stop_multi_process_pool",
    "stop_self_pool",
)  # fmt: skip
#: Other names of the original's objects -> what there is instead.
_NAMES: Final[Mapping[str, str]] = {
    "get_target_devices": "is not needed: model.devices are those in use",
    "target_devices": "is model.devices here",
    "num_gpus": "is len(model.devices) here",
    "get_detailed_instruct": "is not needed: encode takes instruction= and instruction_format=",
    "get_detailed_inputs": "is not needed: instructions are put before texts by compute_score",
    "get_model_torch_dtype": "is not needed: model.precision says in which format is computed",
    "pooling": "is not needed: encode pools as model.card.pooling says",
    "pooling_method": "is model.card.pooling here",
    "normalize_embeddings": "is model.card.normalize here",
    "query_instruction_for_retrieval": 'is model.card.prompt("query") here',
    "passage_instruction_for_retrieval": 'is model.card.prompt("document") here',
    "encode_keys": "is encode_corpus here",
    "set_examples": f"is not there: {_EXAMPLES}",
    "compute_score": "is not there: similarity(a, b) compares vectors, and FlagReranker scores pairs",
    "compute_lexical_matching_score": f"is not there: {_DENSE}",
    "colbert_score": f"is not there: {_DENSE}",
    "convert_id_to_token": "is not there: use model.tokenizer.decode",
}
_said: set[tuple[str, str]] = set()


class NotHereError(BgekitError, AttributeError):
    """A method or attribute of the original's classes that bgekit does not have; the message says what to use."""


def set_aside(given: Mapping[str, Any], known: Mapping[str, str], callee: str) -> None:
    """Warn, once a process, of keywords that FlagEmbedding takes and that have no use here.

    Args:
        given: Keywords without a parameter, with their values.
        known: Those of the original -> what holds instead.
        callee: What was called, for messages.

    Raises:
        ArgumentError: a keyword is none of the original's either.
    """
    for name, value in given.items():
        if name not in known:
            raise ArgumentError(f"{callee} has no argument {name!r}")
        # What is off or left out in the original is so here.
        if value is None or value is False or (callee, name) in _said:
            continue
        _said.add((callee, name))
        logger.warning("%s=%r of %s has no effect: %s", name, value, callee, known[name])


def not_here(owner: object, name: str) -> AttributeError:
    """The error for an attribute that an object lacks: one of the original's says what there is instead."""
    kind = type(owner).__name__
    if name in _POOLS:
        verb = "compute_score" if hasattr(type(owner), "compute_score") else "encode"
        return NotHereError(f"{name} {_WORKERS.format(verb, kind)}")
    if name in _NAMES:
        return NotHereError(f"{name} of {kind} {_NAMES[name]}")
    return AttributeError(f"{kind!r} object has no attribute {name!r}")
