"""
The undo file of a repair: written before the image is touched, and put back by `undo_repair`.

While an image is restored, a mark stands in place of both headers, so that nobody opens it half-way; the
headers come back last, one after the other.  Cut short at any moment, it is simply done again.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from pyvhdx.errors import RequestError
from pyvhdx.format.constants import HEADER_OFFSETS, HEADER_SIZE
from pyvhdx.format.header import Header, is_valid_header
from pyvhdx.format.undo import HEADER_SIZE as UNDO_HEADER_SIZE
from pyvhdx.format.undo import UndoHeader, UndoRange, UndoState, is_undo_header, pack_guids, undoing_mark
from pyvhdx.storage import LocalFile, open_file_object, open_local
from pyvhdx.storage.locks import READER, WRITER

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from pyvhdx._types import Progress, Source
    from pyvhdx.storage import Storage

_RANGE_SIZE = UndoRange.packer.size
_PIECE = 1 << 20


@dataclass(frozen=True)
class UndoReport:
    """
    What `undo_repair` did.

    `image` and `undo` are the two files; `restored` are the bytes that were put back, `size` is the
    length that the image has again.
    """

    image: str
    undo: str
    restored: int
    size: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def undo_repair(
    source: Source, undo: Source, *, progress: Progress | None = None, lock: bool = True, sync: bool = True
) -> UndoReport:
    """
    Give the image *source* the bytes and the length back that it had before a repair, from the file *undo*.

    Both are paths or seekable binary file objects.  An undo file that is given by its path has done its
    work then, and is removed.  *progress* is called with the bytes done and the bytes in all.  What is
    interrupted can be done again.

    Raises `RequestError` where *undo* is no whole undo file, and where the image was changed since by
    anything but the repair, as its FileWriteGuid tells (MS-VHDX 2.2.2); `LockedError` where the image is
    in use; `OSError`.  Nothing is changed then.
    """
    with contextlib.ExitStack() as opened:
        kept = opened.enter_context(contextlib.closing(_open_undo(undo, write=False)))
        header = read_undo(kept)
        if header is None:
            raise RequestError(f"{kept.name} is no undo file of a repair, or is damaged")
        image = opened.enter_context(contextlib.closing(open_storage(source, write=True, lock=lock)))
        if not belongs(image, header):
            raise RequestError(
                f"{image.name} is not as the repair left it: it is another image than that of {kept.name}, or "
                "something was written to it since; nothing was changed"
            )
        restored = restore(image, kept, header, sync=sync, progress=progress)
        report = UndoReport(image.name, kept.name, restored, header.image_size)
    if isinstance(undo, (str, os.PathLike)):
        os.unlink(undo)
    return report


def open_storage(source: Source, *, write: bool, lock: bool) -> Storage:
    """Open an image of which nothing is expected yet, with the locks that an open for this use takes."""
    use = None if not lock else WRITER if write else READER
    if isinstance(source, (str, os.PathLike)):
        return open_local(source, write=write, use=use)
    storage = open_file_object(source, write=write)
    if use is not None and isinstance(storage, LocalFile):
        try:
            storage.lock(use)
        except BaseException:
            storage.close()
            raise
    return storage


def _open_undo(undo: Source, *, write: bool) -> Storage:
    if isinstance(undo, (str, os.PathLike)):
        return open_local(undo, write=write, devices=False)
    return open_file_object(undo, write=write)


def write_undo(
    kept: Storage, image: Storage, ranges: list[tuple[int, int]], before: UUID, after: list[UUID]
) -> None:
    """
    Fill an empty storage with what *image* holds in *ranges*, start and end of each; it is durable then.

    *before* is the FileWriteGuid of the image, *after* are those that the repair gives it in turn.
    """
    pieces = [(at, min(_PIECE, end - at)) for start, end in ranges for at in range(start, end, _PIECE)]
    guids = [header.file_write_guid for header in _valid_headers(image)]
    header = UndoHeader(
        state=UndoState.INCOMPLETE,
        image_size=image.size(),
        body_length=sum(_RANGE_SIZE + length for _, length in pieces),
        range_count=len(pieces),
        guid_before=before,
        guid_after=after[-1],
        guids=pack_guids(dict.fromkeys([before, *guids, *after])),
    )
    kept.write_at(header.sealed(), 0)
    kept.flush()
    at = UNDO_HEADER_SIZE
    for offset, length in pieces:
        data = image.read_at(length, offset)
        kept.write_at(UndoRange(offset=offset, length=len(data)).sealed_over(data) + data, at)
        at += _RANGE_SIZE + len(data)
    kept.flush()
    set_state(kept, header, UndoState.READY)


def set_state(kept: Storage, header: UndoHeader, state: UndoState) -> None:
    """Let the undo file say how far the repair is; durable when this returns."""
    kept.write_at(replace(header, state=state).sealed(), 0)
    kept.flush()


def read_header(kept: Storage) -> UndoHeader | None:
    """Return the header of an undo file, whole or not; None for anything else."""
    data = kept.read_at(UNDO_HEADER_SIZE, 0)
    return UndoHeader.parse(data) if is_undo_header(data) else None


def read_undo(kept: Storage) -> UndoHeader | None:
    """Return the header of an undo file all of whose bytes are right; None for anything else."""
    header = read_header(kept)
    if header is None or header.state == UndoState.INCOMPLETE:
        return None
    if UNDO_HEADER_SIZE + header.body_length > kept.size():
        return None
    count = 0
    for part, data in _ranges(kept, header):
        if len(data) < part.length or part.offset + part.length > header.image_size or not part.is_right(data):
            return None
        count += 1
    return header if count == header.range_count else None


def belongs(image: Storage, header: UndoHeader) -> bool:
    """Return whether the image is the one of the undo file, and nobody but the repair changed it."""
    mark = undoing_mark(header.guid_before)
    if any(image.read_at(len(mark), offset) == mark for offset in HEADER_OFFSETS):
        return True
    valid = _valid_headers(image)
    # The first one of two with the same number, as everywhere.
    return bool(valid) and header.accepts(max(valid, key=lambda one: one.sequence_number).file_write_guid)


def restore(
    image: Storage, kept: Storage, header: UndoHeader, *, sync: bool, progress: Progress | None = None
) -> int:
    """Put everything back, see the head of the module; return how many bytes there were."""

    def barrier() -> None:
        if sync:
            image.flush()

    mark = undoing_mark(header.guid_before)
    slots = {offset: bytearray(image.read_at(HEADER_SIZE, offset)) for offset in HEADER_OFFSETS}
    for offset in slots:
        image.write_at(mark, offset)
    barrier()
    done = 0
    for part, data in _ranges(kept, header):
        at = part.offset
        for start, stop, target in _around_slots(at, at + len(data)):
            piece = memoryview(data)[start - at : stop - at]
            if target is None:
                image.write_at(piece, start)
            else:
                slots[target][start - target : stop - target] = piece
        done += _RANGE_SIZE + len(data)
        if progress is not None:
            progress(done, header.body_length)
    image.truncate(header.image_size)
    barrier()
    # A valid one first: from then on there always is one.
    for offset, data in sorted(slots.items(), key=lambda slot: not is_valid_header(bytes(slot[1]))):
        image.write_at(bytes(data), offset)
        barrier()
    return header.body_length - _RANGE_SIZE * header.range_count


def _around_slots(start: int, end: int) -> Iterator[tuple[int, int, int | None]]:
    """Yield the parts of a range, and for each the header that it lies in."""
    for slot in HEADER_OFFSETS:
        if start < min(end, slot):
            yield start, min(end, slot), None
            start = min(end, slot)
        if start < min(end, slot + HEADER_SIZE):
            yield start, min(end, slot + HEADER_SIZE), slot
            start = min(end, slot + HEADER_SIZE)
    if start < end:
        yield start, end, None


def _ranges(kept: Storage, header: UndoHeader) -> Iterator[tuple[UndoRange, bytes]]:
    at, end = UNDO_HEADER_SIZE, UNDO_HEADER_SIZE + header.body_length
    while at + _RANGE_SIZE <= end:
        part = UndoRange.parse(kept.read_at(_RANGE_SIZE, at).ljust(_RANGE_SIZE, b"\0"))
        data = kept.read_at(min(part.length, _PIECE), at + _RANGE_SIZE)
        yield part, data
        if not data:
            return
        at += _RANGE_SIZE + len(data)


def _valid_headers(image: Storage) -> list[Header]:
    copies = [image.read_at(HEADER_SIZE, offset) for offset in HEADER_OFFSETS]
    return [Header.parse(data) for data in copies if is_valid_header(data)]
