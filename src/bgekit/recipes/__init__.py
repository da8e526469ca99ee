"""Recipes: a file that names stages, each a verb of the command line, run in order and only as far as needed.

`run_recipe` is what `bge recipe run FILE` calls.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .runner import StageError as StageError
    from .runner import run_recipe as run_recipe
    from .spec import Recipe as Recipe
    from .spec import RecipeError as RecipeError
    from .spec import read_recipe as read_recipe

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "runner": ("StageError", "run_recipe"),
        "spec": ("Recipe", "RecipeError", "read_recipe"),
    },
)
