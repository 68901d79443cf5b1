"""dump says what plain `struct` finds in the same bytes, in good files and in damaged ones."""

from __future__ import annotations

import io
import random
import struct
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

import pyvhdx
from pyvhdx.ops import dump
from tests.corpus.handmade import BAT_AT, FULL, METADATA_AT, MIB, PARTIAL, Block, Image, guid
from tests.corpus.handmade_logs import GUID, Entry, follow, page, ring


def made(folder: Path, kind: str) -> bytes:
    """What create makes."""
    parent = None
    if kind == "differencing":
        parent = folder / "base.vhdx"
        pyvhdx.create(parent, 9 * MIB, logical_sector_size=4096).close()
    how: dict[str, Any] = {} if parent else {"logical_sector_size": 4096}
    pyvhdx.create(folder / "disk.vhdx", 9 * MIB, kind=kind, parent=parent, log_size=3 * MIB, **how).close()
    return (folder / "disk.vhdx").read_bytes()


def shown(data: bytes, what: Any, **how: Any) -> Any:
    with dump.opened(io.BytesIO(data)) as storage:
        value = what(storage, **how)
        return value if isinstance(value, (dict, list)) else list(value)


def at(data: bytes, form: str, offset: int) -> tuple[Any, ...]:
    return struct.unpack_from(form, data, offset)


def uuid_at(data: bytes, offset: int) -> str:
    return str(UUID(bytes_le=data[offset : offset + 16]))


KINDS = ("dynamic", "fixed", "differencing")


@pytest.mark.parametrize("kind", KINDS)
class TestOfANewFile:
    def test_headers(self, kind: str, tmp_path: Path) -> None:
        data = made(tmp_path, kind)
        said = shown(data, dump.dump_header)
        for header, offset in zip(said["headers"], (0x10000, 0x20000), strict=True):
            checksum, sequence = at(data, "<IQ", offset + 4)
            assert (header["offset"], header["checksum"], header["sequence_number"]) == (
                offset,
                checksum,
                sequence,
            )
            for number, name in enumerate(("file_write_guid", "data_write_guid", "log_guid")):
                assert header[name] == uuid_at(data, offset + 16 + 16 * number)
            fields = ("log_version", "version", "log_length", "log_offset")
            assert tuple(header[name] for name in fields) == at(data, "<HHIQ", offset + 64)
        numbers = [header["sequence_number"] for header in said["headers"]]
        assert said["current"] == (0x10000, 0x20000)[numbers.index(max(numbers))]
        assert said["creator"] == data[8:520].decode("utf-16-le").split("\0")[0]

    def test_regions(self, kind: str, tmp_path: Path) -> None:
        data = made(tmp_path, kind)
        for table, offset in zip(shown(data, dump.dump_regions), (0x30000, 0x40000), strict=True):
            assert (table["offset"], table["valid"]) == (offset, True)
            assert len(table["entries"]) == at(data, "<I", offset + 8)[0]
            for number, entry in enumerate(table["entries"]):
                place = offset + 16 + 32 * number
                assert entry["guid"] == uuid_at(data, place)
                values = entry["file_offset"], entry["length"], entry["required"]
                assert values == at(data, "<QII", place + 16)

    def test_metadata(self, kind: str, tmp_path: Path) -> None:
        data = made(tmp_path, kind)
        region = at(data, "<Q", 0x30000 + 16 + 32 + 16)[0]
        items = shown(data, dump.dump_metadata)
        assert len(items) == at(data, "<H", region + 10)[0]
        for number, item in enumerate(items):
            place = region + 32 + 32 * number
            assert item["item_id"] == uuid_at(data, place)
            offset, length, flags = at(data, "<III", place + 16)
            assert (item["offset"], item["length"], item["flags"]) == (offset, length, flags)
            assert item["file_offset"] == region + offset
        values = {item["name"]: item["value"] for item in items}
        block_size, flags = at(data, "<II", region + items[0]["offset"])
        assert values["File Parameters"] == {"block_size": block_size, "flags": flags}
        numbers = [next(iter(values[item["name"]].values())) for item in items[1:4]]
        assert numbers == [
            at(data, "<Q", items[1]["file_offset"])[0],
            at(data, "<I", items[2]["file_offset"])[0],
            at(data, "<I", items[3]["file_offset"])[0],
        ]
        assert values["Virtual Disk ID"]["disk_id"] == uuid_at(data, items[4]["file_offset"])

    def test_bat(self, kind: str, tmp_path: Path) -> None:
        data = made(tmp_path, kind)
        bat = at(data, "<Q", 0x30000 + 16 + 16)[0]
        every = shown(data, dump.dump_bat, every=True)
        for entry in every:
            (raw,) = at(data, "<Q", bat + 8 * entry["index"])
            assert (entry["offset"], entry["reserved"]) == (raw >> 20 << 20, raw >> 3 & 0x1FFFF)
            assert entry["state"] == {0: "NOT_PRESENT", 6: "FULLY_PRESENT"}[raw & 7]
        assert sum(entry["kind"] == "payload" for entry in every) == 5
        assert sum(entry["kind"] == "bitmap" for entry in every) == (kind == "differencing")
        filled = shown(data, dump.dump_bat)
        assert filled == [entry for entry in every if entry["offset"]]
        assert bool(filled) == (kind == "fixed")

    def test_log_and_locator(self, kind: str, tmp_path: Path) -> None:
        data = made(tmp_path, kind)
        said = shown(data, dump.dump_log)
        assert (said["length"], said["offset"]) == at(data, "<IQ", 0x10000 + 68)
        assert said["entries"] == []
        if kind == "differencing":
            assert shown(data, dump.dump_locator)["relative_path"] == ".\\base.vhdx"
        else:
            with pytest.raises(pyvhdx.RequestError):
                shown(data, dump.dump_locator)


