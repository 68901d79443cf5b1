"""
Whatever the program and wherever the power is cut: the image opens, and shows what was flushed.

`tests/crash/run.py` does the same from fresh seeds, as often as you like.
"""

from __future__ import annotations

import os
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pyvhdx
from pyvhdx.testing import MemoryStorage, PowerCut, RecordingStorage
from tests.crash.outcome import examine, try_program
from tests.crash.programs import MIB

IMAGES = 20


@pytest.mark.slow
@pytest.mark.peer("qemu-img")
def test_random_programs() -> None:
    """Twenty images of each program; one in twenty is replayed by QEMU as well."""
    counts = Counter[str]()

    @settings(max_examples=int(os.environ.get("PYVHDX_CRASH_PROGRAMS", "25")))
    @given(st.integers(0, 2**32))
    def run(seed: int) -> None:
        counts.update(try_program(seed, IMAGES, qemu_each=20))

    run()
    print(dict(counts))
    assert counts["images"] >= 15 * IMAGES  # equal ones count once
    assert counts["dirty"] > counts["images"] // 10
    assert counts["replays"] > counts["images"] // 20
    assert counts["qemu"] > 0
    assert counts["qemu interrupted"] > 0


@pytest.mark.parametrize("kind", ["dynamic", "fixed"])
def test_a_create_that_is_cut_short_leaves_no_image_or_a_whole_one(kind: str) -> None:
    """What others can see of it, as it is written into a file object."""
    storage = RecordingStorage(MemoryStorage())
    pyvhdx.create(storage, 8 * MIB, kind=kind, block_size=MIB).close()
    cuts = PowerCut(MemoryStorage(), storage.events)
    draw = random.Random(kind)
    whole = 0
    for cut in range(len(storage.events) + 1):
        for _ in range(30):
            left = cuts.after(cut, draw)
            try:
                image = pyvhdx.open(left)
            except pyvhdx.NotVHDXError:
                assert cut < len(storage.events)
                continue
            except pyvhdx.CorruptImageError as error:
                assert error.code == "IDENTIFIER", error  # the last thing to be written
                assert cut < len(storage.events)
                continue
            with image:
                assert image.read() == bytes(8 * MIB)
                assert not image.warnings
            examine(left, is_closed=True)
            whole += 1
    assert whole > 30


def test_an_interrupted_growth_is_no_loss() -> None:
    """The file got longer, and the program was stopped before it knew."""
    storage = MemoryStorage()
    with pyvhdx.create(storage, 64 * MIB, block_size=MIB) as image:
        image.pwrite(b"x" * MIB, 0)
        image.flush()
        storage.truncate(storage.size() + 5 * MIB)
        for block in range(1, 64):
            image.pwrite(b"y" * 512, block * MIB)
        image.flush()
    with pyvhdx.open(storage) as image:
        assert image.pread(MIB, 0) == b"x" * MIB
        assert image.pread(512, 63 * MIB) == b"y" * 512
