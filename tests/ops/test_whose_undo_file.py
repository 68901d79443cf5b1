"""An undo file is applied to the image that it was made for, and to nothing else."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

import pyvhdx
from pyvhdx.format.undo import UndoHeader, UndoRange, UndoState, pack_guids
from pyvhdx.testing import FailingStorage, MemoryStorage
from tests.corpus.handmade import FULL, MIB, ZERO, Block, Image, guid

_BLOCKS = {0: Block(FULL), 2: Block(FULL)}
_CHOICES = {"BAT-OVERLAP": "copy", "BAT-STATE": "zero"}


def broken() -> Image:
    """Return a disk with a bad header and an entry that no ZERO block may have."""
    return Image(8 * MIB, blocks=_BLOCKS, headers=({}, {"crc": 0}), bat={3: 9 * MIB | ZERO})


def ambiguous() -> Image:
    """Return a disk with more to mend the more choices are made."""
    return Image(
        8 * MIB, blocks=_BLOCKS, bat={1: 4 * MIB | FULL, 5: 3 * MIB | 4}, patches=[(0x30010, b"xxxx")]
    )


def content_of(storage: MemoryStorage) -> bytes:
    return storage.read_at(storage.size(), 0)


def half_repaired(path: Path, kept: Path) -> None:
    """Let a repair of the file *path* be cut short, with *kept* as its undo file."""
    image, undo = MemoryStorage(path.read_bytes()), MemoryStorage()
    with pytest.raises(OSError, match="Input/output"):
        pyvhdx.repair(FailingStorage(image, 9), undo=undo)
    path.write_bytes(content_of(image))
    kept.write_bytes(content_of(undo))


def planted(path: Path) -> bytes:
    """Return an undo file that fits an image, would put something else into it, and is no repair's."""
    before = path.read_bytes()
    with pyvhdx.open(path) as image:
        current = image.file_write_guid
    ranges = [(at, before[at : at + 4096]) for at in (0x10000, 0x20000)] + [(4 * MIB, b"evil" * 1024)]
    body = b"".join(UndoRange(offset=at, length=len(data)).sealed_over(data) + data for at, data in ranges)
    header = UndoHeader(
        state=UndoState.READY,
        image_size=len(before),
        body_length=len(body),
        range_count=len(ranges),
        repair_id=uuid4(),
        number_before=int.from_bytes(before[0x20008:0x20010], "little"),
        guid_before=current,
        guid_tied=current,
        guids=pack_guids([uuid4()]),
    )
    return header.sealed() + body


def test_an_older_copy_of_the_image_is_refused_and_stays(tmp_path: Path) -> None:
    blocks = {**_BLOCKS, 5: Block(FULL)}
    older = Image(
        8 * MIB,
        blocks=blocks,
        headers=({"file_guid": guid(1).int}, {"file_guid": guid(0).int, "sequence": 50}),
        bat={5: 0, 7: 6 * MIB | FULL},
    ).write(tmp_path / "older.vhdx")
    path = (
        Image(
            8 * MIB,
            blocks=blocks,
            headers=({"file_guid": guid(1).int}, {"file_guid": guid(2).int}),
            bat={6: 1 << 30 | ZERO},
        )
        .write(tmp_path / "disk.vhdx")
        .path
    )
    before = older.path.read_bytes()
    undo = pyvhdx.repair(path).undo
    assert undo is not None
    with pytest.raises(pyvhdx.RequestError, match="is not as the repair left it"):
        pyvhdx.undo_repair(older.path, undo)
    assert older.path.read_bytes() == before


def test_a_half_done_undo_takes_no_undo_file_but_its_own(tmp_path: Path) -> None:
    path = ambiguous().write(tmp_path / "disk.vhdx").path
    before = path.read_bytes()
    pyvhdx.repair(path, undo=tmp_path / "one.undo")
    other = (tmp_path / "one.undo").read_bytes()
    pyvhdx.undo_repair(path, tmp_path / "one.undo")
    pyvhdx.repair(path, undo=tmp_path / "two.undo", choices=_CHOICES)
    repaired, own = path.read_bytes(), (tmp_path / "two.undo").read_bytes()
    halves = 0
    for at in range(100):
        image = MemoryStorage(repaired)
        try:
            pyvhdx.undo_repair(FailingStorage(image, at, for_good=True), MemoryStorage(own))
            break
        except OSError:
            halves += content_of(image) not in (repaired, before)
        if content_of(image) != before:
            half = content_of(image)
            try:
                pyvhdx.undo_repair(image, MemoryStorage(other))
            except pyvhdx.RequestError:
                assert content_of(image) == half
            else:
                assert content_of(image) == before
            pyvhdx.undo_repair(image, MemoryStorage(own))
            assert content_of(image) == before
    assert halves > 3


