"""Making a new image: empty, or the child of another."""

from __future__ import annotations

import ntpath
import os
import posixpath
import stat
import uuid
import warnings
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from pyvhdx._core.layout import Disk
from pyvhdx._core.opening import open_file
from pyvhdx._core.parent_paths import paths_to
from pyvhdx._version import __version__
from pyvhdx.chain import is_at_its_path, refuse_writable_parent, storages_of
from pyvhdx.chain import open as open_image
from pyvhdx.errors import ParentCycleError, RequestError
from pyvhdx.format import constants as c
from pyvhdx.format import locator as form
from pyvhdx.format.metadata import IS_USER, IS_VIRTUAL_DISK, ITEM_FLAGS
from pyvhdx.image import VHDXImage
from pyvhdx.ops.build import Builder
from pyvhdx.storage import can_read, new_file, open_file_object, refuse_files_in_use

if TYPE_CHECKING:
    from uuid import UUID

    from pyvhdx._types import PathLike, Source

DEFAULT_CREATOR = f"pyvhdx {__version__}"
DEFAULT_BLOCK_SIZE = 2 << 20

_FLAVOUR = ntpath if os.name == "nt" else posixpath
# As much as Microsoft's own implementation takes of a category.
_MAX_ITEMS_SIZE = 40 << 20
# What a new child sets itself, and does not take over from its parent.
_OWN_ITEMS = {
    c.FILE_PARAMETERS,
    c.VIRTUAL_DISK_SIZE,
    c.VIRTUAL_DISK_ID,
    c.LOGICAL_SECTOR_SIZE,
    c.PHYSICAL_SECTOR_SIZE,
    c.PARENT_LOCATOR,
}


def create(
    target: Source,
    size: int | None = None,
    *,
    kind: str = "dynamic",
    parent: PathLike | VHDXImage | None = None,
    block_size: int | None = None,
    logical_sector_size: int | None = None,
    physical_sector_size: int | None = None,
    log_size: int = 1 << 20,
    disk_id: UUID | None = None,
    seed: bytes | str | None = None,
    creator: str = DEFAULT_CREATOR,
    exist_ok: bool = False,
    lock: bool = True,
    sync: bool = True,
) -> VHDXImage:
    """
    Make a new VHDX image and return it, open for reading and writing.

    *target* is a path, an empty seekable binary file object, or an empty `pyvhdx.testing.Storage`.
    *size* is the virtual size in bytes: a multiple of the logical sector size up to 64 TiB.  *kind* is
    ``"dynamic"``, ``"fixed"`` or ``"differencing"``; the last is implied by *parent*, a path or an open
    image.  *block_size* is a power of two from 1 to 256 MiB, the sector sizes are 512 or 4096 bytes,
    *log_size* is a multiple of 1 MiB up to 1 GiB.  None means the parent's value; without a parent 2
    MiB and 512, and 4096 for the physical sector size.

    Every GUID is derived from *seed* and the other parameters, so that equal calls make equal files;
    without one they are random.  A child gets its parent's `disk_id` and copies of all items that
    belong to the virtual disk (MS-VHDX 2.6.1.2).

    The file appears under its name when it is complete.  With *exist_ok* it replaces an older one.
    *lock* refuses to replace a file in use; ``sync=False`` leaves out the durability barriers.

    Raises `RequestError` for parameters that cannot be, `FileExistsError`, `LockedError`, what
    `pyvhdx.open` raises for the parent, and `OSError`.  A parent whose log is pending gives a
    `UserWarning`: who replays it into the file may cut the child off.
    """
    if disk_id == c.ZERO_GUID:
        raise RequestError("the zero GUID cannot be a disk_id: it says that there is none")
    if parent is None:
        if kind == "differencing":
            raise RequestError('a differencing disk needs its parent (parent="FILE", or -b FILE)')
        if size is None:
            raise RequestError("size is needed where there is no parent")
        disk = new_disk(
            size,
            kind=kind,
            block_size=block_size,
            logical_sector_size=logical_sector_size,
            physical_sector_size=physical_sector_size,
            log_size=log_size,
            disk_id=disk_id,
            seed=seed,
            creator=creator,
        )
    else:
        if kind == "fixed":
            raise RequestError("a child is differencing, and cannot be fixed")
        if isinstance(parent, VHDXImage):
            refuse_writable_parent(parent)
        opened = parent if isinstance(parent, VHDXImage) else open_image(parent, lock=lock)
        try:
            refuse_files_in_use(target, storages_of(opened), "a file of its own chain")
            if len(opened.chain) > c.MAX_CHAIN_DEPTH:
                raise ParentCycleError(
                    f"{opened.name} has {c.MAX_CHAIN_DEPTH} parents, and no child may have more"
                )
            if opened.log_pending:
                warnings.warn(
                    f"{opened.name}: its log is pending; a program that replays it into the file may change its "
                    "DataWriteGuid, as QEMU does, and then the child does not open any more",
                    UserWarning,
                    stacklevel=2,
                )
            if logical_sector_size not in (None, opened.logical_sector_size):
                raise RequestError(
                    f"logical_sector_size must be the parent's, which is {opened.logical_sector_size}"
                )
            disk = new_disk(
                opened.size if size is None else size,
                kind="differencing",
                block_size=opened.block_size if block_size is None else block_size,
                logical_sector_size=opened.logical_sector_size,
                physical_sector_size=(
                    opened.physical_sector_size if physical_sector_size is None else physical_sector_size
                ),
                log_size=log_size,
                disk_id=disk_id or opened.disk_id,
                seed=seed,
                creator=creator,
                locator=_locator(target, opened),
                items=_items_of_the_disk(opened),
            )
        finally:
            if opened is not parent:
                opened.close()
    if isinstance(target, (str, os.PathLike)):
        with new_file(target, overwrite=exist_ok, lock=lock, sync=sync) as file:
            Builder(file, disk).finish(flush=False)
            open_file(file)  # what could not be opened must not get its name
    else:
        storage = open_file_object(target, write=True)
        try:
            if not can_read(target):
                raise RequestError(
                    'the new image is given back open, and this file object cannot be read; open it "w+b"'
                )
            if storage.size() and not exist_ok:
                raise FileExistsError("the file object is not empty; exist_ok=True replaces its content")
            if storage.size():
                storage.truncate(0)
                if sync:  # or the old identifier could come back over the new headers
                    storage.flush()
            Builder(storage, disk).finish(flush=sync)
            if sync:
                storage.flush()
        finally:
            storage.close()
    return open_image(target, "r+", parent="auto" if parent is None else parent, lock=lock, sync=sync)


