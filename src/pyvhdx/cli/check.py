"""``pyvhdx check``."""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING, Any, NoReturn

from pyvhdx.cli import common
from pyvhdx.ops.check import check

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from pyvhdx.ops.check import CheckReport

_CORRUPT = 2
_COULD_NOT_CHECK = 1


def add_to(commands: Any) -> None:
    """Add the sub-command."""
    parser = commands.add_parser(
        "check",
        help="look for everything that is wrong with an image and its parents",
        description="Exit status: 0 clean (there may be warnings and notes), 1 could not check, 2 corrupt.",
    )
    parser.add_argument("image")
    parser.add_argument("--deep", action="store_true", help="read all payload too")
    common.add_quiet(parser)
    common.add_output(parser)
    common.add_open(parser)
    parser.set_defaults(run=run, failed=_COULD_NOT_CHECK, parser=parser)
    parser.error = lambda message: _wrong_use(parser, message)


def _wrong_use(parser: ArgumentParser, message: str) -> NoReturn:
    """Say so, with a status that is not that of a corrupt image."""
    parser.print_usage(sys.stderr)
    parser.exit(_COULD_NOT_CHECK, f"{parser.prog}: error: {message}\n")


def run(parsed: Namespace) -> int:
    with common.Progress(parsed) as progress:
        report = check(parsed.image, deep=parsed.deep, progress=progress, **common.how(parsed))
    if parsed.output == "json":
        common.print_json(describe(report))
    elif not parsed.quiet:
        for one in report.chain:
            _print_human(one)
        print(_summary(report))
    return 0 if report.ok else _CORRUPT


def describe(report: CheckReport) -> dict[str, Any]:
    """Return the report with qemu-img's keys, and what only we say."""
    described: dict[str, Any] | None = None
    for one in reversed(report.chain):
        described = {
            "filename": one.name,
            "format": "vhdx",
            "check-errors": 0,
            "image-end-offset": one.end_offset,
            "total-clusters": one.total_blocks,
            "allocated-clusters": one.allocated_blocks,
            "corruptions": one.corruptions,
            "warnings": one.warnings,
            "notes": one.notes,
            "reclaimable": one.reclaimable,
            "counts": one.counts,
            "findings": [finding.to_dict() for finding in one.findings],
            "parent": described,
        }
    assert described is not None
    return described


def _print_human(report: CheckReport) -> None:
    print(f"{common.printable(report.name)}:")
    for finding in report.findings:
        hint = " (repairable)" if finding.repairable else ""
        print(f"  {finding.severity}: {common.printable(str(finding))}{hint}")
    kept = Counter(finding.code for finding in report.findings)
    for code, count in report.counts.items():
        if count > kept[code]:
            print(f"  and {count - kept[code]} more of {code}")
    if not report.findings:
        print("  nothing is wrong")


def _summary(report: CheckReport) -> str:
    counts = ", ".join(
        f"{count} {word if count == 1 else word + 's'}"
        for count, word in (
            (report.corruptions, "corruption"),
            (report.warnings, "warning"),
            (report.notes, "note"),
        )
    )
    if not report.ok:  # what belongs to nothing may be what was lost
        return f"corrupt: {counts}"
    return f"clean: {counts}; {common.human(report.reclaimable)} could be given back"
