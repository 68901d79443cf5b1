"""
Images of every payload and bitmap state, laid out by hand, read as their model says.

Five block sizes, both sector sizes, blocks in a random physical order, parents with other block
sizes, smaller and larger: 20,000 random reads in all.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import pyvhdx
from tests.corpus.handmade import FULL, MIB, NOT_PRESENT, PARTIAL, UNDEFINED, UNMAPPED, ZERO, Block, Image

BLOCK_SIZES = [1, 2, 8, 32, 256]
READS = 680  # for each of 30 images: 20,400


def _blocks(draw: random.Random, image: Image, states: list[int]) -> dict[int, Block]:
    blocks = {}
    per_block = image.block_size // image.sector
    for number in range(image.block_count):
        state = draw.choice(states)
        bits: frozenset[int] = frozenset()
        if state == PARTIAL:
            # Single sectors, whole runs, and both ends of the block.
            picked = set(draw.sample(range(per_block), 20)) | {0, per_block - 1}
            for _ in range(4):
                start = draw.randrange(per_block)
                picked |= set(range(start, min(per_block, start + draw.choice((2, 9, 300)))))
            bits = frozenset(picked if draw.random() < 0.9 else range(per_block))
        junk = draw.randrange(1 << 20) << 20 if state in (NOT_PRESENT, ZERO, UNMAPPED, UNDEFINED) else 0
        blocks[number] = Block(state, bits, junk if draw.random() < 0.3 else 0)
    return blocks


def _image(
    kind: str, block_mib: int, sector: int, seed: int, parent: Image | None = None, size: int = 0
) -> Image:
    draw = random.Random(seed)
    count = 12 if block_mib < 32 else 5
    size = size or (count * block_mib * MIB - draw.randrange(block_mib * MIB // sector) * sector)
    image = Image(size, block_mib * MIB, sector, kind, parent=parent, tag=seed, shuffle=seed)
    image.stale_bits = bool(seed % 2)
    every = [NOT_PRESENT, UNDEFINED, ZERO, UNMAPPED, FULL, FULL]
    image.blocks = _blocks(draw, image, [*every, PARTIAL, PARTIAL] if kind == "differencing" else every)
    return image


def _judge(image: Image, opened: pyvhdx.VHDXImage, seed: int, reads: int) -> None:
    draw = random.Random(seed)
    assert opened.size == image.size
    for _ in range(reads):
        near = draw.randrange(image.block_count + 1) * image.block_size
        offset = max(
            0,
            min(image.size, draw.choice((near + draw.randrange(-70000, 70000), draw.randrange(image.size)))),
        )
        size = draw.choice((1, 16, 512, 4096, 4097, draw.randrange(200_000)))
        expected = image.expected(offset, size)
        way = draw.randrange(3)
        if way == 0:
            found = opened.pread(size, offset)
        elif way == 1:
            buffer = bytearray(b"\xdd" * size)
            count = opened.preadinto(buffer, offset)
            assert buffer[count:] == b"\xdd" * (size - count)
            found = bytes(buffer[:count])
        else:
            opened.seek(offset)
            found = opened.read(size)
            assert opened.tell() == offset + len(expected)
        assert found == expected, (offset, size)


def _judge_extents(image: Image, opened: pyvhdx.VHDXImage, seed: int) -> None:
    draw = random.Random(seed)
    files = [open(member.name, "rb") for member in opened.chain]  # noqa: SIM115 - closed below
    extents = list(opened.extents())
    assert sum(extent.length for extent in extents) == image.size
    at = 0
    for one, other in zip(extents, [*extents[1:], None], strict=True):
        assert one.offset == at
        at += one.length
        if other is not None and (one.kind, one.depth) == (other.kind, other.depth):
            assert one.kind == "data", "equal neighbours are joined"
            assert other.file_offset != (one.file_offset or 0) + one.length
        first, last = one.offset // image.sector, (at - 1) // image.sector
        for sector in {first, last, *(draw.randint(first, last) for _ in range(5))}:
            assert image.decides(sector) == (one.kind, one.depth), sector
        if one.file_offset is not None:
            for skip in {0, max(0, one.length - 5000), draw.randrange(one.length)}:
                files[one.depth].seek(one.file_offset + skip)
                size = min(5000, one.length - skip)
                assert files[one.depth].read(size) == image.expected(one.offset + skip, size)
        else:
            assert not any(image.expected(one.offset, min(one.length, 5000)))
    for file in files:
        file.close()


@pytest.mark.parametrize("sector", [512, 4096])
@pytest.mark.parametrize("block_mib", BLOCK_SIZES)
@pytest.mark.parametrize("kind", ["dynamic", "fixed"])
def test_a_file_of_every_state_reads_as_its_model(
    kind: str, block_mib: int, sector: int, tmp_path: Path
) -> None:
    image = _image(kind, block_mib, sector, 3 + block_mib).write(tmp_path / "disk.vhdx")
    with pyvhdx.open(tmp_path / "disk.vhdx") as opened:
        assert opened.kind == kind
        _judge(image, opened, block_mib, READS)
        _judge_extents(image, opened, block_mib)


@pytest.mark.parametrize("sector", [512, 4096])
@pytest.mark.parametrize("block_mib", BLOCK_SIZES)
def test_a_chain_of_every_state_reads_as_its_model(block_mib: int, sector: int, tmp_path: Path) -> None:
    """The base is smaller than the middle, and the middle smaller or larger than the top."""
    other = {1: 2, 2: 8, 8: 1, 32: 2, 256: 32}[block_mib]
    base = _image("dynamic", other, sector, 50 + block_mib).write(tmp_path / "base.vhdx")
    grow = 3 * MIB + 8192
    middle = _image("differencing", other, sector, 60 + block_mib, base, base.size + grow)
    middle.relative_path = ".\\base.vhdx"
    middle.write(tmp_path / "middle.vhdx")
    top = _image("differencing", block_mib, sector, 71 + block_mib, middle)
    top.relative_path = "middle.vhdx"
    top.write(tmp_path / "top.vhdx")
    with pyvhdx.open(tmp_path / "top.vhdx") as opened:
        assert len(opened.chain) == 3
        _judge(top, opened, block_mib, READS)
        _judge_extents(top, opened, block_mib)


def test_a_larger_grandparent_does_not_show_behind_the_end_of_a_smaller_parent(tmp_path: Path) -> None:
    """What lies behind the end of a parent reads as zeros, whatever is further down."""
    base = Image(8 * MIB, blocks={n: Block(FULL) for n in range(8)}, tag=1).write(tmp_path / "base.vhdx")
    middle = Image(4 * MIB + 512, kind="differencing", parent=base, tag=2, relative_path="base.vhdx")
    middle.write(tmp_path / "middle.vhdx")
    top = Image(8 * MIB, kind="differencing", parent=middle, tag=3, relative_path="middle.vhdx")
    top.write(tmp_path / "top.vhdx")
    with pyvhdx.open(tmp_path / "top.vhdx") as opened:
        assert opened.read() == top.expected(0, 8 * MIB)
        assert [(e.offset, e.kind, e.depth) for e in opened.extents()] == [
            (0, "data", 2),
            (4 * MIB + 512, "absent", 2),
        ]
