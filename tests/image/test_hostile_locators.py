"""A locator is written by a stranger: it opens no file of the reader's machine that the caller did not allow."""

from __future__ import annotations

import ntpath
import os
import stat
import struct
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import pyvhdx
from pyvhdx._core.parent_paths import candidates, place_of
from pyvhdx.storage import local
from tests.corpus.handmade import locator_item
from tests.corpus.hostile_tree import HostileTree, Opened
from tests.fuzz.oracle import limited

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="watches as Linux does")

UP = "..\\" * 20
ELSEWHERE = [
    UP + "etc\\passwd",
    UP + "proc\\self\\environ",
    UP + "proc\\self\\mem",
    UP + "proc\\self\\root\\etc\\passwd",
    UP + "proc\\self\\fd\\0",
    UP + "dev\\zero",
    UP + "dev\\stdin",
    UP + "dev\\tty",
    UP,
    "..\\outside\\base.vhdx",
    "folder\\..\\..\\outside\\base.vhdx",
    ".\\link.vhdx",
    "out\\base.vhdx",
    "out/base.vhdx",
    "loop",
    "loop\\..\\..\\outside\\base.vhdx",
    "pipe",
    "zero",
    "folder",
    ".",
    "child.vhdx\\base.vhdx",
]
ABSOLUTE = [
    "{outside}/base.vhdx",
    "\\\\?\\{outside}/base.vhdx",
    "//{outside}/base.vhdx",
    "\\{outside}\\base.vhdx",
    "{allowed}/../outside/base.vhdx",
    "{allowed}\\..\\outside\\base.vhdx",
    "{allowed}x/base.vhdx",
    "{work}/out/base.vhdx",
    "/etc/passwd",
    "/dev/zero",
    "/proc/self/environ",
    "\\\\server\\share\\base.vhdx",
    "\\\\?\\UNC\\server\\share\\base.vhdx",
    "\\\\.\\PhysicalDrive0",
    "\\\\?\\GLOBALROOT\\Device\\Harddisk0",
    "\\\\?\\Volume{{12345678-1234-1234-1234-123456789abc}}\\base.vhdx",
    "file:///etc/passwd",
    "C:\\base.vhdx",
]


@pytest.fixture
def tree(tmp_path: Path) -> HostileTree:
    return HostileTree(tmp_path.resolve())


def try_to_open(tree: HostileTree, **how: Any) -> tuple[str | None, list[Opened]]:
    """Return the parent that was taken, and everything that was opened on the way."""
    with tree.watch() as opened:
        try:
            with pyvhdx.open(tree.child, **how) as image:
                assert image.parent is not None
                return image.parent.name, opened
        except pyvhdx.ParentError:
            return None, opened


@pytest.mark.parametrize("path", ELSEWHERE)
def test_within_a_folder_no_path_leads_out(path: str, tree: HostileTree) -> None:
    tree.set_paths(relative_path=path)
    taken, opened = try_to_open(tree, within=tree.work)
    assert taken is None
    tree.assert_all_within(opened, tree.work)
    tree.assert_only_regular(opened)


@pytest.mark.parametrize("key", ["relative_path", "absolute_win32_path", "volume_path"])
@pytest.mark.parametrize("path", ABSOLUTE)
def test_no_absolute_path_is_followed_that_was_not_allowed(path: str, key: str, tree: HostileTree) -> None:
    path = path.format(outside=tree.outside, allowed=tree.allowed, work=tree.work)
    tree.set_paths(**{key: path})
    for how in ({}, {"allow_absolute": [tree.allowed]}, {"allow_absolute": [tree.allowed, tree.work]}):
        taken, opened = try_to_open(tree, **how)
        assert taken is None
        assert [entry.path for entry in opened if stat.S_ISREG(entry.mode)] == [str(tree.child)]


