"""The block allocation table as a check reads it: in order, in runs of like entries (MS-VHDX 2.5)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyvhdx._core.bat import pieces
from pyvhdx.format import constants as c

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterator

    from pyvhdx._core.geometry import Geometry
    from pyvhdx._core.regions import Span
    from pyvhdx._types import NextData, ReadAt


class Table(NamedTuple):
    """The table of one file and what its entries are measured by; *spans* are regions and log."""

    read: ReadAt
    next_data: NextData
    offset: int
    length: int
    geometry: Geometry
    kind: str
    creator: str
    file_size: int
    spans: list[Span]

    @property
    def needed(self) -> int:
        """How many entries the disk needs."""
        return self.geometry.entries_needed(differencing=self.kind == "differencing")

    @property
    def held(self) -> int:
        """How many entries the region holds, as far as it lies in the file."""
        end = min(self.offset + self.length, self.file_size)
        return max(0, end - self.offset) // c.BAT_ENTRY_SIZE

    def place(self, index: int) -> int:
        """Return the file offset of an entry."""
        return self.offset + index * c.BAT_ENTRY_SIZE

    def owner_at(self, unit: int, count: int) -> str | None:
        """Return what of header section, regions and log lies in a range of so many MiB."""
        start, end = unit << 20, unit + count << 20
        if start < c.HEADER_SECTION_SIZE:
            return "header section"
        return next((span.owner for span in self.spans if span.start < end and start < span.end), None)

    def all_pieces(self) -> Iterator[tuple[int, array[int]]]:
        return pieces(self.read, self.next_data, self.offset, min(self.needed, self.held))

    def entries(self) -> Iterator[tuple[int, int | None, array[int]]]:
        """Yield all that is not zero as `segments` does, without what no block and no bitmap needs."""
        is_child = self.kind == "differencing"
        for first, entries in self.all_pieces():
            for number, index, part in self.segments(first, entries):
                if is_child if index is not None else number < self.geometry.block_count:
                    yield number, index, part

    def segments(self, first: int, entries: array[int]) -> Iterator[tuple[int, int | None, array[int]]]:
        """
        Take a run of entries apart: yield (block, None, entries) and (chunk, index, one entry).

        The first are payload blocks from *block* on, the second the slot of a chunk's sector bitmap.
        Entries that no block needs are yielded with the number of a block behind the last.
        """
        ratio = self.geometry.chunk_ratio
        at = 0
        while at < len(entries):
            chunk, position = divmod(first + at, ratio + 1)
            if position == ratio:
                yield chunk, first + at, entries[at : at + 1]
                at += 1
                continue
            stop = min(len(entries), at + ratio - position)
            block = chunk * ratio + position
            if block < self.geometry.block_count < block + stop - at:
                stop = at + self.geometry.block_count - block
            yield block, None, entries[at:stop]
            at = stop
