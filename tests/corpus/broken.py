"""
Small files that are each broken in one way, at least one for each code that `check` can find.

Built upon `handmade`, with plain `struct`; sparse where they are large.  `SPECIMENS` lists them: what
`check` must find, and what comes along with it because one damage cannot be without the other.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import UUID

from tests.corpus import handmade
from tests.corpus.handmade import (
    BAT,
    BAT_AT,
    DISK_ID,
    DISK_SIZE,
    FILE_PARAMETERS,
    FULL,
    LOCATOR,
    LOGICAL,
    METADATA,
    METADATA_AT,
    MIB,
    NOT_PRESENT,
    PARTIAL,
    PHYSICAL,
    UNDEFINED,
    UNMAPPED,
    ZERO,
    Block,
    Image,
    guid,
    sealed,
)
from tests.corpus.handmade_logs import GUID as LOG_GUID
from tests.corpus.handmade_logs import Entry, follow, page, ring

FIRST_BLOCK = 4 * MIB
STRANGE = guid(0xBAD)
KIB = 1024


@dataclass(frozen=True)
class Specimen:
    """
    A file broken in one way.

    *make* writes it into a folder and returns its path, with its parents beside it; *severity* is that
    of the findings of *code*, *also* are the codes that come along, *how* the arguments of `check`.
    """

    name: str
    code: str
    severity: str
    make: Callable[[Path], Path]
    also: tuple[str, ...] = ()
    repairable: bool = False
    how: dict[str, Any] = field(default_factory=dict)


SPECIMENS: list[Specimen] = []


def _add(
    code: str,
    severity: str,
    make: Image | Callable[[Path], Path],
    *,
    name: str = "",
    also: tuple[str, ...] = (),
    repairable: bool = False,
    **how: Any,
) -> None:
    def write(folder: Path) -> Path:
        assert isinstance(make, Image)
        return replace(make).write(folder / "disk.vhdx").path

    full = f"{code}-{name}" if name else code
    SPECIMENS.append(
        Specimen(full, code, severity, write if isinstance(make, Image) else make, also, repairable, how)
    )


def disk(**changes: Any) -> Image:
    """Return a right dynamic disk of eight blocks, two of them with content."""
    values: dict[str, Any] = {"size": 8 * MIB, "blocks": {0: Block(FULL), 2: Block(FULL)}}
    return Image(**(values | changes))


def both(**changes: int) -> tuple[dict[str, int], ...]:
    """Return changes of both headers."""
    return changes, changes


def _cut(image: Image, size: int) -> Callable[[Path], Path]:
    """Return a maker that sets the length of the file."""

    def make(folder: Path) -> Path:
        path = image.write(folder / "disk.vhdx").path
        with path.open("r+b") as file:
            file.truncate(size)
        return path

    return make


def _patched(at: int, data: bytes) -> Image:
    return disk(patches=[(at, data)])


# -- file and identifier ----------------------------------------------------------------------

_add(
    "FILE-SIZE",
    "corrupt",
    _cut(disk(), 512 * KIB),
    also=("LOG-RANGE", "REGION-RANGE", "METADATA-RANGE"),
)
_add("FILE-ALIGNMENT", "warning", _cut(disk(), 6 * MIB + 512), also=("SPACE-SLACK",), repairable=True)
_add("FILE-RESERVED", "warning", _patched(0x60000, b"x"))
_add(
    "FILE-FIXED-SIZE",
    "warning",
    disk(kind="fixed", blocks={0: Block(FULL)}),
    also=("BAT-FIXED",),
    repairable=True,
)
_add("IDENTIFIER", "corrupt", _patched(0, b"VHDXFILE"), repairable=True)
_add("IDENTIFIER-CREATOR", "warning", _patched(8, b"\x00\xd8A\0"))
_add("IDENTIFIER-RESERVED", "warning", _patched(1000, b"x"))

# -- headers ----------------------------------------------------------------------------------

_add("HEADER-NONE", "corrupt", disk(headers=both(crc=0)), also=("SPACE-UNOWNED",))
_add(
    "HEADER-COPY",
    "warning",
    disk(headers=({}, {"crc": 0, "sequence": 1 << 63})),
    name="huge-sequence",
    repairable=True,
)
_add("HEADER-COPY", "warning", disk(headers=({"crc": 0}, {})), name="first", repairable=True)
_add("HEADER-TIE", "warning", disk(headers=both(sequence=7)), name="identical", repairable=True)
_add(
    "HEADER-TIE",
    "corrupt",
    disk(headers=({"sequence": 7}, {"sequence": 7, "file_guid": guid(5).int})),
    name="alike",
)
_add(
    "HEADER-TIE",
    "corrupt",
    disk(headers=({"sequence": 7}, {"sequence": 7, "log_length": 0})),
    name="unlike",
)
_add("HEADER-VERSION", "corrupt", disk(headers=both(version=2)), also=())
_add("HEADER-SEQUENCE", "warning", disk(headers=({}, {"sequence": (1 << 64) - 1})), repairable=True)
_add("HEADER-GUID", "warning", disk(headers=both(file_guid=0)), name="file", repairable=True)
_add("HEADER-GUID", "warning", disk(headers=both(data_guid=0)), name="data")
_add("HEADER-FIELDS", "warning", disk(headers=({"data_guid": guid(5).int}, {})), repairable=True)
_add("HEADER-SLOT", "warning", _patched(0x11000, b"x"))
_add("GUID-FORM", "warning", disk(headers=both(file_guid=5)))


def _header_with_reserved(folder: Path) -> Path:
    image = disk()
    raw = image.header(1)
    image.patches = [(0x20000, sealed(raw[:100] + b"x" + raw[101:]))]
    return image.write(folder / "disk.vhdx").path


_add("HEADER-RESERVED", "warning", _header_with_reserved, repairable=True)

# -- log --------------------------------------------------------------------------------------


def logged(*entries: Entry, at: int = 0, **changes: Any) -> Image:
    """Return a disk with a log of these entries, one behind the other."""
    return disk(log=ring(MIB, follow(list(entries), at)), log_guid=LOG_GUID, **changes)


def entry(*writes: tuple[int, bytes | int], **changes: Any) -> Entry:
    """Return an entry that suits the file of `disk`."""
    values: dict[str, Any] = {"flushed": 6 * MIB, "last": 6 * MIB}
    return Entry(5, 0, list(writes), **(values | changes))


# A page of the BAT that no block needs, as it is.
_HARMLESS = BAT_AT + 4096, bytes(4096)

_add("LOG-VERSION", "warning", disk(headers=both(log_version=1)), name="empty", repairable=True)
_add("LOG-VERSION", "corrupt", logged(entry(), headers=both(log_version=1)), name="used")
_add(
    "LOG-RANGE",
    "warning",
    disk(headers=both(log_length=MIB + 512)),
    name="empty",
    also=("LOG-OVERLAP",),
    repairable=True,
)
_add(
    "LOG-RANGE",
    "corrupt",
    logged(entry(), headers=both(log_length=0)),
    name="no-length",
    also=("SPACE-UNOWNED",),
)
_add(
    "LOG-RANGE",
    "corrupt",
    logged(entry(), headers=both(log_offset=64 * MIB)),
    name="outside",
    also=("SPACE-UNOWNED",),
)
_add(
    "LOG-LENGTH",
    "warning",
    _cut(disk(headers=both(log_offset=6 * MIB, log_length=1025 * MIB)), 1031 * MIB),
    also=("SPACE-UNOWNED",),
    repairable=True,
)
_add(
    "LOG-OVERLAP",
    "warning",
    disk(headers=both(log_offset=METADATA_AT)),
    also=("SPACE-UNOWNED",),
    repairable=True,
)
_add("LOG-PENDING", "warning", logged(entry(_HARMLESS)), repairable=True)
_add("LOG-EMPTY", "warning", logged(), repairable=True)
_add("LOG-NO-SEQUENCE", "corrupt", logged(entry(_HARMLESS, changes={"crc": 0})), name="checksum")
_add("LOG-NO-SEQUENCE", "corrupt", logged(Entry(5, 8192, [_HARMLESS])), name="tail")
_add("LOG-TARGET", "corrupt", logged(entry((0x10000, page(1)))), name="header")
_add("LOG-TARGET", "corrupt", logged(entry((1 << 40, 4096))), name="outside")
_add("LOG-STRAY", "warning", logged(entry((FIRST_BLOCK, page(1)))), also=("LOG-PENDING",), repairable=True)
_add("LOG-FILE-TRUNCATED", "corrupt", logged(entry(flushed=64 * MIB, last=64 * MIB)))
_add(
    "LOG-FILE-OFFSETS",
    "warning",
    logged(entry(flushed=512)),
    name="head",
    also=("LOG-PENDING",),
    repairable=True,
)
_add(
    "LOG-FILE-OFFSETS",
    "warning",
    logged(entry(flushed=512), replace(entry(), sequence=6)),
    name="earlier",
    also=("LOG-PENDING",),
    repairable=True,
)
_add(
    "LOG-TORN",
    "warning",
    logged(entry(_HARMLESS), replace(entry(_HARMLESS), sequence=6, changes={"crc": 0})),
    also=("LOG-PENDING",),
    repairable=True,
)
_add(
    "LOG-LAST-OFFSET",
    "warning",
    logged(entry(last=9 * MIB)),
    also=("LOG-PENDING", "SPACE-SLACK"),
    repairable=True,
)
_add(
    "LOG-DESCRIPTORS",
    "warning",
    logged(entry(*((BAT_AT + 4096 * number, 4096) for number in range(1, 128)))),
    also=("LOG-PENDING",),
    repairable=True,
)


def _two_sequences(folder: Path) -> Path:
    twin = Entry(5, 16 * KIB, [], flushed=6 * MIB, last=6 * MIB)
    log = ring(MIB, [(0, entry()), (16 * KIB, twin)])
    return disk(log=log, log_guid=LOG_GUID).write(folder / "disk.vhdx").path


_add("LOG-SEQUENCES", "warning", _two_sequences, also=("LOG-PENDING",), repairable=True)

# -- region tables ----------------------------------------------------------------------------


def table(
    *regions: tuple[UUID, int, int, int], count: int | None = None, reserved: int = 0, tail: bytes = b""
) -> bytes:
    """Return a region table with these regions."""
    body = b"".join(g.bytes_le + struct.pack("<QII", *numbers) for g, *numbers in regions)
    head = b"regi" + bytes(4) + struct.pack("<II", len(regions) if count is None else count, reserved)
    return sealed((head + body + tail).ljust(65536, b"\0"))


_BAT_REGION = (BAT, BAT_AT, MIB, 1)
_METADATA_REGION = (METADATA, METADATA_AT, MIB, 1)
_TWO = (_BAT_REGION, _METADATA_REGION)


def _tables(first: bytes, second: bytes | None = None) -> Image:
    return disk(patches=[(0x30000, first), (0x40000, first if second is None else second)])


def _regions(*regions: tuple[UUID, int, int, int], **changes: Any) -> Image:
    return _tables(table(*regions, **changes))


_BAD = b"regi????"
_add("REGION-NONE", "corrupt", _tables(_BAD))
_add("REGION-COPY", "warning", _tables(_BAD, table(*_TWO)), name="first", repairable=True)
_add("REGION-COPY", "warning", _tables(table(*_TWO), _BAD), name="second", repairable=True)
_add(
    "REGION-COPIES",
    "corrupt",
    _tables(table(*_TWO), table((BAT, 5 * MIB, MIB, 1), _METADATA_REGION)),
    name="unlike",
    repairable=True,
)
_add(
    "REGION-COPIES",
    "warning",
    _tables(table(*_TWO), table(*_TWO, (STRANGE, 5 * MIB, MIB, 0))),
    name="alike",
    repairable=True,
)
_add("REGION-COUNT", "corrupt", _regions(*_TWO, count=2048))
_add("REGION-RESERVED", "warning", _regions(*_TWO, reserved=1), repairable=True)
_add("REGION-GUID", "corrupt", _regions(*_TWO, _BAT_REGION), name="twice")
_add("REGION-GUID", "corrupt", _regions(*_TWO, (UUID(int=0), 8 * MIB, MIB, 0)), name="zero")
_add("REGION-RANGE", "corrupt", _regions(*_TWO, (STRANGE, 6 * MIB, 512, 0)), name="unaligned")


def _bat_behind_the_end(folder: Path) -> Path:
    moved = table((BAT, 6 * MIB, 4 * MIB, 1), _METADATA_REGION)
    entries = struct.pack("<QQQ", FIRST_BLOCK | FULL, 0, 5 * MIB | FULL)
    image = disk(patches=[(0x30000, moved), (0x40000, moved), (6 * MIB, entries)])
    return _cut(image, 7 * MIB)(folder)


_add(
    "REGION-RANGE",
    "corrupt",
    _bat_behind_the_end,
    name="bat-cut",
    also=("SPACE-UNOWNED",),
    repairable=True,
)
_add(
    "REGION-RANGE",
    "corrupt",
    _regions((BAT, 64 * MIB, MIB, 1), _METADATA_REGION),
    name="bat-outside",
    also=("SPACE-SLACK",),
)
_add("REGION-RANGE", "warning", _regions(*_TWO, (STRANGE, 64 * MIB, MIB, 0)), name="unknown-outside")
_add(
    "REGION-OVERLAP",
    "corrupt",
    _regions(*_TWO, (STRANGE, METADATA_AT, MIB, 0)),
)
_add("REGION-MISSING", "corrupt", _regions(_METADATA_REGION))
_add("REGION-REQUIRED", "warning", _regions((BAT, BAT_AT, MIB, 0), _METADATA_REGION), repairable=True)
_add("REGION-FLAGS", "warning", _regions((BAT, BAT_AT, MIB, 3), _METADATA_REGION), repairable=True)


def _with_a_region(required: int) -> Callable[[Path], Path]:
    return _cut(_regions(*_TWO, (STRANGE, 6 * MIB, MIB, required)), 7 * MIB)


_add("REGION-UNKNOWN", "corrupt", _with_a_region(1))
_add("REGION-TAIL", "warning", _regions(*_TWO, tail=b"x"))

# -- metadata ---------------------------------------------------------------------------------


def _in_metadata(at: int, data: bytes) -> Image:
    return _patched(METADATA_AT + at, data)


def item_entry(number: int) -> int:
    """Return where the table's entry of an item lies in the region."""
    return 32 + 32 * number


