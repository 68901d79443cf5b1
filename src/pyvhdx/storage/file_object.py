"""A seekable binary file object of the caller, which is never closed here."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import sys
import threading
import weakref
from typing import IO, TYPE_CHECKING, Any

from pyvhdx.errors import RequestError
from pyvhdx.storage.local import LocalFile
from pyvhdx.storage.wrapper import Lent, is_storage

if TYPE_CHECKING:
    from pyvhdx._types import Buffer
    from pyvhdx.storage.protocol import Storage

_BUFFERED = (io.BufferedReader, io.BufferedRandom)


def open_file_object(file: Any, *, write: bool = False, append: bool = False) -> Storage:
    """
    Return a storage over *file*, which may be one itself; raise `io.UnsupportedOperation` where *write*
    asks for too much.

    To be written, it must not have been opened for appending, unless *append* says that it will be
    written in order.

    A plain `io.FileIO`, or a buffered reader directly over one, on a regular file or block device
    is used by descriptor (a duplicate, so that the caller may close its own).  Every other object
    is read by seek and read: gzip and lzma objects answer `fileno` with the compressed file's.
    """
    if is_storage(file):
        return Lent(file)
    refuse_no_file(file, "read", "seek", "tell")
    if not can_seek(file):
        raise RequestError("the file object cannot seek, and an image is read at many places")
    if write and not can_write(file):
        raise io.UnsupportedOperation("the file object was not opened for writing")
    if write and not hasattr(file, "truncate"):  # mmap, for one
        raise io.UnsupportedOperation("the file object cannot change its size, and an image grows")
    if write and not append and is_appending(file):
        raise RequestError(
            'the file object was opened for appending, and all it is given goes to its end; open it "w+b" or "r+b"'
        )
    raw = file.raw if type(file) in _BUFFERED else file
    if type(raw) is io.FileIO:
        mode = os.fstat(raw.fileno()).st_mode
        if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
            if file is not raw and file.writable():
                file.flush()
            return LocalFile(_own_descriptor(raw.fileno(), write=write), _name(file))
    return FileObject(file)


def _own_descriptor(fd: int, *, write: bool) -> int:
    """
    Return a descriptor of the same file that shares neither position nor locks, where that can be had.

    A mere duplicate shares both, and who closes one drops the locks of all.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            return os.open(f"/proc/self/fd/{fd}", (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC)
    return os.dup(fd)


def refuse_no_file(file: Any, *methods: str) -> None:
    """Raise `RequestError` for what is no binary file object with these methods."""
    if is_storage(file):
        return
    if _is_text(file) or not all(hasattr(file, name) for name in methods):
        raise RequestError(f"a path or a binary file object is needed, not {type(file).__name__}")


def can_seek(file: Any) -> bool:
    """Return whether a file object can go back; not all that can have a `seekable`."""
    if is_storage(file):
        return True
    try:
        return bool(file.seekable())
    except AttributeError:
        return hasattr(file, "seek")


def can_read(file: Any) -> bool:
    """Return whether a file object gives bytes; not all that do have a `readable`."""
    if is_storage(file):
        return True
    try:
        return bool(file.readable())
    except AttributeError:
        return hasattr(file, "read")


def can_write(file: Any) -> bool:
    """Return whether a file object takes bytes; not all that do have a `writable`."""
    try:
        return bool(file.writable())
    except AttributeError:
        return hasattr(file, "write")


def is_appending(file: Any) -> bool:
    """Return whether all that is written goes to the end, wherever the position is."""
    mode = getattr(file, "mode", None)  # a number of some
    if isinstance(mode, str) and "a" in mode:
        return True
    if sys.platform == "win32":
        return False
    import fcntl  # noqa: PLC0415 - not on Windows

    try:
        return bool(fcntl.fcntl(file.fileno(), fcntl.F_GETFL) & os.O_APPEND)
    except (AttributeError, OSError):  # no descriptor
        return False


def _is_text(file: Any) -> bool:
    # A wrapper, as tempfile makes them, does not show by its type what is in it.
    return isinstance(file, io.TextIOBase) or isinstance(getattr(file, "file", None), io.TextIOBase)


def _name(file: Any) -> str:
    name = getattr(file, "name", None)
    return name if isinstance(name, str) else f"<{type(file).__name__}>"


class _Gate:
    """
    Holds a lock that lives as long as a storage uses it; a bare one takes no weak reference everywhere.

    Use it as ``with gate.lock:``.  Between a method of ours that takes a lock and the block that gives it
    back an interrupt may come, and then nobody gives it back.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()


_gates: weakref.WeakValueDictionary[int, _Gate] = weakref.WeakValueDictionary()
_gates_lock = threading.Lock()


class FileObject:
    """A `Storage` that seeks and then reads or writes, one call at a time."""

    def __init__(self, file: IO[bytes]) -> None:
        self.name = _name(file)
        self.file = file
        # Two storages over one object share its position, and so its lock.
        with _gates_lock:
            self._gate = _gates.setdefault(id(file), _Gate())
        self._closed = False

    def read_at(self, size: int, offset: int) -> bytes:
        with self._gate.lock:
            self._go(offset)
            pieces = []
            while size > 0 and (piece := self.file.read(size)):
                pieces.append(piece)
                size -= len(piece)
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def read_into(self, buffer: memoryview, offset: int) -> int:
        data = self.read_at(len(buffer), offset)
        buffer[: len(data)] = data
        return len(data)

    def write_at(self, data: Buffer, offset: int) -> None:
        view = memoryview(data).cast("B")
        with self._gate.lock:
            if offset > self._end():
                # A file object need not fill a gap by itself.
                self._extend(offset)
            self._go(offset)
            _write_all(self.file, view)

    def flush(self) -> None:
        with self._gate.lock:
            self.file.flush()

    def size(self) -> int:
        with self._gate.lock:
            return self._end()

    def truncate(self, size: int) -> None:
        with self._gate.lock:
            self.file.truncate(size)
            if self._end() < size:  # BytesIO does not extend
                self._extend(size)

    def reserve(self, offset: int, length: int) -> None:
        for start in range(offset, offset + length, 1 << 20):
            self.write_at(self.read_at(min(1 << 20, offset + length - start), start), start)

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
        self.file.seek(offset)

    def _end(self) -> int:
        if self._closed:
            raise ValueError("I/O operation on closed image")
        self.file.seek(0, os.SEEK_END)
        return self.file.tell()  # seek of an mmap returns nothing before Python 3.13

    def _extend(self, size: int) -> None:
        missing = size - self._end()
        while missing > 0:
            piece = min(missing, 1 << 20)
            _write_all(self.file, memoryview(bytes(piece)))
            missing -= piece


def _write_all(file: Any, view: memoryview) -> None:
    while view:
        done = file.write(view)
        if not done:
            raise BlockingIOError(errno.EAGAIN, f"{_name(file)} takes no more bytes now")
        view = view[done:]
