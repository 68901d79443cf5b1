"""
Getting out of a file what can be read, where it is too broken to be opened or to be repaired.

The file is opened leniently (`_core.recover`), its disk copied as `convert` copies one; what cannot be
read are zeros in the target, and named in the report.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from pyvhdx._core.checks.collector import Collector
from pyvhdx._core.checks.file import check_file, table_of
from pyvhdx._core.checks.payload import check_unowned
from pyvhdx._core.findings import tolerated
from pyvhdx._core.recover import Hints
from pyvhdx._core.survey import survey
from pyvhdx.chain import open_salvaged, storages_of
from pyvhdx.errors import Finding, ImageError, ParentError, RequestError
from pyvhdx.format import constants as c
from pyvhdx.ops.convert import target_format_of, write_target
from pyvhdx.ops.create import new_disk
from pyvhdx.ops.source import SourceDisk, name_of
from pyvhdx.reading import fault
from pyvhdx.storage import refuse_no_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pyvhdx._core.layout import Disk
    from pyvhdx._types import Progress, Source
    from pyvhdx.image import VHDXImage
    from pyvhdx.info import Extent
    from pyvhdx.storage import Storage

# A report names no more ranges than this; of the rest it gives the bytes.
MAX_RANGES = 100_000
# After an error of the medium smaller and smaller pieces are tried, down to a sector.
_STEPS = (1 << 16, 1 << 12)
_KINDS = ("dynamic", "fixed", "differencing")
_LOGS = ("auto", "replay", "ignore")
_GUESSES = {
    "GUESS-SIZE": "size",
    "GUESS-BLOCK-SIZE": "block_size",
    "GUESS-SECTOR-SIZE": "logical_sector_size",
    "GUESS-KIND": "kind",
    "GUESS-LOG": "log",
}


@dataclass(frozen=True)
class UnreadableRange:
    """
    A range of the disk, in bytes, that could not be read.

    `code` is the code of the error or the finding that says why (docs/errors.md), `reason` a sentence.
    """

    offset: int
    length: int
    code: str
    reason: str


@dataclass(frozen=True)
class SalvageReport:
    """
    What a salvage got out of a file; sizes in bytes of the virtual disk.

    `recovered` and `lost` add up to `virtual_size`; `data` bytes of what was recovered are not zero, in
    steps of 64 KiB.  `unreadable` are the lost ranges, in order, neighbours with one code joined; after
    100,000 of them the rest is only counted, in `unlisted` bytes.  `guessed` says by parameter what was
    taken for what the file does not tell, and why; `warnings` what was found wrong, in this file and
    then in its parents, whose names stand in the `structure`.  `target` and `target_format` are None after a dry run without one.
    """

    source: str
    target: str | None
    target_format: str | None
    virtual_size: int
    kind: str
    block_size: int
    logical_sector_size: int
    data: int
    recovered: int
    lost: int
    unreadable: list[UnreadableRange] = field(default_factory=list)
    unlisted: int = 0
    guessed: dict[str, str] = field(default_factory=dict)
    warnings: list[Finding] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values that JSON can hold."""
        return asdict(self)


