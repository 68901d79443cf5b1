"""What a broken file still holds comes out byte for byte, and what does not is named, exactly."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pyvhdx
from pyvhdx import cli
from pyvhdx.testing import MemoryStorage
from tests.corpus import handmade_logs
from tests.corpus.handmade import (
    BAT_AT,
    DISK_SIZE,
    FILE_PARAMETERS,
    FULL,
    LOG_AT,
    LOGICAL,
    METADATA_AT,
    MIB,
    PARTIAL,
    ZERO,
    Block,
    Image,
    guid,
)
from tests.fuzz.oracle import limited

HEADERS = ((0x10000, 4096), (0x20000, 4096))
TABLES = ((0x30000, 65536), (0x40000, 65536))
METADATA = ((METADATA_AT, MIB),)
FIRST_MIB = ((0, MIB),)
DAMAGES = {
    "identifier": ((0, 4096),),
    "headers": HEADERS,
    "region tables": TABLES,
    "first MiB": FIRST_MIB,
    "metadata": METADATA,
    "headers and metadata": HEADERS + METADATA,
    "region tables and metadata": TABLES + METADATA,
}


def wipe(path: Path, ranges: tuple[tuple[int, int], ...]) -> None:
    with path.open("r+b") as file:
        for at, length in ranges:
            file.seek(at)
            file.write(bytes(length))


def salvaged(path: Path, **how: Any) -> tuple[pyvhdx.SalvageReport, bytes]:
    target = path.parent / "salvaged.raw"
    report = pyvhdx.salvage(path, target, overwrite=True, **how)
    return report, target.read_bytes()


def lost(report: pyvhdx.SalvageReport) -> list[tuple[int, int, str]]:
    return [(one.offset, one.length, one.code) for one in report.unreadable]


def model_with_holes(image: Image, report: pyvhdx.SalvageReport) -> bytes:
    content = bytearray(image.expected(0, image.size))
    for one in report.unreadable:
        content[one.offset : one.offset + one.length] = bytes(one.length)
    return bytes(content)


def disk(block_size: int = MIB, sector: int = 512, kind: str = "dynamic", count: int = 6) -> Image:
    numbers = range(count) if kind == "fixed" else [n for n in range(count) if n not in (2, 4)]
    return Image(count * block_size, block_size, sector, kind, {n: Block(FULL) for n in numbers})


def log_of(places: dict[int, int], length: int, position: int, tail: int) -> bytes:
    """Return a log whose one entry, at *position*, brings the blocks at *places*."""
    page = bytearray(4096)
    for number, place in places.items():
        page[8 * number : 8 * number + 8] = (place | FULL).to_bytes(8, "little")
    entry = handmade_logs.Entry(5, tail, [(BAT_AT, bytes(page))], flushed=6 * MIB, last=6 * MIB)
    return handmade_logs.ring(length, [(position, entry)])


def wandering(folder: Path, at: int, length: int, position: int, tail: int | None = None) -> Image:
    """Write a disk whose log, *length* bytes at *at*, brings block 2, and is not applied."""
    image = Image(8 * MIB, blocks={0: Block(FULL), 2: Block(FULL)}, log_guid=handmade_logs.GUID)
    image.write(folder / "disk.vhdx")
    image.patches = [(at, log_of(image.places, length, position, position if tail is None else tail))]
    image.headers = ({"log_offset": at, "log_length": length},) * 2
    image.bat = {2: 0}
    return image.write(image.path)


def family(folder: Path, block_size: int = MIB, sector: int = 512) -> Image:
    parent = disk(block_size, sector, count=8)
    parent.tag = 2
    parent.write(folder / "parent.vhdx")
    blocks = {
        0: Block(FULL),
        1: Block(PARTIAL, frozenset(range(3, 50))),
        2: Block(ZERO),
        5: Block(PARTIAL, frozenset({1, 9})),
        7: Block(FULL),
    }
    child = Image(8 * block_size, block_size, sector, "differencing", blocks, parent=parent, tag=3, shuffle=5)
    return child.write(folder / "child.vhdx")


class TestEverythingComesOut:
    @pytest.mark.parametrize("damage", DAMAGES)
    @pytest.mark.parametrize("kind", ["dynamic", "fixed"])
    @pytest.mark.parametrize(
        ("block_size", "sector"),
        [(MIB, 512), (2 * MIB, 4096), pytest.param(32 * MIB, 512, marks=pytest.mark.slow)],
    )
    def test_of_a_disk_without_a_parent(
        self, tmp_path: Path, damage: str, kind: str, block_size: int, sector: int
    ) -> None:
        image = disk(block_size, sector, kind).write(tmp_path / "disk.vhdx")
        wipe(image.path, DAMAGES[damage])
        report, content = salvaged(image.path)
        assert content == image.expected(0, image.size)
        assert (report.lost, report.unreadable, report.recovered) == (0, [], image.size)
        assert report.block_size == block_size

    @pytest.mark.parametrize("damage", ["identifier", "headers", "region tables", "first MiB"])
    @pytest.mark.parametrize(("block_size", "sector"), [(MIB, 512), (2 * MIB, 4096), (4 * MIB, 512)])
    def test_of_a_child(self, tmp_path: Path, damage: str, block_size: int, sector: int) -> None:
        child = family(tmp_path, block_size, sector)
        wipe(child.path, DAMAGES[damage])
        report, content = salvaged(child.path)
        assert content == child.expected(0, child.size)
        assert (report.kind, report.lost) == ("differencing", 0)

    def test_of_a_child_without_metadata_where_the_parent_is_named(self, tmp_path: Path) -> None:
        child = family(tmp_path)
        wipe(child.path, METADATA)
        with pytest.raises(pyvhdx.CorruptImageError, match="LOCATOR-MISSING"):
            salvaged(child.path, parent=tmp_path / "parent.vhdx")
        report, content = salvaged(child.path, parent=tmp_path / "parent.vhdx", verify_parent=False)
        assert content == child.expected(0, child.size)
        assert set(report.guessed) == {"size", "block_size", "logical_sector_size", "kind"}

    def test_with_blocks_in_any_order(self, tmp_path: Path) -> None:
        image = disk(2 * MIB, count=40)
        image.shuffle = 3
        image.write(tmp_path / "disk.vhdx")
        wipe(image.path, FIRST_MIB + METADATA)
        with pytest.raises(pyvhdx.NotVHDXError):  # no trace is left
            salvaged(image.path)
        report, content = salvaged(image.path, block_size=2 * MIB)
        assert content == image.expected(0, image.size)
        assert "GUESS-BLOCK-SIZE" not in [finding.code for finding in report.warnings]

    def test_where_the_first_blocks_are_absent(self, tmp_path: Path) -> None:
        """The first page of the BAT is all zeros then, as any empty MiB is."""
        image = Image(900 * MIB, blocks={n: Block(FULL) for n in (700, 899)}).write(tmp_path / "disk.vhdx")
        wipe(image.path, TABLES)
        assert salvaged(image.path)[1] == image.expected(0, image.size)

    def test_into_a_vhdx_too(self, tmp_path: Path) -> None:
        image = disk(sector=4096).write(tmp_path / "disk.vhdx")
        wipe(image.path, HEADERS)
        report = pyvhdx.salvage(image.path, tmp_path / "new.vhdx")
        assert report.target_format == "vhdx"
        with pyvhdx.open(tmp_path / "new.vhdx") as new:
            assert new.read() == image.expected(0, image.size)
            assert (new.logical_sector_size, new.warnings) == (4096, ())

    def test_of_the_outer_file_and_not_of_a_vhdx_in_it(self, tmp_path: Path) -> None:
        """The disk holds a VHDX file at a MiB boundary: its tables are content."""
        inner = disk(count=4).write(tmp_path / "inner.vhdx").path.read_bytes()
        image = Image(20 * MIB, 2 * MIB, blocks={n: Block(FULL) for n in range(10)})
        image.write(tmp_path / "disk.vhdx")
        place = image.places[2]
        image.patches.append((place, inner))
        image.write(tmp_path / "disk.vhdx")
        with pyvhdx.open(image.path) as strict:
            whole = strict.read()
        wipe(image.path, TABLES)
        assert salvaged(image.path)[1] == whole

    def test_where_options_contradict_the_file(self, tmp_path: Path) -> None:
        image = disk().write(tmp_path / "disk.vhdx")
        report, content = salvaged(image.path, size=3 * MIB)
        assert content == image.expected(0, 3 * MIB)
        assert report.virtual_size == 3 * MIB
        longer, content = salvaged(image.path, size=8 * MIB)
        assert content == image.expected(0, image.size) + bytes(2 * MIB)
        assert longer.lost == 0


class TestGuesses:
    def gpt(self, sectors: int) -> bytes:
        header = struct.pack("<8sIIIIQQ", b"EFI PART", 0x10000, 92, 0, 0, 1, sectors - 1).ljust(92, b"\0")
        return header[:16] + struct.pack("<I", zlib.crc32(header)) + header[20:]

    def put(self, image: Image, at: int, data: bytes) -> None:
        image.write(image.path)
        image.patches.append((image.places[0] + at, data))
        image.write(image.path)

    @pytest.mark.parametrize("sector", [512, 4096])
    def test_a_partition_table_tells_size_and_sector(self, tmp_path: Path, sector: int) -> None:
        image = Image(50 * MIB + 4096, MIB, sector, blocks={n: Block(FULL) for n in (0, 1, 7)})
        image.path = tmp_path / "disk.vhdx"
        self.put(image, sector, self.gpt(image.size // sector))
        wipe(image.path, METADATA)
        report, _ = salvaged(image.path)
        assert (report.virtual_size, report.logical_sector_size) == (image.size, sector)
        assert "the GPT partition table" in report.guessed["size"]

    def test_a_partition_table_that_cannot_be_does_not_count(self, tmp_path: Path) -> None:
        image = Image(8 * MIB, blocks={n: Block(FULL) for n in range(8)})
        image.path = tmp_path / "disk.vhdx"
        self.put(image, 512, self.gpt(1 << 50))
        wipe(image.path, METADATA)
        assert salvaged(image.path)[0].virtual_size == 8 * MIB

    @pytest.mark.parametrize(
        ("at", "data", "source"),
        [
            (
                446,
                struct.pack("<B3xB3xII", 0, 7, 2048, 40 * 2048 - 2048).ljust(64, b"\0") + b"\x55\xaa",
                "MBR",
            ),
            (3, b"NTFS    \0\2".ljust(37, b"\0") + struct.pack("<Q", 40 * 2048 - 1), "NTFS"),
            (1024, struct.pack("<II16xI28xH", 0, 40 * 256, 2, 0xEF53), "ext"),
            (0, b"XFSB" + struct.pack(">IQ", 4096, 40 * 256), "XFS"),
        ],
    )
    def test_a_file_system_tells_the_least_size(
        self, tmp_path: Path, at: int, data: bytes, source: str
    ) -> None:
        image = Image(40 * MIB, blocks={n: Block(FULL) for n in (0, 1, 7)})
        image.path = tmp_path / "disk.vhdx"
        self.put(image, 0, bytes(4096))
        self.put(image, at, data)
        wipe(image.path, METADATA)
        report, _ = salvaged(image.path)
        assert report.virtual_size == 40 * MIB
        assert source in report.guessed["size"]

    def test_the_slots_of_the_bat_tell_the_sector_size(self, tmp_path: Path) -> None:
        """With sectors of 512 bytes the entry number 4096 would be a slot; here a block has it."""
        image = Image(4200 * MIB, MIB, 4096, blocks={n: Block(FULL) for n in (0, 1, 4096, 4199)})
        image.write(tmp_path / "disk.vhdx")
        wipe(image.path, METADATA)
        report = pyvhdx.salvage(image.path, None, dry_run=True)
        assert (report.virtual_size, report.logical_sector_size) == (4200 * MIB, 4096)

    def test_single_items_are_guessed_beside_those_that_are_left(self, tmp_path: Path) -> None:
        for item, name in (
            (FILE_PARAMETERS, "block_size"),
            (DISK_SIZE, "size"),
            (LOGICAL, "logical_sector_size"),
        ):
            image = disk(2 * MIB, sector=512, count=7)
            image.without = (item,)
            image.write(tmp_path / "disk.vhdx")
            report, content = salvaged(image.path)
            assert content == image.expected(0, image.size)
            assert set(report.guessed) - {"kind"} == {name}

    @pytest.mark.parametrize("size", [0, 1 << 47, 6 * MIB + 100])
    def test_an_impossible_size_is_replaced(self, tmp_path: Path, size: int) -> None:
        image = disk()
        image.replace[DISK_SIZE] = struct.pack("<Q", size)
        image.write(tmp_path / "disk.vhdx")
        assert salvaged(image.path)[1] == image.expected(0, image.size)


class TestWhatIsLostIsNamed:
    def test_what_lay_behind_the_end_of_a_cut_file(self, tmp_path: Path) -> None:
        image = disk(2 * MIB).write(tmp_path / "disk.vhdx")
        os.truncate(image.path, image.path.stat().st_size - 3 * MIB)
        report, content = salvaged(image.path)
        assert lost(report) == [(7 * MIB, MIB, "BAT-RANGE"), (10 * MIB, 2 * MIB, "BAT-RANGE")]
        assert content == model_with_holes(image, report)
        assert (report.lost, report.recovered) == (3 * MIB, 9 * MIB)

    @pytest.mark.parametrize("state", [4, 5])
    def test_blocks_in_reserved_states(self, tmp_path: Path, state: int) -> None:
        image = disk()
        image.bat = {1: state, 2: state}
        image.write(tmp_path / "disk.vhdx")
        report, content = salvaged(image.path)
        assert lost(report) == [(MIB, 2 * MIB, "BAT-STATE")]
        assert content == model_with_holes(image, report)

    def test_a_bat_that_the_end_of_the_file_cuts(self, tmp_path: Path) -> None:
        """It lies behind its blocks, so the blocks are there and their entries are not."""
        image = disk(count=3)
        image.write(tmp_path / "disk.vhdx")
        at = 8 * MIB
        image.headers = ({}, {})
        table = image.region_table()
        moved = table[:32] + struct.pack("<Q", at) + table[40:]
        from tests.corpus.handmade import sealed  # noqa: PLC0415

        with image.path.open("r+b") as file:
            file.seek(BAT_AT)
            entries = file.read(24)
            for place in (0x30000, 0x40000):
                file.seek(place)
                file.write(sealed(moved))
            file.seek(at)
            file.write(entries[:8])
            file.truncate(at + 8)
        report, content = salvaged(image.path)
        assert lost(report) == [(MIB, 2 * MIB, "BAT-CUT")]
        assert content == model_with_holes(image, report)

    def test_a_bat_that_is_too_small(self, tmp_path: Path) -> None:
        image = Image(200_000 * MIB, blocks={0: Block(FULL)})
        image.write(tmp_path / "disk.vhdx")
        table = bytearray(image.region_table())
        table[40:44] = struct.pack("<I", MIB)
        from tests.corpus.handmade import sealed  # noqa: PLC0415

        with image.path.open("r+b") as file:
            for place in (0x30000, 0x40000):
                file.seek(place)
                file.write(sealed(bytes(table)))
        report = pyvhdx.salvage(image.path, None, dry_run=True)
        held = MIB // 8 - MIB // 8 // 4097
        assert lost(report) == [(held * MIB, (200_000 - held) * MIB, "BAT-SIZE")]

    def test_a_partial_block_without_its_bitmap(self, tmp_path: Path) -> None:
        child = family(tmp_path)
        child.bat = {child.bitmap_index(0): 0}
        child.write(child.path)
        report, content = salvaged(child.path)
        assert lost(report) == [(MIB, MIB, "BITMAP-ENTRY"), (5 * MIB, MIB, "BITMAP-ENTRY")]
        assert content == model_with_holes(child, report)

    def test_a_missing_parent(self, tmp_path: Path) -> None:
        child = family(tmp_path)
        (tmp_path / "parent.vhdx").unlink()
        report, content = salvaged(child.path)
        assert {code for _, _, code in lost(report)} == {"PARENT-MISSING"}
        for block in (3, 4, 6):
            assert any(
                at <= block * MIB and (block + 1) * MIB <= at + length for at, length, _ in lost(report)
            )
        assert content == model_with_holes(child, report)
        stored = 2 * MIB + MIB + (47 + 2) * 512
        assert report.recovered == stored
        assert "PARENT-MISSING" in [finding.code for finding in report.warnings]

    def test_a_parent_that_was_changed_is_none_unless_it_is_not_verified(self, tmp_path: Path) -> None:
        child = family(tmp_path)
        assert child.parent is not None
        child.parent.tag = 9
        child.parent.write(child.parent.path)
        report, _ = salvaged(child.path)
        assert {code for _, _, code in lost(report)} == {"PARENT-MISSING"}
        report, content = salvaged(child.path, verify_parent=False)
        assert (report.lost, content) == (0, child.expected(0, child.size))

    def test_a_broken_parent_is_read_as_far_as_it_can_be(self, tmp_path: Path) -> None:
        child = family(tmp_path)
        assert child.parent is not None
        child.parent.bat = {3: 4}
        child.parent.write(child.parent.path)
        wipe(child.parent.path, TABLES)
        report, content = salvaged(child.path)
        assert lost(report) == [(3 * MIB, MIB, "BAT-STATE")]
        assert content == model_with_holes(child, report)

    def test_two_blocks_at_one_place_are_read_with_a_warning(self, tmp_path: Path) -> None:
        image = disk()
        image.write(tmp_path / "disk.vhdx")
        image.bat = {1: image.places[0] | 6}
        image.write(image.path)
        report, content = salvaged(image.path)
        assert report.lost == 0
        assert content[:MIB] == content[MIB : 2 * MIB] == image.expected(0, MIB)
        (finding,) = report.warnings
        assert (finding.code, finding.offset) == ("BAT-OVERLAP", image.places[0])
        wipe(image.path, HEADERS)
        assert salvaged(image.path)[1] == content

    def test_no_more_ranges_are_listed_than_the_report_promises(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("pyvhdx.ops.salvage.MAX_RANGES", 2)
        image = disk()
        image.bat = dict.fromkeys((0, 2, 4), 4)
        image.write(tmp_path / "disk.vhdx")
        report, _ = salvaged(image.path)
        assert [at for at, _, _ in lost(report)] == [0, 2 * MIB]
        assert (report.lost, report.unlisted) == (3 * MIB, MIB)


def test_what_is_only_warned_of_is_named_behind_what_is_fatal(tmp_path: Path) -> None:
    child = family(tmp_path)
    child.flags, child.items = 0, ((guid(3), 4, b"x"),)  # no HasParent any more; a required item nobody knows
    child.write(child.path)
    report = pyvhdx.salvage(child.path, None, dry_run=True)
    codes = [finding.code for finding in report.warnings]
    assert codes[:2] == ["METADATA-UNKNOWN", "LOCATOR-LEFTOVER"]


class BadSectors(MemoryStorage):
    """A medium with ranges that cannot be read."""

    def __init__(self, data: bytes, *bad: tuple[int, int]) -> None:
        super().__init__(data)
        self.bad = bad

    def read_into(self, buffer: memoryview, offset: int) -> int:
        if any(start < offset + len(buffer) and offset < end for start, end in self.bad):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().read_into(buffer, offset)


class TestBadSectors:
    def test_of_the_payload_cost_themselves_only(self, tmp_path: Path) -> None:
        image = disk(2 * MIB).write(tmp_path / "disk.vhdx")
        place = image.places[1]
        medium = BadSectors(
            image.path.read_bytes(),
            (place + 65536, place + 65536 + 512),
            (place + MIB - 100, place + MIB + 100),
        )
        report = pyvhdx.salvage(medium, tmp_path / "out.raw")
        start = 2 * MIB
        assert lost(report) == [
            (start + 65536, 512, "READ-ERROR"),
            (start + MIB - 512, 1024, "READ-ERROR"),
        ]
        assert (tmp_path / "out.raw").read_bytes() == model_with_holes(image, report)

    def test_of_the_bat_cost_what_its_page_says(self, tmp_path: Path) -> None:
        image = Image(600 * MIB, blocks={n: Block(FULL) for n in (0, 1, 599)}).write(tmp_path / "disk.vhdx")
        medium = BadSectors(image.path.read_bytes(), (BAT_AT, BAT_AT + 512))
        report = pyvhdx.salvage(medium, tmp_path / "out.raw")
        assert lost(report) == [(0, 512 * MIB, "READ-ERROR")]
        assert (tmp_path / "out.raw").read_bytes() == model_with_holes(image, report)

    def test_of_the_bat_between_absent_blocks_are_no_zeros(self, tmp_path: Path) -> None:
        image = Image(2000 * MIB, blocks={1999: Block(FULL)}).write(tmp_path / "disk.vhdx")
        medium = BadSectors(image.path.read_bytes(), (BAT_AT + 4096, BAT_AT + 4097))
        report = pyvhdx.salvage(medium, None, dry_run=True)
        assert lost(report) == [(512 * MIB, 512 * MIB, "READ-ERROR")]

    @pytest.mark.parametrize(
        "at", [0, 0x10000, 0x20000, 0x30000, 0x40000, METADATA_AT, METADATA_AT + 65536], ids=hex
    )
    def test_anywhere_else_cost_nothing(self, tmp_path: Path, at: int) -> None:
        image = disk().write(tmp_path / "disk.vhdx")
        report = pyvhdx.salvage(BadSectors(image.path.read_bytes(), (at, at + 512)), tmp_path / "out.raw")
        assert (tmp_path / "out.raw").read_bytes() == image.expected(0, image.size)
        assert "READ-ERROR" in [finding.code for finding in report.warnings]


def logged(folder: Path, **changes: Any) -> Image:
    """A disk whose log brings block 1, and is not applied."""
    image = disk(count=3)
    image.write(folder / "disk.vhdx")
    page = struct.pack("<QQ", image.places[0] | 6, image.places[1] | 6).ljust(4096, b"\0")
    values = {"flushed": 7 * MIB, "last": 7 * MIB} | changes
    entry = handmade_logs.Entry(7, 0, [(BAT_AT, page)], **values)
    image.log, image.log_guid = entry.build(), handmade_logs.GUID
    image.bat = {1: 0}
    image.write(image.path)
    return image


class TestLogs:
    def test_one_that_a_header_names_is_replayed(self, tmp_path: Path) -> None:
        image = logged(tmp_path, flushed=0, last=0)
        report, content = salvaged(image.path)
        assert content == image.expected(0, image.size)
        assert [finding.code for finding in report.warnings] == ["LOG-PENDING"]
        _, without = salvaged(image.path, log="ignore")
        assert without == image.expected(0, MIB) + bytes(2 * MIB)

    def test_one_that_no_header_names_puts_in_doubt_what_it_would_change(self, tmp_path: Path) -> None:
        image = logged(tmp_path, flushed=0, last=0)
        wipe(image.path, HEADERS)
        report, content = salvaged(image.path)
        assert lost(report) == [(MIB, MIB, "LOG-DOUBT")]
        assert content == image.expected(0, MIB) + bytes(2 * MIB)
        assert salvaged(image.path, log="replay")[1] == image.expected(0, image.size)
        assert salvaged(image.path, log="ignore")[0].lost == 0

    def test_one_that_was_applied_puts_nothing_in_doubt(self, tmp_path: Path) -> None:
        image = logged(tmp_path, flushed=0, last=0)
        image.bat = {}
        image.write(image.path)
        wipe(image.path, HEADERS)
        report, content = salvaged(image.path)
        assert (report.lost, content) == (0, image.expected(0, image.size))
        assert [finding.code for finding in report.warnings] == ["HEADER-NONE"]

    def test_a_torn_one_puts_in_doubt_what_it_points_at(self, tmp_path: Path) -> None:
        image = logged(tmp_path, changes={"crc": 0})
        with pytest.raises(pyvhdx.CorruptImageError, match="LOG-NO-SEQUENCE"):
            pyvhdx.open(image.path)
        report, _ = salvaged(image.path)
        assert lost(report) == [(0, image.size, "LOG-DOUBT")]
        report, content = salvaged(image.path, log="ignore")
        assert (report.lost, content) == (0, image.expected(0, MIB) + bytes(2 * MIB))

    def test_one_of_a_cut_file_is_replayed_and_what_is_gone_is_lost(self, tmp_path: Path) -> None:
        image = logged(tmp_path)
        size = image.path.stat().st_size
        os.truncate(image.path, size - MIB // 2)
        with pytest.raises(pyvhdx.CorruptImageError, match="LOG-FILE-TRUNCATED"):
            pyvhdx.open(image.path)
        report, content = salvaged(image.path)
        assert content == model_with_holes(image, report)
        assert {code for _, _, code in lost(report)} <= {"BAT-RANGE"}
        assert report.lost == MIB // 2

    def test_one_whose_place_the_header_does_not_tell_is_found(self, tmp_path: Path) -> None:
        image = logged(tmp_path, flushed=0, last=0)
        image.headers = ({"log_offset": 100 * MIB}, {"log_offset": 100 * MIB})
        image.write(image.path)
        report, content = salvaged(image.path)
        assert content == image.expected(0, image.size)
        assert report.guessed["log"] == "the log that the header names was found at 0x100000"
        wipe(image.path, ((LOG_AT, MIB),))
        report, _ = salvaged(image.path)
        assert [finding.code for finding in report.warnings] == ["LOG-RANGE", "LOG-DOUBT"]

    def test_one_that_would_change_bits_puts_the_block_in_doubt(self, tmp_path: Path) -> None:
        child = family(tmp_path)
        place = child.places[-1]
        with child.path.open("rb") as file:
            file.seek(place)
            bits = bytearray(file.read(4096))
        bits[256 * 5] ^= 1
        child.log = handmade_logs.Entry(7, 0, [(place, bytes(bits))]).build()
        child.write(child.path)
        wipe(child.path, HEADERS)
        report, content = salvaged(child.path)
        assert lost(report) == [(5 * MIB, MIB, "LOG-DOUBT")]
        assert content == model_with_holes(child, report)

    @pytest.mark.parametrize(
        ("at", "length", "position"),
        [
            (LOG_AT, MIB, 10 * 4096),
            (9 * MIB, MIB, 0),
            (9 * MIB, MIB, 10 * 4096),
            (9 * MIB, MIB, MIB - 4096),
            (9 * MIB, 2 * MIB, MIB + 4096),
            (9 * MIB, 2 * MIB, 2 * MIB - 4096),
        ],
    )
    def test_one_is_found_wherever_it_lies_and_its_sequence_begins(
        self, at: int, length: int, position: int, tmp_path: Path
    ) -> None:
        image = wandering(tmp_path, at, length, position)
        with pyvhdx.open(image.path) as disk:
            assert disk.read() == image.expected(0, image.size)
        image.headers = ({"log_offset": 12345},) * 2
        image.write(image.path)
        report, content = salvaged(image.path)
        assert content == image.expected(0, image.size)
        assert report.guessed["log"] == f"the log that the header names was found at {at:#x}"
        wipe(image.path, HEADERS)
        report, content = salvaged(image.path)
        assert lost(report) == [(2 * MIB, MIB, "LOG-DOUBT")]
        assert content == model_with_holes(image, report)

    @pytest.mark.parametrize("is_named", [True, False])
    def test_entries_without_a_sequence_put_in_doubt_what_they_point_at(
        self, is_named: bool, tmp_path: Path
    ) -> None:
        image = wandering(tmp_path, 9 * MIB, MIB, 10 * 4096, tail=7 * 4096)
        if is_named:
            image.headers = ({"log_offset": 12345},) * 2
            image.write(image.path)
        else:
            wipe(image.path, HEADERS)
        report, content = salvaged(image.path)
        assert lost(report) == [(2 * MIB, MIB, "LOG-DOUBT")]
        assert content == model_with_holes(image, report)
        assert "LOG-DOUBT" in [finding.code for finding in report.warnings]
        assert salvaged(image.path, log="ignore")[0].lost == 0

    def test_what_a_disk_holds_is_no_log(self, tmp_path: Path) -> None:
        image = Image(8 * MIB, blocks={0: Block(FULL), 2: Block(FULL)}).write(tmp_path / "disk.vhdx")
        with image.path.open("r+b") as file:
            file.seek(image.places[2])
            file.write(log_of({0: 4 * MIB, 5: 5 * MIB}, MIB, 4096, 4096))
        wipe(image.path, HEADERS)
        report, _ = salvaged(image.path)
        assert (report.lost, [finding.code for finding in report.warnings]) == (0, ["HEADER-NONE"])

    def test_doubts_reach_behind_the_first_page_of_the_table(self, tmp_path: Path) -> None:
        image = Image(2000 * MIB, blocks={0: Block(FULL), 600: Block(FULL)}, bat={600: 0})
        image.write(tmp_path / "disk.vhdx")
        page = bytearray(4096)
        page[8 * 88 : 8 * 88 + 8] = (image.places[600] | FULL).to_bytes(8, "little")
        image.log = handmade_logs.Entry(7, 0, [(BAT_AT + 4096, bytes(page))]).build()
        image.write(tmp_path / "disk.vhdx")
        wipe(image.path, HEADERS)
        report = pyvhdx.salvage(image.path, None, dry_run=True)
        assert lost(report) == [(600 * MIB, MIB, "LOG-DOUBT")]

    def test_looking_for_one_takes_no_time(self, tmp_path: Path) -> None:
        image = Image(64 * MIB, kind="fixed", blocks={n: Block(FULL) for n in range(64)})
        image.write(tmp_path / "disk.vhdx")
        wipe(image.path, HEADERS + TABLES)
        with image.path.open("r+b") as file:
            file.seek(0, os.SEEK_END)
            for _ in range(16):
                file.write((b"loge" + bytes(12) + os.urandom(4080)) * 256)
        with limited():
            pyvhdx.open(image.path, salvage=True).close()


def refused(how: dict[str, Any]) -> Callable[[Path], Any]:
    return lambda path: pyvhdx.salvage(path, path.with_name("out.raw"), **how)


class TestRequests:
    @pytest.mark.parametrize(
        "how",
        [
            {"block_size": 3 * MIB},
            {"logical_sector_size": 1024},
            {"size": 100},
            {"size": 1 << 47},
            {"kind": "sparse"},
            {"log": "refuse"},
            {"size": 512, "logical_sector_size": 4096},
        ],
    )
    def test_that_cannot_be_are_refused(self, tmp_path: Path, how: dict[str, Any]) -> None:
        image = disk().write(tmp_path / "disk.vhdx")
        with pytest.raises(pyvhdx.RequestError, match=next(iter(how))):
            refused(how)(image.path)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["disk.vhdx"]

    def test_a_target_is_needed_and_an_old_one_stays(self, tmp_path: Path) -> None:
        image = disk().write(tmp_path / "disk.vhdx")
        with pytest.raises(pyvhdx.RequestError, match="target"):
            pyvhdx.salvage(image.path, None)
        with pytest.raises(TypeError, match="colour"):
            pyvhdx.salvage(image.path, None, colour=1)
        (tmp_path / "old.raw").write_bytes(b"old")
        with pytest.raises(FileExistsError):
            pyvhdx.salvage(image.path, tmp_path / "old.raw")
        assert (tmp_path / "old.raw").read_bytes() == b"old"

    def test_no_file_of_the_chain_is_the_target(self, tmp_path: Path) -> None:
        child = family(tmp_path)
        before = child.path.read_bytes(), (tmp_path / "parent.vhdx").read_bytes()
        for target in (child.path, tmp_path / "parent.vhdx"):
            with pytest.raises(pyvhdx.RequestError):
                pyvhdx.salvage(child.path, target, overwrite=True)
        assert before == (child.path.read_bytes(), (tmp_path / "parent.vhdx").read_bytes())

    @pytest.mark.parametrize(
        "content",
        [b"", b"x" * 100, bytes(4 * MIB), b"QFI\xfb".ljust(4 * MIB, b"\0"), bytes(range(256)) * 16384],
        ids=["empty", "short", "zeros", "qcow2", "pattern"],
    )
    def test_what_has_no_trace_of_the_format_is_refused(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "disk.vhdx"
        path.write_bytes(content)
        with pytest.raises(pyvhdx.NotVHDXError):
            pyvhdx.salvage(path, tmp_path / "out.raw")

    def test_a_file_without_a_bat_is_refused_for_what_was_wrong_first(self, tmp_path: Path) -> None:
        image = disk().write(tmp_path / "disk.vhdx")
        wipe(image.path, (*TABLES, (BAT_AT, MIB)))
        with pytest.raises(pyvhdx.CorruptImageError, match=r"found no BAT.*REGION-NONE"):
            pyvhdx.salvage(image.path, tmp_path / "out.raw")

    def test_who_can_help_a_search_is_told_how(self, tmp_path: Path) -> None:
        image = disk().write(tmp_path / "disk.vhdx")
        wipe(image.path, FIRST_MIB + METADATA)
        with pytest.raises(pyvhdx.NotVHDXError, match="give block_size"):
            salvaged(image.path)
        assert salvaged(image.path, block_size=MIB)[1] == image.expected(0, image.size)
        wipe(image.path, ((BAT_AT, MIB),))
        for how in ({}, {"block_size": MIB}):
            with pytest.raises(pyvhdx.NotVHDXError, match="a search found no BAT"):
                salvaged(image.path, **how)

    def test_the_source_stays_as_it_is(self, tmp_path: Path) -> None:
        image = logged(tmp_path)
        wipe(image.path, HEADERS)
        before = image.path.read_bytes()
        salvaged(image.path, log="replay")
        assert image.path.read_bytes() == before


class TestLimits:
    def test_cancelled_nothing_is_left(self, tmp_path: Path) -> None:
        image = disk().write(tmp_path / "disk.vhdx")

        def cancel(done: int, _: int) -> None:
            if done > 2 * MIB:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            pyvhdx.salvage(image.path, tmp_path / "out.raw", progress=cancel)
        assert [p.name for p in tmp_path.iterdir()] == ["disk.vhdx"]

    def test_a_file_of_64_tib_is_not_searched_hole_by_hole(self, tmp_path: Path) -> None:
        image = disk().write(tmp_path / "disk.vhdx")
        wipe(image.path, TABLES)
        try:
            os.truncate(image.path, 15 << 40)
        except OSError:
            pytest.skip("no file of this size here")
        with limited():
            assert salvaged(image.path)[1] == image.expected(0, image.size)

    @pytest.mark.slow
    @pytest.mark.parametrize("pattern", [b"\xff" * 8, struct.pack("<Q", 4), struct.pack("<Q", 63 * MIB | 6)])
    def test_a_bat_of_nonsense_is_opened_in_seconds(self, tmp_path: Path, pattern: bytes) -> None:
        """60 MiB of entries, 7.8 million."""
        image = Image(64 << 40, MIB, blocks={})
        image.write(tmp_path / "disk.vhdx")
        with image.path.open("r+b") as file:
            file.seek(BAT_AT)
            file.write(pattern * (60 * MIB // 8))
            file.truncate(64 * MIB)
        for damage in ((), TABLES, METADATA, FIRST_MIB):
            wipe(image.path, damage)
            with (
                limited(),
                contextlib.suppress(pyvhdx.ImageError),
                pyvhdx.open(image.path, salvage=True) as opened,
            ):
                next(opened.extents())


@pytest.mark.images
@pytest.mark.parametrize("damage", ["headers", "region tables", "first MiB"])
def test_real_images_come_out_as_they_were(real_images: dict[str, Any], tmp_path: Path, damage: str) -> None:
    for name, (path, _) in real_images.items():
        copy = tmp_path / name
        subprocess.run(["cp", "--sparse=always", path, copy], check=True)
        wipe(copy, DAMAGES[damage])
        target = tmp_path / f"{name}.raw"
        report = pyvhdx.salvage(copy, target, log="replay")
        assert report.lost == 0
        with pyvhdx.open(path) as strict, target.open("rb") as file:
            assert report.virtual_size == strict.size == target.stat().st_size
            for extent in strict.extents():
                if extent.kind == "data":
                    file.seek(extent.offset)
                    assert file.read(extent.length) == strict.pread(extent.length, extent.offset)
                else:
                    for at in (extent.offset, extent.offset + extent.length - 4096):
                        file.seek(at)
                        assert not any(file.read(4096))


@pytest.mark.images
def test_real_images_without_metadata_come_out_up_to_their_last_block(
    real_images: dict[str, Any], tmp_path: Path
) -> None:
    for name, (path, _) in real_images.items():
        copy = tmp_path / name
        subprocess.run(["cp", "--sparse=always", path, copy], check=True)
        with pyvhdx.open(path) as strict:
            region = strict._file.regions.metadata
            wipe(copy, ((region.file_offset, region.length),))
            target = tmp_path / f"{name}.raw"
            report = pyvhdx.salvage(copy, target)
            assert report.block_size == strict.block_size, name
            with target.open("rb") as file:
                for extent in strict.extents():
                    if extent.kind == "data":
                        file.seek(extent.offset)
                        assert file.read(extent.length) == strict.pread(extent.length, extent.offset)


class TestCommand:
    def test_all_read_is_status_0(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        image = disk().write(tmp_path / "disk.vhdx")
        wipe(image.path, HEADERS)
        assert cli.main(["salvage", str(image.path), str(tmp_path / "out.raw")]) == 0
        captured = capsys.readouterr()
        assert "HEADER-NONE" in captured.out
        assert "6 MiB (6291456 bytes) of 6 MiB (6291456 bytes) read" in captured.out
        assert captured.err == ""

    def test_anything_lost_is_status_1_with_a_line_and_the_target_is_there(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        image = disk()
        image.bat = {1: 4}
        image.write(tmp_path / "disk.vhdx")
        target = tmp_path / "out.raw"
        assert cli.main(["salvage", "--output", "json", str(image.path), str(target)]) == 1
        captured = capsys.readouterr()
        answer = json.loads(captured.out)
        assert answer["unreadable"] == [
            {"offset": MIB, "length": MIB, "code": "BAT-STATE", "reason": answer["unreadable"][0]["reason"]}
        ]
        assert (answer["lost"], answer["virtual-size"], answer["recovered"]) == (MIB, 6 * MIB, 5 * MIB)
        assert captured.err == "pyvhdx: 1 MiB (1048576 bytes) could not be read, in one range\n"
        assert target.stat().st_size == 6 * MIB

    def test_a_dry_run_writes_nothing(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        image = disk()
        image.bat = {1: 4}
        image.write(tmp_path / "disk.vhdx")
        assert cli.main(["salvage", "--dry-run", str(image.path)]) == 1
        assert "could be read: 5 MiB" in capsys.readouterr().out
        assert cli.main(["salvage", "--dry-run", "-q", str(image.path), str(tmp_path / "out.raw")]) == 1
        assert [p.name for p in tmp_path.iterdir()] == ["disk.vhdx"]
        assert cli.main(["salvage", str(image.path)]) == 2

    def test_the_parameters_reach_the_guess(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        image = disk(2 * MIB, 4096)
        image.write(tmp_path / "disk.vhdx")
        wipe(image.path, METADATA)
        options = [
            "--size",
            "11M",
            "--block-size",
            "2M",
            "--logical-sector-size",
            "4096",
            "--kind",
            "dynamic",
        ]
        target = tmp_path / "out.img"
        assert cli.main(["salvage", "--output", "json", *options, str(image.path), str(target)]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert (answer["guessed"], answer["logical-sector-size"]) == ({}, 4096)
        assert target.read_bytes() == image.expected(0, 11 * MIB)
        assert cli.main(["salvage", str(image.path), str(target)]) == 1
        assert cli.main(["salvage", "--force", "-q", str(image.path), str(target)]) == 0

    def test_a_doubtful_result_is_named_last_and_with_q_too(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        image = disk()
        image.bat = {1: 4 * MIB | 6}  # where block 0 lies
        image.write(tmp_path / "disk.vhdx")
        wipe(image.path, METADATA)
        assert cli.main(["salvage", "-q", str(image.path), str(tmp_path / "out.raw")]) == 0
        lines = capsys.readouterr().err.splitlines()
        assert lines == [
            "pyvhdx: two blocks share a place: what one of them shows is wrong",
            "pyvhdx: the size and block size were guessed; give --size ... and --block-size ... if you know better",
        ]

    @pytest.mark.skipif(sys.platform == "win32", reason="signals")
    def test_interrupted_nothing_is_left(self, tmp_path: Path) -> None:
        image = Image(400 * MIB, 2 * MIB, blocks={n: Block(FULL) for n in range(200)})
        image.write(tmp_path / "disk.vhdx")
        process = subprocess.Popen(
            [sys.executable, "-m", "pyvhdx", "salvage", image.path, tmp_path / "out.raw"],
            stderr=subprocess.PIPE,
            text=True,
        )
        while process.poll() is None and not list(tmp_path.glob(".out.raw.*")):
            time.sleep(0.002)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
        assert (process.returncode, said) == (130, "pyvhdx: interrupted\n")
        assert [p.name for p in tmp_path.iterdir()] == ["disk.vhdx"]

    def test_map_info_and_read_open_broken_files_with_salvage(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        image = disk(count=3)
        image.bat = {1: 4}
        image.write(tmp_path / "disk.vhdx")
        wipe(image.path, HEADERS)
        assert cli.main(["map", str(image.path)]) == 1
        capsys.readouterr()
        assert cli.main(["map", "--salvage", "--output", "json", str(image.path)]) == 0
        entry = json.loads(capsys.readouterr().out)[1]
        assert entry == {
            "start": MIB, "length": MIB, "depth": 0, "present": True, "zero": False, "data": False,
            "kind": "unreadable",
        }  # fmt: skip
        assert cli.main(["info", "--salvage", str(image.path)]) == 0
        assert "HEADER-NONE" in capsys.readouterr().out
        assert cli.main(["read", "--salvage", str(image.path), "1M", "512", "-o", str(tmp_path / "x")]) == 1
        assert "BAT-STATE" in capsys.readouterr().err


def test_guids_of_a_lost_header_are_none(tmp_path: Path) -> None:
    image = disk().write(tmp_path / "disk.vhdx")
    wipe(image.path, HEADERS)
    with pyvhdx.open(image.path, salvage=True) as opened:
        assert opened.data_write_guid.int == opened.file_write_guid.int == 0
        assert opened.disk_id == guid(77)
