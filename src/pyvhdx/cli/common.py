"""What the sub-commands share: sizes, options of an open, progress and output."""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import re
import sys
import time
from typing import IO, TYPE_CHECKING, Any

from pyvhdx.chain import open as open_image
from pyvhdx.errors import RequestError, VHDXError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from typing_extensions import Self

    from pyvhdx.image import VHDXImage

_SIZE = re.compile(r"(\d+(?:\.\d+)?)([bKMGTPE]?)(?:i?B)?", re.IGNORECASE)
_UNITS = {unit: 1 << 10 * power for power, unit in enumerate(("", "K", "M", "G", "T", "P", "E"))} | {"B": 1}
_STEP = 1 << 30  # a multiple of every block size


def size(text: str) -> int:
    """Read a size as qemu-img does: bytes, or with K, M, G, T for powers of 1024."""
    if text[:2].lower() == "0x":  # as map and the errors write them
        try:
            return int(text, 16)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no hexadecimal number") from None
    match = _SIZE.fullmatch(text)
    if match is None or ("." in match[1] and match[2].upper() in ("", "B")):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write bytes, 0x1000, or 512K, 1.5G, 64T")
    unit = _UNITS[match[2].upper()]
    try:
        return int(float(match[1]) * unit) if "." in match[1] else int(match[1]) * unit
    except (OverflowError, ValueError):  # infinite, or more digits than Python takes
        raise argparse.ArgumentTypeError(f"{text[:20]}... is no size of anything") from None


def human(count: int) -> str:
    """Write a size for people: 10 GiB (10737418240 bytes)."""
    for unit in ("PiB", "TiB", "GiB", "MiB", "KiB"):
        step = _UNITS[unit[0]]
        if count >= step:
            return f"{count / step:.4g} {unit} ({count} bytes)"
    return f"{count} bytes"


def printable(text: str) -> str:
    """Escape what a terminal would obey: names in an image are written by strangers."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add ``--output``."""
    parser.add_argument(
        "--output", choices=("human", "json"), default="human", help="how to write the answer"
    )


def add_quiet(parser: argparse.ArgumentParser) -> None:
    """Add ``-p`` and ``-q``."""
    parser.add_argument("-p", "--progress", action="store_true", help="show progress from the start")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress and no report")


def add_dry_run(parser: argparse.ArgumentParser) -> None:
    """Add ``--dry-run``."""
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be changed, and change nothing"
    )


