"""``pyvhdx dump``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyvhdx.cli import common
from pyvhdx.ops import dump

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterable

_STRUCTURES = {
    "header": dump.dump_header,
    "regions": dump.dump_regions,
    "metadata": dump.dump_metadata,
    "log": dump.dump_log,
    "locator": dump.dump_locator,
}


def add_to(commands: Any) -> None:
    """Add the sub-command."""
    parser = commands.add_parser(
        "dump",
        help="show a structure of the file, also where the image cannot be opened",
        description="All but header and log are shown as they are after a replay of the log.",
    )
    parser.add_argument("structure", choices=[*_STRUCTURES, "bat"])
    parser.add_argument("image")
    parser.add_argument("--all", action="store_true", help="bat: entries that are zero, too")
    parser.add_argument("-U", "--force-share", action="store_true", help="open without a lock")
    common.add_output(parser)
    parser.set_defaults(run=run)


def run(parsed: Namespace) -> None:
    with dump.opened(parsed.image, lock=not parsed.force_share) as storage:
        if parsed.structure == "bat":
            entries = dump.dump_bat(storage, every=parsed.all)
            if parsed.output == "json":
                common.print_json_list(entries)
            else:
                _print_entries(entries)
            return
        value = _STRUCTURES[parsed.structure](storage)
        if parsed.output == "json":
            common.print_json(value)
        else:
            _print_tree(value)


def _print_entries(entries: Iterable[dict[str, Any]]) -> None:
    for entry in entries:
        reserved = f"  reserved bits {entry['reserved']:#x}" if entry["reserved"] else ""
        print(f"{entry['kind']} {entry['number']:<10} {entry['state']:<18} {entry['offset']:#x}{reserved}")


def _print_tree(value: Any, indent: str = "") -> None:
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in pairs:
        name = common.printable(str(key))
        if isinstance(inner, (dict, list)) and inner:
            print(f"{indent}{name}:")
            _print_tree(inner, indent + "  ")
        else:
            print(f"{indent}{name}: {_text(name, inner)}")


def _text(name: str, value: Any) -> str:
    if (
        isinstance(value, int)
        and not isinstance(value, bool)
        and ("offset" in name or name in ("current", "position"))
    ):
        return f"{value:#x}"
    text = "-" if value is None or value in ([], {}) else common.printable(str(value))
    return (
        text
        if len(text) <= 160
        else f"{text[:128]}... ({len(text)} characters; all of them with --output json)"
    )
