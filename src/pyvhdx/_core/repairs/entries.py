"""A table of BAT entries of which some are to be changed; only their pages are held."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from pyvhdx.format.constants import BAT_ENTRY_SIZE, LOG_SECTOR_SIZE
from pyvhdx.format.table import integers, little_endian

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyvhdx._types import ReadAt

_ENTRIES = LOG_SECTOR_SIZE // BAT_ENTRY_SIZE


class EditedTable:
    """The entries at file offset *offset*, as they should be."""

    def __init__(self, read: ReadAt, offset: int) -> None:
        self._read = read
        self._offset = offset
        self._pages: dict[int, array[int]] = {}
        self._last: tuple[int, array[int]] = (-1, array("Q"))

    def get(self, index: int) -> int:
        """Return an entry."""
        return self._page(index // _ENTRIES)[index % _ENTRIES]

    def set(self, index: int, entry: int) -> None:
        """Change an entry, unless it is that already."""
        number = index // _ENTRIES
        page = self._page(number)
        if page[index % _ENTRIES] != entry:
            page[index % _ENTRIES] = entry
            self._pages[number] = page

    def edits(self) -> Iterator[tuple[int, bytes]]:
        """Yield (file offset, bytes) of the pages that change, in order."""
        for number, page in sorted(self._pages.items()):
            yield self._offset + number * LOG_SECTOR_SIZE, little_endian(page)

    def __bool__(self) -> bool:
        return bool(self._pages)

    def _page(self, number: int) -> array[int]:
        page = self._pages.get(number)
        if page is not None:
            return page
        if self._last[0] != number:
            data = self._read(LOG_SECTOR_SIZE, self._offset + number * LOG_SECTOR_SIZE)
            self._last = number, integers("Q", data.ljust(LOG_SECTOR_SIZE, b"\0"))
        return self._last[1]
