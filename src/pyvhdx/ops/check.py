"""Looking for everything that is wrong with an image and its parents; nothing is ever written."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pyvhdx._core.bat import BlockAllocationTable
from pyvhdx._core.blocks import BlockMap
from pyvhdx._core.checks.collector import Collector
from pyvhdx._core.checks.file import check_file, table_of
from pyvhdx._core.checks.payload import check_payload, check_unowned, partition_ends
from pyvhdx._core.opening import OpenFile, refuse_pending
from pyvhdx._core.pages import Pages
from pyvhdx._core.regions import Regions
from pyvhdx._core.rules import CORRUPT, NOTE, WARNING
from pyvhdx._core.survey import survey
from pyvhdx.chain import attach_parents, leads_to, locator_of, open_storage, options_of
from pyvhdx.errors import (
    ImageError,
    ParentCycleError,
    ParentError,
    ParentMismatchError,
)
from pyvhdx.format.constants import PARENT_LOCATOR, ZERO_GUID
from pyvhdx.format.header import Header
from pyvhdx.image import VHDXImage
from pyvhdx.storage import LocalFile

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pyvhdx._core.survey import Survey
    from pyvhdx._types import PathLike, Progress, Source
    from pyvhdx.chain import OpenOptions, ParentChoice
    from pyvhdx.errors import Finding

_SEVERITIES = (CORRUPT, WARNING, NOTE)
# What belongs to nothing may be what was lost, though nothing is corrupt.
_MAY_BE_LOST = ("SPACE-DATA", "LOG-TORN")
# So much of what belongs to nothing is read without *deep*, where no block is stored.
_GLANCE = 64 << 20
# Windows: FILE_ATTRIBUTE_SPARSE_FILE, _COMPRESSED, _ENCRYPTED
_ATTRIBUTES = {0x200: "sparse", 0x800: "compressed", 0x4000: "encrypted"}


@dataclass(frozen=True)
class CheckReport:
    """
    What is wrong with one file of a chain, and in `parent` the report of the next.

    `findings` are those of this file, of each code at most 1,000, and `counts` how many there are of
    each code, `severities` of each severity.  `corruptions`, `warnings` and `notes` count those of this
    file and its parents.  Sizes are in bytes and of this file alone: `reclaimable` could be given back
    without losing anything (0 while something in this file is corrupt, or for `SPACE-DATA` and
    `LOG-TORN`: what belongs to nothing may be what was lost), and `end_offset` is where its last
    structure ends, 0 where that is not known.
    """

    name: str
    findings: list[Finding] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    severities: dict[str, int] = field(default_factory=dict)
    reclaimable: int = 0
    end_offset: int = 0
    total_blocks: int = 0
    allocated_blocks: int = 0
    parent: CheckReport | None = None

    @property
    def ok(self) -> bool:
        """Whether neither this file nor one of its parents is corrupt."""
        return not self.corruptions

    @property
    def corruptions(self) -> int:
        """How many findings say that what is read, or whether it can be read, is uncertain."""
        return self._total(CORRUPT)

    @property
    def warnings(self) -> int:
        """How many findings break a rule and change nothing of what is read."""
        return self._total(WARNING)

    @property
    def notes(self) -> int:
        """How many findings tell what is normal, with its amount."""
        return self._total(NOTE)

    @property
    def chain(self) -> tuple[CheckReport, ...]:
        """This report, that of the parent, and so on down to the last that was found."""
        reports: list[CheckReport] = []
        report: CheckReport | None = self
        while report is not None:
            reports.append(report)
            report = report.parent
        return tuple(reports)

    def _total(self, severity: str) -> int:
        return sum(report.severities.get(severity, 0) for report in self.chain)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values that JSON can hold."""
        described: dict[str, Any] | None = None
        for report in reversed(self.chain):
            described = {
                "name": report.name,
                "ok": report.ok,
                "corruptions": report.corruptions,
                "warnings": report.warnings,
                "notes": report.notes,
                "reclaimable": report.reclaimable,
                "end_offset": report.end_offset,
                "total_blocks": report.total_blocks,
                "allocated_blocks": report.allocated_blocks,
                "counts": dict(report.counts),
                "findings": [finding.to_dict() for finding in report.findings],
                "parent": described,
            }
        assert described is not None
        return described


