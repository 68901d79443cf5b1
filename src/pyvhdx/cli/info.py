"""``pyvhdx info``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyvhdx.chain import open as open_image
from pyvhdx.cli import common
from pyvhdx.errors import ParentCycleError, ParentError, ParentMismatchError, ParentNotFoundError
from pyvhdx.format.locator import ABSOLUTE_WIN32_PATH, RELATIVE_PATH, VOLUME_PATH

if TYPE_CHECKING:
    from argparse import Namespace

    from pyvhdx.info import ImageInfo

_LABELS: dict[type[ParentError], str] = {
    ParentNotFoundError: "parent missing",
    ParentMismatchError: "parent wrong",
    ParentCycleError: "parent cycle",
}


def add_to(commands: Any) -> None:
    """Add the sub-command."""
    parser = commands.add_parser("info", help="say what an image is")
    parser.add_argument("image")
    parser.add_argument("--chain", "--backing-chain", action="store_true", help="say it of its parents too")
    common.add_output(parser)
    common.add_open(parser, salvage=True)
    parser.set_defaults(run=run)


def run(parsed: Namespace) -> None:
    how = common.how(parsed)
    wrong = None
    try:
        image = open_image(parsed.image, **how)
    except ParentError as error:
        if parsed.chain or parsed.parent is not None:
            raise
        wrong = error
        image = open_image(parsed.image, **{**how, "parent": False})
    with image:
        infos = [member.info() for member in (image.chain if parsed.chain else (image,))]
    if parsed.output == "json":
        described = [describe(info, wrong) for info in infos]
        common.print_json(described if parsed.chain else described[0])
    else:
        for number, info in enumerate(infos):
            if number:
                print()
            print_human(info, wrong)


def describe(info: ImageInfo, wrong: ParentError | None = None) -> dict[str, Any]:
    """Return what is known with qemu-img's keys, and under format-specific what only we say."""
    described: dict[str, Any] = {
        "virtual-size": info.virtual_size,
        "filename": info.name,
        "cluster-size": info.block_size,
        "format": "vhdx",
        "actual-size": info.allocated_size,
        "dirty-flag": info.log_pending,
    }
    named = _named_parent(info)
    if named is not None:
        described["backing-filename"] = named
    if info.parent is not None:
        described["full-backing-filename"] = info.parent
        described["backing-filename-format"] = "vhdx"
    own = {
        "file-size": info.file_size,
        "kind": info.kind,
        "block-size": info.block_size,
        "logical-sector-size": info.logical_sector_size,
        "physical-sector-size": info.physical_sector_size,
        "creator": info.creator,
        "disk-id": str(info.disk_id),
        "file-write-guid": str(info.file_write_guid),
        "data-write-guid": str(info.data_write_guid),
        "log-offset": info.log_offset,
        "log-length": info.log_length,
        "parent-locator": info.parent_locator,
        "warnings": [finding.to_dict() for finding in info.warnings],
    }
    if wrong is not None:
        own["parent-error"] = str(wrong)
        if isinstance(wrong, ParentNotFoundError):
            own["parent-missing"] = str(wrong)
    described["format-specific"] = {"type": "vhdx", "data": own}
    return described


def print_human(info: ImageInfo, wrong: ParentError | None = None) -> None:
    """Write what is known for people."""
    lines = [
        ("image", info.name),
        ("file format", f"vhdx, {info.kind}"),
        ("virtual size", common.human(info.virtual_size)),
        ("disk size", common.human(info.allocated_size)),
        ("file size", common.human(info.file_size)),
        ("block size", common.human(info.block_size)),
        ("sector size", f"{info.logical_sector_size} logical, {info.physical_sector_size} physical"),
        ("creator", info.creator),
        ("disk id", str(info.disk_id)),
        ("log", "pending, replayed in memory" if info.log_pending else "clean"),
    ]
    if info.parent is not None:
        lines.append(("parent", info.parent))
    elif info.kind == "differencing":
        lines.append(("parent", f"{_named_parent(info)} (not open)"))
    if wrong is not None:
        lines.append((_LABELS[type(wrong)], str(wrong)))
    lines += [("warning", str(finding)) for finding in info.warnings]
    for name, value in lines:
        print(f"{name}: {common.printable(value)}")


def _named_parent(info: ImageInfo) -> str | None:
    pairs = info.parent_locator or {}
    return next(
        (pairs[key] for key in (RELATIVE_PATH, VOLUME_PATH, ABSOLUTE_WIN32_PATH) if key in pairs), None
    )
