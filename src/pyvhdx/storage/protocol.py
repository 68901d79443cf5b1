"""The seam between an image and the bytes of its file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyvhdx._types import Buffer, NextData


class Storage(Protocol):
    """
    A run of bytes that is read and written by position, from any thread.

    Offsets and sizes are in bytes.  Errors of the medium are `OSError`; a closed storage raises
    `ValueError`.
    """

    name: str

    def read_at(self, size: int, offset: int) -> bytes:
        """Return *size* bytes from *offset*, fewer only at the end."""
        ...

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fill *buffer* from *offset* and return how many bytes there were, fewer only at the end."""
        ...

    def write_at(self, data: Buffer, offset: int) -> None:
        """Write all of *data* at *offset*, extending the file where needed."""
        ...

    def flush(self) -> None:
        """Return when everything written so far is on the medium: the durability barrier."""
        ...

    def size(self) -> int:
        """Return the length in bytes."""
        ...

    def truncate(self, size: int) -> None:
        """Cut or extend to *size* bytes; new bytes read as zeros."""
        ...

    def reserve(self, offset: int, length: int) -> None:
        """Make sure that writing to this range, which lies inside, needs no more space; its bytes stay."""
        ...

    def allocated(self) -> int:
        """Return how many bytes the medium uses for it; `size` where that is not known."""
        ...

    def next_data(self, offset: int) -> tuple[int, int] | None:
        """
        Return start and end of the next run at or after *offset* that may hold data.

        What lies between is known to read as zeros.  None: nothing but zeros follows.
        """
        ...

    def close(self) -> None:
        """Release the file; calls under way finish first, later ones raise `ValueError`."""
        ...


def data_runs(next_data: NextData, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield start and end of what may hold data in a range; all else in it reads as zeros."""
    while start < end and (run := next_data(start)) is not None and run[0] < end:
        yield run[0], min(run[1], end)
        start = run[1]
