"""
A commit is all or nothing, however many pages it has and whatever becomes of its bytes.

What is compared is what the metadata says, as a whole: every extent of the disk and every user item.
"""

from __future__ import annotations

import random
from pathlib import Path
from uuid import UUID

import pytest

import pyvhdx
from pyvhdx import Extent, TrimMode
from pyvhdx.testing import MemoryStorage, PowerCut, RecordingStorage
from tests.crash.programs import MIB

BLOCKS = 3000  # the BAT has six pages, the sector bitmaps are in two blocks
ITEMS = [UUID(int=number) for number in (1, 2)]

State = tuple[list[Extent], dict[UUID, bytes]]


def state_of(image: pyvhdx.VHDXImage) -> State:
    return list(image.extents()), dict(image.user_metadata)


def change(image: pyvhdx.VHDXImage, draw: random.Random) -> None:
    """One change each of many kinds, in blocks all over the disk."""
    for _ in range(12):
        block = draw.randrange(BLOCKS)
        choice = draw.randrange(5)
        if choice < 2:
            image.pwrite(b"x" * 4096, block * MIB + draw.randrange(200) * 4096)
        elif choice == 2:
            image.write_zeroes(block * MIB, MIB)
        elif choice == 3:
            image.trim(block * MIB, MIB, draw.choice((TrimMode.ZERO, TrimMode.MAKE_TRANSPARENT)))
        else:
            image.user_metadata[draw.choice(ITEMS)] = draw.randbytes(draw.randrange(1, 20_000))


@pytest.mark.parametrize("kind", ["dynamic", "differencing"])
def test_a_commit_of_many_pages_is_there_as_a_whole_or_not_at_all(kind: str, tmp_path: Path) -> None:
    parent = tmp_path / "parent.vhdx"
    pyvhdx.create(parent, BLOCKS * MIB, block_size=MIB).close()
    below = pyvhdx.open(parent)
    choice = below if kind == "differencing" else "auto"
    storage = RecordingStorage(MemoryStorage())
    if kind == "differencing":
        with pytest.warns(
            UserWarning, match="folder"
        ):  # a storage has no folder that a relative path could start from
            pyvhdx.create(storage, parent=below).close()
    else:
        pyvhdx.create(storage, BLOCKS * MIB, block_size=MIB).close()
    assert isinstance(storage.storage, MemoryStorage)
    before = storage.storage.copy()
    storage.events.clear()
    draw = random.Random(kind)
    states, flushed = [], [0]
    with pyvhdx.open(storage, "r+", parent=choice) as image:
        states.append(state_of(image))
        for _ in range(12):
            change(image, draw)
            image.flush()
            states.append(state_of(image))
            flushed.append(len(storage.events))
    cuts = PowerCut(before, storage.events)
    seen = {"old": 0, "new": 0}
    for cut in range(len(storage.events) + 1):
        done = sum(events <= cut for events in flushed) - 1
        for _ in range(3):
            with pyvhdx.open(cuts.after(cut, draw), parent=choice) as image:
                found = state_of(image)
            if found == states[done]:
                seen["old"] += 1
            else:
                assert done + 1 < len(states)
                assert found == states[done + 1], f"a cut behind {cut} events left a part of a commit"
                seen["new"] += 1
    assert min(seen.values()) > 10
    below.close()
