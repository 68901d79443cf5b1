"""The metadata region, beyond what decides where a byte lies (MS-VHDX 2.6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvhdx._core.checks.header_section import check_guid
from pyvhdx._core.metadata import KNOWN_ITEMS, read_table
from pyvhdx.errors import ImageError
from pyvhdx.format import constants as c

if TYPE_CHECKING:
    from pyvhdx._core.checks.collector import Collector
    from pyvhdx._core.survey import Survey

_MAX_REGION = 128 * c.MIB
_MAX_TOTAL = 40 * c.MIB


def check_metadata(known: Survey, collector: Collector) -> None:
    """Look at the sizes of region and items, and at the disk's id."""
    region = known.metadata_region
    if region is None:
        return
    if region.length > _MAX_REGION:
        collector.found("METADATA-REGION", region.file_offset, f"it has {region.length} bytes, over 128 MiB")
    try:
        _, entries = read_table(region, known.storage.read_at)
    except ImageError:  # said before
        return
    for whose, is_user in (("the system", False), ("users", True)):
        total = sum(entry.length for entry in entries if entry.is_user == is_user)
        if total > _MAX_TOTAL:
            collector.found(
                "METADATA-TOTAL", region.file_offset, f"the items of {whose} take {total} bytes, over 40 MiB"
            )
    said = {finding.offset for finding in collector.kept if finding.code == "METADATA-RANGE"}
    for entry in entries:
        place, end = region.file_offset + entry.offset, region.file_offset + entry.offset + entry.length
        if entry.length and known.storage.size() < end <= region.end and place not in said:
            collector.found(
                "METADATA-RANGE",
                place,
                "the file ends inside it",
                structure=f"metadata item {entry.item_id}",
                repairable=False,
            )
    if known.metadata is not None and known.metadata.disk_id != c.ZERO_GUID and known.items is not None:
        place = known.items.place(c.VIRTUAL_DISK_ID)
        check_guid("the id", known.metadata.disk_id, place, "Virtual Disk ID", collector)


def may_be_dropped(known: Survey, place: int) -> bool:
    """Return whether the table entry at *place* belongs to an item that nothing needs."""
    region = known.metadata_region
    if region is None:
        return False
    try:
        _, entries = read_table(region, known.storage.read_at)
    except ImageError:
        return False
    number, rest = divmod(place - region.file_offset - 32, 32)
    if rest or not 0 <= number < len(entries):
        return False
    entry = entries[number]
    return not entry.is_required and (entry.is_user or entry.item_id not in KNOWN_ITEMS)
