"""The card of a checkpoint, read from its files, the table of families and the caller's arguments, in this order.

First that of an embedder, then that of a reranker, then what both need: the length at which texts are cut.
"""

from __future__ import annotations

import logging
from collections import ChainMap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, get_args

from ..errors import CardError, CheckpointError
from .card import (
    CONFIG_KEY,
    POOLINGS,
    SENTENCE_TRANSFORMERS_POOLING,
    UNSET,
    DenseLayer,
    Facts,
    ModelCard,
    Prompt,
    RerankerCard,
    Similarity,
)
from .checkpoint_files import declared_dtype, hidden_size, position_limit, read_config, read_json, stored_dtype
from .families import Family, find_family, known_matryoshka, model_name, named_within
from .head_files import stored_heads

logger = logging.getLogger(__name__)


def read_card(folder: Path, name: str | None = None, *, adapters: Sequence[Path] = (), **caller: Any) -> ModelCard:
    """The card of the checkpoint in `folder`.

    Args:
        folder: A checkpoint with its `config.json`.
        name: The name the caller used; the family is looked up by it, then by the folder.
        adapters: Folders of adapters of this model; what their side files say counts more than the model's own, the
            first most, and where it differs a warning says so.
        caller: Fields that the caller sets: `pooling` (also as `pooling_method`), `normalize`, `query`, `document`
            (prompts), `query_format`, `document_format` (templates for the known instruction, used where the prompt
            itself is not set), `max_length`; values that are `UNSET` are ignored.

    Raises:
        CardError: pooling is known to nobody, or the model is not an embedder.
        CheckpointError: a file is missing or damaged.

    Example:
        >>> from bgekit.models import read_card, resolve
        >>> read_card(resolve("BAAI/bge-small-en-v1.5"), "BAAI/bge-small-en-v1.5").pooling
        'cls'
    """
    name = name or str(folder)
    if "pooling_method" in caller:
        caller["pooling"] = caller.pop("pooling_method")
    family = family_of(name, folder)
    config = read_config(folder)
    _refuse_rerankers(name, config, family)
    declared, facts = _declared(folder, family, name), Facts(name)
    for adapter in adapters:
        own = _checkpoint_facts(adapter)
        own.pop("dtype", None)
        if own.get("max_length") == _tokenizer_length(folder) and not (adapter / _LENGTH_FILE).is_file():
            own.pop("max_length", None)  # A copy of the base's tokenizer, which is not a statement.
        facts.add_adapter(adapter, own, ChainMap(*declared.values()))
    for source, values in declared.items():
        facts.add(source, values)
    if (dtype := declared_dtype(config)) is not None:  # Of weights that are not here, or in a `.bin`.
        facts.add("config.json", {"dtype": dtype})
    facts.add("default", {"normalize": True, "similarity": "cosine", "include_prompt": True, "lower_case": False})
    facts.add("default", {"default_prompt": None, "dense": (), "dtype": "float32", "selftest": None})
    facts.add("default", {"calibration": None, "pretrained_only": False, "matryoshka_dims": ()})
    facts.add("default", {"max_length": usable_length(config), "query": Prompt(), "document": Prompt()})
    known, sources = facts.values, facts.sources
    for role in ("query", "document"):
        template = caller.pop(f"{role}_format", UNSET)
        if template is not UNSET and caller.get(role, UNSET) is UNSET and known[role]:
            caller[role] = known[role].in_format(template, family.template if family and role == "query" else None)
    if (pooling := caller.get("pooling", UNSET)) is not UNSET and pooling not in POOLINGS:
        raise CardError(f"pooling_method={pooling!r} is not one of {', '.join(POOLINGS)}")
    facts.override("caller", {key: value for key, value in caller.items() if value is not UNSET})
    if "pooling" not in known:
        raise CardError(
            f"nothing says how {name!r} pools its token vectors: it has no 1_Pooling/config.json and "
            f"{model_name(name)!r} is not in the table of known families. Pass pooling_method=, one of "
            f"{', '.join(POOLINGS)} (BGE models: cls)."
        )
    notice = family.notice if family else None
    if sources["query"] == "default":
        logger.info("no prompts are known for %s: queries are encoded as they are", name)
        if not known["pretrained_only"]:
            notice = prompt_doubt(name, bge_like=known["pooling"] == "cls", config=config)
    dense = known["dense"]
    return ModelCard(
        name=name,
        prompts={**known.get("prompts", {}), "query": known["query"], "document": known["document"]},
        max_length=checked_length(known["max_length"], sources["max_length"], config, name),
        dimension=dense[-1].out_features if dense else hidden_size(config),
        architecture=str(config.get("model_type", "")),
        position_limit=position_limit(config),
        family=family.title if family else None,
        heads=stored_heads(folder),
        notice=notice,
        sources=sources,
        **{field: known[field] for field in _TAKEN},
    )


