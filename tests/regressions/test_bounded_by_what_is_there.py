"""
Time and memory are bounded by what a file holds, and not by what it claims.

Each file here is made so that a loop, a list or a map would grow with a number in it.  The limits are
those that every input of the fuzzers is judged by.
"""

from __future__ import annotations

import io
import random
import struct
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from crc32c import crc32c

import pyvhdx
from pyvhdx.ops import dump
from pyvhdx.testing import MemoryStorage
from tests.corpus.handmade import (
    BAT_AT,
    FULL,
    METADATA,
    METADATA_AT,
    MIB,
    NOT_PRESENT,
    UNDEFINED,
    UNMAPPED,
    ZERO,
    Block,
    Image,
    guid,
    sealed,
)
from tests.corpus.handmade_logs import GUID, Entry, page
from tests.corpus.specimens import stored, write_out
from tests.fuzz.oracle import MEMORY, limited
from tests.regressions.test_hostile_numbers_and_names import peak_of

TIB = 1 << 40


def zero_descriptors(count: int, offset: int, step: int, sequence: int) -> bytes:
    return b"".join(
        b"zero" + struct.pack("<IQQQ", 0, 4096, offset + step * n, sequence) for n in range(count)
    )


def entry_of(descriptors: bytes, *, last: int, sequence: int = 10, data: bytes = b"") -> bytes:
    """An entry with descriptors that are given as bytes: there are very many of them."""
    count = len(descriptors) // 32
    area = (64 + len(descriptors) + 4095) // 4096 * 4096
    head = b"loge" + struct.pack("<IIIQII", 0, area + len(data), 0, sequence, count, 0)
    head += GUID.bytes_le + struct.pack("<QQ", 0, last)
    entry = (head + descriptors).ljust(area, b"\0") + data
    return entry[:4] + struct.pack("<I", crc32c(entry)) + entry[8:]


