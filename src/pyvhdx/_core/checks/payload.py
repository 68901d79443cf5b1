"""The payload: whether it can be read to its end, and whether it need be stored (MS-VHDX 2.5.1.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvhdx._core.bitmap import runs
from pyvhdx._core.checks.occupancy import Occupancy, unit_of
from pyvhdx.format import constants as c

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pyvhdx._core.checks.collector import Collector
    from pyvhdx._core.checks.table import Table

_FULL, _PARTIAL = int(c.PayloadState.FULLY_PRESENT), int(c.PayloadState.PARTIALLY_PRESENT)
_PIECE = 1 << 20
_ZEROS = bytes(_PIECE)


def check_payload(table: Table, collector: Collector, advance: Callable[[int], object]) -> None:
    """
    Read everything that the file stores of the disk.

    *advance* is told how many bytes of blocks have been looked at.  Of a PARTIALLY_PRESENT block
    that is what its bitmap claims; of blocks at one place only the first is read.
    """
    geometry = table.geometry
    seen = Occupancy(table.file_size)
    zeros = 0
    for block, entry in _stored(table):
        place, length = entry & c.OFFSET_MASK, geometry.used_length(block)
        if seen.claim(unit_of(place), geometry.block_size // c.ALIGNMENT):
            continue  # or a small file with a large table would be read for days
        if entry & c.STATE_MASK == _FULL:
            zeros += not _read(table, collector, block, place, place + length)
        else:
            for start, stop in _claimed(table, block, length):
                _read(table, collector, block, place + start, place + stop)
        advance(geometry.block_size)
    if zeros and table.kind != "fixed":
        collector.found(
            "PAYLOAD-ZERO",
            table.offset,
            f"{zeros} FULLY_PRESENT blocks, {zeros * geometry.block_size} bytes, hold only zeros",
        )


def check_unowned(
    table: Table, space: Occupancy, collector: Collector, advance: Callable[[int], object], *, limit: int
) -> None:
    """
    Read what belongs to nothing, of a file none of whose blocks is stored, up to the first data.

    No more than *limit* bytes are read, and *advance* is told how many have been looked at.
    """
    for first, end in space.free_runs():
        at, stop = first << 20, min(end << 20, table.file_size)
        while at < stop and (run := table.next_data(at)) is not None and run[0] < stop:
            start = max(at, run[0])
            advance(start - at)
            at = min(stop, run[1], start + _PIECE)
            try:
                data = table.read(at - start, start)
            except OSError:  # of what belongs to nothing no byte need be right
                data = b""
            if data != _ZEROS[: len(data)]:
                collector.found(
                    "SPACE-DATA",
                    start,
                    f"no block of the disk is stored, but what belongs to nothing is not zeros ({start:#x} is the "
                    "first place): the BAT may have been lost, or all that was stored was discarded",
                )
                return
            advance(at - start)
            limit -= at - start
            if limit <= 0:
                return


def _stored(table: Table) -> Iterator[tuple[int, int]]:
    """Yield (block, entry) of the blocks with content that lie where they may."""
    geometry = table.geometry
    for first, entries in table.all_pieces():
        for number, index, part in table.segments(first, entries):
            if index is not None or number >= geometry.block_count:
                continue
            for block, entry in enumerate(part, number):
                if entry & c.STATE_MASK not in (_FULL, _PARTIAL):
                    continue
                place = entry & c.OFFSET_MASK
                if place >= c.HEADER_SECTION_SIZE and place + geometry.used_length(block) <= table.file_size:
                    yield block, entry


def _claimed(table: Table, block: int, length: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges of a PARTIALLY_PRESENT block whose bits are 1, in bytes."""
    geometry = table.geometry
    chunk, number = divmod(block, geometry.chunk_ratio)
    at = table.place(geometry.bitmap_index(chunk))
    entry = int.from_bytes(table.read(c.BAT_ENTRY_SIZE, at), "little")
    place, width = entry & c.OFFSET_MASK, geometry.bitmap_bytes_per_block
    if entry & c.STATE_MASK not in (_FULL, _PARTIAL) or place < c.HEADER_SECTION_SIZE:
        return
    bits = table.read(width, place + number * width)
    if len(bits) < width:
        return
    start = 0
    for bit, count in runs(bits, 0, length >> geometry.sector_shift):
        stop = start + (count << geometry.sector_shift)
        if bit:
            yield start, stop
        start = stop


def _read(table: Table, collector: Collector, block: int, start: int, end: int) -> bool:
    """Read a range, and return whether it holds anything but zeros, or cannot be read."""
    is_used = False
    at = start
    while at < end and (run := table.next_data(at)) is not None and run[0] < end:
        at = max(at, run[0])
        stop = min(end, run[1])
        while at < stop:
            size = min(_PIECE, stop - at)
            try:
                data = table.read(size, at)
                why = "the file ends here" if len(data) < size else ""
            except OSError as error:
                data, why = b"", error.strerror or str(error)
            if why:
                collector.found(
                    "PAYLOAD-READ", at, f"block {block} cannot be read: {why}", structure=f"block {block}"
                )
                return True
            is_used = is_used or data != _ZEROS[:size]
            at += size
    return is_used


def partition_ends(sectors: Callable[[int], bytes]) -> Iterator[tuple[str, int]]:
    """
    Yield (what, the number of its last sector) for what the partition table of a disk names.

    *sectors* returns the bytes of one sector; at the end of the disk, fewer.
    """
    first = sectors(0)
    if first[510:512] != b"\x55\xaa":
        return
    kinds = [first[446 + 16 * number + 4] for number in range(4)]
    if 0xEE in kinds:
        table = sectors(1)
        if table.startswith(b"EFI PART") and len(table) >= 92:
            yield "the backup of the GUID partition table", int.from_bytes(table[32:40], "little")
            yield "the last usable sector of the GUID partition table", int.from_bytes(table[48:56], "little")
        return
    # A boot sector without a partition table has code there, and bits that no flag of a table has.
    if any(first[446 + 16 * number] & 0x7F for number in range(4)):
        return
    for number, kind in enumerate(kinds):
        entry = first[446 + 16 * number : 462 + 16 * number]
        count = int.from_bytes(entry[12:16], "little")
        if kind and count:
            yield f"partition {number + 1}", int.from_bytes(entry[8:12], "little") + count - 1