def check(
    source: Source,
    *,
    deep: bool = False,
    progress: Progress | None = None,
    parent: ParentChoice = "auto",
    search: Iterable[PathLike] = (),
    allow_absolute: Iterable[PathLike] = (),
    within: PathLike | None = None,
    verify_parent: bool = True,
    log: str = "auto",
    lock: bool = True,
) -> CheckReport:
    """
    Look for everything that is wrong with an image and its parents, and return what was found.

    Nothing is written, and nothing that is found stops the search; a pending log is replayed in memory.
    Files that cannot be opened are checked as far as they can be made out.  A parent that is missing or
    wrong is a finding; with ``parent=False`` this file is looked at alone.  With *deep* all payload is
    read too, and where no block is stored, what belongs to nothing.  *parent*, *search*,
    *allow_absolute*, *within*, *verify_parent*, *log* and *lock* are those of `pyvhdx.open`; *progress* is
    called with the bytes done and the bytes known so far, and cancels by raising.

    Raises `NotVHDXError` where neither the identifier nor a header nor a region table is right (MS-VHDX
    2.2), `LockedError`, `LogPendingError` for ``log="refuse"``, `RequestError`, and `OSError` where the
    file cannot be opened or its metadata not be read.
    """
    options = options_of(
        search=search,
        allow_absolute=allow_absolute,
        within=within,
        verify_parent=verify_parent,
        log=log,
        lock=lock,
    )
    with contextlib.ExitStack() as at_end:
        storage = open_storage(source, options)
        at_end.callback(storage.close)
        try:
            known = survey(storage)
            if options.log == "refuse" and known.replay is not None:
                refuse_pending(known.replay, known.log.start)
        except ImageError as error:
            error.name = storage.name
            raise
        members = _Members(options, deep=deep, progress=progress)
        members.check(known)
        image = _as_image(known)
        if image is not None:
            at_end.callback(image.close)
            if parent is not False:
                members.follow(image, parent)
            if deep:
                _check_partitions(image, members.collectors[0])
        return members.report()


class _Members:
    """The files of a chain, each with what was found in it."""

    def __init__(self, options: OpenOptions, *, deep: bool, progress: Progress | None) -> None:
        self._options = options
        self._deep = deep
        self._meter = _Meter(progress)
        self._known: list[Survey] = []
        self.collectors: list[Collector] = []
        self._sizes: list[dict[str, int]] = []

    def check(self, known: Survey) -> None:
        """Look at one more file of the chain."""
        collector = Collector()
        self._known.append(known)
        self.collectors.append(collector)
        sizes: dict[str, int] = {}
        self._sizes.append(sizes)
        table = table_of(known)
        if table is not None:
            self._meter.expect(min(table.needed, table.held) * 8)
        usage = check_file(known, collector, self._meter.advance)
        _check_host(known, collector)
        if table is None or usage is None:
            return
        sizes["end_offset"] = usage.end
        sizes["total_blocks"] = table.geometry.block_count
        sizes["allocated_blocks"] = usage.allocated
        sizes["reclaimable"] = usage.unowned + usage.slack + usage.anchored + usage.unused_bitmaps
        if self._deep:
            self._meter.expect(usage.allocated * table.geometry.block_size)
            check_payload(table, collector, self._meter.advance)
        if not usage.allocated and table.held >= table.needed:
            limit = table.file_size if self._deep else _GLANCE
            self._meter.expect(min(limit, max(0, table.file_size - (usage.space.used() << 20))))
            check_unowned(table, usage.space, collector, self._meter.advance, limit=limit)
            self._meter.finish()

    def follow(self, image: VHDXImage, choice: ParentChoice) -> None:
        """Look at the parents of the first file, as far as they are found."""
        if image.kind == "differencing" and PARENT_LOCATOR not in image.metadata:
            return
        missing = None
        try:
            for _ in attach_parents(image, choice, self._options):
                pass
        except ParentError as error:
            missing = error
        except ImageError:  # the locator names no parent, which has been said
            pass
        for child, parent in zip(image.chain, image.chain[1:], strict=False):
            _compare(child, parent, self._options, self.collectors[-1])
            self.check(survey(parent._file.raw))
        if missing is not None:
            _report_missing(image.chain[-1], missing, self.collectors[-1])

    def report(self) -> CheckReport:
        report = None
        for known, collector, sizes in reversed(
            list(zip(self._known, self.collectors, self._sizes, strict=True))
        ):
            if collector.count_of(CORRUPT) or any(collector.counts[code] for code in _MAY_BE_LOST):
                sizes["reclaimable"] = 0
            report = CheckReport(
                name=known.raw.name,
                findings=_by_offset(collector.kept),
                counts=dict(collector.counts),
                severities={severity: collector.count_of(severity) for severity in _SEVERITIES},
                parent=report,
                **sizes,
            )
        assert report is not None
        return report


def _by_offset(findings: list[Finding]) -> list[Finding]:
    """Return findings with those of one code in the order of their places; codes stay where they came in."""
    places: dict[str, list[int]] = {}
    for number, finding in enumerate(findings):
        places.setdefault(finding.code, []).append(number)
    ordered = list(findings)
    for numbers in places.values():
        sorted_ones = sorted((findings[number] for number in numbers), key=lambda finding: finding.offset)
        for number, finding in zip(numbers, sorted_ones, strict=True):
            ordered[number] = finding
    return ordered


