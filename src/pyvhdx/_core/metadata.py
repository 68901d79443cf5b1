"""The metadata region: its table, and the items that say what disk this is (MS-VHDX 2.6)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from uuid import UUID

from pyvhdx._core.findings import Steps, corrupt, strictly, tolerated, unsupported
from pyvhdx.errors import ImageError
from pyvhdx.format import constants as c
from pyvhdx.format.metadata import (
    HAS_PARENT,
    IS_REQUIRED,
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
    from pyvhdx._core.findings import Problem
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
    table, _ = strictly(examine_table(region, read))
    assert table is not None  # or that was raised
    return table


def examine_table(
    region: RegionTableEntry, read: ReadAt
) -> Steps[tuple[MetadataTableHeader, list[MetadataTableEntry]] | None]:
    """Yield why the table cannot be read, and return it as far as it can be."""
    table = read(c.METADATA_TABLE_SIZE, region.file_offset)
    if len(table) < c.METADATA_TABLE_SIZE:
        yield corrupt(
            "METADATA-RANGE", "metadata table", region.file_offset, _SECTION, "the file ends inside it"
        )
        return None
    head = MetadataTableHeader.parse(table)
    if head.signature != c.METADATA_SIGNATURE:
        yield corrupt(
            "METADATA-SIGNATURE",
            "metadata table",
            region.file_offset,
            _SECTION,
            f"the signature is {head.signature!r}, not 'metadata'",
        )
    if head.entry_count > c.MAX_METADATA_ENTRIES:
        yield corrupt(
            "METADATA-COUNT",
            "metadata table",
            region.file_offset,
            _SECTION,
            f"{head.entry_count} entries, and at most 2047 fit",
        )
        return None
    return head, MetadataTableEntry.parse_table(
        table[_HEAD_SIZE : _HEAD_SIZE + _ENTRY_SIZE * head.entry_count]
    )


def read_metadata(region: RegionTableEntry, read: ReadAt) -> Metadata:
    """Return what the metadata region says, all rules of MS-VHDX 2.6 checked."""
    (_, metadata), findings = strictly(examine_metadata(region, read))
    assert metadata is not None  # or that was raised
    return replace(metadata, findings=findings)


def examine_metadata(region: RegionTableEntry, read: ReadAt) -> Steps[tuple[Items, Metadata | None]]:
    """
    Yield what is wrong with the metadata region, and return what it says.

    That is the system items that can be read, and their meaning, None where an item is missing or
    wrong that nothing can be read without.
    """
    table = yield from examine_table(region, read)
    head, entries = table or (MetadataTableHeader(entry_count=0), [])
    if head.reserved or any(head.reserved2):
        yield tolerated(
            "METADATA-RESERVED", "metadata table", region.file_offset, _SECTION, "reserved bytes are set"
        )
    right = []
    for number, entry in enumerate(entries):
        place = region.file_offset + _HEAD_SIZE + _ENTRY_SIZE * number
        if (yield from _check_entry(entry, place, region)):
            right.append(entry)
    yield from _check_all(entries, right, region)
    system = Items({e.item_id: e for e in right if not e.is_user}, region, read)
    user = Items({e.item_id: e for e in right if e.is_user}, region, read)
    if table is None:
        return system, None
    named = {entry.item_id for entry in entries if not entry.is_user}
    return system, (yield from _interpret(system, user, region, named))


def _check_entry(entry: MetadataTableEntry, place: int, region: RegionTableEntry) -> Steps[bool]:
    """Yield what is wrong with one entry, and return whether its item can be read."""
    name = KNOWN_ITEMS.get(entry.item_id, str(entry.item_id))
    if entry.item_id == c.ZERO_GUID:
        yield corrupt("METADATA-ID", "metadata entry", place, _SECTION, "the item id is zero")
        return False
    if entry.length > c.MAX_ITEM_SIZE:
        wrong = f"{entry.length} bytes, and at most 1 MiB is allowed"
    elif entry.length == 0:
        wrong = f"it is empty, and its offset is {entry.offset:#x} instead of 0" if entry.offset else ""
    elif entry.offset < c.METADATA_TABLE_SIZE or entry.offset + entry.length > region.length:
        wrong = f"bytes {entry.offset:#x} to {entry.offset + entry.length:#x} of the region are not all behind the table and inside"
    else:
        wrong = ""
    if wrong:
        yield corrupt("METADATA-RANGE", "metadata entry", place, _SECTION, f"item {name}: {wrong}")
    if not entry.is_user and entry.item_id == c.INCOMPLETE_FILE:
        yield corrupt(
            "METADATA-INCOMPLETE",
            "metadata entry",
            place,
            "2.6.2",
            "the file was never finished: its creation was cut short",
        )
    if not entry.is_user and entry.is_required and entry.item_id not in KNOWN_ITEMS:
        yield unsupported(
            "METADATA-UNKNOWN",
            "metadata entry",
            place,
            _SECTION,
            f"item {entry.item_id} is required, and is not known here",
        )
    if entry.flags & ~ITEM_FLAGS or entry.reserved2:
        yield tolerated(
            "METADATA-RESERVED", "metadata entry", place, _SECTION, f"item {name}: reserved bits are set"
        )
    if entry.is_user:
        if entry.is_required:
            yield tolerated(
                "METADATA-FLAGS",
                "metadata entry",
                place,
                _SECTION,
                f"user item {entry.item_id} is marked as required",
            )
    elif entry.flags & ITEM_FLAGS != _FLAGS.get(entry.item_id, entry.flags & ITEM_FLAGS):
        yield tolerated(
            "METADATA-FLAGS",
            "metadata entry",
            place,
            _SECTION,
            f"item {name} has the flags {entry.flags}",
        )
    return not wrong


def _check_all(
    entries: list[MetadataTableEntry], right: list[MetadataTableEntry], region: RegionTableEntry
) -> Iterator[Problem]:
    place = region.file_offset
    users = sum(entry.is_user for entry in entries)
    if users > c.MAX_USER_ENTRIES or len(entries) - users > c.MAX_SYSTEM_ENTRIES:
        yield corrupt(
            "METADATA-COUNT",
            "metadata table",
            place,
            _SECTION,
            f"{users} user and {len(entries) - users} system entries; at most 1024 and 1023 are allowed",
        )
    if len({(entry.item_id, entry.is_user) for entry in right}) < len(right):
        yield corrupt("METADATA-ID", "metadata table", place, _SECTION, "an item appears twice")
    spans = sorted((entry.offset, entry.offset + entry.length) for entry in right if entry.length)
    for one, other in zip(spans, spans[1:], strict=False):
        if other[0] < one[1]:
            yield corrupt(
                "METADATA-OVERLAP",
                "metadata table",
                place,
                _SECTION,
                f"two items share byte {other[0]:#x} of the region",
            )


def _interpret(
    system: Items, user: Items, region: RegionTableEntry, named: set[UUID]
) -> Steps[Metadata | None]:
    raw = yield from _item(system, c.FILE_PARAMETERS, 8, region, named)
    parameters = FileParameters.parse(raw) if raw is not None else None
    if parameters is not None:
        yield from _check_parameters(parameters, system.place(c.FILE_PARAMETERS))
    raw = yield from _item(system, c.LOGICAL_SECTOR_SIZE, 4, region, named)
    sector_size = SectorSize.parse(raw).size if raw is not None else None
    if sector_size is not None and sector_size not in c.SECTOR_SIZES:
        yield corrupt(
            "METADATA-SECTOR-SIZE",
            "Logical Sector Size",
            system.place(c.LOGICAL_SECTOR_SIZE),
            "2.6.2.4",
            f"{sector_size} is neither 512 nor 4096",
        )
        sector_size = None
    raw = yield from _item(system, c.VIRTUAL_DISK_SIZE, 8, region, named)
    size = VirtualDiskSize.parse(raw).size if raw is not None else None
    if size is not None:
        size = yield from _check_size(size, sector_size or 512, system.place(c.VIRTUAL_DISK_SIZE))
    if parameters is not None:
        yield from _check_locator(system, region, named, has_parent=bool(parameters.flags & HAS_PARENT))
    physical_sector_size = yield from _physical_sector_size(system, region)
    disk_id = yield from _disk_id(system, region)
    if parameters is None or not _is_block_size(parameters.block_size) or not sector_size or not size:
        return None
    return Metadata(
        system=system,
        user=user,
        size=size,
        block_size=parameters.block_size,
        logical_sector_size=sector_size,
        physical_sector_size=physical_sector_size,
        disk_id=disk_id,
        has_parent=bool(parameters.flags & HAS_PARENT),
        leave_blocks_allocated=bool(parameters.flags & LEAVE_BLOCKS_ALLOCATED),
        findings=[],
    )


def _is_block_size(size: int) -> bool:
    return c.MIN_BLOCK_SIZE <= size <= c.MAX_BLOCK_SIZE and not size & (size - 1)


def _check_parameters(parameters: FileParameters, place: int) -> Iterator[Problem]:
    if not _is_block_size(parameters.block_size):
        yield corrupt(
            "METADATA-BLOCK-SIZE",
            "File Parameters",
            place,
            "2.6.2.1",
            f"the block size {parameters.block_size} is no power of two from 1 to 256 MiB",
        )
    if parameters.flags & ~(LEAVE_BLOCKS_ALLOCATED | HAS_PARENT):
        yield tolerated("METADATA-RESERVED", "File Parameters", place, "2.6.2.1", "reserved bits are set")
    if parameters.flags & HAS_PARENT and parameters.flags & LEAVE_BLOCKS_ALLOCATED:
        yield tolerated(
            "METADATA-KIND",
            "File Parameters",
            place,
            "2.6.2.1",
            "LeaveBlocksAllocated is set beside HasParent, and means nothing there",
        )


def _check_size(size: int, sector_size: int, place: int) -> Steps[int | None]:
    """Yield what is wrong with the size, and return the one to use."""
    if size % sector_size:
        yield tolerated(
            "METADATA-SIZE",
            "Virtual Disk Size",
            place,
            "2.6.2.2",
            f"{size} is no multiple of the sector size {sector_size}; it is rounded down",
        )
        size -= size % sector_size
    if not 0 < size <= c.MAX_VIRTUAL_SIZE:
        yield corrupt(
            "METADATA-SIZE",
            "Virtual Disk Size",
            place,
            "2.6.2.2",
            f"{size} bytes are not between one sector and 64 TiB",
        )
        return None
    return size


def _item(
    system: Items, item_id: UUID, size: int, region: RegionTableEntry, named: set[UUID]
) -> Steps[bytes | None]:
    """Return the bytes of an item that must be there; one of the *named* that is not was reported before."""
    if item_id not in system:
        if item_id not in named:
            yield corrupt(
                "METADATA-MISSING",
                "metadata table",
                region.file_offset,
                "2.6.2",
                f"there is no item {KNOWN_ITEMS[item_id]}",
            )
        return None
    found = system.entry(item_id).length
    if found != size:
        yield corrupt(
            "METADATA-LENGTH",
            KNOWN_ITEMS[item_id],
            system.place(item_id),
            "2.6.2",
            f"it has {found} bytes instead of {size}",
        )
        return None
    return (yield from _bytes(system, item_id)) or None


def _bytes(system: Items, item_id: UUID) -> Steps[bytes]:
    """Return what an item holds, nothing where it is not there or the file ends inside it."""
    try:
        return system.get(item_id, b"")
    except ImageError as error:
        yield error
        return b""


def _physical_sector_size(system: Items, region: RegionTableEntry) -> Steps[int]:
    item_id = c.PHYSICAL_SECTOR_SIZE
    found = None
    raw = yield from _bytes(system, item_id)
    if len(raw) == 4:
        found = SectorSize.parse(raw).size
        if found in c.SECTOR_SIZES:
            return found
    place = system.place(item_id) if item_id in system else region.file_offset
    what = "missing or of a wrong length" if found is None else f"{found}, neither 512 nor 4096"
    yield tolerated(
        "METADATA-PHYSICAL-SIZE", "Physical Sector Size", place, "2.6.2.5", f"it is {what}; taken as 4096"
    )
    return 4096


def _disk_id(system: Items, region: RegionTableEntry) -> Steps[UUID]:
    item_id = c.VIRTUAL_DISK_ID
    raw = yield from _bytes(system, item_id)
    if len(raw) == 16:
        found = VirtualDiskId.parse(raw).disk_id
        if found != c.ZERO_GUID:
            return found
    place = system.place(item_id) if item_id in system else region.file_offset
    yield tolerated(
        "METADATA-DISK-ID",
        "Virtual Disk ID",
        place,
        "2.6.2.3",
        "it is missing, zero or of a wrong length",
    )
    return c.ZERO_GUID


def _check_locator(
    system: Items, region: RegionTableEntry, named: set[UUID], *, has_parent: bool
) -> Iterator[Problem]:
    if has_parent and c.PARENT_LOCATOR not in named:
        yield corrupt(
            "LOCATOR-MISSING",
            "metadata table",
            region.file_offset,
            "2.6.2.6",
            "HasParent is set, and there is no parent locator",
        )
    if not has_parent and c.PARENT_LOCATOR in system:
        yield tolerated(
            "LOCATOR-LEFTOVER",
            "Parent Locator",
            system.place(c.PARENT_LOCATOR),
            "2.6.2.6",
            "there is a parent locator, and HasParent is not set",
        )