_add("METADATA-SIGNATURE", "corrupt", _in_metadata(0, b"METADATA"))
_add("METADATA-RESERVED", "warning", _in_metadata(12, b"x"), name="table", repairable=True)
_add("METADATA-RESERVED", "warning", _in_metadata(item_entry(1) + 28, b"x"), name="entry", repairable=True)
_add(
    "METADATA-RESERVED",
    "warning",
    disk(replace={FILE_PARAMETERS: struct.pack("<II", MIB, 4)}),
    name="parameters",
    repairable=True,
)
_add("METADATA-COUNT", "corrupt", _in_metadata(10, struct.pack("<H", 2048)))
_add("METADATA-ID", "corrupt", disk(items=((DISK_ID, 6, guid(78).bytes_le),)), name="twice")
_add("METADATA-ID", "corrupt", disk(items=((UUID(int=0), 0, b"x"),)), name="zero")
_add("METADATA-RANGE", "corrupt", _in_metadata(item_entry(1) + 16, struct.pack("<I", MIB - 4)), name="size")
_add("METADATA-OVERLAP", "corrupt", _in_metadata(item_entry(3) + 16, struct.pack("<I", 0x10010)))
_add("METADATA-FLAGS", "warning", _in_metadata(item_entry(3) + 24, struct.pack("<I", 2)), repairable=True)
_add("METADATA-FLAGS", "warning", disk(items=((STRANGE, 5, b"x"),)), name="user", repairable=True)
_add("METADATA-UNKNOWN", "corrupt", disk(items=((STRANGE, 4, b"x"),)))
_add(
    "METADATA-INCOMPLETE",
    "corrupt",
    disk(items=((UUID("71cc85f0-1b69-4e28-9558-c3bf83ae75d3"), 4, b""),)),
)
_add("METADATA-MISSING", "corrupt", disk(without=(FILE_PARAMETERS,)), name="parameters")
_add("METADATA-MISSING", "corrupt", disk(without=(LOGICAL,)), name="sector")
_add("METADATA-MISSING", "corrupt", disk(without=(DISK_SIZE,)), name="size")
_add("METADATA-LENGTH", "corrupt", disk(replace={DISK_SIZE: bytes(4)}))
_add("METADATA-BLOCK-SIZE", "corrupt", disk(replace={FILE_PARAMETERS: struct.pack("<II", 3 * MIB, 0)}))
_add("METADATA-SECTOR-SIZE", "corrupt", disk(replace={LOGICAL: struct.pack("<I", 1024)}))
_add("METADATA-PHYSICAL-SIZE", "warning", disk(without=(PHYSICAL,)), name="missing", repairable=True)
_add("METADATA-PHYSICAL-SIZE", "warning", disk(physical=1024), name="odd", repairable=True)
_add("METADATA-SIZE", "corrupt", disk(replace={DISK_SIZE: bytes(8)}), name="zero")
_add("METADATA-SIZE", "corrupt", disk(replace={DISK_SIZE: struct.pack("<Q", (1 << 46) + 512)}), name="huge")
# What the table holds of the unaligned size is judged after rounding.
_add("METADATA-SIZE", "warning", disk(replace={DISK_SIZE: struct.pack("<Q", 8 * MIB - 3)}), name="unaligned")
_add("METADATA-DISK-ID", "warning", disk(without=(DISK_ID,)), name="missing", repairable=True)
_add("METADATA-DISK-ID", "warning", disk(replace={DISK_ID: bytes(16)}), name="zero", repairable=True)


