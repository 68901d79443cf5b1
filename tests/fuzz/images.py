"""Whole images: open, read and write; check; repair."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.fuzz.oracle import examine
from tests.fuzz.recipe import ALONE, REFUSE_LOG, WRITE, Recipe, cook

if TYPE_CHECKING:
    pass


def try_open(data: bytes) -> str:
    """Open, read and maybe write the image of a recipe."""
    recipe = cook(data)
    return examine(recipe.storage, recipe.places, write=bool(recipe.flags & WRITE), **_how(recipe))


def _how(recipe: Recipe) -> dict[str, Any]:
    """Return the arguments of `open`: a child gets its parent, unless it is opened alone."""
    how: dict[str, Any] = {}
    parent = recipe.specimen.parent
    if recipe.flags & ALONE:
        how["parent"] = False
    elif parent is not None:
        how["parent"] = lambda _: parent
    if recipe.flags & REFUSE_LOG:
        how["log"] = "refuse"
    return how
