"""Known model families: what their files do not say. The facts, with their sources, are in families.yaml."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from ..files.yaml_tables import packaged_yaml
from .card import Prompt

Kind = Literal["embedder", "reranker", "api"]


@dataclass(frozen=True)
class Family:
    """A group of models with the fields that their files do not say. Empty fields mean "the files say it".

    Attributes:
        title: Name of the family, for people.
        names: Names of its models (last part of a hub id).
        kind: `embedder`, `reranker` or `api` (a hosted model without weights).
        pooling: Pooling of the last hidden states, None when only the checkpoint knows.
        normalize: Whether vectors have unit length, None when only the checkpoint knows.
        query: Prompt of retrieval queries.
        document: Prompt of passages.
        template: How a caller's own instruction and the query are put together, with two slots `{}`; None
            where the instruction simply stands before the query. `query` is already put together.
        include_prompt: Whether the prompt's tokens take part in pooling, None when only the checkpoint knows.
        similarity: `cosine` or `dot`, None when only the checkpoint knows.
        max_length: Longest input in tokens, None when only the checkpoint knows.
        dimensions: Vector width by model name; models that are not listed say it in their config.
        notice: One line that loading such a model logs once.
        source: Where the facts stand.
        owners: Who publishes a model on the Hugging Face hub, by model name.
        languages: `en`, `zh` or `multilingual`, None where no source at hand says it.
        parameters: Number of parameters by model name, where a source at hand says it.
        licences: Licence that a model is published under, by model name, where a source at hand says it.
        matryoshka: Numbers of leading dimensions that were trained to be embeddings, too, by model name.

    Example:
        >>> from bgekit.models import find_family
        >>> family = find_family("BAAI/bge-small-en-v1.5")
        >>> family.title, family.pooling
        ('BGE v1.5, English', 'cls')
    """

    title: str
    names: tuple[str, ...]
    kind: Kind = "embedder"
    pooling: str | None = None
    normalize: bool | None = None
    query: Prompt = Prompt()
    document: Prompt = Prompt()
    template: str | None = None
    include_prompt: bool | None = None
    similarity: str | None = None
    max_length: int | None = None
    dimensions: dict[str, int] = field(default_factory=dict)
    notice: str | None = None
    source: str = ""
    owners: dict[str, str] = field(default_factory=dict)
    languages: str | None = None
    parameters: dict[str, int] = field(default_factory=dict)
    licences: dict[str, str] = field(default_factory=dict)
    matryoshka: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def id_of(self, name: str) -> str:
        """What `--model` takes for a model of the family: its hub id, or its name where it is hosted."""
        return f"{self.owners[name]}/{name}" if name in self.owners else name


def _read(fields: dict[str, Any]) -> Family:
    """A family of the file: its models with their widths, and prompts as text, as fields, or as an instruction."""
    models = fields.pop("models")
    instruction = fields.pop("instruction", None)
    fields |= {side: _prompt(fields[side]) for side in ("query", "document") if side in fields}
    if instruction is not None:
        fields["query"] = Prompt.from_format(instruction, fields["template"])
    for one, each in (("owner", "owners"), ("licence", "licences")):
        value = fields.pop(one, {})
        fields[each] = dict.fromkeys(models, value) if isinstance(value, str) else value
    cut = fields.pop("matryoshka", {})
    fields["matryoshka"] = {
        name: tuple(given if isinstance(given, list) else range(given["from"], models[name]))
        for name, given in cut.items()
    }
    widths = {name: width for name, width in models.items() if width is not None}
    return Family(names=tuple(models), dimensions=widths, **fields)


def _prompt(given: str | dict[str, Any]) -> Prompt:
    return Prompt(given) if isinstance(given, str) else Prompt(**given)


FAMILIES: Final[tuple[Family, ...]] = tuple(map(_read, packaged_yaml(__package__, "families.yaml")))
#: Who publishes the models of the table, or copies of them: downloads put it before a model's name.
_OWNERS: Final = (
    "BAAI", "AI-ModelScope", "Xorbits", "intfloat", "sentence-transformers", "thenlper", "Alibaba-NLP", "iic", "Qwen",
    "moka-ai", "shibing624", "GanymedeNil", "silk-road", "maidalun1020", "netease-youdao", "nomic-ai", "lightonai",
    "Snowflake", "mixedbread-ai", "WhereIsAI", "google", "NovaSearch", "dunzhang", "infgrad", "hkunlp", "Salesforce",
    "Linq-AI-Research", "ibm-granite", "Muennighoff", "bigscience", "openai", "Pro", "text-embedding",
)  # fmt: skip
#: What only says of which branch a copy is, or how its weights are kept.
_FORMS: Final = frozenset("main master latest hf safetensors pytorch onnx gguf fp32 fp16 bf16 f32 f16 int8".split())
#: Folders below a model's own that hold its files and do not name it.
_INNER_FOLDER: Final = re.compile(
    r"models?|(checkpoint|ckpt)s?([-_.]?(\d+|last|latest))?|weights|snapshots?|files|default|\d{1,3}|[0-9a-f]{40}"
    rf"|{'|'.join(sorted(_FORMS))}",
    re.IGNORECASE,
)
_SEPARATORS: Final = re.compile(r"[-_.\s]+")


def _words(name: str) -> list[str]:
    """Lower-case words of a name; ModelScope writes `v1___5` for `v1.5`."""
    return [word for word in _SEPARATORS.split(name.lower()) if word]


def _key(words: Sequence[str]) -> str:
    return "".join(words)


_BY_KEY: Final = {_key(_words(name)): (family, name) for family in FAMILIES for name in family.names}
_OWNER_WORDS: Final = tuple(tuple(_words(owner)) for owner in _OWNERS)


def model_name(name_or_path: str) -> str:
    """The part of a hub id or path that names the model.

    `BAAI/bge-m3` -> `bge-m3`; `runs/bge-m3/checkpoint-500` and `bge-m3/model` -> `bge-m3`;
    a hub cache folder `models--BAAI--bge-m3/snapshots/<hash>` -> `bge-m3`;
    `packaged:all-MiniLM-L6-v2` -> `all-MiniLM-L6-v2`.
    """
    path = name_or_path.replace("\\", "/").replace("%2F", "/")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    while len(parts) > 1 and (_INNER_FOLDER.fullmatch(parts[-1]) or parts[-2] == "snapshots"):
        parts.pop()
    if not parts:
        return name_or_path
    if parts[-1].startswith("models--"):
        return parts[-1].split("--")[-1]
    return parts[-1].removeprefix("packaged:")


def known_name(name_or_path: str) -> str | None:
    """The name in the table of families that a name or path stands for, None when it stands for none.

    Recognised is what downloads and servers make of a name: other separators, another case, the owner before it,
    a branch, format or `:tag` behind it (`BAAI_bge-small-zh-v1___5`, `bge-m3-main`, `baai/bge-m3:free`). Any other
    word makes another model of it: `my-bge-m3` and `bge-m3-legal` may need other prompts.
    """
    return _find(name_or_path)[1]


def find_family(name_or_path: str) -> Family | None:
    """The family of a model by its name or path (see `known_name`), None when it is not known.

    Example:
        >>> from bgekit.models import find_family
        >>> find_family("models/BAAI_bge-small-zh-v1___5").query.prefix
        '为这个句子生成表示以用于检索相关文章：'
        >>> find_family("my-own-model") is None
        True
    """
    return _find(name_or_path)[0]


def nearest_id(name: str) -> str | None:
    """The id of the known model that a name was meant for: of one without its owner, or with a typing mistake.

    Returns:
        None where the name is a known id, or like none.
    """
    family, known = _find(name)
    if family is not None and known is not None:
        return family.id_of(known) if "/" not in name and "/" in family.id_of(known) else None
    ids = {each.lower(): each for family in FAMILIES for each in map(family.id_of, family.names)}
    bare = {each.rpartition("/")[2]: whole for each, whole in ids.items()}
    by_name = ids if "/" in name else bare
    near = difflib.get_close_matches(name.lower(), by_name, 1, 0.8)
    return by_name[near[0]] if near else None


def is_hosted(name_or_path: str) -> bool:
    """Whether a name is that of a model behind an API, such as `text-embedding-3-small`."""
    family = find_family(name_or_path)
    return family is not None and family.kind == "api"


def known_dimension(name_or_path: str) -> int | None:
    """Width of a model's vectors by the table, None where it does not say."""
    family, name = _find(name_or_path)
    return family.dimensions.get(name) if family and name else None


