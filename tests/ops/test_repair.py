"""What `repair` mends, what it leaves, and that `undo_repair` takes all of it back."""

from __future__ import annotations

import errno
import io
import os
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

import pyvhdx
from pyvhdx.testing import FailingStorage, MemoryStorage, RecordingStorage
from tests.corpus.broken import SPECIMENS, Specimen, child, disk, parent
from tests.corpus.handmade import (
    BAT_AT,
    FULL,
    LOCATOR,
    MIB,
    PARTIAL,
    PHYSICAL,
    ZERO,
    Block,
    Image,
    content,
    guid,
    locator_item,
)
from tests.corpus.handmade_logs import GUID as LOG_GUID
from tests.corpus.handmade_logs import Entry

FIRST = 4 * MIB


def how_of(specimen: Specimen, folder: Path) -> dict[str, Any]:
    """Return the arguments with which a specimen is looked at."""
    how = {key: value for key, value in specimen.how.items() if key != "deep"}
    if "search" in how:
        how["search"] = [folder / how["search"]]
    return how


def wrong_in(path: Path, **how: Any) -> set[str]:
    """Return the codes of corruptions and warnings."""
    return {finding.code for finding in pyvhdx.check(path, **how).findings if finding.severity != "note"}


def content_or_error(path: Path, **how: Any) -> bytes | str:
    """Return what a disk holds up to 64 MiB, behind which no specimen has anything."""
    try:
        with pyvhdx.open(path, **how) as image:
            return image.pread(64 * MIB, 0)
    except (pyvhdx.ImageError, pyvhdx.ParentError) as error:
        return type(error).__name__


def write(image: Image, folder: Path) -> Path:
    return image.write(folder / "disk.vhdx").path


@pytest.mark.parametrize("specimen", SPECIMENS, ids=lambda specimen: specimen.name)
def test_what_is_repairable_is_mended_and_the_rest_is_left_as_it_is(
    specimen: Specimen, tmp_path: Path
) -> None:
    path, how = specimen.make(tmp_path), how_of(specimen, tmp_path)
    size = path.stat().st_size
    before = path.read_bytes() if size < 1 << 26 else None
    found, readable = wrong_in(path, **how), content_or_error(path, **how)
    planned = pyvhdx.repair(path, dry_run=True, **how)
    assert before is None or path.read_bytes() == before
    assert not Path(f"{path}.undo").exists()
    report = pyvhdx.repair(path, **how)
    assert (report.done_counts, report.left_counts, report.lost) == (
        planned.done_counts,
        planned.left_counts,
        planned.lost,
    )
    left = wrong_in(path, **how)
    assert {remaining.finding.code for remaining in report.left} == left
    assert {repaired.finding.code for repaired in report.done} == found - left
    if specimen.severity != "note":
        assert (specimen.code not in left) == (specimen.repairable or "deep" in specimen.how)
    if isinstance(readable, bytes):
        assert content_or_error(path, **how) == readable
    if not report.done:
        assert report.undo is None
        assert before is None or path.read_bytes() == before
        return
    assert report.undo == f"{path}.undo"
    again = pyvhdx.repair(path, **how)
    assert not again.done
    undone = pyvhdx.undo_repair(path, report.undo)
    assert undone.size == path.stat().st_size == size
    assert before is None or path.read_bytes() == before
    assert not os.path.exists(report.undo)


# QEMU knows no differencing files.
_FOR_QEMU = [
    specimen
    for specimen in SPECIMENS
    if specimen.repairable
    and not specimen.name.endswith(("-bitmap", "KIND"))
    and not specimen.code.startswith(("LOCATOR", "PARENT", "BITMAP"))
]


