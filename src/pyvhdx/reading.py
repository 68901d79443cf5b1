"""
Reading through a chain of images: which file decides each byte, and the bytes.

A file tells of its own blocks (`BlockMap.plan_read`); what it leaves to its parent is asked there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from pyvhdx._core.blocks import Kind, Segment
from pyvhdx._core.findings import corrupt
from pyvhdx.errors import CorruptImageError, ImageError, ParentNotFoundError
from pyvhdx.info import Extent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyvhdx._core.blocks import BlockMap
    from pyvhdx._core.opening import OpenFile
    from pyvhdx.storage import Storage

_ZEROS = memoryview(bytes(1 << 20))


class Member(Protocol):
    """What reading needs of an image: its file, and the image below it."""

    name: str
    _file: OpenFile
    _storage: Storage
    _blocks: BlockMap
    _size: int

    @property
    def parent(self) -> Member | None: ...

    @property
    def chain(self) -> tuple[Member, ...]: ...

    def _check_open(self) -> None: ...


def read_into(top: Member, view: memoryview, start: int) -> None:
    """Fill *view* from an offset; the range lies inside the disk."""
    at, end = start, start + len(view)
    while at < end:
        version = top._blocks.version
        for image, _, kind, offset, length, file_offset in walk(top, at, end - at):
            piece = view[offset - start : offset - start + length]
            done = image._storage.read_into(piece, file_offset) if kind is Kind.DATA else length
            if version != top._blocks.version:
                break  # the place may be another block's by now: look again, from here on
            if done != length:
                raise _cut(image, file_offset + done)
            if kind is Kind.UNREADABLE:
                raise fault(image, offset)
            if kind is not Kind.DATA:
                _fill_with_zeros(piece)
            at = offset + length


def extents(top: Member, offset: int, length: int) -> Iterator[Extent]:
    """Yield the extents of a range inside the disk, adjacent equal ones joined."""
    joined: Extent | None = None
    for depth, kind, at, run, file_offset in _steady(top, offset, length):
        place = file_offset if kind is Kind.DATA else None
        if (
            joined is not None
            and (joined.kind, joined.depth) == (kind.value, depth)
            and (joined.file_offset is None or joined.file_offset + joined.length == place)
        ):
            joined = joined._replace(length=joined.length + run)
            continue
        if joined is not None:
            yield joined
        joined = Extent(at, run, kind.value, depth, place)
    if joined is not None:
        yield joined


def _steady(top: Member, at: int, length: int) -> Iterator[tuple[int, Kind, int, int, int]]:
    """Yield what `walk` does; looked up again where the map changed in between."""
    end = at + length
    while at < end:
        version = top._blocks.version
        for _, depth, kind, offset, run, file_offset in walk(top, at, end - at):
            if version != top._blocks.version:
                break
            yield depth, kind, offset, run, file_offset
            at = offset + run


def walk(top: Member, offset: int, length: int) -> Iterator[tuple[Member, int, Kind, int, int, int]]:
    """
    Yield (image, depth, kind, offset, length, file offset) for a range inside the disk.

    What an image leaves to its parent is asked of the parent, and so on, with a stack instead
    of recursion: a chain may be deeper than Python's stack has room for.  What lies behind the
    end of a parent reads as zeros, whatever is further down.
    """
    images = top.chain
    stack = [(0, _plan(top, offset, length), not top._file.metadata.has_parent)]
    while stack:
        depth, plan, is_last = stack[-1]
        image = images[depth]
        segment = next(plan, None)
        if segment is None:
            stack.pop()
            continue
        kind, at, run, file_offset = segment
        if kind is not Kind.ABSENT:
            yield image, depth, kind, at, run, file_offset
            continue
        if is_last:
            yield image, len(images) - 1, kind, at, run, 0
            continue
        parent = image.parent
        if parent is None:
            if not image._blocks.has_unreadable:
                raise _without_parent(image, at, run)
            yield image, depth, Kind.UNREADABLE, at, run, 0
            continue
        inside = max(0, min(run, parent._size - at))
        if inside < run:
            behind = Segment(Kind.ABSENT, at + inside, run - inside, 0)
            stack.append((depth + 1, iter([behind]), True))
        if inside:
            stack.append((depth + 1, _plan(parent, at, inside), not parent._file.metadata.has_parent))


def fault(image: Member, offset: int) -> ImageError | OSError | ParentNotFoundError:
    """Return why *image* cannot say what the byte at an offset is, which its map calls unreadable."""
    found = image._blocks.fault(offset)
    if found is None:
        missing = [one for one in image._file.findings if one.code == "PARENT-MISSING"]
        if not missing:
            return _without_parent(image, offset, 1)
        (one,) = missing
        found = corrupt(
            one.code,
            one.structure,
            one.offset,
            one.section,
            f"what is in the parent is missing: {one.message}",
        )
    if isinstance(found, ImageError):
        found.name = image.name
    return found


def _without_parent(image: Member, offset: int, length: int) -> ParentNotFoundError:
    return ParentNotFoundError(
        f"{image.name}: bytes {offset:#x} to {offset + length:#x} are in the parent, and this image was opened "
        "without it (parent=False, --no-parent)"
    )


def _fill_with_zeros(view: memoryview) -> None:
    while view:
        view[: len(_ZEROS)] = _ZEROS[: len(view)]
        view = view[len(_ZEROS) :]


def _plan(image: Member, offset: int, length: int) -> Iterator[Segment]:
    image._check_open()
    try:
        yield from image._file.blocks.plan_read(offset, length)
    except ImageError as error:
        error.name = image.name
        raise


def _cut(image: Member, file_offset: int) -> CorruptImageError:
    error = CorruptImageError(
        "the file ended here, and was longer when it was opened",
        "FILE-CUT",
        "payload",
        file_offset,
        "2.5.1.1",
    )
    error.name = image.name
    return error
