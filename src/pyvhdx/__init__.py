"""Read, write and make Microsoft VHDX virtual disks in pure Python."""

from pyvhdx._core.locator import ParentLocator
from pyvhdx._core.repairs.plan import Loss
from pyvhdx._core.trim import TrimMode
from pyvhdx._version import __version__
from pyvhdx.chain import is_vhdx, open
from pyvhdx.errors import (
    CorruptImageError,
    Finding,
    ImageError,
    ImageFailedError,
    LockedError,
    LogPendingError,
    NotVHDXError,
    ParentCycleError,
    ParentError,
    ParentMismatchError,
    ParentNotFoundError,
    RequestError,
    StateError,
    UnsupportedImageError,
    VHDXError,
)
from pyvhdx.image import VHDXImage
from pyvhdx.info import Extent, ImageInfo
from pyvhdx.ops.check import CheckReport, check
from pyvhdx.ops.convert import ConvertReport, convert
from pyvhdx.ops.create import create
from pyvhdx.ops.repair import Remaining, Repaired, RepairReport, repair
from pyvhdx.ops.salvage import SalvageReport, UnreadableRange, salvage
from pyvhdx.ops.undo import UndoReport, undo_repair
from pyvhdx.user_metadata import UserMetadata

__all__ = [
    "CheckReport",
    "ConvertReport",
    "CorruptImageError",
    "Extent",
    "Finding",
    "ImageError",
    "ImageFailedError",
    "ImageInfo",
    "LockedError",
    "LogPendingError",
    "Loss",
    "NotVHDXError",
    "ParentCycleError",
    "ParentError",
    "ParentLocator",
    "ParentMismatchError",
    "ParentNotFoundError",
    "Remaining",
    "RepairReport",
    "Repaired",
    "RequestError",
    "SalvageReport",
    "StateError",
    "TrimMode",
    "UndoReport",
    "UnreadableRange",
    "UnsupportedImageError",
    "UserMetadata",
    "VHDXError",
    "VHDXImage",
    "__version__",
    "check",
    "convert",
    "create",
    "is_vhdx",
    "open",
    "repair",
    "salvage",
    "undo_repair",
]
