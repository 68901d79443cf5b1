"""Without a choice `repair` neither destroys nor makes up data, whatever else is wrong with the file."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

import pyvhdx
from tests.corpus.broken import SPECIMENS, child, disk, parent, table
from tests.corpus.handmade import (
    BAT,
    BAT_AT,
    DISK_SIZE,
    FULL,
    METADATA,
    METADATA_AT,
    MIB,
    PARTIAL,
    PHYSICAL,
    ZERO,
    Block,
    Image,
    guid,
)

REGIONS = (BAT, BAT_AT, MIB, 1), (METADATA, METADATA_AT, MIB, 1)
TWO_AT_ONE_PLACE = {3: 5 * MIB | FULL}  # where block 2 lies


def write(image: Image, folder: Path) -> Path:
    parent().write(folder / "parent.vhdx")
    return image.write(folder / "disk.vhdx").path


def pieces(path: Path, **how: Any) -> list[bytes | str] | str:
    """Return what each MiB of the disk reads as, or why it does not."""
    try:
        with pyvhdx.open(path, **how) as image:
            read: list[bytes | str] = []
            for at in range(0, min(image.size, 16 * MIB), MIB):
                try:
                    read.append(image.pread(min(MIB, image.size - at), at))
                except (pyvhdx.ImageError, pyvhdx.ParentError) as error:
                    read.append(type(error).__name__)
            return read
    except (pyvhdx.ImageError, pyvhdx.ParentError) as error:
        return type(error).__name__


def undecided(path: Path) -> set[tuple[str, int]]:
    found = pyvhdx.check(path).findings
    return {
        (one.code, one.offset)
        for one in found
        if one.severity == "corrupt" and not one.repairable and not one.code.startswith("PARENT-")
    }


def behind_the_log(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(MIB)
        return file.read()


# -- what waits -------------------------------------------------------------------------------

# Damage that could be mended, were there not another one.
MENDABLE: dict[str, Image] = {
    "stale offset": disk(bat={4: 9 * MIB | ZERO, **TWO_AT_ONE_PLACE}),
    "reserved bits": disk(bat={0: 4 * MIB | FULL | 0x80, **TWO_AT_ONE_PLACE}),
    "padding": disk(bat={9: 5, **TWO_AT_ONE_PLACE}),
    "physical sector": disk(physical=1234, bat=TWO_AT_ONE_PLACE),
    "reserved metadata": disk(patches=[(METADATA_AT + 12, b"x")], bat=TWO_AT_ONE_PLACE),
    "misplaced log": disk(headers=({"log_offset": METADATA_AT},) * 2, bat=TWO_AT_ONE_PLACE),
    "region flags": disk(
        patches=[(at, table((*REGIONS[0][:3], 3), REGIONS[1])) for at in (0x30000, 0x40000)],
        bat=TWO_AT_ONE_PLACE,
    ),
    "log on a block, unreadable metadata": disk(
        headers=({"log_offset": 4 * MIB},) * 2, items=((guid(5), 4, b"abcd"),)
    ),
}


@pytest.mark.parametrize("image", MENDABLE.values(), ids=list(MENDABLE))
def test_what_may_hang_on_something_undecided_is_left_byte_for_byte(image: Image, tmp_path: Path) -> None:
    image.headers = tuple(one | {"data_guid": 0} if not at else one for at, one in enumerate(image.headers))
    path = write(image, tmp_path)
    before = behind_the_log(path)
    report = pyvhdx.repair(path, undo=False)
    assert behind_the_log(path) == before
    assert report.lost == []
    assert not any(code.startswith(("BAT-", "METADATA-", "LOG-", "REGION-")) for code in report.done_counts)


def test_the_reason_names_what_must_be_decided_and_choices_for_it_lift_it(tmp_path: Path) -> None:
    path = write(disk(bat={4: 9 * MIB | ZERO, 5: 64 * MIB | FULL, **TWO_AT_ONE_PLACE}), tmp_path)
    left = pyvhdx.repair(path, undo=False).left
    reasons = {one.finding.code: one.reason for one in left}
    assert reasons["BAT-STALE-OFFSET"] in {
        f"left until {code} at {place:#x} is decided" for code, place in undecided(path)
    }
    assert reasons["BAT-OVERLAP"] == reasons["BAT-RANGE"] == ""
    left = pyvhdx.repair(path, undo=False, choices={"BAT-RANGE": "zero"}).left
    reasons = {one.finding.code: one.reason for one in left}
    assert reasons["BAT-RANGE"] == f"left until BAT-OVERLAP at {BAT_AT + 24:#x} is decided"
    report = pyvhdx.repair(path, undo=False, choices={"BAT-RANGE": "zero", "BAT-OVERLAP": "first"})
    assert report.left == []


def test_where_there_is_no_choice_the_reason_says_so(tmp_path: Path) -> None:
    path = write(disk(items=((guid(5), 4, b"abcd"),), bat={4: 9 * MIB | ZERO}), tmp_path)
    reasons = {one.finding.code: one.reason for one in pyvhdx.repair(path, undo=False).left}
    assert "there is no choice" in reasons["BAT-STALE-OFFSET"]


def test_headers_identifier_and_a_bad_table_are_mended_all_the_same(tmp_path: Path) -> None:
    image = disk(
        headers=({}, {"crc": 0}),
        patches=[(0, b"VHDXFILE"), (0x30000, b"regi????")],
        bat=TWO_AT_ONE_PLACE,
    )
    path = write(image, tmp_path)
    before = behind_the_log(path)
    report = pyvhdx.repair(path, undo=False)
    assert set(report.done_counts) == {"HEADER-COPY", "IDENTIFIER", "REGION-COPY"}
    assert (set(report.left_counts), behind_the_log(path)) == ({"BAT-OVERLAP"}, before)


def test_nothing_is_written_if_something_undecided_would_vanish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = {0: Block(PARTIAL, frozenset({1})), 2: Block(FULL)}
    path = write(child(blocks=blocks, bat={5: 64 * MIB | PARTIAL}), tmp_path)
    before = path.read_bytes()
    monkeypatch.setattr("pyvhdx._core.repairs.whole.undecided", lambda *_, **__: [])
    monkeypatch.setattr("pyvhdx._core.repairs.blocks.BlockPlan.is_sound", lambda *_: True)
    report = pyvhdx.repair(path)
    assert path.read_bytes() == before
    assert (report.done, report.undo, report.lost) == ([], None, [])
    assert all("would vanish" in one.reason for one in report.left)


# -- region tables ----------------------------------------------------------------------------


def _two_tables(first: bytes, second: bytes, **changes: Any) -> Image:
    return disk(patches=[(0x30000, first), (0x40000, second)], **changes)


RIGHT = table(*REGIONS)
OUTSIDE = table((BAT, 64 * MIB, MIB, 1), REGIONS[1])
ON_A_BLOCK = table((BAT, 4 * MIB, MIB, 1), REGIONS[1])


@pytest.mark.parametrize("wrong", [OUTSIDE, ON_A_BLOCK], ids=["behind the end", "on a block"])
@pytest.mark.parametrize("is_first", [True, False])
def test_the_copy_counts_whose_regions_hold_what_they_should(
    wrong: bytes, is_first: bool, tmp_path: Path
) -> None:
    path = write(_two_tables(*((wrong, RIGHT) if is_first else (RIGHT, wrong))), tmp_path)
    before = behind_the_log(path)
    report = pyvhdx.repair(path, undo=False)
    assert report.left == []
    assert behind_the_log(path) == before
    assert pieces(path) == [disk().expected(at, MIB) for at in range(0, 8 * MIB, MIB)]


@pytest.mark.parametrize("entry", [5 * MIB | FULL, 4])
def test_no_copy_counts_where_neither_leads_to_what_it_should(entry: int, tmp_path: Path) -> None:
    path = write(_two_tables(OUTSIDE, RIGHT, bat={3: entry}), tmp_path)
    before = behind_the_log(path)
    report = pyvhdx.repair(path, undo=False)
    choices = {one.finding.code: one.choices for one in report.left}
    assert choices["REGION-COPIES"] == ("first", "second")
    assert path.read_bytes()[0x30000:0x50000] == OUTSIDE + RIGHT
    assert behind_the_log(path) == before
    report = pyvhdx.repair(path, undo=False, choices={"REGION-COPIES": "second"})
    assert set(report.left_counts) == {"BAT-OVERLAP" if entry & 7 == FULL else "BAT-STATE"}
    assert path.read_bytes()[0x30000:0x50000] == RIGHT + RIGHT


# -- items, entries and bits ------------------------------------------------------------------


def _overlapping_items(folder: Path) -> Path:
    """Write a disk whose physical sector size, which is wrong, lies on the virtual size."""
    path = write(disk(physical=1234), folder)
    raw = bytearray(path.read_bytes())
    places = {}
    for at in range(METADATA_AT + 32, METADATA_AT + 32 + 5 * 32, 32):
        places[UUID(bytes_le=bytes(raw[at : at + 16]))] = at + 16
    (size_at,) = struct.unpack_from("<I", raw, places[DISK_SIZE])
    struct.pack_into("<I", raw, places[PHYSICAL], size_at + 4)
    path.write_bytes(raw)
    return path


def test_an_item_is_never_written_where_another_one_lies(tmp_path: Path) -> None:
    path = _overlapping_items(tmp_path)
    before = behind_the_log(path)
    pyvhdx.repair(path, undo=False)
    assert behind_the_log(path) == before


def test_the_metadata_plan_itself_refuses_it(tmp_path: Path) -> None:
    from pyvhdx._core.repairs.metadata import MetadataPlan, Traces  # noqa: PLC0415
    from pyvhdx._core.repairs.plan import Choices, Plan  # noqa: PLC0415
    from pyvhdx.format.region import RegionTableEntry  # noqa: PLC0415
    from pyvhdx.testing import MemoryStorage  # noqa: PLC0415

    storage = MemoryStorage(_overlapping_items(tmp_path).read_bytes())
    region = RegionTableEntry(guid=METADATA, file_offset=METADATA_AT, length=MIB, required=1)
    plan = MetadataPlan(region, storage.read_at, Plan(Choices(None)))
    with pytest.raises(pyvhdx.RequestError, match="overlaps another"):
        plan.set_item(PHYSICAL, struct.pack("<I", 4096))
    plan.mend(Traces(0, 0))
    assert plan.edits() == []


@pytest.mark.parametrize("place", [64 * MIB, 0, 5 * MIB])
def test_bits_decide_nothing_about_a_block_whose_place_is_not_its_own(
    place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block behind the end of the file, without bits, would become NOT_PRESENT, and show the parent."""
    blocks = {0: Block(PARTIAL, frozenset({1})), 2: Block(FULL)}
    path = write(child(blocks=blocks, bat={5: place | PARTIAL}), tmp_path)
    # With nothing in front that holds it back.
    monkeypatch.setattr("pyvhdx._core.repairs.whole.undecided", lambda *_, **__: [])
    pyvhdx.repair(path, undo=False, choices={"HEADER-GUID": "new"})
    with path.open("rb") as file:
        file.seek(BAT_AT + 40)
        assert file.read(8) == struct.pack("<Q", place | PARTIAL)