#: Fields of a card that are what the first source says.
_TAKEN: Final = (
    "pooling", "normalize", "similarity", "lower_case", "include_prompt", "default_prompt", "dense", "dtype",
    "selftest", "calibration", "pretrained_only", "matryoshka_dims",
)  # fmt: skip


def declared_query(folder: Path, name: str) -> Prompt:
    """The query prompt that a checkpoint's files or the table of families declare, whatever a caller makes of it."""
    prompt: Prompt = ChainMap(*_declared(folder, family_of(name, folder), name).values()).get("query", Prompt())
    return prompt


def _declared(folder: Path, family: Family | None, name: str) -> dict[str, dict[str, Any]]:
    """What the files of a checkpoint, then the table of families, say of it: by source."""
    declared = {"checkpoint": _checkpoint_facts(folder)}
    if family is not None:
        said = {key: getattr(family, key) for key in _OF_FAMILIES}
        said["matryoshka_dims"] = known_matryoshka(name) or known_matryoshka(str(folder.resolve()))
        declared[f"family table ({family.title})"] = {key: value for key, value in said.items() if value is not None}
    if stored_heads(folder):
        # FlagEmbedding, which trains and writes such models, says nothing else of them in any file.
        declared["heads of BGE-M3's kind"] = {"pooling": "cls", "normalize": True}
    return declared


#: Fields of a family that are fields of its models' cards.
_OF_FAMILIES: Final = ("query", "document", "pooling", "normalize", "max_length", "include_prompt", "similarity")


def family_of(name: str, folder: Path) -> Family | None:
    """The family of a checkpoint by the name that the caller used, else by its folder (a link has two names)."""
    return find_family(name) or find_family(str(folder.resolve()))


#: Vocabulary of checkpoints -> a model of the family that is best known for it.
_LIKE: Final[dict[tuple[Any, Any], str]] = {
    ("bert", 30522): "bge-base-en-v1.5",
    ("bert", 21128): "bge-base-zh-v1.5",
    ("xlm-roberta", 250002): "bge-m3",
}


def prompt_doubt(name: str, *, bge_like: bool, config: Mapping[str, Any] | None = None) -> str | None:
    """Warning on a model without known prompts that may need one; None where nothing speaks for it.

    A name or a shape alone never gives a model a prompt: a fine-tune may have been trained with another one.

    Args:
        name: Name or path.
        bge_like: Whether it may be of the BGE kind, because it pools by `cls` or is called so.
        config: Its `config.json`, if there is one.
    """
    within = named_within(name)
    if within is None and not bge_like:
        return None
    like = within or (_LIKE.get((config.get("model_type"), config.get("vocab_size"))) if config else None)
    family = find_family(like) if like else None
    if family is None:
        reason, instruction = "it may be of the BGE kind, most of which need an instruction", "..."
    elif family.query:
        found = f"its name speaks of {within}" if within else f"its pooling and vocabulary are those of {family.title}"
        reason, instruction = f"{found}, whose queries get {str(family.query)!r}", str(family.query)
    else:
        return None
    return (
        f"no prompts are known for this model, so queries are encoded as they are; {reason}. If it was trained with an "
        f"instruction, pass query_instruction_for_retrieval={instruction!r}; if with none, pass "
        'query_instruction_for_retrieval="". A saved model keeps it'
    )


