"""Text put around an input before it is encoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from ..errors import ArgumentError

#: What a text is in a search: a query, a document, or a text as it is, which has the card's default prompt, if any.
Role: TypeAlias = Literal["query", "document", "plain"]


@dataclass(frozen=True)
class Prompt:
    r"""Text put before and after an input.

    The suffix survives truncation: a long input is cut so that prefix, text and suffix fit together.

    Attributes:
        prefix: Text before the input.
        suffix: Text after it, always tokenised by itself.
        apart: Tokenise the prefix by itself too, where it could merge with the input's first word (SGPT's brackets).

    Example:
        >>> from bgekit.models import Prompt
        >>> str(Prompt("query: "))
        'query: '
        >>> Prompt.from_format("Find an answer", "Instruct: {}\\nQuery: {}").prefix
        'Instruct: Find an answer\nQuery: '
    """

    prefix: str = ""
    suffix: str = ""
    apart: bool = False

    def __bool__(self) -> bool:
        return bool(self.prefix or self.suffix)

    def __str__(self) -> str:
        return f"{self.prefix}{{text}}{self.suffix}" if self.suffix else self.prefix

    @classmethod
    def from_format(cls, instruction: str | None, template: str = "{}{}") -> Prompt:
        r"""Prompt of an instruction in a template with two slots: instruction, then text.

        The templates are those of FlagEmbedding (`query_instruction_format`), such as
        `"Instruct: {}\nQuery: {}"`; a literal backslash-n, as command lines give it, means a line break.
        No instruction means no prompt, whatever the template.

        Raises:
            ArgumentError: the template does not have exactly two slots `{}`.
        """
        if not instruction:
            return cls()
        before, between, after = _parts(template)
        return cls(f"{before}{instruction}{between}", after)

    def in_format(self, template: str, made_with: str | None = None) -> Prompt:
        """The instruction of this prompt in another template (see `from_format`).

        Args:
            template: The template.
            made_with: The template of this prompt; where it has another form, all that it puts before a text is the
                instruction.

        Raises:
            ArgumentError: the template does not have exactly two slots `{}`, or this prompt is no instruction.
        """
        for known in filter(None, (made_with, template)):
            before, between, after = _parts(known)
            bare = self.prefix.removeprefix(before).removesuffix(between)
            if self == Prompt(f"{before}{bare}{between}", after):
                return Prompt.from_format(bare, template)
        if self.apart or self.suffix:
            raise ArgumentError(
                f"the prompt {str(self)!r} is no instruction to put in the format {template!r}: pass one"
            )
        return Prompt.from_format(self.prefix, template)


def _parts(template: str) -> tuple[str, str, str]:
    """Texts before, between and after the two slots of a template."""
    parts = template.replace("\\n", "\n").split("{}")
    if len(parts) != 3:
        raise ArgumentError(f"instruction format {template!r} must hold two slots {{}}: the instruction, then the text")
    return parts[0], parts[1], parts[2]
