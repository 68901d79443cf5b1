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
from pyvhdx.storage.file_object import FileObject
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
    name = os.fspath(path)
    if not name:
        raise RequestError("the name of the new file is empty")
    target = os.path.realpath(name)
    with contextlib.ExitStack() as cleanup:
        old = _existing(name, overwrite=overwrite)
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
            error.filename = name  # nobody asked for the temporary one
            raise
        cleanup.callback(_remove, temporary)
        file = cleanup.enter_context(contextlib.closing(LocalFile(fd, name)))
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
            _rename_new(temporary, target, name)
        if sync:
            _flush_folder(folder)


def refuse_files_in_use(target: Source, used: Iterable[Storage], what: str) -> None:
    """Raise `RequestError` where *target* is one of the files that are being read: *what* says which."""
    status = _status_of(target)
    for storage in used:
        source = storage.file if isinstance(storage, FileObject) else storage
        other = _status_of(source)
        if source is target or (status is not None and other is not None and os.path.samestat(status, other)):
            name = (
                os.fspath(target)
                if isinstance(target, (str, os.PathLike))
                else getattr(target, "name", "the target")
            )
            raise RequestError(f"{name} is {what}, and is not replaced")


def _status_of(file: Any) -> os.stat_result | None:
    """Return what the system says of a path, a storage or a file object; None where there is no file."""
    try:
        if isinstance(file, (str, os.PathLike)):
            return os.stat(file)
        # A compressed file's object answers with the compressed file, and that is what would be lost.
        return file.status() if isinstance(file, LocalFile) else os.fstat(file.fileno())
    except (OSError, AttributeError, ValueError):
        return None


def _existing(name: str, *, overwrite: bool) -> os.stat_result | None:
    try:
        status = os.stat(name)  # not its real path: the one of /dev/stdout may not exist
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    if not stat.S_ISREG(status.st_mode):
        raise RequestError(
            f"{name} is no regular file, and a new file cannot take its place; "
            "open it and give the file object (in the command, - is standard output)"
        )
    if not overwrite:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
    return status


def _rename_new(temporary: str, target: str, name: str) -> None:
    """Rename, but never onto a file that appeared meanwhile, which is called *name* in the error."""
    try:
        os.link(temporary, target)
    except OSError as error:
        # Without hard links a look before the rename is the best there is.
        if isinstance(error, FileExistsError) or os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name) from None
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