def refuse_reranker(name: str, family: Family | None) -> None:
    """Raise CardError if the table of families knows the model as a reranker."""
    if family is not None and family.kind == "reranker":
        raise CardError(
            f"{model_name(name)} is a reranker: it scores pairs and has no text vectors. "
            "Use FlagReranker(name).compute_score(pairs) instead of FlagModel."
        )


def _refuse_rerankers(name: str, config: Mapping[str, Any], family: Family | None) -> None:
    refuse_reranker(name, family)
    architectures = config.get("architectures") or []
    if any(kind.endswith("ForSequenceClassification") for kind in architectures) and family is None:
        raise CardError(
            f"{name!r} is a sequence classifier ({architectures[0]}), most likely a reranker: "
            "use FlagReranker(name).compute_score(pairs) instead of FlagModel."
        )


def _checkpoint_facts(folder: Path) -> dict[str, Any]:
    facts = _stored_facts(folder) | _prompt_facts(folder)
    settings = read_json(folder / _LENGTH_FILE, missing_ok=True)
    if (length := _length(settings, "max_seq_length") or _tokenizer_length(folder)) is not None:
        facts["max_length"] = length
    if "do_lower_case" in settings:
        facts["lower_case"] = settings["do_lower_case"] is True
    modules = folder / "modules.json"
    if not modules.is_file():
        if (folder / "1_Pooling" / "config.json").is_file():
            facts |= _pooling_facts(folder / "1_Pooling" / "config.json")
        return facts
    dense: list[DenseLayer] = []
    facts["normalize"] = False
    for module in read_json(modules, list):
        kind, path = _module(module, modules)
        file = folder / path / "config.json"
        if kind in ("Pooling", "Dense") and not file.is_file():
            raise CheckpointError(f"{file} is missing, but modules.json names it")
        if kind == "Pooling":
            facts |= _pooling_facts(file)
        elif kind == "Dense":
            dense.append(_dense_layer(file, path))
        elif kind == "Normalize":
            facts["normalize"] = True
        elif kind not in ("Transformer", "Dropout"):
            raise CardError(
                f"{modules} names a module of kind {kind!r} ({module['type']}), which bgekit does not know; "
                "it knows Transformer, Pooling, Dense, Dropout and Normalize"
            )
    facts["dense"] = tuple(dense)
    return facts


def _module(entry: Any, file: Path) -> tuple[str, str]:
    """Kind and folder of a module; `sentence_transformers.models.Pooling` is of the kind `Pooling`."""
    if not isinstance(entry, dict) or not isinstance(entry.get("type"), str):
        raise CheckpointError(f"{file} is damaged: {entry!r:.80} does not say its type")
    return entry["type"].rsplit(".", 1)[-1], entry.get("path", "")


_LENGTH_FILE: Final = "sentence_bert_config.json"


def _stored_facts(folder: Path) -> dict[str, Any]:
    dtype = stored_dtype(folder)
    return {} if dtype is None else {"dtype": dtype}


def _tokenizer_length(folder: Path) -> int | None:
    return _length(read_json(folder / "tokenizer_config.json", missing_ok=True), "model_max_length")


def _length(settings: Mapping[str, Any], key: str) -> int | None:
    value = settings.get(key)
    # Tokenizers without a limit store a huge number here.
    return int(value) if isinstance(value, int | float) and 0 < value < 1_000_000 else None


