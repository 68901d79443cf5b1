"""
What must hold whatever the bytes of a file are.

An answer or an error of ours; no file is changed by reading; what is written is there afterwards and
nothing else is different; a file that is written grows no further than its log says, or by one step.
Time and memory are limited by whoever runs this: see `limited`.
"""

from __future__ import annotations

import contextlib
import itertools
import resource
import sys
import time
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pyvhdx
from pyvhdx.format.constants import round_up
from pyvhdx.session import GROWTH_STEP
from tests.corpus.handmade import MIB
from tests.corpus.specimens import same

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyvhdx.testing import MemoryStorage

SECONDS = 5
MEMORY = 200 * MIB
_EXTENTS = 64
_PIECE = 1500


class LimitError(Exception):
    """An input took more time or memory than it may."""


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Raise `LimitError` where the body took more than `SECONDS` of CPU, or `MEMORY` more than ever before."""
    before, began = _peak(), time.process_time()
    yield
    took, grown = time.process_time() - began, _peak() - before
    if took > SECONDS:
        raise LimitError(f"{took:.1f} s")
    if grown > MEMORY:
        raise LimitError(f"{grown >> 20} MiB")


def _peak() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def examine(
    storage: MemoryStorage, places: list[int], *, write: bool = False, more: int = 0, **how: Any
) -> str:
    """
    Open and read, with *write* also write, and return how far it came.

    *places* are offsets of the virtual disk, taken modulo its size; the bits of *more* are further
    changes: 1 zeroes a range, 2 trims blocks, 4 sets an item.  *how* are arguments of `pyvhdx.open`.
    """
    before = storage.copy()
    seen: dict[int, bytes] = {}
    replayed = 0
    try:
        with pyvhdx.open(storage, **how) as image:
            seen = _look(image, places)
            outcome = "read"
            if image._file.replay is not None:
                replayed = image._file.replay.size
    except pyvhdx.VHDXError as error:
        assert str(error)
        outcome = f"refused: {getattr(error, 'code', type(error).__name__)}"
    assert same(storage, before), "a read-only open changed the file"
    return _write(storage, places, seen, replayed, more, **how) if write else outcome


def _look(image: pyvhdx.VHDXImage, places: list[int]) -> dict[int, bytes]:
    """Ask everything of an image that is cheap to ask, and return what it reads as, by offset."""
    assert image.info().to_dict()
    assert repr(image)
    assert list(image.user_metadata) is not None
    for item in itertools.islice(image.metadata, 8):
        with contextlib.suppress(pyvhdx.VHDXError):
            assert len(image.metadata[item]) <= MIB
    at = 0
    with contextlib.suppress(pyvhdx.VHDXError):
        for extent in itertools.islice(image.extents(), _EXTENTS):
            assert extent.offset == at
            assert extent.length > 0
            at += extent.length
        assert at <= image.size
    seen = {}
    for place in {place % image.size for place in places}:
        with contextlib.suppress(pyvhdx.VHDXError):
            seen[place] = image.pread(_PIECE, place)
            assert len(seen[place]) == min(_PIECE, image.size - place)
    return seen


def _write(
    storage: MemoryStorage, places: list[int], seen: dict[int, bytes], replayed: int, more: int, **how: Any
) -> str:
    """Write at the first place, and do what *more* says; all the rest is as it was."""
    size = storage.size()
    try:
        image = pyvhdx.open(storage, "r+", **how)
    except pyvhdx.VHDXError as error:
        return f"not for writing: {getattr(error, 'code', type(error).__name__)}"
    start = places[0] % image.size
    data = bytes(range(1, 252)) * 6
    data = data[: min(len(data), image.size - start)]
    # A block larger than a step needs its own size; ends are rounded up to whole MiB.
    step = GROWTH_STEP if image.block_size < GROWTH_STEP else image.block_size + GROWTH_STEP
    limit = round_up(max(replayed, size), MIB) if replayed > size + step else round_up(size, MIB) + step
    promised: dict[int, bytes] = {}
    changed = [(start, start + len(data))]
    try:
        try:
            image.pwrite(data, start)
            image.flush()
            promised[start] = data
            assert storage.size() <= limit, f"grown to {storage.size():#x}, from {size:#x}"
            if more:
                _change_more(image, more, places[1] % image.size, promised, changed)
        finally:
            assert storage.size() <= limit + 2 * step, f"grown to {storage.size():#x}, from {size:#x}"
            image.close()
    except pyvhdx.VHDXError as error:
        outcome = f"not written: {getattr(error, 'code', type(error).__name__)}"
    else:
        outcome = "written"
    if seen or promised:
        with pyvhdx.open(storage, **how) as image:  # what could be read can be read again
            for place, new in promised.items():
                assert image.pread(len(new), place) == new, f"what was written at {place:#x} is not there"
            for place, old in seen.items():
                # A write completes its sectors, and they read as before outside it.
                if all(place + len(old) <= first or stop <= place for first, stop in changed):
                    assert image.pread(len(old), place) == old, (
                        f"byte {place:#x} was not written, and changed"
                    )
            if more & _ITEM and outcome == "written":
                assert image.user_metadata[_ITEM_ID] == b"note" * more
    return outcome


_ZEROES, _TRIM, _ITEM = 1, 2, 4
_ITEM_ID = UUID("7c9e6679-7425-40de-944b-e07fc1f90ae7")
_MODES = tuple(pyvhdx.TrimMode)


def _change_more(
    image: pyvhdx.VHDXImage, more: int, at: int, promised: dict[int, bytes], changed: list[tuple[int, int]]
) -> None:
    """Zero a range, trim the blocks behind it, set an item; note what is promised to be read afterwards."""
    if more & _ITEM:
        image.user_metadata[_ITEM_ID] = b"note" * more
    if more & _ZEROES:
        length = min(3 * MIB + 700, image.size - at)
        changed.append((at, at + length))
        # What was written before, and lies in this range, is zeros now in part.
        promised.clear()
        image.write_zeroes(at, length)
        promised[at], promised[at + length - min(length, 900)] = (
            bytes(min(length, 900)),
            bytes(min(length, 900)),
        )
    if more & _TRIM:
        sector = image.logical_sector_size
        at -= at % sector
        length = min(4 * MIB, image.size - at)
        changed.append((at, at + length))
        promised.clear()
        image.trim(at, length, _MODES[more % len(_MODES)])
    image.flush()