@pytest.mark.peer("qemu-img", "libvhdi")
@pytest.mark.parametrize("specimen", _FOR_QEMU, ids=lambda specimen: specimen.name)
def test_peers_read_what_was_mended(specimen: Specimen, tmp_path: Path) -> None:
    import pyvhdi  # noqa: PLC0415

    path = specimen.make(tmp_path)
    pyvhdx.repair(path, undo=False)
    with pyvhdx.open(path) as image:
        size, expected = image.size, image.pread(8 * MIB, 0)
    assert size <= 8 * MIB
    assert qemu_reads(path) == expected
    peer = pyvhdi.file()
    peer.open(str(path))
    assert peer.read_buffer(size) == expected
    peer.close()


# What each choice leaves: (name of a specimen, choices, what is still wrong, whether something is lost).
CHOSEN: list[tuple[str, dict[Any, str], set[str], bool]] = [
    ("HEADER-TIE-alike", {"HEADER-TIE": "first"}, set(), False),
    ("HEADER-TIE-unlike", {"HEADER-TIE": "second"}, set(), False),
    ("HEADER-GUID-data", {"HEADER-GUID": "new"}, set(), False),
    ("LOG-NO-SEQUENCE-checksum", {"LOG-NO-SEQUENCE": "drop"}, set(), True),
    ("LOG-FILE-TRUNCATED", {"LOG-FILE-TRUNCATED": "drop"}, set(), True),
    ("LOG-FILE-TRUNCATED", {"LOG-FILE-TRUNCATED": "extend"}, set(), False),
    ("METADATA-SIZE-unaligned", {"METADATA-SIZE": "round"}, set(), False),
    ("BAT-STATE-reserved", {"BAT-STATE": "zero"}, set(), True),
    ("BAT-STATE-reserved", {("BAT-STATE", BAT_AT + 24): "absent"}, set(), True),
    ("BAT-STATE-draft", {"BAT-STATE": "zero"}, set(), True),
    ("BAT-OFFSET", {"BAT-OFFSET": "absent"}, set(), True),
    ("BAT-RANGE-outside", {"BAT-RANGE": "zero"}, set(), True),
    ("BAT-RANGE-huge", {"BAT-RANGE": "zero"}, set(), True),
    ("BAT-RANGE-cut", {"BAT-RANGE": "extend"}, set(), True),
    ("BAT-RANGE-cut", {"BAT-RANGE": "zero"}, set(), True),
    ("BAT-OVERLAP-blocks", {"BAT-OVERLAP": "copy"}, set(), False),
    ("BAT-OVERLAP-blocks", {"BAT-OVERLAP": "first"}, set(), True),
    ("BAT-OVERLAP-blocks", {"BAT-OVERLAP": "second"}, set(), True),
    ("BAT-OVERLAP-blocks", {"BAT-OVERLAP": "zero"}, set(), True),
    ("BAT-OVERLAP-region", {"BAT-OVERLAP": "copy"}, set(), False),
    ("BAT-OVERLAP-region", {"BAT-OVERLAP": "first"}, set(), True),
    ("BAT-SHIFT", {"BAT-SHIFT": "copy"}, set(), False),
    ("BITMAP-ENTRY-missing", {"BITMAP-ENTRY": "present"}, set(), True),
    ("BITMAP-ENTRY-outside", {"BITMAP-ENTRY": "zero"}, set(), True),
    ("BITMAP-ENTRY-region", {"BITMAP-ENTRY": "absent"}, set(), True),
    ("BAT-OVERLAP-bitmap", {"BAT-OVERLAP": "copy"}, set(), False),
    (
        "LOCATOR-LEFTOVER-child",
        {"LOCATOR-LEFTOVER": "parent"},
        {"BITMAP-ENTRY", "PARENT-NOT-FOUND"},
        False,
    ),
    ("REGION-COPIES-unlike", {"REGION-COPIES": "first"}, set(), True),
    ("BAT-OVERLAP-log", {"BAT-OVERLAP": "copy"}, set(), False),
    (
        "LOCATOR-LEFTOVER-child",
        {"LOCATOR-LEFTOVER": "remove", "BAT-STATE": "present"},
        set(),
        False,
    ),
]


