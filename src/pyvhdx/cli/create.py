"""``pyvhdx create``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

from pyvhdx.cli import common
from pyvhdx.cli.info import describe, print_human
from pyvhdx.errors import RequestError
from pyvhdx.ops.create import DEFAULT_CREATOR, create

if TYPE_CHECKING:
    from argparse import Namespace


def add_to(commands: Any) -> None:
    """Add the sub-command."""
    parser = commands.add_parser("create", help="make an empty disk, or the child of another")
    parser.add_argument("image", help="the file to make")
    parser.add_argument(
        "size", nargs="?", type=common.size, help="virtual size, such as 10G; a child has its parent's"
    )
    parser.add_argument(
        "-b", "--backing", dest="parent", metavar="FILE", help="the parent of a differencing disk"
    )
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    parser.add_argument("-q", "--quiet", action="store_true", help="no report")
    common.add_output(parser)
    group = parser.add_argument_group("the disk")
    group.add_argument("--kind", choices=("dynamic", "fixed", "differencing"), help="dynamic without it")
    group.add_argument("--block-size", type=common.size, metavar="SIZE", help="1M to 256M, a power of two")
    group.add_argument("--logical-sector-size", type=int, choices=(512, 4096))
    group.add_argument("--physical-sector-size", type=int, choices=(512, 4096))
    group.add_argument(
        "--log-size", type=common.size, default=1 << 20, metavar="SIZE", help="a multiple of 1M"
    )
    group.add_argument("--disk-id", type=UUID, metavar="GUID", help="the identity of the virtual disk")
    group.add_argument("--seed", metavar="TEXT", help="derive every GUID from this, for equal files")
    group.add_argument("--creator", default=DEFAULT_CREATOR, metavar="TEXT")
    parser.set_defaults(run=run, late={"size": common.size})


def run(parsed: Namespace) -> None:
    if parsed.parent is not None and parsed.kind not in (None, "differencing"):
        raise RequestError(f"a child is differencing, and --kind says {parsed.kind}")
    with create(
        parsed.image,
        parsed.size,
        kind=parsed.kind or "dynamic",
        parent=parsed.parent,
        block_size=parsed.block_size,
        logical_sector_size=parsed.logical_sector_size,
        physical_sector_size=parsed.physical_sector_size,
        log_size=parsed.log_size,
        disk_id=parsed.disk_id,
        seed=parsed.seed,
        creator=parsed.creator,
        exist_ok=parsed.force,
    ) as image:
        if parsed.output == "json":
            common.print_json(describe(image.info()))
        elif not parsed.quiet:
            print_human(image.info())
