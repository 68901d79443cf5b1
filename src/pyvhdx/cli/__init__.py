"""
The command ``pyvhdx``: one module for each sub-command.

Exit status: 0 done, 1 failed, 2 wrong use, 4 locked, 5 parent missing or wrong, 6 log pending and
refused, 130 interrupted.  `check` has its own, as qemu-img's has.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import signal
import sys
import threading
import warnings
from typing import TYPE_CHECKING, Any

from pyvhdx._version import __version__
from pyvhdx.cli import check, convert, create, dump, info, map, meta, read, repair, salvage, trim, write
from pyvhdx.cli.common import printable
from pyvhdx.errors import (
    CorruptImageError,
    LockedError,
    LogPendingError,
    ParentError,
    RequestError,
    VHDXError,
)
from pyvhdx.storage.locks import WITHOUT_LOCKS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_COMMANDS = (create, info, check, repair, map, read, write, trim, meta, convert, salvage, dump)

# They say themselves all that can be said of a file.
_THOROUGH = (check.run, repair.run, salvage.run)

# What sentences about a parameter begin with.
_PARAMETER = re.compile(
    r"^(?:disk_id|kind|seed|(?:block|log|logical_sector|physical_sector)_size)(?= (?:is|must) )"
)

# The first that fits counts.
_STATUS: tuple[tuple[type[BaseException], int], ...] = (
    (RequestError, 2),
    (LockedError, 4),
    (ParentError, 5),
    (LogPendingError, 6),
    (VHDXError, 1),
    (OSError, 1),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    _replace_closed_streams()
    parser = argparse.ArgumentParser(prog="pyvhdx", description="Read, write and make VHDX virtual disks.")
    parser.add_argument("--version", action="version", version=f"pyvhdx {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add_to(commands)
    for sub_parser in commands.choices.values():
        sub_parser.allow_abbrev = False  # `read --force` is not --force-share
    parsed, rest = parser.parse_known_args(arguments)
    _take_late(parser, parsed, rest)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file name need not be text
    try:
        with _sigterm_as_interrupt(), warnings.catch_warnings():
            warnings.simplefilter("always", UserWarning)
            warnings.simplefilter("always", RuntimeWarning)
            warnings.showwarning = _show_warning
            status: int | None = parsed.run(parsed)
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader has enough; Python must not complain when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("pyvhdx: interrupted", file=sys.stderr)
        return 130
    except (VHDXError, OSError) as error:
        print(f"pyvhdx: error: {printable(_sentence(error, parsed))}", file=sys.stderr)
        if hasattr(parsed, "failed"):  # other numbers mean something else there
            return int(parsed.failed)
        return next(number for kind, number in _STATUS if isinstance(error, kind))
    return status or 0


class _ClosedOutput(io.TextIOBase):
    """In place of a standard output that was closed."""

    @property
    def buffer(self) -> Any:
        return self

    def write(self, _: object) -> int:
        raise OSError("standard output is closed")


def _replace_closed_streams() -> None:
    """A stream that was closed is None, and nothing here expects that."""
    if sys.stdout is None:
        sys.stdout = _ClosedOutput()
    if sys.stderr is None:
        sys.stderr = io.StringIO()  # who closes it wants no messages


def _take_late(parser: argparse.ArgumentParser, parsed: argparse.Namespace, rest: list[str]) -> None:
    """Take optional arguments that stand behind an option, where argparse no longer looks for them."""
    wrong_use = getattr(parsed, "parser", parser).error
    for name, kind in getattr(parsed, "late", {}).items():
        if rest and not rest[0].startswith("-") and getattr(parsed, name) is None:
            try:
                setattr(parsed, name, kind(rest.pop(0)))
            except argparse.ArgumentTypeError as error:
                wrong_use(f"argument {name}: {error}")
    if rest:
        wrong_use(f"unrecognized arguments: {printable(' '.join(rest))}")


def _sentence(error: BaseException, parsed: argparse.Namespace) -> str:
    if isinstance(error, FileExistsError) and error.filename and hasattr(parsed, "force"):
        return f"{error.filename} exists; --force replaces it"
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    sentence = str(error)
    # What Python's parameters are called is no help here.
    if isinstance(error, LockedError):
        return sentence.replace(
            WITHOUT_LOCKS, ", or, if nothing writes to it, use -U" if hasattr(parsed, "force_share") else ""
        )
    if isinstance(error, CorruptImageError) and parsed.run not in _THOROUGH:
        return f"{sentence}; pyvhdx check says what else is wrong"
    sentence = sentence.replace('log="auto"', "--log auto")
    return _PARAMETER.sub(lambda found: "--" + found[0].replace("_", "-"), sentence)


def _show_warning(message: Any, *_: Any, **__: Any) -> None:
    print(f"pyvhdx: warning: {printable(str(message))}", file=sys.stderr)


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Let a polite kill clean up as an interrupt from the keyboard does."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
