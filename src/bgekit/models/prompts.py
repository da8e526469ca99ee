"""Text put around an input before it is encoded."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ArgumentError


@dataclass(frozen=True)
class Prompt:
    """Text put before and after an input.

    The suffix survives truncation: a long input is cut so that prefix, text and suffix fit together.

    Attributes:
        prefix: Text before the input.
        suffix: Text after it, always tokenised by itself.
        apart: Tokenise the prefix by itself too, where it could merge with the input's first word (SGPT's brackets).
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
        parts = template.replace("\\n", "\n").split("{}")
        if len(parts) != 3:
            raise ArgumentError(
                f"instruction format {template!r} must hold two slots {{}}: the instruction, then the text"
            )
        return cls(f"{parts[0]}{instruction}{parts[1]}", parts[2])
