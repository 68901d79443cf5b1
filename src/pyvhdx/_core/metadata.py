"""The metadata region: its table, and the items that say what disk this is (MS-VHDX 2.6)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from pyvhdx._core.findings import corrupt, tolerated, unsupported
from pyvhdx.format import constants as c
from pyvhdx.format.metadata import (
    HAS_PARENT,
    IS_REQUIRED,
    IS_USER,
    IS_VIRTUAL_DISK,
    ITEM_FLAGS,
    LEAVE_BLOCKS_ALLOCATED,
    FileParameters,
    MetadataTableEntry,
    MetadataTableHeader,
    SectorSize,
    VirtualDiskId,
    VirtualDiskSize,
)

if TYPE_CHECKING:
    from pyvhdx._types import ReadAt
    from pyvhdx.errors import Finding
    from pyvhdx.format.region import RegionTableEntry

_SECTION = "2.6.1"
_HEAD_SIZE = MetadataTableHeader.packer.size
_ENTRY_SIZE = MetadataTableEntry.packer.size

KNOWN_ITEMS = {
    c.FILE_PARAMETERS: "File Parameters",
    c.VIRTUAL_DISK_SIZE: "Virtual Disk Size",
    c.VIRTUAL_DISK_ID: "Virtual Disk ID",
    c.LOGICAL_SECTOR_SIZE: "Logical Sector Size",
    c.PHYSICAL_SECTOR_SIZE: "Physical Sector Size",
    c.PARENT_LOCATOR: "Parent Locator",
    c.CHS_PARAMETERS: "CHS parameters",
    c.INCOMPLETE_FILE: "incomplete-file marker",
    c.PMEM_LABEL_STORAGE: "PMEM label storage",
}
_FLAGS = {c.FILE_PARAMETERS: IS_REQUIRED, c.PARENT_LOCATOR: IS_REQUIRED} | dict.fromkeys(
    (c.VIRTUAL_DISK_SIZE, c.VIRTUAL_DISK_ID, c.LOGICAL_SECTOR_SIZE, c.PHYSICAL_SECTOR_SIZE),
    IS_VIRTUAL_DISK | IS_REQUIRED,
)


class Items(Mapping[UUID, bytes]):
    """The system items or the user items of a file, read when they are asked for."""

    def __init__(
        self, entries: dict[UUID, MetadataTableEntry], region: RegionTableEntry, read: ReadAt
    ) -> None:
        self._entries = entries
        self._region = region
        self._read = read

    def __getitem__(self, item_id: UUID) -> bytes:
        entry = self._entries[item_id]
        if not entry.length:
            return b""
        data = self._read(entry.length, self.place(item_id))
        if len(data) < entry.length:
            raise corrupt(
                "METADATA-RANGE", "metadata item", self.place(item_id), _SECTION, "the file ends inside it"
            )
        return data

    def __iter__(self) -> Iterator[UUID]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        items = ", ".join(f"{item_id!r}: <{entry.length} bytes>" for item_id, entry in self._entries.items())
        return f"Items({{{items}}})"

    def place(self, item_id: UUID) -> int:
        """Return the file offset of an item, in bytes."""
        return self._region.file_offset + self._entries[item_id].offset

    def entry(self, item_id: UUID) -> MetadataTableEntry:
        """Return the table's entry of an item."""
        return self._entries[item_id]


@dataclass(frozen=True)
class Metadata:
    """
    What the items say; sizes in bytes.

    `physical_sector_size` is 4096 and `disk_id` zero where the file has no right one.
    """

    system: Items
    user: Items
    size: int
    block_size: int
    logical_sector_size: int
    physical_sector_size: int
    disk_id: UUID
    has_parent: bool
    leave_blocks_allocated: bool
    findings: list[Finding]

    @property
    def kind(self) -> str:
        """`LeaveBlocksAllocated` means nothing where `HasParent` is set (2.6.2.1)."""
        if self.has_parent:
            return "differencing"
        return "fixed" if self.leave_blocks_allocated else "dynamic"


def read_table(
    region: RegionTableEntry, read: ReadAt
) -> tuple[MetadataTableHeader, list[MetadataTableEntry]]:
    """Return the table at the start of the metadata region, checked only as far as it can be read."""
    table = read(c.METADATA_TABLE_SIZE, region.file_offset)
    if len(table) < c.METADATA_TABLE_SIZE:
        raise corrupt(
            "METADATA-RANGE", "metadata table", region.file_offset, _SECTION, "the file ends inside it"
        )
    head = MetadataTableHeader.parse(table)
    if head.signature != c.METADATA_SIGNATURE:
        raise corrupt(
            "METADATA-SIGNATURE",
            "metadata table",
            region.file_offset,
            _SECTION,
            f"the signature is {head.signature!r}, not 'metadata'",
        )
    if head.entry_count > c.MAX_METADATA_ENTRIES:
        raise corrupt(
            "METADATA-COUNT",
            "metadata table",
            region.file_offset,
            _SECTION,
            f"{head.entry_count} entries, and at most 2047 fit",
        )
    return head, MetadataTableEntry.parse_table(
        table[_HEAD_SIZE : _HEAD_SIZE + _ENTRY_SIZE * head.entry_count]
    )


