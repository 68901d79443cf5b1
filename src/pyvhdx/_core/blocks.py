"""
Which file, and which place in it, decides each byte of the virtual disk (MS-VHDX 2.4, 2.5).

`BlockMap` decides and touches no payload: `plan_read` and `plan_write` return what is to be done,
`adopt` and `set_entry` change the map once it has been done.  What can be wrong about a block is
found here, when the block is used: a bad entry spoils its own block and no other.

Readers take no lock.  `version` moves before anything changes under which a reader could come to
wrong bytes: space that gets another owner, and bits that are cleared.  Who finds it moved after a
read looks again.
"""

from __future__ import annotations

from bisect import bisect_right
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from pyvhdx._core import bitmap
from pyvhdx._core.findings import corrupt
from pyvhdx._core.pages import PAGE_SIZE, pages_of
from pyvhdx._core.space import is_anchor
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
    from pyvhdx._core.pages import Pages
    from pyvhdx._core.regions import Span
    from pyvhdx.errors import CorruptImageError, ImageError

_NOT_PRESENT = int(PayloadState.NOT_PRESENT)
_FULLY_PRESENT = int(PayloadState.FULLY_PRESENT)
_PARTIALLY_PRESENT = int(PayloadState.PARTIALLY_PRESENT)
_READ_AS_ZERO = {int(state) for state in (PayloadState.UNDEFINED, PayloadState.ZERO, PayloadState.UNMAPPED)}

_BITMAP_PAGE = PAGE_SIZE
_MAX_BITMAP_PAGES = 512
_MAX_PLACES = 1 << 16


class Kind(Enum):
    """
    Who decides a range: this file by its bytes, this file by calling it zero, or not this file.

    UNREADABLE: nobody can say; only files that are opened for salvage have such ranges.
    """

    DATA = "data"
    ZERO = "zero"
    ABSENT = "absent"
    UNREADABLE = "unreadable"


class Segment(NamedTuple):
    """*length* virtual bytes from *offset* on; *file_offset* is 0 unless the kind is DATA."""

    kind: Kind
    offset: int
    length: int
    file_offset: int


class BlockWrite(NamedTuple):
    """
    How a part of one block is written; *start* and *end* are bytes in the block.

    They are the caller's, moved out to whole sectors where the sectors at the ends must be completed
    with what they read as now.  *place* is where the block lies; None: it needs space.  *state* is
    its state afterwards, *ones* are the sectors (first, count) whose bits are 1 then; with *exact*
    all its other bits are 0.  With *zero_rest* everything around reads as zeros afterwards.
    """

    start: int
    end: int
    place: int | None
    state: int
    ones: tuple[int, int] | None = None
    exact: bool = False
    zero_rest: bool = False
    needs_bitmap: bool = False


