"""
The undo file of a repair: written before the image is touched, and put back by `undo_repair`.

While an image is restored, a mark stands in place of both headers, so that nobody opens it half-way; the
headers come back last, one after the other.  Cut short at any moment, it is simply done again.
"""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from pyvhdx.chain import open_storage, options_of
from pyvhdx.errors import RequestError
from pyvhdx.format.constants import HEADER_OFFSETS, HEADER_SIGNATURE, HEADER_SIZE
from pyvhdx.format.header import Header, is_valid_header
from pyvhdx.format.undo import HEADER_SIZE as UNDO_HEADER_SIZE
from pyvhdx.format.undo import UndoHeader, UndoRange, UndoState, is_undo_header, pack_guids, undoing_mark
from pyvhdx.storage import file_behind, new_file, open_file_object, open_local

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from pyvhdx._types import Progress, Source
    from pyvhdx.storage import Storage

_RANGE_SIZE = UndoRange.packer.size
_PIECE = 1 << 20
_SECTOR = 512


@dataclass(frozen=True)
class UndoReport:
    """
    What `undo_repair` did.

    `image` and `undo` are the two files; `restored` are the bytes that were put back, `size` is the
    length that the image has again.  `removed` tells whether the undo file was removed.
    """

    image: str
    undo: str
    restored: int
    size: int
    removed: bool

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def undo_repair(
    source: Source, undo: Source, *, progress: Progress | None = None, lock: bool = True, sync: bool = True
) -> UndoReport:
    """
    Give the image *source* the bytes and the length back that it had before a repair, from the file *undo*.

    Both are paths or seekable binary file objects.  An undo file that is given by its path is removed
    then, unless it was made for another file, of which *source* is a copy.  *progress* is called with
    the bytes done and the bytes in all.  What is interrupted can be done again.

    Raises `RequestError` where *undo* is no whole undo file, and where the image is neither as the
    repair found it nor as the repair made it, as SequenceNumber and FileWriteGuid tell (MS-VHDX 2.2.2);
    `LockedError` where the image is in use; `OSError`.  Nothing is changed then.
    """
    with contextlib.ExitStack() as opened:
        place = UndoPlace(source, undo)
        kept = opened.enter_context(contextlib.closing(place.open(write=False)))
        header = read_undo(kept)
        if header is None:
            raise RequestError(
                f"{kept.name} is no undo file of a repair, or is damaged; nothing was changed: name the right "
                "one (undo=, --undo-file)"
            )
        image = opened.enter_context(
            contextlib.closing(open_storage(source, options_of(lock=lock, write=True)))
        )
        if not belongs(image, header):
            raise RequestError(
                f"{image.name} is not as the repair left it: it is another image than that of {kept.name}, or "
                "something was written to it since, maybe by a later repair, which must be undone first; nothing "
                "was changed: name its own undo file (undo=, "
                "--undo-file), or keep the image and remove this one"
            )
        is_removed = isinstance(undo, (str, os.PathLike)) and place.is_made_for(image, header)
        restored = restore(image, kept, header, sync=sync, progress=progress)
        report = UndoReport(image.name, kept.name, restored, header.image_size, removed=is_removed)
    if is_removed:
        os.unlink(report.undo)
    return report


