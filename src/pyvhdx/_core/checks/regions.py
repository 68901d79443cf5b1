"""The region table, beyond where the regions lie (MS-VHDX 2.2.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvhdx._core.regions import region_name
from pyvhdx.format import constants as c
from pyvhdx.format.region import (
    RegionTableEntry,
    RegionTableHeader,
    is_valid_region_table,
    parse_region_entries,
)

if TYPE_CHECKING:
    from pyvhdx._core.checks.collector import Collector
    from pyvhdx._core.survey import Survey

_KNOWN = (c.BAT_REGION, c.METADATA_REGION)
_HEAD, _ENTRY = RegionTableHeader.packer.size, RegionTableEntry.packer.size


def check_regions(known: Survey, collector: Collector) -> None:
    """Look at every copy of the table that is whole; of two that are the same, at the first."""
    seen = []
    for data, at in zip(known.region_tables, c.REGION_TABLE_OFFSETS, strict=True):
        if is_valid_region_table(data) and data not in seen:
            seen.append(data)
            _check_table(data, at, collector)


def _check_table(data: bytes, at: int, collector: Collector) -> None:
    head = RegionTableHeader.parse(data)
    if head.reserved:
        collector.found("REGION-RESERVED", at + 12, f"the reserved field is {head.reserved:#x}")
    if head.entry_count > c.MAX_REGION_ENTRIES:
        return
    for number, entry in enumerate(parse_region_entries(data, head.entry_count)):
        place = at + _HEAD + _ENTRY * number
        if entry.required > 1:
            collector.found(
                "REGION-FLAGS", place, f"Required is {entry.required:#x} for the {region_name(entry)}"
            )
        if entry.guid in _KNOWN and not entry.required & 1:
            collector.found("REGION-REQUIRED", place, f"the {region_name(entry)} is not marked as required")
    end = _HEAD + _ENTRY * head.entry_count
    if any(data[end:]):
        collector.found("REGION-TAIL", at + end, "bytes behind the last entry are set")


def used_end(known: Survey, entry: RegionTableEntry) -> int:
    """Return up to where BAT or metadata region hold something that is needed, as a file offset."""
    if entry.guid == c.METADATA_REGION:
        items = known.items
        last = (
            max((items.entry(one).offset + items.entry(one).length for one in items), default=0)
            if items
            else 0
        )
        return entry.file_offset + max(last, c.METADATA_TABLE_SIZE)
    geometry = known.geometry
    if geometry is None or known.metadata is None:
        return entry.end
    needed = geometry.entries_needed(differencing=known.metadata.has_parent)
    return entry.file_offset + needed * c.BAT_ENTRY_SIZE
