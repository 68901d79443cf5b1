"""``pyvhdx repair``."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from typing import TYPE_CHECKING, Any

from pyvhdx.cli import common
from pyvhdx.errors import RequestError
from pyvhdx.ops.repair import repair
from pyvhdx.ops.undo import undo_repair

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator

    from pyvhdx.ops.repair import RepairReport

_SOMETHING_IS_LEFT = 1
_FAILED = 1
_CHOICE = re.compile(r"([A-Z-]+)(?:@(0x[0-9a-fA-F]+|[0-9]+))?=([a-z]+)")


def add_to(commands: Any) -> None:
    """Add the sub-command."""
    parser = commands.add_parser(
        "repair",
        help="mend what is wrong with an image, or undo that",
        description="Exit status: 0 nothing corrupt is left, 1 something is, or the repair failed.",
    )
    parser.add_argument("image")
    common.add_dry_run(parser)
    parser.add_argument(
        "--choose",
        metavar="CODE[@OFFSET]=CHOICE",
        action="append",
        type=choice,
        default=[],
        help="what to do about damage that has more than one cure; without --choose it is left, and its choices are listed",
    )
    place = parser.add_mutually_exclusive_group()
    place.add_argument(
        "--undo-file", metavar="FILE", help="keep there what is overwritten; IMAGE.undo without this"
    )
    place.add_argument("--no-undo", action="store_true", help="keep nothing of what is overwritten")
    parser.add_argument(
        "--undo", action="store_true", help="put back what the undo file holds, and remove it"
    )
    common.add_quiet(parser)
    common.add_output(parser)
    common.add_open(parser)
    parser.set_defaults(run=run)


def choice(text: str) -> tuple[str | tuple[str, int], str]:
    """Read a choice as `repair` takes it: for a code, or for the finding at an offset."""
    match = _CHOICE.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no choice; write BAT-OVERLAP=copy or BAT-OVERLAP@0x300008=copy"
        )
    code, offset, chosen = match.groups()
    return (code if offset is None else (code, int(offset, 0))), chosen


def run(parsed: Namespace) -> int:
    if parsed.force_share and not parsed.dry_run:
        raise RequestError("--force-share goes with --dry-run only: a repair must have the image to itself")
    if parsed.undo:
        _undo(parsed)
        return 0
    with common.Progress(parsed) as progress, _cut_short_is_told(parsed):
        report = repair(
            parsed.image,
            dry_run=parsed.dry_run,
            undo=False if parsed.no_undo else parsed.undo_file,
            choices=dict(parsed.choose),
            progress=progress,
            **common.how(parsed),
        )
    if parsed.output == "json":
        common.print_json(describe(report))
    elif not parsed.quiet:
        _print_human(report)
    in_the_way = _file_in_the_way(parsed, report)
    if in_the_way is not None:
        print(
            f"{common.printable(in_the_way)} exists, and is not overwritten: the repair itself would fail; name "
            "another one (--undo-file), or, if the repair before is never to be undone, remove it",
            file=sys.stderr,
        )
        return _FAILED
    return 0 if report.is_clean else _SOMETHING_IS_LEFT


@contextlib.contextmanager
def _cut_short_is_told(parsed: Namespace) -> Iterator[None]:
    """Say what to do about a repair that ends half-way."""
    place: str = parsed.undo_file or parsed.image + ".undo"
    was_there = parsed.dry_run or parsed.no_undo or os.path.lexists(place)
    try:
        yield
    except (OSError, KeyboardInterrupt):
        if not was_there and os.path.lexists(place):
            print(
                f"{common.printable(parsed.image)} may be changed in part; what it held is in "
                f"{common.printable(place)}: repair it again with the same undo file, which begins by undoing that, "
                "or put it back (--undo)",
                file=sys.stderr,
            )
        raise


def _file_in_the_way(parsed: Namespace, report: RepairReport) -> str | None:
    """Return what a dry run found where the undo file would have to be made."""
    place: str = parsed.undo_file or parsed.image + ".undo"
    is_needed = parsed.dry_run and bool(report.done) and not parsed.no_undo and not report.undone_first
    return place if is_needed and os.path.lexists(place) else None


def _undo(parsed: Namespace) -> None:
    if parsed.dry_run or parsed.no_undo or parsed.choose:
        raise RequestError("--undo goes with --undo-file only")
    with common.Progress(parsed) as progress:
        report = undo_repair(
            parsed.image,
            parsed.undo_file or parsed.image + ".undo",
            progress=progress,
        )
    if parsed.output == "json":
        common.print_json(report.to_dict())
    elif not parsed.quiet:
        print(
            f"{common.printable(report.image)}: as before the repair, {common.human(report.size)} long; "
            f"{common.human(report.restored)} were put back"
        )
        if not report.removed:
            print(f"{common.printable(report.undo)} stays: it was made for another file")


def describe(report: RepairReport) -> dict[str, Any]:
    """Return the report for JSON, with keys as the other commands have them."""
    return {key.replace("_", "-"): value for key, value in report.to_dict().items()}


def _print_human(report: RepairReport) -> None:
    print(f"{common.printable(report.image)}:")
    if report.undone_first:
        would = "would be" if report.dry_run else "was"
        print(f"  a repair that had been cut short {would} undone first")
    for repaired in report.done:
        would = "would be " if report.dry_run else ""
        print(f"  {would}mended: {common.printable(str(repaired.finding))}; {repaired.action}")
    for remaining in report.left:
        print(f"  left: {remaining.finding.severity}: {common.printable(str(remaining.finding))}")
        if remaining.choices:
            at = f"{remaining.finding.code}@{remaining.finding.offset:#x}"
            print(f"    --choose {at}={'|'.join(remaining.choices)}")
        if remaining.reason:
            print(f"    {remaining.reason}")
    for loss in report.lost:
        where = (
            ""
            if loss.offset is None
            else f"bytes {loss.offset:#x} to {loss.offset + loss.length:#x} of the disk: "
        )
        print(f"  lost: {where}{common.printable(loss.message)}")
    for name in report.corrupt_parents:
        print(f"  its parent {common.printable(name)} is corrupt, and wants a repair of its own")
    print(_summary(report))


def _summary(report: RepairReport) -> str:
    done, left = sum(report.done_counts.values()), sum(report.left_counts.values())
    if not done and not left:
        return "nothing is wrong with this file" if report.corrupt_parents else "nothing is wrong"
    words = f"{done} {'would be ' if report.dry_run else ''}mended, {left} left"
    if report.undo is not None:
        words += f"; what was overwritten is in {common.printable(report.undo)}"
    return words
