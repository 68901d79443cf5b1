"""
Logs that an open would not replay: no header names them, or what the header says of them is wrong.

Nothing of them is replayed on a guess.  What they would have changed is in doubt, unless it stands
there already (`doubts`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from pyvhdx._core import log_entry
from pyvhdx._core.doubts import Alternative
from pyvhdx._core.log_reader import Outcome, Replay, Ring, active_sequence, read_log, scan
from pyvhdx.errors import ImageError
from pyvhdx.format.constants import (
    LOG_ENTRY_SIGNATURE,
    LOG_SECTOR_SIZE,
    LOWEST_LOG_TARGET,
    MAX_FILE_SIZE,
    MIB,
    ZERO_GUID,
)
from pyvhdx.format.log import LogEntryHeader

if TYPE_CHECKING:
    from collections.abc import Iterable
    from uuid import UUID

    from pyvhdx._core.log_reader import Candidate
    from pyvhdx._types import ReadAt

# Whoever searches reads no more than this of what may be a log.
_MAX_RING = 256 * MIB
_MAX_GUIDS = 4
_MAX_DESCRIPTORS = 1 << 20
_MAX_PAGES = 1 << 16
_MAX_STARTS = 4
_MAX_PLACES = 32
_NEWEST = 4


class Traces:
    """
    Pages of the file that begin as log entries, by the log's GUID, and what they tell of where it lies.

    Whoever wrote them placed each entry at a multiple of 4 KiB in a log that begins at a multiple of 1 MiB.
    """

    def __init__(self, pages: Iterable[tuple[int, bytes]], named: UUID | None) -> None:
        self._headers: dict[UUID, list[tuple[int, LogEntryHeader]]] = {}
        for at, data in islice(pages, _MAX_PAGES):
            header = LogEntryHeader.parse(data)
            if header.log_guid != ZERO_GUID and named in (None, header.log_guid):
                self._headers.setdefault(header.log_guid, []).append((at, header))

    def places(self) -> list[tuple[int, int]]:
        """Return where logs may lie, (offset, length) in bytes, those of the newest entries first."""
        found = dict[tuple[int, int], None]()
        for entries in self._newest_first():
            first, last = entries[0][0], max(at + max(one.entry_length, 1) for at, one in entries)
            ends = {entries[-1][0] // MIB * MIB + MIB, -(-min(last, entries[-1][0] + _MAX_RING) // MIB) * MIB}
            newest = sorted(entries, key=lambda entry: -entry[1].sequence_number)[:_NEWEST]
            # The tail of the newest entry is where another one stands, counted from the start of the log.
            tails = {one.tail for _, one in newest}
            starts = Counter(
                at - tail for at, _ in entries for tail in tails if at >= tail + MIB and not (at - tail) % MIB
            )
            likely = [start for start, _ in starts.most_common(_MAX_STARTS)]
            for start in (first // MIB * MIB, *likely):
                found.update(dict.fromkeys((start, end - start) for end in sorted(ends) if end > start))
        return list(found)[:_MAX_PLACES]

    def clusters(self) -> list[tuple[UUID, int, int]]:
        """Return the GUID of the newest entries, and the runs of MiB that hold some: offset, length in bytes."""
        found: list[tuple[UUID, int, int]] = []
        for entries in self._newest_first()[:1]:
            for base in sorted({at // MIB * MIB for at, _ in entries}):
                guid = entries[0][1].log_guid
                if found and found[-1][1] + found[-1][2] == base:
                    found[-1] = guid, found[-1][1], found[-1][2] + MIB
                else:
                    found.append((guid, base, MIB))
        return found

    def _newest_first(self) -> list[list[tuple[int, LogEntryHeader]]]:
        groups = list(self._headers.values())
        return sorted(groups, key=lambda group: -max(one.sequence_number for _, one in group))[:_MAX_GUIDS]


class Found(NamedTuple):
    """A valid sequence, where its log begins in the file, and what it does."""

    offset: int
    guid: UUID
    replay: Replay

    @property
    def sequence_number(self) -> int:
        return self.replay.entries[-1].sequence_number


def rings(places: Iterable[tuple[int, int]], read: ReadAt, file_size: int) -> list[Ring]:
    """Return the logs that may lie at *places*, (offset, length) in bytes, cut to what the file holds."""
    found = []
    for offset, length in dict.fromkeys(places):
        length = min(length, _MAX_RING, file_size - offset) // MIB * MIB  # noqa: PLW2901 - cut to size
        if length > 0 and offset % MIB == 0 and offset > 0:
            found.append(Ring(read, offset, length))
    return found


def find_sequences(candidates: list[Ring], named: UUID | None, file_size: int) -> list[Found]:
    """
    Return the valid sequences in the logs that may be there, the newest first.

    Only entries of *named* count where it is given.  How long a log is may not be known: of several
    lengths the one that gives the newest sequence counts.
    """
    found: dict[tuple[int, UUID], Found] = {}
    for ring in candidates:
        for guid in (named,) if named else _guids(ring):
            try:
                replay = read_log(ring, guid, file_size)
            except ImageError:
                continue
            if not replay.entries:
                continue
            known = found.get((ring.offset, guid))
            if known is None or known.sequence_number < replay.entries[-1].sequence_number:
                found[ring.offset, guid] = Found(ring.offset, guid, replay)
    return sorted(found.values(), key=lambda one: -one.sequence_number)


def _guids(ring: Ring) -> list[UUID]:
    """Return whose entries stand in the log, the greatest sequence numbers first, and no more than a few."""
    newest: dict[UUID, int] = {}
    for base in range(0, ring.length, MIB):
        piece = ring.read(MIB, base)
        at = piece.find(LOG_ENTRY_SIGNATURE)
        while at >= 0:
            if at % LOG_SECTOR_SIZE == 0:
                header = LogEntryHeader.parse(piece[at : at + 64])
                if header.log_guid != ZERO_GUID:
                    known = newest.get(header.log_guid, 0)
                    newest[header.log_guid] = max(known, header.sequence_number)
            at = piece.find(LOG_ENTRY_SIGNATURE, at - at % LOG_SECTOR_SIZE + LOG_SECTOR_SIZE)
    return sorted(newest, key=lambda guid: -newest[guid])[:_MAX_GUIDS]


def as_alternative(replay: Replay) -> Alternative:
    """Return what a replay would make of the file."""
    return Alternative(dict(replay.pages), replay.zeroed)


def is_done(replay: Replay, read: ReadAt) -> bool:
    """Return whether all that a replay would write stands there already."""
    return not replay.zeroed[0] and all(read(len(page), at) == page for at, page in replay.pages.items())


def what_it_touches(ring: Ring, candidates: list[Candidate]) -> Alternative:
    """
    Return what a log without a valid sequence may have been about to do.

    A whole entry says what it writes; of one that is torn only the places count.
    """
    outcome, unknown = Outcome(), set[int]()
    left = _MAX_DESCRIPTORS
    for candidate in candidates:
        entry, read = candidate.entry, ring.reader(candidate.entry.position)
        fits = min(entry.header.descriptor_count, max(0, entry.header.entry_length - 64) // 32, left)
        left -= fits
        is_whole = candidate.fault is None
        sectors = log_entry.data_sectors(entry, read) if is_whole else iter(())
        header = entry.header if is_whole else replace(entry.header, descriptor_count=fits)
        for kinds, trailing, values, offsets, _ in log_entry.descriptors(entry._replace(header=header), read):
            for kind, last, value, offset in zip(kinds, trailing, values, offsets, strict=True):
                page = b""
                if kind == log_entry.DATA and is_whole:
                    page = value.to_bytes(8, "little") + next(sectors) + last.to_bytes(4, "little")
                if not LOWEST_LOG_TARGET <= offset < MAX_FILE_SIZE or offset % LOG_SECTOR_SIZE:
                    continue
                if kind == log_entry.DATA:
                    if is_whole:
                        outcome.write(offset, page)
                    else:
                        unknown.add(offset)
                elif kind == log_entry.ZERO and value and offset + value <= MAX_FILE_SIZE:
                    outcome.zero([offset], [offset + value - value % LOG_SECTOR_SIZE])
    pages, zeroed = outcome.settle()
    return Alternative({**pages, **dict.fromkeys(unknown)}, zeroed)


def cut_replay(ring: Ring, guid: UUID) -> Replay | None:
    """Return what the log does, in a file that lost its end; None where even that is not known."""
    entries = active_sequence(scan(ring, guid), ring.length)
    if not entries:
        return None
    try:
        return read_log(ring, guid, min(entries[-1].header.flushed_file_offset, MAX_FILE_SIZE))
    except ImageError:
        return None