def salvage(
    source: Source,
    target: Source | None,
    *,
    format: str | None = None,
    size: int | None = None,
    block_size: int | None = None,
    logical_sector_size: int | None = None,
    kind: str | None = None,
    log: str = "auto",
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
    sync: bool = True,
    **how: Any,
) -> SalvageReport:
    """
    Copy what can be read of a broken VHDX image into a new file, and report what cannot.

    *source* is a path, a seekable binary file object or a `pyvhdx.testing.Storage`.  *target* and *format*
    are those of `convert`; a VHDX target is dynamic.  What could not be read is zeros there.

    *size* (bytes), *block_size* (bytes, a power of two from 1 to 256 MiB), *logical_sector_size* (512 or
    4096) and *kind* (``"dynamic"``, ``"fixed"`` or ``"differencing"``) are what the source is, and count
    for more than what stands in it.  Without them they are read, or else guessed.  *log* says what
    becomes of a log of which nobody knows whether it is current: with ``"auto"`` what it would change
    is not read, ``"replay"`` replays the newest, ``"ignore"`` reads as if there was none; a log that the
    header names is replayed, but for ``"ignore"``.  *how* are `pyvhdx.open`'s *parent*, *search*,
    *allow_absolute*, *within*, *verify_parent* and *lock*.

    With *dry_run* everything is read and nothing written, and *target* may be None.
    ``progress(done, total)`` is called with bytes of the virtual disk, and cancels by raising.  The target
    is flushed (unless *sync* is False) and gets its name when it is complete; else nothing is left of it.

    Raises `NotVHDXError` where there is no trace of the format, `ImageError` where no BAT is found,
    `RequestError`, `LockedError`, the `ParentError` of a parent that was named, `FileExistsError` for an
    existing target without *overwrite*, and `OSError` for what is not a bad place of the source.
    """
    for name in how:
        if name not in ("parent", "search", "allow_absolute", "within", "verify_parent", "lock"):
            raise TypeError(f"salvage() got an unexpected keyword argument {name!r}")
    target_format = None
    if target is not None:
        if not isinstance(target, (str, os.PathLike)):
            refuse_no_file(target, "write")
        target_format = target_format_of(target, format)
    elif not dry_run:
        raise RequestError("salvage needs a target, unless it is a dry run")
    hints = _hints(size, block_size, logical_sector_size, kind, log)
    with open_salvaged(source, hints, **how) as image:
        wreck = _Wreck(image)
        if dry_run or target is None or target_format is None:
            data = sum(len(piece) for _, piece in wreck.pieces(progress))
        else:
            make: Callable[[int], Disk] | None = None
            if target_format == "vhdx":
                make = partial(
                    new_disk,
                    logical_sector_size=image.logical_sector_size,
                    physical_sector_size=image.physical_sector_size,
                )
            _, data = write_target(
                wreck, source, target, target_format, make, overwrite=overwrite, sync=sync, progress=progress
            )
        warnings = list(image.warnings)
        for member in image.chain[1:]:
            warnings += [
                replace(finding, structure=f"{finding.structure} of {member.name}")
                for finding in member.warnings
            ]
        if wreck.shared:
            warnings.append(wreck.sharing())
        if not wreck.has_stored:
            warnings += _forgotten(image._file.raw)
        return SalvageReport(
            source=image.name,
            target=None if target is None else name_of(target),
            target_format=target_format,
            virtual_size=image.size,
            kind=image.kind,
            block_size=image.block_size,
            logical_sector_size=image.logical_sector_size,
            data=data,
            recovered=image.size - wreck.lost,
            lost=wreck.lost,
            unreadable=wreck.unreadable,
            unlisted=wreck.unlisted,
            guessed=_guessed(image.warnings),
            warnings=warnings,
        )


def _forgotten(storage: Storage) -> list[Finding]:
    """Return what is to be said of data that no block names, where no block is stored at all."""
    with contextlib.suppress(ImageError):
        known = survey(storage)
        table, collector = table_of(known), Collector()
        usage = check_file(known, Collector(), lambda _: None)
        if table is not None and usage is not None and not usage.allocated and table.held >= table.needed:
            check_unowned(table, usage.space, collector, lambda _: None, limit=table.file_size)
        return collector.kept
    return []


def _hints(size: Any, block_size: Any, sector_size: Any, kind: Any, log: Any) -> Hints:
    if block_size is not None and block_size not in [c.MIN_BLOCK_SIZE << n for n in range(9)]:
        raise RequestError(f"block_size is {block_size!r}, and must be a power of two from 1 MiB to 256 MiB")
    if sector_size is not None and sector_size not in c.SECTOR_SIZES:
        raise RequestError(f"logical_sector_size is {sector_size!r}, and must be 512 or 4096")
    unit = sector_size or 512
    if size is not None and (not isinstance(size, int) or size % unit or not 0 < size <= c.MAX_VIRTUAL_SIZE):
        raise RequestError(f"size is {size!r}, and must be a multiple of {unit} from one sector to 64 TiB")
    if kind is not None and kind not in _KINDS:
        raise RequestError(f'kind is {kind!r}, and must be "fixed", "dynamic" or "differencing"')
    if log not in _LOGS:
        raise RequestError(f'log is {log!r}, and must be "auto", "replay" or "ignore"')
    return Hints(size, block_size, sector_size, kind, log)


def _guessed(findings: tuple[Finding, ...]) -> dict[str, str]:
    guessed = {_GUESSES[one.code]: one.message for one in findings if one.code in _GUESSES}
    regions = {
        one.structure: f"at {one.offset:#x}, {one.message}" for one in findings if one.code == "GUESS-REGION"
    }
    return guessed | regions


