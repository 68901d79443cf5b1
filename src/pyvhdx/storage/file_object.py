"""A seekable binary file object of the caller, which is never closed here."""

from __future__ import annotations

import io
import os
import stat
import threading
from typing import IO, TYPE_CHECKING, Any

from pyvhdx.errors import RequestError
from pyvhdx.storage.local import LocalFile

if TYPE_CHECKING:
    from pyvhdx._types import Buffer
    from pyvhdx.storage.protocol import Storage

_BUFFERED = (io.BufferedReader, io.BufferedRandom)


def open_file_object(file: Any, *, write: bool = False) -> Storage:
    """
    Return a storage over *file*; raise `io.UnsupportedOperation` where *write* asks for too much.

    A plain `io.FileIO`, or a buffered reader directly over one, on a regular file or block device
    is used by descriptor (a duplicate, so that the caller may close its own).  Every other object
    is read by seek and read: gzip and lzma objects answer `fileno` with the compressed file's.
    """
    if _is_text(file) or not all(hasattr(file, name) for name in ("read", "seek", "tell")):
        raise RequestError(f"a path or a binary file object is needed, not {type(file).__name__}")
    if not can_seek(file):
        raise RequestError("the file object cannot seek, and an image is read at many places")
    if write and not can_write(file):
        raise io.UnsupportedOperation("the file object was not opened for writing")
    raw = file.raw if type(file) in _BUFFERED else file
    if type(raw) is io.FileIO:
        mode = os.fstat(raw.fileno()).st_mode
        if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
            if file is not raw and file.writable():
                file.flush()
            return LocalFile(os.dup(raw.fileno()), _name(file))
    return FileObject(file)


def can_seek(file: Any) -> bool:
    """Return whether a file object can go back; not all that can have a `seekable`."""
    try:
        return bool(file.seekable())
    except AttributeError:
        return hasattr(file, "seek")


def can_write(file: Any) -> bool:
    """Return whether a file object takes bytes; not all that do have a `writable`."""
    try:
        return bool(file.writable())
    except AttributeError:
        return hasattr(file, "write")


def _is_text(file: Any) -> bool:
    # A wrapper, as tempfile makes them, does not show by its type what is in it.
    return isinstance(file, io.TextIOBase) or isinstance(getattr(file, "file", None), io.TextIOBase)


def _name(file: Any) -> str:
    name = getattr(file, "name", None)
    return name if isinstance(name, str) else f"<{type(file).__name__}>"


class FileObject:
    """A `Storage` that seeks and then reads or writes, one call at a time."""

    def __init__(self, file: IO[bytes]) -> None:
        self.name = _name(file)
        self._file = file
        self._gate = threading.Lock()
        self._closed = False

    def read_at(self, size: int, offset: int) -> bytes:
        with self._gate:
            self._go(offset)
            pieces = []
            while size > 0 and (piece := self._file.read(size)):
                pieces.append(piece)
                size -= len(piece)
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def read_into(self, buffer: memoryview, offset: int) -> int:
        data = self.read_at(len(buffer), offset)
        buffer[: len(data)] = data
        return len(data)

    def write_at(self, data: Buffer, offset: int) -> None:
        view = memoryview(data).cast("B")
        with self._gate:
            if offset > self._end():
                # A file object need not fill a gap by itself.
                self._extend(offset)
            self._go(offset)
            while view:
                view = view[self._file.write(view) :]

    def flush(self) -> None:
        with self._gate:
            self._file.flush()

    def size(self) -> int:
        with self._gate:
            return self._end()

    def truncate(self, size: int) -> None:
        with self._gate:
            self._file.truncate(size)
            if self._end() < size:  # BytesIO does not extend
                self._extend(size)

    def reserve(self, offset: int, length: int) -> None:
        self.write_at(self.read_at(length, offset), offset)

    def allocated(self) -> int:
        return self.size()

    def next_data(self, offset: int) -> tuple[int, int] | None:
        end = self.size()
        return (offset, end) if offset < end else None

    def close(self) -> None:
        self._closed = True

    def _go(self, offset: int) -> None:
        if self._closed:
            raise ValueError("I/O operation on closed image")
        self._file.seek(offset)

    def _end(self) -> int:
        if self._closed:
            raise ValueError("I/O operation on closed image")
        return self._file.seek(0, os.SEEK_END)

    def _extend(self, size: int) -> None:
        missing = size - self._file.seek(0, os.SEEK_END)
        while missing > 0:
            missing -= self._file.write(bytes(min(missing, 1 << 20)))
