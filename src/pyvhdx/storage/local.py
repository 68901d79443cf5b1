"""A file or block device of this machine, read and written by descriptor."""

from __future__ import annotations

import errno
import os
import stat
import sys
import threading
from typing import TYPE_CHECKING, Any

from pyvhdx.storage import locks, windows

if TYPE_CHECKING:
    from pyvhdx._types import Buffer, PathLike

# Windows has none of these; the tests switch the first three off to run its code path here.
HAVE_PREAD = hasattr(os, "pread")
HAVE_PREADV = hasattr(os, "preadv")
HAVE_FALLOCATE = hasattr(os, "posix_fallocate")
_pread: Any = getattr(os, "pread", None)
_preadv: Any = getattr(os, "preadv", None)
_pwrite: Any = getattr(os, "pwrite", None)
_posix_fallocate: Any = getattr(os, "posix_fallocate", None)
_SEEK_DATA: int | None = getattr(os, "SEEK_DATA", None)
_SEEK_HOLE: int | None = getattr(os, "SEEK_HOLE", None)

# Opened without blocking, because what looks like a file may be a pipe that nobody writes to.
_OPEN_FLAGS = (
    getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
    | getattr(os, "O_NOINHERIT", 0)
    | getattr(os, "O_NOCTTY", 0)
    | getattr(os, "O_NONBLOCK", 0)
)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
# A folder on the way need not be readable.
_FOLDER_FLAGS = (
    getattr(os, "O_PATH", os.O_RDONLY) | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
)


class LocalFile:
    """
    A `Storage` over a descriptor, which it owns.

    `close` does not take the descriptor from under a read: each call is counted in `_users`, whose
    append and pop are atomic, and the last one out closes.  That costs a twentieth of a lock.
    """

    def __init__(self, fd: int, name: str) -> None:
        self.name = name
        self._fd = fd
        self._closed = False
        self._users: list[None] = []
        self._gate = threading.Lock()
        self._locked_by: int | None = None

    def lock(self, use: locks.Use) -> None:
        """Take the locks of *use*, `locks.READER` or `locks.WRITER`; raise `LockedError` if held."""
        if locks.lock(self._fd, self.name, use):
            self._locked_by = os.getpid()

    def read_at(self, size: int, offset: int) -> bytes:
        self._users.append(None)
        try:
            if self._closed:
                raise _closed()
            if not HAVE_PREAD:
                return self._seek_and_read(size, offset)
            data: bytes = _pread(self._fd, size, offset)
            if len(data) == size or not data:
                return data
            return self._read_rest(data, size, offset)
        except OSError as error:
            self._name_in(error)
            raise
        finally:
            self._users.pop()
            if self._closed:
                self._release()

    def _read_rest(self, start: bytes, size: int, offset: int) -> bytes:
        # The kernel stops at 2 GiB, and at the end of the file.
        pieces = [start]
        done = len(start)
        while done < size:
            piece = _pread(self._fd, size - done, offset + done)
            if not piece:
                break
            pieces.append(piece)
            done += len(piece)
        return b"".join(pieces)

    def _seek_and_read(self, size: int, offset: int) -> bytes:
        with self._gate:
            os.lseek(self._fd, offset, os.SEEK_SET)
            pieces = []
            while size > 0 and (piece := os.read(self._fd, min(size, 1 << 30))):
                pieces.append(piece)
                size -= len(piece)
            return b"".join(pieces)

    def read_into(self, buffer: memoryview, offset: int) -> int:
        if not HAVE_PREADV:
            data = self.read_at(len(buffer), offset)
            buffer[: len(data)] = data
            return len(data)
        self._users.append(None)
        try:
            if self._closed:
                raise _closed()
            size = len(buffer)
            done: int = _preadv(self._fd, [buffer], offset)
            while 0 < done < size:
                more = _preadv(self._fd, [buffer[done:]], offset + done)
                if not more:
                    break
                done += more
            return done
        except OSError as error:
            self._name_in(error)
            raise
        finally:
            self._users.pop()
            if self._closed:
                self._release()

    def write_at(self, data: Buffer, offset: int) -> None:
        view = memoryview(data).cast("B")
        self._users.append(None)
        try:
            if self._closed:
                raise _closed()
            if not HAVE_PREAD:
                with self._gate:
                    os.lseek(self._fd, offset, os.SEEK_SET)
                    while view:
                        view = view[os.write(self._fd, view) :]
                return
            while view:
                done = _pwrite(self._fd, view, offset)
                view = view[done:]
                offset += done
        except OSError as error:
            self._name_in(error)
            raise
        finally:
            self._users.pop()
            if self._closed:
                self._release()

    def flush(self) -> None:
        try:
            _flush(self._fd)
        except OSError as error:
            self._name_in(error)
            raise

    def size(self) -> int:
        if self._closed:
            raise _closed()
        status = os.fstat(self._fd)
        if stat.S_ISBLK(status.st_mode):
            with self._gate:
                position = os.lseek(self._fd, 0, os.SEEK_CUR)
                try:
                    return os.lseek(self._fd, 0, os.SEEK_END)
                finally:  # a descriptor that was given to us shares its position with its owner
                    os.lseek(self._fd, position, os.SEEK_SET)
        return status.st_size

    def truncate(self, size: int) -> None:
        if stat.S_ISBLK(self.status().st_mode):
            if size > self.size():  # a device stays as long as it is
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.name)
            return
        try:
            os.ftruncate(self._fd, size)
        except OSError as error:
            self._name_in(error)
            raise

    def reserve(self, offset: int, length: int) -> None:
        if HAVE_FALLOCATE:
            try:
                _posix_fallocate(self._fd, offset, length)
                return
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENODEV):
                    self._name_in(error)
                    raise
        # Writing what stands there does the same.
        for start in range(offset, offset + length, 1 << 20):
            self.write_at(self.read_at(min(1 << 20, offset + length - start), start), start)

    def allocated(self) -> int:
        status = os.fstat(self._fd)
        blocks: int | None = getattr(status, "st_blocks", None)
        if blocks is None or not stat.S_ISREG(status.st_mode):
            return self.size()
        return blocks * 512

    def next_data(self, offset: int) -> tuple[int, int] | None:
        end = self.size()
        if offset >= end:
            return None
        if _SEEK_DATA is None or _SEEK_HOLE is None:
            return offset, end
        with self._gate:
            position = os.lseek(self._fd, 0, os.SEEK_CUR)
            try:
                start = os.lseek(self._fd, offset, _SEEK_DATA)
                return start, os.lseek(self._fd, start, _SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.ENXIO:  # no data up to the end
                    return None
                if error.errno in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTTY):  # no holes here
                    return offset, end
                raise
            finally:
                os.lseek(self._fd, position, os.SEEK_SET)

    def _name_in(self, error: OSError) -> None:
        """Say which file is full or bad, which the system does not."""
        if error.filename is None and error.errno is not None:
            error.filename = self.name

    def status(self) -> os.stat_result:
        """Return `os.fstat` of the file that is open."""
        return os.fstat(self._fd)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            if not self._users:
                self._release()

    def _release(self) -> None:
        with self._gate:
            if self._users or self._fd < 0:
                return
            fd, self._fd = self._fd, -1
            # A forked child shares the locks with its parent and must not give them back.
            if self._locked_by == os.getpid():
                locks.unlock(fd)
            os.close(fd)

    def __del__(self) -> None:
        self.close()


