"""New files, which get their name only when they are complete."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import sys
from typing import TYPE_CHECKING, Any

from pyvhdx.errors import RequestError
from pyvhdx.storage import locks
from pyvhdx.storage.local import LocalFile, open_local

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pyvhdx._types import PathLike, Source
    from pyvhdx.storage.protocol import Storage

_CREATE_FLAGS = (
    os.O_RDWR
    | os.O_CREAT
    | os.O_EXCL
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
    | getattr(os, "O_NOINHERIT", 0)
)


@contextlib.contextmanager
def new_file(
    path: PathLike, *, overwrite: bool = False, lock: bool = True, sync: bool = True
) -> Iterator[LocalFile]:
    """
    Give a file to write that becomes *path* when the block ends, and vanishes when it raises.

    The file is written under a temporary name beside *path*, flushed, renamed, and its folder is
    flushed too (not with ``sync=False``).  Symbolic links are followed.  It gets the mode that the
    umask leaves, or that of the file it replaces.  Raises `FileExistsError` where *path* exists and
    *overwrite* is not set, `LockedError` where the file to be replaced is in use, and
    `RequestError` where it is no regular file.
    """
    target = os.path.realpath(path)
    with contextlib.ExitStack() as cleanup:
        old = _existing(target, overwrite=overwrite)
        if old is not None and lock and sys.platform != "win32":
            # Held until the rename, so that nobody begins to use a file that is about to go.
            # Windows renames onto no open file, and has no such locks.
            held = cleanup.enter_context(contextlib.closing(open_local(target)))
            held.lock(locks.WRITER)
        folder, base = os.path.split(target)
        # 50 characters are 200 bytes at most: the whole stays below the 255 that file systems take.
        temporary = os.path.join(folder, f".{base[:50]}.{secrets.token_hex(8)}.tmp")
        try:
            fd = os.open(temporary, _CREATE_FLAGS, 0o666)
        except OSError as error:
            error.filename = os.fspath(path)  # nobody asked for the temporary one
            raise
        cleanup.callback(_remove, temporary)
        file = cleanup.enter_context(contextlib.closing(LocalFile(fd, os.fspath(path))))
        if old is not None:
            os.chmod(temporary, stat.S_IMODE(old.st_mode))
        yield file
        if sync:
            file.flush()
        if sys.platform == "win32":
            file.close()  # Windows renames no open file
        if overwrite:
            os.replace(temporary, target)
        else:
            _rename_new(temporary, target)
        if sync:
            _flush_folder(folder)


def refuse_files_in_use(target: Source, used: Iterable[Storage], what: str) -> None:
    """Raise `RequestError` where *target* is one of the files that are being read: *what* says which."""
    file: Any = target
    path = os.fspath(file) if isinstance(file, (str, os.PathLike)) else None
    try:
        status = os.fstat(file.fileno()) if path is None else os.stat(path)
    except (OSError, AttributeError):  # no file, or not there yet
        return
    for storage in used:
        if isinstance(storage, LocalFile) and os.path.samestat(storage.status(), status):
            name = getattr(file, "name", "the target") if path is None else path
            raise RequestError(f"{name} is {what}, and is not replaced")


def _existing(target: str, *, overwrite: bool) -> os.stat_result | None:
    try:
        status = os.stat(target)
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), target)
    if not stat.S_ISREG(status.st_mode):
        raise RequestError(f"{target} is no regular file, and a new file cannot take its place")
    if not overwrite:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
    return status


def _rename_new(temporary: str, target: str) -> None:
    """Rename, but never onto a file that appeared meanwhile."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise
    except OSError:  # no hard links here; a look before the rename is the best there is
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target) from None
        os.rename(temporary, target)


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)


def _flush_folder(folder: str) -> None:
    if sys.platform != "win32":
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        except OSError as error:
            if error.errno != errno.EINVAL:  # some network file systems cannot
                raise
        finally:
            os.close(fd)