def _droppable(folder: Path) -> Path:
    image = disk(items=((STRANGE, 0, b"x"),))
    image.patches = [(METADATA_AT + item_entry(5) + 16, struct.pack("<I", 2 * MIB))]
    return image.write(folder / "disk.vhdx").path


_add("METADATA-RANGE", "corrupt", _droppable, name="optional", repairable=True)


def _forty_megabytes(folder: Path) -> Path:
    region, count = 8 * MIB, 41
    image = disk(items=tuple((guid(3000 + number), 1, b"x") for number in range(count)))
    entries = b"".join(
        guid(3000 + number).bytes_le + struct.pack("<IIII", (1 + number) * MIB, MIB, 1, 0)
        for number in range(count)
    )
    moved = image.metadata()
    at = 32 + 32 * 5
    moved = moved[:at] + entries + moved[at + len(entries) :]
    image.patches = [(region, moved)]
    new = table(_BAT_REGION, (METADATA, region, 50 * MIB, 1))
    image.patches += [(0x30000, new), (0x40000, new)]
    return _cut(image, region + 50 * MIB)(folder)


_add("METADATA-TOTAL", "warning", _forty_megabytes, also=("SPACE-UNOWNED",))


def _moved_metadata(folder: Path) -> Path:
    at, length = 16 * MIB, 129 * MIB
    image = disk()
    new = table(_BAT_REGION, (METADATA, at, length, 1))
    image.patches = [(at, image.metadata()), (0x30000, new), (0x40000, new)]
    return _cut(image, at + length)(folder)


