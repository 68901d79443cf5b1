"""What a replay of the log would do, and what is odd about it (MS-VHDX 2.3)."""

from __future__ import annotations

from bisect import bisect_right
from heapq import merge
from typing import TYPE_CHECKING

from pyvhdx._core.log_entry import MAX_DESCRIPTORS
from pyvhdx._core.log_reader import scan, sequences
from pyvhdx.format import constants as c

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyvhdx._core.checks.collector import Collector
    from pyvhdx._core.log_reader import Replay, Ring
    from pyvhdx._core.survey import Survey


def check_log(known: Survey, collector: Collector) -> None:
    """Look at the entries that a replay uses; what makes an entry invalid is no finding of its own."""
    if known.ring is None or known.replay is None or not known.replay.entries or known.header is None:
        return
    ring, replay, head = known.ring, known.replay, known.replay.entries[-1].header
    at = ring.offset + replay.entries[-1].position
    if head.last_file_offset > known.raw.size():
        collector.found(
            "LOG-LAST-OFFSET",
            at,
            f"the file must become {head.last_file_offset:#x} bytes long, and has {known.raw.size():#x}",
        )
    _check_entries(ring, replay, collector)
    ends = [found[-1] for found in sequences(scan(ring, known.header.log_guid), ring.length)]
    twins = [end for end in ends if end.sequence_number == head.sequence_number]
    if len(twins) > 1:
        collector.found(
            "LOG-SEQUENCES",
            ring.offset + twins[1].position,
            f"{len(twins)} sequences end with number {head.sequence_number}; the first is replayed",
        )
    strays = _strays(known, replay)
    first = next(strays, None)
    if first is not None:
        others = sum(1 for _ in strays)
        what = f"and {others} more places " if others else ""
        collector.found("LOG-STRAY", at, f"the log writes at {first:#x} {what}where no metadata lies")


def _check_entries(ring: Ring, replay: Replay, collector: Collector) -> None:
    for entry in replay.entries:
        header = entry.header
        at = ring.offset + entry.position
        if header.descriptor_count > MAX_DESCRIPTORS:
            collector.found(
                "LOG-DESCRIPTORS",
                at,
                f"it has {header.descriptor_count} descriptors; QEMU replays 126 at most",
            )
        unaligned = header.flushed_file_offset % c.ALIGNMENT or header.last_file_offset % c.ALIGNMENT
        is_head = entry is replay.entries[-1]  # of which the reader of the log has said it
        if unaligned and not is_head:
            collector.found(
                "LOG-FILE-OFFSETS",
                at,
                f"its file offsets {header.flushed_file_offset:#x} and {header.last_file_offset:#x} are no "
                "multiples of 1 MiB",
            )


def _strays(known: Survey, replay: Replay) -> Iterator[int]:
    """Yield where the replay writes that is neither region table nor region nor sector bitmap."""
    tables = c.REGION_TABLE_OFFSETS[0], c.REGION_TABLE_OFFSETS[1] + c.REGION_TABLE_SIZE
    spans = [
        tables,
        *((entry.file_offset, entry.end) for entry in (known.bat, known.metadata_region) if entry),
    ]
    limit = replay.entries[-1].header.last_file_offset
    bitmaps: set[int] | None = None
    # Both may be millions, and the ranges are in order already.
    pages = ((at, at + c.LOG_SECTOR_SIZE) for at in sorted(replay.pages))
    spans.sort()
    starts = [start for start, _ in spans]
    for start, end in merge(pages, zip(*replay.zeroed, strict=True)):
        number = bisect_right(starts, start) - 1
        inside = number >= 0 and end <= spans[number][1]
        if not inside:
            if bitmaps is None:
                bitmaps = set(_bitmap_places(known))
            first = start // c.ALIGNMENT
            inside = all(unit in bitmaps for unit in range(first, min(-(-end // c.ALIGNMENT), first + 4096)))
        if not inside or (limit and end > limit):
            yield start


def _bitmap_places(known: Survey) -> Iterator[int]:
    """Yield the MiB of sector bitmaps, as they are before the replay and after it."""
    geometry = known.geometry
    if geometry is None or known.bat is None:
        return
    for chunk in range(geometry.chunk_count):
        at = known.bat.file_offset + geometry.bitmap_index(chunk) * c.BAT_ENTRY_SIZE
        for read in (known.raw.read_at, known.storage.read_at):
            entry = int.from_bytes(read(c.BAT_ENTRY_SIZE, at), "little")
            if entry & c.STATE_MASK == c.BitmapState.PRESENT:
                yield entry // c.ALIGNMENT
