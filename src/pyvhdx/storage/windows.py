"""
Opening files on Windows, where sharing is agreed upon in the open itself.

A reader lets others read, a writer lets nobody in.  Written from the documentation of CreateFileW
and tested with a stub of it; it has never run on Windows.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from pyvhdx.errors import LockedError

if TYPE_CHECKING:
    from collections.abc import Callable

_GENERIC_READ = 0x8000_0000
_GENERIC_WRITE = 0x4000_0000
_SHARE_READ, _SHARE_WRITE, _SHARE_DELETE = 1, 2, 4
_OPEN_EXISTING = 3
_ATTRIBUTE_NORMAL = 0x80
_ERROR_SHARING_VIOLATION = 32
_ERROR_LOCK_VIOLATION = 33
_NO_INHERIT_BINARY = getattr(os, "O_NOINHERIT", 0) | getattr(os, "O_BINARY", 0)


def open_shared(name: str, *, write: bool, lock: bool, create_file: Callable[..., tuple[int, int]]) -> int:
    """
    Return a handle on an existing file; raise `LockedError` where another open of it excludes this use.

    *create_file* takes name, access, share mode, disposition and attributes, and returns the handle
    and 0, or 0 and an error code of Windows.
    """
    access = _GENERIC_READ | (_GENERIC_WRITE if write else 0)
    share = _SHARE_READ | _SHARE_WRITE | _SHARE_DELETE
    if lock:
        share = 0 if write else _SHARE_READ
    handle, code = create_file(name, access, share, _OPEN_EXISTING, _ATTRIBUTE_NORMAL)
    if code in (_ERROR_SHARING_VIOLATION, _ERROR_LOCK_VIOLATION):
        raise LockedError(
            f"{name}: another program has this file open in a way that excludes this use; close it there"
        )
    if code:
        # OSError makes the right kind of error of a Windows code, on Windows.
        raise OSError(None, f"Windows error {code}", name, code)
    return handle


if sys.platform == "win32":
    import ctypes
    import msvcrt
    from ctypes import wintypes

    _kernel32: Any = ctypes.WinDLL("kernel32", use_last_error=True)
    _kernel32.CreateFileW.restype = wintypes.HANDLE
    _kernel32.CreateFileW.argtypes = [
        wintypes.LPCWSTR,
        wintypes.DWORD,
        wintypes.DWORD,
        wintypes.LPVOID,
        wintypes.DWORD,
        wintypes.DWORD,
        wintypes.HANDLE,
    ]

    def _create_file(
        name: str, access: int, share: int, disposition: int, attributes: int
    ) -> tuple[int, int]:
        handle = _kernel32.CreateFileW(name, access, share, None, disposition, attributes, None)
        if handle in (None, wintypes.HANDLE(-1).value):
            return 0, ctypes.get_last_error()
        return handle, 0

    def open_descriptor(name: str, *, write: bool, lock: bool) -> int:
        """Return a descriptor of an existing file, opened with the share mode of the use."""
        handle = open_shared(name, write=write, lock=lock, create_file=_create_file)
        return msvcrt.open_osfhandle(handle, _NO_INHERIT_BINARY | (os.O_RDWR if write else os.O_RDONLY))
