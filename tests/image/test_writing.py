"""What writing promises its caller: errors that lose nothing, identities, space, odd files."""

from __future__ import annotations

import contextlib
import errno
import gc
import io
import os
import random
import shutil
import struct
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pyvhdx
from pyvhdx import TrimMode
from pyvhdx.storage import locks, open_local
from pyvhdx.testing import FailingStorage, MemoryStorage, PowerCut, RecordingStorage
from tests.corpus.handmade import BAT_AT, FULL, LOG_AT, MIB, PARTIAL, UNMAPPED, Block, Image, guid
from tests.corpus.handmade_logs import GUID, Entry

ITEM = uuid.UUID("6f2f3a4e-0000-4000-8000-000000000001")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "disk.vhdx"
    pyvhdx.create(path, 16 * MIB, block_size=MIB).close()
    return path


def no_space() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class TestRequests:
    @pytest.mark.parametrize(
        "call",
        [
            lambda image: image.pwrite(b"xx", 16 * MIB - 1),
            lambda image: image.pwrite(b"x", -1),
            lambda image: image.pwrite(b"", 16 * MIB + 1),
            lambda image: image.write_zeroes(16 * MIB, 1),
            lambda image: image.write_zeroes(-512, 512),
            lambda image: image.write_zeroes(0, -1),
            lambda image: image.trim(100, 512),
            lambda image: image.trim(0, 100),
            lambda image: image.trim(16 * MIB, 512),
            lambda image: image.trim(0, 512, "zero"),
            lambda image: image.user_metadata.set("name", b""),
            lambda image: image.user_metadata.set(uuid.UUID(int=0), b"x"),
            lambda image: image.user_metadata.set(ITEM, bytes(MIB + 1)),
            lambda image: image.user_metadata.set(ITEM, bytes(MIB)),
            lambda image: image.user_metadata.set(next(iter(image.metadata)), b"x"),
        ],
    )
    def test_that_cannot_be_change_nothing(
        self, path: Path, call: Callable[[pyvhdx.VHDXImage], object]
    ) -> None:
        before = path.read_bytes()
        with pyvhdx.open(path, "r+") as image, pytest.raises(pyvhdx.RequestError):
            call(image)
        assert path.read_bytes() == before

    @pytest.mark.parametrize(
        "call",
        [
            lambda image: image.pwrite(b"", 16 * MIB),
            lambda image: image.write(b""),
            lambda image: image.write_zeroes(0, 0),
            lambda image: image.write_zeroes(0, 16 * MIB),  # it reads as zeros already
            lambda image: image.trim(0, 0),
            lambda image: image.trim(512, MIB),  # no whole block
            lambda image: image.trim(0, 16 * MIB, TrimMode.MAKE_TRANSPARENT),
            lambda image: image.trim(0, 16 * MIB, TrimMode.REMOVE_SOFT_ANCHORS),
            lambda image: image.user_metadata.pop(ITEM, None),
            lambda image: image.flush(),
        ],
    )
    def test_that_ask_for_nothing_start_no_session(
        self, path: Path, call: Callable[[pyvhdx.VHDXImage], object]
    ) -> None:
        before = path.read_bytes()
        with pyvhdx.open(path, "r+") as image:
            call(image)
        assert path.read_bytes() == before

    def test_any_contiguous_buffer_counts_as_bytes(self, path: Path) -> None:
        numbers = memoryview(struct.pack("<4I", 1, 2, 3, 4)).cast("I")
        with pyvhdx.open(path, "r+") as image:
            assert image.pwrite(numbers, 5) == 16
            image.seek(100)
            assert image.write(bytearray(b"abc")) == 3
            assert image.tell() == 103
            assert image.pread(16, 5) == numbers.tobytes()
            with pytest.raises(TypeError):
                image.pwrite(memoryview(b"abcd")[::2], 0)

    def test_a_write_past_the_end_moves_no_position(self, path: Path) -> None:
        with pyvhdx.open(path, "r+") as image:
            image.seek(-1, os.SEEK_END)
            with pytest.raises(pyvhdx.RequestError):
                image.write(b"xx")
            assert image.tell() == 16 * MIB - 1

    def test_a_buffered_file_over_it_works(self, path: Path) -> None:
        with io.BufferedRandom(pyvhdx.open(path, "r+")) as file:
            file.seek(3 * MIB - 5)
            file.write(b"across two blocks")
            file.seek(3 * MIB - 5)
            assert file.read(17) == b"across two blocks"
        with pyvhdx.open(path) as image:
            assert image.pread(17, 3 * MIB - 5) == b"across two blocks"

    def test_verify_parent_is_for_reading_only(self, path: Path) -> None:
        with pytest.raises(pyvhdx.RequestError, match="reading only"):
            pyvhdx.open(path, "r+", verify_parent=False)

    def test_the_size_of_a_disk_stays(self, path: Path) -> None:
        with pyvhdx.open(path, "r+") as image, pytest.raises(io.UnsupportedOperation):
            image.truncate(0)


