"""What both region tables should hold (MS-VHDX 2.2.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyvhdx._core.geometry import Geometry
from pyvhdx._core.metadata import read_metadata
from pyvhdx._core.regions import Span, read_regions, region_name
from pyvhdx.errors import ImageError
from pyvhdx.format.checksum import seal
from pyvhdx.format.constants import (
    BAT_ENTRY_SIZE,
    BAT_REGION,
    MAX_FILE_SIZE,
    METADATA_REGION,
    REGION_TABLE_OFFSETS,
)
from pyvhdx.format.region import RegionTableEntry, RegionTableHeader, is_valid_region_table

if TYPE_CHECKING:
    from pyvhdx._core.metadata import Metadata
    from pyvhdx._core.regions import Regions
    from pyvhdx._core.repairs.plan import Plan
    from pyvhdx._types import ReadAt

_HEAD = RegionTableHeader.packer.size
_ENTRY = RegionTableEntry.packer.size
_NO_LOG = Span(0, 0, "log")


class RegionPlan(NamedTuple):
    """The regions that count, what is to be written, and how long the file must be for them."""

    bat: RegionTableEntry
    metadata: RegionTableEntry
    spans: list[Span]
    edits: list[tuple[int, bytes]]
    size: int


def plan_regions(copies: tuple[bytes, bytes], read: ReadAt, file_size: int, plan: Plan) -> RegionPlan | None:
    """
    Return what to do about the two 64 KiB *copies*; None where no copy says where the regions lie.

    The first copy counts, unless only the second one leads to regions that hold what they should.
    """
    candidates = []
    for number, data in enumerate(copies):
        if is_valid_region_table(data):
            try:
                regions = read_regions((data, data), _NO_LOG, log_in_use=False, file_size=MAX_FILE_SIZE)
            except ImageError:
                continue
            candidates.append((not _is_sound(regions, read), number, regions))
    if not candidates:
        return None
    _, number, regions = min(candidates, key=lambda candidate: candidate[:2])
    if all(map(is_valid_region_table, copies)) and copies[0] != copies[1]:
        which, other = ("first", "second") if number == 0 else ("second", "first")
        plan.note(
            "REGION-COPIES",
            REGION_TABLE_OFFSETS[0],
            f"the {which} copy leads to regions that are whole, and was written over the {other}"
            if number
            else f"the {which} copy was written over the {other}",
        )
    wanted = _cleaned(copies[number], len(regions.entries))
    edits = [
        (offset, wanted) for offset, data in zip(REGION_TABLE_OFFSETS, copies, strict=True) if data != wanted
    ]
    return RegionPlan(
        regions.bat,
        regions.metadata,
        [Span(entry.file_offset, entry.end, region_name(entry)) for entry in regions.entries],
        edits,
        _size_for(regions, read, file_size),
    )


def _cleaned(data: bytes, count: int) -> bytes:
    """Return a copy with the reserved field 0 and the flags as they should be; what lies behind the entries stays."""
    table = bytearray(data)
    table[12:16] = bytes(4)
    for at in range(_HEAD, _HEAD + _ENTRY * count, _ENTRY):
        entry = RegionTableEntry.parse(table[at : at + _ENTRY])
        required = 1 if entry.guid in (BAT_REGION, METADATA_REGION) else entry.required & 1
        table[at + 28 : at + 32] = required.to_bytes(4, "little")
    return seal(bytes(table))


def _metadata_of(regions: Regions, read: ReadAt) -> Metadata | None:
    try:
        return read_metadata(regions.metadata, read)
    except ImageError:
        return None


def _needed(metadata: Metadata) -> int:
    geometry = Geometry(metadata.size, metadata.block_size, metadata.logical_sector_size)
    return geometry.entries_needed(differencing=metadata.has_parent) * BAT_ENTRY_SIZE


def _is_sound(regions: Regions, read: ReadAt) -> bool:
    """Return whether the regions hold metadata that can be read, and a BAT that is long enough for it."""
    metadata = _metadata_of(regions, read)
    return metadata is not None and _needed(metadata) <= regions.bat.length


def _size_for(regions: Regions, read: ReadAt, file_size: int) -> int:
    """Return how long the file must be, where only unused space of the two regions lies behind its end."""
    size = file_size
    metadata = _metadata_of(regions, read)
    if metadata is None or regions.bat.file_offset + _needed(metadata) > file_size:
        return file_size
    items = [
        mapping.place(item_id) + mapping.entry(item_id).length
        for mapping in (metadata.system, metadata.user)
        for item_id in mapping
    ]
    if max(items) <= file_size:
        size = max(size, regions.bat.end, regions.metadata.end)
    return size