_add("METADATA-REGION", "warning", _moved_metadata, also=("SPACE-UNOWNED",))

# -- parent locator ---------------------------------------------------------------------------


def parent() -> Image:
    """Return the disk that `child` is made over."""
    return disk(tag=9)


def child(**changes: Any) -> Image:
    """Return a child of eight blocks, one of them with two sectors."""
    values: dict[str, Any] = {
        "size": 8 * MIB,
        "kind": "differencing",
        "parent": parent(),
        "tag": 2,
        "blocks": {1: Block(PARTIAL, frozenset({1, 2})), 3: Block(FULL)},
    }
    return Image(**(values | changes))


def _family(image: Image, ancestor: Image | None = None) -> Callable[[Path], Path]:
    """Return a maker of a child with its parent beside it."""

    def make(folder: Path) -> Path:
        (ancestor or parent()).write(folder / "parent.vhdx")
        return image.write(folder / "disk.vhdx").path

    return make


def _locator(code: str, severity: str, item: bytes, **more: Any) -> None:
    _add(code, severity, _family(child(replace={LOCATOR: item})), **more)


_PAIRS = {"parent_linkage": f"{{{parent().data_write_guid}}}", "relative_path": ".\\parent.vhdx"}
_ITEM = handmade.locator_item(_PAIRS)


