"""Valid Unicode: the check that a text is a string, and the repair of lone surrogates."""

from __future__ import annotations

from ..errors import TextTypeError


def check_text(text: object, index: int) -> str:
    """`text` if it is a string.

    Raises:
        TextTypeError: it is not; the message names its index.
    """
    if not isinstance(text, str):
        raise TextTypeError(
            f"texts must be strings, but the one at index {index} is {text!r:.80} ({type(text).__name__})"
        )
    return text


def repair(text: str) -> tuple[str, bool]:
    """The text as valid Unicode, and whether it had to be changed.

    Surrogate pairs become the character they stand for, lone surrogates become U+FFFD.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"), True
    return text, False