def _prompt_facts(folder: Path) -> dict[str, Any]:
    content = read_json(folder / "config_sentence_transformers.json", missing_ok=True)
    facts: dict[str, Any] = {}
    if content.get("similarity_fn_name") in get_args(Similarity):
        facts["similarity"] = content["similarity_fn_name"]
    ours = content.get("bgekit") or {}
    suffixes, apart = ours.get("prompt_suffixes") or {}, ours.get("prompts_apart") or ()
    if ours.get("pretrained_only") is True:
        facts["pretrained_only"] = True
    if isinstance(dims := ours.get("matryoshka_dims"), list):
        facts["matryoshka_dims"] = tuple(dims)
    prompts = {
        role: Prompt(text or "", suffixes.get(role, ""), role in apart)
        for role, text in (content.get("prompts") or {}).items()
    }
    # sentence-transformers 5 and later writes empty prompts for every model it saves: they say nothing.
    if not ours and not any(prompts.values()):
        return facts
    roles = {"query": ("query",), "document": ("document", "passage", "corpus")}
    for role, names in roles.items():
        found = next((prompts[name] for name in names if name in prompts), None)
        if found is not None:
            facts[role] = found
    facts |= {"prompts": prompts, "default_prompt": content.get("default_prompt_name")}
    facts |= {name: ours[name] for name in ("selftest", "calibration") if ours.get(name)}
    return facts


def _pooling_facts(path: Path) -> dict[str, Any]:
    content = read_json(path)
    names = {theirs: ours for ours, (_, theirs) in SENTENCE_TRANSFORMERS_POOLING.items()}
    if isinstance(content.get("pooling_mode"), str):
        chosen = [content["pooling_mode"]]
    else:
        flags = {flag: theirs for flag, theirs in SENTENCE_TRANSFORMERS_POOLING.values()}
        chosen = [flags.get(key, key) for key, on in content.items() if key.startswith("pooling_mode_") and on is True]
    if len(chosen) != 1 or chosen[0] not in names:
        raise CardError(f"{path} asks for the pooling {chosen}; bgekit knows exactly one of {', '.join(POOLINGS)}")
    facts: dict[str, Any] = {"pooling": names[chosen[0]]}
    if "include_prompt" in content:
        facts["include_prompt"] = content["include_prompt"] is not False
    return facts


def _dense_layer(file: Path, path: str) -> DenseLayer:
    content = read_json(file)
    if not all(isinstance(content.get(key), int) for key in ("in_features", "out_features")):
        raise CheckpointError(f"{file} is damaged: it does not say in_features and out_features")
    return DenseLayer(
        folder=path,
        in_features=int(content["in_features"]),
        out_features=int(content["out_features"]),
        bias=bool(content.get("bias", True)),
        activation=str(content.get("activation_function", "Identity")).rsplit(".", 1)[-1],
    )


def read_reranker_card(
    folder: Path, name: str | None = None, *, adapters: Sequence[Path] = (), **caller: Any
) -> RerankerCard:
    """The card of the cross-encoder in `folder`.

    Args:
        folder: A checkpoint with its `config.json`.
        name: The name the caller used.
        adapters: As in `read_card`.
        caller: Fields that the caller sets: `query`, `document` (prompts), `max_length`; values that are `UNSET`
            are ignored.

    Raises:
        CardError: the model is not a sequence classifier, or one of more than two classes.
        CheckpointError: a file is missing or damaged.

    Example:
        >>> from bgekit.models import read_reranker_card, resolve
        >>> read_reranker_card(resolve("BAAI/bge-reranker-base")).labels
        1
    """
    name = name or str(folder)
    config = read_config(folder)
    declared, facts = _reranker_facts(config), Facts(name)
    for adapter in adapters:
        facts.add_adapter(adapter, _reranker_facts(read_json(adapter / "config.json", missing_ok=True)), declared)
    facts.add("checkpoint", declared | _stored_facts(folder) | {"labels": _label_count(config)})
    facts.add("config.json", {"dtype": declared_dtype(config) or "float32"})
    # As in FlagEmbedding, or fewer tokens where the tokenizer or the network takes fewer.
    length = min(usable_length(config), _tokenizer_length(folder) or DEFAULT_MAX_LENGTH)
    facts.add("default", {"max_length": length, "query": Prompt(), "document": Prompt()})
    facts.override("caller", {key: value for key, value in caller.items() if value is not UNSET})
    known, sources = facts.values, facts.sources
    _refuse_others(name, config, known["labels"])
    return RerankerCard(
        name=name,
        max_length=checked_length(known["max_length"], sources["max_length"], config, name),
        architecture=str(config.get("model_type", "")),
        position_limit=position_limit(config),
        sources=sources,
        **{field: known[field] for field in ("labels", "query", "document", "dtype")},
    )


