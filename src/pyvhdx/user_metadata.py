"""The user items of an image as a mapping."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Protocol
from uuid import UUID

from pyvhdx._types import bytes_of
from pyvhdx.errors import RequestError
from pyvhdx.format.metadata import IS_VIRTUAL_DISK

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyvhdx._core.metadata import Items
    from pyvhdx._core.opening import OpenFile
    from pyvhdx._types import Buffer


class _Owner(Protocol):
    _file: OpenFile

    def _check_open(self) -> None: ...

    def _set_user_item(self, item_id: UUID, data: bytes | None, *, of_disk: bool | None) -> None: ...


class UserMetadata(MutableMapping[UUID, bytes]):
    """
    The user items of an image (MS-VHDX 2.6): item ids, as `uuid.UUID`, to bytes.

    Changes go through the log and count when the image is flushed.  An item has at most 1 MiB, and
    must find room in the metadata region.  Raises `RequestError` where that cannot be, and
    `io.UnsupportedOperation` on an image opened for reading.
    """

    def __init__(self, image: _Owner) -> None:
        self._image = image

    def __getitem__(self, item_id: UUID) -> bytes:
        return self._items[item_id]

    def __iter__(self) -> Iterator[UUID]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __setitem__(self, item_id: UUID, data: Buffer) -> None:
        self.set(item_id, data)

    def __delitem__(self, item_id: UUID) -> None:
        self._image._set_user_item(item_id, None, of_disk=None)

    def set(self, item_id: UUID, data: Buffer, *, of_disk: bool | None = None) -> None:
        """
        Set an item.  *of_disk* tells whether it belongs to the virtual disk, and so is copied to
        children, or to this file; None keeps that, and a new item belongs to the file.
        """
        if not isinstance(item_id, UUID):
            raise RequestError(f"an item is named by a UUID, not {item_id!r}")
        self._image._set_user_item(item_id, bytes(bytes_of(data)), of_disk=of_disk)

    def is_of_disk(self, item_id: UUID) -> bool:
        """Return whether an item belongs to the virtual disk."""
        return bool(self._items.entry(item_id).flags & IS_VIRTUAL_DISK)

    @property
    def _items(self) -> Items:
        self._image._check_open()
        return self._image._file.metadata.user

    def __repr__(self) -> str:
        return f"<UserMetadata {list(self)!r}>"
