"""A child whose BAT, bitmap and payload stand right only in its log reads as its model, and stays as it is."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import pyvhdx
from tests.corpus.handmade import BAT_AT, FULL, MIB, PARTIAL, Block, Image
from tests.corpus.handmade_logs import GUID, SECTOR, Entry, follow, ring

PAGE = SECTOR


def _logged(child: Image, places: list[int], draw: random.Random) -> bytes:
    """Return the child's file with junk at *places*, and a wrapped log that brings the right pages back."""
    data = bytearray(child.path.read_bytes())
    right = {at: bytes(data[at : at + PAGE]) for at in places}
    draw.shuffle(places)
    first, start = draw.randrange(1, 1 << 40), draw.randrange(256) * PAGE
    entries = [
        Entry(first, start, [(at, draw.randbytes(PAGE)) for at in places]),
        Entry(first + 1, start, [(at, PAGE) for at in places]),
        *(Entry(first + 2 + n, start, [(at, right[at])]) for n, at in enumerate(places)),
    ]
    data[MIB : 2 * MIB] = ring(MIB, follow(entries, start))
    for at in places:
        data[at : at + PAGE] = draw.randbytes(PAGE)
    for number, at in enumerate((0x10000, 0x20000)):
        data[at : at + PAGE] = child.header(number, log_guid=GUID.int)
    return bytes(data)


@pytest.mark.parametrize("seed", range(12))
def test_a_chain_is_read_through_the_log_of_the_child(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    base = Image(
        8 * MIB - draw.randrange(2000) * 512, blocks={n: Block(draw.choice((0, 2, FULL))) for n in range(8)}
    )
    base.write(tmp_path / "base.vhdx")
    child = Image(8 * MIB - draw.randrange(2000) * 512, kind="differencing", parent=base, tag=2, shuffle=seed)
    child.relative_path = "base.vhdx"
    for number in range(8):
        state = draw.choice((0, 1, 2, 3, FULL, PARTIAL, PARTIAL))
        child.blocks[number] = Block(
            state, frozenset(draw.sample(range(2048), 40) if state == PARTIAL else ())
        )
    child.write(tmp_path / "child.vhdx")
    full = [child.places[number] for number, block in child.blocks.items() if block.state == FULL]
    data = _logged(child, [BAT_AT, BAT_AT + 8 * 4096, child.places[-1], *full[:1]], draw)
    child.path.write_bytes(data)
    expected = child.expected(0, child.size)
    with pyvhdx.open(child.path) as image:
        assert image.read() == expected
        for _ in range(100):
            offset, size = draw.randrange(child.size), draw.randrange(9000)
            assert image.pread(size, offset) == expected[offset : offset + size]
        pyvhdx.convert(image, tmp_path / "flat.raw")
    assert (tmp_path / "flat.raw").read_bytes() == expected
    assert child.path.read_bytes() == data