def _named(name: str) -> Specimen:
    return next(specimen for specimen in SPECIMENS if specimen.name == name)


@pytest.mark.parametrize(
    ("name", "choices", "left", "loses"), CHOSEN, ids=[f"{name}-{choices}" for name, choices, *_ in CHOSEN]
)
def test_ambiguous_damage_is_mended_as_it_was_chosen(
    name: str, choices: dict[Any, str], left: set[str], loses: bool, tmp_path: Path
) -> None:
    specimen = _named(name)
    path = specimen.make(tmp_path)
    before = path.read_bytes()
    offered = pyvhdx.repair(path, dry_run=True).left
    (key,) = list(choices)[:1]
    code = key if isinstance(key, str) else key[0]
    if name not in (
        "BAT-STATE-draft",
        "REGION-COPIES-unlike",
    ):  # is mended without a choice, and may have one
        assert any(set(choices.values()) & set(one.choices) for one in offered if one.finding.code == code)
    report = pyvhdx.repair(path, choices=choices)
    assert bool(report.lost) == loses
    rest = wrong_in(path) - left
    if rest:  # what a first repair did not dare to look at
        pyvhdx.repair(path, undo=False, choices=choices if code not in rest else None)
        assert wrong_in(path) == left
        return
    if not left:
        assert report.is_clean
        with pyvhdx.open(path) as image:
            image.read()
    assert report.undo is not None
    pyvhdx.undo_repair(path, report.undo)
    assert path.read_bytes() == before


# -- the five of the issue --------------------------------------------------------------------


def qemu_reads(path: Path) -> bytes:
    raw = path.with_suffix(".raw")
    subprocess.run(["qemu-img", "check", "-q", path], check=True, capture_output=True)
    subprocess.run(["qemu-img", "convert", "-f", "vhdx", "-O", "raw", path, raw], check=True)
    return raw.read_bytes()


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize(
    "image",
    [
        disk(headers=({}, {"crc": 0, "sequence": 1 << 63})),
        disk(patches=[(0x30000, b"regi????")]),
    ],
    ids=["a header with a bad CRC and a huge number", "region table 1 bad, 2 good"],
)
def test_a_bad_copy_is_written_from_the_good_one(image: Image, tmp_path: Path) -> None:
    path = write(image, tmp_path)
    expected = image.expected(0, image.size)
    assert content_or_error(path) == expected
    assert pyvhdx.repair(path).left == []
    assert content_or_error(path) == expected
    assert qemu_reads(path) == expected


@pytest.mark.peer("qemu-img")
def test_two_blocks_at_one_place_get_a_place_each(tmp_path: Path) -> None:
    image = disk(bat={3: 5 * MIB | FULL})  # where block 2 lies
    path = write(image, tmp_path)
    expected = bytearray(image.expected(0, image.size))
    expected[3 * MIB : 4 * MIB] = content(image.tag, 2 * MIB, MIB)
    assert content_or_error(path) == bytes(expected)
    (left,) = pyvhdx.repair(path).left
    assert left.finding.code == "BAT-OVERLAP"
    assert left.choices == ("copy", "first", "second", "zero")
    report = pyvhdx.repair(path, choices={("BAT-OVERLAP", left.finding.offset): "copy"})
    assert (report.left, report.lost) == ([], [])
    assert qemu_reads(path) == expected
    with pyvhdx.open(path, "r+") as opened:  # which an overlap forbids
        opened.pwrite(b"third", 3 * MIB)
        assert opened.pread(5, 2 * MIB) == expected[2 * MIB : 2 * MIB + 5]


