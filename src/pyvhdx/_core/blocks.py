"""
Which file, and which place in it, decides each byte of the virtual disk (MS-VHDX 2.4, 2.5).

`BlockMap` decides and reads no payload.  What can be wrong about a block is found here, when the
block is used: a bad entry spoils its own block and no other.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from pyvhdx._core import bitmap
from pyvhdx._core.findings import corrupt
from pyvhdx.format.constants import (
    HEADER_SECTION_SIZE,
    OFFSET_MASK,
    SECTOR_BITMAP_SIZE,
    STATE_MASK,
    BitmapState,
    PayloadState,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pyvhdx._core.bat import BlockAllocationTable
    from pyvhdx._core.geometry import Geometry
    from pyvhdx._core.regions import Span
    from pyvhdx._types import ReadAt
    from pyvhdx.errors import CorruptImageError

_NOT_PRESENT = int(PayloadState.NOT_PRESENT)
_FULLY_PRESENT = int(PayloadState.FULLY_PRESENT)
_PARTIALLY_PRESENT = int(PayloadState.PARTIALLY_PRESENT)
_READ_AS_ZERO = {int(state) for state in (PayloadState.UNDEFINED, PayloadState.ZERO, PayloadState.UNMAPPED)}

_BITMAP_PAGE = 4096
_MAX_BITMAP_PAGES = 2048
_MAX_PLACES = 1 << 16


class Kind(Enum):
    """Who decides a range: this file by its bytes, this file by calling it zero, or not this file."""

    DATA = "data"
    ZERO = "zero"
    ABSENT = "absent"


class Segment(NamedTuple):
    """*length* virtual bytes from *offset* on; *file_offset* is 0 unless the kind is DATA."""

    kind: Kind
    offset: int
    length: int
    file_offset: int


class BlockMap:
    """The map of one file from virtual ranges to segments; safe from any thread."""

    def __init__(
        self,
        geometry: Geometry,
        bat: BlockAllocationTable,
        read: ReadAt,
        file_size: int,
        taken: Iterable[Span],
        *,
        differencing: bool,
    ) -> None:
        self._geometry = geometry
        self._bat = bat
        self._read = read
        self._file_size = file_size
        self._taken = [span for span in taken if span.start < span.end]
        self._differencing = differencing
        self._bitmap_pages: dict[int, bytes] = {}
        # Where each block lies that is known to be wholly present and rightly placed.
        self.places: dict[int, int] = {}

    def plan_read(self, offset: int, length: int) -> Iterator[Segment]:
        """Yield the segments of a range that lies inside the disk, neighbours joined."""
        joined: Segment | None = None
        for segment in self._segments(offset, offset + length):
            if joined is None:
                joined = segment
            elif segment.kind is joined.kind and (
                segment.kind is not Kind.DATA or segment.file_offset == joined.file_offset + joined.length
            ):
                joined = joined._replace(length=joined.length + segment.length)
            else:
                yield joined
                joined = segment
        if joined is not None:
            yield joined

    def _segments(self, offset: int, end: int) -> Iterator[Segment]:
        geometry, bat = self._geometry, self._bat
        shift = geometry.block_shift
        while offset < end:
            block = offset >> shift
            start = block << shift
            stop = min(end, start + geometry.block_size)
            place = self.places.get(block)
            if place is None:
                entry = bat.payload(block)
                state = entry & STATE_MASK
                if state == _FULLY_PRESENT:
                    place = self._remember(block, self._locate(block, entry))
                elif state == _PARTIALLY_PRESENT:
                    yield from self._partial_segments(block, entry, offset, stop)
                    offset = stop
                    continue
                else:
                    kind = self._kind_of_absence(block, state)
                    if end > stop:
                        stop = min(end, bat.run_end(block, ((end - 1) >> shift) + 1) << shift)
                    yield Segment(kind, offset, stop - offset, 0)
                    offset = stop
                    continue
            yield Segment(Kind.DATA, offset, stop - offset, place + offset - start)
            offset = stop

    def _remember(self, block: int, place: int) -> int:
        if len(self.places) >= _MAX_PLACES:
            self.places.clear()
        self.places[block] = place
        return place

    def _kind_of_absence(self, block: int, state: int) -> Kind:
        if state == _NOT_PRESENT:
            return Kind.ABSENT
        if state in _READ_AS_ZERO:
            return Kind.ZERO
        raise self._bad_entry("BAT-STATE", block, f"its state {state} is reserved")

    def _partial_segments(self, block: int, entry: int, offset: int, end: int) -> Iterator[Segment]:
        geometry = self._geometry
        if not self._differencing:
            raise self._bad_entry(
                "BAT-STATE", block, "its state PARTIALLY_PRESENT belongs in differencing files only"
            )
        place = self._locate(block, entry)
        chunk, number = divmod(block, geometry.chunk_ratio)
        bits_at = self._locate_bitmap(chunk, block)
        shift = geometry.sector_shift
        start = block << geometry.block_shift
        first = (offset - start) >> shift
        last = (end - 1 - start) >> shift
        bits = self._bits(bits_at + number * geometry.bitmap_bytes_per_block, first, last)
        at = offset
        for present, count in bitmap.runs(bits, first & 7, last - first + 1):
            # The first and the last sector may be asked for in part.
            stop = min(end, (((at >> shift) + count) << shift))
            if present:
                yield Segment(Kind.DATA, at, stop - at, place + at - start)
            else:
                yield Segment(Kind.ABSENT, at, stop - at, 0)
            at = stop

    def _bits(self, place: int, first: int, last: int) -> bytes:
        """Return the bytes of a block's bits that hold sectors *first* to *last*."""
        start, stop = place + first // 8, place + last // 8 + 1
        pieces = []
        while start < stop:
            page_at = start - start % _BITMAP_PAGE
            page = self._bitmap_pages.get(page_at)
            if page is None:
                page = self._read(_BITMAP_PAGE, page_at)
                if len(page) < _BITMAP_PAGE:
                    raise corrupt("BITMAP-RANGE", "sector bitmap", page_at, "2.4", "the file ends inside it")
                if len(self._bitmap_pages) >= _MAX_BITMAP_PAGES:
                    self._bitmap_pages.clear()
                self._bitmap_pages[page_at] = page
            pieces.append(page[start - page_at : stop - page_at])
            start = page_at + _BITMAP_PAGE
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _locate(self, block: int, entry: int) -> int:
        """Return the file offset of a present block, after a look at all that it must not touch."""
        place = entry & OFFSET_MASK
        if place < HEADER_SECTION_SIZE:
            raise self._bad_entry("BAT-OFFSET", block, f"it is present at {place:#x}, in the header section")
        # The disk may end inside its last block, and some writers end the file there too.
        if place + self._geometry.used_length(block) > self._file_size:
            raise self._bad_entry(
                "BAT-RANGE", block, f"it lies at {place:#x}, and the file ends at {self._file_size:#x}"
            )
        owner = self._owner(place, place + self._geometry.block_size)
        if owner:
            raise self._bad_entry("BAT-OVERLAP", block, f"it lies at {place:#x}, on the {owner}")
        return place

    def _locate_bitmap(self, chunk: int, block: int) -> int:
        entry = self._bat.bitmap(chunk)
        place, state = entry & OFFSET_MASK, entry & STATE_MASK
        # Microsoft's own implementation reads the state 7 as 6.
        if state not in (BitmapState.PRESENT, _PARTIALLY_PRESENT):
            wrong = f"its state is {state}"
        elif place < HEADER_SECTION_SIZE:
            wrong = f"it is present at {place:#x}, in the header section"
        elif place + SECTOR_BITMAP_SIZE > self._file_size:
            wrong = f"it lies at {place:#x}, and the file ends at {self._file_size:#x}"
        elif owner := self._owner(place, place + SECTOR_BITMAP_SIZE):
            wrong = f"it lies at {place:#x}, on the {owner}"
        else:
            return place
        at = self._bat.place(self._geometry.bitmap_index(chunk))
        message = f"{wrong}, and block {block} is PARTIALLY_PRESENT"
        raise corrupt("BITMAP-ENTRY", f"BAT entry of sector bitmap {chunk}", at, "2.5.1.2", message)

    def _owner(self, start: int, end: int) -> str | None:
        return next((span.owner for span in self._taken if span.start < end and start < span.end), None)

    def _bad_entry(self, code: str, block: int, message: str) -> CorruptImageError:
        at = self._bat.place(self._geometry.payload_index(block))
        return corrupt(code, f"BAT entry of block {block}", at, "2.5.1.1", message)
