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
from typing import TypeAlias

from pyvhdx.errors import LockedError

Use: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]
"""What a use has, and what it does not share, as numbers of permissions."""

CONSISTENT_READ, WRITE, RESIZE = 0, 1, 3

READER: Use = ((CONSISTENT_READ,), (WRITE, RESIZE))
WRITER: Use = ((CONSISTENT_READ, WRITE, RESIZE), (WRITE, RESIZE))

_HAVE, _UNSHARED = 100, 200

# The end of the sentence, which the command replaces by an option where it has one.
WITHOUT_LOCKS = ", or, if nothing writes to it, open without locks (lock=False)"

# What a file system without such locks answers.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}

# struct flock: l_type, l_whence, l_start, l_len, l_pid
_FLOCK = struct.Struct("hhqqi4x")


def lock(fd: int, name: str, use: Use) -> bool:
    """
    Take the locks of *use* on *fd*; return whether there is anything to unlock.

    Raises `LockedError` where another open file excludes this use.  A file system without locks
    gives a `RuntimeWarning`; a system without OFD locks has none to take.
    """
    try:
        conflict = _take(fd, use)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        warnings.warn(
            f"{name}: its file system has no locks ({error.strerror}), so nothing keeps others from changing the file",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    if conflict:
        unlock(fd)
        # Two writers without locks would take the same space: that is nobody's advice.
        advice = WITHOUT_LOCKS if use == READER else ""
        raise LockedError(
            f"{name}: it is open elsewhere in a way that excludes this use; close it there{advice}"
        )
    return sys.platform == "linux"


if sys.platform == "linux":
    import fcntl

    def _take(fd: int, use: Use) -> bool:
        """Take the locks of a use; return whether someone else's exclude it."""
        have, unshared = use
        try:
            for byte in [_HAVE + n for n in have] + [_UNSHARED + n for n in unshared]:
                _flock(fcntl.F_OFD_SETLK, fd, fcntl.F_RDLCK, byte)
        except BlockingIOError:  # an exclusive lock, which QEMU never takes
            return True
        against = [_UNSHARED + n for n in have] + [_HAVE + n for n in unshared]
        return any(_flock(fcntl.F_OFD_GETLK, fd, fcntl.F_WRLCK, byte) != fcntl.F_UNLCK for byte in against)

    def unlock(fd: int) -> None:
        """Give back every lock of the open file behind *fd*."""
        _flock(fcntl.F_OFD_SETLK, fd, fcntl.F_UNLCK, 0, length=0)

    def _flock(call: int, fd: int, kind: int, start: int, length: int = 1) -> int:
        """Set or test a lock, and return its kind in the kernel's answer."""
        answer = fcntl.fcntl(fd, call, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))
        found: int = _FLOCK.unpack(answer)[0]
        return found

else:

    def _take(fd: int, use: Use) -> bool:  # noqa: ARG001 - nothing to take
        return False

    def unlock(fd: int) -> None:
        """There is nothing to give back."""