class _Wreck(SourceDisk):
    """A source that has unreadable ranges, and keeps a list of them."""

    format = "vhdx"

    def __init__(self, image: VHDXImage) -> None:
        super().__init__(image.name)
        self.image: VHDXImage = image
        self.size = image.size
        self.unreadable: list[UnreadableRange] = []
        self.lost = 0
        self.unlisted = 0
        self.shared = 0
        self._first_shared = 0
        self._faults_left = MAX_RANGES
        self._used = bytearray()  # a byte for each MiB of the file
        self._last_block = -1
        self.has_stored = False  # anything in the file itself

    def storages(self) -> list[Storage]:
        return storages_of(self.image)

    def runs(self) -> Iterator[tuple[int, int]]:
        chain = self.image.chain
        for extent in self.image.extents():
            if extent.kind == "unreadable":
                self._lose_extent(extent)
            if extent.file_offset is None:
                continue
            if extent.depth == 0:
                self.has_stored = True
                self._mark(extent.offset, extent.length, extent.file_offset)
            shift = extent.offset - extent.file_offset
            for start, end in _data_in(chain[extent.depth]._file.storage, extent.file_offset, extent.length):
                yield start + shift, end + shift

    def fill(self, view: memoryview, offset: int) -> None:
        self._fill(view, offset, _STEPS)

    def _fill(self, view: memoryview, offset: int, steps: tuple[int, ...]) -> None:
        try:
            self.image.preadinto(view, offset)
            return
        except (ImageError, ParentError, OSError) as error:
            cause = error
        if len(view) <= self.image.logical_sector_size:
            view[:] = bytes(len(view))
            self._lose(offset, len(view), cause)
            return
        step = steps[0] if steps else self.image.logical_sector_size
        for at in range(0, len(view), step):
            self._fill(view[at : at + step], offset + at, steps[1:])

    def _lose_extent(self, extent: Extent) -> None:
        """Enter an extent block by block, as each may have a reason of its own; not for ever."""
        member = self.image.chain[extent.depth]
        at, end = extent.offset, extent.offset + extent.length
        while at < end:
            stop = end
            if self._faults_left:
                self._faults_left -= 1
                stop = min(end, at - at % member.block_size + member.block_size)
            self._lose(at, stop - at, fault(member, at))
            at = stop

    def _lose(self, offset: int, length: int, cause: ImageError | ParentError | OSError) -> None:
        self.lost += length
        code = _code_of(cause)
        last = self.unreadable[-1] if self.unreadable else None
        if last is not None and last.code == code and last.offset + last.length == offset:
            self.unreadable[-1] = UnreadableRange(last.offset, last.length + length, code, last.reason)
        elif len(self.unreadable) < MAX_RANGES:
            self.unreadable.append(UnreadableRange(offset, length, code, str(cause)))
        else:
            self.unlisted += length

    def _mark(self, offset: int, length: int, file_offset: int) -> None:
        """Note which MiB of the file the blocks of an extent take; it may begin and end inside one."""
        size = self.image.block_size
        within = offset % size
        first, last = offset // size, (offset + length - 1) // size
        start = file_offset - within
        if first == self._last_block:
            first, start = first + 1, start + size
        self._last_block = last
        low, high = start >> 20, start + (last - first + 1) * size >> 20
        if low >= high:
            return
        self._used.extend(bytes(max(0, high - len(self._used))))
        taken = self._used.count(1, low, high) << 20
        if taken:
            self._first_shared = self._first_shared or start
            self.shared += taken
        self._used[low:high] = b"\1" * (high - low)

    def sharing(self) -> Finding:
        """Return what is to be said of blocks at one place."""
        message = f"{self.shared} bytes belong to two blocks, here first: both are read, and one is wrong"
        return tolerated("BAT-OVERLAP", "payload", self._first_shared, "2.5.1.1", message)


def _data_in(storage: Storage, offset: int, length: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of what may hold data in a range; all of it where the medium does not say."""
    end = offset + length
    while offset < end:
        try:
            run = storage.next_data(offset)
        except OSError:
            run = offset, end
        if run is None or run[0] >= end:
            # What was in the file when it was opened, and is behind its end now, must be missed.
            run = max(offset, min(end, storage.size())), end
        if run[0] < end:
            yield run[0], min(run[1], end)
        offset = run[1]


def _code_of(error: ImageError | ParentError | OSError) -> str:
    if isinstance(error, ImageError):
        return error.code
    return "PARENT-MISSING" if isinstance(error, ParentError) else "READ-ERROR"
