"""The small files around weights: what sentence-transformers, text-embeddings-inference and readers look at.

They have the form that sentence-transformers wrote until 5.3, which its releases from 2.7 to 6.2 all read; what newer
ones write themselves loads in no older one. text-embeddings-inference asks for the flags `pooling_mode_cls_token` and
`pooling_mode_mean_tokens`, for `max_seq_length`, and for prompts that are strings.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ..display.pages import render
from .card import SENTENCE_TRANSFORMERS_POOLING, ModelCard, Prompt

#: Version of the `bgekit` entry in config_sentence_transformers.json.
FORMAT: Final = 1
#: The oldest release that reads the layout: newer ones warn of a file from a release after their own.
LAYOUT_VERSION: Final = "2.7.0"
_SIMILARITIES: Final = {
    "cosine": "cosine",
    "dot": "dot product",
    "euclidean": "negative Euclidean distance",
    "manhattan": "negative Manhattan distance",
}
#: Tag of a model that is not an embedder yet.
PRETRAINED_TAG: Final = "pretrained-only"
_ALIASES: Final = {"document": ("passage", "corpus")}


def dense_folder(number: int) -> str:
    """Folder of a dense layer, counted from 0: modules are numbered through, the transformer being 0."""
    return f"{number + 2}_Dense"


def side_files(card: ModelCard, selftest: Mapping[str, Any] | None, versions: Mapping[str, str]) -> dict[str, Any]:
    """Path inside the checkpoint -> JSON content, for every file that sentence-transformers reads.

    Args:
        card: What the files are to say.
        selftest: A text and its vector, or None for no self-test.
        versions: Versions of `transformers`, `torch` and `bgekit`, for the record.
    """
    files: dict[str, Any] = {
        "modules.json": _modules(card),
        "1_Pooling/config.json": _pooling(card),
        "sentence_bert_config.json": {
            "max_seq_length": card.max_length,
            "do_lower_case": card.lower_case,
        },
        "config_sentence_transformers.json": _main_config(card, selftest, versions),
    }
    for number, layer in enumerate(card.dense):
        home = "linear" if layer.activation == "Identity" else "activation"
        files[f"{dense_folder(number)}/config.json"] = {
            "in_features": layer.in_features,
            "out_features": layer.out_features,
            "bias": layer.bias,
            "activation_function": f"torch.nn.modules.{home}.{layer.activation}",
        }
    return files


def _modules(card: ModelCard) -> list[dict[str, Any]]:
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    modules += [(dense_folder(number), "Dense") for number in range(len(card.dense))]
    if card.normalize:
        modules.append((f"{len(modules)}_Normalize", "Normalize"))
    return [
        {"idx": idx, "name": str(idx), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for idx, (path, kind) in enumerate(modules)
    ]


def _pooling(card: ModelCard) -> dict[str, Any]:
    flag, name = SENTENCE_TRANSFORMERS_POOLING[card.pooling]
    flags = [theirs for theirs, _ in SENTENCE_TRANSFORMERS_POOLING.values()]
    width = card.dense[0].in_features if card.dense else card.dimension
    return {
        "word_embedding_dimension": width,
        **{each: each == flag for each in [*flags[:3], "pooling_mode_mean_sqrt_len_tokens", *flags[3:]]},
        "include_prompt": card.include_prompt,
    } | {"pooling_mode": name}


def _main_config(card: ModelCard, selftest: Mapping[str, Any] | None, versions: Mapping[str, str]) -> dict[str, Any]:
    prompts = saved_prompts(card)
    ours: dict[str, Any] = {"format": FORMAT, "version": versions["bgekit"]}
    suffixes = {role: prompt.suffix for role, prompt in prompts.items() if prompt.suffix}
    apart = sorted(role for role, prompt in prompts.items() if prompt.apart)
    # What sentence-transformers has no field for; it ignores a key that it does not know.
    ours |= {"prompt_suffixes": suffixes} if suffixes else {}
    ours |= {"prompts_apart": apart} if apart else {}
    ours |= {"selftest": dict(selftest)} if selftest is not None else {}
    ours |= {"pretrained_only": True} if card.pretrained_only else {}
    # An empty list where something else said otherwise: a fine-tune of such a model need not be one.
    if card.matryoshka_dims or card.sources.get("matryoshka_dims", "default") != "default":
        ours["matryoshka_dims"] = list(card.matryoshka_dims)
    ours |= {"calibration": dict(card.calibration)} if card.calibration is not None else {}
    return {
        "model_type": "SentenceTransformer",
        "__version__": {
            "sentence_transformers": LAYOUT_VERSION,
            "transformers": versions["transformers"],
            "pytorch": versions["torch"],
        },
        "prompts": {role: prompt.prefix for role, prompt in prompts.items()},
        "default_prompt_name": card.default_prompt,
        "similarity_fn_name": card.similarity,
        "bgekit": ours,
    }


def saved_prompts(card: ModelCard) -> dict[str, Prompt]:
    """The card's prompts by role, `query` and `document` first.

    A checkpoint can have its document prompt under other names too; they follow when the caller gave another one.
    """
    prompts = {"query": card.prompt("query"), "document": card.prompt("document"), **card.prompts}
    for role, names in _ALIASES.items():
        if card.sources.get(role) == "caller":
            prompts |= {name: prompts[role] for name in names if name in prompts}
    if card.default_prompt is not None:
        prompts.setdefault(card.default_prompt, Prompt())
    return prompts


def hub_id(name: str) -> str | None:
    """A model's name if it is one of the hub, where people can find it; None for a folder or a package."""
    named = re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists()
    return name if named else None