def _flush(fd: int) -> None:
    if sys.platform == "darwin":
        import fcntl  # noqa: PLC0415 - not on Windows

        # fsync of macOS leaves the data in the drive's cache.
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
    elif hasattr(os, "fdatasync"):
        os.fdatasync(fd)
    else:
        os.fsync(fd)


def _closed() -> ValueError:
    return ValueError("I/O operation on closed image")


def open_local(
    path: PathLike,
    *,
    devices: bool = True,
    follow: bool = True,
    write: bool = False,
    use: locks.Use | None = None,
) -> LocalFile:
    """
    Open *path* for reading, or with *write* for both, without ever waiting for it.

    Only a regular file or, with *devices*, a block device is taken; that is checked on the open
    descriptor.  Unless *follow*, *path* is absolute and names the file by itself: no part of it may be
    a link (on Windows that is not checked).  Raises `OSError` for anything else; with *use*,
    `locks.READER` or `locks.WRITER`, `LockedError` where another open file excludes it.
    """
    name = os.fsdecode(path)
    if sys.platform == "win32":
        if os.path.isdir(name):  # Windows says "permission denied"
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
        fd = windows.open_descriptor(name, write=write, lock=use is not None)
    else:
        flags = (os.O_RDWR if write else os.O_RDONLY) | _OPEN_FLAGS
        fd = os.open(name, flags) if follow else _open_without_links(name, flags)
    file = LocalFile(fd, name)
    try:
        _check_kind(file, devices=devices)
        if use is not None:
            file.lock(use)
    except BaseException:
        file.close()
        raise
    return file


def _open_without_links(path: str, flags: int) -> int:
    """
    Open the regular file at *path* folder by folder, so that no link is followed that someone put there
    since the path was looked at.

    Anything else is not even opened: that alone may rewind a tape, or wake who writes to a pipe.
    """
    *folders, name = path.strip("/").split("/")
    folder = os.open("/", _FOLDER_FLAGS)
    try:
        for part in folders:
            below = os.open(part, _FOLDER_FLAGS | _NO_LINK, dir_fd=folder)
            os.close(folder)
            folder = below
        _refuse_other_kinds(os.stat(name or ".", dir_fd=folder, follow_symlinks=False).st_mode, path)
        return os.open(name, flags | _NO_LINK, dir_fd=folder)
    except OSError as error:
        error.filename = path  # not only the part of it
        raise
    finally:
        os.close(folder)


def _check_kind(file: LocalFile, *, devices: bool) -> None:
    _refuse_other_kinds(file.status().st_mode, file.name, devices=devices)


def _refuse_other_kinds(mode: int, name: str, *, devices: bool = False) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    if not (stat.S_ISREG(mode) or (devices and stat.S_ISBLK(mode))):
        wanted = "neither a regular file nor a block device" if devices else "not a regular file"
        raise OSError(errno.EINVAL, wanted, name)