@pytest.mark.parametrize("dry_run", [False, True])
def test_an_undo_file_that_somebody_laid_there_is_not_used_unasked(dry_run: bool, tmp_path: Path) -> None:
    path = Image(8 * MIB, blocks=_BLOCKS).write(tmp_path / "disk.vhdx").path
    laid = Path(f"{path}.undo")
    laid.write_bytes(planted(path))
    before, kept = path.read_bytes(), laid.read_bytes()
    with pytest.raises(FileExistsError, match=r"shows no trace.*--undo.*remove it"):
        pyvhdx.repair(path, dry_run=dry_run)
    assert (path.read_bytes(), laid.read_bytes()) == (before, kept)


def test_the_report_says_that_an_unfinished_repair_was_undone_first(tmp_path: Path) -> None:
    path = broken().write(tmp_path / "disk.vhdx").path
    before = path.read_bytes()
    half_repaired(path, tmp_path / "disk.vhdx.undo")
    assert path.read_bytes() != before
    assert pyvhdx.repair(path, dry_run=True).undone_first
    report = pyvhdx.repair(path)
    assert (report.undone_first, report.left) == (True, [])
    assert report.undo is not None
    pyvhdx.undo_repair(path, report.undo)
    assert path.read_bytes() == before
    assert not pyvhdx.repair(path).undone_first


def test_a_repair_finishes_an_undo_that_was_cut_short(tmp_path: Path) -> None:
    path = broken().write(tmp_path / "disk.vhdx").path
    before = path.read_bytes()
    undo = Path(pyvhdx.repair(path).undo or "")
    image = MemoryStorage(path.read_bytes())
    # The mark is in both headers then, and nothing is put back yet.
    with pytest.raises(OSError, match="Input/output"):
        pyvhdx.undo_repair(FailingStorage(image, 3, for_good=True), MemoryStorage(undo.read_bytes()))
    path.write_bytes(content_of(image))
    with pytest.raises(pyvhdx.CorruptImageError):
        pyvhdx.open(path)
    report = pyvhdx.repair(path)
    assert (report.undone_first, report.left) == (True, [])
    pyvhdx.undo_repair(path, undo)
    assert path.read_bytes() == before


def test_an_undo_file_stays_when_it_is_applied_to_a_copy(tmp_path: Path) -> None:
    path = broken().write(tmp_path / "disk.vhdx").path
    before = path.read_bytes()
    undo = pyvhdx.repair(path).undo
    assert undo is not None
    copy = Path(shutil.copy(path, tmp_path / "copy.vhdx"))
    report = pyvhdx.undo_repair(copy, undo)
    assert (copy.read_bytes(), report.removed, Path(undo).exists()) == (before, False, True)
    report = pyvhdx.undo_repair(path, undo)
    assert (path.read_bytes(), report.removed, Path(undo).exists()) == (before, True, False)


def test_the_repair_of_a_copy_takes_away_no_undo_file_of_another(tmp_path: Path) -> None:
    path = broken().write(tmp_path / "disk.vhdx").path
    before = path.read_bytes()
    kept = tmp_path / "disk.vhdx.undo"
    half_repaired(path, kept)
    copy, half = Path(shutil.copy(path, tmp_path / "copy.vhdx")), path.read_bytes()
    header, status = UndoHeader.parse(kept.read_bytes()[:512]), path.stat()
    header = replace(header, device=status.st_dev, inode=status.st_ino)
    kept.write_bytes(header.sealed() + kept.read_bytes()[512:])
    with pytest.raises(FileExistsError, match="of which this is a copy"):
        pyvhdx.repair(copy, undo=kept)
    assert copy.read_bytes() == half
    pyvhdx.undo_repair(path, kept)
    assert path.read_bytes() == before
