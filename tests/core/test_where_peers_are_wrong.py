"""
Files that other readers get wrong, each test named after the mistake.

What is right here was read as wrong data, or as an error, by at least one of QEMU, libvhdi, dissect,
7-Zip, DiscUtils, VirtualBox and OpenVMM.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

import pyvhdx
from tests.corpus.handmade import (
    BAT_AT,
    DISK_ID,
    DISK_SIZE,
    FULL,
    LOCATOR,
    LOG_AT,
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
    content,
    guid,
    sealed,
)

FULL_BLOCKS = {n: Block(FULL) for n in range(8)}


def dynamic(**how: Any) -> Image:
    return Image(8 * MIB, blocks=dict(FULL_BLOCKS), **how)


def reads_right(image: Image, path: Path, *codes: str) -> None:
    """The whole disk reads as the model says, and the open mentions exactly these codes."""
    image.write(path)
    with pyvhdx.open(path) as opened:
        assert opened.read() == image.expected(0, image.size)
        assert sorted(finding.code for finding in opened.warnings) == sorted(codes)
        for finding in opened.warnings:
            assert finding.section
            # Two headers that contradict one another leave open which of them is right.
            contradict = finding.code == "HEADER-TIE" and image.headers[0] != image.headers[1]
            assert finding.severity == ("corrupt" if contradict else "warning")
            assert finding.structure in str(finding)


def refuses(
    image: Image, path: Path, code: str, error: type[pyvhdx.ImageError] = pyvhdx.CorruptImageError
) -> None:
    """The file is not opened."""
    image.write(path)
    with pytest.raises(error) as caught:
        pyvhdx.open(path)
    check(caught.value, code)


def refuses_block(image: Image, path: Path, code: str, block: int) -> None:
    """The file opens, the block raises, and all others read as they should."""
    image.write(path)
    with pyvhdx.open(path, parent=False if image.parent is None else "auto") as opened:
        for number in range(image.block_count):
            offset = number * image.block_size
            if number == block:
                with pytest.raises(pyvhdx.CorruptImageError) as caught:
                    opened.pread(1, offset)
                check(caught.value, code)
                with pytest.raises(pyvhdx.CorruptImageError):
                    list(opened.extents(offset, 1))
            else:
                assert opened.pread(image.block_size, offset) == image.expected(offset, image.block_size)
    assert str(block) in caught.value.structure or str(block) in caught.value.message


def check(error: pyvhdx.ImageError, code: str) -> None:
    assert error.code == code
    assert error.structure
    assert error.section
    assert error.offset >= 0
    assert error.name is not None
    assert code in str(error)
    assert f"{error.offset:#x}" in str(error)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "disk.vhdx"


class TestHeaders:
    @pytest.mark.parametrize("bad", [0, 1])
    def test_one_bad_header_is_enough_for_7zip_to_give_up(self, path: Path, bad: int) -> None:
        reads_right(dynamic(headers=tuple({"crc": int(n != bad)} for n in range(2))), path, "HEADER-COPY")

    def test_one_zeroed_header_is_enough_for_libvhdi_to_give_up(self, path: Path) -> None:
        reads_right(dynamic(patches=[(0x10000, bytes(4096))]), path, "HEADER-COPY")

    def test_a_bad_header_with_a_huge_number_wins_for_dissect_and_libvhdi(self, path: Path) -> None:
        reads_right(
            dynamic(headers=({"crc": 0, "sequence": 2**64 - 1, "version": 9}, {})), path, "HEADER-COPY"
        )

    def test_numbers_are_compared_without_wrap_around(self, path: Path) -> None:
        reads_right(dynamic(headers=({"sequence": 2**64 - 1}, {"sequence": 0, "version": 9})), path)

    def test_the_newer_header_counts_wherever_it_lies(self, path: Path) -> None:
        for headers in (
            ({"sequence": 7}, {"sequence": 6, "version": 2}),
            ({"sequence": 6, "version": 2}, {"sequence": 7}),
        ):
            reads_right(dynamic(headers=headers), path)

    def test_identical_headers_with_equal_numbers_are_written_by_disk2vhd(self, path: Path) -> None:
        reads_right(dynamic(headers=({"sequence": 1}, {"sequence": 1})), path, "HEADER-TIE")

    def test_a_tie_between_different_headers_is_refused_by_qemu_and_misread_by_dissect(
        self, path: Path
    ) -> None:
        """The first is taken, if all that decides what is read agrees."""
        image = dynamic(headers=({"sequence": 1}, {"sequence": 1, "data_guid": guid(99).int}))
        reads_right(image, path, "HEADER-TIE")
        with pyvhdx.open(path) as opened:
            assert opened.data_write_guid == image.data_write_guid
        for changes in (
            {"log_guid": 5},
            {"log_offset": 0},
            {"log_length": 0},
            {"log_version": 1},
            {"version": 2},
        ):
            refuses(dynamic(headers=({"sequence": 1}, {"sequence": 1, **changes})), path, "HEADER-TIE")

    def test_no_header_at_all(self, path: Path) -> None:
        refuses(dynamic(headers=({"crc": 0}, {"crc": 0})), path, "HEADER-NONE")

    def test_another_version_of_the_current_header_is_no_reason_to_fall_back_as_qemu_does(
        self, path: Path
    ) -> None:
        refuses(dynamic(headers=({}, {"version": 2})), path, "HEADER-VERSION", pyvhdx.UnsupportedImageError)

    def test_a_log_version_means_nothing_without_a_log_but_qemu_refuses(self, path: Path) -> None:
        reads_right(dynamic(headers=({}, {"log_version": 1})), path, "LOG-VERSION")
        image = dynamic(headers=({}, {"log_version": 1}), log_guid=guid(5))
        refuses(image, path, "LOG-VERSION", pyvhdx.UnsupportedImageError)

    def test_a_file_without_a_log_is_refused_by_qemu(self, path: Path) -> None:
        reads_right(dynamic(headers=({}, {"log_length": 0, "log_offset": 0})), path)

    @pytest.mark.parametrize(
        "fields",
        [
            {"log_offset": 16 * MIB + 512},
            {"log_length": MIB + 4096, "log_offset": 20 * MIB},
            {"log_offset": 100 * MIB},
            {"log_offset": 2**64 - MIB},
        ],
    )
    def test_odd_log_fields_matter_only_with_a_log(self, path: Path, fields: dict[str, int]) -> None:
        """DiscUtils' fixed images have a log that is not MiB-aligned."""
        image = dynamic(headers=({}, fields))
        image.patches.append((22 * MIB, b"\0"))
        reads_right(image, path, "LOG-RANGE")
        refuses(dynamic(headers=({}, {**fields, "log_guid": 7})), path, "LOG-RANGE")
        refuses(dynamic(headers=({}, {"log_length": 0, "log_guid": 7})), path, "LOG-RANGE")


