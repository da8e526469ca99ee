"""Bodies made of the server's own OpenAPI document, some as it says, most damaged in one way or several."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

TEXTS = [
    "",
    "a",
    "the cat sat",
    "文本",
    "\U0001f600" * 3,
    "\x00\x01\u200b\u202e",
    "a\nb\tc",
    "\ud800",
    "x\udfffy",
    " ",
    "[CLS] [SEP]",
]
VALUES = [
    None, True, False, 0, -1, 1, 7, 32, 10**6, 2**63, 10**30, -(2**70), 0.5, 1e308, float("nan"), float("inf"), "", "a",
    "\ud800", "float", "base64", "query", [], {}, [None], [[]], [[[]]], {"a": 1}, ["a", 1], [1, 2], [[1], ["a"]],
]  # fmt: skip
KINDS = [
    "text/plain",
    "",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
    "application/xml",
    "json",
    "application/jsonx",
]
NAMES = ["tiny", "judge", "tiny:query", "tiny:document", "nobody", "", "../..", "judge:query"]


class Fuzzer:
    """Requests: path, content type and body.

    Args:
        document: The OpenAPI document.
        seed: Of the generator: the same requests come again.
    """

    def __init__(self, document: dict[str, Any], seed: int) -> None:
        self._random = random.Random(seed)
        self._schemas = document["components"]["schemas"]
        self._bodies = {
            path: methods["post"]["requestBody"]["content"]["application/json"]["schema"]
            for path, methods in document["paths"].items() if "post" in methods
        }  # fmt: skip

    def requests(self, count: int) -> Iterator[tuple[str, str, bytes]]:
        """So many requests."""
        for _ in range(count):
            path = self._random.choice(list(self._bodies))
            body = self._value(self._bodies[path])
            while self._random.random() < 0.55:
                body = self._damaged(body)
            kind = self._random.choice(KINDS) if self._random.random() < 0.03 else "application/json"
            prefix = f"/{self._random.choice(['tiny', 'judge', 'nobody'])}" if self._random.random() < 0.1 else ""
            yield prefix + path, kind, self._written(body)

    def _value(self, schema: dict[str, Any], name: str = "") -> Any:
        """A value as a schema has it."""
        pick = self._random
        if "$ref" in schema:
            return self._value(self._schemas[schema["$ref"].rpartition("/")[2]])
        if "anyOf" in schema:
            return self._value(pick.choice(schema["anyOf"]), name)
        if "enum" in schema:
            return pick.choice(schema["enum"])
        kind = schema.get("type")
        if kind == "object":
            needed = set(schema.get("required", ()))
            return {
                key: self._value(each, key) for key, each in schema.get("properties", {}).items()
                if key in needed or pick.random() < 0.3
            } | ({"text": "a"} if not needed else {})  # fmt: skip
        if kind == "array":
            return [self._value(schema.get("items", {}), name) for _ in range(pick.choice((0, 1, 1, 2, 3)))]
        if kind == "string":
            return pick.choice(NAMES) if name in ("model", "rerank") else self._text()
        if kind == "integer":
            return pick.choice((0, 1, 2, 16, 64, 512, -1))
        return {"null": None, "boolean": pick.random() < 0.5, "number": pick.random()}.get(
            kind or "", pick.choice(VALUES)
        )

    def _text(self) -> str:
        pick = self._random
        if pick.random() < 0.002:
            return pick.choice(("word ", "x", "文", "\U0001f600")) * (1_000_000 // 5)
        if pick.random() < 0.5:
            return pick.choice(TEXTS)
        return "".join(
            chr(pick.choice((pick.randrange(32, 127), pick.randrange(0x20000)))) for _ in range(pick.randrange(40))
        )

    def _damaged(self, value: Any) -> Any:
        """A value with something in it that is wrong."""
        pick = self._random
        if isinstance(value, dict) and value and pick.random() < 0.8:
            key = pick.choice(list(value))
            action = pick.randrange(4)
            changed = dict(value)
            if action == 0:
                del changed[key]
            elif action == 1:
                changed[pick.choice(("zzz", key.upper(), "", "\ud800"))] = pick.choice(VALUES)
            else:
                changed[key] = self._damaged(value[key])
            return changed
        if isinstance(value, list) and value and pick.random() < 0.7:
            place = pick.randrange(len(value))
            return [*value[:place], self._damaged(value[place]), *value[place + 1 :]]
        return pick.choice(VALUES)

    def _written(self, body: Any) -> bytes:
        """The value as JSON, sometimes damaged."""
        pick = self._random
        text = json.dumps(body, ensure_ascii=pick.random() < 0.5)
        content = text.encode("utf-8", "surrogatepass")
        if pick.random() < 0.1:
            place = pick.randrange(len(content) + 1)
            content = pick.choice((
                content[:place], content[:place] + bytes([pick.randrange(256)]) + content[place:],
                content[:place] + content[place + 1 :], b"\xef\xbb\xbf" + content, content + content, b"",
                b"[" * 5000, b'{"a":' * 5000, content.replace(b'"', b"'"),
            ))  # fmt: skip
        return content