class _Meter:
    """Counts what has been looked at, of what is known to be there."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._done = 0
        self._total = 0

    def expect(self, count: int) -> None:
        self._total += count

    def finish(self) -> None:
        """What is known to be there need not be looked at any more."""
        self.advance(max(0, self._total - self._done))

    def advance(self, count: int) -> None:
        self._done += count
        if self._progress is not None:
            self._progress(self._done, max(self._done, self._total))


def _as_image(known: Survey) -> VHDXImage | None:
    """Return a file as an image where that much of it can be made out, whatever else is wrong with it."""
    metadata, geometry = known.metadata, known.geometry
    if metadata is None or geometry is None or known.bat is None or known.metadata_region is None:
        return None
    pages = Pages(known.storage.read_at)
    try:
        bat = BlockAllocationTable(pages, known.bat, geometry, differencing=metadata.has_parent)
    except ImageError:
        return None
    blocks = BlockMap(
        geometry, bat, pages, known.storage.size(), known.spans, differencing=metadata.has_parent
    )
    nobody = Header(
        sequence_number=0,
        file_write_guid=ZERO_GUID,
        data_write_guid=ZERO_GUID,
        log_guid=ZERO_GUID,
        log_length=0,
        log_offset=0,
    )
    file = OpenFile(
        raw=known.raw,
        storage=known.storage,
        creator=known.creator,
        header=known.header or nobody,
        header_offset=known.header_offset,
        pages=pages,
        regions=Regions(known.bat, known.metadata_region, known.regions, []),
        metadata=metadata,
        geometry=geometry,
        bat=bat,
        blocks=blocks,
        replay=known.replay,
        findings=[],
    )
    return VHDXImage(file, None)


def _check_host(known: Survey, collector: Collector) -> None:
    """Look at what the file system does with the file; only Windows tells."""
    if isinstance(known.raw, LocalFile):
        attributes = getattr(known.raw.status(), "st_file_attributes", 0)
        words = [word for bit, word in _ATTRIBUTES.items() if attributes & bit]
        if words:
            collector.found("FILE-HOST", 0, f"the file is {' and '.join(words)} on NTFS")


def _compare(child: VHDXImage, parent: VHDXImage, options: OpenOptions, collector: Collector) -> None:
    """Look at what a child and the parent that is used for it say of one another."""
    place = child._file.metadata.system.place(PARENT_LOCATOR)
    if child.size < parent.size:
        collector.found(
            "PARENT-SIZE", 0, f"{parent.name} has {parent.size} bytes, and its child {child.size}"
        )
    if ZERO_GUID not in (child.disk_id, parent.disk_id) and child.disk_id != parent.disk_id:
        collector.found(
            "PARENT-DISK-ID",
            0,
            f"{parent.name} has the disk id {parent.disk_id}, and its child {child.disk_id}",
        )
    try:
        paths, linkages = leads_to(child, parent, options), locator_of(child).linkages
    except ImageError:  # said before; the parent was given, and is not verified
        paths, linkages = [], ()
    for text, is_right in paths:
        if not is_right:
            message = f"{text!r} does not lead to the parent, which is {parent.name}"
            collector.found("PARENT-PATH", place, message)
    if parent.data_write_guid in linkages[:1]:
        # The second linkage is not what makes the parent fit, and may go.
        collector.revise("LOCATOR-MERGE", repairable=True)
    files = child._file.raw, parent._file.raw
    if all(isinstance(file, LocalFile) for file in files):
        written = [file.status().st_mtime_ns for file in files if isinstance(file, LocalFile)]
        if written[1] > written[0]:
            collector.found("PARENT-MODIFIED", 0, f"{parent.name} was written after its child")


def _report_missing(child: VHDXImage, error: ParentError, collector: Collector) -> None:
    place = child._file.metadata.system.place(PARENT_LOCATOR)
    if isinstance(error, ParentCycleError):
        code = "PARENT-CYCLE"
    elif not isinstance(error, ParentMismatchError):
        code = "PARENT-NOT-FOUND"
    elif isinstance(error.expected, int):
        code = "PARENT-SECTOR-SIZE"
    else:
        code = "PARENT-MISMATCH"
    collector.found(code, place, str(error))


def _check_partitions(image: VHDXImage, collector: Collector) -> None:
    """Look whether the partition table of the disk, if it has one and can be read, fits on it."""
    size = image.logical_sector_size
    try:
        ends = list(partition_ends(lambda number: image.pread(size, number * size)))
    except (ImageError, ParentError):
        return
    for what, last in ends:
        if last >= image.size // size:
            collector.found(
                "PAYLOAD-PARTITION",
                0,
                f"{what} ends with sector {last}, and the disk has {image.size // size} sectors",
                structure="partition table",
            )
