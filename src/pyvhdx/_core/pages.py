"""
Pages of metadata, 4 KiB each: those that were changed wait here for the log.

What waits is the truth: everything that reads metadata of an open file reads through `Pages`.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from pyvhdx.format.constants import LOG_SECTOR_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pyvhdx._types import ReadAt

PAGE_SIZE = LOG_SECTOR_SIZE


class Pages:
    """
    The metadata of a file: what is in place, under the pages that wait.

    `lock` keeps a reader that brings a page into a cache apart from a writer that changes it; no
    payload is read or written under it.
    """

    def __init__(self, read: ReadAt) -> None:
        self.lock = threading.RLock()
        self._read = read
        self._waiting: dict[int, bytes] = {}

    def read(self, size: int, offset: int) -> bytes:
        """Return *size* bytes from *offset*, fewer only at the end of the file."""
        with self.lock:
            data = self._read(size, offset)
            first = offset - offset % PAGE_SIZE
            for at in range(first, offset + size, PAGE_SIZE) if self._waiting else ():
                page = self._waiting.get(at)
                if page is not None:
                    start, stop = max(at, offset), min(at + PAGE_SIZE, offset + size)
                    data = data[: start - offset] + page[start - at : stop - at] + data[stop - offset :]
            return data

    def put(self, at: int, page: bytes) -> None:
        """Let the page at file offset *at* wait in place of what was there."""
        assert len(page) == PAGE_SIZE, "the file ends inside the page"
        self._waiting[at] = page

    def write(self, data: bytes, offset: int) -> None:
        """Change *data* at *offset*, in pages that are read first where they are not covered."""
        with self.lock:
            for at in pages_of(offset, len(data)):
                page = self.read(PAGE_SIZE, at)
                start, stop = max(at, offset), min(at + PAGE_SIZE, offset + len(data))
                self.put(at, page[: start - at] + data[start - offset : stop - offset] + page[stop - at :])

    def waiting(self) -> dict[int, bytes]:
        """Return the pages that wait, by file offset."""
        return dict(self._waiting)

    def count_with(self, more: Iterable[int]) -> int:
        """Return how many would wait if those at *more* did too."""
        return len(self._waiting) + sum(at not in self._waiting for at in more)

    def settle(self) -> None:
        """Forget the pages that wait: they are in place."""
        with self.lock:
            self._waiting.clear()


def pages_of(offset: int, length: int) -> range:
    """Return the file offsets of the pages that a range touches."""
    return range(offset - offset % PAGE_SIZE, offset + length, PAGE_SIZE)