class TestRegionTables:
    def spoil(self, *copies: int) -> list[tuple[int, bytes]]:
        return [((0x30000, 0x40000)[n] + 4, b"????") for n in copies]

    @pytest.mark.parametrize("bad", [0, 1])
    def test_one_bad_copy_is_fatal_for_qemu_libvhdi_and_7zip(self, path: Path, bad: int) -> None:
        reads_right(dynamic(patches=self.spoil(bad)), path, "REGION-COPY")

    def test_two_bad_copies(self, path: Path) -> None:
        refuses(dynamic(patches=self.spoil(0, 1)), path, "REGION-NONE")

    def test_required_is_0_in_every_qemu_file_and_virtualbox_refuses_them(self, path: Path) -> None:
        table = dynamic().region_table()
        table = sealed(table[:44] + bytes(4) + table[48:76] + bytes(4) + table[80:])
        reads_right(dynamic(patches=[(0x30000, table), (0x40000, table)]), path)

    def test_an_unknown_optional_region_is_kept_out_of_the_way(self, path: Path) -> None:
        reads_right(dynamic(regions=((guid(50), 20 * MIB, MIB, 0),), patches=[(21 * MIB - 1, b"x")]), path)

    def test_an_unknown_required_region_is_ignored_by_libvhdi_and_dissect(self, path: Path) -> None:
        image = dynamic(regions=((guid(50), 20 * MIB, MIB, 1),), patches=[(21 * MIB - 1, b"x")])
        refuses(image, path, "REGION-UNKNOWN", pyvhdx.UnsupportedImageError)

    def test_the_first_of_two_different_good_copies_counts(self, path: Path) -> None:
        table = dynamic(regions=((guid(50), 20 * MIB, MIB, 0),)).region_table()
        reads_right(dynamic(patches=[(0x40000, table)]), path, "REGION-COPIES")


