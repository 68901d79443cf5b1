"""Where the regions lie (MS-VHDX 2.2.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyvhdx._core.findings import Steps, corrupt, strictly, tolerated, unsupported
from pyvhdx._core.rules import CORRUPT, WARNING
from pyvhdx.format.constants import (
    ALIGNMENT,
    BAT_REGION,
    HEADER_SECTION_SIZE,
    MAX_REGION_ENTRIES,
    METADATA_REGION,
    REGION_TABLE_OFFSETS,
    ZERO_GUID,
    round_up,
)
from pyvhdx.format.region import (
    RegionTableEntry,
    RegionTableHeader,
    is_valid_region_table,
    parse_region_entries,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyvhdx._core.findings import Problem
    from pyvhdx.errors import Finding

_SECTION = "2.2.3"
_KNOWN = {BAT_REGION: "BAT", METADATA_REGION: "metadata"}


class Span(NamedTuple):
    """A range of the file that belongs to something: *start* and *end* in bytes."""

    start: int
    end: int
    owner: str


class Regions(NamedTuple):
    """The two regions that every file has, and all of them in the order of the table."""

    bat: RegionTableEntry
    metadata: RegionTableEntry
    entries: list[RegionTableEntry]
    findings: list[Finding]


def read_regions(copies: tuple[bytes, bytes], log: Span, *, log_in_use: bool, file_size: int) -> Regions:
    """
    Return the regions that the two 64 KiB *copies* of the table name.

    The first copy is used if its signature and checksum are right, else the second; a wrong content
    under a right checksum is no reason to look at the second.
    """
    entries, findings = strictly(examine_regions(copies, log, log_in_use=log_in_use, file_size=file_size))
    known = {entry.guid: entry for entry in entries}
    return Regions(known[BAT_REGION], known[METADATA_REGION], entries, findings)


def examine_regions(
    copies: tuple[bytes, bytes], log: Span, *, log_in_use: bool, file_size: int
) -> Steps[list[RegionTableEntry]]:
    """Yield what is wrong with the table, and return the regions whose numbers can be."""
    valid = [is_valid_region_table(data) for data in copies]
    if not any(valid):
        yield corrupt(
            "REGION-NONE",
            "region tables",
            REGION_TABLE_OFFSETS[0],
            _SECTION,
            "neither copy has the signature 'regi' and a right checksum",
        )
        return []
    used = 0 if valid[0] else 1
    table = REGION_TABLE_OFFSETS[used]
    if not all(valid):
        yield tolerated(
            "REGION-COPY",
            "region table",
            REGION_TABLE_OFFSETS[1 - used],
            _SECTION,
            "this copy has a wrong signature or checksum; the other is used",
        )
    elif copies[0] != copies[1]:
        first, second = (_known_entries(data) for data in copies)
        yield tolerated(
            "REGION-COPIES",
            "region tables",
            table,
            _SECTION,
            "the two copies differ; the first is used",
            WARNING if first == second else CORRUPT,
        )
    head = RegionTableHeader.parse(copies[used])
    if head.entry_count > MAX_REGION_ENTRIES:
        yield corrupt(
            "REGION-COUNT",
            "region table",
            table,
            _SECTION,
            f"{head.entry_count} entries, and at most 2047 fit",
        )
        return []
    all_entries = parse_region_entries(copies[used], head.entry_count)
    right = yield from _check_entries(all_entries, table)
    entries = list(right.values())
    yield from _check_overlaps(entries, log, table, log_in_use=log_in_use)
    named = {entry.guid for entry in all_entries}
    for guid, name in _KNOWN.items():
        if guid not in named:
            yield corrupt("REGION-MISSING", "region table", table, _SECTION, f"there is no {name} region")
    for number, entry in right.items():
        if entry.end > round_up(file_size, ALIGNMENT):
            message = f"the {region_name(entry)} ends at {entry.end:#x}, behind the end of the file at {file_size:#x}"
            place = _place(table, number)
            if entry.guid in _KNOWN:
                yield corrupt("REGION-RANGE", "region table", place, _SECTION, message)
            else:  # and nobody knows what it held
                yield tolerated("REGION-RANGE", "region table", place, _SECTION, message, repairable=False)
    return entries


def _known_entries(data: bytes) -> list[RegionTableEntry]:
    count = min(RegionTableHeader.parse(data).entry_count, MAX_REGION_ENTRIES)
    return [entry for entry in parse_region_entries(data, count) if entry.guid in _KNOWN]


def _check_entries(entries: list[RegionTableEntry], table: int) -> Steps[dict[int, RegionTableEntry]]:
    seen = set()
    right = {}
    for number, entry in enumerate(entries):
        place = _place(table, number)
        if entry.guid == ZERO_GUID or entry.guid in seen:
            yield corrupt(
                "REGION-GUID",
                "region table",
                place,
                _SECTION,
                f"region {entry.guid} is zero or appears twice",
            )
            continue
        seen.add(entry.guid)
        if (
            entry.file_offset % ALIGNMENT
            or entry.length % ALIGNMENT
            or not entry.length
            or entry.file_offset < HEADER_SECTION_SIZE
        ):
            yield corrupt(
                "REGION-RANGE",
                "region table",
                place,
                _SECTION,
                f"the {region_name(entry)} has offset {entry.file_offset:#x} and length {entry.length:#x}; "
                "both must be multiples of 1 MiB, behind the header section, and not empty",
            )
        else:
            right[number] = entry
        if entry.required & 1 and entry.guid not in _KNOWN:
            yield unsupported(
                "REGION-UNKNOWN",
                "region table",
                place,
                _SECTION,
                f"region {entry.guid} is required, and is not known here",
            )
    return right


def _check_overlaps(
    entries: list[RegionTableEntry], log: Span, table: int, *, log_in_use: bool
) -> Iterator[Problem]:
    spans = sorted(Span(entry.file_offset, entry.end, region_name(entry)) for entry in entries)
    widest = spans[0] if spans else log
    for span in spans[1:]:
        if span.start < widest.end:
            message = f"the {widest.owner} and the {span.owner} overlap at {span.start:#x}"
            yield corrupt("REGION-OVERLAP", "region table", table, _SECTION, message)
        widest = max(widest, span, key=lambda one: one.end)
    for span in spans:
        at = max(span.start, log.start)
        if at < min(span.end, log.end):
            message = f"the {span.owner} and the log overlap at {at:#x}"
            if log_in_use:
                yield corrupt("REGION-OVERLAP", "region table", table, _SECTION, message)
            else:
                yield tolerated("LOG-OVERLAP", "region table", table, _SECTION, message)


def region_name(entry: RegionTableEntry) -> str:
    """Return how to call a region in a message."""
    return f"{_KNOWN.get(entry.guid, entry.guid)} region"


def _place(table: int, number: int) -> int:
    return table + RegionTableHeader.packer.size + RegionTableEntry.packer.size * number
