"""Every structure, built and parsed, against bytes laid out by hand from the specification's tables."""

from __future__ import annotations

import struct
from typing import Any
from uuid import UUID

import pytest

from pyvhdx.format import header, locator, log, metadata, region
from pyvhdx.format.bat import BAT_ENTRY, split_entry
from pyvhdx.format.identifier import FileIdentifier, decode_creator, encode_creator
from pyvhdx.format.record import Record, TooShortError, vars_of

ONE = UUID("00112233-4455-6677-8899-aabbccddeeff")
TWO = UUID("f0e0d0c0-b0a0-9080-7060-504030201000")
# The first three fields little-endian, the last eight bytes as they are written.
ONE_LE = bytes.fromhex("33221100 5544 7766 8899aabbccddeeff".replace(" ", ""))
TWO_LE = bytes.fromhex("c0d0e0f0 a0b0 8090 7060504030201000".replace(" ", ""))

SPECIMENS: list[tuple[Record, bytes]] = [
    (
        header.Header(
            checksum=7,
            sequence_number=2**63,
            file_write_guid=ONE,
            data_write_guid=TWO,
            log_guid=ONE,
            log_length=1 << 20,
            log_offset=3 << 20,
        ),
        b"head"
        + struct.pack("<IQ", 7, 2**63)
        + ONE_LE
        + TWO_LE
        + ONE_LE
        + struct.pack("<HHIQ", 0, 1, 1 << 20, 3 << 20),
    ),
    (region.RegionTableHeader(entry_count=2), b"regi" + struct.pack("<III", 0, 2, 0)),
    (
        region.RegionTableEntry(guid=ONE, file_offset=5 << 20, length=1 << 20),
        ONE_LE + struct.pack("<QII", 5 << 20, 1 << 20, 1),
    ),
    (
        log.LogEntryHeader(
            entry_length=8192,
            tail=4096,
            sequence_number=9,
            descriptor_count=1,
            log_guid=TWO,
            flushed_file_offset=4 << 20,
            last_file_offset=8 << 20,
        ),
        b"loge"
        + struct.pack("<IIIQII", 0, 8192, 4096, 9, 1, 0)
        + TWO_LE
        + struct.pack("<QQ", 4 << 20, 8 << 20),
    ),
    (
        log.ZeroDescriptor(zero_length=8192, file_offset=1 << 30, sequence_number=9),
        b"zero" + struct.pack("<IQQQ", 0, 8192, 1 << 30, 9),
    ),
    (
        log.DataDescriptor(
            trailing_bytes=b"tail", leading_bytes=b"leading!", file_offset=4096, sequence_number=9
        ),
        b"desc" + b"tail" + b"leading!" + struct.pack("<QQ", 4096, 9),
    ),
    (
        log.DataSector(sequence_high=1, data=b"x" * 4084, sequence_low=2),
        b"data" + struct.pack("<I", 1) + b"x" * 4084 + struct.pack("<I", 2),
    ),
    (metadata.MetadataTableHeader(entry_count=5), b"metadata" + struct.pack("<HH", 0, 5) + bytes(20)),
    (
        metadata.MetadataTableEntry(item_id=ONE, offset=65536, length=8, flags=6),
        ONE_LE + struct.pack("<IIII", 65536, 8, 6, 0),
    ),
    (metadata.FileParameters(block_size=1 << 25, flags=2), struct.pack("<II", 1 << 25, 2)),
    (metadata.VirtualDiskSize(size=1 << 46), struct.pack("<Q", 1 << 46)),
    (metadata.VirtualDiskId(disk_id=TWO), TWO_LE),
    (metadata.SectorSize(size=4096), struct.pack("<I", 4096)),
    (metadata.ChsParameters(heads_per_cylinder=255, sectors_per_track=63), struct.pack("<II", 255, 63)),
    (
        metadata.PmemLabelStorage(version=1, address_abstraction_type=ONE, data_offset=28, data_length=4),
        struct.pack("<HH", 1, 0) + ONE_LE + struct.pack("<II", 28, 4),
    ),
    (
        locator.ParentLocatorHeader(key_value_count=3),
        bytes.fromhex("b7ef4ab09ed1814ab78925b8e9445913") + struct.pack("<HH", 0, 3),
    ),
    (
        locator.ParentLocatorEntry(key_offset=56, value_offset=84, key_length=28, value_length=76),
        struct.pack("<IIHH", 56, 84, 28, 76),
    ),
]


def _name(value: Any) -> str:
    return type(value).__name__ if isinstance(value, Record) else ""