@pytest.mark.peer("qemu-img")
def test_a_file_cut_short_by_three_megabytes_names_what_is_lost(tmp_path: Path) -> None:
    image = disk(blocks={number: Block(FULL) for number in range(8)})
    path = write(image, tmp_path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 3 * MIB - 4096)
    expected = image.expected(0, 8 * MIB)
    kept = path.read_bytes()
    with pyvhdx.open(path) as opened:
        assert opened.pread(4 * MIB, 0) == expected[: 4 * MIB]
        with pytest.raises(pyvhdx.CorruptImageError):
            opened.pread(1, 4 * MIB)
    report = pyvhdx.repair(path)
    assert {one.finding.code for one in report.left} == {"BAT-RANGE", "FILE-ALIGNMENT"}
    assert path.read_bytes() == kept
    report = pyvhdx.repair(path, choices={"BAT-RANGE": "zero", ("BAT-RANGE", BAT_AT + 32): "extend"})
    assert report.left == []
    assert [(loss.code, loss.offset, loss.length) for loss in report.lost] == [
        ("BAT-RANGE", 5 * MIB - 4096, 4096),
        ("BAT-RANGE", 5 * MIB, 3 * MIB),
    ]
    assert qemu_reads(path) == expected[: 5 * MIB - 4096] + bytes(3 * MIB + 4096)


def test_without_a_header_there_is_nothing_to_begin_with(tmp_path: Path) -> None:
    path = write(disk(headers=({"crc": 0}, {"crc": 0})), tmp_path)
    before = path.read_bytes()
    report = pyvhdx.repair(path)
    assert not report.is_clean
    assert report.left[0].finding.code == "HEADER-NONE"
    assert "salvage" in report.left[0].reason
    assert path.read_bytes() == before


# -- what goes on around it -------------------------------------------------------------------


def test_a_clean_file_stays_as_it_is(tmp_path: Path) -> None:
    path = write(disk(), tmp_path)
    storage = RecordingStorage(MemoryStorage(path.read_bytes()))
    report = pyvhdx.repair(storage)  # and needs no place for an undo file
    assert (report.done, report.left, report.undo) == ([], [], None)
    assert not storage.events


def test_the_log_is_replayed_before_anything_is_judged(tmp_path: Path) -> None:
    page = bytearray(4096)
    page[:8] = (FIRST | FULL | 0x80).to_bytes(8, "little")  # a reserved bit
    log = Entry(7, 0, [(BAT_AT, bytes(page))], flushed=6 * MIB, last=6 * MIB).build()
    path = write(disk(log=log, log_guid=LOG_GUID, bat={0: 0}), tmp_path)
    report = pyvhdx.repair(path)
    assert set(report.done_counts) == {"LOG-PENDING", "BAT-RESERVED"}
    assert wrong_in(path) == set()


@pytest.mark.parametrize("patches", [[], [(5 * MIB + 4096, Entry(7, 0).build())]], ids=["unused", "used"])
def test_whose_the_bytes_of_a_log_on_a_block_are_is_decided_by_the_user(
    patches: list[tuple[int, bytes]], tmp_path: Path
) -> None:
    at = {"log_offset": 5 * MIB}
    path = write(disk(headers=(at, at), patches=patches), tmp_path)
    before = path.read_bytes()
    (left,) = pyvhdx.repair(path, undo=False).left
    assert (left.finding.code, left.choices) == ("BAT-OVERLAP", ("copy", "first"))
    assert path.read_bytes() == before
    assert pyvhdx.repair(path, undo=False, choices={"BAT-OVERLAP": "copy"}).left == []
    with pyvhdx.open(path) as image:
        assert image.pread(MIB, 2 * MIB) == before[5 * MIB : 6 * MIB]


def test_nothing_grows_over_a_block_that_is_not_decided_about(tmp_path: Path) -> None:
    """A file that gets longer would turn what was lost into zeros that nobody wrote."""
    image = disk(bat={3: 5 * MIB | FULL, 4: 6 * MIB | FULL})
    path = write(image, tmp_path)
    (before,) = {path.stat().st_size}
    report = pyvhdx.repair(path, undo=False, choices={"BAT-OVERLAP": "copy"})
    assert path.stat().st_size == before
    reasons = {one.finding.code: one.reason for one in report.left}
    assert set(reasons) == {"BAT-OVERLAP", "BAT-RANGE"}
    assert "BAT-RANGE" in reasons["BAT-OVERLAP"]
    assert pyvhdx.repair(path, undo=False, choices={"BAT-OVERLAP": "copy", "BAT-RANGE": "zero"}).left == []
    with pyvhdx.open(path) as opened:
        assert opened.pread(MIB, 4 * MIB) == bytes(MIB)
        assert opened.pread(MIB, 3 * MIB) == opened.pread(MIB, 2 * MIB)


