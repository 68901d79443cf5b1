"""What can be said of an image without reading its data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from uuid import UUID

    from pyvhdx.errors import Finding


class Extent(NamedTuple):
    """
    A range of the virtual disk, in bytes, and who decides what it reads as.

    `kind` is ``"data"`` for bytes stored in a file of the chain, ``"zero"`` where the deciding entry is
    ZERO, UNMAPPED or UNDEFINED, ``"absent"`` where no file decides; these two read as zeros.
    ``"unreadable"``, only with ``salvage=True``: nobody can say, and a read raises.  `depth` is the
    deciding file, 0 for the image itself and for ``"absent"`` the last of the chain; `file_offset` is
    where the bytes lie in it, None unless the kind is ``"data"``.
    """

    offset: int
    length: int
    kind: str
    depth: int
    file_offset: int | None


@dataclass(frozen=True)
class ImageInfo:
    """
    What can be said of an image without reading its data; sizes in bytes.

    `allocated_size` is what the file takes on its medium, `parent_locator` the keys and values as
    they stand in the file, `warnings` what the open tolerated.
    """

    name: str
    kind: str
    virtual_size: int
    file_size: int
    allocated_size: int
    block_size: int
    logical_sector_size: int
    physical_sector_size: int
    creator: str
    disk_id: UUID
    file_write_guid: UUID
    data_write_guid: UUID
    log_pending: bool
    log_offset: int
    log_length: int
    parent: str | None
    parent_locator: dict[str, str] | None
    warnings: list[Finding] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values that JSON can hold."""
        plain = asdict(self)
        for name in ("disk_id", "file_write_guid", "data_write_guid"):
            plain[name] = str(plain[name])
        return plain
