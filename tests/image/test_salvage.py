"""``open(..., salvage=True)``: what is certain is read, what is not raises and is called unreadable."""

from __future__ import annotations

import pickle
import random
import struct
from pathlib import Path

import pytest

import pyvhdx
from tests.corpus.handmade import BAT_AT, FULL, METADATA_AT, MIB, PARTIAL, Block, Image, guid


def wipe(path: Path, *ranges: tuple[int, int]) -> None:
    with path.open("r+b") as file:
        for at, length in ranges:
            file.seek(at)
            file.write(bytes(length))


@pytest.fixture
def broken(tmp_path: Path) -> Image:
    """Without headers; block 1 in a reserved state, block 2 cut in the middle by the end of the file."""
    image = Image(4 * MIB, blocks={n: Block(FULL) for n in (0, 1, 2)}, bat={1: 4}).write(
        tmp_path / "disk.vhdx"
    )
    wipe(image.path, (0x10000, 4096), (0x20000, 4096))
    with image.path.open("r+b") as file:
        file.truncate(image.places[2] + MIB // 2)
    return image


def test_a_strict_open_refuses_what_salvage_opens(broken: Image) -> None:
    with pytest.raises(pyvhdx.CorruptImageError, match="HEADER-NONE"):
        pyvhdx.open(broken.path)
    with pyvhdx.open(broken.path, salvage=True) as image:
        assert image.warnings[0].code == "HEADER-NONE"
        assert image.warnings[0].severity == "corrupt"
        assert image.info().to_dict()["kind"] == "dynamic"


def test_extents_say_what_is_unreadable_and_reads_agree_with_them(broken: Image) -> None:
    with pyvhdx.open(broken.path, salvage=True) as image:
        kinds = [
            (extent.offset, extent.length, extent.kind, extent.file_offset) for extent in image.extents()
        ]
        assert kinds == [
            (0, MIB, "data", broken.places[0]),
            (MIB, MIB, "unreadable", None),
            (2 * MIB, MIB // 2, "data", broken.places[2]),
            (2 * MIB + MIB // 2, MIB // 2, "unreadable", None),
            (3 * MIB, MIB, "absent", None),
        ]
        for offset, length, kind, _ in kinds:
            for at, size in ((offset, length), (offset + length - 512, 512), (offset + 7, 1)):
                if kind == "unreadable":
                    with pytest.raises(pyvhdx.CorruptImageError) as caught:
                        image.pread(size, at)
                    assert caught.value.code == ("BAT-STATE" if at < 2 * MIB else "BAT-RANGE")
                    assert caught.value.offset == BAT_AT + 8 * (at // MIB)
                    assert caught.value.section == "2.5.1.1"
                    assert caught.value.name == str(broken.path)
                else:
                    assert image.pread(size, at) == broken.expected(at, size)


def test_a_read_that_failed_has_taken_nothing(broken: Image) -> None:
    with pyvhdx.open(broken.path, salvage=True) as image:
        image.seek(MIB - 100)
        with pytest.raises(pyvhdx.CorruptImageError):
            image.read(200)
        assert image.tell() == MIB - 100


def test_it_is_for_reading_only(broken: Image) -> None:
    before = broken.path.read_bytes()
    with pytest.raises(pyvhdx.RequestError, match="salvage"):
        pyvhdx.open(broken.path, "r+", salvage=True)
    with pyvhdx.open(broken.path, salvage=True) as image:
        assert not image.writable()
    assert broken.path.read_bytes() == before


def test_a_whole_file_reads_as_ever(tmp_path: Path) -> None:
    image = Image(5 * MIB, blocks={n: Block(FULL) for n in (0, 3)}).write(tmp_path / "disk.vhdx")
    with pyvhdx.open(image.path, salvage=True) as one, pyvhdx.open(image.path) as other:
        assert one.read() == other.read()
        assert list(one.extents()) == list(other.extents())
        assert one.warnings == ()


def test_what_a_missing_parent_holds_is_unreadable(tmp_path: Path) -> None:
    child = Image(
        4 * MIB, kind="differencing", blocks={0: Block(FULL), 1: Block(PARTIAL, frozenset(range(8)))}
    ).write(tmp_path / "child.vhdx")
    with pytest.raises(pyvhdx.ParentNotFoundError):
        pyvhdx.open(child.path)
    with pyvhdx.open(child.path, salvage=True) as image:
        assert [(extent.length, extent.kind) for extent in image.extents()] == [
            (MIB + 8 * 512, "data"),
            (3 * MIB - 8 * 512, "unreadable"),
        ]
        assert image.pread(MIB, 0) == child.expected(0, MIB)
        with pytest.raises(pyvhdx.CorruptImageError, match="what is in the parent is missing"):
            image.pread(1, MIB + 8 * 512)
        assert "PARENT-MISSING" in [finding.code for finding in image.warnings]


def test_a_parent_that_was_named_must_fit(tmp_path: Path) -> None:
    child = Image(MIB, kind="differencing").write(tmp_path / "child.vhdx")
    other = Image(MIB, tag=8).write(tmp_path / "other.vhdx")
    with pytest.raises(pyvhdx.ParentMismatchError):
        pyvhdx.open(child.path, parent=other.path, salvage=True)


def test_convert_puts_no_zeros_in_place_of_what_is_lost(broken: Image, tmp_path: Path) -> None:
    with pytest.raises(pyvhdx.CorruptImageError, match="BAT-STATE"):
        pyvhdx.convert(broken.path, tmp_path / "out.raw", source_format="vhdx", salvage=True)
    assert not (tmp_path / "out.raw").exists()


def test_required_things_that_nobody_knows_are_read_past(tmp_path: Path) -> None:
    region = Image(MIB, blocks={0: Block(FULL)}, regions=((guid(5), 40 * MIB, MIB, 1),))
    item = Image(MIB, blocks={0: Block(FULL)}, items=((guid(6), 4, b"12345678"),))
    for image, code in ((region, "REGION-UNKNOWN"), (item, "METADATA-UNKNOWN")):
        image.write(tmp_path / "disk.vhdx")
        with pytest.raises(pyvhdx.UnsupportedImageError):
            pyvhdx.open(image.path)
        with pyvhdx.open(image.path, salvage=True) as opened:
            assert opened.read() == image.expected(0, MIB)
            assert [finding.code for finding in opened.warnings] == [code]


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"log_guid": guid(9).int, "log_length": 0},
        {"log_guid": guid(9).int, "log_offset": 77 * MIB},
        {"log_guid": guid(9).int, "log_version": 3},
    ],
    ids=str,
)
def test_headers_that_a_strict_open_refuses(tmp_path: Path, changes: dict[str, int]) -> None:
    image = Image(3 * MIB, blocks={n: Block(FULL) for n in (0, 2)}, headers=(changes, changes))
    image.write(tmp_path / "disk.vhdx")
    with pytest.raises(pyvhdx.ImageError):
        pyvhdx.open(image.path)
    with pyvhdx.open(image.path, salvage=True) as opened:
        assert opened.read() == image.expected(0, image.size)
        assert opened.warnings


def test_a_salvaged_image_can_be_pickled(broken: Image) -> None:
    with pyvhdx.open(broken.path, salvage=True) as image:
        image.seek(9)
        with pickle.loads(pickle.dumps(image)) as twin:
            assert (twin.tell(), twin.read(5)) == (9, broken.expected(9, 5))


def test_log_refuse_still_refuses(tmp_path: Path) -> None:
    from tests.corpus.handmade_logs import GUID, Entry  # noqa: PLC0415

    log = Entry(7, 0, [(BAT_AT, bytes(4096))]).build()
    image = Image(MIB, log=log, log_guid=GUID).write(tmp_path / "disk.vhdx")
    with pytest.raises(pyvhdx.LogPendingError):
        pyvhdx.open(image.path, salvage=True, log="refuse")


@pytest.mark.slow
def test_whatever_the_bytes_are_only_our_errors_come(tmp_path: Path) -> None:
    """400 files with fields of every structure overwritten."""
    child = Image(6 * MIB, kind="differencing", blocks={0: Block(FULL), 1: Block(PARTIAL, frozenset({1}))})
    whole = child.write(tmp_path / "whole.vhdx").path.read_bytes()
    path = tmp_path / "mutant.vhdx"
    draw = random.Random(4)
    places = [
        0,
        0x10000,
        0x20000,
        0x30000,
        0x40000,
        METADATA_AT,
        METADATA_AT + 65536,
        BAT_AT,
        child.places[-1],
    ]
    edges = [0, 1, 4, 6, 7, 0xFF, 1 << 20, 1 << 31, (1 << 32) - 1, 1 << 44, (1 << 64) - 1, 3 << 20 | 6]
    opened = 0
    for _ in range(400):
        data = bytearray(whole[: draw.choice((None, len(whole) - draw.randrange(3 * MIB)))])
        for _ in range(draw.randrange(1, 9)):
            at = draw.choice(places) + 4 * draw.randrange(draw.choice((4, 40)))
            field = struct.pack("<Q", draw.choice(edges))[: draw.choice((2, 4, 8))]
            if at + 8 < len(data):
                data[at : at + len(field)] = field
        path.write_bytes(data)
        try:
            with pyvhdx.open(path, salvage=True, parent=draw.choice((False, "auto"))) as image:
                opened += 1
                for number, extent in enumerate(image.extents()):
                    if number > 50:
                        break
                    size = min(extent.length, 4096)
                    try:
                        image.pread(size, extent.offset)
                        assert extent.kind != "unreadable"
                    except pyvhdx.VHDXError:
                        assert extent.kind == "unreadable"
        except pyvhdx.VHDXError:
            pass
    assert opened > 200