class TestIdentity:
    def test_file_and_data_guids_change_when_the_law_says(self, path: Path) -> None:
        with pyvhdx.open(path, "r+") as image:
            file, data = image.file_write_guid, image.data_write_guid
            image.trim(0, 16 * MIB, TrimMode.REMOVE_SOFT_ANCHORS)
            assert (image.file_write_guid, image.data_write_guid) == (file, data)
            image.pwrite(b"x", 0)
            assert image.file_write_guid != file
            assert image.data_write_guid != data
            again = image.data_write_guid
            image.pwrite(b"y", 0)
            assert image.data_write_guid == again
            assert image.info().data_write_guid == again
        assert image.data_write_guid == again
        with pyvhdx.open(path) as image:
            assert image.data_write_guid == again

    def test_a_change_of_anchors_only_keeps_the_children(self, path: Path) -> None:
        with pyvhdx.open(path, "r+") as image:
            image.pwrite(b"x" * MIB, 0)
            assert image.trim(0, MIB, TrimMode.FILE_SPACE) == MIB
        pyvhdx.create(path.with_name("child.vhdx"), parent=path).close()
        with pyvhdx.open(path, "r+") as image:
            before = image.file_write_guid
            assert image.trim(0, 16 * MIB, TrimMode.REMOVE_SOFT_ANCHORS) == MIB
            assert image.file_write_guid != before
        pyvhdx.open(path.with_name("child.vhdx")).close()

    def test_a_parent_that_was_written_is_no_parent_any_more(self, path: Path) -> None:
        child = path.with_name("child.vhdx")
        pyvhdx.create(child, parent=path).close()
        pyvhdx.open(path, "r+").close()
        pyvhdx.open(child).close()
        with pyvhdx.open(path, "r+") as image:
            image.pwrite(b"x", 0)
        with pytest.raises(pyvhdx.ParentMismatchError):
            pyvhdx.open(child, "r+")

    def test_an_image_open_for_writing_is_no_parent(self, path: Path) -> None:
        child = path.with_name("child.vhdx")
        pyvhdx.create(child, parent=path).close()
        with pyvhdx.open(path, "r+", lock=False) as image:
            with pytest.raises(pyvhdx.RequestError, match="open for writing"):
                pyvhdx.open(child, parent=image)
            with pytest.raises(pyvhdx.RequestError, match="open for writing"):
                pyvhdx.create(path.with_name("other.vhdx"), parent=image)

    def test_a_child_of_a_child_is_written_through_the_chain(self, path: Path) -> None:
        with pyvhdx.open(path, "r+") as image:
            image.pwrite(bytes(range(256)) * 16, MIB - 2048)
        child = path.with_name("child.vhdx")
        with pyvhdx.create(child, parent=path) as image:
            image.pwrite(b"-", MIB - 1)  # one byte: the sector around is the parent's
            image.pwrite(b"+", MIB)
        with pyvhdx.open(child) as image:
            expected = bytearray(bytes(range(256)) * 16)
            expected[2047:2049] = b"-+"
            assert image.pread(4096, MIB - 2048) == expected
            kinds = [(e.kind, e.depth) for e in image.extents(MIB - 2048, 4096)]
            assert kinds == [("data", 1), ("data", 0), ("data", 0), ("data", 1)]

    def test_without_its_parent_a_child_takes_whole_sectors_only(self, path: Path) -> None:
        child = path.with_name("child.vhdx")
        pyvhdx.create(child, parent=path).close()
        before = child.read_bytes()
        with pyvhdx.open(child, "r+", parent=False) as image:
            with pytest.raises(pyvhdx.ParentNotFoundError):
                image.pwrite(b"x", 5)
            assert child.read_bytes() == before
            image.pwrite(b"x" * 512, 512)
            assert image.pread(512, 512) == b"x" * 512


