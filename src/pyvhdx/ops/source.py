"""What convert reads: a VHDX image, a raw disk, or a stream that can only be read to its end."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import warnings
from typing import TYPE_CHECKING, Any

from pyvhdx._core.opening import has_a_right_header
from pyvhdx.chain import open as open_image
from pyvhdx.chain import storages_of
from pyvhdx.errors import NotVHDXError, RequestError
from pyvhdx.format.constants import IDENTIFIER_SIGNATURE
from pyvhdx.format.foreign import FOOTER_SIZE, HEAD_SIZE, recognise
from pyvhdx.image import VHDXImage
from pyvhdx.storage import LocalFile, can_seek, data_runs, open_file_object, open_local, refuse_no_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyvhdx._types import PathLike, Progress, Source
    from pyvhdx.storage import Storage

_PIECE = 1 << 20
_GRAIN = 1 << 16
_ZERO_GRAIN = bytes(_GRAIN)

RAW_SUFFIXES = (".raw", ".img")
VHDX_SUFFIXES = (".vhdx", ".avhdx")


class SourceDisk:
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

    def storages(self) -> list[Storage]:
        """Return the files that are read."""
        return []

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


class _VHDXSource(SourceDisk):
    format = "vhdx"

    def __init__(self, image: VHDXImage) -> None:
        super().__init__(image.name)
        self.image: VHDXImage = image
        self.size = image.size

    def storages(self) -> list[Storage]:
        return storages_of(self.image)

    def runs(self) -> Iterator[tuple[int, int]]:
        chain = self.image.chain
        for extent in self.image.extents():
            if extent.kind == "unreadable":  # only with salvage=True
                self.image.pread(1, extent.offset)  # raises, and says why
            if extent.file_offset is None:
                continue
            # The file may have holes inside its blocks.
            for start, end in _data_in(chain[extent.depth]._file.storage, extent.file_offset, extent.length):
                shift = extent.offset - extent.file_offset
                yield start + shift, end + shift

    def fill(self, view: memoryview, offset: int) -> None:
        self.image.preadinto(view, offset)


class _RawSource(SourceDisk):
    def __init__(self, storage: Storage) -> None:
        super().__init__(storage.name)
        self.storage = storage
        self.size: int = storage.size()

    def storages(self) -> list[Storage]:
        return [self.storage]

    def runs(self) -> Iterator[tuple[int, int]]:
        return _data_in(self.storage, 0, self.size)

    def fill(self, view: memoryview, offset: int) -> None:
        if self.storage.read_into(view, offset) != len(view):
            raise _shorter(self.name, offset + len(view))


class _StreamSource(SourceDisk):
    """A source that can only be read to its end."""

    def __init__(self, file: Any, head: bytes) -> None:
        super().__init__(name_of(file))
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
            data = self._head or _read(self._file, _PIECE - self._length)
            if not data:
                break
            self._head = b""
            self._buffer[self._length : self._length + len(data)] = data
            self._length += len(data)
        self._end += self._length
        return self._length

    def fill(self, view: memoryview, offset: int) -> None:
        pass  # it is in the buffer already


def _read(file: Any, size: int) -> bytes:
    """Read from a stream; one that is set not to block must not look as if it had ended."""
    data: bytes | None = file.read(size)
    if data is None:
        raise BlockingIOError(errno.EAGAIN, "the source is set not to block, and has nothing to read now")
    return data


def _data_in(storage: Storage, offset: int, length: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of what may hold data in a range that was in the file when it was opened."""
    end = offset + length
    yield from data_runs(storage.next_data, offset, end)
    if storage.size() < end:  # what lies behind the end is lost, and no zeros
        raise _shorter(storage.name, end)


def _shorter(name: str, end: int) -> OSError:
    return OSError(f"{name}: the file ended before {end:#x}; it was longer at first")


