"""Found by an adversary: what a repair or a salvage made of bytes that were not there, or not there yet."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

import pyvhdx
from pyvhdx.storage import Rehearsal
from pyvhdx.testing import MemoryStorage
from tests.corpus.broken import child, disk, parent, table
from tests.corpus.handmade import (
    BAT,
    BAT_AT,
    FULL,
    METADATA,
    METADATA_AT,
    MIB,
    PARTIAL,
    ZERO,
    Block,
    Image,
    guid,
)
from tests.corpus.handmade_logs import GUID, Entry, follow, ring

SIZE_ITEM = METADATA_AT + 65536 + 8
COPIES = (0x30000, 0x40000)


def log_of(*pages: tuple[int, bytes], flushed: int = 7 * MIB) -> bytes:
    return ring(MIB, follow([Entry(5, 0, list(pages), flushed=flushed, last=7 * MIB)]))


def write(image: Image, folder: Path) -> Path:
    parent().write(folder / "parent.vhdx")
    return image.write(folder / "disk.vhdx").path


def read(path: Path) -> bytes:
    with pyvhdx.open(path) as image:
        return image.read()


def test_a_copy_has_what_the_log_brought_to_its_source(tmp_path: Path) -> None:
    """The bits of block 1 are in the pending log only, and block 3 lies on the bitmap."""
    image = child(blocks={1: Block(PARTIAL, frozenset({1, 2})), 3: Block(FULL)})
    path = write(image, tmp_path)
    bitmap = image.places[-1]
    image.log, image.log_guid = log_of((bitmap, path.read_bytes()[bitmap : bitmap + 4096])), GUID
    image.patches = [(bitmap, bytes(4096))]
    image.bat = {3: bitmap | FULL}
    path = write(image, tmp_path)
    expected = image.expected(MIB, MIB)
    report = pyvhdx.repair(path, choices={"BAT-OVERLAP": "copy"})
    assert (report.left, report.lost) == ([], [])
    assert pyvhdx.check(path).ok
    assert not pyvhdx.check(path).warnings
    with pyvhdx.open(path) as opened:
        assert opened.pread(MIB, MIB) == expected


def test_a_rehearsal_copies_what_was_written_before_and_not_what_comes_after() -> None:
    storage = MemoryStorage()
    storage.write_at(b"a" * 8192, 0)
    rehearsal = Rehearsal(storage)
    rehearsal.write_at(b"b" * 10, 4096)
    rehearsal.truncate(2 * MIB)
    rehearsal.copied(0, MIB, 8192)
    rehearsal.copied(MIB, MIB + MIB // 2, 8192)  # which is not in the file below
    rehearsal.write_at(b"c" * 10, 4096)
    expected = [b"a" * 4096 + letter * 10 + b"a" * 4086 for letter in (b"c", b"b", b"b")]
    places = (0, MIB, MIB + MIB // 2)
    assert [rehearsal.read_at(8192, at) for at in places] == expected
    rehearsal.carry_out(storage, sync=True)
    assert [storage.read_at(8192, at) for at in places] == expected
    rehearsal.close()


class TestAFileThatWasCut:
    def test_gets_no_length_back_where_a_bitmap_was_lost(self, tmp_path: Path) -> None:
        image = child(log=log_of((BAT_AT + 4096, bytes(4096))), log_guid=GUID)
        image.blocks = {1: Block(PARTIAL, frozenset({1, 2})), 3: Block(FULL)}
        path = write(image, tmp_path)
        os.truncate(path, image.places[-1])
        (left,) = [one for one in pyvhdx.repair(path).left if one.finding.code == "LOG-FILE-TRUNCATED"]
        assert left.choices == ("drop",)
        with pytest.raises(pyvhdx.RequestError, match="'drop'"):
            pyvhdx.repair(path, choices={("LOG-FILE-TRUNCATED", left.finding.offset): "extend"})

    @pytest.mark.parametrize("is_in_the_log", [False, True])
    def test_gets_its_length_back_only_where_the_log_has_the_bat(
        self, is_in_the_log: bool, tmp_path: Path
    ) -> None:
        new = table((BAT, 6 * MIB, MIB, 1), (METADATA, METADATA_AT, MIB, 1))
        entries = struct.pack("<QQQ", 4 * MIB | FULL, 0, 5 * MIB | FULL).ljust(4096, b"\0")
        pages = [(at, new[:4096]) for at in COPIES] + [(6 * MIB, entries)] * is_in_the_log
        image = disk(log=log_of(*pages), log_guid=GUID)
        image.patches = [(6 * MIB, entries.ljust(MIB, b"\0")), (BAT_AT, bytes(24))]
        path = write(image, tmp_path)
        os.truncate(path, 7 * MIB)
        expected = read(path)
        os.truncate(path, 6 * MIB)
        report = pyvhdx.repair(path, choices={"LOG-FILE-TRUNCATED": "extend"})
        assert report.is_clean is is_in_the_log
        if is_in_the_log:
            assert (read(path), report.lost) == (expected, [])

    def test_keeps_its_length_where_it_ends_inside_an_item(self, tmp_path: Path) -> None:
        """Zeros up to the next MiB would be the rest of the item."""
        item = guid(0x77)
        image = disk(items=((item, 1, b"precious" * 512),))
        regions = table((BAT, BAT_AT, MIB, 1), (METADATA, 6 * MIB, MIB, 1))
        image.patches = [(6 * MIB, image.metadata()), *((at, regions) for at in COPIES)]
        path = write(image, tmp_path)
        os.truncate(path, 6 * MIB + 65536 + 512)
        (found,) = [one for one in pyvhdx.check(path).findings if one.severity == "corrupt"]
        assert (found.code, found.structure) == ("METADATA-RANGE", f"metadata item {item}")
        before = path.read_bytes()
        assert [one.finding.code for one in pyvhdx.repair(path).left] == ["FILE-ALIGNMENT", "METADATA-RANGE"]
        assert path.read_bytes() == before

    def test_is_as_large_a_disk_as_it_was(self, tmp_path: Path) -> None:
        """A salvage that guesses the size counts the entries of the blocks that were cut off."""
        path = write(disk(blocks={n: Block(FULL) for n in range(8)}, patches=[(METADATA_AT, b"?")]), tmp_path)
        os.truncate(path, 8 * MIB)
        report = pyvhdx.salvage(path, None, dry_run=True)
        assert (report.virtual_size, report.lost) == (8 * MIB, 4 * MIB)


def test_a_log_in_doubt_that_has_other_metadata_is_a_warning(tmp_path: Path) -> None:
    page = bytearray(write(disk(), tmp_path).read_bytes()[SIZE_ITEM - 8 :][:4096])
    struct.pack_into("<Q", page, 8, 16 * MIB)  # the disk was to be resized
    log = log_of((SIZE_ITEM - 8, bytes(page)), flushed=6 * MIB)
    image = disk(log=log, log_guid=GUID, headers=({"crc": 0}, {"crc": 0}))
    report = pyvhdx.salvage(write(image, tmp_path), None, dry_run=True)
    assert "LOG-DOUBT" in [one.code for one in report.warnings]


def test_as_long_as_the_size_is_in_question_the_bits_behind_it_stay(tmp_path: Path) -> None:
    """The size item of a child says 4 MiB where it was 8."""
    blocks = {1: Block(PARTIAL, frozenset({1, 2})), 5: Block(PARTIAL, frozenset({7, 8})), 6: Block(ZERO)}
    image = child(blocks=blocks)
    path = write(image, tmp_path)
    for size in (4 * MIB, 8 * MIB):
        with path.open("r+b") as file:
            file.seek(SIZE_ITEM)
            file.write(struct.pack("<Q", size))
        if size == 4 * MIB:
            left = {one.finding.code for one in pyvhdx.repair(path, undo=False).left}
            assert {"BAT-PADDING", "BITMAP-TAIL"} <= left
    assert read(path) == image.expected(0, 8 * MIB)


def test_a_region_table_that_leads_to_an_empty_bat_does_not_win(tmp_path: Path) -> None:
    moved = table((BAT, 6 * MIB, MIB, 1), (METADATA, METADATA_AT, MIB, 1))
    path = write(disk(patches=[(COPIES[0], moved)]), tmp_path)
    os.truncate(path, 7 * MIB)
    before = path.read_bytes()
    left = {one.finding.code: one.choices for one in pyvhdx.repair(path, undo=False).left}
    assert left["REGION-COPIES"] == ("first", "second")
    assert path.read_bytes() == before
    report = pyvhdx.repair(path, undo=False, choices={"REGION-COPIES": "second"})
    assert [(one.code, one.offset) for one in report.lost] == [("REGION-COPIES", None)]
    assert read(path) == disk().expected(0, 8 * MIB)


def test_what_got_a_copy_is_not_lost_with_the_place(tmp_path: Path) -> None:
    """Blocks 3 and 4 lie at block 2's place: 3 gets a copy, and 4 the place."""
    path = write(disk(bat={3: 5 * MIB | FULL, 4: 5 * MIB | FULL}), tmp_path)
    choices = {("BAT-OVERLAP", BAT_AT + 24): "copy", ("BAT-OVERLAP", BAT_AT + 32): "second"}
    report = pyvhdx.repair(path, undo=False, choices=choices)
    assert [one.offset for one in report.lost] == [2 * MIB]
    content = disk().expected(2 * MIB, MIB)
    assert read(path)[2 * MIB : 5 * MIB] == bytes(MIB) + content * 2


def test_a_choice_that_another_one_settles_is_no_error(tmp_path: Path) -> None:
    """As a child's, the entry behind the last is a bitmap's slot, and nobody's padding."""
    image = child(flags=0, blocks={1: Block(PARTIAL, frozenset({1})), 3: Block(FULL)})
    path = write(image, tmp_path)
    plan = pyvhdx.repair(path, dry_run=True)
    choices = {(one.finding.code, one.finding.offset): one.choices[0] for one in plan.left if one.choices}
    assert len(choices) > 1
    pyvhdx.repair(path, undo=False, choices=choices)


def test_the_undo_file_of_a_repair_that_was_undone_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The power went before the undo removed it."""
    path = write(disk(headers=({}, {"crc": 0})), tmp_path)
    report = pyvhdx.repair(path)
    with monkeypatch.context() as patched:
        patched.setattr("pyvhdx.ops.undo.os.unlink", lambda _: None)
        pyvhdx.undo_repair(path, f"{path}.undo")
    assert os.path.exists(f"{path}.undo")
    assert pyvhdx.repair(path).done == report.done