class TestSpace:
    def test_what_a_trim_frees_is_used_again_after_a_flush(self, path: Path) -> None:
        with pyvhdx.open(path, "r+") as image:
            for number in range(40):
                image.pwrite(bytes([number + 1]) * MIB, number % 16 * MIB)
                image.flush()
                assert image.trim(number % 16 * MIB, MIB) == MIB
                image.flush()
        assert path.stat().st_size <= 6 * MIB

    def test_a_soft_anchor_is_taken_back_by_its_block(self, path: Path) -> None:
        with pyvhdx.open(path, "r+") as image:
            image.pwrite(b"a" * (2 * MIB), 0)
            place = next(image.extents()).file_offset
            image.trim(0, MIB, TrimMode.FILE_SPACE)
            assert image.pread(MIB, 0) == bytes(MIB)
            image.flush()
            image.pwrite(b"b", 100)
            first = next(image.extents())
            assert (first.kind, first.file_offset) == ("data", place)
            assert image.pread(MIB, 0) == bytes(100) + b"b" + bytes(MIB - 101)
        assert path.stat().st_size == 6 * MIB

    def test_soft_anchors_of_others_are_taken_before_the_file_grows(self, path: Path) -> None:
        storage = RecordingStorage(MemoryStorage(path.read_bytes()))
        with pyvhdx.open(storage, "r+") as image:
            image.pwrite(b"a" * (8 * MIB), 0)
        size = storage.size()
        with pyvhdx.open(storage, "r+") as image:
            image.trim(0, 8 * MIB, TrimMode.FILE_SPACE)
            for number in range(8, 16):
                image.pwrite(b"b" * MIB, number * MIB)
            assert image.pread(16 * MIB, 0) == bytes(8 * MIB) + b"b" * (8 * MIB)
        assert storage.size() == size
        with pyvhdx.open(storage) as image:
            assert image.pread(16 * MIB, 0) == bytes(8 * MIB) + b"b" * (8 * MIB)

    def test_recycled_space_shows_no_old_bytes(self, path: Path) -> None:
        with pyvhdx.open(path, "r+") as image:
            image.pwrite(b"old" * (MIB // 3), 0)
            image.trim(0, MIB)
        with pyvhdx.open(path, "r+") as image:
            image.pwrite(b"new", MIB)
            assert image.pread(MIB, MIB) == b"new" + bytes(MIB - 3)

    @pytest.mark.parametrize(
        "change",
        [
            lambda image: image.write_zeroes(100, MIB + 5000),
            lambda image: (image.trim(0, 2 * MIB, TrimMode.FILE_SPACE), image.pwrite(b"n" * 512, 1000)),
        ],
    )
    def test_a_power_cut_inside_a_change_leaves_units_old_zero_or_new(
        self, change: Callable[[pyvhdx.VHDXImage], object]
    ) -> None:
        start = MemoryStorage()
        with pyvhdx.create(start, 8 * MIB, block_size=2 * MIB) as image:
            image.pwrite(b"o" * (2 * MIB), 0)
        storage = RecordingStorage(start.copy())
        with pyvhdx.open(storage, "r+") as image:
            change(image)
            new = image.pread(2 * MIB, 0)
        cuts, draw = PowerCut(start, storage.events), random.Random(1)
        for cut in range(len(storage.events) + 1):
            for _ in range(10):
                with pyvhdx.open(cuts.after(cut, draw)) as image:
                    found = image.pread(2 * MIB, 0)
                for at in range(0, 2 * MIB, 512):
                    unit = found[at : at + 512]
                    assert unit in (b"o" * 512, bytes(512), new[at : at + 512]), (cut, at)

    def test_slack_at_the_end_is_cut_off_at_close(self, path: Path) -> None:
        with pyvhdx.open(path, "r+") as image:
            image.pwrite(b"x", 0)
            assert path.stat().st_size > 32 * MIB
        assert path.stat().st_size == 5 * MIB

    def test_a_fixed_disk_grows_never_and_gives_nothing_back(self, tmp_path: Path) -> None:
        path = tmp_path / "fixed.vhdx"
        with pyvhdx.create(path, 8 * MIB, kind="fixed", block_size=MIB) as image:
            size = path.stat().st_size
            image.write(b"x" * (8 * MIB))
            for mode in (TrimMode.ZERO, TrimMode.FREE_SPACE, TrimMode.FILE_SPACE):
                assert image.trim(0, 8 * MIB, mode) == 0
            assert image.trim(0, 8 * MIB, TrimMode.REMOVE_SOFT_ANCHORS) == 0
            with pytest.raises(pyvhdx.RequestError, match="fixed"):
                image.trim(0, MIB, TrimMode.MAKE_TRANSPARENT)
            image.write_zeroes(MIB, 2 * MIB)
            assert image.pread(4 * MIB, 0) == b"x" * MIB + bytes(2 * MIB) + b"x" * MIB
        assert path.stat().st_size == size

    def test_unknown_regions_and_items_keep_their_bytes(self, tmp_path: Path) -> None:
        path = tmp_path / "disk.vhdx"
        region = b"somebody's region".ljust(MIB, b"!")
        Image(
            8 * MIB,
            regions=((guid(50), 20 * MIB, MIB, 0),),
            items=((guid(51), 0, b"somebody's item"),),
            patches=[(20 * MIB, region), (30 * MIB - 1, b"\0")],
        ).write(path)
        with pyvhdx.open(path, "r+") as image:
            image.write(b"x" * (8 * MIB))
            image.user_metadata[ITEM] = b"ours"
        data = path.read_bytes()
        assert data[20 * MIB : 21 * MIB] == region
        assert len(data) == 21 * MIB
        with pyvhdx.open(path) as image:
            assert image.metadata[guid(51)] == b"somebody's item"
            assert image.read() == b"x" * (8 * MIB)


class TestOddFiles:
    """What others make is taken over as the law says, or refused before a byte is changed."""

    def refused(self, image: Image, path: Path, code: str) -> None:
        image.write(path)
        before = path.read_bytes()
        with pyvhdx.open(path, "r+") as opened:
            for call in (
                lambda: opened.pwrite(b"x", 5 * MIB),
                lambda: opened.trim(6 * MIB, MIB),
                lambda: opened.user_metadata.set(ITEM, b"x"),
            ):
                with pytest.raises(pyvhdx.CorruptImageError) as caught:
                    call()
                assert caught.value.code == code
                assert caught.value.name == str(path)
        assert path.read_bytes() == before

    def blocks(self, **how: Any) -> Image:
        return Image(8 * MIB, blocks={n: Block(FULL) for n in range(8)}, **how)

    def test_two_blocks_at_one_place(self, path: Path) -> None:
        self.refused(self.blocks(bat={3: 5 * MIB | FULL}), path, "BAT-OVERLAP")

    def test_a_soft_anchor_on_a_block(self, path: Path) -> None:
        self.refused(self.blocks(bat={3: 5 * MIB | UNMAPPED}), path, "BAT-OVERLAP")

    def test_a_block_on_a_table_or_the_log(self, path: Path) -> None:
        for place in (BAT_AT, LOG_AT):
            self.refused(self.blocks(bat={3: place | FULL}), path, "BAT-OVERLAP")

    def test_a_region_outside_the_file(self, path: Path) -> None:
        """It is read past, as its bytes are not there; its place could be anywhere, and none is taken."""
        for at in (500 * MIB, 1 << 62):
            self.refused(self.blocks(regions=((guid(50), at, MIB, 0),)), path, "REGION-RANGE")

    def test_a_block_outside_the_file(self, path: Path) -> None:
        self.refused(self.blocks(bat={3: 500 * MIB | FULL}), path, "BAT-RANGE")

    def test_a_block_in_the_header_section(self, path: Path) -> None:
        self.refused(self.blocks(bat={3: FULL}), path, "BAT-OFFSET")

    def test_a_bitmap_on_a_block(self, path: Path) -> None:
        parent = Image(8 * MIB).write(path.with_name("parent.vhdx"))
        image = Image(
            8 * MIB,
            kind="differencing",
            parent=parent,
            tag=2,
            blocks={n: Block(FULL) for n in range(8)},
            bat={4096: 5 * MIB | 6},
        )
        self.refused(image, path, "BITMAP-ENTRY")

    @pytest.mark.parametrize("state", [4, 5, PARTIAL])
    def test_a_state_that_no_block_may_have_spoils_its_block_only(self, path: Path, state: int) -> None:
        Image(8 * MIB, blocks={0: Block(FULL), 3: Block(state)}).write(path)
        with pyvhdx.open(path, "r+") as opened:
            opened.pwrite(b"x", 5 * MIB)
            for call in (
                lambda: opened.pwrite(b"x", 3 * MIB),
                lambda: opened.trim(3 * MIB, MIB),
                lambda: opened.write_zeroes(3 * MIB, MIB),
            ):
                with pytest.raises(pyvhdx.CorruptImageError) as caught:
                    call()
                assert caught.value.code == "BAT-STATE"
            assert opened.pread(1, 5 * MIB) == b"x"

    def test_headers_that_contradict_each_other(self, path: Path) -> None:
        Image(8 * MIB, headers=({"sequence": 7}, {"sequence": 7, "data_guid": 5})).write(path)
        pyvhdx.open(path).close()
        with pytest.raises(pyvhdx.CorruptImageError, match="HEADER-TIE"):
            pyvhdx.open(path, "r+")

    def test_headers_without_a_number_left(self, path: Path) -> None:
        Image(8 * MIB, headers=({"sequence": 2**64 - 1}, {"sequence": 2**64 - 2})).write(path)
        pyvhdx.open(path).close()
        with pytest.raises(pyvhdx.CorruptImageError, match="HEADER-SEQUENCE"):
            pyvhdx.open(path, "r+")

    @pytest.mark.parametrize(
        "fields",
        [
            {"log_length": 0, "log_offset": 0},
            {"log_offset": LOG_AT + 512},
            {"log_offset": 500 * MIB},
            {"log_offset": 5 * MIB, "log_length": 64 * MIB},  # where new blocks will lie
            {"log_offset": BAT_AT},
            {"log_version": 3},
        ],
    )
    def test_a_log_that_cannot_be_used_is_replaced(self, path: Path, fields: dict[str, int]) -> None:
        image = Image(8 * MIB, blocks={0: Block(FULL)}, headers=(fields, fields)).write(path)
        for _ in range(2):
            with pyvhdx.open(path, "r+") as opened:
                opened.pwrite(b"x" * MIB, 3 * MIB)
                opened.trim(3 * MIB, MIB)
                opened.pwrite(b"y", 4 * MIB)
            with pyvhdx.open(path) as opened:
                assert opened.pread(MIB, 0) == image.expected(0, MIB)
                assert opened.pread(1, 4 * MIB) == b"y"
                assert not opened.warnings
                info = opened.info()
                assert info.log_length == MIB
                assert info.log_offset % MIB == 0

    @pytest.mark.parametrize("in_file", [False, True])
    def test_a_log_is_placed_beside_soft_anchors(self, path: Path, in_file: bool) -> None:
        """Clearing them is a change, and comes after the log."""
        fields = {"log_length": 0, "log_offset": 0}
        image = Image(8 * MIB, blocks={n: Block(FULL) for n in range(3)}, headers=(fields, fields)).write(
            path
        )
        image.bat = {1: image.places[1] | UNMAPPED, 2: image.places[2] | UNMAPPED}
        image.write(path)
        if in_file:
            os.truncate(path, 9 * MIB)
        calls: list[Callable[[pyvhdx.VHDXImage], object]] = [
            lambda opened: opened.trim(0, 8 * MIB, TrimMode.REMOVE_SOFT_ANCHORS),
            lambda opened: opened.pwrite(b"x", 5 * MIB),
            lambda opened: opened.pwrite(b"y", MIB),
        ]
        for call in calls:
            image.write(path)
            with pyvhdx.open(path, "r+") as opened:
                call(opened)
            with pyvhdx.open(path) as opened:
                assert opened.pread(MIB, 0) == image.expected(0, MIB)
                assert not opened.warnings

    def test_a_log_that_was_named_and_never_written_is_ended(self, path: Path) -> None:
        Image(8 * MIB, log_guid=GUID).write(path)
        before = path.read_bytes()
        with pyvhdx.open(path, "r+") as opened:
            assert [finding.code for finding in opened.warnings] == ["LOG-EMPTY"]
        assert path.read_bytes() == before
        with pyvhdx.open(path, "r+") as opened:
            opened.pwrite(b"x", 0)
        with pyvhdx.open(path) as opened:
            assert not opened.warnings
            assert opened.pread(1, 0) == b"x"

    def test_one_bad_header_copy_is_the_first_to_be_written(self, path: Path) -> None:
        bad: dict[str, int] = {"crc": 0}
        pairs: list[tuple[dict[str, int], ...]] = [(bad, {}), ({}, bad)]
        for copies in pairs:
            Image(8 * MIB, headers=copies).write(path)
            with pyvhdx.open(path, "r+") as opened:
                opened.pwrite(b"x", 0)
            with pyvhdx.open(path) as opened:
                assert not opened.warnings

    @pytest.mark.parametrize("over", [512, 4096, 512 * 1024])
    def test_a_file_that_ends_inside_its_last_block_is_made_whole(self, path: Path, over: int) -> None:
        size = 7 * MIB + over
        image = Image(size, blocks={n: Block(FULL) for n in range(8)}).write(path)
        os.truncate(path, image.places[7] + over)
        with pyvhdx.open(path, "r+") as opened:
            opened.pwrite(b"x", size - 1)
            opened.trim(0, MIB)
            opened.flush()
            opened.pwrite(b"y", 0)
        with pyvhdx.open(path) as opened:
            assert opened.pread(size, MIB) == image.expected(MIB, size)[:-1] + b"x"
        assert path.stat().st_size == 12 * MIB

    def test_bytes_behind_the_last_mib_do_not_matter(self, path: Path) -> None:
        image = self.blocks().write(path)
        with path.open("ab") as file:
            file.write(b"d" * 512)
        with pyvhdx.open(path, "r+") as opened:
            opened.trim(0, MIB)
            opened.pwrite(b"x", MIB)
        with pyvhdx.open(path) as opened:
            assert opened.pread(MIB, MIB) == b"x" + image.expected(MIB + 1, MIB - 1)

    def test_stale_bits_become_right_when_their_block_changes(self, tmp_path: Path) -> None:
        parent = Image(8 * MIB, blocks={0: Block(FULL)}).write(tmp_path / "parent.vhdx")
        image = Image(
            8 * MIB,
            kind="differencing",
            parent=parent,
            tag=2,
            stale_bits=True,
            blocks={1: Block(PARTIAL, frozenset({7}))},
        ).write(tmp_path / "child.vhdx")
        with pyvhdx.open(image.path, "r+") as opened:
            opened.pwrite(b"x" * 512, 1024)
            assert opened.pread(MIB, 0) == image.expected(0, 1024) + b"x" * 512 + image.expected(
                1536, MIB - 1536
            )
            opened.pwrite(b"y" * MIB, 2 * MIB)
        with image.path.open("rb") as file:
            file.seek(image.places[-1])
            bits = file.read(4 * 256)
        assert bits[:256] == bytes([0b100]) + bytes(255)
        assert bits[256:512] == bytes([0x80]) + bytes(255)
        assert not any(bits[512:768])
        assert bits[768:] == b"\xff" * 256, "blocks that nobody changed keep theirs"


class TestUserItems:
    def test_are_a_mapping(self, path: Path) -> None:
        with pyvhdx.open(path, "r+") as image:
            items = image.user_metadata
            items[ITEM] = b"one"
            items.set(uuid.UUID(int=5), b"two", of_disk=True)
            assert dict(items) == {ITEM: b"one", uuid.UUID(int=5): b"two"}
            assert not items.is_of_disk(ITEM)
            assert items.is_of_disk(uuid.UUID(int=5))
            items[ITEM] = b"one"  # its present value
            del items[ITEM]
            with pytest.raises(KeyError):
                del items[ITEM]
            with pytest.raises(KeyError):
                items[ITEM]
        with pyvhdx.open(path) as image:
            assert dict(image.user_metadata) == {uuid.UUID(int=5): b"two"}
            assert len(image.metadata) == 5

    def test_of_the_disk_go_along_to_a_child(self, path: Path) -> None:
        with pyvhdx.open(path, "r+") as image:
            image.user_metadata.set(ITEM, b"stays")
            image.user_metadata.set(uuid.UUID(int=5), b"travels", of_disk=True)
        with pyvhdx.create(path.with_name("child.vhdx"), parent=path) as child:
            assert dict(child.user_metadata) == {uuid.UUID(int=5): b"travels"}
            child.user_metadata[uuid.UUID(int=5)] = b"a longer value than before"
            assert child.user_metadata.is_of_disk(uuid.UUID(int=5))

    def test_of_every_size_come_and_go(self, path: Path) -> None:
        draw = random.Random(5)
        model: dict[uuid.UUID, bytes] = {}
        image = pyvhdx.open(path, "r+")
        for number in range(150):
            item = uuid.UUID(int=draw.randrange(1, 9))
            if draw.random() < 0.3 and item in model:
                del image.user_metadata[item], model[item]
            else:
                data = draw.randbytes(draw.choice((0, 1, 100, 5000, 90 * 4096, 400_000)))
                try:
                    image.user_metadata[item] = data
                except pyvhdx.RequestError as error:
                    assert "no room" in str(error)
                else:
                    model[item] = data
            assert dict(image.user_metadata) == model
            if number % 10 == 0:
                image.close()
                image = pyvhdx.open(path, "r+")
        image.close()
        with pyvhdx.open(path) as image:
            assert dict(image.user_metadata) == model

    @pytest.mark.slow
    def test_a_thousand_fit_and_no_more(self, path: Path) -> None:
        with pyvhdx.open(path, "r+", sync=False) as image:
            for number in range(1024):
                image.user_metadata[uuid.UUID(int=number + 1)] = b"%d" % number
            with pytest.raises(pyvhdx.RequestError, match="1024"):
                image.user_metadata[ITEM] = b"one too many"
            del image.user_metadata[uuid.UUID(int=7)]
            image.user_metadata[ITEM] = b"now it fits"
        with pyvhdx.open(path) as image:
            assert len(image.user_metadata) == 1024
            assert image.user_metadata[uuid.UUID(int=1024)] == b"1023"


class TestFailures:
    def program(self, image: pyvhdx.VHDXImage, said: list[int]) -> None:
        """Six flushes; *said* counts those that returned."""
        for number in range(6):
            image.pwrite(bytes([number + 1]) * 4096, number * MIB)
            image.trim((number + 8) * MIB, MIB)
            image.user_metadata[ITEM] = b"%d" % number
            image.flush()
            said.append(number)

    @pytest.mark.parametrize("for_good", [False, True])
    @pytest.mark.parametrize("kind", [OSError, KeyboardInterrupt])
    def test_in_every_call_lose_nothing_that_was_flushed(
        self, path: Path, kind: type[BaseException], for_good: bool
    ) -> None:
        content = path.read_bytes()
        counting = FailingStorage(MemoryStorage(content), None)
        image = pyvhdx.open(counting, "r+")
        self.program(image, [])
        image.close()
        for number in range(counting.calls):
            memory = MemoryStorage(content)
            storage = FailingStorage(memory, number, lambda: kind(5, "by the test"), for_good=for_good)
            image = pyvhdx.open(storage, "r+")
            said: list[int] = []
            with contextlib.suppress(kind):
                self.program(image, said)
            with contextlib.suppress(kind, pyvhdx.ImageFailedError):
                image.close()
            assert image.closed
            with pyvhdx.open(memory) as opened:
                for done in said:
                    assert opened.pread(4096, done * MIB) == bytes([done + 1]) * 4096
                if said:
                    assert int(opened.user_metadata[ITEM]) >= said[-1]
            with pyvhdx.open(memory, "r+") as opened:
                self.program(opened, [])
            with pyvhdx.open(memory) as opened:
                assert not opened.warnings

    def test_a_full_disk_refuses_the_write_that_needs_the_space(self, path: Path) -> None:
        storage = FailingStorage(MemoryStorage(path.read_bytes()), None, no_space)
        with pyvhdx.open(storage, "r+") as image:
            image.pwrite(b"a" * MIB, 0)
            image.flush()
            for _ in range(3):  # reserve, truncate or the payload itself
                storage.at = storage.calls
                try:
                    image.pwrite(b"b" * 512, 5 * MIB)
                except OSError as error:
                    assert error.errno == errno.ENOSPC
            storage.at = None
            assert image.pread(MIB, 0) == b"a" * MIB
            image.pwrite(b"c" * 512, 6 * MIB)
        with pyvhdx.open(storage) as image:
            assert image.pread(MIB, 0) == b"a" * MIB
            assert image.pread(MIB, 6 * MIB) == b"c" * 512 + bytes(MIB - 512)

    def test_a_failed_commit_fails_the_image_and_reads_go_on(self, path: Path) -> None:
        memory = MemoryStorage(path.read_bytes())
        storage = FailingStorage(memory, None)
        image = pyvhdx.open(storage, "r+")
        image.pwrite(b"kept", 0)
        image.flush()
        image.pwrite(b"lost", 5 * MIB)
        storage.at = storage.calls + 1  # the log entry
        with pytest.raises(OSError, match="Input/output"):
            image.flush()
        for call in (
            lambda: image.pwrite(b"x", 0),
            lambda: image.trim(0, MIB),
            lambda: image.write_zeroes(0, 5),
            image.flush,
            lambda: image.user_metadata.set(ITEM, b""),
        ):
            with pytest.raises(pyvhdx.ImageFailedError, match="Input/output") as caught:
                call()
            assert isinstance(caught.value.__cause__, OSError)
        assert image.pread(4, 5 * MIB) == b"lost"
        assert image.pread(4, 0) == b"kept"
        with pytest.raises(pyvhdx.ImageFailedError):
            image.close()
        assert image.closed
        image.close()
        with pyvhdx.open(memory, "r+") as image:
            assert image.pread(4, 0) == b"kept"

    @pytest.mark.parametrize("kind", [OSError, KeyboardInterrupt])
    def test_what_made_an_image_fail_leaves_the_with_block(
        self, path: Path, kind: type[BaseException]
    ) -> None:
        storage = FailingStorage(MemoryStorage(path.read_bytes()), 1, kind)
        with pytest.raises(kind) as caught, pyvhdx.open(storage, "r+") as image:
            image.pwrite(b"x", 0)
        assert not isinstance(caught.value, pyvhdx.VHDXError)
        assert image.closed

    def test_items_of_a_closed_image_cannot_be_read(self, path: Path) -> None:
        with pyvhdx.open(path, "r+") as image:
            items = image.user_metadata
        with pytest.raises(ValueError, match="closed"):
            list(items)

    def test_a_file_that_someone_else_made_shorter(self, path: Path) -> None:
        with pyvhdx.open(path, "r+") as image:
            image.pwrite(b"x", 0)
        image = pyvhdx.open(path, "r+")
        os.truncate(path, 4 * MIB)
        with pytest.raises(pyvhdx.CorruptImageError, match="FILE-CUT"):
            image.pwrite(b"x", 0)
        image.close()
        assert path.stat().st_size == 4 * MIB

    @pytest.mark.usefixtures("descriptors")
    def test_a_forgotten_image_commits_nothing_and_lets_go(self, path: Path) -> None:
        image = pyvhdx.open(path, "r+")
        image.pwrite(b"flushed", 0)
        image.flush()
        image.pwrite(b"not", 5 * MIB)
        with pytest.warns(ResourceWarning, match="unclosed image"):
            del image
            gc.collect()
        with pyvhdx.open(path, "r+") as image:
            assert [finding.code for finding in image.warnings] == ["LOG-PENDING"]
            assert image.pread(7, 0) == b"flushed"
            assert image.pread(3, 5 * MIB) == bytes(3)

    def test_with_closes_also_on_an_exception_and_keeps_what_was_written(self, path: Path) -> None:
        with pytest.raises(ZeroDivisionError), pyvhdx.open(path, "r+") as image:
            image.pwrite(b"written", 0)
            raise ZeroDivisionError
        with pyvhdx.open(path) as image:
            assert image.pread(7, 0) == b"written"

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    def test_a_forked_child_keeps_its_hands_off(self, path: Path) -> None:
        image = pyvhdx.open(path, "r+")
        image.pwrite(b"before", 0)
        image.pread(6, 0)
        child = os.fork()
        if child == 0:
            refused = 0
            for call in (
                lambda: image.pwrite(b"x", 0),
                image.flush,
                lambda: image.pread(1, 0),
                lambda: image.preadinto(bytearray(1), 0),
                image.info,
            ):
                try:
                    call()
                except pyvhdx.StateError:
                    refused += 1
            image.close()
            os._exit(refused)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 5
        assert image.pread(6, 0) == b"before"
        image.pwrite(b"after!", 0)
        with pytest.raises(pyvhdx.LockedError):
            pyvhdx.open(path)
        image.close()
        with pyvhdx.open(path) as image:
            assert image.pread(6, 0) == b"after!"


class TestStorages:
    def test_without_barriers_the_file_is_the_same(self, path: Path) -> None:
        storages = []
        for sync in (True, False):
            storage = RecordingStorage(MemoryStorage(path.read_bytes()))
            with pyvhdx.open(storage, "r+", sync=sync) as image:
                image.pwrite(b"x" * MIB, 5 * MIB)
                image.flush()
                image.trim(5 * MIB, MIB)
            storages.append(storage)
        assert storages[1].count("flush") == 0
        assert [(e.kind, e.offset, e.length) for e in storages[0].events if e.kind != "flush"] == [
            (e.kind, e.offset, e.length) for e in storages[1].events
        ]

    @pytest.mark.usefixtures("no_fast_paths")
    def test_by_seek_under_a_lock_as_on_windows(self, path: Path) -> None:
        with pyvhdx.open(path, "r+") as image:
            image.pwrite(b"slow" * MIB, MIB + 5)
            assert image.pread(4, MIB + 5) == b"slow"
        with pyvhdx.open(path) as image:
            assert image.pread(4 * MIB, MIB + 5) == b"slow" * MIB

    def test_file_objects(self, path: Path) -> None:
        memory = io.BytesIO(path.read_bytes())
        with pyvhdx.open(memory, "r+") as image:
            image.pwrite(b"x" * MIB, 5 * MIB)
        assert not memory.closed
        with pyvhdx.open(io.BytesIO(memory.getvalue())) as image:
            assert image.pread(MIB, 5 * MIB) == b"x" * MIB
        for mode, buffering in (("r+b", -1), ("r+b", 0)):
            with open(path, mode, buffering) as file, pyvhdx.open(file, "r+") as image:
                image.pwrite(b"y", 0)
        with path.open("rb") as file, pytest.raises(io.UnsupportedOperation):
            pyvhdx.open(file, "r+")

    def test_create_returns_an_image_that_is_written_at_once(self, tmp_path: Path) -> None:
        for target in (tmp_path / "new.vhdx", io.BytesIO(), MemoryStorage()):
            with pyvhdx.create(target, 8 * MIB) as image:
                image.write(b"at once")
            with pyvhdx.open(target) as image:
                assert image.read(7) == b"at once"

    def test_a_block_device_is_written_as_far_as_it_goes(self, path: Path) -> None:
        os.truncate(path, 12 * MIB)
        losetup = shutil.which("losetup")
        if losetup is None:
            pytest.skip("losetup is missing")
        done = subprocess.run([losetup, "-f", "--show", path], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no loop device: {done.stderr.strip()}")
        device = done.stdout.strip()
        try:
            with pyvhdx.open(device, "r+") as image:
                image.pwrite(b"x" * (8 * MIB), 0)
                with pytest.raises(OSError, match="No space"):
                    image.pwrite(b"y", 9 * MIB)
                image.trim(0, MIB)
                image.flush()
                image.pwrite(b"y", 9 * MIB)
            with pyvhdx.open(device) as image:
                assert image.pread(8 * MIB, 0) == bytes(MIB) + b"x" * (7 * MIB)
                assert image.pread(1, 9 * MIB) == b"y"
        finally:
            subprocess.run([losetup, "-d", device], check=True)

    def test_a_read_only_file_cannot_be_written(self, path: Path) -> None:
        path.chmod(0o444)
        if os.access(path, os.W_OK):
            pytest.skip("this user may write everywhere")
        with pytest.raises(PermissionError):
            pyvhdx.open(path, "r+")

    def test_a_folder_is_no_image(self, tmp_path: Path) -> None:
        with pytest.raises(IsADirectoryError):
            pyvhdx.open(tmp_path, "r+")


class _FineHoles(MemoryStorage):
    """A file system that counts its holes in units of 1 KiB."""

    def next_data(self, offset: int) -> tuple[int, int] | None:
        run = super().next_data(offset)
        while run is not None:
            start, end = run
            at = start - start % 1024
            while at < end and not any(self.read_at(1024, at)):
                at += 1024
            if at < end:
                stop = at
                while stop < end and any(self.read_at(1024, stop)):
                    stop += 1024
                return max(at, offset), min(stop, self.size())
            run = super().next_data(end)
        return None


def test_holes_may_be_finer_than_pages() -> None:
    """Two runs of data in one page of the BAT are two looks at it, and no two owners of a place."""
    storage = _FineHoles()
    with pyvhdx.create(storage, 1024 * MIB, block_size=MIB, sync=False) as image:
        image.pwrite(b"x", 0)
        image.pwrite(b"y", 400 * MIB)
    with pyvhdx.open(storage, "r+") as image:
        image.pwrite(b"z", MIB)
        assert [image.pread(1, at * MIB) for at in (0, 1, 400)] == [b"x", b"z", b"y"]


class TestReplayAtOpen:
    def dirty(self, path: Path, entry: Entry) -> Image:
        image = Image(8 * MIB, blocks={0: Block(FULL)}, log=entry.build(), log_guid=GUID)
        return image.write(path)

    def test_puts_the_log_into_the_file(self, path: Path) -> None:
        bat = (4 * MIB | FULL).to_bytes(8, "little") + (5 * MIB | FULL).to_bytes(8, "little")
        image = self.dirty(path, Entry(7, 0, [(BAT_AT, bat.ljust(4096, b"\0"))]))
        with path.open("r+b") as file:
            file.truncate(5 * MIB + 512)
        with pytest.raises(pyvhdx.LogPendingError):
            pyvhdx.open(path, "r+", log="refuse")
        before = path.read_bytes()
        os.truncate(path, 6 * MIB)
        with pyvhdx.open(path) as opened:
            guids = opened.file_write_guid, opened.data_write_guid
        with pyvhdx.open(path, "r+") as opened:
            assert not opened.log_pending
            assert [finding.code for finding in opened.warnings] == ["LOG-PENDING"]
            assert "into the file" in opened.warnings[0].message
            assert opened.file_write_guid != guids[0]
            assert opened.data_write_guid == guids[1]
            assert opened.pread(MIB, 0) == image.expected(0, MIB)
        assert path.read_bytes() != before
        with pyvhdx.open(path) as opened:
            assert not opened.warnings
            assert next(opened.extents()).length == 2 * MIB

    def test_leaves_a_file_alone_that_cannot_be_opened_after_it(self, path: Path) -> None:
        """The log would write over the metadata table."""
        self.dirty(path, Entry(7, 0, [(2 * MIB, b"?" * 4096)]))
        before = path.read_bytes()
        with pytest.raises(pyvhdx.CorruptImageError, match="METADATA-SIGNATURE"):
            pyvhdx.open(path, "r+")
        assert path.read_bytes() == before


class TestLocks:
    @pytest.mark.peer("qemu-io")
    @pytest.mark.skipif(sys.platform != "linux", reason="the locks are Linux's")
    def test_keep_qemu_out_and_are_kept_out_by_it(self, path: Path) -> None:
        command = ["qemu-io", "-f", "vhdx", str(path)]
        with pyvhdx.open(path, "r+"):
            for extra in (["-r", "-c", "read 0 512"], ["-c", "write 0 512"]):
                refused = subprocess.run([*command, *extra], capture_output=True, check=False)
                assert refused.returncode != 0
                assert b"lock" in refused.stderr
            with pytest.raises(pyvhdx.LockedError, match="lock=False"):
                pyvhdx.open(path)
            with pytest.raises(pyvhdx.LockedError, match=r"close it there$"):
                pyvhdx.open(path, "r+")
            pyvhdx.open(path, lock=False).close()
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
            assert process.stdin
            assert process.stdout
            assert process.stdout.read(7) == b"qemu-io"
            for mode in ("r", "r+"):
                with pytest.raises(pyvhdx.LockedError):
                    pyvhdx.open(path, mode)
            process.communicate(b"quit\n")
        with pyvhdx.open(path), pyvhdx.open(path), pytest.raises(pyvhdx.LockedError):
            pyvhdx.open(path, "r+")

    def test_are_said_to_be_missing_where_the_file_system_has_none(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> bool:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(locks, "_take", refuse)
        with pytest.warns(RuntimeWarning, match="No locks available"), pyvhdx.open(path, "r+") as image:
            image.pwrite(b"x", 0)

    def test_are_kept_while_the_storage_is_open(self, path: Path) -> None:
        file = open_local(path, use=locks.READER)
        with pytest.raises(pyvhdx.LockedError):
            open_local(path, write=True, use=locks.WRITER)
        file.close()
        open_local(path, write=True, use=locks.WRITER).close()


def test_a_forgotten_image_gives_its_lock_back_at_once(path: Path) -> None:
    """Without waiting for the garbage collector, as a file does; and says what became of the changes."""
    gc.disable()
    try:
        image = pyvhdx.open(path, "r+")
        image.pwrite(b"forgotten", 5 * MIB + 1)
        with pytest.warns(ResourceWarning, match="what was not flushed is not committed"):
            del image
        pyvhdx.open(path, "r+").close()
    finally:
        gc.enable()
