"""Refusals of embeddings APIs, understood by their words: servers agree on no status and no code.

Too many texts in one request, a text (or all of them together) that is too long, or a number format of vectors that
the server does not know. The wordings are those of OpenAI, Azure, DashScope, SiliconFlow, Zhipu, Cohere, Gemini,
text-embeddings-inference, vLLM, llama.cpp, Ollama, LiteLLM, and of what FastAPI and pydantic say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final, Literal

#: `texts`: too many in one request; `length`: too much text; `size`: one of the two; `format`: of the vectors.
Meaning = Literal["texts", "length", "size", "format"]
#: Statuses about who asks, where, and how often: never about what was asked.
_OF_THE_CALLER: Final = frozenset({401, 403, 404, 407, 408, 409, 429})
_RATE: Final = re.compile(r"rate.?limit|per (?:minute|second|hour|day)|quota")
_FORMAT: Final = re.compile(r"encoding[_ ]?format|base64")
#: What can only be about the number of texts.
_TEXTS: Final = re.compile(
    r"(?<!physical )\bbatch[_ -]?size\b.*(?:>|larger|exceed|max|invalid|limit|超)|max[_ ]?batch[_ -]?size|批"
    r"|\barrays? (?:is |are )?too (?:long|large)|array with maximum length|array length|数组"
    r"|list should have at most|at most \d+ items|too many (?:inputs?|texts|items|documents|sentences)"
    r"|only supports? (?:one|1|a single)\b"
)
_LENGTH: Final = re.compile(
    r"token|context[_ ](?:length|size|window)|model[_ ]len|input length|length of the input|sequence length|characters"
    r"|physical batch|kv size|too (?:large|big|long) (?:to process|for)"
    r"|\b(?:text|input|prompt|sequence|content|document)s? (?:is |are )?(?:too long|longer than)"
    r"|(?:text|content|input text)[ _](?:exceeds? the maximum )?length|exceeds? the maximum length of \d"
    r"|max_length|maximum length of each|text exceeds|字符|字数|长度|上下文|过长|太长|超长|最长"
)
#: The same where a status says that the server has failed: it must be plain that another try is of no use.
_LENGTH_FOR_SURE: Final = re.compile(
    r"context[_ ](?:length|size|window)|model[_ ]len|input length|too (?:large|big|long)|physical batch"
    r"|tokens?\b.*(?:exceed|max|limit|less than)|(?:exceed|max|limit).*\btokens?\b"
)
_THINGS: Final = re.compile(
    r"\b(?:inputs?|texts?|items|documents?|sentences|strings|elements|entries|arrays?|lists?|batch\w*|contents|prompts"
    r"|embeddings)\b|[条个篇]|数量|列表"
)
_LIMITS: Final = (
    r"(?:max\w*|at most|limit\w*|exceed\w*|(?:larger|greater|more|longer|bigger) than|up to|too (?:many|large|long|big)"
    r"|(?P<below>(?:less|fewer|smaller) than(?! or equal)|小于|少于)|only supports?|>=?|<=?|≤"
    r"|longer than|between \d+ and|over|最大|最多|最长|超过|超出|上限|限制|大于|多于|过多|过大|过长|太长|超长)"
)
_LIMIT: Final = re.compile(_LIMITS)
_NUMBERED_LIMIT: Final = re.compile(_LIMITS + r"[^\d]{0,40}?(?P<number>\d+)")
#: What the API says of too many texts, and of other things that halving makes plain, without saying which.
_VAGUE: Final = re.compile(r"\$\.input\W* is invalid|not valid under any of the given schemas")


def meaning(status: int, message: str, code: str) -> Meaning | None:
    """Meaning of a refusal; None if it is none of those known here.

    Args:
        status: Of HTTP.
        message: What the API said, whole.
        code: Its own code, "" without one.
    """
    words = f"{_own_words(message)} {code.replace('_', ' ')}".lower()
    if status in _OF_THE_CALLER or status < 400 or _RATE.search(words):
        return None
    if _FORMAT.search(words):
        return "format"
    if _TEXTS.search(words):
        return "texts"
    if (_LENGTH_FOR_SURE if status >= 500 else _LENGTH).search(words) and _LIMIT.search(words + " too large"):
        return "length"
    if status < 500 and _THINGS.search(words) and _LIMIT.search(words):
        return "texts"
    return "size" if status == 413 or _VAGUE.search(words) else None


def most_texts(message: str, sent: int) -> int | None:
    """The number of texts that the API takes in one request, as its message says it; None if it does not.

    Args:
        message: What the API said of a request that had too many.
        sent: Texts in it: what is allowed is less.
    """
    words = re.sub(r"<\d+>", "", re.sub(r"(?<=\d),(?=\d{3}\b)", "", _own_words(message).lower()))
    if re.search(r"only supports? (?:one|a single)\b", words):
        return 1
    for found in _numbered(words):
        if 1 <= found < sent:
            return found
    others = [number for number in map(int, re.findall(r"\d+", words)) if 1 <= number < sent]
    return max(others, default=None)


def _own_words(message: str) -> str:
    """A message without the input that pydantic repeats in it: what texts say is not what the API says."""
    return re.sub(r"input_value=.*?, input_type=\w+", "", message)


def _numbered(words: str) -> Iterator[int]:
    """Numbers behind a word for a limit, one behind `less than` made one less."""
    place = 0
    while (found := _NUMBERED_LIMIT.search(words, place)) is not None:
        yield int(found["number"]) - (found["below"] is not None)
        place = found.start() + 1


def error_fields(content: bytes) -> tuple[str, str]:
    """Message, on one line, and code of an error answer, whatever its form."""
    text = content.decode("utf-8", "replace")
    try:
        error = json.loads(content)
    except ValueError:
        return " ".join(text.split()), ""
    code = ""
    if isinstance(error, dict):
        inner = error.get("error")
        if isinstance(inner, dict):
            error = inner
        elif isinstance(inner, str) and not error.get("message"):
            error = error | {"message": inner}
        code = str(error.get("code") or error.get("error_code") or error.get("type") or error.get("error_type") or "")
    return " ".join((_message(error) or text).split()), code


def _message(error: Any) -> str:
    """The words of an error: a string, or what stands under one of the usual names."""
    if isinstance(error, str):
        return error
    if isinstance(error, list):
        return "; ".join(filter(None, map(_message, error)))
    if not isinstance(error, dict):
        return ""
    for name in ("message", "msg", "error_msg", "detail", "errors"):
        if found := _message(error.get(name)):
            # FastAPI names the field apart.
            where = error.get("loc")
            return f"{'.'.join(map(str, where))}: {found}" if isinstance(where, list) else found
    return ""
