"""The file of this machine that a storage shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvhdx.storage.local import LocalFile
from pyvhdx.storage.rehearsal import Rehearsal
from pyvhdx.storage.wrapper import Lent

if TYPE_CHECKING:
    from pyvhdx.storage.protocol import Storage


def file_behind(storage: Storage) -> LocalFile | None:
    """Return the file that is open behind *storage*, as it is or as it is rehearsed; None where there is none."""
    while isinstance(storage, (Lent, Rehearsal)):
        storage = storage.storage if isinstance(storage, Lent) else storage.below
    return storage if isinstance(storage, LocalFile) else None