def read_metadata(region: RegionTableEntry, read: ReadAt) -> Metadata:
    """Return what the metadata region says, all rules of MS-VHDX 2.6 checked."""
    head, entries = read_table(region, read)
    findings: list[Finding] = []
    if head.reserved or any(head.reserved2):
        findings.append(
            tolerated(
                "METADATA-RESERVED", "metadata table", region.file_offset, _SECTION, "reserved bytes are set"
            )
        )
    for number, entry in enumerate(entries):
        _check_entry(entry, region.file_offset + _HEAD_SIZE + _ENTRY_SIZE * number, region, findings)
    _check_all(entries, region)
    system = Items({e.item_id: e for e in entries if not e.is_user}, region, read)
    user = Items({e.item_id: e for e in entries if e.is_user}, region, read)
    return _interpret(system, user, region, findings)


def _check_entry(
    entry: MetadataTableEntry, place: int, region: RegionTableEntry, findings: list[Finding]
) -> None:
    name = KNOWN_ITEMS.get(entry.item_id, str(entry.item_id))
    if entry.item_id == c.ZERO_GUID:
        raise corrupt("METADATA-ID", "metadata entry", place, _SECTION, "the item id is zero")
    if entry.length > c.MAX_ITEM_SIZE:
        wrong = f"{entry.length} bytes, and at most 1 MiB is allowed"
    elif entry.length == 0:
        wrong = f"it is empty, and its offset is {entry.offset:#x} instead of 0" if entry.offset else ""
    elif entry.offset < c.METADATA_TABLE_SIZE or entry.offset + entry.length > region.length:
        wrong = f"bytes {entry.offset:#x} to {entry.offset + entry.length:#x} of the region are not all behind the table and inside"
    else:
        wrong = ""
    if wrong:
        raise corrupt("METADATA-RANGE", "metadata entry", place, _SECTION, f"item {name}: {wrong}")
    if not entry.is_user and entry.item_id == c.INCOMPLETE_FILE:
        raise corrupt(
            "METADATA-INCOMPLETE",
            "metadata entry",
            place,
            "2.6.2",
            "the file was never finished: its creation was cut short",
        )
    if not entry.is_user and entry.is_required and entry.item_id not in KNOWN_ITEMS:
        raise unsupported(
            "METADATA-UNKNOWN",
            "metadata entry",
            place,
            _SECTION,
            f"item {entry.item_id} is required, and is not known here",
        )
    if entry.flags & ~ITEM_FLAGS or entry.reserved2:
        findings.append(
            tolerated(
                "METADATA-RESERVED", "metadata entry", place, _SECTION, f"item {name}: reserved bits are set"
            )
        )
    if entry.is_user:
        if entry.is_required:
            findings.append(
                tolerated(
                    "METADATA-FLAGS",
                    "metadata entry",
                    place,
                    _SECTION,
                    f"user item {entry.item_id} is marked as required",
                )
            )
    elif entry.flags & ITEM_FLAGS != _FLAGS.get(entry.item_id, entry.flags & ITEM_FLAGS):
        findings.append(
            tolerated(
                "METADATA-FLAGS",
                "metadata entry",
                place,
                _SECTION,
                f"item {name} has the flags {entry.flags}",
            )
        )


def _check_all(entries: list[MetadataTableEntry], region: RegionTableEntry) -> None:
    place = region.file_offset
    users = sum(entry.is_user for entry in entries)
    if users > c.MAX_USER_ENTRIES or len(entries) - users > c.MAX_SYSTEM_ENTRIES:
        raise corrupt(
            "METADATA-COUNT",
            "metadata table",
            place,
            _SECTION,
            f"{users} user and {len(entries) - users} system entries; at most 1024 and 1023 are allowed",
        )
    if len({(entry.item_id, entry.flags & IS_USER) for entry in entries}) < len(entries):
        raise corrupt("METADATA-ID", "metadata table", place, _SECTION, "an item appears twice")
    spans = sorted((entry.offset, entry.offset + entry.length) for entry in entries if entry.length)
    for one, other in zip(spans, spans[1:], strict=False):
        if other[0] < one[1]:
            raise corrupt(
                "METADATA-OVERLAP",
                "metadata table",
                place,
                _SECTION,
                f"two items share byte {other[0]:#x} of the region",
            )


