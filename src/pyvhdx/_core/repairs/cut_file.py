"""What a file has lost whose end is missing, as its log says how long it was (MS-VHDX 2.3.1.1)."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from pyvhdx._core.bat import BlockAllocationTable
from pyvhdx._core.geometry import Geometry
from pyvhdx._core.metadata import read_metadata
from pyvhdx._core.opening import overlay_of, regions_of
from pyvhdx._core.pages import PAGE_SIZE, Pages
from pyvhdx.errors import ImageError
from pyvhdx.format import constants as c

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyvhdx._core.log_reader import Replay
    from pyvhdx.format.header import Header
    from pyvhdx.storage import Storage


def is_payload_alone(storage: Storage, header: Header, replay: Replay) -> bool:
    """
    Return whether nothing but payload lay behind the end of the file that the log does not bring.

    Where BAT, metadata or bitmaps lay there, zeros in their place would say what nobody wrote.
    """
    cut_at = storage.size() & -PAGE_SIZE
    return not any(
        _has_unknown_pages(replay, max(start, cut_at), end)
        for start, end in _structures(overlay_of(storage, replay), header, cut_at)
    )


def _has_unknown_pages(replay: Replay, start: int, end: int) -> bool:
    starts, ends = replay.zeroed
    for at in range(start & -PAGE_SIZE, end, PAGE_SIZE):
        number = bisect_right(starts, at) - 1
        if at not in replay.pages and not (number >= 0 and at < ends[number]):
            return True
    return False


def _structures(shown: Storage, header: Header, cut_at: int) -> Iterator[tuple[int, int]]:
    """Yield start and end of what decides how the disk is read; of bitmaps, what lies behind *cut_at*."""
    try:
        regions = regions_of(shown, header)
        yield regions.metadata.file_offset, regions.metadata.file_offset + c.METADATA_TABLE_SIZE
        metadata = read_metadata(regions.metadata, shown.read_at)
        for items in (metadata.system, metadata.user):
            for item_id in items:
                yield items.place(item_id), items.place(item_id) + items.entry(item_id).length
        geometry = Geometry(metadata.size, metadata.block_size, metadata.logical_sector_size)
        has_parent = metadata.has_parent
        length = geometry.entries_needed(differencing=has_parent) * c.BAT_ENTRY_SIZE
        yield regions.bat.file_offset, regions.bat.file_offset + length
        if has_parent:
            bat = BlockAllocationTable(Pages(shown.read_at), regions.bat, geometry, differencing=True)
            yield from _bits(bat, geometry, cut_at)
    except ImageError:
        yield cut_at, c.MAX_FILE_SIZE  # nobody knows


def _bits(bat: BlockAllocationTable, geometry: Geometry, cut_at: int) -> Iterator[tuple[int, int]]:
    width = geometry.bitmap_bytes_per_block
    for chunk in range(geometry.chunk_count):
        place = bat.bitmap(chunk) & c.OFFSET_MASK
        if place + c.SECTOR_BITMAP_SIZE <= cut_at:
            continue
        first = chunk * geometry.chunk_ratio
        for block in range(first, min(first + geometry.chunk_ratio, geometry.block_count)):
            if bat.payload(block) & c.STATE_MASK == c.PayloadState.PARTIALLY_PRESENT:
                at = place + (block - first) * width
                yield at, at + width
