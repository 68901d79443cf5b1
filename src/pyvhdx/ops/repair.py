"""
Repair: what can be mended from what is still good, and the rest by explicit choice.

Everything is tried first, in a rehearsal that leaves the file alone.  So all that will be overwritten is
known before the first change, and goes to the undo file; then the same calls are made on the file itself.
They are those of any writer: the headers protect themselves, all other metadata goes through the log, and a
power cut at any moment leaves an image that opens as it did before or as the repair has made it so far.
"""

from __future__ import annotations

import contextlib
import stat
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pyvhdx._core.repairs.plan import CHOICES, Choices, Loss, Plan
from pyvhdx._core.repairs.undecided import Found
from pyvhdx._core.repairs.whole import FileRepair
from pyvhdx.chain import open_storage, options_of
from pyvhdx.errors import Finding, RequestError
from pyvhdx.format.constants import HEADER_OFFSETS, HEADER_SIZE
from pyvhdx.format.header import Header
from pyvhdx.ops.check import check
from pyvhdx.ops.parent_facts import known_parent
from pyvhdx.ops.undo import UndoPlace
from pyvhdx.storage import Rehearsal, file_behind

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from pyvhdx._core.repairs.locator import KnownParent
    from pyvhdx._types import Progress, Source
    from pyvhdx.chain import ParentChoice
    from pyvhdx.ops.check import CheckReport
    from pyvhdx.storage import Storage

_CORRUPT, _NOTE = "corrupt", "note"
_BEHIND_THE_LOG = ("FILE-", "REGION-", "METADATA-", "LOCATOR-", "BAT-", "BITMAP-", "SPACE-", "LOG-")
_FIRST = ("FILE-", "HEADER-", "LOG-", "REGION-")
_MAX_ROUNDS = 6
_MENDED = "mended from what is still good"
_ACTIONS = {
    "LOG-PENDING": "the log was replayed into the file",
    "PARENT-MISMATCH": "the child names the parent that was given",
    "LOCATOR-LINKAGE": "the child names the parent that was given",
}
_NAME_THE_PARENT = "name the parent for it (parent=, --parent)"
_REASONS = {
    "FILE-SIZE": "a file of this length holds no disk that could be mended",
    "HEADER-NONE": "nothing says where the log lies; salvage gets out what can be read",
    "REGION-NONE": "nothing says where BAT and metadata lie; salvage gets out what can be read",
    "METADATA-SIGNATURE": "nothing says what disk this is; salvage gets out what can be read",
    "METADATA-MISSING": "nothing makes up for the item; salvage takes it as an option",
    "LOCATOR-PATH": _NAME_THE_PARENT,
    "LOCATOR-STRING": _NAME_THE_PARENT,
    "LOCATOR-KEY": _NAME_THE_PARENT,
    "PARENT-NOT-FOUND": _NAME_THE_PARENT,
}
_ABOUT_THE_PARENT = ("PARENT-MISMATCH", "LOCATOR-LINKAGE")


@dataclass(frozen=True)
class Repaired:
    """A finding that is gone, and in words what was done about it."""

    finding: Finding
    action: str

    def to_dict(self) -> dict[str, Any]:
        return {**self.finding.to_dict(), "action": self.action}


@dataclass(frozen=True)
class Remaining:
    """
    A finding that is left.

    `choices` are what `repair` can do about it when it is told to, the safest first; `reason` says why it
    was not done where it was chosen.
    """

    finding: Finding
    choices: tuple[str, ...]
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {**self.finding.to_dict(), "choices": list(self.choices), "reason": self.reason}


@dataclass(frozen=True)
class RepairReport:
    """
    What a repair did, or with *dry_run* would do.

    `done` and `left` are the corruptions and warnings of `check` that are gone, and those that are not;
    of one code at most 1,000 are listed, and `done_counts` and `left_counts` have the numbers.  `lost`
    names what was given up by a choice.  `undo` is the name of the undo file, None where there is none;
    `undone_first` tells that a repair that had been cut short was undone before; `is_clean` tells that
    no corruption is left.  All that is about this one file: `corrupt_parents` are the names of parents
    that want a repair of their own.
    """

    image: str
    dry_run: bool
    done: list[Repaired] = field(default_factory=list)
    left: list[Remaining] = field(default_factory=list)
    lost: list[Loss] = field(default_factory=list)
    undo: str | None = None
    undone_first: bool = False
    done_counts: dict[str, int] = field(default_factory=dict)
    left_counts: dict[str, int] = field(default_factory=dict)
    corrupt_parents: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        return not any(remaining.finding.severity == "corrupt" for remaining in self.left)

    def to_dict(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "done": [repaired.to_dict() for repaired in self.done],
            "left": [remaining.to_dict() for remaining in self.left],
            "is_clean": self.is_clean,
        }