class TestBatEntries:
    def test_a_fixed_disk_is_interleaved_too_and_libvhdi_reads_the_wrong_block(self, path: Path) -> None:
        """5 GiB in blocks of 256 MiB: block 16 begins the second chunk."""
        image = Image(5 << 30, 256 * MIB, kind="fixed", blocks={n: Block(FULL) for n in (15, 16, 17)}).write(
            path
        )
        with pyvhdx.open(path) as opened:
            for block in range(14, 20):
                assert opened.pread(4096, block << 28) == image.expected(block << 28, 4096)

    def test_reads_across_blocks_from_inside_one_are_wrong_in_dissect(self, path: Path) -> None:
        image = dynamic(shuffle=3).write(path)
        with pyvhdx.open(path) as opened:
            for offset, size in ((1_000_448, MIB), (3_000_320, 2 * MIB), (MIB - 1, 2), (5, 8 * MIB)):
                assert opened.pread(size, offset) == image.expected(offset, size)

    def test_reserved_bits_are_no_part_of_the_offset(self, path: Path) -> None:
        image = dynamic().write(path)
        image.bat = {2: image.places[2] | FULL | 0xFFFF8}
        reads_right(image, path)

    @pytest.mark.parametrize("state", [4, 5])
    def test_reserved_states_are_zeros_for_libvhdi_and_nothing_for_dissect(
        self, path: Path, state: int
    ) -> None:
        refuses_block(dynamic(bat={3: state}), path, "BAT-STATE", 3)

    def test_partially_present_in_a_dynamic_file_is_the_file_header_for_libvhdi(self, path: Path) -> None:
        refuses_block(dynamic(bat={3: PARTIAL}), path, "BAT-STATE", 3)
        image = dynamic().write(path)
        image.bat = {3: image.places[3] | PARTIAL}
        refuses_block(image, path, "BAT-STATE", 3)

    @pytest.mark.parametrize("state", [NOT_PRESENT, UNDEFINED, ZERO, UNMAPPED])
    def test_offsets_of_absent_blocks_are_junk(self, path: Path, state: int) -> None:
        image = dynamic()
        image.blocks[3] = Block(state, junk=5 * MIB)
        image.blocks[4] = Block(state, junk=(2**44 - 1) * MIB)
        reads_right(image, path)

    def test_present_at_offset_0_is_the_file_header_for_everyone_but_7zip(self, path: Path) -> None:
        refuses_block(dynamic(bat={3: FULL}), path, "BAT-OFFSET", 3)

    @pytest.mark.parametrize("slot", [6, 2, 7, 12 * MIB | 6, 0xFFFFF])
    def test_bitmap_slots_of_a_dynamic_file_are_ignored_and_7zip_refuses_them(
        self, path: Path, slot: int
    ) -> None:
        """QEMU before 7.2.2 wrote such files."""
        image = Image(
            4 * MIB + (4 << 30), blocks={n: Block(FULL) for n in (0, 4095, 4096, 4099)}, bat={4096: slot}
        ).write(path)
        with pyvhdx.open(path) as opened:
            for block in (0, 4095, 4096, 4099):
                assert opened.pread(MIB, block * MIB) == image.expected(block * MIB, MIB)

    def test_padding_entries_are_ignored(self, path: Path) -> None:
        reads_right(dynamic(bat=dict.fromkeys((8, 9, 4000), 3735928559)), path)

    def test_the_last_block_may_end_with_the_disk(self, path: Path) -> None:
        """QEMU's fixed images do; OpenVMM refuses them."""
        image = Image(7 * MIB + 1536, kind="fixed", blocks={n: Block(FULL) for n in range(8)}).write(path)
        with path.open("r+b") as file:
            file.truncate(image.places[7] + 1536)
        with pyvhdx.open(path) as opened:
            assert opened.read() == image.expected(0, image.size)
        with path.open("r+b") as file:
            file.truncate(image.places[7] + 1535)
        with pyvhdx.open(path) as opened, pytest.raises(pyvhdx.CorruptImageError) as caught:
            opened.pread(1, 7 * MIB)
        check(caught.value, "BAT-RANGE")

    def test_a_block_cut_by_the_end_of_the_file_is_a_short_read_for_dissect(self, path: Path) -> None:
        image = dynamic().write(path)
        image.patches = [(image.places[7] + MIB - 1, b"\0")]
        image.bat = {3: image.places[7] + MIB | FULL}
        refuses_block(image, path, "BAT-RANGE", 3)

    @pytest.mark.parametrize(
        ("place", "what"),
        [(BAT_AT, "BAT"), (LOG_AT, "log"), (METADATA_AT, "metadata"), (30 * MIB, "other region")],
    )
    def test_a_block_on_a_table_is_read_by_libvhdi_dissect_and_7zip(
        self, path: Path, place: int, what: str
    ) -> None:
        image = dynamic(
            bat={3: place | FULL}, regions=((guid(50), 30 * MIB, MIB, 0),), patches=[(31 * MIB, b"\0")]
        )
        refuses_block(image, path, "BAT-OVERLAP", 3)
        assert what

    def test_a_large_block_that_reaches_into_a_table(self, path: Path) -> None:
        image = Image(32 * MIB, 8 * MIB, blocks={0: Block(FULL)}, regions=((guid(50), 30 * MIB, MIB, 0),))
        image.patches = [(40 * MIB, b"\0")]
        image.bat = {1: 23 * MIB | FULL}
        refuses_block(image, path, "BAT-OVERLAP", 1)

    def test_two_blocks_at_one_place_stay_readable(self, path: Path) -> None:
        """`check` will name them; what the file says is what is read."""
        image = dynamic().write(path)
        image.bat = {3: image.places[5] | FULL}
        image.write(path)
        with pyvhdx.open(path) as opened:
            assert opened.pread(4096, 3 * MIB) == opened.pread(4096, 5 * MIB) == image.expected(5 * MIB, 4096)

    @pytest.mark.parametrize("kind", ["dynamic", "differencing"])
    def test_a_bat_that_is_too_small_is_read_past_its_end_by_libvhdi_and_dissect(
        self, path: Path, kind: str
    ) -> None:
        image = Image(200 << 30, kind=kind, parent=Image(1) if kind == "differencing" else None)
        table = image.region_table()
        table = sealed(table[:40] + struct.pack("<I", MIB) + table[44:])
        image.patches = [(0x30000, table), (0x40000, table)]
        refuses(image, path, "BAT-SIZE")

    def test_a_differencing_bat_needs_the_bitmap_entry_of_its_last_chunk(self, path: Path) -> None:
        """Exactly 1 MiB holds all payload entries of this disk, and one less than a child needs."""
        size = (131072 - 32) * MIB  # 31 bitmap slots lie between them
        for kind, fits in (("dynamic", True), ("differencing", False)):
            image = Image(size, kind=kind, parent=Image(1) if kind == "differencing" else None)
            table = image.region_table()
            table = sealed(table[:40] + struct.pack("<I", MIB) + table[44:])
            image.patches = [(0x30000, table), (0x40000, table), (9 * MIB, b"\0")]
            if fits:
                image.write(path)
                pyvhdx.open(path).close()
            else:
                refuses(image, path, "BAT-SIZE")


