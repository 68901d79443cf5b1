"""
The block allocation table, paged in as it is needed (MS-VHDX 2.5).

It can hold 67 million entries, 512 MiB.  A page is 4 KiB of them as machine integers, and a table
that was never written to costs one shared page.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from pyvhdx._core.findings import corrupt
from pyvhdx.format.constants import BAT_ENTRY_SIZE, round_up
from pyvhdx.format.table import integers, little_endian

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyvhdx._core.geometry import Geometry
    from pyvhdx._core.pages import Pages
    from pyvhdx._types import NextData, ReadAt
    from pyvhdx.format.region import RegionTableEntry

_PAGE_SIZE = 4096
_PAGE_SHIFT = 9
_ENTRIES = _PAGE_SIZE // BAT_ENTRY_SIZE
_ZERO_PAGE = bytes(_PAGE_SIZE)
_MAX_PAGES = 1024
_PIECE = 1 << 20


class BlockAllocationTable:
    """The BAT of one file; reads are safe from any thread."""

    def __init__(
        self, pages: Pages, region: RegionTableEntry, geometry: Geometry, *, differencing: bool
    ) -> None:
        needed = geometry.entries_needed(differencing=differencing)
        if needed * BAT_ENTRY_SIZE > region.length:
            raise corrupt(
                "BAT-SIZE",
                "BAT region",
                region.file_offset,
                "2.5",
                f"{region.length} bytes do not hold the {needed} entries that the disk needs",
            )
        self._file = pages
        self._offset = region.file_offset
        self._geometry = geometry
        self._needed = needed
        self._pages: dict[int, array[int]] = {}
        self._no_entries = array("Q", _ZERO_PAGE)

    def payload(self, block: int) -> int:
        """Return the entry of a payload block."""
        return self._entry(self._geometry.payload_index(block))

    def bitmap(self, chunk: int) -> int:
        """Return the entry of the sector bitmap block of a chunk."""
        return self._entry(self._geometry.bitmap_index(chunk))

    def place(self, index: int) -> int:
        """Return the file offset of an entry, in bytes."""
        return self._offset + index * BAT_ENTRY_SIZE

    def page_of(self, index: int) -> int:
        """Return the file offset of the page that holds an entry, in bytes."""
        return self._offset + (index >> _PAGE_SHIFT) * _PAGE_SIZE

    def set(self, index: int, entry: int) -> None:
        """Change an entry in memory; its page waits for the log."""
        number = index >> _PAGE_SHIFT
        with self._file.lock:
            self._entry(index)  # raises where the file is cut
            # A page of zeros is shared by all that are alike; a reader sees the old page or the new.
            page = self._page(number)[:]
            page[index & (_ENTRIES - 1)] = entry
            self._file.put(self.page_of(index), little_endian(page))
            self._pages[number] = page

    def set_run(self, first: int, stop: int, entry: int) -> None:
        """Change the entries at index *first* up to *stop*, all in one page, as `set` does."""
        number = first >> _PAGE_SHIFT
        start = first & (_ENTRIES - 1)
        with self._file.lock:
            page = self._page(number)[:]
            page[start : start + stop - first] = array("Q", [entry]) * (stop - first)
            self._file.put(self.page_of(first), little_endian(page))
            self._pages[number] = page

    def uniform_end(self, block: int, limit: int) -> int:
        """Return how far from *block* the entries are the same, at most up to *limit*, in one page and chunk."""
        index = self._geometry.payload_index(block)
        start = index & (_ENTRIES - 1)
        ratio = self._geometry.chunk_ratio
        count = min(limit - block, _ENTRIES - start, ratio - block % ratio)
        page = self._page(index >> _PAGE_SHIFT)
        entry = self._entry(index)
        if page[start : start + count] != array("Q", [entry]) * count:
            count = next((n for n in range(1, count) if page[start + n] != entry), count)
        return block + count

    def pieces(self, next_data: NextData) -> Iterator[tuple[int, array[int]]]:
        """Yield (index of the first, entries) for all that is not zero, in order, past the cache."""
        return pieces(self._file.read, next_data, self._offset, self._needed)

    def run_end(self, block: int, limit: int) -> int:
        """Return the first block after *block* whose entry is another one, at most *limit*."""
        geometry = self._geometry
        entry = self.payload(block)
        uniform = array("Q", [entry]) * _ENTRIES
        block += 1
        while block < limit:
            index = geometry.payload_index(block)
            if index % _ENTRIES == 0 and self._page(index >> _PAGE_SHIFT) == uniform:
                block = geometry.blocks_before(index + _ENTRIES)
            elif self._entry(index) == entry:
                block += 1
            else:
                break
        return min(block, limit)

    def _entry(self, index: int) -> int:
        number = index >> _PAGE_SHIFT
        page = self._pages.get(number)
        if page is None:
            page = self._page(number)
        try:
            return page[index & (_ENTRIES - 1)]
        except IndexError:
            raise corrupt(
                "BAT-CUT", "BAT entry", self.place(index), "2.5", "the file ends before this entry"
            ) from None

    def _page(self, number: int) -> array[int]:
        page = self._pages.get(number)
        if page is None:
            with self._file.lock:  # or a page that was changed meanwhile would be put back as it was
                data = self._file.read(_PAGE_SIZE, self._offset + number * _PAGE_SIZE)
                # A page that the end of the file cuts lacks entries; they are missed when they are asked for.
                page = (
                    self._no_entries
                    if data == _ZERO_PAGE
                    else integers("Q", data[: len(data) & -BAT_ENTRY_SIZE])
                )
                if len(self._pages) >= _MAX_PAGES:
                    self._pages.clear()
                self._pages[number] = page
        return page


def pieces(read: ReadAt, next_data: NextData, offset: int, count: int) -> Iterator[tuple[int, array[int]]]:
    """
    Yield (index of the first, entries) for all that is not zero of *count* entries from *offset* on.

    *next_data* tells where the file has data; what lies between reads as zeros.
    """
    end = offset + count * BAT_ENTRY_SIZE
    at = offset
    while at < end and (run := next_data(at)) is not None and run[0] < end:
        # In whole pages, however finely the file system counts: no entry may come twice.
        at = max(at, run[0] & -_PAGE_SIZE)
        stop = min(end, round_up(run[1], _PAGE_SIZE))
        while at < stop:
            data = read(min(_PIECE, stop - at), at)
            data = data[: len(data) & -BAT_ENTRY_SIZE]
            if not data:
                return
            yield (at - offset) // BAT_ENTRY_SIZE, integers("Q", data)
            at += len(data)