def repair(
    source: Source,
    *,
    dry_run: bool = False,
    undo: Source | bool | None = None,
    choices: Mapping[Any, str] | None = None,
    progress: Progress | None = None,
    sync: bool = True,
    parent: ParentChoice = "auto",
    **how: Any,
) -> RepairReport:
    """
    Mend what is wrong with one image, as far as that is safe, and return what was done and what is left.

    What `check` calls ``repairable`` is mended from what is still good.  Ambiguous damage is left as it is
    unless *choices* says what to do: a mapping of codes, or of pairs (code, file offset) for one finding
    alone, to choices, of which `RepairReport.left` names those there are.  With *dry_run* nothing is written.

    Before the first change everything that will be overwritten goes to an undo file, for `undo_repair`:
    *undo* is its path or an empty binary file object, None the image's path with ``.undo`` behind it,
    False none. An undo file that exists is never overwritten; that of a repair that was cut short is
    used to undo that one first, if the image bears its trace, and `RepairReport.undone_first` says so.
    A file with nothing to repair is not changed, and gets no undo file.

    The locator's paths are written from the parent that *parent* names, or that is found.  *parent*,
    *search*, *allow_absolute*, *within*, *verify_parent*, *log* and *lock* are those of `pyvhdx.open`;
    parents are only read.  *progress* is called with the bytes done and the bytes in all, for each part
    of the work, and cancels by raising.

    Raises `NotVHDXError` where neither the identifier nor a header nor a region table is right (MS-VHDX
    2.2), `LockedError`, `LogPendingError` for ``log="refuse"``, `FileExistsError` for an undo file of
    something else, `RequestError` for a choice that there is not, and `OSError`.
    """
    chosen = Choices(choices)
    options = options_of(**how)
    if undo is True or not isinstance(dry_run, bool):
        raise RequestError("undo is the place of the undo file, None or False; dry_run is True or False")
    if parent in ("auto", False) and any(chosen.has(code) for code in _ABOUT_THE_PARENT):
        raise RequestError(
            "to link the child to its parent again, the parent must be named (parent=, --parent)"
        )
    with contextlib.ExitStack() as opened:
        storage = open_storage(source, options._replace(write=not dry_run))
        opened.callback(storage.close)
        place = None if undo is False else UndoPlace(source, undo)
        undone_first = False
        if place is not None and not dry_run:
            undone_first = place.undo_unfinished(storage, sync=sync)
        rehearsal = Rehearsal(storage)
        opened.callback(rehearsal.close)
        if place is not None and dry_run:
            undone_first = place.undo_unfinished(rehearsal, sync=sync, forget=False)
            rehearsal.changes.clear()
        work = _Work(rehearsal, Plan(chosen), parent, how | {"lock": False}, progress)
        work.run(can_grow=not _is_device(storage))
        chosen.check_all_used(work.found())
        changes = bool(rehearsal.changes) and not dry_run and not work.refusal
        if changes and place is None:
            rehearsal.carry_out(storage, sync=sync, progress=progress)
        elif changes and place is not None:
            place.fill(storage, rehearsal.overwritten(), _guids_written(rehearsal))
            rehearsal.carry_out(storage, sync=sync, progress=progress)
            place.finish()
        report = work.report(
            storage.name, dry_run=dry_run, undo=place.name if changes and place is not None else None
        )
        return replace(report, undone_first=undone_first)


def _is_device(storage: Storage) -> bool:
    file = file_behind(storage)
    return file is not None and stat.S_ISBLK(file.status().st_mode)


def _guids_written(rehearsal: Rehearsal) -> list[UUID]:
    """Return the FileWriteGuids of the headers that the repair writes."""
    headers = rehearsal.written_at(HEADER_OFFSETS, HEADER_SIZE)
    return [Header.parse(data).file_write_guid for data in headers]


