"""``pyvhdx map``."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from pyvhdx.chain import open as open_image
from pyvhdx.cli import common

if TYPE_CHECKING:
    from argparse import Namespace

    from pyvhdx.info import Extent


def add_to(commands: Any) -> None:
    """Add the sub-command."""
    parser = commands.add_parser("map", help="say which file holds which range of the disk")
    parser.add_argument("image")
    parser.add_argument("-s", "--start-offset", type=common.size, default=0, metavar="OFFSET")
    parser.add_argument("-l", "--max-length", type=common.size, metavar="LENGTH")
    common.add_output(parser)
    common.add_open(parser, salvage=True)
    parser.set_defaults(run=run)


def run(parsed: Namespace) -> None:
    with open_image(parsed.image, **common.how(parsed)) as image:
        extents = image.extents(parsed.start_offset, parsed.max_length)
        if parsed.output == "json":
            chain = image.chain
            common.print_json_list(_describe(extent, chain[extent.depth].name) for extent in extents)
            return
        first = next(extents, None)  # an error comes before the heading
        names = [common.printable(member.name) for member in image.chain]
        print(f"{'Offset':<16}{'Length':<16}{'Kind':<12}{'In file at':<16}File")
        for extent in itertools.chain([first] if first else [], extents):
            place = "" if extent.file_offset is None else f"{extent.file_offset:#x}"
            name = "" if extent.kind == "absent" else names[extent.depth]
            print(f"{extent.offset:<#16x}{extent.length:<#16x}{extent.kind:<12}{place:<16}{name}".rstrip())


def _describe(extent: Extent, name: str) -> dict[str, Any]:
    described: dict[str, Any] = {
        "start": extent.offset,
        "length": extent.length,
        "depth": extent.depth,
        "present": extent.kind != "absent",
        "zero": extent.kind in ("zero", "absent"),
        "data": extent.kind == "data",
        "kind": extent.kind,
    }
    if extent.file_offset is not None:
        described["offset"] = extent.file_offset
        described["filename"] = name
    return described
