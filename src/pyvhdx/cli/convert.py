"""``pyvhdx convert``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from pyvhdx.cli import common
from pyvhdx.errors import RequestError
from pyvhdx.ops.convert import convert

if TYPE_CHECKING:
    from argparse import Namespace


def add_to(commands: Any) -> None:
    """Add the sub-command."""
    parser = commands.add_parser(
        "convert",
        help="copy a disk from raw to VHDX or back",
        description="An existing target is refused without --force; qemu-img overwrites it silently.",
    )
    parser.add_argument("source", help="a disk image or block device; - is a raw disk on standard input")
    parser.add_argument("target", help="the file to make; - is a raw disk on standard output")
    parser.add_argument("-f", dest="source_format", choices=("raw", "vhdx"), help="what the source is")
    parser.add_argument(
        "-O", dest="format", choices=("raw", "vhdx"), help="what to make; else the suffix decides"
    )
    parser.add_argument("--force", action="store_true", help="replace an existing target")
    common.add_quiet(parser)
    common.add_output(parser)
    group = parser.add_argument_group("a VHDX target")
    group.add_argument("--kind", choices=("dynamic", "fixed"), default="dynamic")
    group.add_argument("--block-size", type=common.size, metavar="SIZE", help="1M to 256M, a power of two")
    group.add_argument("--logical-sector-size", type=int, choices=(512, 4096))
    group.add_argument("--physical-sector-size", type=int, choices=(512, 4096))
    group.add_argument(
        "--log-size", type=common.size, default=1 << 20, metavar="SIZE", help="a multiple of 1M"
    )
    group.add_argument("--seed", metavar="TEXT", help="derive every GUID from this, for equal files")
    common.add_open(parser)
    parser.set_defaults(run=run)


def run(parsed: Namespace) -> None:
    standard: dict[str, Any] = {
        "no_parent": False,
        "parent": None,
        "search": [],
        "allow_absolute": [],
        "within": None,
        "no_verify_parent": False,
        "log": "auto",
        "force_share": False,
    }
    given = any(getattr(parsed, name) != value for name, value in standard.items())
    if parsed.source == "-" and sys.stdin is None:
        raise RequestError("standard input is closed, and the source is to come from there")
    with common.Progress(parsed) as progress:
        report = convert(
            sys.stdin.buffer if parsed.source == "-" else parsed.source,
            common.StandardOutput() if parsed.target == "-" else parsed.target,
            source_format=parsed.source_format,
            format=parsed.format or ("raw" if parsed.target == "-" else None),
            overwrite=parsed.force,
            progress=progress,
            kind=parsed.kind,
            block_size=parsed.block_size,
            logical_sector_size=parsed.logical_sector_size,
            physical_sector_size=parsed.physical_sector_size,
            log_size=parsed.log_size,
            seed=parsed.seed,
            **(common.how(parsed) if given else {}),
        )
    out = sys.stderr if parsed.target == "-" else sys.stdout
    if parsed.output == "json":
        common.print_json({key.replace("_", "-"): value for key, value in report.to_dict().items()}, out)
    elif not parsed.quiet:
        print(
            f"{common.printable(report.source)} ({report.source_format}) -> "
            f"{common.printable(report.target)} ({report.target_format}): "
            f"{common.human(report.virtual_size)}, of which {common.human(report.data)} are data",
            file=out,
        )
