"""
The block allocation table, paged in as it is needed (MS-VHDX 2.5).

It can hold 67 million entries, 512 MiB.  A page is 4 KiB of them as machine integers, and a table
that was never written to costs one shared page.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from pyvhdx._core.findings import corrupt
from pyvhdx.format.constants import BAT_ENTRY_SIZE
from pyvhdx.format.table import integers

if TYPE_CHECKING:
    from pyvhdx._core.geometry import Geometry
    from pyvhdx._types import ReadAt
    from pyvhdx.format.region import RegionTableEntry

_PAGE_SIZE = 4096
_PAGE_SHIFT = 9
_ENTRIES = _PAGE_SIZE // BAT_ENTRY_SIZE
_ZERO_PAGE = bytes(_PAGE_SIZE)
_MAX_PAGES = 4096


class BlockAllocationTable:
    """The BAT of one file; reads are safe from any thread."""

    def __init__(
        self, read: ReadAt, region: RegionTableEntry, geometry: Geometry, *, differencing: bool
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
        self._read = read
        self._offset = region.file_offset
        self._geometry = geometry
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
            data = self._read(_PAGE_SIZE, self._offset + number * _PAGE_SIZE)
            # A page that the end of the file cuts lacks entries; they are missed when they are asked for.
            page = (
                self._no_entries if data == _ZERO_PAGE else integers("Q", data[: len(data) & -BAT_ENTRY_SIZE])
            )
            if len(self._pages) >= _MAX_PAGES:
                self._pages = {}
            self._pages[number] = page
        return page
