"""
From the bytes of the log to what a replay does: the active sequence (MS-VHDX 2.3.2, 2.3.3).

The specification finds the active sequence by trying each position; that is quadratic.  Here:

1. Entries can only start at log sectors that begin with 'loge' and carry the header's LogGuid;
   every other sector of an entry begins otherwise.  So an entry that reaches the next 'loge' is
   not valid, entries do not overlap, and each byte is summed at most once.
2. Each valid entry is linked to the valid entry that starts where it ends, if that one's sequence
   number is one more.  A chain that nothing leads to is a run.
3. A run is a sequence if the tail of its last entry is the start of one of its own entries.  The
   one that ends with the greatest sequence number is active, from that tail on.
"""

from __future__ import annotations

from array import array
from heapq import heappop, heappush
from operator import add
from typing import TYPE_CHECKING, NamedTuple

from pyvhdx._core import log_entry
from pyvhdx._core.findings import corrupt, tolerated
from pyvhdx._core.log_entry import Entry
from pyvhdx.format.constants import (
    ALIGNMENT,
    LOG_ENTRY_SIGNATURE,
    LOG_SECTOR_SIZE,
    LOWEST_LOG_TARGET,
    MAX_FILE_SIZE,
    round_up,
)
from pyvhdx.format.log import LogEntryHeader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from uuid import UUID

    from pyvhdx._types import ReadAt
    from pyvhdx.errors import CorruptImageError, Finding

_PIECE = 1 << 20


class Ring(NamedTuple):
    """The log in its file: *offset* and *length* in bytes, multiples of 1 MiB."""

    read_file: ReadAt
    offset: int
    length: int

    def read(self, size: int, position: int) -> bytes:
        """Return *size* bytes from *position*, going on at the start where the log ends."""
        position %= self.length
        data = self.read_file(min(size, self.length - position), self.offset + position)
        if len(data) < size:
            data += self.read_file(size - len(data), self.offset)
        if len(data) != size:
            raise corrupt("LOG-RANGE", "log", self.offset, "2.2.2", "the file ends inside the log")
        return data

    def reader(self, entry_position: int) -> Callable[[int, int], bytes]:
        """Return a function (size, offset in the entry) -> bytes."""
        return lambda size, offset: self.read(size, entry_position + offset)


class Candidate(NamedTuple):
    """What stands where an entry could start; *fault* is None for a valid entry."""

    entry: Entry
    fault: str | None


class Replay(NamedTuple):
    """
    What the file will look like: the outcome of the active sequence.

    *pages* maps file offsets to 4 KiB, *zeroed* are the starts and the ends of ranges, sorted and
    apart, that read as zeros where no page lies on them; the file is at least *size* bytes long.
    """

    pages: dict[int, bytes]
    zeroed: tuple[array[int], array[int]]
    size: int
    entries: list[Entry]
    findings: list[Finding]


def count_of(entries: list[Entry]) -> str:
    """Return how many there are, in words."""
    return "1 entry" if len(entries) == 1 else f"{len(entries)} entries"


def scan(ring: Ring, log_guid: UUID) -> list[Candidate]:
    """Return everything in the log that starts like an entry of *log_guid*, in ring order."""
    guid = log_guid.bytes_le
    starts, heads = [], {}
    for base in range(0, ring.length, _PIECE):
        piece = ring.read(min(_PIECE, ring.length - base), base)
        if LOG_ENTRY_SIGNATURE not in piece:  # a large log is mostly empty
            continue
        for at in range(0, len(piece), LOG_SECTOR_SIZE):
            if piece.startswith(LOG_ENTRY_SIGNATURE, at):
                starts.append(base + at)
                if piece.startswith(guid, at + 32):
                    heads[base + at] = piece[at : at + 64]
    candidates = []
    for position, following in zip(starts, starts[1:] + starts[:1], strict=True):
        if position in heads:
            (header,) = LogEntryHeader.parse_table(heads[position])  # there may be very many
            room = (following - position) % ring.length or ring.length
            fault = log_entry.find_fault(header, ring.length, room, ring.reader(position))
            candidates.append(Candidate(Entry(position, header), fault))
    return candidates


def active_sequence(candidates: list[Candidate], log_length: int) -> list[Entry]:
    """Return the entries to replay, from the head's tail to the head; empty where there is no sequence."""
    found = sequences(candidates, log_length)
    return max(found, key=lambda entries: entries[-1].sequence_number) if found else []