def known_matryoshka(name_or_path: str) -> tuple[int, ...] | None:
    """Leading dimensions of a model that are embeddings, too, by the table; None where it does not say."""
    family, name = _find(name_or_path)
    return family.matryoshka.get(name) if family and name else None


def named_within(name_or_path: str) -> str | None:
    """The longest name of the table that stands, as whole words, within a model's name: what it may be made of."""
    words = _words(model_name(name_or_path))
    spans = [words[first:last] for first in range(len(words)) for last in range(first + 1, len(words) + 1)]
    known = [_key(span) for span in spans if _key(span) in _BY_KEY]
    return _BY_KEY[max(known, key=len)][1] if known else None


def _find(name_or_path: str) -> tuple[Family, str] | tuple[None, None]:
    return next((_BY_KEY[key] for key in _keys(model_name(name_or_path)) if key in _BY_KEY), (None, None))


def _keys(name: str) -> Iterator[str]:
    """Keys under which a model's name may stand in the table, the likeliest first."""
    for spelling in dict.fromkeys((name, re.split(r"(?<=.)[:@]", name)[0])):
        words = _words(spelling)
        yield _key(words)
        while words and words[-1] in _FORMS:
            words = words[:-1]
        yield _key(words)
        yield from (_key(words[len(owner) :]) for owner in _OWNER_WORDS if tuple(words[: len(owner)]) == owner)
