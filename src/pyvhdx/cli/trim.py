"""``pyvhdx trim``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyvhdx._core.trim import TrimMode, plan_trim
from pyvhdx.cli import common
from pyvhdx.errors import ImageError, RequestError

if TYPE_CHECKING:
    from argparse import Namespace

    from pyvhdx.image import VHDXImage


def add_to(commands: Any) -> None:
    """Add the sub-command."""
    parser = commands.add_parser(
        "trim",
        help="give the space of whole blocks back",
        description="Without --mode the blocks read as zeros afterwards.",
    )
    parser.add_argument("image")
    parser.add_argument("offset", nargs="?", type=common.size, help="where to begin; 0 without it")
    parser.add_argument("length", nargs="?", type=common.size, help="how much; up to the end without it")
    parser.add_argument(
        "--mode",
        choices=[mode.value for mode in TrimMode],
        default=TrimMode.ZERO.value,
        help="what becomes of the blocks",
    )
    common.add_dry_run(parser)
    common.add_quiet(parser)
    common.add_output(parser)
    common.add_open(parser)
    parser.set_defaults(run=run, late={"offset": common.size, "length": common.size})


def run(parsed: Namespace) -> None:
    mode = TrimMode(parsed.mode)
    changed = 0
    with common.to_change(parsed) as image, common.Progress(parsed) as progress:
        offset = parsed.offset or 0
        length = image.size - offset if parsed.length is None else parsed.length
        # All of it is checked before the first step changes anything.
        common.check_range(image, offset, length)
        sector = image.logical_sector_size
        if offset % sector or length % sector:
            raise RequestError(
                f"offset {offset} and length {length} must be multiples of the sector size {sector}"
            )
        for at, size in common.steps(offset, length):
            changed += (_would_change if parsed.dry_run else _trim)(image, at, size, mode)
            progress(at + size - offset, length)
    if parsed.output == "json":
        common.print_json(
            {
                "offset": offset,
                "length": length,
                "mode": mode.value,
                "trimmed": changed,
                "dry-run": parsed.dry_run,
            }
        )
    elif not parsed.quiet:
        print(
            f"{common.printable(parsed.image)}: {common.human(changed)} "
            f"{'would be ' if parsed.dry_run else ''}trimmed"
        )


def _trim(image: VHDXImage, offset: int, length: int, mode: TrimMode) -> int:
    return image.trim(offset, length, mode)


def _would_change(image: VHDXImage, offset: int, length: int, mode: TrimMode) -> int:
    """Return what `VHDXImage.trim` would return, from an image that is open for reading."""
    file = image._file
    try:
        plan = plan_trim(file.blocks, file.geometry, image.kind, offset, length, mode)
        return sum(trim.length for trim in plan)
    except ImageError as error:
        error.name = image.name
        raise
