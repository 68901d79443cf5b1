"""``pyvhdx meta``: the user items of the metadata region."""

from __future__ import annotations

import base64
import sys
from typing import TYPE_CHECKING, Any
from uuid import UUID

from pyvhdx._core.metadata import read_table
from pyvhdx._core.user_items import plan_change
from pyvhdx.chain import open as open_image
from pyvhdx.chain import storages_of
from pyvhdx.cli import common
from pyvhdx.errors import RequestError, VHDXError
from pyvhdx.format.constants import MAX_ITEM_SIZE
from pyvhdx.storage import new_file, refuse_files_in_use

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from pyvhdx.image import VHDXImage
    from pyvhdx.user_metadata import UserMetadata


def add_to(commands: Any) -> None:
    """Add the sub-command."""
    parser = commands.add_parser("meta", help="list, read and change the user items of the metadata")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)

    listing = _add(actions, "list", _list, "say which items there are")
    common.add_output(listing)

    getting = _add(actions, "get", _get, "write an item to standard output or a file")
    getting.add_argument("-o", "--to", metavar="FILE", help="write to this new file; - is standard output")
    getting.add_argument("--force", action="store_true", help="replace an existing file")
    getting.add_argument(
        "--output", choices=("raw", "json"), default="raw", help="the bytes as they are, or as base64 in JSON"
    )

    setting = _add(actions, "set", _set, "make or replace an item")
    common.add_input(setting).add_argument("--value", metavar="TEXT", help="this text, as UTF-8, instead")
    owner = setting.add_mutually_exclusive_group()
    owner.add_argument(
        "--of-disk",
        action="store_const",
        const=True,
        dest="of_disk",
        help="the item belongs to the virtual disk, and children get a copy",
    )
    owner.add_argument(
        "--of-file",
        action="store_const",
        const=False,
        dest="of_disk",
        help="the item belongs to this file, as a new one does without either",
    )

    deleting = _add(actions, "delete", _delete, "remove an item")
    for changing in (setting, deleting):
        common.add_dry_run(changing)
        changing.add_argument("-q", "--quiet", action="store_true", help="no report")
        common.add_output(changing)
    for each in actions.choices.values():
        common.add_open(each)


def _add(actions: Any, name: str, run: Any, help: str) -> ArgumentParser:
    parser: ArgumentParser = actions.add_parser(name, help=help, allow_abbrev=False)
    parser.add_argument("image")
    if run is not _list:
        parser.add_argument("item_id", type=UUID, metavar="GUID", help="the item")
    parser.set_defaults(run=run)
    return parser


def _list(parsed: Namespace) -> None:
    with open_image(parsed.image, **common.how(parsed)) as image:
        items, user = image.user_metadata, image._file.metadata.user
        described = [_describe(each, user.entry(each).length, items.is_of_disk(each)) for each in items]
    if parsed.output == "json":
        common.print_json_list(described)
        return
    print(f"{'Item':<38}{'Size':<10}Belongs to")
    for item in described:
        print(f"{item['item-id']:<38}{item['size']:<10}{item['belongs-to']}")


def _get(parsed: Namespace) -> None:
    to = None if parsed.to == "-" else parsed.to
    if to is not None and parsed.output == "json":
        raise RequestError("-o takes the bytes as they are, and JSON goes to standard output")
    with open_image(parsed.image, **common.how(parsed)) as image:
        items = _with_item(image, parsed.item_id)
        data, of_disk = items[parsed.item_id], items.is_of_disk(parsed.item_id)
        if parsed.output == "raw":
            used = storages_of(image)
            refuse_files_in_use(to or sys.stdout.buffer, used, "the image itself, or a file of its chain")
    if parsed.output == "json":
        value = base64.b64encode(data).decode()
        common.print_json({**_describe(parsed.item_id, len(data), of_disk), "data": value})
    elif to is None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    else:
        with new_file(to, overwrite=parsed.force) as file:
            file.write_at(data, 0)


def _set(parsed: Namespace) -> None:
    item_id, data = parsed.item_id, _value(parsed)
    with common.to_change(parsed) as image:
        items = image.user_metadata
        of_disk = parsed.of_disk
        if of_disk is None:
            of_disk = item_id in items and items.is_of_disk(item_id)
        if parsed.dry_run:
            _check(image, item_id, data, of_disk=of_disk)
        else:
            items.set(item_id, data, of_disk=of_disk)
    _report(
        parsed,
        _describe(item_id, len(data), of_disk),
        f"set: {common.human(len(data))} that belong to the {'disk' if of_disk else 'file'}",
    )


def _delete(parsed: Namespace) -> None:
    with common.to_change(parsed) as image:
        items = _with_item(image, parsed.item_id)
        described = _describe(parsed.item_id, len(items[parsed.item_id]), items.is_of_disk(parsed.item_id))
        if not parsed.dry_run:
            del items[parsed.item_id]
    _report(parsed, described, "deleted")


def _value(parsed: Namespace) -> bytes:
    if parsed.value is not None:
        # What was no text on the command line goes in as the bytes it was.
        return bytes(parsed.value.encode("utf-8", "surrogateescape"))
    with common.opened_input(parsed) as file:
        data = common.read_input(file, MAX_ITEM_SIZE + 1)
    if len(data) > MAX_ITEM_SIZE:
        raise RequestError("an item has at most 1 MiB, and the input is longer")
    return data


def _with_item(image: VHDXImage, item_id: UUID) -> UserMetadata:
    items = image.user_metadata
    if item_id not in items:
        raise VHDXError(
            f"{image.name}: there is no user item {item_id}; meta list shows those that there are"
        )
    return items


def _check(image: VHDXImage, item_id: UUID, data: bytes, *, of_disk: bool) -> None:
    """Raise what `UserMetadata.set` would, of an image that is open for reading."""
    region = image._file.regions.metadata
    _, entries = read_table(region, image._file.pages.read)
    plan_change(entries, region.length, item_id, data, of_disk=of_disk)


def _describe(item_id: UUID, size: int, of_disk: bool) -> dict[str, Any]:
    return {"item-id": str(item_id), "size": size, "belongs-to": "disk" if of_disk else "file"}


def _report(parsed: Namespace, described: dict[str, Any], done: str) -> None:
    if parsed.output == "json":
        common.print_json({**described, "dry-run": parsed.dry_run})
    elif not parsed.quiet:
        would = "would be " if parsed.dry_run else ""
        print(f"{common.printable(parsed.image)}: item {parsed.item_id} {would}{done}")
