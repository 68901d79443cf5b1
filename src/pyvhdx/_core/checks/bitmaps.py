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
    name = f"sector bitmap {chunk}"
    width = geometry.bitmap_bytes_per_block
    run = next_data(place)
    if run is None or run[0] >= place + SECTOR_BITMAP_SIZE:
        for block in partial:
            _judge_block(block, 0, place + (block - chunk * geometry.chunk_ratio) * width, name, collector)
        return
    bits = read(SECTOR_BITMAP_SIZE, place)
    if len(bits) < SECTOR_BITMAP_SIZE:
        collector.found("BITMAP-RANGE", place, "the file ends inside it", structure=name)
        return
    rest = bytearray(bits)
    for block in partial:
        start = (block - chunk * geometry.chunk_ratio) * width
        sectors = geometry.used_length(block) >> geometry.sector_shift
        mine = int.from_bytes(bits[start : start + width], "little")
        ones = (mine & (1 << sectors) - 1).bit_count()
        if ones in (0, sectors):
            _judge_block(block, ones, place + start, name, collector)
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


def _judge_block(block: int, ones: int, place: int, name: str, collector: Collector) -> None:
    """Report a PARTIALLY_PRESENT block of which no sector is here, or every one is."""
    code, message = (
        ("BITMAP-FULL", "has all its sectors here; it could be FULLY_PRESENT")
        if ones
        else ("BITMAP-NONE", "has no sector here; it could be NOT_PRESENT")
    )
    collector.found(code, place, f"PARTIALLY_PRESENT block {block} {message}", structure=name)
