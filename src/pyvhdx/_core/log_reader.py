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

from heapq import heappop, heappush
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
    from collections.abc import Callable
    from uuid import UUID

    from pyvhdx._types import ReadAt
    from pyvhdx.errors import Finding

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

    *pages* maps file offsets to 4 KiB, *zeroed* are (start, end) pairs, sorted and apart, that
    read as zeros where no page lies on them; the file is at least *size* bytes long.
    """

    pages: dict[int, bytes]
    zeroed: list[tuple[int, int]]
    size: int
    entries: list[Entry]
    findings: list[Finding]


def scan(ring: Ring, log_guid: UUID) -> list[Candidate]:
    """Return everything in the log that starts like an entry of *log_guid*, in ring order."""
    guid = log_guid.bytes_le
    starts, heads = [], {}
    for base in range(0, ring.length, _PIECE):
        piece = ring.read(min(_PIECE, ring.length - base), base)
        for at in range(0, len(piece), LOG_SECTOR_SIZE):
            if piece.startswith(LOG_ENTRY_SIGNATURE, at):
                starts.append(base + at)
                if piece.startswith(guid, at + 32):
                    heads[base + at] = piece[at : at + 64]
    candidates = []
    for position, following in zip(starts, starts[1:] + starts[:1], strict=True):
        if position in heads:
            header = LogEntryHeader.parse(heads[position])
            room = (following - position) % ring.length or ring.length
            fault = log_entry.find_fault(header, ring.length, room, ring.reader(position))
            candidates.append(Candidate(Entry(position, header), fault))
    return candidates


def active_sequence(candidates: list[Candidate], log_length: int) -> list[Entry]:
    """Return the entries to replay, from the head's tail to the head; empty where there is no sequence."""
    valid = {c.entry.position: c.entry for c in candidates if c.fault is None}
    following = {}
    for entry in valid.values():
        after = valid.get((entry.position + entry.header.entry_length) % log_length)
        if after is not None and after.sequence_number == entry.sequence_number + 1:
            following[entry.position] = after
    led_to = {entry.position for entry in following.values()}
    best: list[Entry] = []
    for entry in valid.values():
        if entry.position in led_to:
            continue
        run = [entry]
        while (after := following.get(run[-1].position)) is not None:
            run.append(after)
        tail = run[-1].header.tail
        start = next((n for n, e in enumerate(run) if e.position == tail), None)
        if start is not None and (not best or run[-1].sequence_number > best[-1].sequence_number):
            best = run[start:]
    return best


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
        return Replay({}, [], file_size, [], [empty])
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
            f"{len(entries)} entries are replayed, sequence numbers {entries[0].sequence_number} to {head.sequence_number}",
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
    limit = round_up(max(file_size, head.last_file_offset), ALIGNMENT)
    outcome = _Outcome()
    for entry in entries:
        _replay(entry, ring, limit, outcome)
    pages, zeroed = outcome.settle()
    size = max(
        [
            file_size,
            head.last_file_offset,
            *(at + LOG_SECTOR_SIZE for at in pages),
            *(end for _, end in zeroed),
        ]
    )
    return Replay(pages, zeroed, size, entries, findings)


def _replay(entry: Entry, ring: Ring, limit: int, outcome: _Outcome) -> None:
    read = ring.reader(entry.position)
    sectors = log_entry.data_sectors(entry, read)
    for target in log_entry.targets(entry, read):
        end = target.offset + target.length
        wrong = None
        if target.offset < LOWEST_LOG_TARGET:
            wrong = "lies in the header section before the region tables"
        elif end > limit or end > MAX_FILE_SIZE:
            wrong = f"ends behind {min(limit, MAX_FILE_SIZE):#x}, where the file will end"
        elif target.offset < ring.offset + ring.length and end > ring.offset:
            wrong = "lies in the log itself"
        if wrong:
            raise corrupt(
                "LOG-TARGET",
                "log entry",
                ring.offset + entry.position,
                "2.3.1",
                f"it writes {target.length:#x} bytes at {target.offset:#x}, which {wrong}",
            )
        if target.ends is None:
            outcome.zero(target.offset, end)
        else:
            leading, trailing = target.ends
            outcome.write(target.offset, leading + next(sectors) + trailing)


class _Outcome:
    """Collects pages and zeroed ranges in their order, and settles which of them is on top."""

    def __init__(self) -> None:
        self._pages: dict[int, tuple[int, bytes]] = {}
        self._zeroed: list[tuple[int, int, int]] = []
        self._order = 0

    def write(self, offset: int, page: bytes) -> None:
        self._order += 1
        self._pages[offset] = (self._order, page)

    def zero(self, start: int, end: int) -> None:
        self._order += 1
        if start < end:
            self._zeroed.append((start, end, self._order))

    def settle(self) -> tuple[dict[int, bytes], list[tuple[int, int]]]:
        """One sweep over both, sorted by offset: a range is never taken apart into pages."""
        self._zeroed.sort()
        pages = {}
        covering: list[tuple[int, int]] = []  # (minus order, end): the newest range first
        upcoming = iter([*self._zeroed, (MAX_FILE_SIZE + 1, 0, 0)])
        start, end, order = next(upcoming)
        for offset, (written, page) in sorted(self._pages.items()):
            while start <= offset:
                heappush(covering, (-order, end))
                start, end, order = next(upcoming)
            while covering and covering[0][1] <= offset:
                heappop(covering)
            if not covering or written > -covering[0][0]:
                pages[offset] = page
        joined: list[tuple[int, int]] = []
        for start, end, _ in self._zeroed:
            if joined and start <= joined[-1][1]:
                joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
            else:
                joined.append((start, end))
        return pages, joined
