"""What the sector bitmaps should hold, and what follows from them for the BAT (MS-VHDX 2.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvhdx._core.bitmap import with_ones
from pyvhdx.format.constants import (
    LOG_SECTOR_SIZE,
    OFFSET_MASK,
    SECTOR_BITMAP_SIZE,
    STATE_MASK,
    BitmapState,
    PayloadState,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pyvhdx._core.geometry import Geometry
    from pyvhdx._core.repairs.entries import EditedTable
    from pyvhdx.storage import Storage

_FULL = int(PayloadState.FULLY_PRESENT)
_PARTIAL = int(PayloadState.PARTIALLY_PRESENT)
_PRESENT = int(BitmapState.PRESENT)


def plan_bitmaps(
    storage: Storage,
    table: EditedTable,
    geometry: Geometry,
    left_alone: set[int],
    is_sound: Callable[[int], bool],
) -> Iterator[tuple[int, bytes]]:
    """
    Yield (file offset, bytes) of what changes in the bitmaps, a bitmap at a time.

    Blocks all of whose bits are 1 become FULLY_PRESENT in *table*, those without any NOT_PRESENT.  The
    bitmaps of the chunks *left_alone* are not touched: something else lies there; nor is what belongs to a
    block that *is_sound* does not confirm.
    """
    for chunk in range(geometry.chunk_count):
        entry = table.get(geometry.bitmap_index(chunk))
        if chunk not in left_alone and entry & STATE_MASK == _PRESENT:
            yield from _plan_one(storage, table, geometry, chunk, entry & OFFSET_MASK, is_sound)


def _plan_one(
    storage: Storage,
    table: EditedTable,
    geometry: Geometry,
    chunk: int,
    place: int,
    is_sound: Callable[[int], bool],
) -> Iterator[tuple[int, bytes]]:
    old = storage.read_at(SECTOR_BITMAP_SIZE, place)
    if len(old) < SECTOR_BITMAP_SIZE:
        return
    length = geometry.bitmap_bytes_per_block
    new = bytearray(SECTOR_BITMAP_SIZE)  # the bits of what is no partial block are 0
    first = chunk * geometry.chunk_ratio
    for block in range(first, min(first + geometry.chunk_ratio, geometry.block_count)):
        index = geometry.payload_index(block)
        entry = table.get(index)
        if entry & STATE_MASK != _PARTIAL:
            continue
        start = (block - first) * length
        sectors = -(-geometry.used_length(block) // geometry.logical_sector_size)
        used = with_ones(bytes(length), 0, sectors)
        if not is_sound(block):
            new[start : start + length] = old[start : start + length]
            continue
        bits = int.from_bytes(old[start : start + length], "little") & int.from_bytes(used, "little")
        if bits == int.from_bytes(used, "little"):
            table.set(index, entry & OFFSET_MASK | _FULL)
        elif not bits:
            table.set(index, 0)
        else:
            new[start : start + length] = bits.to_bytes(length, "little")
    if new != old:
        for at in range(0, SECTOR_BITMAP_SIZE, LOG_SECTOR_SIZE):
            if new[at : at + LOG_SECTOR_SIZE] != old[at : at + LOG_SECTOR_SIZE]:
                yield place + at, bytes(new[at : at + LOG_SECTOR_SIZE])