def new_disk(
    size: int,
    *,
    kind: str = "dynamic",
    block_size: int | None = None,
    logical_sector_size: int | None = None,
    physical_sector_size: int | None = None,
    log_size: int = 1 << 20,
    disk_id: UUID | None = None,
    seed: bytes | str | None = None,
    creator: str = DEFAULT_CREATOR,
    locator: dict[str, str] | None = None,
    items: list[tuple[UUID, int, bytes]] | None = None,
) -> Disk:
    """Return the description of a new disk, defaults filled in and GUIDs made; see `create`."""
    if disk_id is not None and not isinstance(disk_id, uuid.UUID):
        raise RequestError(f"disk_id is {disk_id!r}, and must be a UUID")
    given: dict[str, Any] = {
        "size": size,
        "kind": kind,
        "block_size": DEFAULT_BLOCK_SIZE if block_size is None else block_size,
        "logical_sector_size": 512 if logical_sector_size is None else logical_sector_size,
        "physical_sector_size": 4096 if physical_sector_size is None else physical_sector_size,
        "log_size": log_size,
        "creator": creator,
        "locator": locator,
        "items": items or [],
    }
    fresh = _guids(seed, "" if seed is None else repr(sorted(given.items())))
    return Disk(
        **given,
        file_write_guid=fresh("file"),
        data_write_guid=fresh("data"),
        disk_id=disk_id or fresh("disk"),
    )


def _guids(seed: bytes | str | None, parameters: str) -> Any:
    """
    Return a function that makes the GUID of a purpose.

    The parameters are mixed in: a child made with its parent's seed must not get its GUIDs.
    """
    if seed is None:
        return lambda _purpose: uuid.uuid4()
    if not isinstance(seed, (bytes, str)):
        raise RequestError(f"seed is {seed!r}, and must be bytes or a string")
    # A seed of the command need not be text.
    start = sha256(seed.encode(errors="surrogatepass") if isinstance(seed, str) else seed).digest()

    def derive(purpose: str) -> UUID:
        return uuid.UUID(bytes=sha256(start + f"{purpose}\0{parameters}".encode()).digest()[:16], version=4)

    return derive


def _locator(target: Source, parent: VHDXImage) -> dict[str, str]:
    """Return the keys of the locator in Windows' order; the linkage is the parent's DataWriteGuid now."""
    if not is_at_its_path(parent):
        raise RequestError(f"the parent {parent.name} has no path that a child could name")
    if not stat.S_ISREG(os.stat(parent.name).st_mode):
        raise RequestError(f"the parent {parent.name} is a device, and a child opens only files")
    name = os.path.realpath(parent.name)
    if isinstance(target, (str, os.PathLike)):
        folder = os.path.dirname(os.path.realpath(target))
    else:
        folder = os.path.dirname(name)
        warnings.warn(
            f"the folder of the new child is not known; it names its parent as if it lay in {folder}",
            UserWarning,
            stacklevel=3,
        )
    paths = paths_to(name, folder, _FLAVOUR)
    _refuse_unwritable_path(name, folder, paths)
    pairs = {form.LINKAGE: form.format_linkage(parent.data_write_guid)}
    pairs |= {key: paths[key] for key in (form.ABSOLUTE_WIN32_PATH, form.RELATIVE_PATH) if key in paths}
    pairs[form.LINKAGE2] = form.format_linkage(c.ZERO_GUID)
    return pairs


def _refuse_unwritable_path(name: str, folder: str, paths: dict[str, str]) -> None:
    """A locator holds Unicode, and takes every backslash for a separator."""
    try:
        "".join(paths.values()).encode("utf-16-le")
    except UnicodeEncodeError:
        raise RequestError(
            f"the path of the parent {name} is no Unicode text, and cannot stand in a locator"
        ) from None
    if _FLAVOUR is posixpath and "\\" in posixpath.relpath(name, folder):
        raise RequestError(
            f"the path of the parent {name} holds a backslash, which a locator takes for a separator"
        )


def _items_of_the_disk(parent: VHDXImage) -> list[tuple[UUID, int, bytes]]:
    """Return the items that belong to the virtual disk and so go along to a child (2.6.1.2)."""
    metadata = parent._file.metadata
    items = []
    total = 0
    for mapping in (metadata.system, metadata.user):
        for item_id in mapping:
            entry = mapping.entry(item_id)
            flags = entry.flags & ITEM_FLAGS
            if flags & IS_VIRTUAL_DISK and (flags & IS_USER or item_id not in _OWN_ITEMS):
                total += entry.length
                if total > _MAX_ITEMS_SIZE:
                    raise RequestError(
                        f"the parent {parent.name} has over 40 MiB of items that belong to the disk; no child takes them"
                    )
                items.append((item_id, flags, mapping[item_id]))
    return items
