"""
An open VHDX image: a file-like object over one file and its parents.

What it reads is found by `reading`, and what changes the file is carried out by the `ImageWriter` of
an image that was opened for writing.
"""

from __future__ import annotations

import io
import operator
import os
import threading
import warnings
import weakref
from typing import TYPE_CHECKING, Any

from pyvhdx._core.opening import open_file
from pyvhdx._core.trim import TrimMode
from pyvhdx._types import bytes_of
from pyvhdx.errors import Finding, ImageError, ImageFailedError, RequestError
from pyvhdx.info import Extent, ImageInfo
from pyvhdx.reading import extents, read_into
from pyvhdx.session import forked, prepare
from pyvhdx.user_metadata import UserMetadata
from pyvhdx.writing import ImageWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from uuid import UUID

    from typing_extensions import Self

    from pyvhdx._core.opening import OpenFile
    from pyvhdx._core.recover import Hints
    from pyvhdx._types import Buffer
    from pyvhdx.format.header import Header
    from pyvhdx.storage import Storage


class VHDXImage(io.RawIOBase):
    """
    A virtual disk as a binary file; made by `pyvhdx.open` and `pyvhdx.create`.

    `pread`, `preadinto` and `extents` may be called from many threads at once and read in parallel,
    also while others write; `pwrite`, `write_zeroes`, `trim` and `flush` take turns; `read`,
    `readinto`, `write` and `seek` share one position.  Every offset and size is in bytes.

    On a closed image they raise `ValueError`; what cannot be read right raises `ImageError`, and data
    of a parent that was not opened `ParentNotFoundError`.  What changes the disk raises
    `io.UnsupportedOperation` on an image opened for reading, `ImageFailedError` after a change that
    failed half-way, and `StateError` in a process that was forked off since the open.
    """

    def __init__(self, file: OpenFile, reopen: tuple[Any, ...] | None) -> None:
        self.name = file.raw.name
        self.mode = "r"
        self._reopen = reopen
        self._writer: ImageWriter | None = None
        self._use(file)
        self._parent: VHDXImage | None = None
        self._owns_parent = False
        self._size = file.metadata.size
        self._position = 0
        self._position_lock = threading.Lock()
        self._block_shift = file.geometry.block_shift
        self._block_size = file.geometry.block_size
        self._block_mask = file.geometry.block_size - 1

    def _use(self, file: OpenFile) -> None:
        self._file = file
        self._storage = file.storage
        # The way of most reads: a block that is wholly here, found in one look.
        self._blocks = file.blocks
        self._places = file.blocks.places

    @classmethod
    def _open(
        cls,
        storage: Storage,
        *,
        replay_log: bool,
        reopen: tuple[Any, ...] | None = None,
        salvage: Hints | None = None,
    ) -> VHDXImage:
        """
        Open one file, without its parent; the image closes *storage*, also when this raises.

        *reopen*, a function and its arguments but the position, makes an equal image for pickle.  With
        *salvage* what a strict open refuses is read as far as it can be.
        """
        try:
            if salvage is None:
                file = open_file(storage, replay_log=replay_log)
            else:
                from pyvhdx._core.recover import recover_file  # noqa: PLC0415 - most images are whole

                file = recover_file(storage, salvage, replay_log=replay_log)
            return cls(file, reopen)
        except ImageError as error:
            error.name = storage.name
            storage.close()
            raise
        except BaseException:
            storage.close()
            raise

    def _attach(self, parent: VHDXImage, *, owned: bool) -> None:
        """Put the parent in, which has been verified; an *owned* one is closed with this image."""
        self._parent = parent
        self._owns_parent = owned

    def _do_without_parent(self, why: str) -> None:
        """Note that a salvage found no parent: what is in it is unreadable."""
        wrong = Finding("PARENT-MISSING", "corrupt", "Parent Locator", 0, "2.6.2.6", why)
        self._file = self._file._replace(findings=[*self._file.findings, wrong])

    def _make_writable(self, *, sync: bool) -> None:
        """Go on for reading and writing; a pending log is replayed into the file."""
        try:
            self._use(prepare(self._file, sync=sync))
            self._writer = ImageWriter(self._file, sync=sync, read=_reader_of(self))
        except ImageError as error:
            error.name = self.name
            raise
        self.mode = "r+"
        self._reopen = None

    # -- what it is ---------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """The size of the virtual disk in bytes."""
        return self._size

    @property
    def kind(self) -> str:
        """``"fixed"``, ``"dynamic"`` or ``"differencing"`` (MS-VHDX 2.6.2.1)."""
        return self._file.metadata.kind

    @property
    def block_size(self) -> int:
        """The size of a payload block in bytes: a power of two from 1 to 256 MiB."""
        return self._file.metadata.block_size

    @property
    def logical_sector_size(self) -> int:
        """The sector size of the virtual disk: 512 or 4096 bytes."""
        return self._file.metadata.logical_sector_size

    @property
    def physical_sector_size(self) -> int:
        """The physical sector size that the disk reports: 512 or 4096 bytes."""
        return self._file.metadata.physical_sector_size

    @property
    def disk_id(self) -> UUID:
        """The identity of the virtual disk, which a child shares with its parent."""
        return self._file.metadata.disk_id

    @property
    def data_write_guid(self) -> UUID:
        """Changes whenever the content does; children remember it (MS-VHDX 2.2.2)."""
        return self._header.data_write_guid

    @property
    def file_write_guid(self) -> UUID:
        """Changes whenever anything in the file does (MS-VHDX 2.2.2)."""
        return self._header.file_write_guid

    @property
    def _header(self) -> Header:
        return self._file.header if self._writer is None else self._writer.session.header

    @property
    def creator(self) -> str:
        """The program that made the file, as the file says."""
        return self._file.creator

    @property
    def parent(self) -> VHDXImage | None:
        """The open parent of a differencing image."""
        return self._parent

    @property
    def chain(self) -> tuple[VHDXImage, ...]:
        """This image, its parent, and so on down to the base."""
        images: list[VHDXImage] = []
        image: VHDXImage | None = self
        while image is not None:
            images.append(image)
            image = image._parent
        return tuple(images)

    @property
    def log_pending(self) -> bool:
        """Whether a log was found and replayed in memory; one that was replayed into the file is not pending."""
        return self._file.replay is not None and bool(self._file.replay.entries)

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """What the open found wrong with this file and could tolerate."""
        return tuple(self._file.findings)

    @property
    def metadata(self) -> Mapping[UUID, bytes]:
        """The system items of the file, by item id (MS-VHDX 2.6)."""
        return self._file.metadata.system

    @property
    def user_metadata(self) -> UserMetadata:
        """The user items of the file, by item id (MS-VHDX 2.6); they can be changed in ``"r+"``."""
        return UserMetadata(self)

    def info(self) -> ImageInfo:
        """Return what can be said without reading data."""
        self._check_open()
        file = self._file
        locator, findings = self._locator_pairs()
        return ImageInfo(
            name=self.name,
            kind=self.kind,
            virtual_size=self._size,
            file_size=self._file.raw.size(),
            allocated_size=self._file.raw.allocated(),
            block_size=self.block_size,
            logical_sector_size=self.logical_sector_size,
            physical_sector_size=self.physical_sector_size,
            creator=self.creator,
            disk_id=self.disk_id,
            file_write_guid=self.file_write_guid,
            data_write_guid=self.data_write_guid,
            log_pending=self.log_pending,
            log_offset=self._header.log_offset,
            log_length=self._header.log_length,
            parent=self._parent.name if self._parent is not None else None,
            parent_locator=locator,
            warnings=[*file.findings, *findings],
        )

    def _locator_pairs(self) -> tuple[dict[str, str] | None, list[Finding]]:
        if not self._file.metadata.has_parent:
            return None, []
        from pyvhdx._core.locator import read_pairs  # noqa: PLC0415 - most images have none
        from pyvhdx.format.constants import PARENT_LOCATOR  # noqa: PLC0415

        system = self._file.metadata.system
        if PARENT_LOCATOR not in system:  # a salvage guessed that there was one
            return None, []
        try:
            return read_pairs(system[PARENT_LOCATOR], system.place(PARENT_LOCATOR)), []
        except ImageError as error:  # it was opened with parent=False, so nothing depends on it
            wrong = Finding(
                error.code, "corrupt", error.structure, error.offset, error.section, error.message
            )
            return None, [wrong]

    # -- reading by position ------------------------------------------------------------------

    def pread(self, size: int, offset: int) -> bytes:
        """
        Return *size* bytes from *offset*; fewer where the disk ends.

        Raises `RequestError` for a negative size or offset.
        """
        storage, blocks = self._storage, self._blocks
        version = blocks.version
        place = self._places.get(offset >> self._block_shift)
        if place is not None and size > 0:
            within = offset & self._block_mask
            if within + size <= self._block_size and offset + size <= self._size:
                data = storage.read_at(size, place + within)
                if len(data) == size and version == blocks.version:
                    return data
        size = self._clip(offset, size)
        buffer = bytearray(size)
        read_into(self, memoryview(buffer), offset)
        return bytes(buffer)

    def preadinto(self, buffer: Buffer, offset: int) -> int:
        """
        Fill *buffer* from *offset* and return how many bytes there were; fewer where the disk ends.

        Raises `RequestError` for a negative offset.
        """
        view = bytes_of(buffer)
        size = len(view)
        storage, blocks = self._storage, self._blocks
        version = blocks.version
        place = self._places.get(offset >> self._block_shift)
        if place is not None:
            within = offset & self._block_mask
            if (
                within + size <= self._block_size
                and offset + size <= self._size
                and storage.read_into(view, place + within) == size
                and version == blocks.version
            ):
                return size
        size = self._clip(offset, size)
        read_into(self, view[:size], offset)
        return size

    def extents(self, offset: int = 0, length: int | None = None) -> Iterator[Extent]:
        """
        Yield the extents of a range in order, adjacent equal ones joined, up to the disk's end.

        Only metadata is read, and only as far as the iterator is driven.
        """
        if length is None:
            length = max(0, self._size - offset)
        return extents(self, offset, self._clip(offset, length))

    def _clip(self, offset: int, size: int) -> int:
        self._check_open()
        if offset < 0 or size < 0:
            raise RequestError(f"offset {offset} and size {size} must not be negative")
        return max(0, min(size, self._size - offset))

    # -- writing by position ------------------------------------------------------------------

    def pwrite(self, data: Buffer, offset: int) -> int:
        """
        Write *data* at *offset* and return how many bytes there were.

        Payload goes straight to its block.  What that changes in the BAT and the sector bitmaps waits
        in memory for `flush`, which sends it through the log.  The range may begin and end anywhere;
        what would reach past the disk's end raises `RequestError` before any byte is written.  An
        `OSError`, such as a full disk, leaves old or new bytes in the range, and the image usable.
        """
        view = bytes_of(data)
        writer = self._writing(offset, len(view))
        writer.pwrite(view, offset)
        return len(view)

    def write_zeroes(self, offset: int, length: int) -> None:
        """
        Make a range read as zeros, any bytes of it, by the cheapest means: whole blocks become ZERO.

        Raises as `pwrite` does.
        """
        self._writing(offset, length).write_zeroes(offset, length)

    def trim(self, offset: int, length: int, mode: TrimMode = TrimMode.ZERO) -> int:
        """
        Give the space of whole blocks back, and return the virtual bytes of the blocks that changed.

        *offset* and *length* are multiples of the logical sector size.  Only blocks that lie wholly in
        the range are trimmed; the last one counts as whole where the range ends at the disk's end.
        On a fixed disk nothing is changed and 0 returned, but for ``REMOVE_SOFT_ANCHORS``;
        ``MAKE_TRANSPARENT`` raises `RequestError` there, as an unaligned range does everywhere.
        """
        writer = self._writing(offset, length)
        if not isinstance(mode, TrimMode):
            raise RequestError(f"mode is {mode!r}, and must be a TrimMode")
        sector = self.logical_sector_size
        if offset % sector or length % sector:
            raise RequestError(
                f"offset {offset} and length {length} must be multiples of the sector size {sector}"
            )
        return writer.trim(offset, length, mode)

    def _set_user_item(self, item_id: UUID, data: bytes | None, *, of_disk: bool | None) -> None:
        writer = self._writing(0, 0)
        writer.set_user_item(item_id, data, of_disk=of_disk)
        self._file = writer.session.file

    def _writing(self, offset: int, size: int) -> ImageWriter:
        self._check_open()
        if self._writer is None:
            raise io.UnsupportedOperation("this image is open for reading only")
        if offset < 0 or size < 0 or offset + size > self._size:
            raise RequestError(
                f"bytes {offset:#x} to {offset + size:#x} are not all on the disk of {self._size:#x} bytes"
            )
        return self._writer

    # -- the file-like part -------------------------------------------------------------------

    def readable(self) -> bool:
        self._check_open()
        return True

    def seekable(self) -> bool:
        self._check_open()
        return True

    def writable(self) -> bool:
        self._check_open()
        return self._writer is not None

    def tell(self) -> int:
        self._check_open()
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move the position, also past the end; raise `RequestError` for a negative one."""
        self._check_open()
        offset = operator.index(offset)
        with self._position_lock:
            base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}.get(whence)
            if base is None:
                raise RequestError(f"whence is {whence}, and must be 0, 1 or 2")
            if base + offset < 0:
                raise RequestError(f"position {base + offset} is negative")
            self._position = base + offset
            return self._position

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next *size* bytes, all that are left without one; fewer only at the end."""
        size = self._size if size is None or size < 0 else operator.index(size)
        start, size = self._advance(size)
        try:
            return self.pread(size, start)
        except BaseException:
            self._go_back(start, size)
            raise

    def readall(self) -> bytes:
        """Return all bytes from the position to the end."""
        return self.read()

    def readinto(self, buffer: Buffer, /) -> int:
        """Fill *buffer* with the next bytes and return how many there were."""
        view = bytes_of(buffer)
        start, size = self._advance(len(view))
        try:
            return self.preadinto(view[:size], start)
        except BaseException:
            self._go_back(start, size)
            raise

    def _advance(self, size: int) -> tuple[int, int]:
        """Take the next *size* bytes for the caller, so that two threads never get the same."""
        self._check_open()
        with self._position_lock:
            start = self._position
            size = self._clip(start, size)
            self._position += size
            return start, size

    def _go_back(self, start: int, size: int) -> None:
        """A read that failed has taken nothing, unless another thread went on from there."""
        with self._position_lock:
            if self._position == start + size:
                self._position = start

    def write(self, data: Buffer, /) -> int:
        """Write *data* at the position, all of it; see `pwrite`."""
        view = bytes_of(data)
        self._check_open()  # before the lock, which nobody gives back in a forked child
        with self._position_lock:
            done = self.pwrite(view, self._position)
            self._position += done
        return done

    def flush(self) -> None:
        """
        Make everything written so far survive a power cut; nothing on an image opened for reading.

        Raises `OSError` where that failed, and the image then takes no more changes.
        """
        self._check_open()
        if self._writer is not None:
            self._writer.flush()

    def truncate(self, size: int | None = None, /) -> int:  # noqa: ARG002 - not yet
        self._check_open()
        raise io.UnsupportedOperation("this version of pyvhdx does not change the size of a disk")

    def close(self) -> None:
        """
        Commit what was written, close the file and the parents that were opened with it.

        Reads under way finish first.  Where the commit fails this raises, once, and the file is closed
        all the same; what was flushed before is there at the next open.
        """
        if self.closed:
            return
        try:
            if self._writer is not None:
                self._writer.session.close()
        finally:
            for image in self._to_close():
                image._release()

    def _to_close(self) -> list[VHDXImage]:
        images = [self]
        while images[-1]._owns_parent and images[-1]._parent is not None:
            images.append(images[-1]._parent)
        return images

    def _release(self) -> None:
        if self._writer is not None:
            # Nothing is committed from here on, whatever the base class does.
            self._file = self._writer.session.file._replace(header=self._writer.session.header)
            self._writer = None
        super().close()
        self._file.raw.close()
        # The short way of pread goes through this; the long one asks `closed`.
        self._places = {}

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed image")
        if self._writer is not None and self._writer.session.is_foreign:
            raise forked()

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.close()
        except ImageFailedError:
            if kind is None:  # what made it fail says more, and is on its way already
                raise

    def __del__(self) -> None:
        if hasattr(self, "_owns_parent") and not self.closed:
            lost = self._writer is not None and self._writer.session.has_unflushed
            note = ": what was not flushed is not committed" if lost else ""
            warnings.warn(f"unclosed image {self.name!r}{note}", ResourceWarning, source=self, stacklevel=2)
            for image in self._to_close():
                image._release()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.kind}, {self._size} bytes"
        return f"<VHDXImage {self.name!r} ({state})>"

    def __reduce__(self) -> tuple[Any, ...]:
        if self._reopen is None or self.closed:
            raise TypeError("only an open image that was opened for reading and by path can be pickled")
        opener, arguments = self._reopen
        return opener, (*arguments, self._position)


def _reader_of(image: VHDXImage) -> Callable[[memoryview, int], None]:
    """Return what fills a buffer through the chain, without keeping the image alive when it is forgotten."""
    known = weakref.ref(image)

    def read(buffer: memoryview, offset: int) -> None:
        here = known()
        assert here is not None  # it is writing
        read_into(here, buffer, offset)

    return read
