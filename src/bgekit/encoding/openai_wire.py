"""What goes to an embeddings API of the OpenAI kind and what comes back: texts -> requests, answers -> vectors."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt

from ..errors import ApiError
from ..models.prompts import Prompt

Vectors = npt.NDArray[np.float32]

#: The API takes no more texts in one request.
MAX_TEXTS: Final = 2048
#: The API takes 300,000 tokens in one request; the estimate below is rough, so this stays clear of it.
TOKEN_BUDGET: Final = 250_000
#: UTF-8 bytes of a token, on the low side: English has about 4, Chinese characters (3 bytes) about 1 token each.
_BYTES_PER_TOKEN: Final = 2


#: White space of all kinds, and what is not seen at all: control characters, soft hyphens, marks of direction...
_BLANK: Final = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u00ad\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u3164\ufeff]*")


def is_blank(text: str) -> bool:
    """Whether a text has nothing that can be seen."""
    return _BLANK.fullmatch(text) is not None


def sendable(text: str, prompt: Prompt) -> str:
    """The text as it goes out. APIs refuse empty texts, and many of them blank ones, so these go out as one space."""
    return f"{prompt.prefix}{'' if is_blank(text) else text}{prompt.suffix}" or " "


def split_requests(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    """Texts, in order, in requests of at most `size` texts and of the token budget by estimate."""
    batch: list[str] = []
    estimate = 0
    for text in texts:
        tokens = len(text.encode("utf-8")) // _BYTES_PER_TOKEN + 1
        if batch and (len(batch) == size or estimate + tokens > TOKEN_BUDGET):
            yield batch
            batch, estimate = [], 0
        batch.append(text)
        estimate += tokens
    if batch:
        yield batch


def decode_vectors(answer: Any, count: int, width: int | None) -> Vectors:
    """The vectors of an answer, in the order of the request, whatever order they came in.

    Args:
        answer: The decoded JSON.
        count: Texts of the request.
        width: Columns to keep, None for all.

    Returns:
        [count, width] float32; NaN where the API said so.

    Raises:
        ApiError: the answer has not the documented form, or is not about these texts.
    """
    try:
        vectors = _stacked(answer, count)
    except (LookupError, TypeError, ValueError) as error:
        raise ApiError(f"the API's answer cannot be read: {type(error).__name__}: {error}") from error
    if vectors.shape[1] < (width or 1):
        raise ApiError(f"the API answered with vectors of width {vectors.shape[1]}, but {width or 1} is needed")
    return np.ascontiguousarray(vectors[:, :width])


def _stacked(answer: Any, count: int) -> Vectors:
    rows: list[Vectors | None] = [None] * count
    for item in answer["data"]:
        index = item["index"]
        if not 0 <= index < count or rows[index] is not None:
            raise ValueError(f"the index {index} is out of range or comes twice")
        rows[index] = _vector(item["embedding"])
    missing = sum(row is None for row in rows)
    if missing:
        raise ValueError(f"{missing} of {count} vectors are missing")
    return np.stack(cast(list[Vectors], rows))


def _vector(embedding: Any) -> Vectors:
    # Asked for base64, which is a quarter of the size, some servers answer with numbers all the same.
    if not isinstance(embedding, str):
        vector = np.asarray(embedding, dtype=np.float32)
    else:
        try:
            vector = np.frombuffer(base64.b64decode(embedding, validate=True), dtype="<f4").astype(np.float32)
        except binascii.Error as error:
            raise ValueError(f"a vector is not base64 ({error})") from error
    if vector.ndim != 1:
        raise ValueError(f"a vector has the shape {vector.shape}")
    return vector


def token_count(answer: Any) -> int:
    """Tokens that the API counted, 0 when it does not say."""
    usage = answer.get("usage") if isinstance(answer, dict) else None
    count = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    return count if isinstance(count, int) else 0


def unit_length(vectors: Vectors) -> Vectors:
    """[n, d] vectors with the Euclidean norm 1; zero vectors stay zero, infinity becomes NaN."""
    with np.errstate(invalid="ignore"):
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return cast(Vectors, vectors / np.maximum(norms, np.float32(1e-12)))
