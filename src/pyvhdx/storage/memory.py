"""A file in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyvhdx._types import Buffer

_PAGE = 1 << 12
_ZEROS = bytes(_PAGE)


class MemoryStorage:
    """
    A `Storage` in memory that takes no more room than what was written to it.

    One thread writes at a time.
    """

    def __init__(self, data: Buffer = b"", name: str = "<memory>") -> None:
        self.name = name
        self._pages: dict[int, bytes] = {}  # never changed in place: copies share them
        self._size = 0
        self._closed = False
        self.write_at(data, 0)

    def read_at(self, size: int, offset: int) -> bytes:
        buffer = bytearray(max(0, min(size, self._size - offset)))
        self.read_into(memoryview(buffer), offset)
        return bytes(buffer)

    def read_into(self, buffer: memoryview, offset: int) -> int:
        self._check()
        size = max(0, min(len(buffer), self._size - offset))
        done = 0
        while done < size:
            number, within = divmod(offset + done, _PAGE)
            piece = min(_PAGE - within, size - done)
            page = self._pages.get(number, _ZEROS)
            buffer[done : done + piece] = page[within : within + piece]
            done += piece
        return size

    def write_at(self, data: Buffer, offset: int) -> None:
        self._check()
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            number, within = divmod(offset + done, _PAGE)
            piece = min(_PAGE - within, len(view) - done)
            if piece == _PAGE:
                whole = bytes(view[done : done + piece])
                self._pages[number] = _ZEROS if whole == _ZEROS else whole  # a block of zeros is held once
            else:
                page = bytearray(self._pages.get(number, _ZEROS))
                page[within : within + piece] = view[done : done + piece]
                self._pages[number] = bytes(page)
            done += piece
        self._size = max(self._size, offset + len(view))

    def flush(self) -> None:
        self._check()

    def size(self) -> int:
        self._check()
        return self._size

    def truncate(self, size: int) -> None:
        self._check()
        if size < self._size:
            number, within = divmod(size, _PAGE)
            for beyond in [n for n in self._pages if n > number]:
                del self._pages[beyond]
            if number in self._pages:
                self._pages[number] = self._pages[number][:within] + bytes(_PAGE - within)
        self._size = size

    def reserve(self, offset: int, length: int) -> None:
        pass

    def allocated(self) -> int:
        return len(self._pages) * _PAGE

    def next_data(self, offset: int) -> tuple[int, int] | None:
        # Looked for page by page while they are few, and among the pages that exist otherwise.
        number = offset // _PAGE
        if number not in self._pages:
            number = min((n for n in self._pages if n > number), default=-1)
            if number < 0:
                return None
        end = number
        while end in self._pages:
            end += 1
        start = max(offset, number * _PAGE)
        return (start, min(end * _PAGE, self._size)) if start < self._size else None

    def copy(self) -> MemoryStorage:
        """Return an open storage with the same content; what both have is held once."""
        other = MemoryStorage(name=self.name)
        other._pages = dict(self._pages)
        other._size = self._size
        return other

    def close(self) -> None:
        self._closed = True

    def _check(self) -> None:
        if self._closed:
            raise ValueError("I/O operation on closed image")