def sequences(candidates: list[Candidate], log_length: int) -> list[list[Entry]]:
    """Return every valid sequence of the log, from its tail to its head."""
    valid = {c.entry.position: c.entry for c in candidates if c.fault is None}
    following = {}
    for entry in valid.values():
        after = valid.get((entry.position + entry.header.entry_length) % log_length)
        if after is not None and after.sequence_number == entry.sequence_number + 1:
            following[entry.position] = after
    led_to = {entry.position for entry in following.values()}
    found = []
    for entry in valid.values():
        if entry.position in led_to:
            continue
        run = [entry]
        while (after := following.get(run[-1].position)) is not None:
            run.append(after)
        tail = run[-1].header.tail
        start = next((n for n, e in enumerate(run) if e.position == tail), None)
        if start is not None:
            found.append(run[start:])
    return found


def _torn_entry(candidates: list[Candidate], head: Entry, log_length: int) -> Candidate | None:
    """Return what stands where the next entry would, with the number that it would have, and is not valid."""
    after = (head.position + head.header.entry_length) % log_length
    for one in candidates:
        if (
            one.entry.position == after
            and one.entry.sequence_number == head.sequence_number + 1
            and one.fault
        ):
            return one
    return None


def read_log(ring: Ring, log_guid: UUID, file_size: int) -> Replay:
    """
    Return what a replay of the log does to a file of *file_size* bytes.

    Raises `CorruptImageError` where entries carry *log_guid* and none makes a valid sequence, where
    the file is shorter than it was when the newest entry was written, and where an entry of the
    active sequence points at a place that no log may touch.  A log in which nothing carries
    *log_guid* is empty: whoever named it was stopped before the first entry, so nothing was applied.
    """
    candidates = scan(ring, log_guid)
    entries = active_sequence(candidates, ring.length)
    if not entries:
        if candidates:
            first = candidates[0]
            why = first.fault or "its tail leads nowhere"
            raise corrupt(
                "LOG-NO-SEQUENCE",
                "log",
                ring.offset,
                "2.3.3",
                f"the header names a log, and no entry of it makes a valid sequence "
                f"(of {len(candidates)}; the one at {ring.offset + first.entry.position:#x}: {why})",
            )
        empty = tolerated(
            "LOG-EMPTY",
            "log",
            ring.offset,
            "2.3.3",
            "the header names a log that holds no entry; nothing is to be replayed",
        )
        return Replay({}, (array("Q"), array("Q")), file_size, [], [empty])
    head = entries[-1].header
    where = ring.offset + entries[-1].position
    if head.flushed_file_offset > file_size:
        raise corrupt(
            "LOG-FILE-TRUNCATED",
            "log entry",
            where,
            "2.3.1.1",
            f"the file was {head.flushed_file_offset:#x} bytes long when this was written, and is {file_size:#x} now",
        )
    if head.last_file_offset > MAX_FILE_SIZE:
        raise corrupt(
            "LOG-TARGET",
            "log entry",
            where,
            "2.3.1.1",
            f"it asks for a file of {head.last_file_offset:#x} bytes",
        )
    findings = [
        tolerated(
            "LOG-PENDING",
            "log",
            ring.offset,
            "2.3.3",
            f"{count_of(entries)} replayed in memory, sequence numbers "
            f"{entries[0].sequence_number} to {head.sequence_number}",
        )
    ]
    if head.flushed_file_offset % ALIGNMENT or head.last_file_offset % ALIGNMENT:
        findings.append(
            tolerated(
                "LOG-FILE-OFFSETS",
                "log entry",
                where,
                "2.3.1.1",
                "its file offsets are no multiples of 1 MiB",
            )
        )
    torn = _torn_entry(candidates, entries[-1], ring.length)
    if torn is not None:
        findings.append(
            tolerated(
                "LOG-TORN",
                "log entry",
                ring.offset + torn.entry.position,
                "2.3.2",
                f"the entry {torn.entry.sequence_number} behind the newest whole one is not whole ({torn.fault}), and "
                "is left out: a write that was cut short, or damage",
            )
        )
    limit = min(round_up(max(file_size, head.last_file_offset), ALIGNMENT), MAX_FILE_SIZE)
    outcome = Outcome()
    for entry in entries:
        _replay(entry, ring, limit, outcome)
    pages, zeroed = outcome.settle()
    size = max(
        file_size,
        head.last_file_offset,
        max(pages, default=-LOG_SECTOR_SIZE) + LOG_SECTOR_SIZE,
        max(zeroed[1], default=0),
    )
    return Replay(pages, zeroed, size, entries, findings)


