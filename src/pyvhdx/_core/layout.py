"""
A new file, before its payload: where its parts lie and what stands in them.

As Windows lays it out: header section, log, metadata, BAT, blocks.  Nothing here does I/O.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pyvhdx._core.geometry import Geometry
from pyvhdx.errors import RequestError
from pyvhdx.format import constants as c
from pyvhdx.format.header import Header
from pyvhdx.format.identifier import FileIdentifier, encode_creator
from pyvhdx.format.locator import build_parent_locator
from pyvhdx.format.metadata import (
    HAS_PARENT,
    IS_REQUIRED,
    IS_VIRTUAL_DISK,
    LEAVE_BLOCKS_ALLOCATED,
    FileParameters,
    MetadataTableEntry,
    MetadataTableHeader,
    SectorSize,
    VirtualDiskId,
    VirtualDiskSize,
)
from pyvhdx.format.region import RegionTableEntry, build_region_table

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

_FULLY_PRESENT = int(c.PayloadState.FULLY_PRESENT)

MAX_LOG_SIZE = 1 << 30


@dataclass(frozen=True)
class Disk:
    """
    What a new file is to be; sizes in bytes.

    `locator` holds the parent locator's keys and values, and makes it a differencing file; `items`
    are further metadata items with their flags, which a child takes over from its parent.  Raises
    `RequestError` for what no VHDX file can be.
    """

    size: int
    kind: str
    block_size: int
    logical_sector_size: int
    physical_sector_size: int
    log_size: int
    creator: str
    disk_id: UUID
    file_write_guid: UUID
    data_write_guid: UUID
    locator: dict[str, str] | None = None
    items: list[tuple[UUID, int, bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("size", "block_size", "logical_sector_size", "physical_sector_size", "log_size"):
            if not isinstance(getattr(self, name), int):
                raise RequestError(f"{name} is {getattr(self, name)!r}, and must be a whole number of bytes")
        for name, size in (
            ("logical_sector_size", self.logical_sector_size),
            ("physical_sector_size", self.physical_sector_size),
        ):
            if size not in c.SECTOR_SIZES:
                raise RequestError(f"{name} is {size}, and must be 512 or 4096")
        block_size = self.block_size
        if block_size & (block_size - 1) or not c.MIN_BLOCK_SIZE <= block_size <= c.MAX_BLOCK_SIZE:
            raise RequestError(
                f"block_size is {block_size}, and must be a power of two from 1 MiB to 256 MiB"
            )
        if self.size % self.logical_sector_size or not 0 < self.size <= c.MAX_VIRTUAL_SIZE:
            raise RequestError(
                f"size is {self.size}, and must be a multiple of {self.logical_sector_size} from one sector to 64 TiB"
            )
        if self.log_size % c.ALIGNMENT or not c.ALIGNMENT <= self.log_size <= MAX_LOG_SIZE:
            raise RequestError(f"log_size is {self.log_size}, and must be a multiple of 1 MiB up to 1 GiB")
        if self.kind not in ("fixed", "dynamic", "differencing"):
            raise RequestError(f'kind is {self.kind!r}, and must be "fixed", "dynamic" or "differencing"')
        if not isinstance(self.creator, str):
            raise RequestError(f"creator is {self.creator!r}, and must be a string")
        try:
            encode_creator(self.creator)
        except ValueError as error:
            raise RequestError(str(error)) from error

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.size, self.block_size, self.logical_sector_size)


@dataclass(frozen=True)
class Layout:
    """
    Where the parts of a new file lie, in bytes from its start; everything is MiB-aligned.

    The BAT may lie anywhere: a disk whose size shows only at its end has it behind its blocks.
    """

    log_offset: int
    log_length: int
    metadata_offset: int
    metadata_length: int

    @property
    def end(self) -> int:
        """Where the BAT or the first block may lie."""
        return self.metadata_offset + self.metadata_length

    @classmethod
    def of(cls, log_size: int, metadata_size: int) -> Layout:
        return cls(
            log_offset=c.HEADER_SECTION_SIZE,
            log_length=log_size,
            metadata_offset=c.HEADER_SECTION_SIZE + log_size,
            metadata_length=c.round_up(metadata_size, c.ALIGNMENT),
        )


def identifier(disk: Disk) -> bytes:
    """Return the file type identifier."""
    return FileIdentifier(creator=encode_creator(disk.creator)).build()


def headers(disk: Disk, layout: Layout) -> list[tuple[int, bytes]]:
    """Return both headers and their places: equal but for their sequence numbers, the log empty."""
    return [
        (
            offset,
            Header(
                sequence_number=number,
                file_write_guid=disk.file_write_guid,
                data_write_guid=disk.data_write_guid,
                log_guid=c.ZERO_GUID,
                log_length=layout.log_length,
                log_offset=layout.log_offset,
            ).sealed(),
        )
        for number, offset in enumerate(c.HEADER_OFFSETS)
    ]


def region_tables(layout: Layout, bat_offset: int, bat_length: int) -> list[tuple[int, bytes]]:
    """Return both copies of the region table and their places."""
    table = build_region_table(
        [
            RegionTableEntry(guid=c.BAT_REGION, file_offset=bat_offset, length=bat_length),
            RegionTableEntry(
                guid=c.METADATA_REGION, file_offset=layout.metadata_offset, length=layout.metadata_length
            ),
        ]
    )
    return [(offset, table) for offset in c.REGION_TABLE_OFFSETS]


def metadata(disk: Disk) -> bytes:
    """Return the used part of the metadata region: the table, and the items in Windows' order."""
    flags = {"fixed": LEAVE_BLOCKS_ALLOCATED, "dynamic": 0, "differencing": HAS_PARENT}[disk.kind]
    of_disk = IS_VIRTUAL_DISK | IS_REQUIRED
    items = [
        (c.FILE_PARAMETERS, IS_REQUIRED, FileParameters(block_size=disk.block_size, flags=flags).build()),
        (c.VIRTUAL_DISK_SIZE, of_disk, VirtualDiskSize(size=disk.size).build()),
        (c.LOGICAL_SECTOR_SIZE, of_disk, SectorSize(size=disk.logical_sector_size).build()),
        (c.PHYSICAL_SECTOR_SIZE, of_disk, SectorSize(size=disk.physical_sector_size).build()),
        (c.VIRTUAL_DISK_ID, of_disk, VirtualDiskId(disk_id=disk.disk_id).build()),
    ]
    if disk.locator is not None:
        items.append((c.PARENT_LOCATOR, IS_REQUIRED, build_parent_locator(disk.locator)))
    items += disk.items
    entries, offset = [], c.METADATA_TABLE_SIZE
    for item_id, item_flags, data in items:
        place = offset if data else 0  # an empty item has no place
        entries.append(MetadataTableEntry(item_id=item_id, offset=place, length=len(data), flags=item_flags))
        offset += len(data)
    table = MetadataTableHeader(entry_count=len(entries)).build() + b"".join(
        entry.build() for entry in entries
    )
    return table.ljust(c.METADATA_TABLE_SIZE, b"\0") + b"".join(data for _, _, data in items)


def fixed_bat(geometry: Geometry, first_block: int) -> Iterator[array[int]]:
    """Yield the BAT of a fixed disk, a chunk at a time: every block present, one behind the other."""
    step = geometry.block_size
    for start in range(0, geometry.block_count, geometry.chunk_ratio):
        stop = min(start + geometry.chunk_ratio, geometry.block_count)
        entries = array(
            "Q", range(first_block + start * step | _FULLY_PRESENT, first_block + stop * step, step)
        )
        entries.append(0)  # the slot of the sector bitmap block
        yield entries


def present(place: int) -> int:
    """Return the BAT entry of a block that is wholly present at file offset *place*."""
    return place | _FULLY_PRESENT
