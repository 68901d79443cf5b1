"""
Parent locators: the bytes of the item, the paths that are made of it, and the files that are opened.

The first byte chooses; then the bytes of an item, or the paths of one, separated by newlines.
"""

from __future__ import annotations

import atexit
import functools
import ntpath
import posixpath
import shutil
import tempfile
from pathlib import Path

import pyvhdx
from pyvhdx._core.locator import read_locator
from pyvhdx._core.parent_paths import candidates
from tests.corpus.handmade import METADATA_AT, locator_item
from tests.corpus.hostile_tree import HostileTree
from tests.corpus.specimens import specimens

_KEYS = ("relative_path", "absolute_win32_path", "volume_path")
_ITEM, _PATHS = 0, 1
_WITHIN, _ALLOW, _SEARCH = 4, 8, 16
_PLACES = [
    "base.vhdx", ".\\base.vhdx", "..\\outside\\base.vhdx", "out\\base.vhdx", "link.vhdx", "loop", "pipe", "folder",
    "..\\work\\.\\..\\work\\base.vhdx", "/etc/passwd", "\\\\?\\C:\\base.vhdx", "\\\\server\\share\\base.vhdx",
    "\\\\?\\Volume{12345678-1234-1234-1234-123456789abc}\\base.vhdx", "\\\\.\\pipe\\x", "C:base.vhdx",
    "..\\" * 12 + "proc\\self\\environ", "..\\" * 12 + "dev\\zero", "\\\\?\\UNC\\server\\share\\x", "a\\" * 200, "",
]  # fmt: skip


@functools.cache
def _tree() -> HostileTree:
    folder = tempfile.mkdtemp(prefix="pyvhdx-fuzz-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return HostileTree(Path(folder).resolve())


def seeds() -> list[bytes]:
    """Return the locators of the specimens, and a path of each kind under each key."""
    children = [specimen for specimen in specimens() if specimen.parent is not None]
    made = [b"", *(bytes((_ITEM,)) + child.image.locator_item() for child in children)]
    made.append(bytes((_ITEM,)) + locator_item({f"k{n}": "v" * n for n in range(1, 30)}))
    for number, path in enumerate(_PLACES):
        for key in range(len(_KEYS)):
            flags = (_WITHIN, _ALLOW, _SEARCH, _WITHIN | _ALLOW | _SEARCH)[number % 4]
            made.append(bytes((_PATHS | flags,)) + b"\n" * key + path.encode())
    return made


def try_locator(data: bytes) -> str:
    """Read an item, make paths of it for both kinds of systems, and open what they name."""
    flags, rest = (data[0], data[1:]) if data else (0, b"")
    item = _item_of_paths(rest) if flags & _PATHS else rest
    try:
        locator = read_locator(item, METADATA_AT)
    except pyvhdx.VHDXError as error:
        assert str(error)
        return f"refused: {getattr(error, 'code', '')}"
    assert 0 < len(locator) <= 256
    assert locator.linkages
    for flavour, folder in ((posixpath, "/srv/work"), (ntpath, "D:\\work")):
        for candidate in candidates(locator, [folder], ["/srv/more"], flavour):
            if candidate.path is not None and not candidate.absolute:
                assert candidate.path.startswith((folder, "/srv/more")), candidate
            if flavour is posixpath and candidate.path is not None:
                assert posixpath.isabs(candidate.path)
    tree = _tree()
    tree.set_locator(item)
    with tree.watch() as opened:
        try:
            with pyvhdx.open(
                tree.child,
                within=tree.work if flags & _WITHIN else None,
                allow_absolute=[tree.allowed] if flags & _ALLOW else [],
                search=[tree.search] if flags & _SEARCH else [],
                lock=False,
            ) as image:
                outcome = f"opened {image.chain[-1].name.removeprefix(str(tree.root))}"
        except pyvhdx.VHDXError as error:
            assert str(error)
            outcome = type(error).__name__
    if flags & _WITHIN:
        tree.assert_all_within(opened, tree.work)
    tree.assert_only_regular(opened)
    return outcome


def _item_of_paths(data: bytes) -> bytes:
    paths = data.decode("utf-8", "replace").replace("\0", "?").split("\n")
    pairs = {"parent_linkage": f"{{{specimens()[3].image.parent.data_write_guid}}}"}  # type: ignore[union-attr]  # a child has one
    return locator_item(pairs | {k: p[:9000] for k, p in zip(_KEYS, paths, strict=False) if p})
