"""``pyvhdx read``."""

from __future__ import annotations

import base64
import contextlib
import sys
from typing import IO, TYPE_CHECKING, Any

from pyvhdx.chain import open as open_image
from pyvhdx.chain import storages_of
from pyvhdx.cli import common
from pyvhdx.errors import RequestError
from pyvhdx.storage import new_file, refuse_files_in_use

if TYPE_CHECKING:
    from argparse import Namespace

_PIECE = 1 << 20


def add_to(commands: Any) -> None:
    """Add the sub-command."""
    parser = commands.add_parser("read", help="write bytes of the disk to standard output or a file")
    parser.add_argument("image")
    parser.add_argument("offset", nargs="?", type=common.size, help="where to begin; 0 without it")
    parser.add_argument("length", nargs="?", type=common.size, help="how much; up to the end without it")
    parser.add_argument("-o", "--to", metavar="FILE", help="write to this new file; - is standard output")
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    common.add_quiet(parser)
    parser.add_argument(
        "--output", choices=("raw", "json"), default="raw", help="the bytes as they are, or as base64 in JSON"
    )
    common.add_open(parser, salvage=True)
    parser.set_defaults(run=run, late={"offset": common.size, "length": common.size})


def run(parsed: Namespace) -> None:
    to = None if parsed.to == "-" else parsed.to
    if to is not None and parsed.output == "json":
        raise RequestError("-o takes the bytes as they are, and JSON goes to standard output")
    with open_image(parsed.image, **common.how(parsed)) as image:
        offset = parsed.offset or 0
        length = image.size - offset if parsed.length is None else parsed.length
        if length < 0 or offset + length > image.size:
            raise RequestError(
                f"bytes {offset:#x} to {offset + max(length, 0):#x} are not all on the disk of {image.size:#x} bytes"
            )
        if parsed.output == "json":
            if length > 1 << 30:
                raise RequestError(
                    f"{length} bytes are too many for JSON, which is made in memory; 1 GiB is the most"
                )
            data = base64.b64encode(image.pread(length, offset)).decode()
            common.print_json({"offset": offset, "length": length, "data": data})
            return
        with contextlib.ExitStack() as cleanup:
            target: IO[bytes] = sys.stdout.buffer
            used = storages_of(image)
            refuse_files_in_use(to or target, used, "the image itself, or a file of its chain")
            if to is not None:
                file = cleanup.enter_context(new_file(to, overwrite=parsed.force))
            progress = cleanup.enter_context(common.Progress(parsed))
            for done in range(0, length, _PIECE):
                data_piece = image.pread(min(_PIECE, length - done), offset + done)
                if to is None:
                    target.write(data_piece)
                else:
                    file.write_at(data_piece, done)
                progress(done, length)
            target.flush()
