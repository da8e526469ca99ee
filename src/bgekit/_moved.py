"""Module paths of 0.1.0, which go on working in this release with a warning that names the new place.

One table and one finder: there are no files of these names. What 0.1.0 pickled finds its classes so, too.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Final, cast

_PACKAGE: Final = "bgekit"
#: Old path -> the places of its names now: first the one that people should import from.
MOVED: Final[dict[str, tuple[str, ...]]] = {
    "encoding": (),
    "encoding.api": ("inference", "inference.openai"),
    "encoding.base": ("inference", "inference.model"),
    "encoding.chunking": ("data", "data.chunking"),
    "encoding.embedder": ("inference", "inference.embedder"),
    "encoding.progress": ("display", "display.terminal"),
    "encoding.records": ("data", "data.records"),
    "encoding.result": ("inference", "inference.pipeline"),
    "encoding.rows": ("data", "data.formats"),
    "encoding.shards": ("inference", "inference.shards"),
    "encoding.shardset": ("inference", "inference.shards"),
    "encoding.similarity": ("inference", "inference.similarity"),
    "evaluation.evaluating": ("evaluation", "evaluation.evaluator"),
    "evaluation.judged": ("evaluation", "evaluation.judged_model"),
    "evaluation.reading": ("evaluation",),
    "evaluation.task": ("evaluation", "evaluation.tasks.base"),
    "merging.run": ("merging", "merging.merging"),
    "mining.run": ("mining", "mining.mining"),
    "mining.sampling": ("mining", "mining.negatives"),
    "models.checkpoint": ("models", "models.hub", "models.checkpoint_files"),
    "models.config": ("models.checkpoint_files", "models.card_reading"),
    "models.encoder": ("networks", "networks.encoder"),
    "models.precision": ("networks.loading",),
    "models.prompts": ("models", "models.card"),
    "models.saving": ("networks", "networks.saving", "inference.embedder"),
    "pretraining.masking": ("pretraining.retromae",),
    "pretraining.vocabulary": ("pretraining.initial_model",),
    "reranking": (),
    "reranking.card": ("models", "models.card", "models.card_reading"),
    "reranking.groups": ("search", "search.candidates"),
    "reranking.network": ("networks", "networks.cross_encoder"),
    "reranking.reranker": ("inference", "inference.reranker"),
    "reranking.saving": ("networks", "networks.saving"),
    "search.building": ("search", "search.build"),
    "search.exact": ("search.nearest",),
    "training.arguments": ("training", "training.loop.arguments"),
    "training.run": ("training.loop.training_run",),
}


class Finder:
    """Finder and loader of the old paths, as modules that hand on the names of the new ones.

    It has no base in `importlib.abc`, whose import would double the time that `import bgekit` takes.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`."""
        package, _, below = fullname.partition(".")
        if package != _PACKAGE or below not in MOVED:
            return None
        return ModuleSpec(fullname, cast(Any, self), origin=_PACKAGE, is_package=not MOVED[below])

    def create_module(self, spec: ModuleSpec) -> None:
        """See `importlib.abc.Loader`: the usual module."""

    def exec_module(self, module: ModuleType) -> None:
        """Give the module its `__getattr__`, and say where its names are now."""
        places = [f"{_PACKAGE}.{place}" for place in MOVED[module.__name__.partition(".")[2]]]

        def get(name: str) -> Any:
            for place in places:
                if not name.startswith("__") and hasattr(importlib.import_module(place), name):
                    return getattr(importlib.import_module(place), name)
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

        module.__dict__["__getattr__"] = get
        if places:
            advice = f"{module.__name__} has moved: import from {places[0]}. The next release removes the old path."
            warnings.warn(advice, DeprecationWarning, stacklevel=2)


def install() -> None:
    """Let Python find the old paths; calling it again does nothing."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.append(Finder())
