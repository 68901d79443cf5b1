"""What a power cut could still take: the bookkeeping of barriers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyvhdx._types import Buffer
    from pyvhdx.storage.protocol import Storage


class Durable:
    """
    Writes to a storage and remembers what no barrier has covered yet; for one thread at a time.

    `size` is the length of the file in bytes, `durable_size` the length at the last barrier, 0
    before the first: what was found may not be on the medium yet.  `epoch` counts the barriers.
    `payload_pending` tells whether payload was written or the file grew since the last one.  With
    ``sync=False`` the storage is never told to flush, and everything else stays.
    """

    def __init__(self, storage: Storage, *, sync: bool) -> None:
        self._storage = storage
        self._sync = sync
        self.size = storage.size()
        self.durable_size = 0
        self.epoch = 0
        self.payload_pending = False

    def write_payload(self, data: Buffer, offset: int) -> None:
        """Write what later metadata may point at."""
        self.payload_pending = True
        self._storage.write_at(data, offset)

    def write_metadata(self, data: Buffer, offset: int) -> None:
        """Write a header, a log entry, or a page that an entry holds."""
        self._storage.write_at(data, offset)

    def grow(self, size: int) -> int:
        """Make the file longer, never shorter, and return its length; the new bytes read as zeros."""
        self.payload_pending = True
        size = max(size, self._storage.size())  # a growth that was interrupted may have happened
        self._storage.truncate(size)
        self.size = size
        return size

    def cut(self, size: int) -> None:
        """Make the file shorter."""
        self._storage.truncate(size)
        self.size = size

    def barrier(self) -> None:
        """Return when all that was written is on the medium."""
        if self._sync:
            self._storage.flush()
        self.epoch += 1
        self.durable_size = self.size
        self.payload_pending = False

    def has_shrunk(self) -> bool:
        """Return whether someone else made the file shorter."""
        return self._storage.size() < self.size

    def reserve(self, offset: int, length: int) -> None:
        """Make sure that writing to this range needs no more space."""
        self._storage.reserve(offset, length)
