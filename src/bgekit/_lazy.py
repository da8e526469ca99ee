"""Names of a package that are imported when they are first used (PEP 562)."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any


def lazy_names(
    package: str, homes: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package.

    Args:
        package: Its `__name__`.
        homes: The names that each of its modules offers.
    """
    module_of = {name: module for module, names in homes.items() for name in names}

    def get(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(_imported(f"{package}.{module_of[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted(sys.modules[package].__all__)

    return get, names, sorted(module_of)


def _imported(name: str) -> ModuleType:
    """A module, imported without the garbage collector.

    Some bring torch, whose half a million objects live as long as the process: to look through them again and again
    would be an eighth of the time until the first vector.
    """
    if name in sys.modules or not gc.isenabled() or gc.get_freeze_count():
        return importlib.import_module(name)
    gc.disable()
    try:
        return importlib.import_module(name)
    finally:
        # Both together put all that there is among the oldest objects, which are looked through most rarely.
        gc.freeze()
        gc.unfreeze()
        gc.enable()
