"""
Changing what an open image holds: plans are made in `_core` and carried out here.

Payload is in the file when a write returns; what it changes in BAT, bitmaps and metadata waits in
memory, and the session sends it through the log.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvhdx._core.blocks import Kind
from pyvhdx._core.metadata import read_metadata, read_table
from pyvhdx._core.pages import PAGE_SIZE, pages_of
from pyvhdx._core.space import is_anchor
from pyvhdx._core.trim import TrimMode, plan_trim
from pyvhdx._core.user_items import MAX_PAGES_AT_ONCE, plan_change
from pyvhdx.format.constants import SECTOR_BITMAP_SIZE, PayloadState
from pyvhdx.session import Session, in_turn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from uuid import UUID

    from pyvhdx._core.blocks import BlockWrite
    from pyvhdx._core.opening import OpenFile

_ZEROS = memoryview(bytes(1 << 20))
_UNIT = 512


class ImageWriter:
    """
    The writing side of one open file.

    *read* fills a buffer from an offset of the virtual disk, through the whole chain: it completes
    sectors that are written in part.
    """

    def __init__(self, file: OpenFile, *, sync: bool, read: Callable[[memoryview, int], None]) -> None:
        self.session = Session(file, sync=sync)
        self._medium = self.session.medium
        self._blocks = file.blocks
        self._geometry = file.geometry
        self._kind = file.metadata.kind
        self._read = read

    # -- what a caller asks for ---------------------------------------------------------------

    @in_turn
    def flush(self) -> None:
        """Make everything written so far survive a power cut."""
        self.session.flush()

    @in_turn
    def pwrite(self, data: memoryview, offset: int) -> None:
        """Write *data* at *offset*; the range lies inside the disk."""
        blocks, shift, size = self._blocks, self._geometry.block_shift, len(data)
        done = 0
        while done < size:
            block = offset + done >> shift
            start = offset + done - (block << shift)
            piece = min(size - done, (1 << shift) - start)
            place = blocks.places.get(block) if self.session.is_visible else None
            if place is not None:
                self._medium.write_payload(data[done : done + piece], place + start)
            else:
                self._write_block(block, start, data[done : done + piece])
            done += piece

    @in_turn
    def write_zeroes(self, offset: int, length: int) -> None:
        """Make a range inside the disk read as zeros, by the cheapest means."""
        geometry = self._geometry
        is_fixed = self._kind == "fixed"
        zero = int(PayloadState.ZERO)
        for block, start, end in self._parts_with_data(offset, length):
            if start == 0 and end >= geometry.used_length(block) and not is_fixed:
                stop = block + -(-end // geometry.block_size)
                self.session.change_entries(block, stop, zero, visible=True)
                continue
            at = start
            while at < end:  # in pieces that end with whole units, which a power cut does not take apart
                piece = min(end - at, len(_ZEROS) - at % len(_ZEROS))
                self._write_block(block, at, _ZEROS[:piece])
                at += piece

    @in_turn
    def trim(self, offset: int, length: int, mode: TrimMode) -> int:
        """Trim the whole blocks of a sector-aligned range inside the disk; return their virtual bytes."""
        changed = 0
        for trim in plan_trim(self._blocks, self._geometry, self._kind, offset, length, mode):
            self.session.change_entries(
                trim.first, trim.stop, trim.entry, visible=mode is not TrimMode.REMOVE_SOFT_ANCHORS
            )
            changed += trim.length
        return changed

    @in_turn
    def set_user_item(self, item_id: UUID, data: bytes | None, *, of_disk: bool | None) -> None:
        """Set or, with None, delete a user item; raise `KeyError` where there is none to delete."""
        region, pages = self.session.file.regions.metadata, self.session.file.pages
        _, entries = read_table(region, pages.read)
        change = plan_change(entries, region.length, item_id, data, of_disk=of_disk)
        at = region.file_offset + change.data_offset
        if not change.table and pages.read(len(change.data), at) == change.data:
            return
        table = [(region.file_offset + offset, piece) for offset, piece in change.table]
        self.session.begin(visible=True)
        if change.at_once:
            self.session.make_room({p for o, d in [*table, (at, change.data)] for p in pages_of(o, len(d))})
            with self.session.changing():
                pages.write(change.data, at)
                self._write_table(table)
            return
        step = MAX_PAGES_AT_ONCE * PAGE_SIZE
        self.session.commit()  # the place is free in the durable table now
        for start in range(0, len(change.data), step):
            piece = change.data[start : start + step]
            self.session.make_room(set(pages_of(at + start, len(piece))))
            with self.session.changing():
                pages.write(piece, at + start)
            self.session.commit()
        self.session.make_room({p for o, d in table for p in pages_of(o, len(d))})
        with self.session.changing():
            self._write_table(table)

    # -- blocks -------------------------------------------------------------------------------

    def _parts_with_data(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        """Yield (block, start, end), in bytes of the block, where a range may read as anything but zeros."""
        shift, blocks = self._geometry.block_shift, self._blocks
        zeros = (Kind.ZERO,) if self._kind == "differencing" else (Kind.ZERO, Kind.ABSENT)
        end = offset + length
        while offset < end:
            block = offset >> shift
            kind = blocks.kind_of_absence(block)
            if kind is not None and kind in zeros:
                offset = blocks.absence_end(block, kind, ((end - 1) >> shift) + 1) << shift
                continue
            start = block << shift
            stop = min(end, start + (1 << shift))
            if start == offset and stop < end:
                # Blocks without content can be taken as one.
                stop = max(stop, min(end, blocks.uniform_end(block, end >> shift) << shift))
            yield block, offset - start, stop - start
            offset = stop

    def _write_block(self, block: int, start: int, data: memoryview) -> None:
        geometry, blocks = self._geometry, self._blocks
        plan = blocks.plan_write(block, start, start + len(data))
        existing = blocks.pages_changed(block, plan)
        whole = self._whole_sectors(block, plan, start, data)
        self.session.begin(visible=True)
        self.session.make_room(existing)
        taken: list[tuple[int, int]] = []
        try:
            place, is_zero = plan.place, False
            if place is None:
                place, is_zero = self.session.take(geometry.block_size, taken)
            bitmap_place = None
            if plan.needs_bitmap:
                bitmap_place, _ = self.session.take(SECTOR_BITMAP_SIZE, taken)
                self._medium.write_payload(_ZEROS[:SECTOR_BITMAP_SIZE], bitmap_place)
            if plan.zero_rest:
                plan, whole = _with_zeros_around(plan, whole)
            if plan.zero_rest and not is_zero:
                self._write_zeros(place, place + plan.start)
                self._write_zeros(place + plan.end, place + geometry.block_size)
            self._medium.write_payload(whole, place + plan.start)
        except BaseException:
            for at, length in taken:
                self.session.space.give_back(at, length)
            raise
        with self.session.changing():
            if bitmap_place is not None:
                blocks.add_bitmap(block, bitmap_place)
                self.session.allocated.update(pages_of(bitmap_place, SECTOR_BITMAP_SIZE))
            if plan.place is not None and is_anchor(blocks.entry(block)):
                self.session.space.anchors -= 1
            blocks.adopt(block, plan, place)

    def _whole_sectors(self, block: int, plan: BlockWrite, start: int, data: memoryview) -> memoryview:
        """Complete the sectors at both ends with what they read as now, where the plan asks for it."""
        if plan.end - plan.start == len(data):
            return data
        buffer = memoryview(bytearray(plan.end - plan.start))
        before = start - plan.start
        at = (block << self._geometry.block_shift) + plan.start
        sector = self._geometry.logical_sector_size
        # A sector past the disk's end does not exist: the size is a multiple of the sector size.
        self._read(buffer[:sector], at)
        if len(buffer) > sector:
            self._read(buffer[-sector:], at + len(buffer) - sector)
        buffer[before : before + len(data)] = data
        return buffer

    def _write_zeros(self, start: int, end: int) -> None:
        for at in range(start, end, len(_ZEROS)):
            self._medium.write_payload(_ZEROS[: end - at], at)

    def _write_table(self, pieces: list[tuple[int, bytes]]) -> None:
        for at, piece in pieces:
            self.session.file.pages.write(piece, at)
        file = self.session.file
        self.session.file = file._replace(metadata=read_metadata(file.regions.metadata, file.pages.read))


def _with_zeros_around(plan: BlockWrite, data: memoryview) -> tuple[BlockWrite, memoryview]:
    """Fill units up with zeros that the data covers in part: a disk writes them whole, so they go at once."""
    before, after = plan.start % _UNIT, -plan.end % _UNIT
    if not before and not after:
        return plan, data
    filled = memoryview(bytes(before) + bytes(data) + bytes(after))
    return plan._replace(start=plan.start - before, end=plan.end + after), filled