def _with(item: bytes, at: int, data: bytes) -> bytes:
    return item[:at] + data + item[at + len(data) :]


_add("LOCATOR-MISSING", "corrupt", child(without=(LOCATOR,)))
_add("LOCATOR-LEFTOVER", "warning", disk(items=((LOCATOR, 4, _ITEM),)), name="alone", repairable=True)
_add(
    "LOCATOR-LEFTOVER",
    "corrupt",
    disk(items=((LOCATOR, 4, _ITEM),), blocks={0: Block(PARTIAL)}),
    name="child",
    also=("BAT-STATE",),
)
_locator("LOCATOR-LENGTH", "corrupt", _ITEM[:10], name="head")
_locator("LOCATOR-LENGTH", "corrupt", _ITEM[:40], name="entries")
_locator("LOCATOR-TYPE", "corrupt", _with(_ITEM, 0, STRANGE.bytes_le))
_locator("LOCATOR-RESERVED", "warning", _with(_ITEM, 16, b"x"), repairable=True)
_locator("LOCATOR-COUNT", "corrupt", _with(_ITEM, 18, b"\0\0"), name="none")
_locator("LOCATOR-COUNT", "corrupt", _with(_ITEM, 18, b"\1\1"), name="many")
_locator("LOCATOR-STRING", "corrupt", _with(_ITEM, 28, b"\0\0"), name="empty", also=("LOCATOR-LINKAGE",))
_locator("LOCATOR-STRING", "corrupt", _ITEM[:-2], name="outside")
_locator("LOCATOR-STRING", "corrupt", _ITEM[:-2] + b"\x00\xd8", name="surrogate")
# A value that is the third pair of bytes of the type: one letter, and not where strings belong.
_locator(
    "LOCATOR-PLACE",
    "warning",
    _with(handmade.locator_item(_PAIRS | {"x": "y"}), 20 + 2 * 12 + 4, struct.pack("<I", 4)),
    repairable=True,
)
_locator(
    "LOCATOR-KEY",
    "corrupt",
    _with(_ITEM, 32, _ITEM[20:24] + _ITEM[36:40] + _ITEM[28:30] + _ITEM[42:44]),
)
_locator("LOCATOR-LINKAGE", "corrupt", handmade.locator_item({"relative_path": ".\\parent.vhdx"}))
_locator(
    "LOCATOR-PATH",
    "corrupt",
    handmade.locator_item({"parent_linkage": _PAIRS["parent_linkage"]}),
    also=("PARENT-NOT-FOUND",),
)
_locator(
    "LOCATOR-PREFIX",
    "warning",
    handmade.locator_item(_PAIRS | {"absolute_win32_path": "C:\\parent.vhdx"}),
    repairable=True,
)
_locator(
    "LOCATOR-MERGE",
    "warning",
    handmade.locator_item(_PAIRS | {"parent_linkage2": f"{{{STRANGE}}}"}),
    name="before",
    repairable=True,
)
_locator(
    "LOCATOR-MERGE",
    "warning",
    handmade.locator_item(
        _PAIRS | {"parent_linkage": f"{{{STRANGE}}}", "parent_linkage2": _PAIRS["parent_linkage"]}
    ),
    name="within",
)