@pytest.mark.parametrize("path", ["/unknown/base.vhdx", "/etc/passwd"])
def test_what_is_not_allowed_is_not_even_looked_at(
    path: str, tree: HostileTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Windows, to resolve the path of a network share is to log in there."""
    tree.set_paths(absolute_win32_path=path)
    looked_at: list[str] = []
    for name in ("lstat", "stat", "readlink", "open"):
        plain = getattr(os, name)

        def noting(what: Any, *rest: Any, plain: Any = plain, **how: Any) -> Any:
            looked_at.append(str(what))
            return plain(what, *rest, **how)

        monkeypatch.setattr(os, name, noting)
    with pytest.raises(pyvhdx.ParentNotFoundError, match="allow_absolute"):
        pyvhdx.open(tree.child, allow_absolute=[tree.allowed])
    assert str(tree.child) in looked_at
    assert not any(what.startswith(path[:4]) for what in looked_at)


def test_a_folder_is_allowed_by_the_name_that_the_caller_gave_it(tree: HostileTree) -> None:
    link = tree.root / "by-link"
    link.symlink_to(tree.allowed)
    for named in (link, tree.allowed):
        tree.set_paths(absolute_win32_path=f"{named}/base.vhdx")
        assert try_to_open(tree, allow_absolute=[link])[0] == str(tree.allowed / "base.vhdx")
    tree.set_paths(absolute_win32_path=f"{link}/../outside/base.vhdx")
    assert try_to_open(tree, allow_absolute=[link])[0] is None


def test_nothing_is_opened_that_is_no_regular_file(tree: HostileTree) -> None:
    """Not even to see what it is: opening a tape rewinds it, and opening a pipe lets its writer go on."""
    for path in ("pipe", "zero", "folder", "loop", UP + "dev\\zero", UP + "dev\\ptmx", UP + "dev\\null"):
        tree.set_paths(relative_path=path)
        taken, opened = try_to_open(tree)
        assert taken is None
        tree.assert_only_regular(opened)


def test_a_pipe_that_takes_the_place_of_a_file_does_not_hold_us_up(
    tree: HostileTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look and the open, which is why the open does not wait, and what is open is looked at."""
    tree.set_paths(relative_path="base.vhdx")
    plain = os.stat

    def stat_and_swap(path: Any, *rest: Any, **how: Any) -> os.stat_result:
        found = plain(path, *rest, **how)
        if path == "base.vhdx":
            (tree.work / "base.vhdx").unlink()
            os.mkfifo(tree.work / "base.vhdx")
        return found

    monkeypatch.setattr(os, "stat", stat_and_swap)
    with pytest.raises(pyvhdx.ParentNotFoundError, match="not a regular file"):
        pyvhdx.open(tree.child)


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_link_that_is_put_there_after_the_look_is_not_followed(
    what: str, tree: HostileTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree.work / "inner").mkdir()
    (tree.work / "base.vhdx").rename(tree.work / "inner" / "base.vhdx")
    tree.set_paths(relative_path="inner\\base.vhdx")
    assert try_to_open(tree, within=tree.work)[0] == str(tree.work / "inner" / "base.vhdx")
    plain = local.open_local

    def swap_and_open(path: Any, **how: Any) -> Any:
        if os.path.basename(path) == "base.vhdx":
            if what == "file":
                os.replace(path, tree.root / "moved")
                os.symlink(tree.outside / "base.vhdx", path)
            else:
                os.rename(tree.work / "inner", tree.work / "was-inner")
                os.symlink(tree.outside, tree.work / "inner")
        return plain(path, **how)

    monkeypatch.setattr("pyvhdx.chain.open_local", swap_and_open)
    taken, opened = try_to_open(tree, within=tree.work)
    assert taken is None
    tree.assert_all_within(opened, tree.work)


@pytest.mark.slow
def test_a_folder_that_is_swapped_all_the_time_never_leads_out(tree: HostileTree) -> None:
    """A race for real: another thread exchanges the folder and a link out of `within`."""
    inner, aside, link = (tree.work / name for name in ("inner", "aside", "lnk"))
    inner.mkdir()
    (tree.work / "base.vhdx").rename(inner / "base.vhdx")
    tree.set_paths(relative_path="inner\\base.vhdx")
    link.symlink_to("../outside")
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            os.rename(inner, aside)
            os.rename(link, inner)
            os.rename(inner, link)
            os.rename(aside, inner)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        until = time.monotonic() + 3
        outcomes = set()
        while time.monotonic() < until:
            taken, opened = try_to_open(tree, within=tree.work, lock=False)
            tree.assert_all_within(opened, tree.work)
            outcomes.add(taken is None)
        assert outcomes
    finally:
        stop.set()
        thread.join()


def test_a_file_of_the_machine_does_not_show_in_the_message(tree: HostileTree) -> None:
    """A service may hand the message back to who sent the image."""
    (tree.root / "secret").write_bytes(b"s3cr3t-k3y" * 100)
    tree.set_paths(relative_path="..\\secret")
    with pytest.raises(pyvhdx.ParentNotFoundError) as caught:
        pyvhdx.open(tree.child)
    assert "nothing else is recognised" in str(caught.value)
    assert "s3cr" not in str(caught.value) + repr(caught.value.tried)


@pytest.mark.parametrize(
    "path",
    ["\udc80".encode("utf-16-le", "surrogatepass"), b"\x00\xd8", b"a\0\0\0b\0", b"\0\0", b"\xff"],
    ids=["low surrogate", "high surrogate", "NUL inside", "only NUL", "odd"],
)
def test_strings_that_are_no_text_are_refused(path: bytes, tree: HostileTree) -> None:
    item = bytearray(locator_item({"parent_linkage": tree.linkage, "relative_path": "x"}))
    struct.pack_into("<I", item, 20 + 12 + 4, len(item))
    struct.pack_into("<H", item, 20 + 12 + 10, len(path))
    tree.set_locator(bytes(item) + path)
    with pytest.raises(pyvhdx.CorruptImageError) as caught:
        pyvhdx.open(tree.child)
    assert caught.value.code == "LOCATOR-STRING"


@pytest.mark.parametrize(
    "path", ["a\\" * 16000, "..\\" * 10000, "x" * 32767, "a\\..\\" * 6000, "\u00e9" * 9000]
)
def test_very_long_paths_are_not_found_soon(path: str, tree: HostileTree) -> None:
    tree.set_paths(relative_path=path, absolute_win32_path=path, volume_path=path)
    with limited(), pytest.raises(pyvhdx.ParentError):
        pyvhdx.open(tree.child, search=[tree.search], allow_absolute=["/"])


def test_names_that_this_system_cannot_encode_are_not_found(
    tree: HostileTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.set_paths(relative_path="\u0416.vhdx")

    def cannot(path: Any, *_: Any, **__: Any) -> Any:
        raise UnicodeEncodeError("ascii", str(path), 0, 1, "ordinal not in range")

    monkeypatch.setattr(os.path, "realpath", lambda p, **_: cannot(p) if "\u0416" in str(p) else str(p))
    with pytest.raises(pyvhdx.ParentNotFoundError):
        pyvhdx.open(tree.child)


class TestOnWindows:
    """The pure part, for the system whose paths these are."""

    @pytest.mark.parametrize(
        ("path", "place"),
        [
            ("\\\\?\\C:\\vm\\base.vhdx", "C:\\vm\\base.vhdx"),
            ("\\\\?\\C:\\vm\\..\\other\\base.vhdx", "C:\\other\\base.vhdx"),
            ("\\\\?\\UNC\\server\\share\\base.vhdx", "\\\\server\\share\\base.vhdx"),
            ("\\\\?\\unc\\server\\share\\base.vhdx", "\\\\server\\share\\base.vhdx"),
            ("\\\\server\\share\\x\\..\\base.vhdx", "\\\\server\\share\\base.vhdx"),
            ("\\\\?\\Volume{12345678-1234-1234-1234-123456789abc}\\base.vhdx", None),
        ],
    )
    def test_the_place_of_a_path_is_known_without_a_look(self, path: str, place: str | None) -> None:
        assert place_of(path, ntpath) == place

    @pytest.mark.parametrize("name", ["C:base.vhdx", "base.vhdx:stream", ".:.", "x:"])
    def test_a_colon_in_a_name_leads_out_of_no_folder_that_is_searched(self, name: str) -> None:
        """Found by the fuzzer: `ntpath.join` takes what has a colon behind one letter for a drive."""
        for path in (f"..\\{name}", f"\\\\server\\share\\{name}"):
            found = list(candidates({"relative_path": path}, ["D:\\vm"], ["D:\\more"], ntpath))
            assert not [one for one in found if not one.absolute and not one.path.startswith("D:\\")]  # type: ignore[union-attr]  # folders are known
