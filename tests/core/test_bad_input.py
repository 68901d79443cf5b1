"""What is wrong with a file is named by rule, structure and offset; the file stays as it is."""

from __future__ import annotations

import contextlib
import io
import resource
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pyvhdx
from tests.corpus.handmade import (
    BAT,
    BAT_AT,
    DISK_SIZE,
    FILE_PARAMETERS,
    FULL,
    LOCATOR,
    LOGICAL,
    METADATA,
    METADATA_AT,
    MIB,
    PARTIAL,
    Block,
    Image,
    guid,
    locator_item,
    metadata_region,
    sealed,
)
from tests.corpus.handmade_logs import GUID, Entry, follow, page, ring


def disk(**how: Any) -> Image:
    return Image(8 * MIB, blocks={0: Block(FULL), 5: Block(FULL)}, **how)


def tables(body: bytes, count: int) -> list[tuple[int, bytes]]:
    """Both region tables with other entries."""
    table = sealed((b"regi" + bytes(4) + struct.pack("<II", count, 0) + body).ljust(65536, b"\0")[:65536])
    return [(0x30000, table), (0x40000, table)]


def regions(*entries: tuple[Any, int, int, int]) -> list[tuple[int, bytes]]:
    return tables(
        b"".join(g.bytes_le + struct.pack("<QII", at, length, need) for g, at, length, need in entries),
        len(entries),
    )


def parameters(block_size: int, flags: int = 0) -> dict[Any, bytes]:
    return {FILE_PARAMETERS: struct.pack("<II", block_size, flags)}


B, M = (BAT, BAT_AT, MIB, 1), (METADATA, METADATA_AT, MIB, 1)
FAR = [(40 * MIB, b"\0")]
ENTRY = METADATA_AT + 32

