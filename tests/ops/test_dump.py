"""dump shows what stands in a file, also where the image cannot be opened."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

import pyvhdx
from pyvhdx.ops import dump
from tests.corpus.handmade import BAT, BAT_AT, FULL, METADATA_AT, MIB, PARTIAL, ZERO, Block, Image, guid
from tests.corpus.handmade_logs import GUID, Entry, follow, page, ring


def shown(image: Image, tmp_path: Path, what: Any, **how: Any) -> Any:
    image.write(tmp_path / "disk.vhdx")
    with dump.opened(tmp_path / "disk.vhdx") as storage:
        value = what(storage, **how)
        return value if isinstance(value, (dict, list)) else list(value)


def test_headers_and_which_is_current(tmp_path: Path) -> None:
    value = shown(Image(8 * MIB, headers=({"sequence": 9}, {"sequence": 8})), tmp_path, dump.dump_header)
    assert value["creator"] == "by hand"
    assert value["current"] == 0x10000
    assert [(h["offset"], h["valid"], h["sequence_number"]) for h in value["headers"]] == [
        (0x10000, True, 9),
        (0x20000, True, 8),
    ]
    assert value["headers"][0]["data_write_guid"] == str(guid(1))


@pytest.mark.parametrize(("bad", "current"), [((0,), 0x20000), ((1,), 0x10000), ((0, 1), None)])
def test_bad_headers_are_shown_too(bad: tuple[int, ...], current: int | None, tmp_path: Path) -> None:
    image = Image(8 * MIB, headers=tuple({"crc": int(n not in bad)} for n in range(2)))
    value = shown(image, tmp_path, dump.dump_header)
    assert value["current"] == current
    assert [h["valid"] for h in value["headers"]] == [n not in bad for n in range(2)]


def test_a_file_with_a_damaged_identifier_is_shown_too(tmp_path: Path) -> None:
    value = shown(Image(8 * MIB, patches=[(0, b"VHDX")]), tmp_path, dump.dump_header)
    assert (value["signature"], value["current"]) == ("VHDXfile", 0x20000)


def test_region_tables_after_the_replay(tmp_path: Path) -> None:
    image = Image(8 * MIB, patches=[(0x40004, b"bad!")])
    one, other = shown(image, tmp_path, dump.dump_regions)
    assert one["valid"]
    assert one["entries"][0] == {"guid": str(BAT), "file_offset": BAT_AT, "length": MIB, "required": 1}
    assert not other["valid"]
    log = ring(MIB, [(0, Entry(1, 0, [(0x40000, image.region_table()[:4096])]))])
    assert all(
        t["valid"]
        for t in shown(
            Image(8 * MIB, log=log, log_guid=GUID, patches=[(0x40004, b"bad!")]), tmp_path, dump.dump_regions
        )
    )


def test_metadata_items(tmp_path: Path) -> None:
    items = shown(Image(8 * MIB, items=((guid(9), 3, b"mine"),)), tmp_path, dump.dump_metadata)
    assert [item["name"] for item in items] == [
        "File Parameters",
        "Virtual Disk Size",
        "Logical Sector Size",
        "Physical Sector Size",
        "Virtual Disk ID",
        None,
    ]
    assert items[0]["value"] == {"block_size": MIB, "flags": 0}
    assert items[0]["file_offset"] == METADATA_AT + 65536
    assert items[4]["value"] == {"disk_id": str(guid(77))}
    assert (items[5]["flags"], items[5]["value"]) == (3, b"mine".hex())


def test_the_log_with_every_entry(tmp_path: Path) -> None:
    entries = [
        Entry(5, 0, [(BAT_AT + 4096, page(1)), (BAT_AT + 8192, 8192)]),
        Entry(6, 0, [(BAT_AT + 4096, page(1))], changes={"crc": 0}),
    ]
    value = shown(Image(8 * MIB, log=ring(MIB, follow(entries)), log_guid=GUID), tmp_path, dump.dump_log)
    assert (value["offset"], value["log_guid"]) == (MIB, str(GUID))
    good, bad = value["entries"]
    assert (good["position"], good["active"], good["fault"], good["sequence_number"]) == (0, True, None, 5)
    assert good["descriptors"] == [
        {"kind": "data", "offset": BAT_AT + 4096, "length": 4096},
        {"kind": "zero", "offset": BAT_AT + 8192, "length": 8192},
    ]
    assert (bad["active"], bad["fault"]) == (False, "the checksum is wrong")
    assert shown(Image(8 * MIB), tmp_path, dump.dump_log)["entries"] == []


def test_the_bat_without_its_zeros_and_with_them(tmp_path: Path) -> None:
    image = Image(
        20 << 30,
        kind="differencing",
        blocks={0: Block(FULL), 4095: Block(ZERO), 4096: Block(PARTIAL), 20479: Block(FULL)},
    )
    value = shown(image, tmp_path, dump.dump_bat)
    found = [(e["kind"], e["number"], e["index"], e["state"], e["offset"]) for e in value]
    assert found == [
        ("payload", 0, 0, "FULLY_PRESENT", image.places[0]),
        ("payload", 4095, 4095, "ZERO", 0),
        ("bitmap", 0, 4096, "PRESENT", image.places[-1]),
        ("payload", 4096, 4097, "PARTIALLY_PRESENT", image.places[4096]),
        ("bitmap", 1, 8193, "PRESENT", image.places[-2]),
        ("payload", 20479, 20483, "FULLY_PRESENT", image.places[20479]),
        ("bitmap", 4, 20484, "PRESENT", image.places[-5]),
    ]
    every = shown(image, tmp_path, dump.dump_bat, every=True)
    assert len(every) == 20485
    assert [e["index"] for e in every] == list(range(20485))
    odd = shown(Image(8 * MIB, bat={2: 5 | 3 << 3 | 7 * MIB}), tmp_path, dump.dump_bat)
    assert odd == [
        {"kind": "payload", "number": 2, "index": 2, "state": "5", "offset": 7 * MIB, "reserved": 3}
    ]


def test_the_parent_locator(tmp_path: Path) -> None:
    value = shown(
        Image(8 * MIB, kind="differencing", parent=Image(8 * MIB, tag=5)), tmp_path, dump.dump_locator
    )
    assert value == {"parent_linkage": f"{{{guid(5)}}}", "relative_path": ".\\parent.vhdx"}
    with pytest.raises(pyvhdx.RequestError, match="no parent locator"):
        shown(Image(8 * MIB), tmp_path, dump.dump_locator)


def test_what_is_no_vhdx_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(struct.pack("<Q", 7))
    with pytest.raises(pyvhdx.NotVHDXError), dump.opened(tmp_path / "x"):
        pass