def image_of(**how: Any) -> bytes:
    file = io.BytesIO()
    image = Image(
        4 * MIB,
        kind="differencing",
        blocks={0: Block(FULL), 1: Block(PARTIAL, frozenset({3}))},
        parent=Image(4 * MIB, tag=5),
        **how,
    )
    image.write_to(file)
    return file.getvalue()


ALL = {
    "header": dump.dump_header,
    "regions": dump.dump_regions,
    "metadata": dump.dump_metadata,
    "log": dump.dump_log,
    "bat": dump.dump_bat,
    "locator": dump.dump_locator,
}


def spoil(data: bytes, *places: int) -> bytes:
    spoilt = bytearray(data)
    for place in places:
        spoilt[place] ^= 0xFF
    return bytes(spoilt)


class TestOfADamagedFile:
    """One structure's damage hides as little as can be of the others."""

    @pytest.mark.parametrize(
        ("places", "refused"),
        [
            ((0x10004,), set()),
            ((0x20004,), set()),
            ((0x10004, 0x20004), {"regions", "metadata", "log", "bat", "locator"}),
            ((0x30004,), set()),
            ((0x40004,), set()),
            ((0x30004, 0x40004), {"metadata", "bat", "locator"}),
            ((METADATA_AT,), {"metadata", "bat", "locator"}),
            # The size of the disk is nothing, so no entry of the BAT can be told from another.
            ((METADATA_AT + 0x10008 + 2, METADATA_AT + 0x10008 + 7), {"bat"}),
            # The locator's type is not known; its place in the table is.
            ((METADATA_AT + 0x10028,), {"locator"}),
        ],
    )
    def test_what_can_be_shown_is_shown(self, places: tuple[int, ...], refused: set[str]) -> None:
        good = image_of()
        data = spoil(good, *places)
        assert data != good
        failed = set()
        for name, what in ALL.items():
            try:
                shown(data, what)
            except pyvhdx.ImageError as error:
                assert error.offset is not None
                assert error.code
                failed.add(name)
        if refused == {"bat"}:  # the locator may be shown although the disk's size is wrong, and need not be
            failed.discard("locator")
        assert failed == refused

    @pytest.mark.parametrize("bad", [(0x10004,), (0x20004,), (0x10004, 0x20004), (0x10000,)])
    def test_bad_headers_are_shown_as_they_are(self, bad: tuple[int, ...]) -> None:
        data = spoil(image_of(), *bad)
        said = shown(data, dump.dump_header)
        for header in said["headers"]:
            damaged = any(header["offset"] <= place < header["offset"] + 4096 for place in bad)
            assert header["valid"] == (not damaged)
            assert header["checksum"] == at(data, "<I", header["offset"] + 4)[0]
            assert header["sequence_number"] == at(data, "<Q", header["offset"] + 8)[0]
        assert (said["current"] is None) == (len(bad) == 2)

    def test_entries_of_a_bad_region_table_are_not_believed(self) -> None:
        one, other = shown(spoil(image_of(), 0x30020), dump.dump_regions)
        assert (one["valid"], one["entries"]) == (False, [])
        assert other["valid"]
        assert len(other["entries"]) == 2

    def test_bat_entries_are_shown_whatever_they_say(self) -> None:
        draw = random.Random(1)
        raw = {index: draw.getrandbits(64) for index in range(4)}
        for entry in shown(image_of(bat=raw), dump.dump_bat, every=True):
            if entry["index"] in raw:
                value = raw[entry["index"]]
                assert entry["offset"] == value >> 20 << 20
                assert entry["reserved"] == value >> 3 & 0x1FFFF
                names = {0: "NOT_PRESENT", 1: "UNDEFINED", 2: "ZERO", 3: "UNMAPPED", 6: "FULLY_PRESENT"}
                assert entry["state"] == names.get(
                    value & 7, {7: "PARTIALLY_PRESENT"}.get(value & 7, str(value & 7))
                )

    def test_a_log_with_a_torn_entry_shows_the_one_before(self) -> None:
        entries = [Entry(n, 0, [(BAT_AT + 8192 + 4096 * n, page(n))]) for n in (1, 2, 3)]
        log = bytearray(ring(MIB, follow(entries)))
        log[2 * 8192 + 4096 + 100] ^= 1  # in the third entry's page
        said = shown(image_of(log=bytes(log), log_guid=GUID), dump.dump_log)
        assert [(e["position"], e["active"], e["fault"] is None) for e in said["entries"]] == [
            (0, True, True),
            (8192, True, True),
            (16384, False, False),
        ]
        for number, entry in enumerate(said["entries"]):
            head = bytes(log[8192 * number :][:64])
            assert (entry["entry_length"], entry["tail"]) == struct.unpack_from("<II", head, 8)
            assert (entry["sequence_number"], entry["descriptor_count"]) == struct.unpack_from(
                "<QI", head, 16
            )
            assert entry["log_guid"] == uuid_at(head, 32)
            offsets = entry["flushed_file_offset"], entry["last_file_offset"]
            assert offsets == struct.unpack_from("<QQ", head, 48)

    @pytest.mark.parametrize("length", [0x10000 + 80, 0x30000, 0x40000 + 5, MIB, METADATA_AT + 5, BAT_AT + 3])
    def test_a_file_that_was_cut_shows_what_is_left(self, length: int) -> None:
        data = image_of()[:length]
        for what in ALL.values():
            try:
                shown(data, what)
            except pyvhdx.ImageError as error:
                assert error.section  # the rule it breaks
        if length >= 0x20000:
            assert shown(data, dump.dump_header)["headers"][0]["valid"]


def test_an_item_of_the_user_is_shown_with_its_bytes(tmp_path: Path) -> None:
    data = bytes(range(256)) * 3
    Image(4 * MIB, items=((guid(3), 1, data), (guid(4), 3, b""))).write(tmp_path / "disk.vhdx")
    with dump.opened(tmp_path / "disk.vhdx") as storage:
        items = {item["item_id"]: item for item in dump.dump_metadata(storage)}
    mine = items[str(guid(3))]
    assert (mine["length"], mine["flags"], mine["name"]) == (len(data), 1, None)
    assert data.hex().startswith(mine["value"])
    assert items[str(guid(4))]["length"] == 0