def _replay(entry: Entry, ring: Ring, limit: int, outcome: Outcome) -> None:
    read = ring.reader(entry.position)
    sectors = log_entry.data_sectors(entry, read)
    ring_start, ring_end = ring.offset, ring.offset + ring.length
    for kinds, trailing, values, offsets, _ in log_entry.descriptors(entry, read):
        for_pages = [LOG_SECTOR_SIZE if kind == log_entry.DATA else 0 for kind in kinds]
        lengths = [page or value for page, value in zip(for_pages, values, strict=True)]
        ends = list(map(add, offsets, lengths))
        if (
            min(offsets, default=LOWEST_LOG_TARGET) < LOWEST_LOG_TARGET
            or max(ends, default=0) > limit
            or any(start < ring_end and end > ring_start for start, end in zip(offsets, ends, strict=True))
        ):
            raise _wrong_target(entry, ring, limit, zip(offsets, lengths, strict=True))
        if 0 in lengths or any(for_pages):
            for is_page, last, value, offset, end in zip(
                for_pages, trailing, values, offsets, ends, strict=True
            ):
                if is_page:
                    page = value.to_bytes(8, "little") + next(sectors) + last.to_bytes(4, "little")
                    outcome.write(offset, page)
                elif offset < end:
                    outcome.zero((offset,), (end,))
        else:
            outcome.zero(offsets, ends)


def _wrong_target(
    entry: Entry, ring: Ring, limit: int, targets: Iterable[tuple[int, int]]
) -> CorruptImageError:
    """Return the error for the first of *targets*, (offset, length), that no log may touch."""
    offset, length = next(
        (offset, length)
        for offset, length in targets
        if offset < LOWEST_LOG_TARGET
        or offset + length > limit
        or (offset < ring.offset + ring.length and offset + length > ring.offset)
    )
    if offset < LOWEST_LOG_TARGET:
        wrong = "lies in the header section before the region tables"
    elif offset + length > limit:
        wrong = f"ends behind {limit:#x}, where the file will end"
    else:
        wrong = "lies in the log itself"
    return corrupt(
        "LOG-TARGET",
        "log entry",
        ring.offset + entry.position,
        "2.3.1",
        f"it writes {length:#x} bytes at {offset:#x}, which {wrong}",
    )


class Outcome:
    """
    Collects pages and zeroed ranges in their order, and settles which of them is on top.

    Ranges may come by the million, so they are kept as integers in arrays: a key is the start in
    pages above the number of the range.
    """

    _NUMBER_BITS = 28

    def __init__(self) -> None:
        self._pages: dict[int, tuple[int, bytes]] = {}
        self._keys = array("Q")
        self._ends = array("Q")

    def write(self, offset: int, page: bytes) -> None:
        # A page lies over the ranges that came before it.
        self._pages[offset] = (len(self._ends), page)

    def zero(self, starts: Iterable[int], ends: Sequence[int]) -> None:
        bits, first = self._NUMBER_BITS, len(self._ends)
        self._keys.extend(
            [start // LOG_SECTOR_SIZE << bits | number for number, start in enumerate(starts, first)]
        )
        self._ends.extend(ends)

    def settle(self) -> tuple[dict[int, bytes], tuple[array[int], array[int]]]:
        """
        Return the pages that no later range covers, and the union of the ranges.

        One sweep over both, sorted by offset: a range is never taken apart into pages.
        """
        starts, ends = array("Q"), array("Q")
        covers = _Covers(self._pages, self._ends)
        mask = (1 << self._NUMBER_BITS) - 1
        keys = sorted(self._keys, reverse=True)
        self._keys = array("Q")
        first = last = 0  # the union so far ends with this range
        while keys:
            key = keys.pop()  # there may be millions, and each is let go when it has been looked at
            start, end = (key >> self._NUMBER_BITS) * LOG_SECTOR_SIZE, self._ends[key & mask]
            if covers.next_page < end:
                covers.add(key & mask, start)
            if start <= last:
                last = max(end, last)
            else:
                if last:
                    starts.append(first)
                    ends.append(last)
                first, last = start, end
        if last:
            starts.append(first)
            ends.append(last)
        covers.pass_pages(MAX_FILE_SIZE)
        pages = {at: page for at, (_, page) in self._pages.items() if at not in covers.hidden}
        return pages, (starts, ends)


class _Covers:
    """Finds the pages that a later range covers; ranges are added in the order of their starts."""

    def __init__(self, pages: dict[int, tuple[int, bytes]], ends: array[int]) -> None:
        self.hidden: set[int] = set()
        self._pages = pages
        self._ends = ends
        self._upcoming = iter(sorted(pages))
        self._newest: list[int] = []  # minus the numbers of ranges that reach the next page: a heap
        self.next_page = next(self._upcoming, MAX_FILE_SIZE)

    def add(self, number: int, start: int) -> None:
        """Enter a range that reaches beyond the next page."""
        self.pass_pages(start)
        if self.next_page < self._ends[number]:
            heappush(self._newest, -number)

    def pass_pages(self, start: int) -> None:
        """Decide about the pages in front of *start*."""
        newest, ends = self._newest, self._ends
        while self.next_page < start:
            while newest and ends[-newest[0]] <= self.next_page:
                heappop(newest)
            if newest and -newest[0] >= self._pages[self.next_page][0]:
                self.hidden.add(self.next_page)
            self.next_page = next(self._upcoming, MAX_FILE_SIZE)
