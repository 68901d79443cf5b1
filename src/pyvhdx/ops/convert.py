"""Copying a disk from one format into another: raw and VHDX, both ways."""

from __future__ import annotations

import contextlib
import errno
import os
import warnings
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from pyvhdx.chain import open as open_image
from pyvhdx.errors import RequestError
from pyvhdx.format.constants import MAX_VIRTUAL_SIZE, MIB, round_up
from pyvhdx.ops.build import Builder
from pyvhdx.ops.create import new_disk
from pyvhdx.ops.source import RAW_SUFFIXES, VHDX_SUFFIXES, name_of, open_source
from pyvhdx.storage import (
    can_seek,
    is_appending,
    new_file,
    open_file_object,
    refuse_files_in_use,
    refuse_no_file,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvhdx._core.layout import Disk
    from pyvhdx._types import Progress, Source
    from pyvhdx.ops.source import SourceDisk
    from pyvhdx.storage import Storage

_ZEROS = bytes(MIB)
_HOW = frozenset(open_image.__kwdefaults__ or ())


@dataclass(frozen=True)
class ConvertReport:
    """
    What a conversion did; sizes in bytes.

    `padded` zeros were added because the source was no multiple of a sector; `data` bytes were
    written to the target, the rest of the disk are zeros that take no space.
    """

    source: str
    target: str
    source_format: str
    target_format: str
    virtual_size: int
    padded: int
    data: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def convert(
    source: Source,
    target: Source,
    *,
    source_format: str | None = None,
    format: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    kind: str = "dynamic",
    block_size: int | None = None,
    logical_sector_size: int | None = None,
    physical_sector_size: int | None = None,
    log_size: int = 1 << 20,
    seed: bytes | str | None = None,
    sync: bool = True,
    **how: Any,
) -> ConvertReport:
    """
    Copy the disk in *source* into *target*; zeros take no space in the target.

    *source* is anything `pyvhdx.open` takes, a raw disk image, a block device, or a binary file
    object that need not be able to seek (then it is raw).  *source_format* is ``"vhdx"`` or
    ``"raw"``; without it the content decides, but a block device and a name ending in .raw or .img
    are raw whatever they hold.  *target* is a path, or a binary file object, which for ``"raw"``
    need not be able to seek.  *format* is ``"vhdx"`` or ``"raw"``; without it the suffix of the path
    decides: .vhdx .avhdx .raw .img.

    *kind* (``"dynamic"`` or ``"fixed"``), the sizes and *seed* are those of `pyvhdx.create`; without
    them the sector sizes of a VHDX source are kept.  The *seed* does not cover the content: convert
    different disks with different seeds.  *how* are keyword arguments of `pyvhdx.open`.

    ``progress(done, total)`` is called with bytes of the virtual disk, *total* 0 where it is not
    known, and cancels by raising.  The target is flushed (unless *sync* is False) and gets its name
    when it is complete; else nothing is left of it.  An existing target is refused unless
    *overwrite*; the source and the files of its chain always are.

    Raises `RequestError` for what cannot be converted, an empty source included, `NotVHDXError` for
    another known format, what `pyvhdx.open` raises, `FileExistsError`, and `OSError`.  A source that
    is no multiple of the sector size is padded with zeros, with a `UserWarning`.
    """
    for name in how:
        if name not in _HOW:
            raise TypeError(f"convert() got an unexpected keyword argument {name!r}")
    if not isinstance(target, (str, os.PathLike)):
        refuse_no_file(target, "write")
    target_format = target_format_of(target, format)
    with contextlib.ExitStack() as cleanup:
        disk = open_source(source, source_format, how, cleanup)
        if disk.size == 0:
            raise RequestError(f"{disk.name} is empty, and a disk has at least one sector")
        make: Callable[[int], Disk] | None = None
        if target_format == "vhdx":
            if kind == "differencing":
                raise RequestError('convert makes "dynamic" and "fixed" disks; a child is made by create')
            if disk.image is not None:
                if logical_sector_size is None:
                    logical_sector_size = disk.image.logical_sector_size
                if physical_sector_size is None:
                    physical_sector_size = disk.image.physical_sector_size
            make = partial(
                new_disk,
                kind=kind,
                block_size=block_size,
                logical_sector_size=logical_sector_size,
                physical_sector_size=physical_sector_size,
                log_size=log_size,
                seed=seed,
            )
            make(4096)  # refuses what cannot be before anything is touched
        elif kind != "dynamic" or any(
            (block_size, logical_sector_size, physical_sector_size, seed, log_size != MIB)
        ):
            raise RequestError("kind, seed and the sizes belong to a VHDX target, and the target is raw")
        size, data = write_target(
            disk, source, target, target_format, make, overwrite=overwrite, sync=sync, progress=progress
        )
        return ConvertReport(
            source=disk.name,
            target=name_of(target),
            source_format=disk.format,
            target_format=target_format,
            virtual_size=size,
            padded=size - disk.seen(),
            data=data,
        )


def write_target(
    disk: SourceDisk,
    source: Source,
    target: Source,
    target_format: str,
    make: Callable[[int], Disk] | None,
    *,
    overwrite: bool,
    sync: bool,
    progress: Progress | None,
) -> tuple[int, int]:
    """
    Write a disk, as VHDX where *make* describes it, to a path or a file object.

    Returns the size of the disk and the bytes of data in it.
    """
    refuse_files_in_use(target, disk.storages(), "the source itself, or a file of its chain")
    if isinstance(target, (str, os.PathLike)):
        with new_file(target, overwrite=overwrite, sync=sync) as file:
            size, data = _write(disk, file, make, progress, flush=False)
    elif target_format == "raw" and not can_seek(target):
        size, data = _write_stream(disk, target, progress)
    else:
        if not can_seek(target):
            raise RequestError(
                "a VHDX target is written at many places, and this one cannot seek; give its path"
            )
        if target is source:
            raise RequestError("the target is the source itself")
        with contextlib.closing(
            open_file_object(target, write=True, append=target_format == "raw")
        ) as storage:
            if storage.size() and not overwrite:
                raise FileExistsError(
                    "the target is not empty; overwrite=True (--force) replaces its content"
                )
            storage.truncate(0)
            if is_appending(target):
                size, data = _write_stream(disk, target, progress)
            else:
                size, data = _write(disk, storage, make, progress, flush=sync)
            if sync:
                storage.flush()
    return size, data


def target_format_of(target: Source, format: str | None) -> str:
    """Return ``"vhdx"`` or ``"raw"``: *format*, or what the suffix of the target says."""
    if format is not None:
        if format not in ("raw", "vhdx"):
            raise RequestError(f'format is {format!r}, and must be "vhdx" or "raw"')
        return format
    name = name_of(target).lower()
    if name.endswith(VHDX_SUFFIXES):
        return "vhdx"
    if name.endswith(RAW_SUFFIXES):
        return "raw"
    raise RequestError(
        f'the format of {name_of(target)} cannot be told from its name; say it with format="raw" or "vhdx" (-O)'
    )


def _write(
    source: SourceDisk,
    storage: Storage,
    make: Callable[[int], Disk] | None,
    progress: Progress | None,
    *,
    flush: bool,
) -> tuple[int, int]:
    """Write the disk, as VHDX where *make* describes it; return its size and the bytes of data."""
    if make is None:
        return _write_raw(source, storage, progress)
    sector = make(4096).logical_sector_size
    known = source.size is not None
    disk = make(_padded(source, sector) if known else MAX_VIRTUAL_SIZE)
    builder = Builder(storage, disk, size_known=known)
    written = 0
    for offset, piece in source.pieces(progress):
        if offset + len(piece) > MAX_VIRTUAL_SIZE:
            raise RequestError(f"{source.name} is larger than 64 TiB")
        builder.write(piece, offset)
        written += len(piece)
    if not known:
        disk = make(_padded(source, sector))
    builder.finish(disk, flush=flush)
    return disk.size, written


def _padded(source: SourceDisk, sector: int) -> int:
    size = round_up(source.seen(), sector)
    if size != source.seen():
        warnings.warn(
            f"{source.name} has {source.seen()} bytes, no multiple of the sector size {sector}; "
            f"{size - source.seen()} zeros are added at its end",
            UserWarning,
            stacklevel=6,
        )
    return size


def _write_raw(source: SourceDisk, storage: Storage, progress: Progress | None) -> tuple[int, int]:
    written = 0
    for offset, piece in source.pieces(progress):
        storage.write_at(piece, offset)
        written += len(piece)
    storage.truncate(source.seen())
    return source.seen(), written


def _write_stream(source: SourceDisk, target: Any, progress: Progress | None) -> tuple[int, int]:
    at = written = 0
    for offset, piece in source.pieces(progress):
        _write_zeros(target, offset - at)
        _write_all(target, piece)
        at = offset + len(piece)
        written += len(piece)
    _write_zeros(target, source.seen() - at)
    target.flush()
    return source.seen(), written


def _write_zeros(target: Any, count: int) -> None:
    while count > 0:
        _write_all(target, memoryview(_ZEROS)[: min(count, MIB)])
        count -= MIB


def _write_all(target: Any, view: memoryview) -> None:
    while view:
        done = target.write(view)
        if not done:  # a stream that is set not to block must not be asked for ever
            raise BlockingIOError(errno.EAGAIN, "the target takes no more bytes now")
        view = view[done:]
