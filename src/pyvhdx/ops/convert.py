"""Copying a disk from one format into another: raw and VHDX, both ways."""

from __future__ import annotations

import contextlib
import os
import stat
import warnings
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from pyvhdx.chain import open as open_image
from pyvhdx.errors import NotVHDXError, RequestError
from pyvhdx.format.constants import IDENTIFIER_SIGNATURE, MAX_VIRTUAL_SIZE, round_up
from pyvhdx.format.foreign import FOOTER_SIZE, HEAD_SIZE, recognise
from pyvhdx.image import VHDXImage
from pyvhdx.ops.build import Builder
from pyvhdx.ops.create import new_disk
from pyvhdx.storage import LocalFile, new_file, open_file_object, open_local

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pyvhdx._core.layout import Disk
    from pyvhdx._types import PathLike, Progress, Source
    from pyvhdx.storage import Storage

_PIECE = 1 << 20
_GRAIN = 1 << 16
_ZEROS = bytes(_PIECE)
_ZERO_GRAIN = bytes(_GRAIN)

_RAW_SUFFIXES = (".raw", ".img")
_VHDX_SUFFIXES = (".vhdx", ".avhdx")


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
    target_format = _target_format(target, format)
    with contextlib.ExitStack() as cleanup:
        disk = _open_source(source, source_format, how, cleanup)
        if target_format == "vhdx":
            if kind == "differencing":
                raise RequestError('convert makes "dynamic" and "fixed" disks; a child is made by create')
            like = disk.image
            if like is not None:
                logical_sector_size = logical_sector_size or like.logical_sector_size
                physical_sector_size = physical_sector_size or like.physical_sector_size

            def describe(size: int) -> Disk:
                return new_disk(
                    size,
                    kind=kind,
                    block_size=block_size,
                    logical_sector_size=logical_sector_size,
                    physical_sector_size=physical_sector_size,
                    log_size=log_size,
                    seed=seed,
                )

            sector = logical_sector_size or 512
            describe(sector)  # refuses what cannot be before a byte is read
            write: Callable[[Storage], tuple[int, int]] = lambda storage: _write_vhdx(  # noqa: E731 - one of two
                disk, storage, describe, sector, progress, flush=sync
            )
        else:
            if (kind, block_size, logical_sector_size, physical_sector_size, log_size, seed) != (
                "dynamic",
                None,
                None,
                None,
                1 << 20,
                None,
            ):
                raise RequestError("kind, seed and the sizes belong to a VHDX target, and the target is raw")
            write = lambda storage: _write_raw(disk, storage, progress)  # noqa: E731 - the other one
        if disk.size == 0:
            raise RequestError(f"{disk.name} is empty, and a disk has at least one sector")
        if isinstance(target, (str, os.PathLike)):
            _refuse_source(target, disk)
            with new_file(target, overwrite=overwrite, sync=sync) as file:
                size, data = write(file)
        elif target_format == "raw" and not _can_seek(target):
            size, data = _write_stream(disk, target, progress)
        else:
            storage = cleanup.enter_context(contextlib.closing(open_file_object(target)))
            if storage.size() and not overwrite:
                raise FileExistsError("the target is not empty; overwrite=True replaces its content")
            storage.truncate(0)
            size, data = write(storage)
            if sync:
                storage.flush()
        return ConvertReport(
            source=disk.name,
            target=_name_of(target),
            source_format=disk.format,
            target_format=target_format,
            virtual_size=size,
            padded=size - disk.seen(),
            data=data,
        )


# -- the source ---------------------------------------------------------------------------------


class _Disk:
    """A source: its `size` in bytes, None until a stream has ended, and its pieces that are not zero."""

    format = "raw"
    image: VHDXImage | None = None
    size: int | None

    def __init__(self, name: str) -> None:
        self.name = name
        self._buffer = bytearray(_PIECE)
        self._view = memoryview(self._buffer)

    def seen(self) -> int:
        """Return the size, known by now."""
        assert self.size is not None
        return self.size

    def runs(self) -> Iterator[tuple[int, int]]:
        """Yield (start, end) of the runs that may hold data, in order."""
        raise NotImplementedError

    def fill(self, view: memoryview, offset: int) -> None:
        """Read the bytes at *offset* into *view*."""
        raise NotImplementedError

    def pieces(self, progress: Progress | None) -> Iterator[tuple[int, memoryview]]:
        """
        Yield (offset, bytes) of all that is not zero, in order.

        A piece does not cross a multiple of 1 MiB; it is good until the next one is asked for.
        """
        total = self.size or 0
        for start, end in self.runs():
            at = start
            while at < end:
                size = min(_PIECE - at % _PIECE, end - at)
                self.fill(self._view[:size], at)
                for first, last in _filled(self._buffer, size):
                    yield at + first, self._view[first:last]
                at += size
                if progress is not None:
                    progress(at, total)
        if progress is not None and self.size is not None:
            progress(self.size, self.size)