def test_an_entry_behind_the_last_needed_that_names_a_place_is_a_hint(tmp_path: Path) -> None:
    """The virtual size is 2 MiB where it was 8: block 2 is not needed, and is not lost either."""
    path = write(
        disk(replace={DISK_SIZE: struct.pack("<Q", 2 * MIB)}, bat={4: 5, 5: 4 * MIB | FULL}), tmp_path
    )
    found = [one for one in pyvhdx.check(path).findings if one.code == "BAT-PADDING"]
    assert {one.offset - BAT_AT: one.repairable for one in found} == {16: False, 32: True, 40: True}
    report = pyvhdx.repair(path, undo=False)
    left, *others = [one for one in report.left if one.finding.code == "BAT-PADDING"]
    assert (left.finding.offset, left.choices) == (BAT_AT + 16, ("clear",))
    assert {one.reason for one in others} == {f"left until BAT-PADDING at {BAT_AT + 16:#x} is decided"}
    entries = struct.unpack_from("<6Q", path.read_bytes(), BAT_AT)
    assert entries == (4 * MIB | FULL, 0, 5 * MIB | FULL, 0, 5, 4 * MIB | FULL)
    assert pyvhdx.repair(path, undo=False, choices={"BAT-PADDING": "clear"}).left == []


@pytest.mark.parametrize("choice", ["present", "zero", "absent"])
def test_the_state_5_with_a_place_is_the_users_to_decide(choice: str, tmp_path: Path) -> None:
    path = write(disk(bat={2: 5 * MIB | 5}), tmp_path)
    before = path.read_bytes()
    (found,) = [one for one in pyvhdx.check(path).findings if one.code == "BAT-STATE"]
    assert not found.repairable
    (left,) = pyvhdx.repair(path, undo=False).left
    assert (left.finding.code, left.choices) == ("BAT-STATE", ("present", "zero", "absent"))
    assert path.read_bytes() == before
    assert pyvhdx.repair(path, undo=False, choices={"BAT-STATE": choice}).left == []
    with pyvhdx.open(path) as image:
        expected = before[5 * MIB : 6 * MIB] if choice == "present" else bytes(MIB)
        assert image.pread(MIB, 2 * MIB) == expected