class TestMetadata:
    def test_unknown_optional_items_and_user_items_end_dissect(self, path: Path) -> None:
        items = (
            (guid(60), 0, b"optional"),
            (guid(61), 1, b"user"),
            (DISK_SIZE, 1, b"user item with a system id"),
            (guid(62), 3, b"of the disk"),
        )
        reads_right(dynamic(items=items), path)
        with pyvhdx.open(path) as opened:
            assert opened.metadata[guid(60)] == b"optional"
            assert dict(opened.user_metadata) == {i: d for i, f, d in items if f & 1}
            assert opened.metadata[DISK_SIZE] == struct.pack("<Q", 8 * MIB)

    def test_an_unknown_required_item_is_ignored_by_libvhdi(self, path: Path) -> None:
        refuses(dynamic(items=((guid(60), 4, b"x"),)), path, "METADATA-UNKNOWN", pyvhdx.UnsupportedImageError)
        reads_right(dynamic(items=((guid(60), 5, b"x"),)), path, "METADATA-FLAGS")

    def test_an_empty_item_is_refused_by_libvhdi_and_dissect(self, path: Path) -> None:
        reads_right(dynamic(items=((guid(61), 1, b""), (guid(62), 0, b""))), path)
        with pyvhdx.open(path) as opened:
            assert opened.user_metadata[guid(61)] == b""

    def test_the_stale_entry_that_windows_leaves_is_not_read(self, path: Path) -> None:
        image = dynamic()
        stale = image.metadata()[32 + 4 * 32 : 32 + 5 * 32]
        image.patches = [(METADATA_AT + 32 + 5 * 32, stale)]
        reads_right(image, path)

    def test_a_leftover_locator_is_refused_by_qemu(self, path: Path) -> None:
        item = Image(1, kind="differencing").locator_item()
        reads_right(dynamic(items=((LOCATOR, 4, item),)), path, "LOCATOR-LEFTOVER")

    def test_both_kinds_at_once_is_a_differencing_file_and_libvhdi_refuses_it(self, path: Path) -> None:
        base = dynamic(tag=9).write(path.with_name("base.vhdx"))
        image = Image(
            8 * MIB,
            kind="differencing",
            parent=base,
            flags=3,
            relative_path="base.vhdx",
            blocks={1: Block(FULL)},
        )
        reads_right(image, path, "METADATA-KIND")
        with pyvhdx.open(path) as opened:
            assert opened.kind == "differencing"

    def test_an_odd_number_of_sectors_is_refused_by_7zip(self, path: Path) -> None:
        reads_right(Image(8 * MIB + 512, blocks={8: Block(FULL)}), path)

    def test_4096_byte_sectors_are_refused_by_qemu(self, path: Path) -> None:
        reads_right(Image(8 * MIB + 4096, sector=4096, blocks={3: Block(FULL), 8: Block(FULL)}), path)

    @pytest.mark.parametrize("physical", [512, 4096])
    @pytest.mark.parametrize("sector", [512, 4096])
    def test_all_four_combinations_of_sector_sizes_exist(
        self, path: Path, sector: int, physical: int
    ) -> None:
        reads_right(Image(MIB, sector=sector, physical=physical, blocks={0: Block(FULL)}), path)

    def test_a_size_that_is_no_multiple_of_the_sector_is_rounded_down(self, path: Path) -> None:
        reads_right(dynamic(replace={DISK_SIZE: struct.pack("<Q", 8 * MIB + 511)}), path, "METADATA-SIZE")

    @pytest.mark.parametrize("physical", [b"\0\4\0\0", b"\0\0", None])
    def test_a_wrong_or_missing_physical_sector_size_is_tolerated(
        self, path: Path, physical: bytes | None
    ) -> None:
        """Early Windows images lacked marks on it."""
        image = dynamic(replace={PHYSICAL: physical}) if physical else dynamic(without=(PHYSICAL,))
        reads_right(image, path, "METADATA-PHYSICAL-SIZE")
        with pyvhdx.open(path) as opened:
            assert opened.physical_sector_size == 4096

    @pytest.mark.parametrize("disk_id", [bytes(16), b"short", None])
    def test_a_missing_disk_id_is_tolerated(self, path: Path, disk_id: bytes | None) -> None:
        image = dynamic(replace={DISK_ID: disk_id}) if disk_id else dynamic(without=(DISK_ID,))
        reads_right(image, path, "METADATA-DISK-ID")
        with pyvhdx.open(path) as opened:
            assert opened.disk_id == UUID(int=0)


