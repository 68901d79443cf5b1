"""Where the regions lie (MS-VHDX 2.2.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyvhdx._core.findings import corrupt, tolerated, unsupported
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
    valid = [is_valid_region_table(data) for data in copies]
    if not any(valid):
        raise corrupt(
            "REGION-NONE",
            "region tables",
            REGION_TABLE_OFFSETS[0],
            _SECTION,
            "neither copy has the signature 'regi' and a right checksum",
        )
    used = 0 if valid[0] else 1
    table = REGION_TABLE_OFFSETS[used]
    findings = []
    if not all(valid):
        findings.append(
            tolerated(
                "REGION-COPY",
                "region table",
                REGION_TABLE_OFFSETS[1 - used],
                _SECTION,
                "this copy has a wrong signature or checksum; the other is used",
            )
        )
    elif copies[0] != copies[1]:
        findings.append(
            tolerated(
                "REGION-COPIES", "region tables", table, _SECTION, "the two copies differ; the first is used"
            )
        )
    head = RegionTableHeader.parse(copies[used])
    if head.entry_count > MAX_REGION_ENTRIES:
        raise corrupt(
            "REGION-COUNT",
            "region table",
            table,
            _SECTION,
            f"{head.entry_count} entries, and at most 2047 fit",
        )
    entries = parse_region_entries(copies[used], head.entry_count)
    _check_entries(entries, table)
    _check_overlaps(entries, log, findings, table, log_in_use=log_in_use)
    known = {entry.guid: entry for entry in entries}
    for guid, name in _KNOWN.items():
        if guid not in known:
            raise corrupt("REGION-MISSING", "region table", table, _SECTION, f"there is no {name} region")
    for number, entry in enumerate(entries):
        if entry.end > round_up(file_size, ALIGNMENT):
            message = f"the {region_name(entry)} ends at {entry.end:#x}, behind the end of the file at {file_size:#x}"
            if entry.guid in _KNOWN:
                raise corrupt("REGION-RANGE", "region table", _place(table, number), _SECTION, message)
            findings.append(
                tolerated("REGION-RANGE", "region table", _place(table, number), _SECTION, message)
            )
    return Regions(known[BAT_REGION], known[METADATA_REGION], entries, findings)


def _check_entries(entries: list[RegionTableEntry], table: int) -> None:
    seen = set()
    for number, entry in enumerate(entries):
        place = _place(table, number)
        if entry.guid == ZERO_GUID or entry.guid in seen:
            raise corrupt(
                "REGION-GUID",
                "region table",
                place,
                _SECTION,
                f"region {entry.guid} is zero or appears twice",
            )
        seen.add(entry.guid)
        if (
            entry.file_offset % ALIGNMENT
            or entry.length % ALIGNMENT
            or not entry.length
            or entry.file_offset < HEADER_SECTION_SIZE
        ):
            raise corrupt(
                "REGION-RANGE",
                "region table",
                place,
                _SECTION,
                f"the {region_name(entry)} has offset {entry.file_offset:#x} and length {entry.length:#x}; "
                "both must be multiples of 1 MiB, behind the header section, and not empty",
            )
        if entry.required & 1 and entry.guid not in _KNOWN:
            raise unsupported(
                "REGION-UNKNOWN",
                "region table",
                place,
                _SECTION,
                f"region {entry.guid} is required, and is not known here",
            )


def _check_overlaps(
    entries: list[RegionTableEntry], log: Span, findings: list[Finding], table: int, *, log_in_use: bool
) -> None:
    spans = sorted(Span(entry.file_offset, entry.end, region_name(entry)) for entry in entries)
    for one, other in zip(spans, spans[1:], strict=False):
        if other.start < one.end:
            message = f"the {one.owner} and the {other.owner} overlap at {other.start:#x}"
            raise corrupt("REGION-OVERLAP", "region table", table, _SECTION, message)
    for span in spans:
        at = max(span.start, log.start)
        if at < min(span.end, log.end):
            message = f"the {span.owner} and the log overlap at {at:#x}"
            if log_in_use:
                raise corrupt("REGION-OVERLAP", "region table", table, _SECTION, message)
            findings.append(tolerated("LOG-OVERLAP", "region table", table, _SECTION, message))


def region_name(entry: RegionTableEntry) -> str:
    """Return how to call a region in a message."""
    return f"{_KNOWN.get(entry.guid, entry.guid)} region"


def _place(table: int, number: int) -> int:
    return table + RegionTableHeader.packer.size + RegionTableEntry.packer.size * number