def short_names(names: Sequence[str]) -> list[str]:
    """The last part of names or paths, or the last two; numbered where these do not tell them apart.

    More of a path would say where things lie on somebody's machine.
    """
    parts = [[part for part in re.split(r"[/\\]", name) if part] or [name] for name in names]
    for count in (1, 2):
        found = ["/".join(part[-count:]) for part in parts]
        if len(set(found)) == len(set(names)):
            return found
    last = [part[-1] for part in parts]
    return [f"{name} ({place})" if last.count(name) > 1 else name for place, name in enumerate(last, 1)]


def shown_name(name: str) -> str:
    """A model's name as others may read it: of a folder its last part, not where it lies here."""
    return name if hub_id(name) or name.startswith("packaged:") else short_names([name])[0]


def readme(card: ModelCard, *, name: str, base_model: str | None, source: Path | None, origin: str = "") -> str:
    """A model card in Markdown, with front matter that model hubs and sentence-transformers understand.

    Args:
        card: What the model needs.
        name: Name of the folder that it is in.
        base_model: Hub id of the model that this one comes from, if known; else the source's own base is kept.
        source: README.md of the checkpoint that this one comes from: its licence and languages are kept.
        origin: A sentence on how the model came about; "" for a copy of the base model.
    """
    tags = ["sentence-transformers", "sentence-similarity", "feature-extraction", "bgekit"]
    if card.pretrained_only:
        tags = [PRETRAINED_TAG, "feature-extraction", "bgekit"]
    task = "feature-extraction" if card.pretrained_only else "sentence-similarity"
    title = base_model.rsplit("/", 1)[-1] if base_model else (card.family or "Text embedding model")
    if origin:
        title = name
    else:
        name = "path/to/this/folder"  # A copy is the same wherever it is.
    rows = [
        ("vectors", f"{card.dimension} dimensions, {'unit length' if card.normalize else 'not normalised'}"),
        ("similarity", _SIMILARITIES[card.similarity]),
        ("pooling", card.pooling + ("" if card.include_prompt else ", without the prompt's tokens")),
        ("longest text", f"{card.max_length} tokens"),
        ("architecture", card.architecture),
        ("weights", card.dtype),
    ]
    for role, prompt in saved_prompts(card).items():
        if prompt:
            # The text as a JSON string: line breaks and blanks at the end stay visible.
            shown = json.dumps(f"{prompt.prefix}{{text}}{prompt.suffix}", ensure_ascii=False)
            rows.append((f"prompt of a {role}", f"`{shown}`"))
    prompted = bool(card.prompt("query") or card.prompt("document"))
    return render(
        "models/readme.md.jinja", front_matter=front_matter(source, task, tags, base_model), title=title, origin=origin,
        rows=rows, pretrained_only=card.pretrained_only, name=name, quoted=json.dumps(name),
        queries="encode_query" if prompted else "encode", passages="encode_document" if prompted else "encode",
        has_suffix=any(prompt.suffix for prompt in card.prompts.values()),
    )  # fmt: skip


def front_matter(source: Path | None, task: str, tags: Sequence[str], base_model: str | None) -> str:
    """The YAML at the top of a README, which model hubs read.

    Args:
        source: README.md of the checkpoint that this one comes from: licence, languages and tags are kept.
        task: The hub's name of what the model does.
        tags: More words for it.
        base_model: Hub id of the model that this one comes from, if known; else the source's own base is kept.
    """
    from huggingface_hub import ModelCardData

    known = _front_matter(source)
    others = known["tags"] if isinstance(known.get("tags"), list) else ()
    kept = [tag for tag in others if isinstance(tag, str) and tag not in (*tags, PRETRAINED_TAG)]
    front = ModelCardData(
        library_name="sentence-transformers",
        pipeline_tag=task,
        tags=[*tags, *kept],
        language=known.get("language"),
        license=known.get("license"),
        license_name=known.get("license_name"),
        license_link=known.get("license_link"),
        base_model=base_model or known.get("base_model"),
    )
    return f"---\n{front.to_yaml()}\n---\n"


def _front_matter(source: Path | None) -> dict[str, Any]:
    """The YAML between the first two lines of `---` of a README; nothing if it is not there or not valid."""
    if source is None or not source.is_file():
        return {}
    import yaml  # type: ignore[import-untyped]
    from huggingface_hub import metadata_load

    try:
        return metadata_load(source) or {}
    except (ValueError, UnicodeDecodeError, yaml.YAMLError):
        return {}  # It was written for people; that it cannot be parsed must not stop a save.
