"""
The byte locks by which QEMU and pyvhdx keep each other out of a file (Linux).

QEMU describes a use of a file by two sets of permissions: those it has, and those it does not
share with anyone else.  Having number n is a lock on byte 100 + n, not sharing it one on byte
200 + n; both are read locks, so they pile up.  A conflict is found by looking: who has n looks at
200 + n, who does not share n looks at 100 + n.  The locks belong to the open file description
(OFD), not to the process.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
import warnings

from pyvhdx.errors import LockedError

CONSISTENT_READ, WRITE, RESIZE = 0, 1, 3

READER = ((CONSISTENT_READ,), (WRITE, RESIZE))
WRITER = ((CONSISTENT_READ, WRITE, RESIZE), (WRITE, RESIZE))

_HAVE, _UNSHARED = 100, 200

# What a file system without such locks answers.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}

# struct flock: l_type, l_whence, l_start, l_len, l_pid
_FLOCK = struct.Struct("hhqqi4x")


def lock(fd: int, name: str, use: tuple[tuple[int, ...], tuple[int, ...]]) -> bool:
    """
    Take the locks of *use* on *fd*; return whether there is anything to unlock.

    Raises `LockedError` where another open file excludes this use.  A file system without locks
    gives a `RuntimeWarning`; a system without OFD locks has none to take.
    """
    if sys.platform != "linux":
        return False
    have, unshared = use
    try:
        for byte in [_HAVE + n for n in have] + [_UNSHARED + n for n in unshared]:
            _take(fd, byte)
        held = [_UNSHARED + n for n in have] + [_HAVE + n for n in unshared]
        if any(_is_held(fd, byte) for byte in held):
            unlock(fd)
            raise LockedError(
                f"{name}: another process has this file open in a way that excludes this use; "
                "close it there, or pass lock=False to look at the file as it is"
            )
    except OSError as error:
        if isinstance(error, LockedError) or error.errno not in _NO_LOCKS:
            raise
        warnings.warn(
            f"{name}: its file system has no locks ({os.strerror(error.errno or 0)}), "
            "so nothing keeps others from changing the file",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


def unlock(fd: int) -> None:
    """Give back every lock of the open file behind *fd*."""
    if sys.platform == "linux":
        import fcntl  # noqa: PLC0415 - not on Windows

        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0))


if sys.platform == "linux":
    import fcntl

    def _take(fd: int, byte: int) -> None:
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0))
        except BlockingIOError as error:
            raise LockedError(f"another process holds an exclusive lock on byte {byte}") from error

    def _is_held(fd: int, byte: int) -> bool:
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked)
        kind: int = _FLOCK.unpack(answer[: _FLOCK.size])[0]
        return kind != fcntl.F_UNLCK
