"""``pyvhdx write``."""

from __future__ import annotations

import contextlib
import os
import stat
from typing import IO, TYPE_CHECKING, Any

from pyvhdx.chain import storages_of
from pyvhdx.cli import common
from pyvhdx.errors import RequestError
from pyvhdx.storage import refuse_files_in_use

if TYPE_CHECKING:
    from argparse import Namespace

    from pyvhdx.image import VHDXImage

_PIECE = 1 << 20


def add_to(commands: Any) -> None:
    """Add the sub-command."""
    parser = commands.add_parser("write", help="write standard input or a file onto the disk")
    parser.add_argument("image")
    parser.add_argument("offset", nargs="?", type=common.size, help="where to begin; 0 without it")
    common.add_input(parser).add_argument(
        "--zeroes", type=common.size, metavar="LENGTH", help="make so many bytes read as zeros instead"
    )
    common.add_dry_run(parser)
    common.add_quiet(parser)
    common.add_output(parser)
    common.add_open(parser)
    parser.set_defaults(run=run, late={"offset": common.size})


def run(parsed: Namespace) -> None:
    offset = parsed.offset or 0
    with contextlib.ExitStack() as cleanup:
        # The input comes first: without one the image need not be opened, and no log be replayed.
        source = None
        if parsed.zeroes is None:
            source = cleanup.enter_context(common.opened_input(parsed))
        image = cleanup.enter_context(common.to_change(parsed))
        progress = cleanup.enter_context(common.Progress(parsed))
        if source is None:
            length = parsed.zeroes
            _make_zero(image, offset, length, progress, dry_run=parsed.dry_run)
        else:
            length = _copy(source, image, offset, progress, dry_run=parsed.dry_run)
        size = image.size
    if parsed.output == "json":
        common.print_json(
            {"offset": offset, "length": length, "virtual-size": size, "dry-run": parsed.dry_run}
        )
    elif not parsed.quiet:
        done = "written" if source is not None else "made zero"
        print(
            f"{common.printable(parsed.image)}: {common.human(length)} "
            f"{'would be ' if parsed.dry_run else ''}{done} at {offset:#x}"
        )


def _make_zero(
    image: VHDXImage, offset: int, length: int, progress: common.Progress, *, dry_run: bool
) -> None:
    common.check_range(image, offset, length)
    if dry_run:
        return
    for at, size in common.steps(offset, length):
        image.write_zeroes(at, size)
        progress(at + size - offset, length)


def _copy(
    source: IO[bytes], image: VHDXImage, offset: int, progress: common.Progress, *, dry_run: bool
) -> int:
    """Write all of *source* at *offset*, and return how many bytes that were."""
    _refuse_own_files(source, image)
    known = _bytes_left(source)
    common.check_range(image, offset, known)
    done = 0
    # How much there is shows only at the end of a pipe.  Pieces end where blocks may end, and the first
    # one is long enough that a short input is written whole or not at all.
    while piece := common.read_input(source, 2 * _PIECE - (offset + done) % _PIECE):
        if offset + done + len(piece) > image.size:
            image.flush()
            raise RequestError(
                f"the input does not fit: the disk of {image.size:#x} bytes ends before it; "
                f"{'nothing was' if dry_run or not done else f'its first {done} bytes were'} written"
            )
        if not dry_run:
            image.pwrite(piece, offset + done)
        done += len(piece)
        progress(done, known)
    return done


def _refuse_own_files(source: IO[bytes], image: VHDXImage) -> None:
    what = "the image itself, or a file of its chain"
    try:
        refuse_files_in_use(source, storages_of(image), what)
    except RequestError:
        raise RequestError(f"{source.name} is {what}, and cannot be what is written") from None


def _bytes_left(source: IO[bytes]) -> int:
    """Return how much a regular file holds from its position on; 0 where that is not known."""
    status = os.fstat(source.fileno())
    return max(0, status.st_size - source.tell()) if stat.S_ISREG(status.st_mode) else 0
