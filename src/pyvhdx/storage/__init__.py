"""
Positional I/O, and nothing else: this package knows no byte of the VHDX format.

`Storage` is the seam.  `LocalFile` reads by descriptor, `FileObject` by seek and read under a
lock, `Overlay` shows a file as it will be once its log has been replayed, `Durable` counts the barriers
of a file that is written, and `Rehearsal` tries changes before they are carried out.
"""

from pyvhdx.storage.behind import file_behind
from pyvhdx.storage.durable import Durable
from pyvhdx.storage.file_object import (
    FileObject,
    can_read,
    can_seek,
    is_appending,
    open_file_object,
    refuse_no_file,
)
from pyvhdx.storage.local import LocalFile, open_local
from pyvhdx.storage.memory import MemoryStorage
from pyvhdx.storage.overlay import Overlay
from pyvhdx.storage.protocol import Storage, data_runs
from pyvhdx.storage.rehearsal import Rehearsal
from pyvhdx.storage.target import new_file, refuse_files_in_use
from pyvhdx.storage.wrapper import Forgiving, Wrapper

__all__ = [
    "Durable",
    "FileObject",
    "Forgiving",
    "LocalFile",
    "MemoryStorage",
    "Overlay",
    "Rehearsal",
    "Storage",
    "Wrapper",
    "can_read",
    "can_seek",
    "data_runs",
    "file_behind",
    "is_appending",
    "new_file",
    "open_file_object",
    "open_local",
    "refuse_files_in_use",
    "refuse_no_file",
]
