"""The metadata table and the items with a fixed layout (MS-VHDX 2.6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from construct import Bytes, Int16ul, Int32ul, Int64ul

from pyvhdx.format.constants import METADATA_SIGNATURE
from pyvhdx.format.record import Guid, Record, on_disk, record

if TYPE_CHECKING:
    from uuid import UUID

IS_USER = 1
IS_VIRTUAL_DISK = 2
IS_REQUIRED = 4
ITEM_FLAGS = IS_USER | IS_VIRTUAL_DISK | IS_REQUIRED

LEAVE_BLOCKS_ALLOCATED = 1
HAS_PARENT = 2


@record
class MetadataTableHeader(Record):
    """The first 32 bytes of the metadata region (2.6.1.1)."""

    signature: bytes = on_disk(Bytes(8), default=METADATA_SIGNATURE)
    reserved: int = on_disk(Int16ul, default=0)
    entry_count: int = on_disk(Int16ul)
    reserved2: bytes = on_disk(Bytes(20), default=bytes(20))


@record
class MetadataTableEntry(Record):
    """Where an item lies in the region, and to whom it belongs (2.6.1.2)."""

    item_id: UUID = on_disk(Guid)
    offset: int = on_disk(Int32ul)
    length: int = on_disk(Int32ul)
    flags: int = on_disk(Int32ul)
    reserved2: int = on_disk(Int32ul, default=0)

    @property
    def is_user(self) -> bool:
        return bool(self.flags & IS_USER)

    @property
    def is_required(self) -> bool:
        return bool(self.flags & IS_REQUIRED)


@record
class FileParameters(Record):
    """Block size in bytes, and what kind of file this is (2.6.2.1)."""

    block_size: int = on_disk(Int32ul)
    flags: int = on_disk(Int32ul)


@record
class VirtualDiskSize(Record):
    """The size of the virtual disk in bytes (2.6.2.2)."""

    size: int = on_disk(Int64ul)


@record
class VirtualDiskId(Record):
    """The identity of the virtual disk, equal in parent and child (2.6.2.3)."""

    disk_id: UUID = on_disk(Guid)


@record
class SectorSize(Record):
    """A logical or a physical sector size in bytes (2.6.2.4, 2.6.2.5)."""

    size: int = on_disk(Int32ul)


@record
class ChsParameters(Record):
    """The geometry that old systems ask for; known to OpenVMM only."""

    heads_per_cylinder: int = on_disk(Int32ul)
    sectors_per_track: int = on_disk(Int32ul)


@record
class PmemLabelStorage(Record):
    """Where the labels of a persistent-memory disk lie; known to OpenVMM only."""

    version: int = on_disk(Int16ul)
    reserved: int = on_disk(Int16ul, default=0)
    address_abstraction_type: UUID = on_disk(Guid)
    data_offset: int = on_disk(Int32ul)
    data_length: int = on_disk(Int32ul)
