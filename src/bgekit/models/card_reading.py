"""The card of a checkpoint, read from its files, the table of families and the caller's arguments, in this order."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, get_args

from ..errors import CardError, CheckpointError
from .card import POOLINGS, SENTENCE_TRANSFORMERS_POOLING, UNSET, DenseLayer, Facts, ModelCard, Similarity, shown
from .config import checked_length, declared_dtype, hidden_size, position_limit, read_config, usable_length
from .families import Family, find_family, model_name, named_within
from .prompts import Prompt
from .weights import read_json, stored_dtype

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
        CardError: pooling is known to nobody, or the model is no embedder.
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
    facts = Facts(name)
    _add_adapters(facts, adapters, folder)
    _add_declared(facts, folder, family)
    if (dtype := declared_dtype(config)) is not None:  # of weights that are not here, or in a `.bin`
        facts.add("config.json", {"dtype": dtype})
    facts.add("default", {"normalize": True, "similarity": "cosine", "include_prompt": True, "lower_case": False})
    facts.add("default", {"default_prompt": None, "dense": (), "dtype": "float32", "selftest": None})
    facts.add("default", {"calibration": None, "pretrained_only": False})
    facts.add("default", {"max_length": usable_length(config), "query": Prompt(), "document": Prompt()})
    known, sources = facts.values, facts.sources
    for role in ("query", "document"):
        template = caller.pop(f"{role}_format", UNSET)
        if template is not UNSET and caller.get(role, UNSET) is UNSET and known[role]:
            caller[role] = known[role].in_format(template, family.template if family and role == "query" else None)
    facts.override("caller", {key: value for key, value in caller.items() if value is not UNSET})
    if "pooling" not in known:
        raise CardError(
            f"nothing says how {name!r} pools its token vectors: it has no 1_Pooling/config.json and "
            f"{model_name(name)!r} is not in the table of known families. Pass pooling_method=, one of "
            f"{', '.join(POOLINGS)} (BGE models: cls)."
        )
    if known["pooling"] not in POOLINGS:
        raise CardError(f"pooling_method={known['pooling']!r} is not one of {', '.join(POOLINGS)}")
    notice = family.notice if family else None
    if sources["query"] == "default":
        logger.info("no prompts are known for %s: queries are encoded as they are", name)
        if not known["pretrained_only"]:
            notice = prompt_doubt(name, bge_like=known["pooling"] == "cls", config=config)
    prompts = {**known.get("prompts", {}), "query": known["query"], "document": known["document"]}
    dense = known["dense"]
    return ModelCard(
        name=name,
        pooling=known["pooling"],
        normalize=known["normalize"],
        prompts=prompts,
        max_length=checked_length(known["max_length"], sources["max_length"], config, name),
        dimension=dense[-1].out_features if dense else hidden_size(config),
        similarity=known["similarity"],
        lower_case=known["lower_case"],
        include_prompt=known["include_prompt"],
        default_prompt=known["default_prompt"],
        dense=dense,
        dtype=known["dtype"],
        architecture=str(config.get("model_type", "")),
        position_limit=position_limit(config),
        family=family.title if family else None,
        notice=notice,
        sources=sources,
        selftest=known["selftest"],
        calibration=known["calibration"],
        pretrained_only=known["pretrained_only"],
    )


def declared_query(folder: Path, name: str) -> Prompt:
    """The query prompt that a checkpoint's files or the table of families declare, whatever a caller makes of it."""
    facts = Facts(name)
    _add_declared(facts, folder, family_of(name, folder))
    prompt: Prompt = facts.values.get("query", Prompt())
    return prompt


def _add_declared(facts: Facts, folder: Path, family: Family | None) -> None:
    facts.add("checkpoint", _checkpoint_facts(folder))
    if family is not None:
        facts.add(f"family table ({family.title})", _family_facts(family))


