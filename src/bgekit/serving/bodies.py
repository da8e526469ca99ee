"""Bodies of requests: JSON -> typed values, with errors that name the field.

What real clients send is taken: `null` for any optional field is the same as leaving it out, and fields that are not
known are ignored.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
from starlette.responses import Response

from ..data.encodings import repair
from .errors import BadRequest, ServingError, Unprocessable

if TYPE_CHECKING:
    from .calls import Call

T = TypeVar("T")
#: Numbers that the event loop writes itself: about 3 ms.
_SHORT: Final = 32 * 1024


class UnsupportedMediaType(ServingError):
    """The body is not said to be JSON."""

    status = 415


def decode(call: Call, kind: type[T], wrong: type[ServingError] = Unprocessable) -> T:
    """The body of a request as a `msgspec.Struct`.

    Lone surrogates become U+FFFD, as `FlagModel.encode` has it.

    Args:
        call: The request.
        kind: The type.
        wrong: The error where a field has another type.

    Raises:
        UnsupportedMediaType: its headers do not say JSON; a browser's form could send it from any page otherwise.
        BadRequest: it is not JSON.
        ServingError: the error `wrong`; its message names the field.
    """
    said = call.headers.get("content-type", "").partition(";")[0].strip().lower()
    if said != "application/json" and not said.endswith("+json"):
        raise UnsupportedMediaType(
            "send the body as JSON, with the header `Content-Type: application/json`: it came "
            + (f"as {said[:80]}" if said else "without such a header")
        )
    try:
        try:
            return msgspec.json.decode(call.body, type=kind)
        except msgspec.ValidationError:
            raise
        except (msgspec.DecodeError, UnicodeDecodeError):
            # msgspec knows no lone surrogates, which JSON of Python and JavaScript can hold.
            if b"\\ud" not in call.body and b"\\uD" not in call.body:
                raise
            repaired, _ = repair(json.dumps(json.loads(call.body), ensure_ascii=False))
            return msgspec.json.decode(repaired.encode(), type=kind)
    except msgspec.ValidationError as error:
        message, param = _said(str(error))
        raise wrong(message, param=param) from error
    except RecursionError as error:
        raise BadRequest("the body is nested too deeply") from error
    except ValueError as error:  # Of either library.
        raise BadRequest(f"the body is not JSON in UTF-8: {error}") from error


def _said(message: str) -> tuple[str, str | None]:
    """Message of a wrong type with the field first, "`input[3]`: expected `str`, got `null`", and the field."""
    what, at, place = message.rpartition(" - at `$")
    what = what if at else message
    field = place.rstrip("`").removeprefix(".") if at else ""
    what = what[:1].lower() + what[1:]
    return (f"`{field}`: {what}", field.partition("[")[0].partition(".")[0]) if field else (what, None)


def inputs_of(given: Any, name: str) -> tuple[list[Any], bool]:
    """Texts, or lists of token ids, of a field that takes one or several.

    Args:
        given: A text, token ids, or a list of texts or of token ids.
        name: Of the field, for errors.

    Returns:
        The list, and whether there were several.

    Raises:
        BadRequest: texts and token ids are mixed, or there is nothing.
    """
    if isinstance(given, str):
        return [given], False
    if not given:
        raise BadRequest(f"`{name}` cannot be empty", param=name)
    if all(type(each) is int for each in given):
        return [given], False
    other = next((place for place, each in enumerate(given) if type(each) is not type(given[0])), None)
    if other is not None:
        raise BadRequest(f"`{name}[{other}]`: texts and token ids cannot stand in one list", param=name)
    return given, True


async def written(rows: Iterable[Any], numbers: int) -> Any:
    """A JSON list as a `msgspec.Raw`; a long one is written by another thread, so that others are answered meanwhile.

    Args:
        rows: What the list has, made while it is written.
        numbers: How many numbers it has in all.
    """

    def join() -> msgspec.Raw:
        # Each row holds Python's lock, which others get in between.
        return msgspec.Raw(b"[" + b",".join(map(msgspec.json.encode, rows)) + b"]")

    return join() if numbers <= _SHORT else await asyncio.get_running_loop().run_in_executor(None, join)


def as_json(content: Any, status: int = 200) -> Response:
    """A response of JSON."""
    return Response(msgspec.json.encode(content), status, media_type="application/json")