@pytest.mark.parametrize(("value", "on_disk"), SPECIMENS, ids=_name)
class TestStructures:
    def test_is_built_as_the_specification_lays_it_out(self, value: Record, on_disk: bytes) -> None:
        assert value.build() == on_disk

    def test_is_parsed_back(self, value: Record, on_disk: bytes) -> None:
        assert type(value).parse(on_disk + b"more") == value

    def test_has_the_same_layout_for_the_fast_way(self, value: Record, on_disk: bytes) -> None:
        """`packer` comes from the same declaration as construct's layout, and must say the same."""
        cls = type(value)
        assert cls.packer.size == cls.layout.sizeof() == len(on_disk)
        slow = [v.bytes_le if isinstance(v, UUID) else v for v in vars_of(value).values()]
        assert list(cls.packer.unpack(on_disk)) == slow

    def test_says_so_when_bytes_are_missing(self, value: Record, on_disk: bytes) -> None:
        with pytest.raises(TooShortError, match=type(value).__name__):
            type(value).parse(on_disk[:-1])


def test_a_header_is_sealed_over_its_4096_bytes() -> None:
    """CRC-32C of the whole structure, its own field taken as zeros. (MS-VHDX 2.2.2)"""
    value = SPECIMENS[0][0]
    assert isinstance(value, header.Header)
    sealed = value.sealed()
    assert len(sealed) == 4096
    assert header.is_valid_header(sealed)
    for at in (0, 5, 79, 80, 4095):
        assert not header.is_valid_header(sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :])


def test_the_checksum_is_castagnolis() -> None:
    """CRC("123456789") = 0xE3069283. (MS-VHDX 2)"""
    from pyvhdx.format.checksum import crc_of_rest  # noqa: PLC0415

    assert crc_of_rest(b"123456789", 0) == 0xE3069283


def test_a_region_table_is_64_kib_with_its_entries_behind_the_head() -> None:
    entries = [
        region.RegionTableEntry(guid=g, file_offset=n << 20, length=1 << 20) for n, g in ((2, ONE), (3, TWO))
    ]
    table = region.build_region_table(entries)
    assert len(table) == 65536
    assert region.is_valid_region_table(table)
    assert region.parse_region_entries(table, 2) == entries
    assert not any(table[16 + 64 :])


def test_a_bat_entry_has_the_state_below_and_the_mebibytes_above() -> None:
    raw = (0x400006).to_bytes(8, "little")
    assert BAT_ENTRY.build({"file_offset_mb": 4, "reserved": 0, "state": 6}) == raw
    assert BAT_ENTRY.parse(raw).file_offset_mb == 4
    assert split_entry(0xFFFF_FFFF_FFFF_FFFF) == (7, 0x1FFFF, 0xFFFF_FFFF_FFF0_0000)
    parsed = BAT_ENTRY.parse((0xABC00000 | 5 << 3 | 3).to_bytes(8, "little"))
    assert (parsed.file_offset_mb << 20, parsed.reserved, parsed.state) == (0xABC00000, 5, 3)


@pytest.mark.parametrize("area", [(0, 4096), (1, 4096), (126, 4096), (127, 8192), (254, 8192), (255, 12288)])
def test_126_descriptors_fit_into_the_first_sector_and_128_into_the_others(area: tuple[int, int]) -> None:
    assert log.descriptor_area_size(area[0]) == area[1]


def test_a_creator_is_read_leniently() -> None:
    """It may end without a NUL, and is for diagnosis only. (MS-VHDX 2.2.1)"""
    assert decode_creator(encode_creator("Microsoft Windows")) == "Microsoft Windows"
    assert decode_creator("é".encode("utf-16-le") * 256) == "é" * 256
    assert decode_creator(b"\x00\xd8" + b"a\0" + bytes(508)) == "\ufffda"
    assert FileIdentifier(creator=encode_creator("x")).build()[:10] == b"vhdxfilex\0"
    with pytest.raises(ValueError, match="257 UTF-16 units"):
        encode_creator("x" * 257)


@pytest.mark.parametrize(
    ("text", "guid"),
    [
        ("{00112233-4455-6677-8899-aabbccddeeff}", ONE),
        ("{00112233-4455-6677-8899-AABBCCDDEEFF}", ONE),
        ("00112233-4455-6677-8899-aabbccddeeff", ONE),
        ("{00112233-4455-6677-8899-aabbccddeeff", None),
        ("00112233445566778899aabbccddeeff", None),
        ("{00112233-4455-6677-8899-aabbccddeef_}", None),
        ("", None),
    ],
)
def test_a_linkage_is_read_in_any_case_and_with_or_without_braces(text: str, guid: UUID | None) -> None:
    assert locator.parse_linkage(text) == guid
    if guid:
        assert locator.format_linkage(guid) == "{00112233-4455-6677-8899-aabbccddeeff}"