class UndoPlace:
    """Where the undo file of a repair is, or will be: a path, or a file object of the caller."""

    def __init__(self, source: Source, undo: Source | None) -> None:
        self._place: Any = undo
        self._usual = os.fsdecode(source) + ".undo" if isinstance(source, (str, os.PathLike)) else None
        if undo is None:
            self._place = self._usual
        self._header: UndoHeader | None = None

    @property
    def name(self) -> str:
        return os.fsdecode(self._place) if self._is_path else getattr(self._place, "name", "<undo>")

    @property
    def _is_path(self) -> bool:
        return isinstance(self._place, (str, os.PathLike))

    def open(self, *, write: bool) -> Storage:
        """Open the undo file that is there."""
        if self._is_path:
            return open_local(self._place, write=write, devices=False)
        return open_file_object(self._place, write=write)

    def is_made_for(self, image: Storage, header: UndoHeader) -> bool:
        """Return whether the undo file is that of this very file, and not of one that it is a copy of."""
        if self._is_path and self._usual is not None:
            here = os.path.abspath(os.fsdecode(self._place))
            if here == os.path.abspath(self._usual):
                return True
        return _identity(image) == (header.device, header.inode)

    def undo_unfinished(self, image: Storage, *, sync: bool, forget: bool = True) -> bool:
        """
        Undo a repair of *image* that was cut short, and give its undo file up unless told not to.

        Returns whether there was one.  Anybody can lay a file beside an image: only one of whose repair
        or undo the image itself shows a trace is obeyed, and any other unfinished one refused.
        """
        if self._place is None or (self._is_path and not os.path.exists(self._place)):
            return False
        with contextlib.closing(self.open(write=forget and not self._is_path)) as kept:
            header = read_undo(kept)
            if header is None:
                return False
            has_begun = bears_mark(image, header)
            is_undone = header.state != UndoState.READY and changes_nothing(image, kept, header)
            if header.state != UndoState.READY and not (has_begun or is_undone):
                return False
            has_begun = has_begun or (belongs(image, header) and bears_guid(image, header))
            if not (has_begun or changes_nothing(image, kept, header)):
                raise self._exists(
                    "it is the undo file of an unfinished repair of which the image shows no trace, and is not "
                    "used unasked; apply it (undo_repair, --undo) if it is yours, or remove it"
                )
            if not self.is_made_for(image, header):
                raise self._exists(
                    "it is the undo file of another file, of which this is a copy; apply it first (undo_repair, "
                    "--undo), and name another one for the repair"
                )
            restore(image, kept, header, sync=sync)
            if forget and not self._is_path:
                kept.truncate(0)
                kept.flush()
        if forget and self._is_path:
            os.unlink(self._place)
        return has_begun

    def _exists(self, message: str) -> FileExistsError:
        return FileExistsError(errno.EEXIST, message, self.name)

    def fill(self, image: Storage, ranges: list[tuple[int, int]], guids: list[UUID]) -> None:
        """Keep what *image* holds in *ranges*, before a repair that gives it the FileWriteGuids *guids*."""
        if self._place is None:
            raise RequestError(
                "the image has no path; say where the undo file is to be (undo=), or undo=False"
            )
        if self._is_path:
            if os.path.lexists(self._place):
                raise self._exists(
                    "it exists, and is not overwritten; name another undo file (undo=, --undo-file), or, if the repair "
                    "before is never to be undone, remove it"
                )
            with new_file(self._place) as file:
                self._header = write_undo(file, image, ranges, guids)
            return
        with contextlib.closing(self.open(write=True)) as kept:
            if not _is_unused(kept):
                raise self._exists("the undo file is not empty, and is not overwritten")
            kept.truncate(0)
            self._header = write_undo(kept, image, ranges, guids)

    def finish(self) -> None:
        """Let the undo file say that its repair is done."""
        assert self._header is not None
        with contextlib.closing(self.open(write=True)) as kept:
            kept.write_at(replace(self._header, state=UndoState.FINISHED).sealed(), 0)
            kept.flush()


def _is_unused(kept: Storage) -> bool:
    """Return whether a file object is empty, or holds what was begun before anything happened to the image."""
    header = read_header(kept)
    if header is not None:
        return header.state == UndoState.INCOMPLETE
    start = kept.read_at(UNDO_HEADER_SIZE, 0)
    is_cut = len(start) < UNDO_HEADER_SIZE and UndoHeader.begins(start)
    return kept.size() <= UNDO_HEADER_SIZE and (is_cut or not any(start))


