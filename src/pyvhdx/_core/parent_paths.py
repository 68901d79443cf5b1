"""
Paths in parent locators (MS-VHDX 2.6.2.6.3): which files they can mean here, and how to write them.

Locators hold Windows paths and are written by strangers.  Nothing here looks at a disk; *flavour*
is `ntpath` or `posixpath`, the path module of the machine that reads or writes.
"""

from __future__ import annotations

import ntpath
import posixpath
import re
from typing import TYPE_CHECKING, NamedTuple

from pyvhdx.format import locator as form

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from types import ModuleType

_VOLUME = re.compile(r"\\\\[?.]\\Volume\{[^}]*\}\\", re.IGNORECASE)


class Candidate(NamedTuple):
    """
    A path that may be the parent's.

    `text` is how it is named in the locator, `path` where to look, None with the reason in `why` if
    it means nothing on this machine.  `absolute` paths need the caller's leave.
    """

    text: str
    path: str | None
    absolute: bool
    why: str = ""


def candidates(
    locator: Mapping[str, str], folders: Iterable[str], search: Iterable[str], flavour: ModuleType
) -> Iterator[Candidate]:
    """
    Yield the candidates in the specification's order, then the file's name in each *search* folder.

    *folders* are those that the child lies in: as it was named, and with links resolved.
    """
    folders = list(folders)
    names = []
    for key in (form.RELATIVE_PATH, form.VOLUME_PATH, form.ABSOLUTE_WIN32_PATH):
        text = locator.get(key)
        if not text:
            continue
        name = ntpath.basename(text.replace("/", "\\"))
        if name not in ("", ".", "..") and name not in names:
            names.append(name)
        if key == form.RELATIVE_PATH and not _is_absolute(text):
            if not folders:
                yield Candidate(text, None, False, "the folder of the child is not known")
            for folder in folders:
                yield Candidate(text, flavour.join(folder, _here(text, flavour)), False)
        else:
            yield _absolute(text, flavour)
    if flavour is ntpath:  # there a colon in a name leads to another drive, or into a stream
        names = [name for name in names if ":" not in name]
    for folder in search:
        for name in names:
            yield Candidate(name, flavour.join(folder, name), False)


def _is_absolute(text: str) -> bool:
    """Return whether a Windows path leaves the folder it is read in by anything but '..'."""
    return bool(ntpath.splitdrive(text)[0]) or text[:1] in ("\\", "/")


def _here(text: str, flavour: ModuleType) -> str:
    # A second separator behind the dot must not become a root.
    return text if flavour is ntpath else text.replace("\\", "/").removeprefix("./").lstrip("/")


def _absolute(text: str, flavour: ModuleType) -> Candidate:
    if flavour is ntpath:
        return Candidate(text, text, True)
    if _VOLUME.match(text):
        return Candidate(text, None, True, "it names a Windows volume")
    bare = text.removeprefix("\\\\?\\")
    if ntpath.splitdrive(bare)[0] or bare.startswith("UNC\\"):
        return Candidate(text, None, True, "it names a Windows drive or share")
    return Candidate(text, posixpath.join("/", _here(bare, flavour)), True)


def place_of(path: str, flavour: ModuleType) -> str | None:
    """
    Return an absolute path in the form of a folder's, to compare the two before any look at a disk.

    None for one that names a Windows volume, of which only the system knows the place.
    """
    if flavour is ntpath:
        if _VOLUME.match(path):
            return None
        if path[:8].upper() == "\\\\?\\UNC\\":
            path = "\\\\" + path[8:]
        elif path.startswith("\\\\?\\"):
            path = path[4:]
    normal: str = flavour.normpath(path)
    return normal


def paths_to(parent: str, folder: str, flavour: ModuleType) -> dict[str, str]:
    """
    Return the path entries for a child in *folder*; both paths are absolute, with links resolved.

    The relative path begins with a dot and a backslash, as Windows and its readers expect; it is
    left out where the two lie on different drives.  The absolute one is written on Windows only:
    elsewhere there is no Windows path to write.
    """
    paths = {}
    if flavour is ntpath:
        bare = parent.removeprefix("\\\\?\\")
        if bare.startswith("\\\\"):
            bare = "UNC" + bare[1:]
        paths[form.ABSOLUTE_WIN32_PATH] = "\\\\?\\" + bare
    try:
        relative = flavour.relpath(parent, folder)
    except ValueError:  # on another drive
        return paths
    relative = relative.replace("/", "\\")
    paths[form.RELATIVE_PATH] = relative if relative.startswith("..\\") else ".\\" + relative
    return paths