class BlockMap:
    """The map of one file from virtual ranges to segments; safe for readers from any thread."""

    # Whether a range that cannot be read is a segment of its own, and no error.
    has_unreadable = False

    def __init__(
        self,
        geometry: Geometry,
        bat: BlockAllocationTable,
        pages: Pages,
        file_size: int,
        taken: Iterable[Span],
        *,
        differencing: bool,
    ) -> None:
        self._geometry = geometry
        self._bat = bat
        self._pages = pages
        self.file_size = file_size
        self.version = 0
        self.taken = list(taken)
        self._differencing = differencing
        self._bitmap_pages: dict[int, bytes] = {}
        # Where each block lies that is known to be wholly present and rightly placed.
        self.places: dict[int, int] = {}

    @property
    def taken(self) -> list[Span]:
        """The ranges that no block may touch, in order and apart from one another."""
        return self._taken

    @taken.setter
    def taken(self, spans: list[Span]) -> None:
        self._taken: list[Span] = []
        for span in sorted(spans):
            if self._taken and span.start < self._taken[-1].end:  # an empty log may lie on a region
                before = self._taken.pop()
                span = before._replace(end=max(before.end, span.end))  # noqa: PLW2901 - one of two
            if span.start < span.end:
                self._taken.append(span)
        self._taken_ends = [span.end for span in self._taken]

    def fault(self, offset: int) -> ImageError | OSError | None:  # noqa: ARG002 - a salvage knows some
        """Return why the byte at *offset* of the disk is UNREADABLE; None where it is the parent's."""
        return None

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
                    place = self._remember(block, entry)
                elif state == _PARTIALLY_PRESENT:
                    yield from self._partial_segments(block, entry, offset, stop)
                    offset = stop
                    continue
                else:
                    kind = self._kind_of_absence(block, state)
                    if end > stop:
                        stop = min(end, self.absence_end(block, kind, ((end - 1) >> shift) + 1) << shift)
                    yield Segment(kind, offset, stop - offset, 0)
                    offset = stop
                    continue
            yield Segment(Kind.DATA, offset, stop - offset, place + offset - start)
            offset = stop

    def _remember(self, block: int, entry: int) -> int:
        """Return where a wholly present block lies, and keep that as long as it is true."""
        place = self._locate(block, entry)
        with self._pages.lock:
            if self._bat.payload(block) == entry:
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
        self._check_may_be_partial(block)
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
                with self._pages.lock:  # or a page that was changed meanwhile would be put back as it was
                    page = self._pages.read(_BITMAP_PAGE, page_at)
                    if len(page) < _BITMAP_PAGE:
                        raise corrupt(
                            "BITMAP-RANGE", "sector bitmap", page_at, "2.4", "the file ends inside it"
                        )
                    if len(self._bitmap_pages) >= _MAX_BITMAP_PAGES:
                        self._bitmap_pages.clear()
                    self._bitmap_pages[page_at] = page
            pieces.append(page[start - page_at : stop - page_at])
            start = page_at + _BITMAP_PAGE
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    # -- writing ------------------------------------------------------------------------------

    def plan_write(self, block: int, start: int, end: int) -> BlockWrite:
        """
        Return how bytes *start* to *end* of a block, inside the disk, are written (2.5.1.1).

        Raises `CorruptImageError` for an entry that no block may have.
        """
        entry = self._bat.payload(block)
        state = entry & STATE_MASK
        whole = start == 0 and end == self._geometry.used_length(block)
        if state == _FULLY_PRESENT:
            return BlockWrite(start, end, self._remember(block, entry), state)
        if state == _PARTIALLY_PRESENT:
            self._check_may_be_partial(block)
            place = self._locate(block, entry)
            if whole:
                return BlockWrite(start, end, place, _FULLY_PRESENT)
            return self._with_ones(start, end, place, self._block_bits(block))
        self._kind_of_absence(block, state)
        place_kept = entry & OFFSET_MASK if is_anchor(entry) else None
        if self._differencing and state == _NOT_PRESENT and not whole:
            # Elsewhere in the block the parent shows through.
            plan = self._with_ones(start, end, None, bytes(self._geometry.bitmap_bytes_per_block))
            return plan._replace(exact=True, needs_bitmap=not self._has_bitmap(block))
        return BlockWrite(start, end, place_kept, _FULLY_PRESENT, zero_rest=not whole)

    def _with_ones(self, start: int, end: int, place: int | None, bits: bytes) -> BlockWrite:
        shift = self._geometry.sector_shift
        first, last = start >> shift, end - 1 >> shift
        if not bitmap.is_one(bits, first):
            start = first << shift
        if not bitmap.is_one(bits, last):
            end = last + 1 << shift
        return BlockWrite(start, end, place, _PARTIALLY_PRESENT, ones=(first, last - first + 1))

    def pages_changed(self, block: int, plan: BlockWrite) -> set[int]:
        """Return the file offsets of the pages that exist and that *plan* may change."""
        entry = self._bat.payload(block)
        if plan.place is not None and entry == plan.place | plan.state:
            if plan.ones is None:
                return set()
            first, count = plan.ones
            return set(
                pages_of(self._bits_place(block) + first // 8, (first + count - 1) // 8 - first // 8 + 1)
            )
        pages = {self.entry_page(block)} | self.bitmap_pages(block)
        if plan.needs_bitmap:
            pages.add(self._bat.page_of(self._geometry.bitmap_index(block // self._geometry.chunk_ratio)))
        return pages

    def bitmap_pages(self, block: int) -> set[int]:
        """Return the file offsets of the pages that hold a block's bits; none where it has none."""
        if not self._differencing or not self._has_bitmap(block):
            return set()
        return set(pages_of(self._bits_place(block), self._geometry.bitmap_bytes_per_block))

    def entry(self, block: int) -> int:
        """Return the BAT entry of a block."""
        return self._bat.payload(block)

    def entry_page(self, block: int) -> int:
        """Return the file offset of the page with a block's BAT entry."""
        return self._bat.page_of(self._geometry.payload_index(block))

    def run_end(self, block: int, limit: int) -> int:
        """Return the first block after *block* whose entry is another one, at most *limit*."""
        return self._bat.run_end(block, limit)

    def absence_end(self, block: int, kind: Kind, limit: int) -> int:
        """Return the first block after *block*, which reads as *kind*, that does not; at most *limit*."""
        states = _READ_AS_ZERO if kind is Kind.ZERO else {_NOT_PRESENT}
        return self._bat.first_where(block + 1, limit, lambda entry: entry & STATE_MASK not in states)

    def first_anchor(self, block: int, limit: int) -> int:
        """Return the first block from *block* on that is a soft anchor, at most *limit*."""
        return self._bat.first_where(block, limit, is_anchor)

    def uniform_end(self, block: int, limit: int) -> int:
        """
        Return up to where the entries may be changed as one by `set_run`, at most *limit*.

        That is one block where there is content, space or a bitmap to take care of.
        """
        if self._bat.payload(block) > STATE_MASK or (self._differencing and self._has_bitmap(block)):
            return block + 1
        return self._bat.uniform_end(block, limit)

    def set_run(self, first: int, stop: int, entry: int) -> None:
        """Change the entries of blocks *first* up to *stop*, as far as `uniform_end` says."""
        index = self._geometry.payload_index(first)
        self._bat.set_run(index, index + stop - first, entry)

    def kind_of_absence(self, block: int) -> Kind | None:
        """Return what a block without content reads as; None for one with content."""
        state = self._bat.payload(block) & STATE_MASK
        if state == _PARTIALLY_PRESENT:
            self._check_may_be_partial(block)
        return None if state in (_FULLY_PRESENT, _PARTIALLY_PRESENT) else self._kind_of_absence(block, state)

    def add_bitmap(self, block: int, place: int) -> None:
        """Enter a new sector bitmap block, all zeros, for the chunk of a block."""
        index = self._geometry.bitmap_index(block // self._geometry.chunk_ratio)
        self._bat.set(index, place | BitmapState.PRESENT)

    def adopt(self, block: int, plan: BlockWrite, place: int) -> None:
        """Let the map show what was written at *place* by *plan*."""
        if plan.ones is not None:
            bits = bytes(self._geometry.bitmap_bytes_per_block) if plan.exact else self._block_bits(block)
            self._put_bits(block, bitmap.with_ones(bits, *plan.ones))
        if self._bat.payload(block) != place | plan.state:
            self.set_entry(block, place | plan.state)

    def set_entry(self, block: int, entry: int) -> None:
        """Change a block's BAT entry; the bits of one that is not PARTIALLY_PRESENT become 0."""
        with self._pages.lock:
            self._bat.set(self._geometry.payload_index(block), entry)
            self.places.pop(block, None)
        if entry & STATE_MASK == _FULLY_PRESENT:
            self._remember(block, entry)
        if self._differencing and entry & STATE_MASK != _PARTIALLY_PRESENT and self._has_bitmap(block):
            # Who found the old entry must not take the cleared bits for the block's.
            self.version += 1
            self._put_bits(block, bytes(self._geometry.bitmap_bytes_per_block))

    def _has_bitmap(self, block: int) -> bool:
        entry = self._bat.bitmap(block // self._geometry.chunk_ratio)
        return entry & STATE_MASK in (BitmapState.PRESENT, _PARTIALLY_PRESENT)

    def _bits_place(self, block: int) -> int:
        chunk, number = divmod(block, self._geometry.chunk_ratio)
        return self._locate_bitmap(chunk, block) + number * self._geometry.bitmap_bytes_per_block

    def _block_bits(self, block: int) -> bytes:
        return self._bits(self._bits_place(block), 0, 8 * self._geometry.bitmap_bytes_per_block - 1)

    def _put_bits(self, block: int, bits: bytes) -> None:
        """Change the pages of a block's bits that are not right yet."""
        place = self._bits_place(block)
        for at in pages_of(place, len(bits)):
            start, stop = max(at, place), min(at + _BITMAP_PAGE, place + len(bits))
            piece = bits[start - place : stop - place]
            with self._pages.lock:
                if self._bits(start, 0, 8 * len(piece) - 1) != piece:
                    self._pages.write(piece, start)
                    self._bitmap_pages[at] = self._pages.read(_BITMAP_PAGE, at)

    # -- what can be wrong --------------------------------------------------------------------

    def _check_may_be_partial(self, block: int) -> None:
        if not self._differencing:
            raise self._bad_entry(
                "BAT-STATE", block, "its state PARTIALLY_PRESENT belongs in differencing files only"
            )

    def _locate(self, block: int, entry: int) -> int:
        """Return the file offset of a present block, after a look at all that it must not touch."""
        place = entry & OFFSET_MASK
        if place < HEADER_SECTION_SIZE:
            raise self._bad_entry("BAT-OFFSET", block, f"it is present at {place:#x}, in the header section")
        # The disk may end inside its last block, and some writers end the file there too.
        if self._payload_end(block, place) > self.file_size:
            raise self._bad_entry(
                "BAT-RANGE", block, f"it lies at {place:#x}, and the file ends at {self.file_size:#x}"
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
        elif self._bitmap_end(block, place) > self.file_size:
            wrong = f"it lies at {place:#x}, and the file ends at {self.file_size:#x}"
        elif owner := self._owner(place, place + SECTOR_BITMAP_SIZE):
            wrong = f"it lies at {place:#x}, on the {owner}"
        else:
            return place
        at = self._bat.place(self._geometry.bitmap_index(chunk))
        message = f"{wrong}, and block {block} is PARTIALLY_PRESENT"
        raise corrupt("BITMAP-ENTRY", f"BAT entry of sector bitmap {chunk}", at, "2.5.1.2", message)

    def _payload_end(self, block: int, place: int) -> int:
        """Return up to where the file must reach for a block at *place*."""
        return place + self._geometry.used_length(block)

    def _bitmap_end(self, block: int, place: int) -> int:  # noqa: ARG002 - a salvage asks for less
        """Return up to where the file must reach for the bits of a block, in a bitmap at *place*."""
        return place + SECTOR_BITMAP_SIZE

    def _owner(self, start: int, end: int) -> str | None:
        at = bisect_right(self._taken_ends, start)
        return self._taken[at].owner if at < len(self._taken) and self._taken[at].start < end else None

    def _bad_entry(self, code: str, block: int, message: str) -> CorruptImageError:
        at = self._bat.place(self._geometry.payload_index(block))
        return corrupt(code, f"BAT entry of block {block}", at, "2.5.1.1", message)
