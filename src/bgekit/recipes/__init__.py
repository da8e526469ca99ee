"""Recipes: a file that names stages, each a verb of the command line, run in order and only as far as needed.

`run_recipe` is what `bge recipe run FILE` calls.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .runner import StageError, run_recipe
    from .spec import Recipe, RecipeError, read_recipe

__all__ = ["Recipe", "RecipeError", "StageError", "read_recipe", "run_recipe"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Recipe": "spec",
        "read_recipe": "spec",
        "RecipeError": "spec",
        "StageError": "runner",
        "run_recipe": "runner",
    },
)
