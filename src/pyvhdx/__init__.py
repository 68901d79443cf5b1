"""Read and write Microsoft VHDX virtual disks in pure Python."""

from pyvhdx._core.locator import ParentLocator
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
from pyvhdx.image import Extent, ImageInfo, VHDXImage