_add("METADATA-KIND", "warning", _family(child(flags=3)), repairable=True)

# -- BAT --------------------------------------------------------------------------------------


def _bat(entries: dict[int, int], **changes: Any) -> Image:
    """Return a disk with raw entries by index; blocks 0 and 2 lie at 4 and 5 MiB."""
    return disk(bat=entries, **changes)


_SLOT = disk().bitmap_index(0)  # of the first chunk, far behind the eight blocks

_add("BAT-SIZE", "corrupt", disk(replace={DISK_SIZE: struct.pack("<Q", 1 << 40)}))
_add("BAT-CUT", "corrupt", _cut(disk(blocks={}), BAT_AT + 40), also=("FILE-ALIGNMENT",))
_add("BAT-RESERVED", "warning", _bat({0: FIRST_BLOCK | 6 | 0x80}), repairable=True)
_add("BAT-STATE", "corrupt", _bat({3: 4}), name="reserved")
_add("BAT-STATE", "corrupt", _bat({3: 5}), name="draft", repairable=True)
_add("BAT-STATE", "corrupt", _bat({0: FIRST_BLOCK | PARTIAL}), name="partial", repairable=True)
_add("BAT-OFFSET", "corrupt", _bat({3: FULL}))
_add("BAT-STALE-OFFSET", "warning", _bat({3: 9 * MIB | NOT_PRESENT, 4: 9 * MIB | ZERO}), repairable=True)
_add("BAT-RANGE", "corrupt", _bat({3: 64 * MIB | FULL}), name="outside")
_add("BAT-RANGE", "corrupt", _bat({3: 1 << 60 | FULL}), name="huge")
_add("BAT-RANGE", "corrupt", _cut(disk(), 5 * MIB + 4096), name="cut", also=("FILE-ALIGNMENT",))
_add("BAT-RANGE", "warning", _bat({3: 64 * MIB | UNMAPPED}), name="kept", repairable=True)
_add(
    "BAT-LAST-BLOCK",
    "warning",
    _cut(disk(size=8 * MIB - 512 * KIB, blocks={7: Block(FULL)}), 4 * MIB + 600 * KIB),
    also=("FILE-ALIGNMENT",),
    repairable=True,
)
_add(
    "BAT-FIXED",
    "warning",
    _cut(disk(kind="fixed", blocks={0: Block(FULL), 1: Block(ZERO)}), 12 * MIB),
)
_add("BAT-PADDING", "warning", _bat({9: 5}), repairable=True)
_add("BAT-OVERLAP", "corrupt", _bat({3: 5 * MIB | FULL}), name="blocks")
_add("BAT-OVERLAP", "corrupt", _bat({3: BAT_AT | FULL}), name="region")
_add("BAT-OVERLAP", "corrupt", _bat({3: MIB | FULL}), name="log")
_add("BAT-OVERLAP", "warning", _bat({3: 5 * MIB | UNDEFINED}), name="kept", repairable=True)