def write_undo(kept: Storage, image: Storage, ranges: list[tuple[int, int]], guids: list[UUID]) -> UndoHeader:
    """Fill an empty storage, see `UndoPlace.fill`; all of it is durable when this returns."""
    headers = [(offset, offset + HEADER_SIZE) for offset in HEADER_OFFSETS]
    pieces = [
        (at, min(_PIECE, end - at)) for start, end in [*headers, *ranges] for at in range(start, end, _PIECE)
    ]
    before = _current_headers(image)
    device, inode = _identity(image)
    header = UndoHeader(
        state=UndoState.INCOMPLETE,
        image_size=image.size(),
        body_length=sum(_RANGE_SIZE + length for _, length in pieces),
        range_count=len(pieces),
        repair_id=uuid4(),
        number_before=before[0].sequence_number,
        guid_before=before[0].file_write_guid,
        guid_tied=before[-1].file_write_guid,
        device=device,
        inode=inode,
        guids=pack_guids(dict.fromkeys(guids)),
    )
    kept.write_at(header.sealed(), 0)
    kept.flush()
    at = UNDO_HEADER_SIZE
    for offset, length in pieces:
        data = image.read_at(length, offset)
        kept.write_at(UndoRange(offset=offset, length=len(data)).sealed_over(data) + data, at)
        at += _RANGE_SIZE + len(data)
    kept.flush()
    header = replace(header, state=UndoState.READY)
    kept.write_at(header.sealed(), 0)
    kept.flush()
    return header


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
        if (
            len(data) < part.length
            or part.offset + part.length > header.image_size
            or not part.is_right(data)
        ):
            return None
        count += 1
    return header if count == header.range_count else None


def belongs(image: Storage, header: UndoHeader) -> bool:
    """Return whether the image is as it was right before the repair, or as nobody but the repair made it."""
    if image.size() < header.image_size:
        return False
    if bears_mark(image, header):
        return True
    before = header.guid_before, header.guid_tied
    return any(
        header.wrote(one.file_write_guid)
        or (one.sequence_number == header.number_before and one.file_write_guid in before)
        for one in _current_headers(image)[:1]
    )


def bears_mark(image: Storage, header: UndoHeader) -> bool:
    """Return whether the undo of the repair was cut short."""
    mark = undoing_mark(header.repair_id)
    return any(image.read_at(len(mark), offset) == mark for offset in HEADER_OFFSETS)


def bears_guid(image: Storage, header: UndoHeader) -> bool:
    """Return whether the repair has begun to write a header, torn or not."""
    copies = [image.read_at(HEADER_SIZE, offset) for offset in HEADER_OFFSETS]
    return any(
        data.startswith(HEADER_SIGNATURE) and header.wrote(Header.parse(data).file_write_guid)
        for data in copies
        if len(data) == HEADER_SIZE
    )


def changes_nothing(image: Storage, kept: Storage, header: UndoHeader) -> bool:
    """
    Return whether the image is as the undo file has it, but for the rear of a header that was torn.

    So it is where the power went before the first header of a repair was written, or while the last one of
    an undo was.
    """
    if image.size() != header.image_size:
        return False
    torn = [slot for slot in HEADER_OFFSETS if not is_valid_header(image.read_at(HEADER_SIZE, slot))]
    for part, data in _ranges(kept, header):
        for start, stop, slot in _around_slots(part.offset, part.offset + len(data)):
            end = min(stop, slot + _SECTOR) if slot in torn and slot is not None else stop
            if image.read_at(end - start, start) != data[start - part.offset : end - part.offset]:
                return False
    return True


def restore(
    image: Storage, kept: Storage, header: UndoHeader, *, sync: bool, progress: Progress | None = None
) -> int:
    """Put everything back, see the head of the module; return how many bytes there were."""

    def barrier() -> None:
        if sync:
            image.flush()

    mark = undoing_mark(header.repair_id)
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
    # The current one first: from then on there always is one, and it is the right one.
    for offset, slot in sorted(slots.items(), key=lambda one: _rank(bytes(one[1]))):
        image.write_at(slot, offset)
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


def _rank(data: bytes) -> int:
    """Return what sorts a copy of the header that counts before one that does not."""
    return -1 - Header.parse(data).sequence_number if is_valid_header(data) else 0


def _current_headers(image: Storage) -> list[Header]:
    """Return the current header, and a second one with the same number; nothing where none is right."""
    copies = [image.read_at(HEADER_SIZE, offset) for offset in HEADER_OFFSETS]
    valid = [Header.parse(data) for data in copies if is_valid_header(data)]
    newest = max((one.sequence_number for one in valid), default=0)
    return [one for one in valid if one.sequence_number == newest]


def _identity(image: Storage) -> tuple[int, int]:
    """Return what tells the file from its copies; zeros where nothing does."""
    file = file_behind(image)
    if file is None:
        return 0, 0
    status = file.status()
    return status.st_dev % (1 << 64), status.st_ino % (1 << 64)
