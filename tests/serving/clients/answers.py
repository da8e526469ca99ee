"""What the scripts of Python clients share: address and texts from standard input, answers to standard output."""

import importlib.metadata
import json
import sys

GIVEN = json.load(sys.stdin)
URL, KEY, NAME, JUDGE = GIVEN["url"], GIVEN["key"], GIVEN["name"], GIVEN["judge"]
TEXTS, QUERIES, QUERY, PASSAGES = GIVEN["texts"], GIVEN["queries"], GIVEN["query"], GIVEN["passages"]
_ANSWERS = []


def note(call, kind, values):
    """An answer: what was called, what it should be (`plain`, `query`, `document`, `rerank`, ...), and what came."""
    _ANSWERS.append({"call": call, "kind": kind, "values": values})


def lists(vectors):
    """Vectors as lists of numbers."""
    return [[float(value) for value in vector] for vector in vectors]


def done(*packages):
    """Print all answers."""
    versions = {package: importlib.metadata.version(package) for package in packages}
    print("\n" + json.dumps({"versions": versions, "answers": _ANSWERS}))
