"""What a repair of a child must know of its parent."""

from __future__ import annotations

import ntpath
import os
import posixpath
from typing import TYPE_CHECKING

from pyvhdx._core.parent_paths import paths_to
from pyvhdx._core.repairs.locator import KnownParent
from pyvhdx.chain import open as open_image
from pyvhdx.errors import ImageError
from pyvhdx.image import VHDXImage
from pyvhdx.storage import file_behind

if TYPE_CHECKING:
    from pyvhdx.chain import ParentChoice
    from pyvhdx.storage import Storage

_FLAVOUR = ntpath if os.name == "nt" else posixpath


def known_parent(child: Storage, choice: ParentChoice, found: str | None) -> KnownParent | None:
    """
    Return what is known of the parent of *child*; None where it is not known.

    That is the one that the caller chose by a path or an open image, else the file *found* by its name.
    """
    named = isinstance(choice, VHDXImage) or (isinstance(choice, (str, os.PathLike)) and choice != "auto")
    if isinstance(choice, VHDXImage):
        return KnownParent(choice.data_write_guid, _paths(child, choice.name), named)
    path = choice if named else found
    if path is None:
        return None
    try:
        with open_image(path, parent=False) as parent:
            return KnownParent(parent.data_write_guid, _paths(child, os.fsdecode(path)), named)  # type: ignore[arg-type]  # the same
    except (OSError, ImageError):
        return None


def _paths(child: Storage, parent: str) -> dict[str, str]:
    """Return the paths from a child to its parent that a locator can hold; none where either has no path."""
    if file_behind(child) is None or not os.path.isfile(parent) or not os.path.isfile(child.name):
        return {}
    target = os.path.realpath(parent)
    folder = os.path.dirname(os.path.realpath(child.name))
    if _FLAVOUR is posixpath and "\\" in posixpath.relpath(target, folder):
        return {}  # a locator takes it for a separator
    paths = paths_to(target, folder, _FLAVOUR)
    try:
        "".join(paths.values()).encode("utf-16-le")
    except UnicodeEncodeError:
        return {}
    return paths