def _label_count(config: Mapping[str, Any]) -> int:
    """Outputs of a classifier's head by its config; transformers takes 2 where it does not say."""
    if isinstance(config.get("id2label"), dict):
        return len(config["id2label"])
    return int(config.get("num_labels") or 2)


_CLASSIFIER: Final = "ForSequenceClassification"


def is_classifier(config: Mapping[str, Any]) -> bool:
    """Whether a checkpoint says that it is a sequence classifier."""
    return any(_CLASSIFIER in kind for kind in config.get("architectures") or ())


def _refuse_others(name: str, config: Mapping[str, Any], labels: int) -> None:
    architectures = config.get("architectures") or []
    if architectures and not is_classifier(config):
        family = find_family(name)
        if any("ForCausalLM" in kind for kind in architectures) and family is not None and family.kind == "reranker":
            raise CardError(
                f"{name!r} is a language model that answers 'Yes' or 'No' ({architectures[0]}); FlagReranker takes "
                f"cross-encoders with a classification head (...{_CLASSIFIER}), such as BAAI/bge-reranker-v2-m3"
            )
        raise CardError(
            f"{name!r} is not a reranker: its config.json says {architectures[0]}, not ...{_CLASSIFIER}. "
            "For text vectors use FlagModel."
        )
    if labels > 2:
        classes = list((config.get("id2label") or {}).values())[:5]
        raise CardError(
            f"{name!r} tells {labels} classes apart ({', '.join(map(str, classes))}): a reranker has one output, "
            "the score, or two, not relevant and relevant"
        )


def _reranker_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    stored = config.get(CONFIG_KEY)
    if not isinstance(stored, dict):
        return {}
    facts: dict[str, Any] = {"max_length": stored["max_length"]} if "max_length" in stored else {}
    return facts | {role: Prompt(*stored[role]) for role in ("query", "document") if role in stored}


#: Without any stated limit, texts are cut at this many tokens (the default of FlagEmbedding).
DEFAULT_MAX_LENGTH: Final = 512


def usable_length(config: Mapping[str, Any]) -> int:
    """Length in tokens at which texts are cut when nothing else says it."""
    return min(DEFAULT_MAX_LENGTH, position_limit(config) or DEFAULT_MAX_LENGTH)


def checked_length(length: Any, source: str, config: Mapping[str, Any], name: str) -> int:
    """A maximum length that the network can take: one from the model's files is lowered to what there is.

    Args:
        length: The length that was found.
        source: Where; `caller` is not lowered but told.
        config: The config.
        name: The model's name, for messages.

    Raises:
        CardError: it is not a positive number, or a caller asks for more than there is.
    """
    limit = position_limit(config)
    if not isinstance(length, int) or isinstance(length, bool) or length < 1:
        raise CardError(f"max_length of {name} must be a positive number of tokens, not {length!r}")
    if limit is None or length <= limit:
        return length
    if source == "caller":
        raise CardError(
            f"max_length={length} is more than {name} can take: it has position embeddings for {limit} tokens. "
            "Pass at most that, or split long texts into passages (bge encode --chunk)."
        )
    return limit