def test_a_device_does_not_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that needs more room is done, and what does not is."""
    monkeypatch.setattr("pyvhdx.ops.repair._is_device", lambda _: True)
    path = write(disk(bat={3: 5 * MIB | FULL, 4: 9 * MIB | ZERO}), tmp_path)
    size = path.stat().st_size
    report = pyvhdx.repair(path, choices={"BAT-OVERLAP": "copy"})
    assert set(report.done_counts) == {"BAT-STALE-OFFSET"}
    assert (report.left[0].finding.code, path.stat().st_size) == ("BAT-OVERLAP", size)
    assert pyvhdx.repair(path, undo=False, choices={"BAT-OVERLAP": "first"}).left == []


def test_only_a_visible_repair_gives_a_new_data_write_guid(tmp_path: Path) -> None:
    for image, choices, is_visible in (
        (disk(headers=({}, {"crc": 0})), {}, False),
        (disk(bat={3: 9 * MIB | ZERO}), {}, False),
        (disk(without=(PHYSICAL,)), {}, True),
        (disk(bat={3: 64 * MIB | FULL}), {"BAT-RANGE": "zero"}, True),
        (disk(bat={3: 5 * MIB | FULL}), {"BAT-OVERLAP": "copy"}, False),
    ):
        path = write(image, tmp_path)
        pyvhdx.repair(path, undo=False, choices=choices)
        with pyvhdx.open(path) as opened:
            assert (opened.data_write_guid != image.data_write_guid) == is_visible
            assert opened.file_write_guid != guid(1000 + image.tag)


def test_the_second_region_table_counts_where_only_it_leads_to_what_it_should(tmp_path: Path) -> None:
    from tests.corpus.broken import _BAT_REGION, _METADATA_REGION, _tables, table  # noqa: PLC0415

    wrong = table((_BAT_REGION[0], 5 * MIB, MIB, 1), (_METADATA_REGION[0], 4 * MIB, MIB, 1))
    path = write(_tables(wrong, table(_BAT_REGION, _METADATA_REGION)), tmp_path)
    assert isinstance(content_or_error(path), str)
    report = pyvhdx.repair(path)
    assert wrong_in(path) == set()
    assert any("second copy" in repaired.action for repaired in report.done)
    assert content_or_error(path) == disk().expected(0, 8 * MIB)


# -- chains -----------------------------------------------------------------------------------


def test_the_locator_gets_the_path_of_the_parent_that_is_named(tmp_path: Path) -> None:
    linkage = f"{{{parent().data_write_guid}}}"
    (tmp_path / "elsewhere").mkdir()
    base = parent().write(tmp_path / "elsewhere" / "base.vhdx").path
    image = child(replace={LOCATOR: locator_item({"parent_linkage": linkage})})
    path = write(image, tmp_path)
    before = path.read_bytes()
    assert "LOCATOR-PATH" in {one.finding.code for one in pyvhdx.repair(path).left}
    report = pyvhdx.repair(path, parent=base)
    assert "LOCATOR-PATH" in report.done_counts
    with pyvhdx.open(path) as opened:
        assert opened.read() == image.expected(0, image.size)
        assert opened.data_write_guid == image.data_write_guid
    assert report.undo is not None
    pyvhdx.undo_repair(path, report.undo)
    assert path.read_bytes() == before


def test_a_parent_that_is_another_one_is_taken_only_by_choice(tmp_path: Path) -> None:
    other = disk(tag=10).write(tmp_path / "other.vhdx").path
    path = write(child(), tmp_path)
    (left,) = pyvhdx.repair(path, parent=other).left
    assert (left.finding.code, left.choices) == ("PARENT-MISMATCH", ("relink",))
    with pytest.raises(pyvhdx.RequestError, match="must be named"):
        pyvhdx.repair(path, choices={"PARENT-MISMATCH": "relink"})
    report = pyvhdx.repair(path, parent=other, choices={"PARENT-MISMATCH": "relink"})
    assert (report.left, len(report.lost)) == ([], 1)
    with pyvhdx.open(path) as opened:
        assert opened.parent is not None
        assert opened.parent.name == str(other)


# -- choices ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"BAT-OVERLAPS": "copy"}, "is no code; there are choices for BAT-OFFSET"),
        ({"HEADER-COPY": "copy"}, "leaves no choice"),
        ({"BAT-OVERLAP": "move"}, "there are 'copy', 'first', 'second', 'zero'"),
        ({("BAT-OVERLAP", 5): "copy"}, "there is no BAT-OVERLAP at 0x5"),
        ({("BAT-OVERLAP", BAT_AT + 24): "second"}, "there are 'copy', 'first'"),
        ({("BAT-OVERLAP",): "copy"}, "neither a code nor a pair"),
        ([("BAT-OVERLAP", "copy")], "must be a mapping"),
    ],
)
def test_a_choice_that_there_is_not_is_refused_before_anything_happens(
    choices: Any, message: str, tmp_path: Path
) -> None:
    path = _named("BAT-OVERLAP-region").make(tmp_path)
    before = path.read_bytes()
    with pytest.raises(pyvhdx.RequestError, match=message):
        pyvhdx.repair(path, choices=choices)
    assert path.read_bytes() == before
    assert list(tmp_path.glob("*.undo")) == []


# -- the undo file ----------------------------------------------------------------------------


def broken(folder: Path) -> Path:
    return write(disk(headers=({}, {"crc": 0}), bat={3: 9 * MIB | ZERO}), folder)


def test_an_undo_file_is_never_overwritten(tmp_path: Path) -> None:
    path = broken(tmp_path)
    before = path.read_bytes()
    taken = tmp_path / "disk.vhdx.undo"
    taken.write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        pyvhdx.repair(path)
    with pytest.raises(FileExistsError):
        pyvhdx.repair(path, undo=io.BytesIO(b"mine too"))
    assert (path.read_bytes(), taken.read_bytes()) == (before, b"mine")
    report = pyvhdx.repair(path, undo=tmp_path / "other.undo")
    assert report.undo == str(tmp_path / "other.undo")
    pyvhdx.undo_repair(path, report.undo)
    assert path.read_bytes() == before


def test_an_image_that_was_changed_since_is_not_undone(tmp_path: Path) -> None:
    path = broken(tmp_path)
    undo = pyvhdx.repair(path).undo
    assert undo is not None
    with pyvhdx.open(path, "r+") as image:
        image.pwrite(b"new", 0)
    now, kept = path.read_bytes(), Path(undo).read_bytes()
    with pytest.raises(pyvhdx.RequestError, match="something was written to it since"):
        pyvhdx.undo_repair(path, undo)
    assert (path.read_bytes(), Path(undo).read_bytes()) == (now, kept)


@pytest.mark.parametrize("at", [0, 4, 30, 100, 511, 512, 540, 600, -1])
def test_a_damaged_undo_file_restores_nothing(at: int, tmp_path: Path) -> None:
    path = broken(tmp_path)
    undo = Path(pyvhdx.repair(path).undo or "")
    kept = bytearray(undo.read_bytes())
    kept[at] ^= 1
    now = path.read_bytes()
    for spoiled in (bytes(kept), undo.read_bytes()[:-1], b"", b"undo"):
        undo.write_bytes(spoiled)
        with pytest.raises(pyvhdx.RequestError, match="is no undo file of a repair, or is damaged"):
            pyvhdx.undo_repair(path, undo)
        assert path.read_bytes() == now


def test_a_full_disk_shows_before_the_image_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = broken(tmp_path)
    before = path.read_bytes()
    pwrite = os.pwrite

    def full(fd: int, data: Any, offset: int) -> int:
        if not os.readlink(f"/proc/self/fd/{fd}").endswith("disk.vhdx"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(fd, data, offset)

    monkeypatch.setattr("pyvhdx.storage.local._pwrite", full)
    with pytest.raises(OSError, match="No space left"):
        pyvhdx.repair(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["disk.vhdx"]


def test_a_repair_that_was_cut_short_is_undone_and_done_again(tmp_path: Path) -> None:
    path = broken(tmp_path)
    before = path.read_bytes()
    image, undo = MemoryStorage(before), MemoryStorage()
    with pytest.raises(OSError, match="Input/output"):
        pyvhdx.repair(FailingStorage(image, 9), undo=undo)
    path.write_bytes(image.read_at(image.size(), 0))
    assert path.read_bytes() != before
    Path(f"{path}.undo").write_bytes(undo.read_at(undo.size(), 0))
    report = pyvhdx.repair(path, dry_run=True)
    assert set(report.done_counts) == {"HEADER-COPY", "BAT-STALE-OFFSET"}  # of the file as it was at first
    report = pyvhdx.repair(path)
    assert report.left == []
    assert report.undo is not None
    pyvhdx.undo_repair(path, report.undo)
    assert path.read_bytes() == before


# -- locks and other requests -----------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="Windows has share modes instead")
def test_an_image_in_use_is_neither_repaired_nor_undone(tmp_path: Path) -> None:
    path = broken(tmp_path)
    with pyvhdx.open(path), pytest.raises(pyvhdx.LockedError):
        pyvhdx.repair(path)
    with pyvhdx.open(path):
        pyvhdx.repair(path, dry_run=True)
    undo = pyvhdx.repair(path).undo
    with pyvhdx.open(path), pytest.raises(pyvhdx.LockedError):
        pyvhdx.undo_repair(path, undo)
    pyvhdx.undo_repair(path, undo)


def test_what_is_no_vhdx_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(2 * MIB))
    with pytest.raises(pyvhdx.NotVHDXError):
        pyvhdx.repair(path)
    with pytest.raises(FileNotFoundError):
        pyvhdx.repair(tmp_path / "missing.vhdx")


def test_a_pending_log_can_be_refused(tmp_path: Path) -> None:
    path = _named("LOG-PENDING").make(tmp_path)
    before = path.read_bytes()
    with pytest.raises(pyvhdx.LogPendingError):
        pyvhdx.repair(path, log="refuse")
    assert path.read_bytes() == before


def test_a_file_object_needs_a_place_for_the_undo_file(tmp_path: Path) -> None:
    before = broken(tmp_path).read_bytes()
    file, undo = io.BytesIO(before), io.BytesIO()
    with pytest.raises(pyvhdx.RequestError, match="undo=False"):
        pyvhdx.repair(file)
    assert file.getvalue() == before
    assert pyvhdx.repair(file, undo=undo).left == []
    pyvhdx.undo_repair(file, undo)
    assert file.getvalue() == before


def test_progress_cancels_by_raising_and_the_file_stays(tmp_path: Path) -> None:
    path = write(disk(bat={3: 9 * MIB | ZERO}), tmp_path)
    before = path.read_bytes()
    calls: list[tuple[int, int]] = []
    pyvhdx.repair(path, progress=lambda done, total: calls.append((done, total)))
    pyvhdx.undo_repair(path, f"{path}.undo", progress=lambda done, total: calls.append((done, total)))
    assert all(done <= total for done, total in calls)

    def cancel(_: int, __: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        pyvhdx.repair(path, progress=cancel)
    assert path.read_bytes() == before


def test_more_than_a_thousand_of_a_code_are_mended_and_counted(tmp_path: Path) -> None:
    image = Image(3000 * MIB, bat=dict.fromkeys(range(0, 3000, 2), 64 * MIB | ZERO))
    path = write(image, tmp_path)
    report = pyvhdx.repair(path, undo=False)
    assert (len(report.done), report.done_counts) == (1000, {"BAT-STALE-OFFSET": 1500})
    assert wrong_in(path) == set()


def test_reports_are_plain_values() -> None:
    storage = MemoryStorage()
    pyvhdx.create(storage, 8 * MIB).close()
    assert pyvhdx.repair(storage).to_dict() == {
        "image": "<memory>",
        "dry_run": False,
        "done": [],
        "left": [],
        "lost": [],
        "undo": None,
        "undone_first": False,
        "done_counts": {},
        "left_counts": {},
        "corrupt_parents": [],
        "is_clean": True,
    }


def test_the_page_on_repairing_lists_every_choice() -> None:
    from pyvhdx._core.repairs.plan import CHOICES  # noqa: PLC0415

    page = (Path(__file__).parents[2] / "docs" / "repair.md").read_text()
    listed: dict[str, set[str]] = {}
    code = ""
    for line in page.splitlines():
        cells = [cell.strip().strip("`") for cell in line.split("|")[1:-1]]
        if len(cells) == 3 and cells[1].isalpha() and line.split("|")[2].strip().startswith("`"):
            code = cells[0] or code
            listed.setdefault(code, set()).add(cells[1])
    listed["BAT-SHIFT"] = listed["BAT-OVERLAP"]
    assert listed == {code: set(choices) for code, choices in CHOICES.items()}


def test_a_bitmap_that_shares_its_place_is_left_alone(tmp_path: Path) -> None:
    """Bits that are cleared there would be another block's bytes."""
    blocks = {1: Block(PARTIAL, frozenset({1})), 3: Block(FULL), 4097: Block(FULL)}
    image = child(size=5 << 30, blocks=blocks)
    image.bat = {image.bitmap_index(0): 5 * MIB | 6}  # where block 3 lies
    image.patches = [(8 * MIB, b"\1")]  # a bit of block 4096, which has none
    parent().write(tmp_path / "parent.vhdx")
    path = write(image, tmp_path)
    before = path.read_bytes()
    report = pyvhdx.repair(path)
    assert set(report.done_counts) == set()
    assert set(report.left_counts) - {"PARENT-SIZE"} == {"BITMAP-STALE", "BAT-OVERLAP"}
    assert path.read_bytes()[5 * MIB : 6 * MIB] == before[5 * MIB : 6 * MIB]


def test_what_kept_something_from_being_mended_is_mended_first(tmp_path: Path) -> None:
    """With a bad item nobody can say what the BAT should hold; one repair is enough for both."""
    optional = _named("METADATA-RANGE-optional").make(tmp_path)
    with optional.open("r+b") as file:
        file.seek(BAT_AT + 24)
        file.write(struct.pack("<Q", 9 * MIB | ZERO))
    report = pyvhdx.repair(optional)
    assert set(report.done_counts) == {"METADATA-RANGE", "BAT-STALE-OFFSET"}
    assert (report.left, len(report.lost)) == ([], 1)


def test_a_child_whose_linkage_is_lost_is_linked_to_the_parent_that_is_named(tmp_path: Path) -> None:
    path = _named("LOCATOR-LINKAGE").make(tmp_path)
    base = tmp_path / "parent.vhdx"
    report = pyvhdx.repair(path, parent=base, choices={"LOCATOR-LINKAGE": "relink"})
    assert [loss.code for loss in report.lost] == ["LOCATOR-LINKAGE"]
    assert wrong_in(path) == set()
    with pyvhdx.open(path) as opened:
        assert opened.read() == child().expected(0, 8 * MIB)
