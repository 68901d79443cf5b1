"""Sizes, places, signatures and GUIDs of the format, with the section of MS-VHDX that sets them."""

from __future__ import annotations

from enum import IntEnum
from uuid import UUID

KIB = 1 << 10
MIB = 1 << 20
TIB = 1 << 40

# 2.1, 2.2: the header section is the first MiB; everything after it is MiB-aligned.
ALIGNMENT = MIB
HEADER_SECTION_SIZE = MIB
IDENTIFIER_OFFSET = 0
HEADER_OFFSETS = (64 * KIB, 128 * KIB)
REGION_TABLE_OFFSETS = (192 * KIB, 256 * KIB)

# 2.2.1
IDENTIFIER_SIGNATURE = b"vhdxfile"
CREATOR_SIZE = 512

# 2.2.2
HEADER_SIGNATURE = b"head"
HEADER_SIZE = 4096
FORMAT_VERSION = 1
LOG_VERSION = 0

# 2.2.3
REGION_SIGNATURE = b"regi"
REGION_TABLE_SIZE = 64 * KIB
MAX_REGION_ENTRIES = 2047
BAT_REGION = UUID("2dc27766-f623-4200-9d64-115e9bfd4a08")
METADATA_REGION = UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e")

# 2.3
LOG_SECTOR_SIZE = 4096
LOG_ENTRY_SIGNATURE = b"loge"
DATA_DESCRIPTOR_SIGNATURE = b"desc"
ZERO_DESCRIPTOR_SIGNATURE = b"zero"
DATA_SECTOR_SIGNATURE = b"data"
# Nothing below the region tables is ever logged: the headers protect themselves.
LOWEST_LOG_TARGET = REGION_TABLE_OFFSETS[0]
# No file is larger: a BAT entry of a sane file points below this.
MAX_FILE_SIZE = 256 * TIB

# 2.4: one bit per logical sector in sector bitmap blocks of 1 MiB
SECTOR_BITMAP_SIZE = MIB
SECTORS_PER_CHUNK = 1 << 23

# 2.5.1
BAT_ENTRY_SIZE = 8
STATE_MASK = 0x7
RESERVED_MASK = 0xFFFF8
OFFSET_MASK = 0xFFFF_FFFF_FFF0_0000

# 2.6
METADATA_SIGNATURE = b"metadata"
METADATA_TABLE_SIZE = 64 * KIB
MAX_METADATA_ENTRIES = 2047
MAX_USER_ENTRIES = 1024
MAX_SYSTEM_ENTRIES = 1023
MAX_ITEM_SIZE = MIB

FILE_PARAMETERS = UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
VIRTUAL_DISK_SIZE = UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
VIRTUAL_DISK_ID = UUID("beca12ab-b2e6-4523-93ef-c309e000c746")
LOGICAL_SECTOR_SIZE = UUID("8141bf1d-a96f-4709-ba47-f233a8faab5f")
PHYSICAL_SECTOR_SIZE = UUID("cda348c7-445d-4471-9cc9-e9885251c556")
PARENT_LOCATOR = UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c")
# Not in MS-VHDX, but known to Microsoft's OpenVMM.
CHS_PARAMETERS = UUID("da02d7bc-3d3a-423c-ac88-2a36ab21479b")
INCOMPLETE_FILE = UUID("71cc85f0-1b69-4e28-9558-c3bf83ae75d3")
PMEM_LABEL_STORAGE = UUID("10e1ae8a-4b7e-4169-a40f-cd70de928393")

# 2.6.2.1 to 2.6.2.5
MIN_BLOCK_SIZE = MIB
MAX_BLOCK_SIZE = 256 * MIB
MAX_VIRTUAL_SIZE = 64 * TIB
SECTOR_SIZES = (512, 4096)

# 2.6.2.6
VHDX_LOCATOR_TYPE = UUID("b04aefb7-d19e-4a81-b789-25b8e9445913")
MAX_LOCATOR_ENTRIES = 256

MAX_CHAIN_DEPTH = 256

ZERO_GUID = UUID(int=0)


class PayloadState(IntEnum):
    """What a payload entry of the BAT says of its block (2.5.1.1)."""

    NOT_PRESENT = 0
    UNDEFINED = 1
    ZERO = 2
    UNMAPPED = 3
    FULLY_PRESENT = 6
    PARTIALLY_PRESENT = 7


class BitmapState(IntEnum):
    """What a sector bitmap entry of the BAT says of its block (2.5.1.2)."""

    NOT_PRESENT = 0
    PRESENT = 6


def round_up(value: int, step: int) -> int:
    """Return the smallest multiple of *step* that is not below *value*."""
    return -(-value // step) * step
