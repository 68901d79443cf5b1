"""One sector bitmap: a bit for each logical sector of a chunk (MS-VHDX 2.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvhdx.format.constants import SECTOR_BITMAP_SIZE

if TYPE_CHECKING:
    from pyvhdx._core.checks.collector import Collector
    from pyvhdx._core.geometry import Geometry
    from pyvhdx._types import NextData, ReadAt


def check_bitmap(
    read: ReadAt,
    next_data: NextData,
    place: int,
    chunk: int,
    partial: list[int],
    geometry: Geometry,
    collector: Collector,
) -> None:
    """Judge the bitmap at *place*; *partial* are the PARTIALLY_PRESENT blocks of its chunk."""
    run = next_data(place)
    if run is None or run[0] >= place + SECTOR_BITMAP_SIZE:
        bits = bytes(SECTOR_BITMAP_SIZE)
    else:
        bits = read(SECTOR_BITMAP_SIZE, place)
    name = f"sector bitmap {chunk}"
    if len(bits) < SECTOR_BITMAP_SIZE:
        collector.found("BITMAP-RANGE", place, "the file ends inside it", structure=name)
        return
    width = geometry.bitmap_bytes_per_block
    rest = bytearray(bits)
    for block in partial:
        start = (block - chunk * geometry.chunk_ratio) * width
        sectors = geometry.used_length(block) >> geometry.sector_shift
        mine = int.from_bytes(bits[start : start + width], "little")
        ones = (mine & (1 << sectors) - 1).bit_count()
        if ones in (0, sectors):
            code, message = (
                ("BITMAP-NONE", "has no sector here; it could be NOT_PRESENT")
                if not ones
                else ("BITMAP-FULL", "has all its sectors here; it could be FULLY_PRESENT")
            )
            collector.found(code, place + start, f"PARTIALLY_PRESENT block {block} {message}", structure=name)
        rest[start : start + width] = (mine >> sectors << sectors).to_bytes(width, "little")
    sectors = (geometry.size >> geometry.sector_shift) - chunk * geometry.chunk_ratio * 8 * width
    behind = sectors >> 3
    if sectors < 8 * SECTOR_BITMAP_SIZE:
        tail = int.from_bytes(rest[behind:], "little") >> (sectors & 7)
        if tail:
            message = f"{tail.bit_count()} bits behind the end of the disk are 1"
            collector.found("BITMAP-TAIL", place + behind, message, structure=name)
        rest[behind:] = (rest[behind] & (1 << (sectors & 7)) - 1).to_bytes(1, "little")
    if rest.count(0) == len(rest):
        return
    stale = [
        number for number in range(-(-len(rest) // width)) if any(rest[number * width : (number + 1) * width])
    ]
    collector.found(
        "BITMAP-STALE",
        place + stale[0] * width,
        f"bits of {len(stale)} blocks that are not PARTIALLY_PRESENT are 1, of block "
        f"{chunk * geometry.chunk_ratio + stale[0]} first",
        structure=name,
    )
