"""
Every rule that `check` looks at: its code, and what breaking it means.

The rows are the numbers of the list of validations in ``docs/check.md``.  A code is a contract; the
strict readers use the same one where they raise, or tolerate, a break of the same rule.
"""

from __future__ import annotations

from typing import NamedTuple

CORRUPT, WARNING, NOTE = "corrupt", "warning", "note"


class Rule(NamedTuple):
    """
    One rule; `severities` are those that a break of it can have, the gravest first.

    `repairable` says whether `repair` can mend a break: ``"yes"`` without being told how, ``"choice"``
    when it is told, ``"some"`` where it depends on the finding, or ``"no"``.  `sentence` says what must hold.
    """

    code: str
    rows: tuple[int, ...]
    severities: tuple[str, ...]
    structure: str
    section: str
    repairable: str
    sentence: str


_YES, _CHOICE, _SOME, _NO = "yes", "choice", "some", "no"

# One rule a line, as a table.
# fmt: off
_ALL = (
    Rule("FILE-SIZE", (1,), (CORRUPT,), "file", "2.1", _NO, "The file is at least as long as its header section, and at most 256 TiB."),
    Rule("FILE-ALIGNMENT", (5,), (WARNING,), "file", "2.1", _YES, "The file ends at a multiple of 1 MiB."),
    Rule("FILE-RESERVED", (6,), (WARNING,), "file", "2.2", _NO, "The header section holds zeros behind the second region table."),
    Rule("FILE-CUT", (), (CORRUPT,), "file", "2.1", _NO, "The file keeps its length while it is read."),
    Rule("FILE-HOST", (128,), (WARNING,), "file", "2.1", _NO, "The host neither compresses nor encrypts the file, nor keeps it as sparse on NTFS: Windows attaches none of these."),
    Rule("FILE-FIXED-SIZE", (87,), (WARNING,), "file", "2.5.1.1", _YES, "The file of a fixed disk is long enough for every block."),
    Rule("IDENTIFIER", (2,), (CORRUPT,), "file identifier", "2.2.1", _SOME, "The file begins with `vhdxfile`."),
    Rule("IDENTIFIER-CREATOR", (3,), (WARNING,), "file identifier", "2.2.1", _NO, "The creator is UTF-16 up to its NUL or its end."),
    Rule("IDENTIFIER-RESERVED", (4,), (WARNING,), "file identifier", "2.2.1", _NO, "The 64 KiB of the file identifier hold zeros behind the creator."),
    Rule("HEADER-NONE", (7,), (CORRUPT,), "headers", "2.2.2", _NO, "At least one header has signature and checksum right."),
    Rule("HEADER-COPY", (8,), (WARNING,), "header", "2.2.2", _YES, "Both headers have signature and checksum right."),
    Rule("HEADER-TIE", (9,), (CORRUPT, WARNING), "headers", "2.2.2", _SOME, "The two headers have different sequence numbers; a warning where they are identical."),
    Rule("HEADER-VERSION", (10,), (CORRUPT,), "header", "2.2.2", _NO, "The version is 1."),
    Rule("HEADER-SEQUENCE", (17,), (WARNING,), "header", "2.2.2", _YES, "The sequence number leaves room for the updates of a writer."),
    Rule("HEADER-RESERVED", (18,), (WARNING,), "header", "2.2.2", _YES, "The bytes of a header behind its fields are zeros."),
    Rule("HEADER-GUID", (19,), (WARNING,), "header", "2.2.2", _SOME, "FileWriteGuid and DataWriteGuid are not zero."),
    Rule("HEADER-FIELDS", (20,), (WARNING,), "header", "2.2.2", _YES, "The other header agrees with the current one on version, log and DataWriteGuid."),
    Rule("HEADER-SLOT", (21,), (WARNING,), "header", "2.2.2", _NO, "The 64 KiB of a header hold zeros behind it."),
    Rule("LOG-VERSION", (11,), (CORRUPT, WARNING), "header", "2.2.2", _SOME, "The version of the log is 0; a warning while the log is empty."),
    Rule("LOG-RANGE", (12, 13, 14, 15), (CORRUPT, WARNING), "header", "2.2.2", _SOME, "Offset and length of the log are multiples of 1 MiB, behind the header section and inside the file, and a log in use has a length; a warning while it is empty."),
    Rule("LOG-LENGTH", (16,), (WARNING,), "header", "2.2.2", _YES, "The log is not longer than 1 GiB."),
    Rule("LOG-OVERLAP", (39,), (WARNING,), "region table", "2.2.3", _YES, "An empty log lies on no region."),
    Rule("LOG-PENDING", (22, 123), (WARNING,), "log", "2.3.3", _YES, "The log is empty: nothing is to be replayed."),
    Rule("LOG-EMPTY", (23,), (WARNING,), "log", "2.3.3", _YES, "A log that a header names holds an entry."),
    Rule("LOG-NO-SEQUENCE", (23, 24, 25, 26, 27, 28, 29, 30), (CORRUPT,), "log", "2.3.3", _CHOICE, "The entries of a log that a header names make a valid sequence."),
    Rule("LOG-SEQUENCES", (36,), (WARNING,), "log", "2.3.3", _YES, "No other sequence ends with the sequence number of the active one."),
    Rule("LOG-TORN", (130,), (WARNING,), "log entry", "2.3.2", _YES, "No entry behind the newest whole one has the next sequence number and is not whole: a write that was cut short, or damage."),
    Rule("LOG-TARGET", (31,), (CORRUPT,), "log entry", "2.3.1", _NO, "Entries write where a log may: not into the headers or the log itself, nor behind the end that the file gets."),
    Rule("LOG-STRAY", (32,), (WARNING,), "log entry", "2.3.1", _YES, "Entries write to region tables, BAT, metadata and sector bitmaps only, below their LastFileOffset."),
    Rule("LOG-FILE-TRUNCATED", (33,), (CORRUPT,), "log entry", "2.3.1.1", _CHOICE, "The file is as long as it was when the newest entry was written."),
    Rule("LOG-FILE-OFFSETS", (34,), (WARNING,), "log entry", "2.3.1.1", _YES, "FlushedFileOffset and LastFileOffset are multiples of 1 MiB; which is the greater does not matter."),
    Rule("LOG-LAST-OFFSET", (35,), (WARNING,), "log entry", "2.3.1.1", _YES, "The file is as long as the newest entry says that it must become."),
    Rule("LOG-DESCRIPTORS", (37,), (WARNING,), "log entry", "2.3.1", _YES, "An entry to be replayed has at most 126 descriptors: QEMU replays no more."),
    Rule("REGION-NONE", (40,), (CORRUPT,), "region tables", "2.2.3", _NO, "At least one region table has signature and checksum right."),
    Rule("REGION-COPY", (41,), (WARNING,), "region table", "2.2.3", _YES, "Both region tables have signature and checksum right."),
    Rule("REGION-COPIES", (42,), (CORRUPT, WARNING), "region tables", "2.2.3", _YES, "The two region tables are the same; a warning where they agree on BAT and metadata."),
    Rule("REGION-COUNT", (43,), (CORRUPT,), "region table", "2.2.3", _NO, "There are at most 2047 entries."),
    Rule("REGION-RESERVED", (44,), (WARNING,), "region table", "2.2.3", _YES, "The reserved field of the table is 0."),
    Rule("REGION-GUID", (45,), (CORRUPT,), "region table", "2.2.3", _NO, "No region is zero or appears twice."),
    Rule("REGION-RANGE", (46, 48), (CORRUPT, WARNING), "region table", "2.2.3", _SOME, "A region is aligned to 1 MiB, not empty, behind the header section and inside the file; a warning for an unknown one outside the file."),
    Rule("REGION-OVERLAP", (39, 47), (CORRUPT,), "region table", "2.2.3", _NO, "Regions overlap neither one another nor a log in use."),
    Rule("REGION-MISSING", (49,), (CORRUPT,), "region table", "2.2.3", _NO, "There are a BAT and a metadata region."),
    Rule("REGION-REQUIRED", (50,), (WARNING,), "region table", "2.2.3", _YES, "BAT and metadata region are marked as required: VirtualBox asks for it."),
    Rule("REGION-FLAGS", (51,), (WARNING,), "region table", "2.2.3", _YES, "The field Required is 0 or 1."),
    Rule("REGION-UNKNOWN", (52,), (CORRUPT,), "region table", "2.2.3", _NO, "Every required region is a known one."),
    Rule("REGION-TAIL", (53,), (WARNING,), "region table", "2.2.3", _NO, "The bytes behind the last entry are zeros."),
    Rule("METADATA-SIGNATURE", (54,), (CORRUPT,), "metadata table", "2.6.1", _NO, "The region begins with `metadata`."),
    Rule("METADATA-RESERVED", (55, 58, 68), (WARNING,), "metadata", "2.6.1", _YES, "Reserved bytes and bits are 0."),
    Rule("METADATA-COUNT", (56,), (CORRUPT,), "metadata table", "2.6.1", _NO, "There are at most 2047 entries: 1023 of the system and 1024 of users."),
    Rule("METADATA-REGION", (57,), (WARNING,), "metadata region", "2.6", _NO, "The region is not longer than 128 MiB."),
    Rule("METADATA-ID", (59,), (CORRUPT,), "metadata table", "2.6.1", _NO, "No item id is zero, and none appears twice for the system or for users."),
    Rule("METADATA-RANGE", (60,), (CORRUPT,), "metadata entry", "2.6.1", _SOME, "An item has at most 1 MiB and lies in the region, behind the table; an empty one has no offset."),
    Rule("METADATA-OVERLAP", (61,), (CORRUPT,), "metadata table", "2.6.1", _NO, "No two items overlap."),
    Rule("METADATA-TOTAL", (62,), (WARNING,), "metadata table", "2.6.1", _NO, "The items of the system, and those of users, take at most 40 MiB in all."),
    Rule("METADATA-FLAGS", (63, 66, 74), (WARNING,), "metadata entry", "2.6.1", _YES, "A known item has the flags that belong to it, and no user item is required."),
    Rule("METADATA-UNKNOWN", (64,), (CORRUPT,), "metadata entry", "2.6.1", _NO, "Every required system item is a known one."),
    Rule("METADATA-INCOMPLETE", (65,), (CORRUPT,), "metadata entry", "2.6.2", _NO, "The file carries no mark of a creation that was never finished."),
    Rule("METADATA-MISSING", (66, 70, 72), (CORRUPT,), "metadata table", "2.6.2", _NO, "File Parameters, Virtual Disk Size and Logical Sector Size are there."),
    Rule("METADATA-LENGTH", (66, 70, 72), (CORRUPT,), "the item", "2.6.2", _NO, "They have the length that belongs to them."),
    Rule("METADATA-BLOCK-SIZE", (67,), (CORRUPT,), "File Parameters", "2.6.2.1", _NO, "The block size is a power of two from 1 to 256 MiB."),
    Rule("METADATA-KIND", (69,), (WARNING,), "File Parameters", "2.6.2.1", _YES, "LeaveBlocksAllocated does not stand beside HasParent."),
    Rule("METADATA-SECTOR-SIZE", (70,), (CORRUPT,), "Logical Sector Size", "2.6.2.4", _NO, "The logical sector size is 512 or 4096."),
    Rule("METADATA-PHYSICAL-SIZE", (71,), (WARNING,), "Physical Sector Size", "2.6.2.5", _YES, "The physical sector size is there, and is 512 or 4096."),
    Rule("METADATA-SIZE", (72,), (CORRUPT, WARNING), "Virtual Disk Size", "2.6.2.2", _CHOICE, "The virtual size is from one sector to 64 TiB, and a multiple of the sector size; a warning where it is only unaligned."),
    Rule("METADATA-DISK-ID", (73,), (WARNING,), "Virtual Disk ID", "2.6.2.3", _YES, "The disk id is there, has 16 bytes, and is not zero."),
    Rule("LOCATOR-MISSING", (75,), (CORRUPT,), "metadata table", "2.6.2.6", _NO, "A file with HasParent has a parent locator."),
    Rule("LOCATOR-LEFTOVER", (76,), (CORRUPT, WARNING), "Parent Locator", "2.6.2.6", _SOME, "A file without HasParent has no parent locator; corrupt where the BAT too looks like a child's."),
    Rule("LOCATOR-LENGTH", (106,), (CORRUPT,), "Parent Locator", "2.6.2.6", _NO, "The item holds its head and its entries."),
    Rule("LOCATOR-TYPE", (107,), (CORRUPT,), "Parent Locator", "2.6.2.6", _NO, "The type is that of VHDX."),
    Rule("LOCATOR-RESERVED", (108,), (WARNING,), "Parent Locator", "2.6.2.6", _YES, "The reserved field is 0."),
    Rule("LOCATOR-COUNT", (108,), (CORRUPT,), "Parent Locator", "2.6.2.6", _NO, "There are 1 to 256 entries."),
    Rule("LOCATOR-STRING", (109, 110), (CORRUPT,), "Parent Locator", "2.6.2.6", _NO, "A string is not empty, has an even length, lies inside the item, and is UTF-16 without a NUL."),
    Rule("LOCATOR-PLACE", (109,), (WARNING,), "Parent Locator", "2.6.2.6", _YES, "Strings lie behind the head and the entries."),
    Rule("LOCATOR-KEY", (111,), (CORRUPT,), "Parent Locator", "2.6.2.6", _NO, "No key appears twice."),
    Rule("LOCATOR-LINKAGE", (111,), (CORRUPT,), "Parent Locator", "2.6.2.6", _CHOICE, "parent_linkage is there, and is a GUID."),
    Rule("LOCATOR-PATH", (112,), (CORRUPT,), "Parent Locator", "2.6.2.6", _NO, "There is at least one path to the parent."),
    Rule("LOCATOR-PREFIX", (113,), (WARNING,), "Parent Locator", "2.6.2.6", _YES, "absolute_win32_path begins with `\\\\?\\`, and volume_path with `\\\\?\\Volume{`."),
    Rule("LOCATOR-MERGE", (116,), (WARNING,), "Parent Locator", "2.6.2.6", _SOME, "parent_linkage2 is absent or zero: no merge was interrupted."),
    Rule("BAT-SIZE", (78,), (CORRUPT,), "BAT region", "2.5", _NO, "The region holds the entries that the disk needs."),
    Rule("BAT-CUT", (78,), (CORRUPT,), "BAT entry", "2.5", _NO, "The file does not end before the last entry that the disk needs."),
    Rule("BAT-RESERVED", (79, 90), (WARNING,), "BAT entry", "2.5.1", _YES, "Bits 3 to 19 of an entry are 0."),
    Rule("BAT-STATE", (80, 81), (CORRUPT,), "BAT entry", "2.5.1.1", _SOME, "A payload block has a state that the format knows, and PARTIALLY_PRESENT only in a differencing file."),
    Rule("BAT-OFFSET", (82,), (CORRUPT,), "BAT entry", "2.5.1.1", _CHOICE, "A present block lies behind the header section."),
    Rule("BAT-STALE-OFFSET", (83, 92), (WARNING,), "BAT entry", "2.5.1", _YES, "The entry of a block that is NOT_PRESENT or ZERO, or of an absent bitmap, has no offset."),
    Rule("BAT-RANGE", (84, 85, 96), (CORRUPT, WARNING), "BAT entry", "2.5.1.1", _SOME, "A block lies inside the file; a warning for the kept space of a block without content."),
    Rule("BAT-LAST-BLOCK", (85,), (WARNING,), "BAT entry", "2.5.1.1", _YES, "The file holds the last block whole, also behind the end of the disk."),
    Rule("BAT-FIXED", (86,), (WARNING,), "BAT region", "2.5.1.1", _NO, "Every block of a fixed disk is FULLY_PRESENT."),
    Rule("BAT-PADDING", (88,), (WARNING,), "BAT entry", "2.5", _SOME, "Entries behind the last that the disk needs are 0."),
    Rule("BAT-OVERLAP", (84, 94, 102), (CORRUPT, WARNING), "BAT entry", "2.5.1", _SOME, "No two blocks, bitmaps or other structures share a place; a warning where the other is only the kept space of a block without content."),
    Rule("BAT-SHIFT", (95,), (CORRUPT,), "BAT entry", "2.5.1", _CHOICE, "No two neighbours of one page lie at the same place in a file by QEMU, whose versions before 7.2.2 shifted the entries of a page."),
    Rule("BITMAP-SLOT", (89,), (WARNING,), "BAT entry", "2.5.1.2", _SOME, "Slots of sector bitmaps are 0 in a file without a parent."),
    Rule("BITMAP-STATE", (90,), (CORRUPT, WARNING), "BAT entry", "2.5.1.2", _YES, "A sector bitmap is NOT_PRESENT or PRESENT; a warning for the state 7, which Microsoft reads as PRESENT."),
    Rule("BITMAP-ENTRY", (91, 93), (CORRUPT,), "BAT entry", "2.5.1.2", _SOME, "A sector bitmap lies in the file and on no region or log, and is there where a block is PARTIALLY_PRESENT."),
    Rule("BITMAP-RANGE", (91,), (CORRUPT,), "sector bitmap", "2.4", _NO, "The file does not end inside a bitmap."),
    Rule("BITMAP-STALE", (97,), (WARNING,), "sector bitmap", "2.4", _YES, "The bits of a block that is not PARTIALLY_PRESENT are 0: libvhdi looks at them."),
    Rule("BITMAP-TAIL", (98,), (WARNING,), "sector bitmap", "2.4", _YES, "Bits behind the end of the disk are 0."),
    Rule("BITMAP-FULL", (99,), (WARNING,), "sector bitmap", "2.4", _YES, "A PARTIALLY_PRESENT block lacks at least one sector; else it could be FULLY_PRESENT."),
    Rule("BITMAP-NONE", (100,), (WARNING,), "sector bitmap", "2.4", _YES, "A PARTIALLY_PRESENT block has at least one sector; else it could be NOT_PRESENT."),
    Rule("BITMAP-UNUSED", (101,), (NOTE,), "sector bitmaps", "2.4", _NO, "Each sector bitmap serves a PARTIALLY_PRESENT block; else 1 MiB could be given back."),
    Rule("SPACE-UNOWNED", (103,), (NOTE,), "file", "2.1", _NO, "Every MiB below the last structure belongs to something."),
    Rule("SPACE-SLACK", (104,), (NOTE,), "file", "2.1", _NO, "The file ends with its last structure."),
    Rule("SPACE-ANCHORS", (105,), (NOTE,), "file", "2.5.1.1", _NO, "No block without content keeps its space."),
    Rule("SPACE-DATA", (129,), (WARNING,), "file", "2.5", _NO, "Where no block is stored, what belongs to nothing holds zeros; else the BAT may have been lost."),
    Rule("PARENT-NOT-FOUND", (114,), (CORRUPT,), "parent", "2.6.2.6.3", _NO, "The parent is found, and can be opened."),
    Rule("PARENT-MISMATCH", (115,), (CORRUPT,), "parent", "2.6.2.6.3", _CHOICE, "The parent's DataWriteGuid is the one that the child names."),
    Rule("PARENT-SECTOR-SIZE", (117,), (CORRUPT,), "parent", "2.6.2.4", _NO, "Parent and child have the same logical sector size."),
    Rule("PARENT-SIZE", (118,), (WARNING,), "parent", "2.6.2.2", _NO, "The child is not smaller than its parent."),
    Rule("PARENT-DISK-ID", (119,), (WARNING,), "parent", "2.6.2.3", _NO, "Parent and child have the same disk id."),
    Rule("PARENT-CYCLE", (120,), (CORRUPT,), "parent", "2.6.2.6", _NO, "No file is its own ancestor, and the chain has at most 256 parents."),
    Rule("PARENT-PATH", (121,), (WARNING,), "Parent Locator", "2.6.2.6.3", _YES, "The paths that mean something on this machine lead to the parent that is used."),
    Rule("PARENT-MODIFIED", (122,), (WARNING,), "parent", "2.6.2.6", _NO, "The parent's file was not written after the child's; this is a hint only."),
    Rule("PAYLOAD-READ", (85,), (CORRUPT,), "payload", "2.5.1.1", _NO, "All that is stored can be read to its end."),
    Rule("PAYLOAD-ZERO", (125,), (WARNING,), "payload", "2.5.1.1", _NO, "No FULLY_PRESENT block of a dynamic disk holds only zeros; else its space could be given back."),
    Rule("PAYLOAD-PARTITION", (126,), (WARNING,), "payload", "2.6.2.2", _NO, "The partition table names no sector behind the end of the disk."),
    Rule("GUID-FORM", (127,), (WARNING,), "header", "2.2.2", _NO, "GUIDs that a writer makes up have the form of random ones (RFC 4122)."),
)
# fmt: on

RULES = {rule.code: rule for rule in _ALL}
