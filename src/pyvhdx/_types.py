"""Types that several layers use and that are no one's behaviour."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import os
    from collections.abc import Callable
    from typing import IO, Any

    from typing_extensions import Buffer as Buffer  # noqa: PLC0414 - re-exported on purpose

    ReadAt: TypeAlias = Callable[[int, int], bytes]
    """A function (size, offset) -> bytes, short only at the end of the file."""

    NextData: TypeAlias = Callable[[int], tuple[int, int] | None]
    """A function offset -> (start, end) of the next run that may hold data, None behind the last."""

    PathLike: TypeAlias = str | os.PathLike[str]
    Source: TypeAlias = PathLike | IO[bytes] | Any
    Progress: TypeAlias = Callable[[int, int], object]
    """A function (bytes done, bytes in all) that may raise to cancel."""


def bytes_of(buffer: Buffer) -> memoryview:
    """Return a contiguous buffer of any shape as bytes."""
    view = memoryview(buffer)
    return view.cast("B") if view.nbytes else memoryview(bytearray())