def open_source(
    source: Source, format: str | None, how: dict[str, Any], cleanup: contextlib.ExitStack
) -> SourceDisk:
    if format not in (None, "raw", "vhdx"):
        raise RequestError(f'source_format is {format!r}, and must be "vhdx" or "raw"')
    if isinstance(source, VHDXImage):
        if format == "raw" or how:
            raise RequestError("an open image is a VHDX source, and is opened already")
        return _VHDXSource(source)
    if isinstance(source, (str, os.PathLike)):
        _refuse_pipe(source)
    else:
        refuse_no_file(source, "read")
    if not isinstance(source, (str, os.PathLike)) and not can_seek(source):
        if format == "vhdx" or how:
            raise RequestError("a VHDX source must be able to seek, and this one cannot")
        head = b""
        while len(head) < HEAD_SIZE and (piece := _read(source, HEAD_SIZE - len(head))):
            head += piece
        if format is None:
            if head.startswith(IDENTIFIER_SIGNATURE):
                raise RequestError("a VHDX source must be able to seek, and this one cannot; give its path")
            _refuse_other_formats(head, b"", "")
        return _StreamSource(source, head)
    if format is None:
        format = _guess_format(source)
    if format == "vhdx":
        return _VHDXSource(cleanup.enter_context(open_image(source, **how)))
    if how:
        raise RequestError(f"{', '.join(how)}: these belong to a VHDX source, and the source is raw")
    return _RawSource(cleanup.enter_context(contextlib.closing(_open_storage(source))))


def _refuse_pipe(path: PathLike) -> None:
    """A path is opened more than once, and what a pipe has given is gone."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # the open says it better
        return
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        raise RequestError(
            f"{os.fspath(path)} can only be read to its end; "
            "open it and give the file object (in the command, - is standard input)"
        )


def _open_storage(source: Source) -> Storage:
    return open_local(source) if isinstance(source, (str, os.PathLike)) else open_file_object(source)


def _guess_format(source: Source) -> str:
    with contextlib.closing(_open_storage(source)) as storage:
        if isinstance(storage, LocalFile) and stat.S_ISBLK(storage.status().st_mode):
            return "raw"
        head = storage.read_at(HEAD_SIZE, 0)
        is_vhdx = head.startswith(IDENTIFIER_SIGNATURE)
        if storage.name.lower().endswith(RAW_SUFFIXES):
            if is_vhdx:
                warnings.warn(
                    f"{storage.name} holds a VHDX image, and is copied as it is because of its name; "
                    'source_format="vhdx" (-f vhdx) copies the disk in it',
                    UserWarning,
                    stacklevel=4,
                )
            return "raw"
        if is_vhdx or has_a_right_header(storage):  # the open says what is wrong with the latter
            return "vhdx"
        size = storage.size()
        footer = storage.read_at(FOOTER_SIZE, max(0, size - FOOTER_SIZE))
        _refuse_other_formats(head, footer, storage.name)
        if storage.name.lower().endswith(VHDX_SUFFIXES):
            raise NotVHDXError(
                f'{storage.name} is named as a VHDX image is, and nothing in it begins as one; source_format="vhdx" '
                '(-f vhdx) says what is wrong, pyvhdx salvage gets out what can be read, and source_format="raw" '
                "(-f raw) copies the bytes as they are",
                "NOT-VHDX",
                "source",
                0,
                "2.2.1",
            )
        return "raw"


def _refuse_other_formats(head: bytes, footer: bytes, name: str) -> None:
    found = recognise(head, footer, name)
    if found is not None and not found[1]:
        raise NotVHDXError(
            f'{name or "the source"} is {found[0]}; source_format="raw" (-f raw) copies it as it is',
            "NOT-VHDX",
            "source",
            0,
            "2.2.1",
        )


def name_of(file: Source) -> str:
    """Return a path, or what a file object calls itself."""
    if isinstance(file, (str, os.PathLike)):
        return os.fspath(file)
    name = getattr(file, "name", None)
    return name if isinstance(name, str) else f"<{type(file).__name__}>"
