"""A file as it will be when a set of pages and zeroed ranges has been written to it."""

from __future__ import annotations

import io
from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pyvhdx._types import Buffer
    from pyvhdx.storage.protocol import Storage

_ZEROS = bytes(1 << 16)


class Overlay:
    """
    A read-only `Storage` over another one.

    *pages* maps offsets to runs of *page_size* bytes; *zeroed* are the starts and the ends of
    ranges, sorted and apart from one another, that read as zeros except where a page lies on them.
    All of them are multiples of *page_size*.  The file is at least *size* bytes long.
    """

    def __init__(
        self,
        below: Storage,
        pages: Mapping[int, bytes],
        zeroed: tuple[Sequence[int], Sequence[int]],
        size: int,
        page_size: int,
    ) -> None:
        self.name = below.name
        self._below = below
        self._pages = pages
        self._page_offsets = sorted(pages)
        self._zero_starts, self._zero_ends = zeroed
        self._page_size = page_size
        self._below_size = below.size()
        self._size = max(size, self._below_size)

    def read_at(self, size: int, offset: int) -> bytes:
        size = max(0, min(size, self._size - offset))
        if self._is_untouched(offset, offset + size):
            data = self._below.read_at(size, offset)
            if len(data) == size:
                return data
        buffer = bytearray(size)
        done = self.read_into(memoryview(buffer), offset)
        return bytes(buffer[:done])

    def read_into(self, buffer: memoryview, offset: int) -> int:
        size = max(0, min(len(buffer), self._size - offset))
        inside = max(0, min(size, self._below_size - offset))
        done = self._below.read_into(buffer[:inside], offset) if inside else 0
        if done < inside:  # the file below became shorter: what is lost is not zeros
            size = done
        end = offset + size
        _zero(buffer[done:size])
        first = bisect_right(self._zero_ends, offset)
        last = bisect_left(self._zero_starts, end)
        for start, stop in zip(self._zero_starts[first:last], self._zero_ends[first:last], strict=True):
            _zero(buffer[max(start - offset, 0) : min(stop, end) - offset])
        for at in self._pages_in(offset, end):
            page = self._pages[at]
            skip = max(offset - at, 0)
            piece = page[skip : end - at]
            buffer[at + skip - offset : at + skip - offset + len(piece)] = piece
        return size

    def _pages_in(self, offset: int, end: int) -> list[int]:
        first = bisect_right(self._page_offsets, offset - self._page_size)
        return self._page_offsets[first : bisect_left(self._page_offsets, end)]

    def _is_untouched(self, offset: int, end: int) -> bool:
        return not self._pages_in(offset, end) and (
            bisect_right(self._zero_ends, offset) == bisect_left(self._zero_starts, end)
        )

    def write_at(self, data: Buffer, offset: int) -> None:  # noqa: ARG002 - never called
        raise _read_only()

    def flush(self) -> None:
        raise _read_only()

    def truncate(self, size: int) -> None:  # noqa: ARG002 - never called
        raise _read_only()

    def reserve(self, offset: int, length: int) -> None:  # noqa: ARG002 - never called
        raise _read_only()

    def size(self) -> int:
        return self._size

    def allocated(self) -> int:
        return self._below.allocated()

    def next_data(self, offset: int) -> tuple[int, int] | None:
        run = self._below.next_data(offset) if offset < self._below_size else None
        if run is not None and run[0] >= self._below_size:
            run = None
        # A page may lie where the file below has a hole, or behind its end.
        for at in self._page_offsets[bisect_right(self._page_offsets, offset - self._page_size) :]:
            page = max(at, offset), at + self._page_size
            return page if run is None or page[0] < run[0] else run
        return run

    def close(self) -> None:
        self._below.close()


def _zero(view: memoryview) -> None:
    while view:
        view[: len(_ZEROS)] = _ZEROS[: len(view)]
        view = view[len(_ZEROS) :]


def _read_only() -> io.UnsupportedOperation:
    return io.UnsupportedOperation("an overlay is never written to")