@pytest.mark.parametrize(
    "changes", [{"items": ((guid(5), 4, b"abcd"),)}, {}], ids=["unreadable metadata", "partial blocks"]
)
def test_the_locator_of_a_file_that_may_be_a_child_stays(changes: dict[str, Any], tmp_path: Path) -> None:
    image = child(blocks={0: Block(PARTIAL, frozenset({1})), 2: Block(FULL)}, flags=0, **changes)
    path = write(image, tmp_path)
    before = behind_the_log(path)
    pyvhdx.repair(path, undo=False)
    assert behind_the_log(path) == before


def test_the_metadata_plan_keeps_a_locator_when_nobody_can_look_for_a_child(tmp_path: Path) -> None:
    from pyvhdx._core.repairs.metadata import MetadataPlan, Traces  # noqa: PLC0415
    from pyvhdx._core.repairs.plan import Choices, Plan  # noqa: PLC0415
    from pyvhdx.format.region import RegionTableEntry  # noqa: PLC0415
    from pyvhdx.testing import MemoryStorage  # noqa: PLC0415

    storage = MemoryStorage(write(child(flags=0), tmp_path).read_bytes())
    region = RegionTableEntry(guid=METADATA, file_offset=METADATA_AT, length=MIB, required=1)
    for traces, is_changed in ((None, False), (Traces(1, 0), False), (Traces(0, 0), True)):
        plan = MetadataPlan(region, storage.read_at, Plan(Choices(None)))
        plan.mend(traces)
        assert bool(plan.edits()) == is_changed