CASES: dict[str, tuple[Image, str]] = {
    "no region": (disk(patches=regions()), "REGION-MISSING"),
    "no BAT": (disk(without=(BAT,)), "REGION-MISSING"),
    "no metadata": (disk(without=(METADATA,)), "REGION-MISSING"),
    "too many regions": (disk(patches=tables(bytes(65520), 2048)), "REGION-COUNT"),
    "far too many regions": (disk(patches=tables(b"", 2**32 - 1)), "REGION-COUNT"),
    "a region twice": (disk(patches=regions(B, M, (BAT, 20 * MIB, MIB, 1))), "REGION-GUID"),
    "a region without a name": (disk(patches=regions(B, M, (guid(0).__class__(int=0), 20 * MIB, MIB, 0))), "REGION-GUID"),
    "BAT in the header section": (disk(patches=regions((BAT, 0, MIB, 1), M)), "REGION-RANGE"),
    "BAT unaligned": (disk(patches=regions((BAT, BAT_AT + 512, MIB, 1), M)), "REGION-RANGE"),
    "BAT with an odd length": (disk(patches=regions((BAT, BAT_AT, MIB + 4096, 1), M)), "REGION-RANGE"),
    "BAT without length": (disk(patches=regions((BAT, BAT_AT, 0, 1), M)), "REGION-RANGE"),
    "BAT outside the file": (disk(patches=regions((BAT, 100 * MIB, MIB, 1), M)), "REGION-RANGE"),
    "BAT at the end of all offsets": (disk(patches=regions((BAT, 2**64 - MIB, MIB, 1), M)), "REGION-RANGE"),
    "metadata outside the file": (disk(patches=regions(B, (METADATA, 100 * MIB, MIB, 1))), "REGION-RANGE"),
    "metadata on the BAT": (disk(patches=regions(B, (METADATA, BAT_AT, MIB, 1))), "REGION-OVERLAP"),
    "another region on the BAT": (disk(patches=regions((BAT, BAT_AT, 2 * MIB, 1), M, (guid(9), BAT_AT + MIB, MIB, 0))), "REGION-OVERLAP"),
    "metadata signature": (disk(patches=[(METADATA_AT, b"METADATA")]), "METADATA-SIGNATURE"),
    "too many items": (disk(patches=[(METADATA_AT + 10, b"\0\x08")]), "METADATA-COUNT"),
    "too many user items": (disk(items=tuple((guid(200 + n), 1, b"") for n in range(1025))), "METADATA-COUNT"),
    "too many system items": (disk(items=tuple((guid(200 + n), 0, b"") for n in range(1019))), "METADATA-COUNT"),
    "an item twice": (disk(items=((guid(9), 0, b"a"), (guid(9), 0, b"b"))), "METADATA-ID"),
    "a user item twice": (disk(items=((guid(9), 1, b"a"), (guid(9), 1, b"b"))), "METADATA-ID"),
    "an item without a name": (disk(items=((guid(0).__class__(int=0), 0, b"a"),)), "METADATA-ID"),
    "an item in the table": (disk(patches=[(ENTRY + 16, struct.pack("<I", 65528))]), "METADATA-RANGE"),
    "an item behind the region": (disk(patches=[(ENTRY + 16, struct.pack("<I", MIB - 4))]), "METADATA-RANGE"),
    "an item of 4 GiB": (disk(patches=[(ENTRY + 16, struct.pack("<II", 65536, 2**32 - 1))]), "METADATA-RANGE"),
    "an empty item with a place": (disk(items=((guid(9), 1, b""),), patches=[(ENTRY + 5 * 32 + 16, struct.pack("<I", 70000))]), "METADATA-RANGE"),
    "items over one another": (disk(patches=[(ENTRY + 32 + 16, struct.pack("<I", 65536 + 4))]), "METADATA-OVERLAP"),
    "an unfinished file": (disk(items=((__import__("uuid").UUID("71cc85f0-1b69-4e28-9558-c3bf83ae75d3"), 4, b""),)), "METADATA-INCOMPLETE"),
    "no file parameters": (disk(without=(FILE_PARAMETERS,)), "METADATA-MISSING"),
    "no size": (disk(without=(DISK_SIZE,)), "METADATA-MISSING"),
    "no sector size": (disk(without=(LOGICAL,)), "METADATA-MISSING"),
    "long file parameters": (disk(replace={FILE_PARAMETERS: struct.pack("<IIQ", MIB, 0, 0)}), "METADATA-LENGTH"),
    "short size": (disk(replace={DISK_SIZE: bytes(4)}), "METADATA-LENGTH"),
    "sector size of 8 bytes": (disk(replace={LOGICAL: struct.pack("<Q", 512)}), "METADATA-LENGTH"),
    "block size 0": (disk(replace=parameters(0)), "METADATA-BLOCK-SIZE"),
    "block size 512 KiB": (disk(replace=parameters(MIB // 2)), "METADATA-BLOCK-SIZE"),
    "block size 3 MiB": (disk(replace=parameters(3 * MIB)), "METADATA-BLOCK-SIZE"),
    "block size 512 MiB": (disk(replace=parameters(512 * MIB)), "METADATA-BLOCK-SIZE"),
    "block size 2 GiB": (disk(replace=parameters(2**31)), "METADATA-BLOCK-SIZE"),
    "sector size 0": (disk(replace={LOGICAL: bytes(4)}), "METADATA-SECTOR-SIZE"),
    "sector size 1024": (disk(replace={LOGICAL: struct.pack("<I", 1024)}), "METADATA-SECTOR-SIZE"),
    "size 0": (disk(replace={DISK_SIZE: bytes(8)}), "METADATA-SIZE"),
    "size below a sector": (disk(replace={DISK_SIZE: struct.pack("<Q", 511)}), "METADATA-SIZE"),
    "size over 64 TiB": (disk(replace={DISK_SIZE: struct.pack("<Q", (64 << 40) + 512)}), "METADATA-SIZE"),
    "size of all bits": (disk(replace={DISK_SIZE: b"\xff" * 8}), "METADATA-SIZE"),
    "a size that the BAT does not hold": (disk(replace={DISK_SIZE: struct.pack("<Q", 64 << 40)}), "BAT-SIZE"),
    "a log that overlaps the BAT": (disk(log_guid=guid(9), headers=({}, {"log_offset": BAT_AT})), "LOG-NO-SEQUENCE or REGION-OVERLAP"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_file_that_breaks_a_rule_is_refused(name: str, tmp_path: Path) -> None:
    image, code = CASES[name]
    path = tmp_path / "disk.vhdx"
    image.write(path)
    before = path.read_bytes()
    with pytest.raises(pyvhdx.CorruptImageError) as caught:
        pyvhdx.open(path)
    error = caught.value
    assert error.code in code
    assert error.structure
    assert error.section[:2] in ("2.", "2")
    assert error.offset >= 0
    assert str(path) in str(error)
    assert path.read_bytes() == before


TOLERATED: dict[str, tuple[Image, str]] = {
    "reserved bytes of the metadata table": (disk(patches=[(METADATA_AT + 12, b"x")]), "METADATA-RESERVED"),
    "reserved bits of an item": (
        disk(patches=[(ENTRY + 24, struct.pack("<II", 4 | 8, 1))]),
        "METADATA-RESERVED",
    ),
    "reserved flags of the file parameters": (disk(replace=parameters(MIB, 4)), "METADATA-RESERVED"),
    "missing flags of an item": (disk(patches=[(ENTRY + 24, bytes(4))]), "METADATA-FLAGS"),
    "an unknown region outside the file": (
        disk(patches=regions(B, M, (guid(9), 100 * MIB, MIB, 0))),
        "REGION-RANGE",
    ),
    "an empty log on a region": (disk(headers=({}, {"log_offset": METADATA_AT})), "LOG-OVERLAP"),
    "an empty log in the header section": (disk(headers=({}, {"log_offset": 0})), "LOG-RANGE"),
}


@pytest.mark.parametrize("name", TOLERATED)
def test_what_does_not_matter_for_reading_is_tolerated_and_named(name: str, tmp_path: Path) -> None:
    image, code = TOLERATED[name]
    image.write(tmp_path / "disk.vhdx")
    with pyvhdx.open(tmp_path / "disk.vhdx") as opened:
        assert code in {finding.code for finding in opened.warnings}
        assert [f.to_dict()["code"] for f in opened.info().warnings] == [f.code for f in opened.warnings]
        assert opened.read() == image.expected(0, 8 * MIB)


LINK = "{" + str(guid(1)) + "}"
HEAD = 20
LOCATORS: dict[str, tuple[bytes, str]] = {
    "empty": (b"x", "LOCATOR-LENGTH"),
    "of another type": (bytes(16) + locator_item({"parent_linkage": LINK})[16:], "LOCATOR-TYPE"),
    "without entries": (locator_item({}), "LOCATOR-COUNT"),
    "with 257 entries": (locator_item({f"k{n}": "v" for n in range(257)}), "LOCATOR-COUNT"),
    "with more entries than bytes": (locator_item({})[:18] + b"\x09\0", "LOCATOR-LENGTH"),
    "without a linkage": (locator_item({"relative_path": "x"}), "LOCATOR-LINKAGE"),
    "with a linkage that is no GUID": (locator_item({"parent_linkage": "soon"}), "LOCATOR-LINKAGE"),
    "with a key twice": (
        locator_item({"parent_linkage": LINK, "parent_linkagf": LINK}).replace(
            "linkagf".encode("utf-16-le"), "linkage".encode("utf-16-le")
        ),
        "LOCATOR-KEY",
    ),
    "with a NUL": (locator_item({"parent_linkage": LINK, "a\0b": "c"}), "LOCATOR-STRING"),
    "with half a surrogate": (
        locator_item({"parent_linkage": LINK, "ab": "c"}).replace("ab".encode("utf-16-le"), b"\x00\xd8a\0"),
        "LOCATOR-STRING",
    ),
    "with an odd length": (
        locator_item({"k": "v"})[: HEAD + 8]
        + struct.pack("<HH", 1, 2)
        + locator_item({"k": "v"})[HEAD + 12 :],
        "LOCATOR-STRING",
    ),
    "with an empty string": (locator_item({"k": ""}), "LOCATOR-STRING"),
    "with a string at 0": (
        locator_item({"k": "v"})[:HEAD] + struct.pack("<II", 0, 34) + locator_item({"k": "v"})[HEAD + 8 :],
        "LOCATOR-STRING",
    ),
    "with a string outside": (
        locator_item({"k": "v"})[:HEAD]
        + struct.pack("<II", 2**32 - 2, 34)
        + locator_item({"k": "v"})[HEAD + 8 :],
        "LOCATOR-STRING",
    ),
}


@pytest.mark.parametrize("name", LOCATORS)
def test_a_bad_locator_is_refused_where_it_is_needed(name: str, tmp_path: Path) -> None:
    item, code = LOCATORS[name]
    image = Image(8 * MIB, kind="differencing", replace={LOCATOR: item})
    image.write(tmp_path / "child.vhdx")
    error = pyvhdx.UnsupportedImageError if code == "LOCATOR-TYPE" else pyvhdx.CorruptImageError
    with pytest.raises(error) as caught:
        pyvhdx.open(tmp_path / "child.vhdx")
    assert caught.value.code == code
    Image(8 * MIB, tag=9).write(tmp_path / "base.vhdx")
    with pytest.raises(error):  # and the parent that was opened is closed again
        pyvhdx.open(tmp_path / "child.vhdx", parent=tmp_path / "base.vhdx")
    with pyvhdx.open(tmp_path / "child.vhdx", parent=False) as opened:
        info = opened.info()
        assert info.kind == "differencing"
        if code != "LOCATOR-LINKAGE":
            assert info.parent_locator is None
            assert info.warnings[-1].code == code


def test_a_cut_file_is_refused_or_right(tmp_path: Path) -> None:
    """Cut anywhere: what is not there is an error, and what is there reads as before."""
    image = disk().write(tmp_path / "disk.vhdx")
    whole = (tmp_path / "disk.vhdx").read_bytes()
    end = len(whole)
    cuts = [
        0,
        1,
        7,
        8,
        9,
        520,
        0x10000,
        0x10050,
        0x11000,
        0x20800,
        0x30004,
        0x38000,
        0x4FFFF,
        MIB - 1,
        MIB,
        MIB + 1,
    ]
    cuts += [
        2 * MIB - 1,
        2 * MIB,
        METADATA_AT + 31,
        METADATA_AT + 65536,
        BAT_AT - 1,
        BAT_AT,
        BAT_AT + 8,
        4 * MIB - 1,
        4 * MIB,
        end - MIB,
        end - 1,
    ]
    for cut in cuts:
        try:
            with pyvhdx.open(io.BytesIO(whole[:cut])) as opened:
                for block in range(8):
                    try:
                        assert opened.pread(MIB, block * MIB) == image.expected(block * MIB, MIB), cut
                    except pyvhdx.CorruptImageError as error:
                        assert block in (0, 5) or error.code == "BAT-CUT", cut
        except pyvhdx.ImageError as error:
            assert cut < 4 * MIB
            if cut < 8:
                assert isinstance(error, pyvhdx.NotVHDXError)


def test_a_file_that_shrinks_under_us_is_an_error_and_no_zeros(tmp_path: Path) -> None:
    image = disk().write(tmp_path / "disk.vhdx")
    with pyvhdx.open(tmp_path / "disk.vhdx") as opened:
        opened.pread(1, 5 * MIB)
        with (tmp_path / "disk.vhdx").open("r+b") as file:
            file.truncate(image.places[5] + 4096)
        assert opened.pread(4096, 5 * MIB) == image.expected(5 * MIB, 4096)
        for size in (4097, MIB):
            with pytest.raises(pyvhdx.CorruptImageError, match="ended here") as caught:
                opened.pread(size, 5 * MIB)
            assert caught.value.offset == image.places[5] + 4096
            with pytest.raises(pyvhdx.CorruptImageError):
                opened.preadinto(bytearray(size), 5 * MIB)


def _specimen() -> tuple[bytes, list[tuple[int, int]]]:
    """A small image with everything in it, and the ranges whose fields are worth changing."""
    log = ring(
        MIB,
        follow(
            [
                Entry(5, 0, [(BAT_AT + 8192, page(1))]),
                Entry(6, 0, [(BAT_AT + 4096, 4096), (BAT_AT + 8192, page(2))]),
            ]
        ),
    )
    image = Image(4 * MIB, kind="differencing", log=log, log_guid=GUID, items=((guid(9), 1, b"user"),))
    image.blocks = {0: Block(FULL), 1: Block(PARTIAL, frozenset(range(0, 2048, 3))), 2: Block(2), 3: Block(3)}
    memory = io.BytesIO()
    image.write_to(memory)
    fields = [
        (0, 16),
        (0x10000, 80),
        (0x20000, 80),
        (0x30000, 80),
        (0x40000, 80),
        (MIB, 256),
        (MIB + 8192, 256),
    ]
    fields += [(METADATA_AT, 32 * 9), (METADATA_AT + 65536, 300), (BAT_AT, 40), (BAT_AT + 8 * 4096, 8)]
    return memory.getvalue(), fields


SPECIMEN, FIELDS = _specimen()
EDGES = [
    0,
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    511,
    512,
    4095,
    4096,
    65535,
    65536,
    MIB - 1,
    MIB,
    MIB + 6,
    2**31,
    2**32 - 1,
    2**44,
    2**63,
    2**64 - MIB,
    2**64 - 1,
]


@given(st.data())
def test_whatever_the_bytes_it_is_an_answer_or_an_error_of_ours(data: st.DataObject) -> None:
    """Fields at edge values, with the checksums made right again."""
    image = bytearray(SPECIMEN)
    for _ in range(data.draw(st.integers(1, 3))):
        start, length = data.draw(st.sampled_from(FIELDS))
        size = data.draw(st.sampled_from((1, 2, 4, 8)))
        at = start + data.draw(st.integers(0, length - size)) // size * size
        value = data.draw(st.sampled_from(EDGES) | st.integers(0, 2**64 - 1))
        image[at : at + size] = (value % 256**size).to_bytes(size, "little")
    if data.draw(st.booleans()):
        for at, length in (
            (0x10000, 4096),
            (0x20000, 4096),
            (0x30000, 65536),
            (0x40000, 65536),
            (MIB, 8192),
            (MIB + 8192, 8192),
        ):
            image[at : at + length] = sealed(bytes(image[at : at + length]))
    before = bytes(image)
    try:
        with pyvhdx.open(io.BytesIO(image), parent=data.draw(st.sampled_from((False, "auto")))) as opened:
            opened.info()
            dict(opened.metadata)
            for offset in range(0, min(opened.size, 8 * MIB), MIB):
                with contextlib.suppress(pyvhdx.VHDXError):
                    opened.pread(5000, offset)
            for number, _ in enumerate(opened.extents()):
                if number > 100:
                    break
    except pyvhdx.VHDXError as error:
        assert str(error)
    assert image == before


def test_a_claimed_length_costs_no_memory(tmp_path: Path) -> None:
    """A log of 512 MiB that is a hole, and an entry that claims all of it."""
    image = disk(log_guid=GUID, headers=({}, {"log_length": 512 * MIB, "log_offset": 16 * MIB}))
    entry = Entry(1, 0, [(20 << 40, page(1))], changes={"length": 511 * MIB, "count": 2**24 - 2**16}).build()
    image.patches = [(16 * MIB, entry), (528 * MIB, b"\0")]
    image.write(tmp_path / "disk.vhdx")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(pyvhdx.CorruptImageError, match="descriptor"):
        pyvhdx.open(tmp_path / "disk.vhdx")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


def test_the_items_of_a_full_table_are_read(tmp_path: Path) -> None:
    items = tuple((guid(200 + n), 1, bytes([n % 256]) * 9) for n in range(1024))
    assert len(metadata_region([*items])) < MIB
    disk(items=items).write(tmp_path / "disk.vhdx")
    with pyvhdx.open(tmp_path / "disk.vhdx") as opened:
        assert dict(opened.user_metadata) == {item_id: data for item_id, _, data in items}
