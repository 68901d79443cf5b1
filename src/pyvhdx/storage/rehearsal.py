"""Changes that are tried on a file without touching it, remembered, and carried out later."""

from __future__ import annotations

import tempfile
from bisect import bisect_left, bisect_right, insort
from typing import TYPE_CHECKING, NamedTuple

from pyvhdx.storage.protocol import data_runs

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from pyvhdx._types import Buffer, Progress
    from pyvhdx.storage.protocol import Storage

_PAGE = 4096
_PIECE = 1 << 20
_IN_MEMORY = 8 << 20


class Change(NamedTuple):
    """
    One call that changes a file, or a barrier.

    `kind` is ``"write"``, with its bytes at *source* of the scratch file; ``"copy"``, whose bytes come
    from *source* of the file itself; ``"truncate"`` to *length*; or ``"flush"``.
    """

    kind: str
    offset: int = 0
    length: int = 0
    source: int = 0


class Rehearsal:
    """
    A `Storage` that shows another one as it would be, and leaves it alone until `carry_out`.

    What is written goes to a scratch file, so that much of it takes little memory.  `copied` ranges are not
    even read before they are carried out; their sources must stay as they are.  One thread at a time.
    """

    def __init__(self, below: Storage) -> None:
        self.name = below.name
        self.below = below
        self.changes: list[Change] = []
        self._below_end = self._size = self._original_size = below.size()
        self._scratch = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115 - closed with this
        self._scratch_end = 0
        self._pages: dict[int, int] = {}  # page number -> where its content stands in the scratch file
        self._sorted: list[int] | None = []
        self._copies: list[tuple[int, int, int]] = []  # target, length, source

    # -- as a storage -------------------------------------------------------------------------

    def read_at(self, size: int, offset: int) -> bytes:
        buffer = bytearray(max(0, min(size, self._size - offset)))
        done = self.read_into(memoryview(buffer), offset)
        return bytes(buffer[:done])

    def read_into(self, buffer: memoryview, offset: int) -> int:
        size = max(0, min(len(buffer), self._size - offset))
        inside = max(0, min(size, self._below_end - offset))
        done = self.below.read_into(buffer[:inside], offset) if inside else 0
        if done < inside:  # someone else made it shorter: what is lost is not zeros
            size = done
        buffer[done:size] = bytes(size - done)
        end = offset + size
        first = max(0, bisect_right(self._copies, (offset, 0, 0)) - 1)
        for target, length, source in self._copies[first : bisect_left(self._copies, (end, 0, 0))]:
            start, stop = max(target, offset), min(target + length, end)
            if start < stop:
                self.below.read_into(buffer[start - offset : stop - offset], source + start - target)
        for number in self._pages_in(offset, end):
            start, stop = max(number * _PAGE, offset), min((number + 1) * _PAGE, end)
            data = self._scratched(self._pages[number] + start - number * _PAGE, stop - start)
            buffer[start - offset : stop - offset] = data
        return size

    def write_at(self, data: Buffer, offset: int) -> None:
        view = memoryview(data).cast("B")
        end = offset + len(view)
        kept = self._keep(view)
        self.changes.append(Change("write", offset, len(view), kept))
        self._size = max(self._size, end)
        for number in range(offset // _PAGE, -(-end // _PAGE)):
            at = number * _PAGE
            if offset <= at and at + _PAGE <= end:
                place = kept + at - offset
            else:
                page = bytearray(self.read_at(_PAGE, at).ljust(_PAGE, b"\0"))
                start, stop = max(at, offset), min(at + _PAGE, end)
                page[start - at : stop - at] = view[start - offset : stop - offset]
                place = self._keep(page)
            if number not in self._pages:
                self._sorted = None
            self._pages[number] = place

    def copied(self, source: int, target: int, length: int) -> None:
        """
        Copy a range of the file to a place that was added to it, where nothing was written yet.

        Both begin at whole pages.
        """
        if source + length > self._below_end:  # not all of it is in the file below
            for at in range(source, source + length, _PIECE):
                self.write_at(self.read_at(min(_PIECE, source + length - at), at), target + at - source)
            return
        self.changes.append(Change("copy", target, length, source))
        insort(self._copies, (target, length, source))
        pages = self._pages_in(source, source + length)
        for number in pages:  # what was written there before is copied too
            self._pages[number + (target - source) // _PAGE] = self._pages[number]
        if pages:
            self._sorted = None

    def truncate(self, size: int) -> None:
        self.changes.append(Change("truncate", 0, size))
        if size < self._size:
            self._below_end = min(self._below_end, size)
            for number in [number for number in self._pages if (number + 1) * _PAGE > size]:
                page = self.read_at(max(0, size - number * _PAGE), number * _PAGE)
                if page:
                    self._pages[number] = self._keep(page.ljust(_PAGE, b"\0"))
                else:
                    del self._pages[number]
                    self._sorted = None
        self._size = size

    def flush(self) -> None:
        self.changes.append(Change("flush"))

    def reserve(self, offset: int, length: int) -> None:
        """Nothing is written yet: `carry_out` reserves all of it."""

    def size(self) -> int:
        return self._size

    def allocated(self) -> int:
        return self.below.allocated()

    def next_data(self, offset: int) -> tuple[int, int] | None:
        if offset >= self._size:
            return None
        runs = []
        if offset < self._below_end and (run := self.below.next_data(offset)) and run[0] < self._below_end:
            runs.append((run[0], min(run[1], self._below_end)))
        pages = self._in_order()
        at = bisect_right(pages, offset // _PAGE - 1)
        if at < len(pages):
            start = pages[at] * _PAGE
            runs.append((max(start, offset), min(start + _PAGE, self._size)))
        for target, length, _ in self._copies:
            if target + length > offset:
                runs.append((max(target, offset), target + length))
                break
        return min(runs, default=None)

    def close(self) -> None:
        """Forget what was rehearsed; the file below stays open."""
        self._scratch.close()

    # -- from the rehearsal to the file -------------------------------------------------------

    def overwritten(self) -> list[tuple[int, int]]:
        """Return start and end of the ranges of the file that will have other bytes, in order and apart."""
        merged: list[tuple[int, int]] = []
        for start, end in sorted(
            (change.offset, min(change.offset + change.length, self._original_size))
            for change in self.changes
            if change.kind in ("write", "copy") and change.offset < self._original_size
        ):
            if merged and start <= merged[-1][1]:
                merged[-1] = merged[-1][0], max(end, merged[-1][1])
            else:
                merged.append((start, end))
        return merged

    def written_at(self, offsets: Collection[int], length: int) -> Iterator[bytes]:
        """Yield what is written to a range of *length* bytes at one of *offsets*, in order."""
        for change in self.changes:
            if change.kind == "write" and change.length == length and change.offset in offsets:
                yield self._scratched(change.source, length)

    def carry_out(self, storage: Storage, *, sync: bool, progress: Progress | None = None) -> None:
        """
        Do to *storage*, the file below, what was rehearsed, in the same order.

        What is overwritten is reserved first: a full disk shows before anything has changed.
        """
        for start, end in self.overwritten():
            storage.reserve(start, end - start)
        total = sum(change.length for change in self.changes if change.kind in ("write", "copy"))
        done = 0
        for change in self.changes:
            if change.kind == "write":
                for skip in range(0, change.length, _PIECE):
                    piece = self._scratched(change.source + skip, min(_PIECE, change.length - skip))
                    storage.write_at(piece, change.offset + skip)
            elif change.kind == "copy":
                _copy(storage, change)
            elif change.kind == "truncate":
                storage.truncate(change.length)
            elif sync:
                storage.flush()
            if change.kind in ("write", "copy"):
                done += change.length
                if progress is not None:
                    progress(done, total)

    def _keep(self, data: Buffer) -> int:
        place = self._scratch_end
        self._scratch.seek(place)
        self._scratch.write(data)
        self._scratch_end += len(memoryview(data))
        return place

    def _scratched(self, place: int, length: int) -> bytes:
        self._scratch.seek(place)
        return self._scratch.read(length)

    def _in_order(self) -> list[int]:
        if self._sorted is None:
            self._sorted = sorted(self._pages)
        return self._sorted

    def _pages_in(self, offset: int, end: int) -> list[int]:
        if end - offset <= 64 * _PAGE:  # most reads are short: no need to sort for them
            numbers = range(offset // _PAGE, -(-end // _PAGE))
            return [number for number in numbers if number in self._pages]
        pages = self._in_order()
        return pages[bisect_left(pages, offset // _PAGE) : bisect_left(pages, -(-end // _PAGE))]


def _copy(storage: Storage, change: Change) -> None:
    """Copy what is data; the target was added to the file, and is zeros."""
    for start, stop in data_runs(storage.next_data, change.source, change.source + change.length):
        at = start
        while at < stop:
            piece = storage.read_at(min(_PIECE, stop - at), at)
            if not piece:
                return
            storage.write_at(piece, change.offset + at - change.source)
            at += len(piece)
