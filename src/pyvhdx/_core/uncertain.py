"""
The map of a file that is opened for salvage: what cannot be said of a range is a segment, and no error.

A block that the end of the file cuts is read up to there; entries that are not there, that no block
may have or that a log puts in doubt make their own ranges unreadable.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from pyvhdx._core.bat import BlockAllocationTable
from pyvhdx._core.blocks import BlockMap, Kind, Segment
from pyvhdx._core.findings import corrupt
from pyvhdx._core.pages import PAGE_SIZE, pages_of
from pyvhdx.errors import ImageError
from pyvhdx.format.constants import (
    BAT_ENTRY_SIZE,
    HEADER_SECTION_SIZE,
    OFFSET_MASK,
    SECTOR_BITMAP_SIZE,
    STATE_MASK,
    PayloadState,
)

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable, Iterable, Iterator

    from pyvhdx._core.doubts import Doubts
    from pyvhdx._core.geometry import Geometry
    from pyvhdx._core.pages import Pages
    from pyvhdx._core.regions import Span
    from pyvhdx.format.region import RegionTableEntry

_ENTRIES = PAGE_SIZE // BAT_ENTRY_SIZE
_FULLY_PRESENT = int(PayloadState.FULLY_PRESENT)
_RESERVED_STATES = (4, 5)
_MAX_JUDGED = 1 << 16


class UncertainTable(BlockAllocationTable):
    """A BAT that may be cut, hold less than the disk needs, lie on bad sectors, or be in doubt."""

    def __init__(
        self,
        pages: Pages,
        region: RegionTableEntry,
        geometry: Geometry,
        file_size: int,
        doubts: Doubts,
        *,
        differencing: bool,
    ) -> None:
        super().__init__(pages, region, geometry, differencing=differencing)
        self._held = region.length // BAT_ENTRY_SIZE
        there = min(region.length, max(0, file_size - region.file_offset)) // BAT_ENTRY_SIZE
        self.known_blocks = min(geometry.block_count, geometry.blocks_before(there))
        self._doubts = doubts
        first = region.file_offset
        self._in_doubt = [(at - first) // PAGE_SIZE for at in doubts.touched(first, region.end)]
        self._failed: dict[int, OSError] = {}

    def _check_size(self, region: RegionTableEntry, needed: int) -> None:
        pass  # an entry is missed when it is asked for

    def run_end(self, block: int, limit: int) -> int:
        """Return the first block after *block* whose entry is known to be another, or not known to be the same."""
        limit = self._certain_end(block, limit)
        try:
            return super().run_end(block, limit)
        except OSError:
            return min(limit, self.page_end(block))

    def wrong_end(self, block: int, limit: int, is_wrong: Callable[[int], bool]) -> int:
        """Return the first block from *block* on whose entry is not wrong, or not known to be."""
        limit = self._certain_end(block, limit) if block < limit else block
        ratio = self._geometry.chunk_ratio
        while block < limit:
            index = self._geometry.payload_index(block)
            start = index % _ENTRIES
            try:
                page = self._page(index // _ENTRIES)
            except OSError:
                break
            stop = min(len(page), start + min(limit - block, ratio - block % ratio))
            if stop <= start:
                break
            entries = page[start:stop]
            if not all(map(is_wrong, set(entries))):  # mostly they are all alike
                return block + next(n for n, entry in enumerate(entries) if not is_wrong(entry))
            block += len(entries)
        return block

    def first_where(self, block: int, limit: int, is_wanted: Callable[[int], bool]) -> int:
        """Return the first block from *block* on whose entry is wanted, or not known; *limit* without any."""
        if block >= limit:
            return limit
        end = self._sure_end(block, limit)
        while block < end:
            stop = min(end, self.page_end(block))
            try:
                found = super().first_where(block, stop, is_wanted)
            except OSError:
                return block
            if found < stop:
                return found
            block = stop
        return block

    def _certain_end(self, block: int, limit: int) -> int:
        """Return up to where, after *block*, no entry is in doubt or missing; at least the next block."""
        return max(block + 1, self._sure_end(block, limit))

    def _sure_end(self, block: int, limit: int) -> int:
        """Return up to where, from *block* on, no entry is in doubt or missing; *block* or less if its own is."""
        end = min(limit, self.known_blocks)
        place = bisect_left(self._in_doubt, self._number(block))
        if place < len(self._in_doubt):
            end = min(end, self._first_block(self._in_doubt[place]))
        return end

    def page_end(self, block: int) -> int:
        """Return the first block whose entry stands in a later page than that of *block*."""
        return max(block + 1, self._first_block(self._number(block) + 1))

    def _number(self, block: int) -> int:
        return self._geometry.payload_index(block) // _ENTRIES

    def _first_block(self, page: int) -> int:
        return self._geometry.blocks_before(page * _ENTRIES)

    def _entry(self, index: int) -> int:
        if index >= self._held:
            raise corrupt(
                "BAT-SIZE", "BAT entry", self.place(index), "2.5", "the BAT region ends before this entry"
            )
        entry = super()._entry(index)
        if self._in_doubt:
            at = self.place(index)
            if self._doubts.contradict(entry.to_bytes(BAT_ENTRY_SIZE, "little"), at):
                raise corrupt(
                    "LOG-DOUBT", "BAT entry", at, "2.3", "a log that may be current has another entry here"
                )
        return entry

    def _page(self, number: int) -> array[int]:
        if number in self._failed:  # a bad sector is asked once
            raise self._failed[number]
        try:
            return super()._page(number)
        except OSError as error:
            self._failed[number] = error
            raise


class UncertainMap(BlockMap):
    """The map of a file that is opened for salvage."""

    has_unreadable = True

    def __init__(
        self,
        geometry: Geometry,
        bat: UncertainTable,
        pages: Pages,
        file_size: int,
        taken: Iterable[Span],
        doubts: Doubts,
        *,
        differencing: bool,
    ) -> None:
        super().__init__(geometry, bat, pages, file_size, taken, differencing=differencing)
        self._table = bat
        self._wrong: dict[int, bool] = {}
        self._doubts = doubts

    def fault(self, offset: int) -> ImageError | OSError | None:
        """Return why the byte at *offset* of the disk is UNREADABLE; None where it is the parent's."""
        try:
            segment = next(super()._segments(offset, offset + 1))
        except (ImageError, OSError) as error:
            return error
        if segment.kind is not Kind.DATA:
            return None
        block = offset >> self._geometry.block_shift
        start = segment.file_offset - (offset - (block << self._geometry.block_shift))
        return self._bad_entry(
            "BAT-RANGE", block, f"it lies at {start:#x}, and the file ends at {self.file_size:#x}"
        )

    def _segments(self, offset: int, end: int) -> Iterator[Segment]:
        while offset < end:
            try:
                for segment in super()._segments(offset, end):
                    yield from self._inside(segment)
                    offset = segment.offset + segment.length
            except (ImageError, OSError) as error:  # noqa: PERF203 - it goes on behind what is wrong
                stop = min(end, self._end_of_fault(offset, end, error))
                yield Segment(Kind.UNREADABLE, offset, stop - offset, 0)
                offset = stop

    def _inside(self, segment: Segment) -> Iterator[Segment]:
        """Cut off what lies behind the end of the file."""
        kind, offset, length, place = segment
        there = max(0, min(length, self.file_size - place)) if kind is Kind.DATA else length
        if there:
            yield segment._replace(length=there)
        if there < length:
            yield Segment(Kind.UNREADABLE, offset + there, length - there, 0)

    def _end_of_fault(self, offset: int, end: int, error: ImageError | OSError) -> int:
        """Return how far the disk cannot be read either, at least to the end of the block: millions may follow."""
        shift = self._geometry.block_shift
        block = offset >> shift
        last = end - 1 >> shift
        if block >= self._table.known_blocks:
            return end
        if isinstance(error, OSError):
            return self._table.page_end(block) << shift
        # The block's own entry may be right, and the fault in its bitmap: what follows is judged by itself.
        return self._table.wrong_end(block + 1, last + 1, self._is_wrong) << shift

    def _is_wrong(self, entry: int) -> bool:
        """Return whether an entry is wrong whatever its block; entries are asked for by the million."""
        wrong = self._wrong.get(entry)
        if wrong is None:
            state, place = entry & STATE_MASK, entry & OFFSET_MASK
            wrong = state in _RESERVED_STATES or (
                state >= _FULLY_PRESENT
                and (
                    not HEADER_SECTION_SIZE <= place < self.file_size
                    or self._owner(place, place + self._geometry.block_size) is not None
                )
            )
            if len(self._wrong) >= _MAX_JUDGED:
                self._wrong.clear()
            self._wrong[entry] = wrong
        return wrong

    def _remember(self, block: int, entry: int) -> int:
        return self._locate(block, entry)  # nothing is kept: what is kept is read without a look at `_inside`

    def _partial_segments(self, block: int, entry: int, offset: int, end: int) -> Iterator[Segment]:
        # All of a block's bits: a part of it must not be called readable by one call and not by the next.
        place = self._bits_place(block) if self._differencing else 0
        length = self._geometry.bitmap_bytes_per_block
        for at in pages_of(place, length) if self._differencing else ():
            start, stop = max(at, place), min(at + PAGE_SIZE, place + length)
            if self._doubts.contradict(self._bits(start, 0, 8 * (stop - start) - 1), start):
                raise corrupt(
                    "LOG-DOUBT",
                    "sector bitmap",
                    start,
                    "2.3",
                    "a log that may be current has other bits here",
                )
        yield from super()._partial_segments(block, entry, offset, end)

    def _payload_end(self, block: int, place: int) -> int:  # noqa: ARG002 - `_inside` cuts the rest off
        return place + 1

    def _bitmap_end(self, block: int, place: int) -> int:
        number = block % self._geometry.chunk_ratio
        return place + min(SECTOR_BITMAP_SIZE, (number + 1) * self._geometry.bitmap_bytes_per_block)
