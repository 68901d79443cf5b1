"""Parts without I/O, against the simplest thing that could be right."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvhdx._core import bitmap
from pyvhdx._core.geometry import Geometry
from pyvhdx._core.log_reader import Outcome

PAGE = 4096
PAGES = 40


@given(st.lists(st.tuples(st.integers(0, PAGES - 1), st.integers(0, 12)), max_size=60))
def test_the_outcome_of_a_log_is_that_of_its_steps_in_order(steps: list[tuple[int, int]]) -> None:
    """Length 0 writes a page, any other zeroes so many pages."""
    outcome, model = Outcome(), bytearray(b"\xee" * PAGES * 2)
    for number, (page, length) in enumerate(steps, 1):
        if length == 0:
            outcome.write(page * PAGE, bytes([number]) * PAGE)
            model[page] = number
        else:
            outcome.zero([page * PAGE], [(page + length) * PAGE])
            model[page : page + length] = bytes(length)
    pages, (starts, ends) = outcome.settle()
    shown = bytearray(b"\xee" * PAGES * 2)
    for start, end in zip(starts, ends, strict=True):
        shown[start // PAGE : end // PAGE] = bytes((end - start) // PAGE)
    for at, data in pages.items():
        shown[at // PAGE] = data[0]
    assert shown == model
    assert list(starts) == sorted(starts)
    assert all(end < start for end, start in zip(ends, starts[1:], strict=False))


@given(st.binary(min_size=1, max_size=40), st.data())
def test_runs_of_bits_are_the_bits(bits: bytes, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, 8 * len(bits) - 1))
    count = data.draw(st.integers(0, 8 * len(bits) - first))
    expected = [bool(bits[k // 8] >> k % 8 & 1) for k in range(first, first + count)]
    found = [bit for bit, length in bitmap.runs(bits, first, count) for _ in range(length)]
    assert found == expected


class TestGeometry:
    """The worked example of the interleave, and the number of entries a BAT must have. (MS-VHDX 2.5)"""

    @pytest.mark.parametrize(
        ("size", "block", "sector", "dynamic", "differencing"),
        [
            (10 << 30, 2 << 20, 512, 5122, 6147),
            (64 << 40, 1 << 20, 512, 67125247, 67125248),
            (1 << 30, 32 << 20, 512, 32, 129),
            (4 << 30, 32 << 20, 512, 128, 129),
            ((4 << 30) + 512, 32 << 20, 512, 130, 258),
            (1, 1 << 20, 4096, 1, 32769),
        ],
    )
    def test_entries(self, size: int, block: int, sector: int, dynamic: int, differencing: int) -> None:
        geometry = Geometry(size, block, sector)
        assert geometry.entries_needed(differencing=False) == dynamic
        assert geometry.entries_needed(differencing=True) == differencing

    @given(st.integers(20, 28), st.sampled_from((512, 4096)), st.integers(0, 1 << 26))
    def test_indices_go_there_and_back(self, shift: int, sector: int, block: int) -> None:
        geometry = Geometry(64 << 40, 1 << shift, sector)
        index = geometry.payload_index(block)
        group, position = divmod(index, geometry.chunk_ratio + 1)
        assert position < geometry.chunk_ratio
        assert group * geometry.chunk_ratio + position == block == geometry.blocks_before(index)
        assert geometry.bitmap_index(group) == (group + 1) * (geometry.chunk_ratio + 1) - 1

    def test_the_worked_example(self) -> None:
        geometry = Geometry(10 << 30, 2 << 20, 512)
        block = ((9 << 30) + (3 << 20) + 512) >> geometry.block_shift
        assert (block, geometry.payload_index(block), geometry.bitmap_index(2)) == (4609, 4611, 6146)
        assert geometry.bitmap_bytes_per_block == 512
        assert geometry.used_length(5119) == 2 << 20
        assert Geometry((2 << 20) + 512, 2 << 20, 512).used_length(1) == 512
