"""
Who owns which MiB of the file, and where a new block may go (MS-VHDX 2.1; nothing may overlap).

The rules of reuse, under which a power cut at any moment leaves no range with two owners:

R1  What a change of the BAT frees is free when the log entry with that change is durable; until
    then it waits in `_pending`.
R2  What the current log writes to is never freed here: blocks of sector bitmaps and regions stay
    where they are as long as the log lives.
R4  The block of a soft anchor may take its own space back at any time.
R5  Another block's soft anchor is cleared first, and its space is free when that is durable.
R6  What a failed write took goes back to where it came from: the free space, or the block's anchor.

Space that was added to the file in this session and never handed out reads as zeros; all other free
space may hold what some block once held there.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, NamedTuple

from pyvhdx._core.findings import corrupt, unsupported
from pyvhdx.format.constants import (
    ALIGNMENT,
    HEADER_SECTION_SIZE,
    OFFSET_MASK,
    SECTOR_BITMAP_SIZE,
    STATE_MASK,
    BitmapState,
    PayloadState,
    round_up,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvhdx._core.bat import BlockAllocationTable
    from pyvhdx._core.geometry import Geometry
    from pyvhdx._core.regions import Span
    from pyvhdx.errors import CorruptImageError

_UNIT_SHIFT = 20
_USED = 1
_FULLY_PRESENT = int(PayloadState.FULLY_PRESENT)
_PARTIALLY_PRESENT = int(PayloadState.PARTIALLY_PRESENT)
_ANCHORS = (int(PayloadState.UNDEFINED), int(PayloadState.UNMAPPED))
_OF_NOBODY = (int(PayloadState.NOT_PRESENT), int(PayloadState.ZERO))
_SCAN = 1 << 16
# The largest disk has 64 TiB; a file of twice that costs a map of 128 MiB.
_LARGEST = 128 << 40


class Taken(NamedTuple):
    """A place in the file, in bytes, and whether it reads as zeros."""

    place: int
    is_zero: bool


class Space:
    """The map of one file, a byte a MiB up to the last that is used; for one thread at a time."""

    def __init__(self, file_size: int) -> None:
        if file_size > _LARGEST:
            raise unsupported(
                "FILE-SIZE",
                "file",
                file_size,
                "2.1",
                f"it is {file_size} bytes long, and over 128 TiB nothing is written",
            )
        self._map = bytearray()
        self._file_units = _units(file_size)
        self._stale_units = self._file_units
        self._pending: list[tuple[int, int]] = []
        self._search_from: dict[int, int] = {}
        self.anchors = 0

    @property
    def end(self) -> int:
        """Where the file could end, in bytes: behind all that was ever used."""
        return len(self._map) << _UNIT_SHIFT

    def used_end(self) -> int:
        """Return where the last used MiB ends, in bytes."""
        stop = len(self._map)
        while stop > 0:
            start = max(0, stop - _SCAN)
            found = self._map.rfind(_USED, start, stop)
            if found >= 0:
                return (found + 1) << _UNIT_SHIFT
            stop = start
        return 0

    def is_free(self, place: int, length: int) -> bool:
        """Return whether nothing lies in a range, in bytes."""
        return self._map.find(_USED, place >> _UNIT_SHIFT, _units(place + length)) < 0

    def mark(self, place: int, length: int) -> None:
        """Enter a range, in bytes, as used."""
        first, stop = place >> _UNIT_SHIFT, _units(place + length)
        while stop > len(self._map):
            self._map.extend(bytes(min(stop - len(self._map), _SCAN)))
        self._map[first:stop] = b"\1" * (stop - first)

    def take(self, length: int) -> Taken | None:
        """Return a place in the file for *length* bytes, which then is used; None if there is none."""
        count = _units(length)
        start = self._search_from.get(count, 0)
        found = self._map.find(bytes(count), start)
        self._search_from[count] = found if found >= 0 else max(0, len(self._map) - count + 1)
        if found < 0:
            # What is free at the end of the map goes on behind it.
            found = self.used_end() >> _UNIT_SHIFT
            if found + count > self._file_units:
                return None
        is_zero = found >= max(len(self._map), self._stale_units)
        self.mark(found << _UNIT_SHIFT, count << _UNIT_SHIFT)
        return Taken(found << _UNIT_SHIFT, is_zero)

    def grown_size(self, length: int, step: int) -> int:
        """Return how long the file must be, in bytes, to hold *length* more, and *step* more at least."""
        needed = len(self._map) + _units(length)
        return max(needed, self._file_units + _units(step)) << _UNIT_SHIFT

    def grow(self, size: int) -> None:
        """Take note that the file is *size* bytes long now."""
        self._file_units = size >> _UNIT_SHIFT

    def give_back(self, place: int, length: int) -> None:
        """Free a range at once, which no durable entry names."""
        first, count = place >> _UNIT_SHIFT, _units(length)
        self._map[first : first + count] = bytes(count)
        for wanted, start in self._search_from.items():
            self._search_from[wanted] = max(0, min(start, first - wanted + 1))

    def free_later(self, place: int, length: int) -> None:
        """Free a range when the change that freed it is durable."""
        self._pending.append((place, length))

    @property
    def has_pending(self) -> bool:
        """Whether space waits for a commit."""
        return bool(self._pending)

    def release(self) -> None:
        """Free what waits: the change that freed it is durable."""
        pending, self._pending = self._pending, []
        for place, length in pending:
            self.give_back(place, length)


def _units(size: int) -> int:
    return -(-size // ALIGNMENT)


def is_anchor(entry: int) -> bool:
    """Return whether an entry is a soft anchor: without content, but keeping its space (2.5.1.1)."""
    return entry & STATE_MASK in _ANCHORS and entry & OFFSET_MASK != 0


class _Mapper:
    """Enters everything that a file holds into its map, and refuses two owners of one place."""

    def __init__(
        self, bat: BlockAllocationTable, geometry: Geometry, file_size: int, *, differencing: bool
    ) -> None:
        self.space = Space(file_size)
        self._bat = bat
        self._geometry = geometry
        self._file_size = file_size
        self._differencing = differencing

    def enter_span(self, span: Span) -> None:
        if span.end > round_up(self._file_size, ALIGNMENT):
            raise corrupt(
                "REGION-RANGE",
                span.owner,
                span.start,
                "2.2.3",
                f"the {span.owner} ends at {span.end:#x}, and the file at {self._file_size:#x}; nothing is written",
            )
        if not self.space.is_free(span.start, span.end - span.start):
            raise corrupt(
                "REGION-OVERLAP",
                span.owner,
                span.start,
                "2.2.3",
                f"the {span.owner} lies on another structure",
            )
        self.space.mark(span.start, span.end - span.start)

    def enter_entries(self, first: int, entries: array[int]) -> None:
        """Enter a run of entries of the BAT, index *first* on; chunk by chunk, for the slots between."""
        ratio = self._geometry.chunk_ratio
        at = 0
        while at < len(entries):
            chunk, position = divmod(first + at, ratio + 1)
            if position == ratio:
                if self._differencing:
                    self._enter_bitmap(chunk, entries[at])
                at += 1
                continue
            stop = min(len(entries), at + ratio - position)
            block = chunk * ratio + position
            stop = min(stop, at + self._geometry.block_count - block)
            if stop <= at:  # padding in front of the last bitmap entry
                at += ratio - position
                continue
            self._enter_blocks(block, entries[at:stop])
            at = stop

    def _enter_blocks(self, block: int, entries: array[int]) -> None:
        size = self._geometry.block_size
        first = entries[0]
        if first & STATE_MASK == _FULLY_PRESENT and block + len(entries) < self._geometry.block_count:
            # Most files have their blocks one behind the other.
            last = first + size * len(entries)
            place = first & OFFSET_MASK
            if (
                place >= HEADER_SECTION_SIZE
                and place + size * len(entries) <= self._file_size
                and entries == array("Q", range(first, last, size))
                and self.space.is_free(place, size * len(entries))
            ):
                self.space.mark(place, size * len(entries))
                return
        for number, entry in enumerate(entries, block):
            if entry >= _FULLY_PRESENT:  # all others have neither content nor a place
                self._enter_block(number, entry)

    def _enter_block(self, block: int, entry: int) -> None:
        state, place = entry & STATE_MASK, entry & OFFSET_MASK
        size = self._geometry.block_size
        if state in _OF_NOBODY:
            return
        if not place and state not in (_FULLY_PRESENT, _PARTIALLY_PRESENT):
            return
        if place < HEADER_SECTION_SIZE:
            raise self._bad_block("BAT-OFFSET", block, f"it is present at {place:#x}, in the header section")
        if place + self._geometry.used_length(block) > self._file_size:
            raise self._bad_block(
                "BAT-RANGE",
                block,
                f"it lies at {place:#x}, and the file ends at {self._file_size:#x}; nothing is written",
            )
        if not self.space.is_free(place, size):
            raise self._bad_block(
                "BAT-OVERLAP",
                block,
                f"it lies at {place:#x}, on another block or structure; nothing is written",
            )
        self.space.mark(place, size)
        self.space.anchors += state in _ANCHORS

    def _enter_bitmap(self, chunk: int, entry: int) -> None:
        # Microsoft's own implementation reads the state 7 as 6.
        if entry & STATE_MASK not in (BitmapState.PRESENT, _PARTIALLY_PRESENT):
            return
        place = entry & OFFSET_MASK
        if place < HEADER_SECTION_SIZE:
            wrong = f"it is present at {place:#x}, in the header section"
        elif place + SECTOR_BITMAP_SIZE > self._file_size:
            wrong = f"it lies at {place:#x}, and the file ends at {self._file_size:#x}"
        elif not self.space.is_free(place, SECTOR_BITMAP_SIZE):
            wrong = f"it lies at {place:#x}, on another block or structure; nothing is written"
        else:
            self.space.mark(place, SECTOR_BITMAP_SIZE)
            return
        at = self._bat.place(self._geometry.bitmap_index(chunk))
        raise corrupt("BITMAP-ENTRY", f"BAT entry of sector bitmap {chunk}", at, "2.5.1.2", wrong)

    def _bad_block(self, code: str, block: int, message: str) -> CorruptImageError:
        at = self._bat.place(self._geometry.payload_index(block))
        return corrupt(code, f"BAT entry of block {block}", at, "2.5.1.1", message)


def map_space(
    bat: BlockAllocationTable,
    geometry: Geometry,
    file_size: int,
    spans: list[Span],
    next_data: Callable[[int], tuple[int, int] | None],
    *,
    differencing: bool,
) -> Space:
    """
    Return the map of a file, before its first byte is changed.

    *spans* are the ranges of regions and log.  Raises `CorruptImageError` where two structures share
    a place and where a block has its place outside the file: whoever wrote there would destroy data.
    The space that an entry with a reserved state names counts as used.
    """
    mapper = _Mapper(bat, geometry, file_size, differencing=differencing)
    mapper.space.mark(0, HEADER_SECTION_SIZE)
    for span in spans:
        mapper.enter_span(span)
    for first, entries in bat.pieces(next_data):
        mapper.enter_entries(first, entries)
    return mapper.space
