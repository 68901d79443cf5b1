"""What both region tables should hold (MS-VHDX 2.2.3)."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NamedTuple

from pyvhdx._core.geometry import Geometry
from pyvhdx._core.metadata import read_metadata
from pyvhdx._core.regions import Span, read_regions, region_name
from pyvhdx._core.repairs.blocks import BlockPlan
from pyvhdx._core.repairs.metadata import Traces
from pyvhdx._core.repairs.plan import Choices, Plan
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
    from pyvhdx._types import ReadAt
    from pyvhdx.storage import Storage

_HEAD = RegionTableHeader.packer.size
_ENTRY = RegionTableEntry.packer.size
_NO_LOG = Span(0, 0, "log")


class RegionPlan(NamedTuple):
    """
    The regions that count, what is to be written, and how long the file must be for them.

    `edits` go through the log; `copies` need none: they are written over a copy that does not count.
    `is_settled` tells that the copies disagreed on BAT or metadata: all that a check has said of these may be
    of the other copy.
    """

    bat: RegionTableEntry
    metadata: RegionTableEntry
    spans: list[Span]
    edits: list[tuple[int, bytes]]
    copies: list[tuple[int, bytes]]
    size: int
    is_settled: bool


def plan_regions(copies: tuple[bytes, bytes], storage: Storage, log: Span, plan: Plan) -> RegionPlan | None:
    """Return what to do about the two 64 KiB *copies*; None where no copy says where the regions lie."""
    read = storage.read_at
    valid = [is_valid_region_table(data) for data in copies]
    candidates: dict[int, Regions] = {}
    for at, copy in enumerate(copies):
        if valid[at]:
            with contextlib.suppress(ImageError):
                candidates[at] = read_regions(
                    (copy, copy), _NO_LOG, log_in_use=False, file_size=MAX_FILE_SIZE
                )
    if not candidates:
        return None
    number: int | None = min(candidates)
    is_settled = False
    if all(valid) and copies[0] != copies[1]:
        if len(candidates) < 2 or not _agree(*candidates.values()):
            number = _better_copy(copies, candidates, storage, log, plan)
            is_settled = number is not None
        if number is not None:
            which, other = ("first", "second") if number == 0 else ("second", "first")
            plan.note(
                "REGION-COPIES", REGION_TABLE_OFFSETS[0], f"the {which} copy was written over the {other}"
            )
    decided = number is not None
    number = min(candidates) if number is None else number
    data, regions = copies[number], candidates[number]
    wanted = _cleaned(data, len(regions.entries))
    return RegionPlan(
        regions.bat,
        regions.metadata,
        [Span(entry.file_offset, entry.end, region_name(entry)) for entry in regions.entries],
        [(offset, wanted) for offset in REGION_TABLE_OFFSETS if decided and wanted != data],
        [(REGION_TABLE_OFFSETS[1 - number], data)] if decided and data != copies[1 - number] else [],
        _size_for(regions, read, storage.size()),
        is_settled,
    )


def _agree(first: Regions, second: Regions) -> bool:
    return all(
        (one.file_offset, one.length) == (other.file_offset, other.length)
        for one, other in ((first.bat, second.bat), (first.metadata, second.metadata))
    )


def _better_copy(
    copies: tuple[bytes, bytes], candidates: dict[int, Regions], storage: Storage, log: Span, plan: Plan
) -> int | None:
    """Return which of two copies counts that name other regions: the first that leads to what it should."""
    words = ("first", "second")
    at = REGION_TABLE_OFFSETS[0]
    choice = plan.choices.for_place("REGION-COPIES", at)
    if choice is None:
        blocks = {number: _stored_blocks(copies[number], storage, log) for number in candidates}
        for number, stored in blocks.items():
            if stored == 0 and set(blocks.values()) != {0}:
                break  # an empty BAT is right in itself, and says nothing of where the blocks are
            if stored is not None:
                plan.is_visible = plan.is_visible or number == 1
                return number
    choice = plan.choose("REGION-COPIES", at, tuple(words[number] for number in candidates))
    if choice is None:
        return None
    plan.is_visible = True
    number = words.index(choice)
    plan.lose("REGION-COPIES", None, 0, f"what the {words[1 - number]} copy of the region table led to")
    return number


def _stored_blocks(data: bytes, storage: Storage, log: Span) -> int | None:
    """
    Return how many blocks a copy leads to, 0 or more; None if not all that it leads to is as it should be.

    That is so where it names regions in the file, on nothing else, and everything in them is right.
    """
    try:
        regions = read_regions((data, data), log, log_in_use=True, file_size=storage.size())
        metadata = read_metadata(regions.metadata, storage.read_at)
    except ImageError:
        return None
    if _needed(metadata) > regions.bat.length:
        return None
    probe = Plan(Choices(None))
    blocks = BlockPlan(
        storage,
        regions.bat,
        Geometry(metadata.size, metadata.block_size, metadata.logical_sector_size),
        [Span(entry.file_offset, entry.end, region_name(entry)) for entry in regions.entries],
        log,
        probe,
        differencing=metadata.has_parent,
        traces=Traces(0, 0),
        has_locator=False,
        can_grow=False,
    )
    blocks.mend()
    return None if probe.offers or blocks.table else blocks.stored


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
