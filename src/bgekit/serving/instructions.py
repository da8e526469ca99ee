"""Which prompt a request means, and the instruction that a client has put before a query already.

Few clients have a field for the role of a text, but all have one for the model's name: `NAME:query` and
`NAME:document` say it. Some put an instruction before queries by themselves, spelled their own way; where the model's
own is going to be put there it is taken away, so that none ever stands behind another.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from ..models.card import ModelCard
from .errors import Unprocessable

#: Roles that every embedder has, whether the card has a prompt for them or not.
ROLES: Final = ("query", "document")
#: `input_type` of Cohere, Voyage and NVIDIA -> role. Others are a prompt of that name where the card has one.
INPUT_TYPES: Final = {
    "search_query": "query", "query": "query", "search_document": "document", "document": "document",
    "passage": "document",
}  # fmt: skip
#: The instruction of BGE as others write it: LangChain's and LlamaIndex's classes have "question" in the English one.
_SPELLINGS: Final = {
    "Represent this sentence for searching relevant passages: ": (
        "Represent this question for searching relevant passages: ",
    ),
    "为这个句子生成表示以用于检索相关文章：": ("为这个句子生成表示以用于检索相关文章:",),
}
#: Letters that an instruction has at least; texts of other kinds may well begin with a bracket.
_LETTERS: Final = 3


def choose_role(
    card: ModelCard, alias: str | None, *, prompt_name: str | None = None, input_type: str | None = None
) -> str | None:
    """The role whose prompt texts get; None for what a plain `encode` does.

    Args:
        card: The model's card.
        alias: Suffix of the model's name in the request.
        prompt_name: Field of that name.
        input_type: Cohere's field; what is neither query nor document has the prompt of that name, or none.

    Raises:
        Unprocessable: the model has no such prompt, or alias and field contradict each other.
    """
    if prompt_name is not None and prompt_name not in ROLES and prompt_name not in card.prompts:
        known = ", ".join(dict.fromkeys([*ROLES, *card.prompts]))
        raise Unprocessable(f"{card.name} has no prompt {prompt_name!r}; it has {known}", param="prompt_name")
    asked = prompt_name
    if asked is None and input_type is not None:
        asked = INPUT_TYPES.get(input_type, input_type if input_type in card.prompts else None)
    if alias is not None and asked is not None and alias != asked:
        field, value = ("input_type", input_type) if prompt_name is None else ("prompt_name", prompt_name)
        raise Unprocessable(
            f"the model's name asks for the prompt {alias!r}, `{field}` for {value!r}: leave one of them out",
            param=field,
        )
    return asked or alias


def without_instruction(texts: Sequence[str], prefix: str) -> list[str]:
    """Queries without the model's own instruction in front, in any known spelling.

    Args:
        texts: Queries, to which `prefix` will be put.
        prefix: The card's instruction; "" leaves all as they are.
    """
    spelled = _spelled(prefix)
    return list(texts) if spelled is None else [spelled.sub("", text, count=1) for text in texts]


@lru_cache
def _spelled(prefix: str) -> re.Pattern[str] | None:
    """An instruction and its other spellings at the beginning of a text, whatever white space is in and after them."""
    if sum(letter.isalpha() for letter in prefix) < _LETTERS:
        return None
    known = (prefix, *_SPELLINGS.get(prefix, ()))
    written = (r"\s+".join(map(re.escape, each.split())) for each in known)
    return re.compile(rf"\A\s*(?:{'|'.join(written)})\s*")
