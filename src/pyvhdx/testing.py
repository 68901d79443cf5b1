"""
Storages for tests of programs that write images: one that remembers every event, one that fails, and
what a power cut can leave of a file.

`pyvhdx.open` and `pyvhdx.create` take a `Storage` where they take a path::

    from pyvhdx.testing import MemoryStorage, RecordingStorage

    storage = RecordingStorage(MemoryStorage())
    with pyvhdx.create(storage, 64 << 20) as image:
        image.pwrite(b"x" * 512, 0)
        image.flush()
    assert storage.events[-1].kind == "flush"

A recording tells what a power cut at any moment could have left::

    cuts = PowerCut(before, storage.events)
    for cut in range(len(storage.events) + 1):
        with pyvhdx.open(cuts.after(cut, random.Random(cut))) as image:
            ...  # what was flushed is there

Whatever has the attribute `name` and the methods of `Storage` will do, a subclass of `MemoryStorage` that
fails to read, say; the docstring of `Storage` says what each must promise.  Images never close it, as they
close no file object, and take no lock on it.

`RecordingStorage` and `FailingStorage` stand over another storage, their attribute `storage`.  Put the one
that fails outside: ``FailingStorage(RecordingStorage(MemoryStorage()), ...)`` records the half of a short
write, which is in the file, and the other way round does not.

A differencing child in memory needs its parent at a path when it is created, and ``parent=`` whenever it is
opened.
"""

from __future__ import annotations

import errno
import os
import threading
from typing import TYPE_CHECKING, NamedTuple

from pyvhdx.storage import MemoryStorage, Storage, Wrapper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from random import Random

    from pyvhdx._types import Buffer

__all__ = ["Event", "FailingStorage", "MemoryStorage", "PowerCut", "RecordingStorage", "Storage"]

SECTOR = 512
"""What a disk writes whole or not at all, in bytes; nothing larger is."""


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
    Remembers what happened to another storage, in the list `events`, in order.

    An event is entered when it has happened; a call that raised is none.  Clear the list to begin anew.
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
    *for_good* every later call fails too, as a dead disk does.  With *short* a write that fails has
    written its first half, as far as that is whole units of 512 bytes.  All four can be set between
    calls, under these names.  A full disk is ``error=lambda: OSError(errno.ENOSPC, "full")``.  Not
    every failed call comes up: where the file cannot be made longer by a step, as much as is needed is
    tried.
    """

    def __init__(
        self,
        storage: Storage,
        at: int | None,
        error: Callable[[], BaseException] = lambda: OSError(errno.EIO, os.strerror(errno.EIO)),
        *,
        for_good: bool = False,
        short: bool = False,
    ) -> None:
        super().__init__(storage)
        self.at = at
        self.calls = 0
        self.error = error
        self.for_good = for_good
        self.short = short

    def _next(self) -> None:
        number, self.calls = self.calls, self.calls + 1
        if self.at is not None and (number == self.at or (self.for_good and number > self.at)):
            raise self.error()

    def write_at(self, data: Buffer, offset: int) -> None:
        try:
            self._next()
        except BaseException:
            if self.short:
                view = memoryview(data).cast("B")
                half = (offset + len(view) // 2) // SECTOR * SECTOR - offset
                super().write_at(view[: max(0, half)], offset)
            raise
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


class PowerCut:
    """
    What a power cut can leave of a file.

    *before* is its content at the start, *events* what a `RecordingStorage` saw of it.  The medium is
    one that keeps what a flush covered, writes 512 bytes whole or not at all, and orders nothing
    between two flushes: each such unit of what was written since the last one is there or not, in
    any of the versions that it had, and so is each change of the file's length.

    `after` draws one of the many contents that are possible; ask as often as you like: about a third of
    the answers have nothing of what was pending, a third all of it.  They take memory in proportion to what
    was written.  Ask for cuts in ascending order: going back begins anew.
    """

    def __init__(self, before: MemoryStorage, events: Sequence[Event]) -> None:
        self._before = before.copy()
        self._events = events
        self._begin()

    def _begin(self) -> None:
        self._durable = self._before.copy()
        self._covered = 0  # so many events are behind the last flush

    def pending(self, cut: int) -> Sequence[Event]:
        """
        Return the events since the last flush, where the power is cut behind *cut* events, 0 to all.

        Raises `ValueError` for other numbers.
        """
        if not 0 <= cut <= len(self._events):
            raise ValueError(f"cut is {cut}, and there are {len(self._events)} events")
        if cut < self._covered:
            self._begin()
        for number in range(self._covered, cut):
            if self._events[number].kind == "flush":
                for event in self._events[self._covered : number]:
                    _apply(event, self._durable)
                self._covered = number + 1
        return self._events[self._covered : cut]

    def after(self, cut: int, draw: Random) -> MemoryStorage:
        """Return one of the contents that a cut behind *cut* events can leave; *draw* chooses."""
        pending = self._in_whole_units([event for event in self.pending(cut) if event.kind != "reserve"])
        left = self._durable.copy()
        way = draw.choice(
            ("none", "all", "prefix", "suffix", "suffix", "one", "all but one", "some", "torn", "torn")
        )
        chosen = draw.randrange(len(pending)) if pending else 0
        for number, event in enumerate(pending):
            is_whole = {"all": True, "all but one": number != chosen, "suffix": number >= chosen}
            if is_whole.get(way):
                _apply(event, left)
            elif way == "prefix" and number <= chosen:
                _apply_torn(event, left, draw) if number == chosen else _apply(event, left)
            elif way == "one" and number == chosen:
                _apply_torn(event, left, draw)
            elif way == "some" and draw.random() < 0.5:
                _apply(event, left)
            elif way == "torn":
                _apply_torn(event, left, draw)
        longer = left.size() - self._durable.size()
        if longer > 0 and draw.random() < 0.3:  # the new length did not reach the medium, or not all of it
            left.truncate(self._durable.size() + draw.choice((0, draw.randrange(longer + 1))))
        return left

    def _in_whole_units(self, pending: list[Event]) -> list[Event]:
        """Return the events with writes of whole units: what a part is written into goes along with it."""
        if not any(event.offset % SECTOR or event.length % SECTOR for event in pending):
            return pending
        now = self._durable.copy()
        whole = []
        for event in pending:
            _apply(event, now)
            if event.kind == "write" and (event.offset % SECTOR or event.length % SECTOR):
                start = event.offset // SECTOR * SECTOR
                data = now.read_at(-(-(event.offset + event.length) // SECTOR) * SECTOR - start, start)
                whole.append(Event("write", start, len(data), data))
            else:
                whole.append(event)
        return whole


def _apply(event: Event, storage: MemoryStorage) -> None:
    if event.kind == "write":
        storage.write_at(event.data, event.offset)
    elif event.kind == "truncate":
        storage.truncate(event.length)


def _apply_torn(event: Event, storage: MemoryStorage, draw: Random) -> None:
    """Apply some of the units of a write, or a change of length or not."""
    if event.kind == "truncate":
        if draw.random() < 0.5:
            storage.truncate(event.length)
        return
    for start, stop in _some_units(event.offset, event.offset + event.length, draw):
        storage.write_at(event.data[start - event.offset : stop - event.offset], start)


def _some_units(start: int, end: int, draw: Random) -> Iterator[tuple[int, int]]:
    """Yield ranges of whole 512-byte units of a range, about half of them; long writes tear in runs."""
    longest = max(1, (end - start) // SECTOR // 8)
    while start < end:
        stop = min(end, (start // SECTOR + draw.randint(1, longest)) * SECTOR)
        if draw.random() < 0.5:
            yield start, stop
        start = stop
