"""The entries of a BAT as they stand in the file, in runs that mean the same (MS-VHDX 2.5)."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from pyvhdx._core.bat import pieces
from pyvhdx._core.repairs.metadata import Traces
from pyvhdx.format.constants import BAT_ENTRY_SIZE, STATE_MASK, BitmapState, PayloadState

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterator

    from pyvhdx._core.geometry import Geometry
    from pyvhdx.format.region import RegionTableEntry
    from pyvhdx.storage import Storage


class Slot(Enum):
    """What an index of the table stands for."""

    BLOCK = "block"
    BITMAP = "sector bitmap"
    PADDING = "padding"


class Row(NamedTuple):
    """Entries from *first* of the table on: blocks of one chunk from *number* on, or the bitmap of chunk *number*."""

    slot: Slot
    number: int
    first: int
    entries: array[int]


class Rows:
    """Walks the whole region, as often as it is asked to; holes of the file are left out."""

    def __init__(
        self, storage: Storage, region: RegionTableEntry, geometry: Geometry, *, differencing: bool
    ) -> None:
        self._storage = storage
        self._region = region
        self._geometry = geometry
        self._needed = geometry.entries_needed(differencing=differencing)

    def all(self) -> Iterator[Row]:
        """Yield all entries, in order."""
        storage = self._storage
        count = self._region.length // BAT_ENTRY_SIZE
        for first, entries in pieces(storage.read_at, storage.next_data, self._region.file_offset, count):
            yield from self._apart(first, entries)

    def _apart(self, first: int, entries: array[int]) -> Iterator[Row]:
        ratio, blocks = self._geometry.chunk_ratio, self._geometry.block_count
        at = 0
        while at < len(entries):
            index = first + at
            if index >= self._needed:
                yield Row(Slot.PADDING, index, index, entries[at:])
                return
            chunk, position = divmod(index, ratio + 1)
            block = chunk * ratio + position
            if position == ratio:
                stop, slot, number = at + 1, Slot.BITMAP, chunk
            elif block < blocks:
                stop, slot, number = at + min(ratio - position, blocks - block), Slot.BLOCK, block
            else:  # in front of the last bitmap
                stop, slot, number = at + ratio - position, Slot.PADDING, index
            yield Row(slot, number, index, entries[at:stop])
            at = stop

    def of_blocks(self) -> Iterator[tuple[int, int, int]]:
        """Yield (block, index, entry) of every block whose entry is not 0."""
        for slot, number, first, entries in self.all():
            if slot is Slot.BLOCK:
                for at, entry in enumerate(entries):
                    if entry:
                        yield number + at, first + at, entry


def traces_in(storage: Storage, region: RegionTableEntry, geometry: Geometry) -> Traces:
    """Return what only a child has, of a file that does not say it is one."""
    partial = bitmaps = 0
    for slot, _, _, entries in Rows(storage, region, geometry, differencing=False).all():
        states = [entry & STATE_MASK for entry in entries]
        if slot is Slot.BLOCK:
            partial += states.count(int(PayloadState.PARTIALLY_PRESENT))
        else:
            bitmaps += states.count(int(BitmapState.PRESENT))
    return Traces(partial, bitmaps)