def add_input(parser: argparse.ArgumentParser) -> Any:
    """Add ``-i``, and return the group of what takes its place."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "-i",
        "--from",
        dest="source",
        default="-",
        metavar="FILE",
        help="take the bytes from this file; from standard input without it, and for -",
    )
    return group


def add_open(parser: argparse.ArgumentParser, *, alone: bool = True, salvage: bool = False) -> None:
    """Add the options of `pyvhdx.open`; *salvage* is for commands that only read."""
    group = add_parents(parser, alone=alone)
    group.add_argument(
        "--log",
        choices=("auto", "refuse"),
        default="auto",
        help="what to do with a pending log: replay (in memory, where the file is only read), or stop",
    )
    if salvage:
        group.add_argument(
            "--salvage", action="store_true", help="open a broken file too, and read what is certain"
        )


def add_parents(parser: argparse.ArgumentParser, *, alone: bool = True) -> Any:
    """Add the options of `pyvhdx.open` that are about parents and locks, and return their group."""
    group = parser.add_argument_group("opening")
    choice = group.add_mutually_exclusive_group()
    choice.add_argument(
        "--parent", metavar="FILE", help="take this file as the parent, whatever the locator says"
    )
    if alone:
        choice.add_argument("--no-parent", action="store_true", help="open this file alone")
    group.add_argument(
        "--search", metavar="DIR", action="append", default=[], help="look for parents in this folder too"
    )
    group.add_argument(
        "--allow-absolute",
        metavar="DIR",
        action="append",
        default=[],
        help="follow absolute paths of a locator into this folder",
    )
    group.add_argument("--within", metavar="DIR", help="refuse parents outside this folder")
    group.add_argument(
        "--no-verify-parent",
        action="store_true",
        help="open a parent that was changed since the child was made",
    )
    group.add_argument("-U", "--force-share", action="store_true", help="open without locks")
    return group


def how(parsed: argparse.Namespace) -> dict[str, Any]:
    """Return the keyword arguments for `pyvhdx.open`."""
    parent: Any = parsed.parent or ("auto" if not getattr(parsed, "no_parent", False) else False)
    salvage = {"salvage": True} if getattr(parsed, "salvage", False) else {}
    return salvage | {
        "parent": parent,
        "search": parsed.search,
        "allow_absolute": parsed.allow_absolute,
        "within": parsed.within,
        "verify_parent": not parsed.no_verify_parent,
        "log": parsed.log,
        "lock": not parsed.force_share,
    }


@contextlib.contextmanager
def to_change(parsed: argparse.Namespace) -> Iterator[VHDXImage]:
    """Give the image open for writing, with ``--dry-run`` for reading; all is durable when the block ends."""
    if parsed.no_verify_parent:
        raise RequestError("--no-verify-parent is for reading only: what is written belongs to one parent")
    image = open_image(parsed.image, "r" if parsed.dry_run else "r+", **how(parsed))
    try:
        yield image
        image.flush()
    except BaseException:
        # The first cause is what is told, and an interrupt stays one, whatever the close says of it.
        with contextlib.suppress(VHDXError, OSError):
            image.close()
        raise
    image.close()


def check_range(image: VHDXImage, offset: int, length: int) -> None:
    """Raise `RequestError` for a range that is not all on the disk."""
    if length < 0 or offset + length > image.size:
        raise RequestError(
            f"bytes {offset:#x} to {offset + max(length, 0):#x} are not all on the disk of {image.size:#x} bytes"
        )


def steps(offset: int, length: int) -> Iterator[tuple[int, int]]:
    """Yield (offset, length) of the parts between which progress is shown, one at least; no block is in two."""
    end = offset + length
    while True:
        stop = min(end, (offset // _STEP + 1) * _STEP)
        yield offset, stop - offset
        if stop == end:
            return
        offset = stop


@contextlib.contextmanager
def opened_input(parsed: argparse.Namespace) -> Iterator[IO[bytes]]:
    """Give what ``-i`` names."""
    if parsed.source != "-":
        with open(parsed.source, "rb") as file:
            yield file
    elif sys.stdin is None:
        raise RequestError("standard input is closed, and the bytes are to come from there")
    else:
        yield sys.stdin.buffer


def read_input(file: IO[bytes], size: int) -> bytes:
    """Return the next *size* bytes; fewer only at the end."""
    data: bytes | None = file.read(size)
    if data is None:
        raise BlockingIOError(errno.EAGAIN, "the input is set not to block, and has nothing to read now")
    return data


def print_json(value: Any, file: Any = None) -> None:
    """Write *value* as JSON."""
    json.dump(value, file or sys.stdout, indent=4)
    print(file=file or sys.stdout)


def print_json_list(values: Iterable[dict[str, Any]]) -> None:
    """Write a list as JSON, an element a line, as they come."""
    separator = "["
    for value in values:
        print(separator + json.dumps(value), end="")
        separator = ",\n"
    print("]" if separator != "[" else "[]")


class StandardOutput:
    """Standard output from here on: written in order, also where it is a file or a device."""

    name = "<stdout>"

    def seekable(self) -> bool:
        return False

    def write(self, data: memoryview) -> int:
        return sys.stdout.buffer.write(data)

    def flush(self) -> None:
        sys.stdout.buffer.flush()

    def fileno(self) -> int:
        return sys.stdout.buffer.fileno()


class Progress:
    """A line on the terminal, from the third second on; nothing where stderr is no terminal."""

    def __init__(self, parsed: argparse.Namespace) -> None:
        self._shown = False
        self._next = time.monotonic() + (0 if parsed.progress else 2)
        self._wanted = not parsed.quiet and sys.stderr.isatty()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._wanted and now >= self._next:
            self._next = now + 0.2
            self._shown = True
            text = f"{100 * done / total:.1f} %" if total else human(done)
            print(f"\r\x1b[K    {text}", end="", file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