def _shifted(folder: Path) -> Path:
    creator = "QEMU v2.0.0".encode("utf-16-le").ljust(40, b"\0")
    return _bat({3: 5 * MIB | FULL}, patches=[(8, creator)]).write(folder / "disk.vhdx").path


_add("BAT-SHIFT", "corrupt", _shifted, also=("BAT-OVERLAP",))
_add(
    "BITMAP-SLOT",
    "warning",
    disk(size=5 << 30, bat={_SLOT: 2}),
    repairable=True,
)

# -- sector bitmaps ---------------------------------------------------------------------------

# The bitmap of `child` lies behind its two blocks.
_BITMAP_AT = 6 * MIB


def _child(**changes: Any) -> Callable[[Path], Path]:
    return _family(child(**changes))


def _bits(at: int, data: bytes) -> Callable[[Path], Path]:
    return _child(patches=[(_BITMAP_AT + at, data)])


_add("BITMAP-STATE", "warning", _child(bat={_SLOT: _BITMAP_AT | 7}), name="seven", repairable=True)
_add(
    "BITMAP-STATE",
    "corrupt",
    _child(blocks={3: Block(FULL)}, bat={_SLOT: 3}),
    name="reserved",
    also=("SPACE-SLACK",),
    repairable=True,
)
_add("BITMAP-ENTRY", "corrupt", _child(bat={_SLOT: 0}), name="missing", also=("SPACE-SLACK",))
_add("BITMAP-ENTRY", "corrupt", _child(bat={_SLOT: 64 * MIB | 6}), name="outside", also=("SPACE-SLACK",))
_add("BITMAP-ENTRY", "corrupt", _child(bat={_SLOT: BAT_AT | 6}), name="region", also=("SPACE-SLACK",))
_add(
    "BITMAP-ENTRY",
    "corrupt",
    _child(blocks={3: Block(FULL)}, bat={_SLOT: 64 * MIB | 6}),
    name="unused",
    also=("SPACE-SLACK",),
    repairable=True,
)
_add(
    "BAT-STALE-OFFSET",
    "warning",
    _child(blocks={3: Block(FULL)}, bat={_SLOT: _BITMAP_AT}),
    name="bitmap",
    also=("SPACE-SLACK",),
    repairable=True,
)
_add("BAT-RESERVED", "warning", _child(bat={_SLOT: _BITMAP_AT | 6 | 0x80}), name="bitmap", repairable=True)
_add(
    "BAT-OVERLAP",
    "corrupt",
    _child(bat={_SLOT: 5 * MIB | 6}),
    name="bitmap",
    also=("SPACE-SLACK",),
)
_add("BITMAP-STALE", "warning", _bits(256 * 5, b"\1"), repairable=True)
_add("BITMAP-TAIL", "warning", _bits(256 * 8, b"\1"), repairable=True)
_add(
    "BITMAP-FULL",
    "warning",
    _child(blocks={1: Block(PARTIAL, frozenset(range(2048)))}),
    repairable=True,
)
_add("BITMAP-NONE", "warning", _child(blocks={1: Block(PARTIAL)}), repairable=True)
_add("BITMAP-UNUSED", "note", _child(blocks={1: Block(FULL)}))