def with_log(log: bytes) -> MemoryStorage:
    """A file of at most 64 MiB that is nearly all log."""
    length = (len(log) // MIB + 1) * MIB  # an entry is shorter than its log
    image = Image(8 * MIB, log_guid=GUID, headers=({}, {"log_offset": 4 * MIB, "log_length": length}))
    image.patches = [(4 * MIB, log), (4 * MIB + length - 1, b"\0")]
    storage = stored(image)
    assert storage.size() <= 64 * MIB
    return storage


@pytest.mark.slow
class TestLogs:
    @pytest.mark.parametrize("with_page", [False, True], ids=["only ranges", "a page above them"])
    def test_one_entry_with_two_million_ranges(self, with_page: bool) -> None:
        count = (58 * MIB - 8192) // 32
        descriptors = zero_descriptors(count, TIB, 8192, 10)
        data = b""
        if with_page:
            content = page(7)
            descriptors = (
                descriptors[:-32] + b"desc" + content[-4:] + content[:8] + struct.pack("<QQ", 8 * TIB, 10)
            )
            data = b"data" + bytes(4) + content[8:-4] + struct.pack("<I", 10)
        storage = with_log(entry_of(descriptors, last=16 * TIB, data=data))
        with limited(), pyvhdx.open(storage) as image:
            assert image._file.replay is not None
            assert len(image._file.replay.zeroed[0]) == count - with_page
            assert list(image._file.replay.pages) == ([8 * TIB] if with_page else [])

    def test_ranges_that_all_reach_a_page_far_above(self, tmp_path: Path) -> None:
        """Whoever keeps all of them in mind until the page comes keeps no more than their numbers."""
        count = (58 * MIB - 8192) // 32
        ranges = b"".join(
            b"zero" + struct.pack("<IQQQ", 0, 8 * TIB - 4096 * n, TIB + 8192 * n, 10)
            for n in range(count - 1)
        )
        content = page(7)
        first = b"desc" + content[-4:] + content[:8] + struct.pack("<QQ", 8 * TIB, 10)
        data = b"data" + bytes(4) + content[8:-4] + struct.pack("<I", 10)
        storage = with_log(entry_of(first + ranges, last=16 * TIB, data=data))
        with limited(), pyvhdx.open(storage) as image:
            assert image._file.replay is not None
            assert image._file.replay.pages == {}  # a later range covers it
        write_out(storage, tmp_path / "disk.vhdx")
        code = "import sys, pyvhdx; pyvhdx.open(sys.argv[1]).close()"
        assert peak_of(code, tmp_path / "disk.vhdx") < MEMORY

    def test_fifteen_thousand_full_entries(self) -> None:
        entries = [
            entry_of(zero_descriptors(126, 3 * MIB, 4096, 10 + n), last=64 * MIB, sequence=10 + n)
            for n in range(59 * 256 - 1)
        ]
        with limited(), pyvhdx.open(with_log(b"".join(entries))) as image:
            assert image._file.replay is not None
            assert len(image._file.replay.entries) == len(entries)

    def test_as_many_pages_as_fit(self) -> None:
        count = 59 * MIB // 4200
        pages = b"".join(b"desc" + struct.pack("<IQQQ", 1, 2, TIB + 4096 * n, 10) for n in range(count))
        sector = b"data" + bytes(4) + bytes(4084) + struct.pack("<I", 10)
        storage = with_log(entry_of(pages, last=2 * TIB, data=sector * count))
        with limited(), pyvhdx.open(storage) as image:
            assert image._file.replay is not None
            assert len(image._file.replay.pages) == count

    def test_a_dump_of_two_million_descriptors_leaves_them_out(self) -> None:
        storage = with_log(entry_of(zero_descriptors(59 * MIB // 32 - 300, TIB, 8192, 10), last=16 * TIB))
        with limited():
            (entry,) = dump.dump_log(storage)["entries"]
        assert entry["descriptor_count"] > 1_900_000
        assert "descriptors" not in entry

    def test_heads_without_entries(self) -> None:
        head = b"loge" + struct.pack("<IIIQII", 0, 4096, 0, 5, 0, 0) + GUID.bytes_le
        with limited(), pytest.raises(pyvhdx.CorruptImageError) as caught:
            pyvhdx.open(with_log(head.ljust(4096, b"\0") * (59 * 256)))
        assert caught.value.code == "LOG-NO-SEQUENCE"


def with_entries(*entries: int) -> MemoryStorage:
    """A file of 64 MiB that is nearly all BAT, with these entries over and over."""
    length = 60 * MIB
    count = length // 8 * 4096 // 4097 - 4096
    image = Image(count * MIB)
    assert image.bat_length == length
    image.patches = [(BAT_AT, struct.pack(f"<{len(entries)}Q", *entries) * (length // 8 // len(entries)))]
    return stored(image)


@pytest.mark.slow
class TestTables:
    @pytest.mark.parametrize(
        "entries",
        [(UNMAPPED, ZERO), (9 * MIB, 5 * MIB), (8, 16), (ZERO, ZERO, UNMAPPED)],
        ids=["two kinds of zeros", "junk in entries without content", "reserved bits", "threes"],
    )
    def test_a_table_that_changes_at_every_entry(self, entries: tuple[int, ...]) -> None:
        """Found by reading: neighbours that read alike were joined one by one, 50 seconds for 64 MiB."""
        storage = with_entries(*entries)
        with limited(), pyvhdx.open(storage) as image:
            (extent,) = image.extents()
            assert extent.length == image.size
        with limited(), pyvhdx.open(storage, "r+") as image:
            image.pwrite(b"x" * 512, 5 * MIB)
            image.flush()
            image.write_zeroes(7 * MIB, 1 << 30) if entries == (UNMAPPED, ZERO) else None

    def test_the_search_for_kept_space_passes_such_a_table(self) -> None:
        """One block keeps space, behind seven million others, and a write needs it."""
        storage = with_entries(UNMAPPED, ZERO)
        end = BAT_AT + 60 * MIB
        storage.truncate(end + MIB)
        storage.write_at(struct.pack("<Q", end | UNMAPPED), end - 16 * MIB)
        with limited(), pyvhdx.open(storage, "r+") as image:
            image.pwrite(b"x" * 512, 5 * MIB)
            image.flush()
            assert image._file.raw.size() == end + MIB, "it took the space that was kept"

    def test_seven_million_blocks_at_one_place_beside_two_thousand_regions(self) -> None:
        """They stay readable; each costs a look-up among the regions, and no walk along them."""
        storage = with_entries((BAT_AT + 60 * MIB) | FULL)
        storage.truncate(BAT_AT + 61 * MIB)
        known = [
            (UUID("2dc27766-f623-4200-9d64-115e9bfd4a08"), BAT_AT, 60 * MIB, 1),
            (METADATA, METADATA_AT, MIB, 1),
        ]
        others = [(guid(5000 + n), TIB + MIB * n, MIB, 0) for n in range(2045)]
        body = b"".join(g.bytes_le + struct.pack("<QII", at, n, r) for g, at, n, r in known + others)
        storage.write_at(
            sealed((b"regi" + struct.pack("<III", 0, 2047, 0) + body).ljust(65536, b"\0")), 0x30000
        )
        with limited(), pyvhdx.open(storage) as image:
            for number, extent in enumerate(image.extents()):
                assert extent.file_offset == BAT_AT + 60 * MIB
                if number == 20_000:
                    break


class TestGrowth:
    """A log may ask for a file of 256 TiB."""

    def asking(self, last: int) -> Image:
        return Image(8 * MIB, blocks={0: Block(FULL)}, log=Entry(7, 0, [], last=last).build(), log_guid=GUID)

    def test_a_file_object_is_not_filled_with_zeros_up_to_there(self) -> None:
        class Bounded(io.BytesIO):
            """So that a failure of this test does not fill the machine."""

            def write(self, data: Any) -> int:
                assert self.tell() < 512 * MIB
                return super().write(data)

        memory = Bounded()
        self.asking(256 * TIB).write_to(memory)
        before = memory.getvalue()
        with limited(), pytest.raises(pyvhdx.UnsupportedImageError, match="by its path") as caught:
            pyvhdx.open(memory, "r+")
        assert caught.value.code == "LOG-TARGET"
        assert memory.getvalue() == before
        with pyvhdx.open(memory) as image:
            assert image.pread(16, 0) != bytes(16)
        small = io.BytesIO()
        self.asking(16 * MIB).write_to(small)
        with pyvhdx.open(small, "r+") as image:
            assert len(small.getvalue()) == 16 * MIB
            assert image.pread(16, 0) != bytes(16)

    def test_ranges_behind_the_old_end_are_not_written(self) -> None:
        """The file grows by zeros; to write them once more would take for ever where there are no holes."""
        image = self.asking(8 * TIB)
        image.log = Entry(7, 0, [(4 * MIB, 4 * TIB)], last=8 * TIB).build()
        storage = stored(image)

        class NoHoles(MemoryStorage):
            written = 0

            def next_data(self, offset: int) -> tuple[int, int] | None:
                return (offset, self.size()) if offset < self.size() else None

        holeless = NoHoles()
        holeless._pages, holeless._size = dict(storage._pages), storage.size()
        with limited(), pyvhdx.open(holeless, "r+") as opened:
            assert holeless.size() == 8 * TIB
            assert opened.pread(16, 0) == bytes(16)

    def test_the_map_of_the_space_of_a_very_long_file(self) -> None:
        """A byte a MiB: 128 MiB for a file of 128 TiB, and longer ones are read only."""
        at = 128 * TIB - MIB
        image = self.asking(128 * TIB)
        image.regions = ((guid(11), at, MIB, 0),)
        storage = stored(image)
        with limited(), pyvhdx.open(storage, "r+") as opened:
            opened.pwrite(b"x", 0)
        longer = stored(self.asking(128 * TIB + MIB))
        with limited(), pyvhdx.open(longer, "r+") as opened:
            with pytest.raises(pyvhdx.UnsupportedImageError) as caught:
                opened.pwrite(b"x", 0)
            assert caught.value.code == "FILE-SIZE"
            assert opened.pread(1, 0) == image.expected(0, 1)


def test_a_run_of_entries_at_the_end_of_all_numbers_is_an_error_of_ours() -> None:
    """Found by reading: the run was compared with numbers that no machine word holds."""
    image = Image(2048 * MIB, bat=dict.fromkeys(range(600), 2**64 - MIB | 6))
    with pyvhdx.open(stored(image), "r+") as opened:
        with pytest.raises(pyvhdx.CorruptImageError) as caught:
            opened.pwrite(b"x", 1000 * MIB)
        assert caught.value.code == "BAT-RANGE"


def test_a_dump_shows_the_values_of_items_up_to_four_mib() -> None:
    items = tuple((guid(2000 + n), 3, bytes([n % 251]) * 65000) for n in range(10))
    shown = dump.dump_metadata(stored(Image(8 * MIB, items=items)))
    assert sum("value" in item for item in shown) == 15
    region_at, length = 8 * MIB, 256 * MIB
    image = Image(8 * MIB, log_guid=GUID, log=Entry(7, 0, [], last=region_at + length).build())
    storage = stored(image)
    table = bytearray(image.metadata()[:65536])
    (count,) = struct.unpack_from("<H", table, 10)
    struct.pack_into("<H", table, 10, count + 1000)
    for number in range(1000):
        at = 32 * (1 + count + number)
        table[at : at + 32] = guid(3000 + number).bytes_le + struct.pack(
            "<IIII", MIB + 65536 * number, 65536, 3, 0
        )
    body = b"".join(
        g.bytes_le + struct.pack("<QII", at, n, 1)
        for g, at, n in (
            (UUID("2dc27766-f623-4200-9d64-115e9bfd4a08"), BAT_AT, MIB),
            (METADATA, region_at, length),
        )
    )
    for place in (0x30000, 0x40000):
        storage.write_at(sealed((b"regi" + struct.pack("<III", 0, 2, 0) + body).ljust(65536, b"\0")), place)
    storage.write_at(bytes(table) + image.metadata()[65536:], region_at)
    with limited():
        shown = dump.dump_metadata(storage)
    assert len(shown) == count + 1000
    assert 60 < sum("value" in item for item in shown) < 70


@pytest.mark.parametrize("block_mib", [1, 32, 256])
@pytest.mark.parametrize("seed", range(8))
def test_whole_pages_are_passed_and_no_entry_is(block_mib: int, seed: int) -> None:
    """Runs that begin, end and go on anywhere in pages and chunks, against one entry after the other."""
    draw = random.Random(seed)
    count = 20_000
    image = Image(count * block_mib * MIB - 512, block_size=block_mib * MIB)
    states: list[int] = []
    while len(states) < count:
        kinds = draw.choice(((NOT_PRESENT,), (ZERO,), (ZERO, UNMAPPED, UNDEFINED)))
        states += [draw.choice(kinds) for _ in range(draw.choice((1, 2, 511, 512, 513, 1000, 1700)))]
    image.bat = {image.payload_index(n): state for n, state in enumerate(states[:count])}
    if seed % 4 == 3:  # slots of sector bitmaps mean nothing in this file, whatever stands in them
        image.bat |= {image.bitmap_index(n): 4 * MIB | draw.choice((0, 6)) for n in range(image.chunks)}
    expected: list[tuple[int, str]] = []
    for number, state in enumerate(states[:count]):
        kind = "absent" if state == NOT_PRESENT else "zero"
        if not expected or expected[-1][1] != kind:
            expected.append((number * image.block_size, kind))
    with pyvhdx.open(stored(image)) as opened:
        assert [(extent.offset, extent.kind) for extent in opened.extents()] == expected
