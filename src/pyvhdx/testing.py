"""
Storages for tests of programs that write images: one that remembers every event, one that fails.

`pyvhdx.open` and `pyvhdx.create` take a `Storage` where they take a path::

    from pyvhdx.testing import MemoryStorage, RecordingStorage

    storage = RecordingStorage(MemoryStorage())
    with pyvhdx.create(storage, 64 << 20) as image:
        image.pwrite(b"x" * 512, 0)
        image.flush()
    assert storage.events[-1].kind == "flush"

Whatever has the methods of `Storage` will do; see its docstring for what each must promise.  It is
never closed by the image, as a file object is not.
"""

from __future__ import annotations

import errno
import os
import threading
from typing import TYPE_CHECKING, NamedTuple

from pyvhdx.storage import MemoryStorage, Storage, Wrapper

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvhdx._types import Buffer

__all__ = ["Event", "FailingStorage", "MemoryStorage", "RecordingStorage", "Storage"]


class Event(NamedTuple):
    """
    Something that happened to a storage.

    `kind` is ``"write"``, ``"truncate"``, ``"reserve"`` or ``"flush"``; `offset` and `length` are in
    bytes, for a truncate the new length stands in `length`; `data` is what was written.
    """

    kind: str
    offset: int = 0
    length: int = 0
    data: bytes = b""


class RecordingStorage(Wrapper):
    """
    Remembers what happened to another storage, in `events`, in order.

    An event is entered when it has happened; a call that raised is none.
    """

    def __init__(self, storage: Storage) -> None:
        super().__init__(storage)
        self.events: list[Event] = []
        self._gate = threading.Lock()

    def write_at(self, data: Buffer, offset: int) -> None:
        with self._gate:
            super().write_at(data, offset)
            content = bytes(memoryview(data).cast("B"))
            self.events.append(Event("write", offset, len(content), content))

    def truncate(self, size: int) -> None:
        with self._gate:
            super().truncate(size)
            self.events.append(Event("truncate", 0, size))

    def reserve(self, offset: int, length: int) -> None:
        with self._gate:
            super().reserve(offset, length)
            self.events.append(Event("reserve", offset, length))

    def flush(self) -> None:
        with self._gate:
            super().flush()
            self.events.append(Event("flush"))

    def count(self, kind: str) -> int:
        """Return how many events of a kind there were."""
        return sum(event.kind == kind for event in self.events)


class FailingStorage(Wrapper):
    """
    Fails in the call number *at* that changes something: write, truncate, reserve or flush, from 0 on.

    The call raises *error*, and nothing happens; ``at=None`` never fails.  `calls` counts them.  With
    *for_good* every later call fails too, as a dead disk does.
    """

    def __init__(
        self,
        storage: Storage,
        at: int | None,
        error: Callable[[], BaseException] = lambda: OSError(errno.EIO, os.strerror(errno.EIO)),
        *,
        for_good: bool = False,
    ) -> None:
        super().__init__(storage)
        self.at = at
        self.calls = 0
        self._error = error
        self._for_good = for_good

    def _next(self) -> None:
        number, self.calls = self.calls, self.calls + 1
        if self.at is not None and (number == self.at or (self._for_good and number > self.at)):
            raise self._error()

    def write_at(self, data: Buffer, offset: int) -> None:
        self._next()
        super().write_at(data, offset)

    def truncate(self, size: int) -> None:
        self._next()
        super().truncate(size)

    def reserve(self, offset: int, length: int) -> None:
        self._next()
        super().reserve(offset, length)

    def flush(self) -> None:
        self._next()
        super().flush()
