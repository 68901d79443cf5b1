"""Whole images: open, read and write; check; repair."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import pyvhdx
from tests.corpus.specimens import same
from tests.fuzz.oracle import examine
from tests.fuzz.recipe import ALONE, DEEP, REFUSE_LOG, WRITE, Recipe, cook

if TYPE_CHECKING:
    from pyvhdx.testing import MemoryStorage

# There where this version repairs.
REPAIR: Any = getattr(pyvhdx, "repair", None)


def try_open(data: bytes) -> str:
    """Open, read and maybe write the image of a recipe."""
    recipe = cook(data)
    write = bool(recipe.flags & WRITE)
    return examine(recipe.storage, recipe.places, write=write, more=recipe.flags >> 5, **_how(recipe))


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


def try_check(data: bytes) -> str:
    """Check the image of a recipe: nothing changes, and what an open refuses is corrupt."""
    recipe = cook(data)
    return examine_check(recipe.storage, deep=bool(recipe.flags & DEEP), **_how(recipe))


def examine_check(storage: MemoryStorage, *, deep: bool, **how: Any) -> str:
    """Check a storage, compare the report with what `open` says, and return how it went."""
    before = storage.copy()
    try:
        report = pyvhdx.check(storage, deep=deep, **how)
    except pyvhdx.VHDXError as error:
        assert str(error)
        outcome = f"refused: {getattr(error, 'code', type(error).__name__)}"
        report = None
    assert same(storage, before), "a check changed the file"
    try:
        pyvhdx.open(storage, **how).close()
    except pyvhdx.VHDXError as error:
        refused: str | None = str(error)
    else:
        refused = None
    if report is None:
        assert refused is not None, f"what could not be checked can be opened: {outcome}"
        return outcome
    json.dumps(report.to_dict())
    assert report.ok == (not report.corruptions)
    for finding in report.findings:
        assert finding.code
        assert finding.severity in ("corrupt", "warning", "note")
        assert finding.message
    assert refused is None or not report.ok, f"clean, and not to be opened: {refused}"
    if report.ok:
        return f"ok, {len(report.counts)} codes"
    return f"corrupt: {min(finding.code for finding in report.findings if finding.severity == 'corrupt')}"


def try_repair(data: bytes) -> str:
    """Repair the image of a recipe: what could be read reads the same, and nothing repairable is left."""
    recipe = cook(data)
    storage, how = recipe.storage, _how(recipe)
    before = storage.copy()
    seen = _seen(storage, recipe.places, how)
    try:
        REPAIR(storage, dry_run=True, undo=False, **how)
        assert same(storage, before), "a plan changed the file"
        report = REPAIR(storage, undo=False, **how)
    except pyvhdx.VHDXError as error:
        assert str(error)
        return f"refused: {getattr(error, 'code', type(error).__name__)}"
    left = pyvhdx.check(storage, **how)
    corrupt = [finding for finding in left.findings if finding.severity == "corrupt"]
    asked = {(one.finding.code, one.finding.offset) for one in report.left if one.choices}
    # What is undecided holds up all that may hang on it.
    assert not corrupt or any(not one.repairable or (one.code, one.offset) in asked for one in corrupt)
    for place, old in _seen(storage, list(seen), how).items():
        assert seen[place] == old, f"byte {place:#x} reads otherwise"
    assert not REPAIR(storage, undo=False, **how).done, "a second repair found more to do"
    return f"{len(report.done)} done, {'ok' if left.ok else 'corrupt'}"


def _seen(storage: MemoryStorage, places: list[int], how: dict[str, Any]) -> dict[int, bytes]:
    """Return what can be read at some places."""
    seen = {}
    with contextlib.suppress(pyvhdx.VHDXError), pyvhdx.open(storage, **how) as image:
        for place in {place % image.size for place in places}:
            with contextlib.suppress(pyvhdx.VHDXError):
                seen[place] = image.pread(1000, place)
    return seen