def _interpret(system: Items, user: Items, region: RegionTableEntry, findings: list[Finding]) -> Metadata:
    parameters = FileParameters.parse(_item(system, c.FILE_PARAMETERS, 8, region))
    block_size = parameters.block_size
    if block_size & (block_size - 1) or not c.MIN_BLOCK_SIZE <= block_size <= c.MAX_BLOCK_SIZE:
        raise corrupt(
            "METADATA-BLOCK-SIZE",
            "File Parameters",
            system.place(c.FILE_PARAMETERS),
            "2.6.2.1",
            f"the block size {block_size} is no power of two from 1 to 256 MiB",
        )
    if parameters.flags & ~(LEAVE_BLOCKS_ALLOCATED | HAS_PARENT):
        findings.append(
            tolerated(
                "METADATA-RESERVED",
                "File Parameters",
                system.place(c.FILE_PARAMETERS),
                "2.6.2.1",
                "reserved bits are set",
            )
        )
    has_parent = bool(parameters.flags & HAS_PARENT)
    leave_allocated = bool(parameters.flags & LEAVE_BLOCKS_ALLOCATED)
    if has_parent and leave_allocated:
        findings.append(
            tolerated(
                "METADATA-KIND",
                "File Parameters",
                system.place(c.FILE_PARAMETERS),
                "2.6.2.1",
                "LeaveBlocksAllocated is set beside HasParent, and means nothing there",
            )
        )
    sector_size = SectorSize.parse(_item(system, c.LOGICAL_SECTOR_SIZE, 4, region)).size
    if sector_size not in c.SECTOR_SIZES:
        raise corrupt(
            "METADATA-SECTOR-SIZE",
            "Logical Sector Size",
            system.place(c.LOGICAL_SECTOR_SIZE),
            "2.6.2.4",
            f"{sector_size} is neither 512 nor 4096",
        )
    size = VirtualDiskSize.parse(_item(system, c.VIRTUAL_DISK_SIZE, 8, region)).size
    place = system.place(c.VIRTUAL_DISK_SIZE)
    if size % sector_size:
        findings.append(
            tolerated(
                "METADATA-SIZE",
                "Virtual Disk Size",
                place,
                "2.6.2.2",
                f"{size} is no multiple of the sector size {sector_size}; it is rounded down",
            )
        )
        size -= size % sector_size
    if not 0 < size <= c.MAX_VIRTUAL_SIZE:
        raise corrupt(
            "METADATA-SIZE",
            "Virtual Disk Size",
            place,
            "2.6.2.2",
            f"{size} bytes are not between one sector and 64 TiB",
        )
    _check_locator(system, region, findings, has_parent=has_parent)
    return Metadata(
        system=system,
        user=user,
        size=size,
        block_size=block_size,
        logical_sector_size=sector_size,
        physical_sector_size=_physical_sector_size(system, region, findings),
        disk_id=_disk_id(system, region, findings),
        has_parent=has_parent,
        leave_blocks_allocated=leave_allocated,
        findings=findings,
    )


def _item(system: Items, item_id: UUID, size: int, region: RegionTableEntry) -> bytes:
    if item_id not in system:
        raise corrupt(
            "METADATA-MISSING",
            "metadata table",
            region.file_offset,
            "2.6.2",
            f"there is no item {KNOWN_ITEMS[item_id]}",
        )
    found = system.entry(item_id).length
    if found != size:
        raise corrupt(
            "METADATA-LENGTH",
            KNOWN_ITEMS[item_id],
            system.place(item_id),
            "2.6.2",
            f"it has {found} bytes instead of {size}",
        )
    return system[item_id]


def _physical_sector_size(system: Items, region: RegionTableEntry, findings: list[Finding]) -> int:
    item_id = c.PHYSICAL_SECTOR_SIZE
    found = None
    if item_id in system and system.entry(item_id).length == 4:
        found = SectorSize.parse(system[item_id]).size
        if found in c.SECTOR_SIZES:
            return found
    place = system.place(item_id) if item_id in system else region.file_offset
    what = "missing or of a wrong length" if found is None else f"{found}, neither 512 nor 4096"
    findings.append(
        tolerated(
            "METADATA-PHYSICAL-SIZE", "Physical Sector Size", place, "2.6.2.5", f"it is {what}; taken as 4096"
        )
    )
    return 4096


def _disk_id(system: Items, region: RegionTableEntry, findings: list[Finding]) -> UUID:
    item_id = c.VIRTUAL_DISK_ID
    if item_id in system and system.entry(item_id).length == 16:
        found = VirtualDiskId.parse(system[item_id]).disk_id
        if found != c.ZERO_GUID:
            return found
    place = system.place(item_id) if item_id in system else region.file_offset
    findings.append(
        tolerated(
            "METADATA-DISK-ID",
            "Virtual Disk ID",
            place,
            "2.6.2.3",
            "it is missing, zero or of a wrong length",
        )
    )
    return c.ZERO_GUID


def _check_locator(
    system: Items, region: RegionTableEntry, findings: list[Finding], *, has_parent: bool
) -> None:
    if has_parent and c.PARENT_LOCATOR not in system:
        raise corrupt(
            "LOCATOR-MISSING",
            "metadata table",
            region.file_offset,
            "2.6.2.6",
            "HasParent is set, and there is no parent locator",
        )
    if not has_parent and c.PARENT_LOCATOR in system:
        findings.append(
            tolerated(
                "LOCATOR-LEFTOVER",
                "Parent Locator",
                system.place(c.PARENT_LOCATOR),
                "2.6.2.6",
                "there is a parent locator, and HasParent is not set",
            )
        )