# -- space ------------------------------------------------------------------------------------

_add("SPACE-DATA", "warning", _bat({0: 0, 2: 0}), also=("SPACE-SLACK",))
_add("SPACE-UNOWNED", "note", disk(shuffle=1))
_add("SPACE-SLACK", "note", _cut(disk(), 9 * MIB))
_add("SPACE-ANCHORS", "note", _cut(_bat({3: 6 * MIB | UNMAPPED}), 7 * MIB))

# -- chain ------------------------------------------------------------------------------------

_add("PARENT-NOT-FOUND", "corrupt", child())
_add("PARENT-MISMATCH", "corrupt", _family(child(), disk(tag=10)))
_add("PARENT-SECTOR-SIZE", "corrupt", _family(child(), replace(parent(), sector=4096)))
_add("PARENT-SIZE", "warning", _family(child(), replace(parent(), size=16 * MIB)))
_add("PARENT-DISK-ID", "warning", _family(child(), replace(parent(), replace={DISK_ID: guid(78).bytes_le})))


def _own_parent(folder: Path) -> Path:
    image = child(relative_path=".\\disk.vhdx")
    image.locator = {"parent_linkage": f"{{{image.data_write_guid}}}", "relative_path": ".\\disk.vhdx"}
    return image.write(folder / "disk.vhdx").path


_add("PARENT-CYCLE", "corrupt", _own_parent)


def _stale_path(folder: Path) -> Path:
    (folder / "elsewhere").mkdir()
    parent().write(folder / "elsewhere" / "parent.vhdx")
    return child().write(folder / "disk.vhdx").path


_add("PARENT-PATH", "warning", _stale_path, repairable=True, search="elsewhere")

# -- payload ----------------------------------------------------------------------------------

_add("PAYLOAD-ZERO", "warning", _bat({3: 6 * MIB | FULL}, patches=[(7 * MIB - 1, b"\0")]), deep=True)


def _boot_sector(kind: int, start: int, count: int) -> bytes:
    entry = bytes([0, 0, 0, 0, kind, 0, 0, 0]) + struct.pack("<II", start, count)
    return (bytes(446) + entry).ljust(510, b"\0") + b"\x55\xaa"


_add(
    "PAYLOAD-PARTITION",
    "warning",
    disk(patches=[(FIRST_BLOCK, _boot_sector(7, 2048, 1 << 20))]),
    name="mbr",
    deep=True,
)
_add(
    "PAYLOAD-PARTITION",
    "warning",
    disk(
        patches=[
            (
                FIRST_BLOCK,
                _boot_sector(0xEE, 1, 0xFFFF_FFFF)
                + b"EFI PART"
                + bytes(24)
                + struct.pack("<QQQ", 8 * 2048 + 9, 34, 8 * 2048 - 34),
            )
        ]
    ),
    name="gpt",
    deep=True,
)