def _add_adapters(facts: Facts, adapters: Sequence[Path], folder: Path) -> None:
    """Add the fields of adapters' own files; differences to their base are logged."""
    base = Facts(facts.name)
    _add_declared(base, folder, family_of(facts.name, folder))
    for adapter in adapters:
        own = _checkpoint_facts(adapter)
        own.pop("dtype", None)
        if own.get("max_length") == _tokenizer_length(folder) and not (adapter / _LENGTH_FILE).is_file():
            own.pop("max_length", None)  # A copy of the base's tokenizer, which is no statement.
        for key, value in own.items():
            if key in _SAID and key in base.values and value != base.values[key] and key not in facts.values:
                logger.warning(
                    "%s of the adapter %s is %r, that of its base %s is %r: the adapter's is used",
                    key, adapter, shown(value), facts.name, shown(base.values[key]),
                )  # fmt: skip
        facts.add(f"adapter {adapter}", own)


#: Fields whose difference between an adapter and its base is said.
_SAID: Final = ("pooling", "normalize", "query", "document", "max_length", "similarity", "lower_case", "include_prompt")


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
        reason, instruction = "it may be of the BGE kind, most of which want an instruction", "..."
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
    facts: dict[str, Any] = {}
    if (dtype := stored_dtype(folder)) is not None:
        facts["dtype"] = dtype
    facts |= _length_facts(folder) | _case_facts(folder)
    facts |= _prompt_facts(folder)
    modules = folder / "modules.json"
    if not modules.is_file():
        if (folder / "1_Pooling" / "config.json").is_file():
            facts |= _pooling_facts(folder / "1_Pooling" / "config.json")
        return facts
    dense: list[DenseLayer] = []
    facts["normalize"] = False
    for module in read_json(modules, list):
        kind, path = _module(module, modules)
        if kind == "Pooling":
            facts |= _pooling_facts(folder / path / "config.json")
        elif kind == "Dense":
            dense.append(_dense_layer(folder, path))
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


def _length_facts(folder: Path) -> dict[str, Any]:
    length = _stated_length(folder / _LENGTH_FILE, "max_seq_length") or _tokenizer_length(folder)
    return {} if length is None else {"max_length": length}


def _tokenizer_length(folder: Path) -> int | None:
    return _stated_length(folder / "tokenizer_config.json", "model_max_length")


def _stated_length(path: Path, key: str) -> int | None:
    value = read_json(path).get(key) if path.is_file() else None
    # Tokenizers without a limit store a huge number here.
    return int(value) if isinstance(value, int | float) and 0 < value < 1_000_000 else None


def _case_facts(folder: Path) -> dict[str, Any]:
    path = folder / "sentence_bert_config.json"
    content = read_json(path) if path.is_file() else {}
    return {"lower_case": content["do_lower_case"] is True} if "do_lower_case" in content else {}


def _prompt_facts(folder: Path) -> dict[str, Any]:
    path = folder / "config_sentence_transformers.json"
    if not path.is_file():
        return {}
    content = read_json(path)
    facts: dict[str, Any] = {}
    if content.get("similarity_fn_name") in get_args(Similarity):
        facts["similarity"] = content["similarity_fn_name"]
    ours = content.get("bgekit") or {}
    suffixes, apart = ours.get("prompt_suffixes") or {}, ours.get("prompts_apart") or ()
    if ours.get("pretrained_only") is True:
        facts["pretrained_only"] = True
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
    facts["prompts"] = prompts
    facts["default_prompt"] = content.get("default_prompt_name")
    facts |= {name: ours[name] for name in ("selftest", "calibration") if ours.get(name)}
    return facts


def _pooling_facts(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing, but modules.json names it")
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


def _dense_layer(folder: Path, path: str) -> DenseLayer:
    file = folder / path / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{file} is missing, but modules.json names it")
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


def _family_facts(family: Family) -> dict[str, Any]:
    facts: dict[str, Any] = {"query": family.query, "document": family.document}
    for key in ("pooling", "normalize", "max_length", "include_prompt", "similarity"):
        if (value := getattr(family, key)) is not None:
            facts[key] = value
    return facts