# -- two damages at once ----------------------------------------------------------------------

_SMALL = [one for one in SPECIMENS if not one.how and not one.name.startswith(("LOG-LENGTH", "FILE-SIZE"))]


def _merged(one: bytes, other: bytes, right: bytes) -> bytes:
    """Return a file with the damages of both: what *other* changed of the right one, on top of *one*."""
    merged = bytearray(one.ljust(max(len(one), min(len(other), len(right))), b"\0"))
    step = 8
    for at in range(0, min(len(other), len(merged)), 4096):
        if other[at : at + 4096] != right[at : at + 4096]:
            for word in range(at, at + 4096, step):
                if other[word : word + step] != right[word : word + step]:
                    merged[word : word + step] = other[word : word + step]
    return bytes(merged[: len(other)] if len(other) < len(right) else merged)


@pytest.mark.parametrize("seed", range(16))
def test_two_damages_at_once_lose_nothing_without_a_choice(seed: int, tmp_path: Path) -> None:
    """No undecided finding vanishes, what raised raises, and salvage reads as before."""
    chance = random.Random(seed)
    right = write(disk(), tmp_path).read_bytes()
    files = []
    for number, specimen in enumerate(chance.sample(_SMALL, 2)):
        folder = tmp_path / str(number)
        folder.mkdir()
        made = specimen.make(folder)
        files.append(made.read_bytes() if made.stat().st_size < 32 * MIB else right)
    path = tmp_path / "disk.vhdx"
    one, other = files
    path.write_bytes(_merged(one, other, right))
    try:
        open_ = undecided(path)
    except pyvhdx.NotVHDXError:
        return
    strict, salvaged = pieces(path), pieces(path, salvage=True)
    report = pyvhdx.repair(path, undo=False)
    assert open_ <= undecided(path)
    assert report.lost == [] or {loss.code for loss in report.lost} == {"METADATA-RANGE"}
    assert pieces(path, salvage=True) == salvaged
    after = pieces(path)
    if open_ and isinstance(strict, list) and isinstance(after, list):
        assert [one for one in after if isinstance(one, str)] == [
            one for one in strict if isinstance(one, str)
        ]