class _Work:
    """One rehearsal: a check before, the repair, a check after, and what these add up to."""

    def __init__(
        self,
        rehearsal: Rehearsal,
        plan: Plan,
        parent: ParentChoice,
        how: dict[str, Any],
        progress: Progress | None,
    ) -> None:
        self._rehearsal = rehearsal
        self._plan = plan
        self._parent = parent
        self._how = how
        self._progress = progress
        self._undecided: list[Finding] = []
        self._names_parent = parent not in ("auto", False)
        self.refusal = ""  # why nothing of all this may be done

    def run(self, *, can_grow: bool) -> None:
        self._before = self._after = self._trusted = self._check()
        self._mend(can_grow=can_grow)
        if self._plan.choices.has_any or not (gone := self._vanished()):
            return
        self.refusal = f"nothing is mended: {gone.code} at {gone.offset:#x} would vanish with it, undecided"
        self._after = self._before
        self._plan.lost.clear()

    def _vanished(self) -> Finding | None:
        """Return what nobody can have mended, and is no longer found: what it was found by is gone."""
        still = {(finding.code, finding.offset) for finding in self._after.findings}
        exempt = ("PARENT-", "LOCATOR-") if self._names_parent else ("PARENT-",)
        for one in self._trusted.findings:
            is_open = one.severity == _CORRUPT and not one.repairable and not one.code.startswith(exempt)
            if is_open and (one.code, one.offset) not in still:
                return one
        return None

    def _mend(self, *, can_grow: bool) -> None:
        cut_at = None
        # What is mended may be what kept something else from being mended, or seen.
        for _ in range(_MAX_ROUNDS):
            changes = len(self._rehearsal.changes)
            after = self._after
            work = FileRepair(
                self._rehearsal,
                self._plan,
                Found(after.findings, after.counts, after.severities.get(_CORRUPT, 0)),
                self._known_parent,
                names_parent=self._names_parent,
                can_grow=can_grow,
                cut_at=cut_at,
            )
            work.mend()
            self._undecided, cut_at = work.undecided, work.cut_at
            if len(self._rehearsal.changes) == changes:
                return
            seen, self._after = self._after.counts, self._check()
            if work.is_halfway:
                self._trusted = self._after
                continue
            found = [one for one in self._after.findings if one.repairable and one.severity != _NOTE]
            if not found or (work.saw_the_table and all(one.code in seen for one in found)):
                return

    def found(self) -> set[tuple[str, int]]:
        """Return what the check before found, by code and offset."""
        return {(finding.code, finding.offset) for finding in self._before.findings}

    def _check(self) -> CheckReport:
        return check(self._rehearsal, parent=self._parent, progress=self._progress, **self._how)

    def _known_parent(self) -> KnownParent | None:
        found = self._before.parent.name if self._before.parent is not None else None
        return known_parent(self._rehearsal, self._parent, found)

    def report(self, image: str, *, dry_run: bool, undo: str | None) -> RepairReport:
        left = [self._remaining(finding) for finding in self._after.findings if finding.severity != _NOTE]
        # A thousand of a code are listed, and a repair may move what is left: the numbers decide.
        gone = Counter(self._before.counts) - Counter(self._after.counts)
        still = {(finding.code, finding.offset) for finding in self._after.findings}
        counts = {code: count for code, count in gone.items() if not _is_note(code, self._before)}
        done = []
        for finding in self._before.findings:
            key = finding.code, finding.offset
            if finding.severity != _NOTE and key not in still and gone[finding.code] > 0:
                gone[finding.code] -= 1
                done.append(Repaired(finding, self._plan.notes.get(key, _ACTIONS.get(finding.code, _MENDED))))
        return RepairReport(
            image=image,
            dry_run=dry_run,
            done=done,
            left=left,
            lost=list(self._plan.lost),
            undo=undo,
            done_counts=counts,
            left_counts={
                code: count for code, count in self._after.counts.items() if not _is_note(code, self._after)
            },
            corrupt_parents=[one.name for one in self._after.chain[1:] if one.severities.get(_CORRUPT)],
        )

    def _remaining(self, finding: Finding) -> Remaining:
        key = finding.code, finding.offset
        offers = self._plan.offers.get(key, ())
        if finding.code == "BAT-SHIFT":  # the same entry as an overlap
            offers = self._plan.offers.get(("BAT-OVERLAP", finding.offset), ())
        reason = self.refusal or self._plan.reasons.get(key, _REASONS.get(finding.code, ""))
        if finding.code in _ABOUT_THE_PARENT and not offers:
            offers, reason = ("relink",), _NAME_THE_PARENT
        if not reason:
            reason = self._waits_for(finding)
        if not reason and not offers and self._was_chosen(finding):
            reason = "what was chosen for it was not all there is to decide; look at it again"
        return Remaining(finding, offers, reason)

    def _was_chosen(self, finding: Finding) -> bool:
        place = finding.code, finding.offset
        return finding.code in CHOICES and self._plan.choices.for_place(*place) is not None

    def _waits_for(self, finding: Finding) -> str:
        """Return until when a finding is left that could be mended; nothing for one that could not."""
        if not (self._was_chosen(finding) or finding.repairable) or not finding.code.startswith(
            _BEHIND_THE_LOG
        ):
            return ""
        if finding.code == "BAT-PADDING":  # one of them may be a block's, and then all may be
            asked = (one for one in self._after.findings if (one.code, one.offset) in self._plan.offers)
            before = [one for one in asked if one.code == finding.code]
        else:
            before = self._undecided or [one for one in self._after.findings if _stops_everything(one)]
        if not before or finding in before:
            return ""
        first = before[0]
        name = f"{first.code} at {first.offset:#x}"
        if self._plan.offers.get((first.code, first.offset)):
            return f"left until {name} is decided"
        return f"left as long as {name} is there, for which there is no choice"


def _stops_everything(finding: Finding) -> bool:
    """Return whether without it, put right, nobody knows the rest of the file."""
    return finding.severity == _CORRUPT and finding.code.startswith(_FIRST) and not finding.repairable


def _is_note(code: str, report: CheckReport) -> bool:
    return any(finding.code == code and finding.severity == _NOTE for finding in report.findings)
