"""``pyvhdx salvage``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TextIO

from pyvhdx.cli import common
from pyvhdx.errors import RequestError
from pyvhdx.ops.salvage import salvage

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator

    from pyvhdx.ops.salvage import SalvageReport

_SHOWN = 20
# A disk for which these were guessed may have come out wrong, though everything was read.
_OPTIONS = {"size": "--size", "block_size": "--block-size"}


def add_to(commands: Any) -> None:
    """Add the sub-command."""
    parser = commands.add_parser(
        "salvage",
        help="get out of a broken image what can be read",
        description="What cannot be read becomes zeros, is listed, and makes the exit status 1.",
    )
    parser.add_argument("source", help="the broken image")
    parser.add_argument(
        "target",
        nargs="?",
        help="the file to make; - is a raw disk on standard output; not needed for a dry run",
    )
    parser.add_argument(
        "-O", dest="format", choices=("raw", "vhdx"), help="what to make; else the suffix decides"
    )
    parser.add_argument("--force", action="store_true", help="replace an existing target")
    parser.add_argument(
        "--dry-run", action="store_true", help="read everything, say what could be read, and write nothing"
    )
    common.add_quiet(parser)
    common.add_output(parser)
    group = parser.add_argument_group("what the source is, whatever stands in it")
    group.add_argument("--size", type=common.size, metavar="SIZE", help="the size of the disk")
    group.add_argument("--block-size", type=common.size, metavar="SIZE", help="1M to 256M, a power of two")
    group.add_argument("--logical-sector-size", type=int, choices=(512, 4096))
    group.add_argument("--kind", choices=("dynamic", "fixed", "differencing"))
    common.add_parents(parser)
    parser.add_argument(
        "--log",
        choices=("auto", "replay", "ignore"),
        default="auto",
        help="a log that may not be current: leave out what it would change, replay it, or ignore it",
    )
    parser.set_defaults(run=run, late={"target": str})


def run(parsed: Namespace) -> int:
    if parsed.target is None and not parsed.dry_run:
        raise RequestError("the target is missing; without one there is only --dry-run")
    to_stdout = parsed.target == "-"
    how = common.how(parsed)
    del how["log"]
    with common.Progress(parsed) as progress:
        report = salvage(
            parsed.source,
            common.StandardOutput() if to_stdout else parsed.target,
            format=parsed.format or ("raw" if to_stdout else None),
            size=parsed.size,
            block_size=parsed.block_size,
            logical_sector_size=parsed.logical_sector_size,
            kind=parsed.kind,
            log=parsed.log,
            overwrite=parsed.force,
            dry_run=parsed.dry_run,
            progress=progress,
            **how,
        )
    out = sys.stderr if to_stdout else sys.stdout
    if parsed.output == "json":
        common.print_json({key.replace("_", "-"): value for key, value in report.to_dict().items()}, out)
    elif not parsed.quiet:
        _print(report, out, dry_run=parsed.dry_run)
    sys.stdout.flush()
    if report.lost:
        where = f"in {len(report.unreadable)} ranges" if len(report.unreadable) > 1 else "in one range"
        print(f"pyvhdx: {common.human(report.lost)} could not be read, {where}", file=sys.stderr)
    for doubt in _doubts(report):
        print(f"pyvhdx: {doubt}", file=sys.stderr)
    return 1 if report.lost else 0


def _doubts(report: SalvageReport) -> Iterator[str]:
    """Yield what makes it likely that the result is not what the disk was, whatever could be read."""
    if any(finding.code == "BAT-OVERLAP" for finding in report.warnings):
        yield "two blocks share a place: what one of them shows is wrong"
    if any(finding.code == "SPACE-DATA" for finding in report.warnings):
        yield "no block is stored, and there is data in the file: the BAT may have been lost, and the disk with it"
    named = [(name, option) for name, option in _OPTIONS.items() if name in report.guessed]
    if named:
        what = " and ".join(name.replace("_", " ") for name, _ in named)
        options = " and ".join(f"{option} ..." for _, option in named)
        yield f"the {what} {'were' if len(named) > 1 else 'was'} guessed; give {options} if you know better"


def _print(report: SalvageReport, out: TextIO, *, dry_run: bool) -> None:
    def show(line: str) -> None:
        print(common.printable(line), file=out)

    for finding in report.warnings:
        show(f"{finding.severity}: {finding}")
    for one in report.unreadable[:_SHOWN]:
        show(f"unreadable: {one.offset:#x}, {common.human(one.length)}: {one.reason}")
    if len(report.unreadable) > _SHOWN:
        show(f"unreadable: {len(report.unreadable) - _SHOWN} more ranges; --output json lists them")
    arrow = "could be read" if dry_run else f"-> {report.target} ({report.target_format})"
    show(
        f"{report.source} (vhdx, {report.kind}) {arrow}: {common.human(report.recovered)} "
        f"of {common.human(report.virtual_size)} read"
    )
