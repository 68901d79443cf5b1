"""What the metadata region should hold (MS-VHDX 2.6)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple
from uuid import uuid4

from pyvhdx._core.metadata import _FLAGS as ITEM_FLAGS_OF
from pyvhdx._core.metadata import KNOWN_ITEMS
from pyvhdx._core.user_items import place_for
from pyvhdx.errors import RequestError
from pyvhdx.format import constants as c
from pyvhdx.format.metadata import (
    HAS_PARENT,
    IS_REQUIRED,
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
    from uuid import UUID

    from pyvhdx._core.repairs.plan import Plan
    from pyvhdx._types import ReadAt
    from pyvhdx.format.region import RegionTableEntry

_HEAD = MetadataTableHeader.packer.size
_ENTRY = MetadataTableEntry.packer.size
# Without these a file cannot be read; nothing makes up for a lost one.
REQUIRED_ITEMS = (c.FILE_PARAMETERS, c.VIRTUAL_DISK_SIZE, c.LOGICAL_SECTOR_SIZE, c.PARENT_LOCATOR)
_ITEMS_THAT_CAN_BE_MADE = (c.PHYSICAL_SECTOR_SIZE, c.VIRTUAL_DISK_ID)


class Traces(NamedTuple):
    """What else a file has that only a child has: where HasParent is not set, it may have been lost."""

    partial_blocks: int
    bitmaps: int

    def __bool__(self) -> bool:
        return bool(self.partial_blocks or self.bitmaps)


class MetadataPlan:
    """The table and the items as they should be; `edits` are what is to be written for it."""

    def __init__(self, region: RegionTableEntry, read: ReadAt, plan: Plan) -> None:
        self.region = region
        self._plan = plan
        self._read = read
        self._table = read(c.METADATA_TABLE_SIZE, region.file_offset)
        self.entries: list[MetadataTableEntry] = []
        self._places: list[int] = []  # where each entry stood
        self._data: dict[int, bytes] = {}  # by offset in the region
        self.is_usable = False
        if len(self._table) < c.METADATA_TABLE_SIZE:
            return
        head = MetadataTableHeader.parse(self._table)
        if head.signature != c.METADATA_SIGNATURE or head.entry_count > c.MAX_METADATA_ENTRIES:
            return
        end = _HEAD + _ENTRY * head.entry_count
        self.entries = MetadataTableEntry.parse_table(self._table[_HEAD:end])
        self._places = [region.file_offset + at for at in range(_HEAD, end, _ENTRY)]
        self._count = head.entry_count
        self.is_usable = True

    # -- what is wrong ------------------------------------------------------------------------

    def mend(self, traces: Traces | None) -> None:
        """
        Plan everything that this region needs but for its parent locator.

        *traces* are None where nobody can look for them.
        """
        self._mend_entries()
        self._mend_parameters(traces)
        self._mend_size()
        self._make(c.PHYSICAL_SECTOR_SIZE, SectorSize(size=4096).build(), "METADATA-PHYSICAL-SIZE")
        self._make(c.VIRTUAL_DISK_ID, VirtualDiskId(disk_id=uuid4()).build(), "METADATA-DISK-ID")

    def _mend_entries(self) -> None:
        kept, places = [], []
        for entry, place in zip(self.entries, self._places, strict=True):
            wanted = entry.flags & ITEM_FLAGS
            if entry.is_user:
                wanted &= ~IS_REQUIRED
            else:
                wanted = ITEM_FLAGS_OF.get(entry.item_id, wanted)
            mended = replace(entry, flags=wanted, reserved2=0)
            if not entry.length:
                mended = replace(mended, offset=0)  # it has no place
            elif not self._is_inside(entry):
                name = KNOWN_ITEMS.get(entry.item_id, str(entry.item_id))
                if not entry.is_user and entry.item_id in _ITEMS_THAT_CAN_BE_MADE:
                    continue
                if entry.is_user or not (entry.is_required or entry.item_id in REQUIRED_ITEMS):
                    self._plan.note("METADATA-RANGE", place, "the entry was removed: its item cannot be read")
                    self._plan.lose(
                        "METADATA-RANGE", None, 0, f"the metadata item {name}, of which nothing can be read"
                    )
                    continue
            kept.append(mended)
            places.append(place)
        self.entries, self._places = kept, places

    def _is_inside(self, entry: MetadataTableEntry) -> bool:
        return (
            entry.length <= c.MAX_ITEM_SIZE
            and entry.offset >= c.METADATA_TABLE_SIZE
            and entry.offset + entry.length <= self.region.length
        )

    def _mend_parameters(self, traces: Traces | None) -> None:
        data = self.item(c.FILE_PARAMETERS)
        if len(data) != FileParameters.packer.size:
            return
        parameters = FileParameters.parse(data)
        flags = parameters.flags & (LEAVE_BLOCKS_ALLOCATED | HAS_PARENT)
        locator = self.find(c.PARENT_LOCATOR)
        if locator is not None and traces is not None and not flags & HAS_PARENT:
            place = self.region.file_offset + self.entries[locator].offset
            choice = self._plan.choose("LOCATOR-LEFTOVER", place) if traces else "remove"
            if choice == "parent":
                flags |= HAS_PARENT
                self._plan.is_visible = True
                self._plan.note("LOCATOR-LEFTOVER", place, "HasParent was set again: the file is a child")
            elif choice == "remove":
                del self.entries[locator], self._places[locator]
                self._plan.note("LOCATOR-LEFTOVER", place, "the parent locator was removed")
        if flags & HAS_PARENT:
            flags &= ~LEAVE_BLOCKS_ALLOCATED
        self._try_item(c.FILE_PARAMETERS, replace(parameters, flags=flags).build())

    def _mend_size(self) -> None:
        data, sector = self.item(c.VIRTUAL_DISK_SIZE), self.item(c.LOGICAL_SECTOR_SIZE)
        if len(data) != 8 or len(sector) != 4:
            return
        size, sector_size = VirtualDiskSize.parse(data).size, SectorSize.parse(sector).size
        if sector_size not in c.SECTOR_SIZES or not size % sector_size:
            return
        place = self.place(c.VIRTUAL_DISK_SIZE)
        if size > sector_size and self._plan.choose("METADATA-SIZE", place) == "round":
            rounded = size - size % sector_size
            if not self._try_item(c.VIRTUAL_DISK_SIZE, VirtualDiskSize(size=rounded).build()):
                return
            self._plan.is_visible = True
            self._plan.note("METADATA-SIZE", place, f"the size is {rounded} now")

    def _make(self, item_id: UUID, data: bytes, code: str) -> None:
        """See that an item that can be made up is there and means something."""
        found = self.item(item_id)
        if item_id == c.PHYSICAL_SECTOR_SIZE:
            is_right = len(found) == 4 and SectorSize.parse(found).size in c.SECTOR_SIZES
        else:
            is_right = len(found) == 16 and found != bytes(16)
        if is_right or (self.find(item_id) is None and len(self.entries) >= c.MAX_METADATA_ENTRIES):
            return
        if not self._try_item(item_id, data):
            return
        self._plan.is_visible = True
        place = self.region.file_offset if not found else self.place(item_id)
        what = "4096" if item_id == c.PHYSICAL_SECTOR_SIZE else "a new one"
        self._plan.note(code, place, f"it is {what} now")

    @property
    def has_parent(self) -> bool:
        """Whether HasParent is set, or will be."""
        data = self.item(c.FILE_PARAMETERS)
        return len(data) == FileParameters.packer.size and bool(FileParameters.parse(data).flags & HAS_PARENT)

    # -- items --------------------------------------------------------------------------------

    def find(self, item_id: UUID) -> int | None:
        """Return the number of the entry of a system item."""
        return next((n for n, e in enumerate(self.entries) if not e.is_user and e.item_id == item_id), None)

    def place(self, item_id: UUID) -> int:
        """Return the file offset of a system item that is there."""
        number = self.find(item_id)
        assert number is not None
        return self.region.file_offset + self.entries[number].offset

    def item(self, item_id: UUID) -> bytes:
        """Return a system item; nothing where it is missing or cannot be read."""
        number = self.find(item_id)
        if number is None or not self._is_inside(self.entries[number]):
            return b""
        entry = self.entries[number]
        if entry.offset in self._data:
            return self._data[entry.offset]
        return self._read(entry.length, self.region.file_offset + entry.offset)

    def _try_item(self, item_id: UUID, data: bytes) -> bool:
        """Give a system item other bytes, if it can be; return whether it could."""
        try:
            self.set_item(item_id, data)
        except RequestError:
            return False
        return True

    def set_item(self, item_id: UUID, data: bytes) -> None:
        """
        Give a system item other bytes.

        Raises `RequestError` where the region has no room for more, or the place is another item's too.
        """
        if data == self.item(item_id):
            return
        number = self.find(item_id)
        old = None if number is None else self.entries[number]
        if old is not None and not self._is_inside(old):
            old = None
        place = place_for(self.entries, self.region.length, old, len(data))
        others = (entry for at, entry in enumerate(self.entries) if at != number and entry.length)
        if any(other.offset < place + len(data) and place < other.offset + other.length for other in others):
            raise RequestError(f"the item at {place:#x} of the metadata region overlaps another")
        new = MetadataTableEntry(
            item_id=item_id, offset=place, length=len(data), flags=ITEM_FLAGS_OF[item_id]
        )
        if number is None:
            self.entries.append(new)
            self._places.append(0)
        else:
            self.entries[number] = new
        self._data[place] = data

    def edits(self) -> list[tuple[int, bytes]]:
        """Return (file offset, bytes) of what is to be written: table and items, in one log entry."""
        if not self.is_usable:
            return []
        rows = b"".join(entry.build() for entry in self.entries)
        rows = rows.ljust(_ENTRY * self._count, b"\0")
        table = MetadataTableHeader(entry_count=len(self.entries)).build() + rows
        table += self._table[len(table) :]
        edits = [(self.region.file_offset, table)] if table != self._table else []
        for offset, data in self._data.items():
            at = self.region.file_offset + offset
            if self._read(len(data), at) != data:
                edits.append((at, data))
        return edits