class TestDifferencing:
    """QEMU and VirtualBox refuse them all."""

    @pytest.fixture
    def base(self, tmp_path: Path) -> Image:
        return dynamic(tag=9).write(tmp_path / "base.vhdx")

    def child(self, base: Image, blocks: dict[int, Block], **how: Any) -> Image:
        return Image(
            how.pop("size", 8 * MIB),
            kind="differencing",
            parent=base,
            blocks=blocks,
            relative_path="base.vhdx",
            tag=2,
            **how,
        )

    def test_a_block_that_is_not_present_is_the_parents_and_libvhdi_takes_the_file_header_as_bits(
        self, path: Path, base: Image
    ) -> None:
        reads_right(self.child(base, {}), path)

    @pytest.mark.parametrize("state", [NOT_PRESENT, ZERO, UNMAPPED, UNDEFINED, FULL])
    def test_bits_of_blocks_that_are_not_partial_are_not_looked_at_but_libvhdi_does(
        self, path: Path, base: Image, state: int
    ) -> None:
        reads_right(
            self.child(base, {1: Block(state), 2: Block(PARTIAL, frozenset({0, 9, 2047}))}, stale_bits=True),
            path,
        )

    @pytest.mark.parametrize("state", [ZERO, UNMAPPED, UNDEFINED])
    def test_zero_hides_the_parent_and_libvhdi_shows_it(self, path: Path, base: Image, state: int) -> None:
        image = self.child(base, {1: Block(state)})
        reads_right(image, path)
        with pyvhdx.open(path) as opened:
            assert opened.pread(MIB, MIB) == bytes(MIB)

    def test_fully_present_needs_no_bitmap(self, path: Path, base: Image) -> None:
        reads_right(self.child(base, {1: Block(FULL)}, bat={4096: 0}), path)

    @pytest.mark.parametrize("entry", [0, 1, 2, 3, 4, 5, 6, 12 * MIB, 1 << 50 | 6, BAT_AT | 6, LOG_AT | 6])
    def test_partially_present_without_a_right_bitmap_is_garbage_for_libvhdi(
        self, path: Path, base: Image, entry: int
    ) -> None:
        image = self.child(base, {1: Block(PARTIAL, frozenset({1})), 2: Block(FULL)}, bat={4096: entry})
        refuses_block(image, path, "BITMAP-ENTRY", 1)

    def test_a_bitmap_in_state_7_is_read_as_openvmm_does(self, path: Path, base: Image) -> None:
        image = self.child(base, {1: Block(PARTIAL, frozenset({1, 5}))}).write(path)
        image.bat = {4096: image.places[-1] | 7}
        reads_right(image, path)

    def test_sectors_are_counted_from_the_least_bit(self, path: Path, base: Image) -> None:
        image = self.child(base, {0: Block(PARTIAL, frozenset({1, 2, 11}))}).write(path)
        with path.open("rb") as file:
            file.seek(image.places[-1])
            assert file.read(2) == bytes([0b110, 0b1000])
        with pyvhdx.open(path) as opened:
            assert [opened.pread(16, n * 512) == bytes(content(2, n * 512, 16)) for n in range(7)] == [
                False,
                True,
                True,
                *[False] * 4,
            ]

    def test_behind_the_end_of_the_parent_are_zeros_and_libvhdi_and_dissect_fail(
        self, path: Path, base: Image
    ) -> None:
        reads_right(self.child(base, {9: Block(FULL)}, size=11 * MIB + 512), path)
        reads_right(self.child(base, {1: Block(FULL)}, size=3 * MIB + 512), path)

    def test_a_match_through_the_second_linkage_only_is_refused_by_all_others(
        self, path: Path, base: Image
    ) -> None:
        linkage = {
            "parent_linkage": f"{{{guid(5)}}}",
            "parent_linkage2": f"{{{base.data_write_guid}}}",
            "relative_path": "base.vhdx",
        }
        reads_right(self.child(base, {1: Block(FULL)}, locator=linkage), path)

    @pytest.mark.parametrize("form", [str.upper, lambda text: text.strip("{}")])
    def test_a_linkage_in_another_form_is_refused_by_libvhdi_or_7zip(
        self, path: Path, base: Image, form: Any
    ) -> None:
        linkage = {"parent_linkage": form(f"{{{base.data_write_guid}}}"), "relative_path": "base.vhdx"}
        reads_right(self.child(base, {1: Block(FULL)}, locator=linkage), path)

    def test_a_parent_that_changed_is_not_noticed_by_dissect(self, path: Path, base: Image) -> None:
        image = self.child(
            base, {}, locator={"parent_linkage": f"{{{guid(5)}}}", "relative_path": "base.vhdx"}
        ).write(path)
        with pytest.raises(pyvhdx.ParentMismatchError):
            pyvhdx.open(image.path)

    def test_a_child_without_a_locator_is_opened_by_openvmm(self, path: Path, base: Image) -> None:
        refuses(self.child(base, {}, without=(LOCATOR,)), path, "LOCATOR-MISSING")
