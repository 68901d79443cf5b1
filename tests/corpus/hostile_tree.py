"""
A folder with everything that a path must not lead to, a child in the middle of it, and a watch.

::

    work/    child.vhdx, its parent base.vhdx, and ways out: link.vhdx, out, loop, pipe, folder
    outside/ base.vhdx, which would fit as well
    allowed/ base.vhdx, for those who allow it
    more/    base.vhdx, to be searched
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import stat
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.corpus.handmade import METADATA_AT, MIB, Image, locator_item

if TYPE_CHECKING:
    from collections.abc import Iterator


class Opened(NamedTuple):
    """Something that was opened: how it was named, and what it is."""

    named: str
    path: str
    mode: int


class HostileTree:
    """The folder; *root* must have no link in its path."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.work, self.outside = root / "work", root / "outside"
        self.allowed, self.search = root / "allowed", root / "more"
        for folder in (self.work, self.outside, self.allowed, self.search):
            folder.mkdir()
        base = Image(6 * MIB, tag=4)
        base.write(self.work / "base.vhdx")
        for folder in (self.outside, self.allowed, self.search):
            shutil.copy(self.work / "base.vhdx", folder / "base.vhdx")
        self.linkage = f"{{{base.data_write_guid}}}"
        self.child = self.work / "child.vhdx"
        self._image = Image(6 * MIB, kind="differencing", parent=base, tag=5)
        self._image.write(self.child)
        (self.work / "link.vhdx").symlink_to("../outside/base.vhdx")
        (self.work / "out").symlink_to("../outside")
        (self.work / "loop").symlink_to("loop")
        (self.work / "folder").mkdir()
        os.mkfifo(self.work / "pipe")
        (self.work / "zero").symlink_to("/dev/zero")

    def set_locator(self, item: bytes) -> None:
        """Give the child another locator item."""
        at = 65536 + 40
        with self.child.open("r+b") as file:
            file.seek(METADATA_AT + 32 + 32 * 5 + 16)
            file.write(struct.pack("<II", at if item else 0, len(item)))
            file.seek(METADATA_AT + at)
            file.write(item)

    def set_paths(self, **paths: str) -> None:
        """Give the child a locator with these paths."""
        self.set_locator(locator_item({"parent_linkage": self.linkage, **paths}))

    @contextlib.contextmanager
    def watch(self) -> Iterator[list[Opened]]:
        """
        Note everything that is opened meanwhile, by what the descriptor leads to (Linux).

        The audit hook of the interpreter sees every way to open a file; what it saw must have been noted.
        """
        opened: list[Opened] = []
        tried: list[str] = []
        plain = os.open

        def noting(path: Any, flags: int, *rest: Any, **how: Any) -> int:
            tried.append(os.fsdecode(path))
            descriptor = plain(path, flags, *rest, **how)
            where, mode = os.readlink(f"/proc/self/fd/{descriptor}"), os.fstat(descriptor).st_mode
            opened.append(Opened(tried[-1], where, mode))
            assert flags & os.O_NONBLOCK or stat.S_ISDIR(mode), "opened so that it may wait"
            return descriptor

        audited: list[str] = []
        _install_hook()
        _watchers.append(audited)
        os.open = noting
        try:
            yield opened
        finally:
            os.open = plain
            _watchers.remove(audited)
        unseen = set(audited) - set(tried)
        assert all(name.endswith((".py", ".pyc")) for name in unseen), unseen

    def assert_all_within(self, opened: list[Opened], folder: Path) -> None:
        """Raise where a file was opened that is neither the child nor in *folder*."""
        for entry in opened:
            if not stat.S_ISDIR(entry.mode):
                assert entry.path == str(self.child) or Path(entry.path).is_relative_to(folder), entry

    @staticmethod
    def assert_only_regular(opened: list[Opened]) -> None:
        """Raise where anything was opened but regular files, and folders on the way to them."""
        for entry in opened:
            assert stat.S_ISREG(entry.mode) or stat.S_ISDIR(entry.mode), entry


_watchers: list[list[str]] = []


@functools.cache
def _install_hook() -> None:
    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and _watchers and isinstance(arguments[0], (str, bytes)):
            for names in _watchers:
                names.append(os.fsdecode(arguments[0]))

    sys.addaudithook(hook)  # there is no way to take one out again