def _filled(buffer: bytearray, size: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of the runs of *buffer* that are not zero, in steps of 64 KiB."""
    start = None
    for at in range(0, size, _GRAIN):
        grain = min(_GRAIN, size - at)
        if buffer.startswith(_ZERO_GRAIN if grain == _GRAIN else _ZERO_GRAIN[:grain], at):
            if start is not None:
                yield start, at
                start = None
        elif start is None:
            start = at
    if start is not None:
        yield start, size


class _VHDXDisk(_Disk):
    format = "vhdx"

    def __init__(self, image: VHDXImage) -> None:
        super().__init__(image.name)
        self.image: VHDXImage = image
        self.size = image.size

    def runs(self) -> Iterator[tuple[int, int]]:
        chain = self.image.chain
        for extent in self.image.extents():
            if extent.file_offset is None:
                continue
            # The file may have holes inside its blocks.
            for start, end in _data_in(chain[extent.depth]._file.storage, extent.file_offset, extent.length):
                shift = extent.offset - extent.file_offset
                yield start + shift, end + shift

    def fill(self, view: memoryview, offset: int) -> None:
        self.image.preadinto(view, offset)


class _RawDisk(_Disk):
    def __init__(self, storage: Storage) -> None:
        super().__init__(storage.name)
        self.storage = storage
        self.size: int = storage.size()

    def runs(self) -> Iterator[tuple[int, int]]:
        return _data_in(self.storage, 0, self.size)

    def fill(self, view: memoryview, offset: int) -> None:
        if self.storage.read_into(view, offset) != len(view):
            raise OSError(
                f"{self.name}: the file ended before {offset + len(view):#x}; it was longer at first"
            )


class _Stream(_Disk):
    """A source that can only be read to its end."""

    def __init__(self, file: Any, head: bytes) -> None:
        super().__init__(_name_of(file))
        self._file = file
        self._head = head
        self.size = None if head else 0

    def seen(self) -> int:
        return self._end if self.size is None else self.size

    def runs(self) -> Iterator[tuple[int, int]]:
        self._end = 0
        while self._next():
            yield self._end - self._length, self._end

    def _next(self) -> int:
        self._length = 0
        while self._length < _PIECE:
            data = self._head or self._file.read(_PIECE - self._length)
            if not data:
                break
            self._head = b""
            self._buffer[self._length : self._length + len(data)] = data
            self._length += len(data)
        self._end += self._length
        return self._length

    def fill(self, view: memoryview, offset: int) -> None:
        pass  # it is in the buffer already


def _data_in(storage: Storage, offset: int, length: int) -> Iterator[tuple[int, int]]:
    end = offset + length
    while offset < end and (run := storage.next_data(offset)) is not None and run[0] < end:
        yield run[0], min(run[1], end)
        offset = run[1]


class _Known(NamedTuple):
    """What can be told of a raw source before it is opened as one."""

    head: bytes
    footer: bytes
    name: str


def _open_source(
    source: Source, format: str | None, how: dict[str, Any], cleanup: contextlib.ExitStack
) -> _Disk:
    if format not in (None, "raw", "vhdx"):
        raise RequestError(f'source_format is {format!r}, and must be "vhdx" or "raw"')
    if isinstance(source, VHDXImage):
        if format == "raw" or how:
            raise RequestError("an open image is a VHDX source, and is opened already")
        return _VHDXDisk(source)
    if not isinstance(source, (str, os.PathLike)) and not _can_seek(source):
        if format == "vhdx" or how:
            raise RequestError("a VHDX source must be able to seek, and this one cannot")
        head = source.read(HEAD_SIZE) or b""
        _refuse_other_formats(_Known(head, b"", ""), told=format is not None, stream=True)
        return _Stream(source, head)
    if format is None:
        format = _guess_format(source)
    if format == "vhdx":
        return _VHDXDisk(cleanup.enter_context(open_image(source, **how)))
    if how:
        raise RequestError(f"{', '.join(how)}: these belong to a VHDX source, and the source is raw")
    return _RawDisk(cleanup.enter_context(contextlib.closing(_open_storage(source))))


def _open_storage(source: Source) -> Storage:
    return open_local(source) if isinstance(source, (str, os.PathLike)) else open_file_object(source)


def _guess_format(source: Source) -> str:
    with contextlib.closing(_open_storage(source)) as storage:
        if storage.name.lower().endswith(_RAW_SUFFIXES):
            return "raw"
        if isinstance(storage, LocalFile) and stat.S_ISBLK(storage.status().st_mode):
            return "raw"
        head = storage.read_at(HEAD_SIZE, 0)
        if head.startswith(IDENTIFIER_SIGNATURE):
            return "vhdx"
        size = storage.size()
        footer = storage.read_at(FOOTER_SIZE, max(0, size - FOOTER_SIZE))
        _refuse_other_formats(_Known(head, footer, storage.name), told=False, stream=False)
        return "raw"


def _refuse_other_formats(known: _Known, *, told: bool, stream: bool) -> None:
    if told:
        return
    if stream and known.head.startswith(IDENTIFIER_SIGNATURE):
        raise RequestError("a VHDX source must be able to seek, and this one cannot; give its path")
    found = recognise(known.head, known.footer, known.name)
    if found is not None and not found[1]:
        raise NotVHDXError(
            f'it is {found[0]}; source_format="raw" copies it as it is', "NOT-VHDX", "source", 0, "2.2.1"
        )


# -- the target ---------------------------------------------------------------------------------


def _target_format(target: Source, format: str | None) -> str:
    if format is not None:
        if format not in ("raw", "vhdx"):
            raise RequestError(f'format is {format!r}, and must be "vhdx" or "raw"')
        return format
    name = _name_of(target).lower()
    if name.endswith(_VHDX_SUFFIXES):
        return "vhdx"
    if name.endswith(_RAW_SUFFIXES):
        return "raw"
    raise RequestError(
        f'the format of {_name_of(target)} cannot be told from its name; give format="vhdx" or "raw"'
    )


def _write_vhdx(
    source: _Disk,
    storage: Storage,
    describe: Callable[[int], Disk],
    sector: int,
    progress: Progress | None,
    *,
    flush: bool,
) -> tuple[int, int]:
    if source.size is not None:
        disk = describe(_padded(source, sector))
        builder = Builder(storage, disk)
    else:
        disk = describe(MAX_VIRTUAL_SIZE)
        builder = Builder(storage, disk, size_known=False)
    written = 0
    for offset, piece in source.pieces(progress):
        if offset + len(piece) > MAX_VIRTUAL_SIZE:
            raise RequestError(f"{source.name} is larger than 64 TiB")
        builder.write(piece, offset)
        written += len(piece)
    if source.size is None:
        disk = describe(_padded(source, sector))
    builder.finish(disk, flush=flush)
    return disk.size, written


def _padded(source: _Disk, sector: int) -> int:
    size = round_up(source.seen(), sector)
    if size != source.seen():
        warnings.warn(
            f"{source.name} has {source.seen()} bytes, no multiple of the sector size {sector}; "
            f"{size - source.seen()} zeros are added at its end",
            UserWarning,
            stacklevel=5,
        )
    return size


def _write_raw(source: _Disk, storage: Storage, progress: Progress | None) -> tuple[int, int]:
    written = 0
    for offset, piece in source.pieces(progress):
        storage.write_at(piece, offset)
        written += len(piece)
    storage.truncate(source.seen())
    return source.seen(), written


def _write_stream(source: _Disk, target: Any, progress: Progress | None) -> tuple[int, int]:
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
        _write_all(target, memoryview(_ZEROS)[: min(count, _PIECE)])
        count -= _PIECE


def _write_all(target: Any, view: memoryview) -> None:
    while view:
        view = view[target.write(view) :]


def _refuse_source(target: PathLike, source: _Disk) -> None:
    try:
        status = os.stat(target)
    except OSError:
        return
    storages = [image._file.raw for image in source.image.chain] if source.image is not None else []
    if isinstance(source, _RawDisk):
        storages.append(source.storage)
    for storage in storages:
        if isinstance(storage, LocalFile) and os.path.samestat(storage.status(), status):
            raise RequestError(f"{os.fspath(target)} is the source itself, or a file of its chain")


def _can_seek(file: Any) -> bool:
    try:
        return bool(file.seekable())
    except AttributeError:
        return False


def _name_of(file: Source) -> str:
    if isinstance(file, (str, os.PathLike)):
        return os.fspath(file)
    name = getattr(file, "name", None)
    return name if isinstance(name, str) else f"<{type(file).__name__}>"
