"""
A random program and a model: what is read is what was written, whatever became of blocks and files.

The model of a file is the bytes that its disk reads as and the state of each block.  A session runs
under the `Checker`, and a file that was closed is compared with the model byte by byte, extents too.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import tempfile
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

import pyvhdx
from pyvhdx import RequestError, TrimMode
from pyvhdx.storage import open_local
from tests.writing.checker import Content, is_zero
from tests.writing.watching import Watched

MIB = 1 << 20
ITEMS = [uuid.UUID(int=number + 1) for number in range(4)]
MODES = list(TrimMode)

ABSENT, UNDEFINED, ZERO, UNMAPPED, FULL, PARTIAL = (
    "absent",
    "undefined",
    "zero",
    "unmapped",
    "full",
    "partial",
)


@dataclass
class Model:
    """What the disk of one file reads as, how its blocks stand, and its user items."""

    size: int
    block_size: int
    sector: int
    kind: str
    parent: Model | None = None
    data: bytearray = field(default_factory=bytearray)
    states: list[str] = field(default_factory=list)
    items: dict[uuid.UUID, tuple[bytes, bool]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.data = bytearray(self.below(0, self.size))
        count = -(-self.size // self.block_size)
        self.states = [FULL if self.kind == "fixed" else ABSENT] * count

    def below(self, start: int, end: int) -> bytes:
        """Return what the parent shows in a range, zeros behind its end."""
        shown = bytes(self.parent.data[start:end]) if self.parent is not None else b""
        return shown.ljust(end - start, b"\0")

    def span(self, block: int) -> tuple[int, int]:
        return block * self.block_size, min(self.size, (block + 1) * self.block_size)

    def parts(self, start: int, end: int) -> list[tuple[int, int, int, bool]]:
        """Return (block, start, end, whether that is the whole block) for a range."""
        found = []
        while start < end:
            block = start // self.block_size
            first, last = self.span(block)
            stop = min(end, last)
            found.append((block, start, stop, (start, stop) == (first, last)))
            start = stop
        return found

    def write(self, data: bytes, offset: int) -> None:
        for block, start, stop, whole in self.parts(offset, offset + len(data)):
            self.data[start:stop] = data[start - offset : stop - offset]
            self._fill(block, whole=whole)

    def _fill(self, block: int, *, whole: bool) -> None:
        through = self.parent is not None and self.states[block] in (ABSENT, PARTIAL)
        self.states[block] = PARTIAL if through and not whole else FULL

    def write_zeroes(self, offset: int, length: int) -> None:
        for block, start, stop, whole in self.parts(offset, offset + length):
            self.data[start:stop] = bytes(stop - start)
            state = self.states[block]
            if state in (ZERO, UNMAPPED, UNDEFINED) or (state == ABSENT and self.parent is None):
                continue
            if whole and self.kind != "fixed":
                self.states[block] = ZERO
            else:
                self._fill(block, whole=whole)

    def trim(self, offset: int, length: int, mode: TrimMode) -> int:
        """Return how many bytes the blocks have whose entry changes."""
        if self.kind == "fixed":
            return 0
        changed = 0
        for block, state in enumerate(self.states):
            start, stop = self.span(block)
            if not (offset <= start and stop <= offset + length):
                continue
            new = _trimmed(state, mode)
            if new == state:
                continue
            changed += stop - start
            self.states[block] = new
            self.data[start:stop] = self.below(start, stop) if new == ABSENT else bytes(stop - start)
        return changed

    def child(self, size: int, block_size: int) -> Model:
        child = Model(size, block_size, self.sector, "differencing", self)
        child.items = {item: value for item, value in self.items.items() if value[1]}
        return child


def _trimmed(state: str, mode: TrimMode) -> str:
    stored = state in (FULL, PARTIAL)
    if mode is TrimMode.FILE_SPACE:
        return UNMAPPED if stored else state
    if mode is TrimMode.FREE_SPACE:
        return UNDEFINED if stored or state in (ZERO, UNMAPPED) else state
    if mode is TrimMode.ZERO:
        return ZERO
    return ABSENT if mode is TrimMode.MAKE_TRANSPARENT else state


class Programs(RuleBasedStateMachine):
    """Programs over one chain of files, of which the last is open for writing."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="pyvhdx-"))
        self.paths: list[Path] = []
        self.watched: Watched | None = None

    @initialize(
        kind=st.sampled_from(["dynamic", "dynamic", "dynamic", "fixed"]),
        sector=st.sampled_from([512, 512, 4096]),
        block_size=st.sampled_from([MIB, MIB, 2 * MIB, 4 * MIB]),
        size=st.integers(3, 9),
        odd=st.sampled_from([0, 0, 1, 5, 100]),
        children=st.integers(0, 1),
        seed=st.integers(0, 2**32),
    )
    def create(
        self, kind: str, sector: int, block_size: int, size: int, odd: int, children: int, seed: int
    ) -> None:
        size = size * MIB + odd * sector
        self.model = Model(size, block_size, sector, kind)
        self._create(size, kind=kind, logical_sector_size=sector, block_size=block_size)
        if children:
            data = random.Random(seed).randbytes(4000)
            self._write(data, min(size - 4000, 3 * MIB - 2000))
            self._become_parent(self.model.size, self.model.block_size)

    def _create(self, size: int, **how: Any) -> None:
        path = self.folder / f"{len(self.paths)}.vhdx"
        pyvhdx.create(path, size, lock=False, sync=False, **how).close()
        self.paths.append(path)
        self._open()

    def _open(self, content: Content | None = None) -> None:
        parent = {"parent": self.paths[-2]} if len(self.paths) > 1 else {}
        storage = open_local(self.paths[-1], write=True)
        self.watched = Watched(storage, content=content, **parent)
        self.image = self.watched.image
        self.is_visible = False  # whether this session was asked for what the disk's user can see

    def _close(self) -> Content:
        assert self.watched is not None
        self.watched.close(is_visible=self.is_visible)
        content, self.watched = self.watched.checker.now, None
        return content

    def _become_parent(self, size: int, block_size: int) -> None:
        self._close()
        self.model = self.model.child(size, block_size)
        self._create(size, parent=self.paths[-1], block_size=block_size)

    # -- what programs do ---------------------------------------------------------------------

    def _place(self, block: int, shift: int) -> int:
        """Return an offset near the beginning of a block."""
        blocks = len(self.model.states)
        return max(0, min(self.model.size - 1, block % blocks * self.model.block_size + shift))

    def _write(self, data: bytes, offset: int) -> None:
        self.is_visible = True
        self.image.pwrite(data, offset)
        self.model.write(data, offset)

    blocks = st.integers(0, 9)
    shifts = st.one_of(
        st.sampled_from([0, 0, 512, 4096, -512, -4096]),
        st.integers(-5000, 5000),
        st.integers(0, 2 * MIB),
    )
    lengths = st.one_of(
        st.integers(1, 20000), st.sampled_from([512, 4096, 8192]), st.sampled_from([MIB, 2 * MIB, 4 * MIB])
    )

    @rule(block=blocks, shift=shifts, length=lengths, seed=st.integers(0, 2**32))
    def pwrite(self, block: int, shift: int, length: int, seed: int) -> None:
        offset = self._place(block, shift)
        length = min(length, self.model.size - offset)
        # Large pieces repeat themselves: random bytes are not for free.
        piece = random.Random(seed).randbytes(min(length, 8191))
        self._write((piece * (length // len(piece) + 1))[:length], offset)

    @rule(block=blocks, seed=st.integers(0, 255))
    def write_block(self, block: int, seed: int) -> None:
        start, stop = self.model.span(block % len(self.model.states))
        self._write(bytes([seed]) * (stop - start), start)

    @rule(block=blocks, shift=shifts, length=lengths)
    def write_zeroes(self, block: int, shift: int, length: int) -> None:
        offset = self._place(block, shift)
        length = min(length, self.model.size - offset)
        self.is_visible = True
        self.image.write_zeroes(offset, length)
        self.model.write_zeroes(offset, length)

    @rule(
        block=blocks,
        sectors=st.sampled_from([0, 0, 0, 1, -3]),
        count=st.integers(1, 4),
        mode=st.sampled_from(MODES),
    )
    def trim(self, block: int, sectors: int, count: int, mode: TrimMode) -> None:
        offset = self._place(block, 0) + max(0, sectors) * self.model.sector
        length = max(0, min(count * self.model.block_size + min(0, sectors), self.model.size - offset))
        length -= length % self.model.sector
        if self.model.kind == "fixed" and mode is TrimMode.MAKE_TRANSPARENT:
            with pytest.raises(RequestError):
                self.image.trim(offset, length, mode)
            return
        self.is_visible = self.is_visible or mode is not TrimMode.REMOVE_SOFT_ANCHORS
        expected = self.model.trim(offset, length, mode)
        changed = self.image.trim(offset, length, mode)
        if mode is not TrimMode.REMOVE_SOFT_ANCHORS:  # others may have taken them
            assert changed == expected

    @rule(block=blocks, shift=shifts, length=st.integers(0, 100000))
    def read(self, block: int, shift: int, length: int) -> None:
        offset = self._place(block, shift)
        assert self.image.pread(length, offset) == self.model.data[offset : offset + length]

    @rule(
        number=st.integers(0, 3),
        length=st.sampled_from([0, 1, 100, 5000, 5000, 150_000, 300_000, 400_000]),
        of_disk=st.sampled_from([None, None, True, False]),
    )
    def set_item(self, number: int, length: int, of_disk: bool | None) -> None:
        data = random.Random(length).randbytes(length)
        self.is_visible = True
        item = ITEMS[number]
        try:
            self.image.user_metadata.set(item, data, of_disk=of_disk)
        except RequestError:
            assert length + sum(len(value) for value, _ in self.model.items.values()) > 480_000
            return
        old = self.model.items.get(item)
        stays = bool(old and old[1]) if of_disk is None else of_disk
        self.model.items[item] = data, stays

    @rule(number=st.integers(0, 3))
    def delete_item(self, number: int) -> None:
        self.is_visible = True
        item = ITEMS[number]
        if item in self.model.items:
            del self.model.items[item]
            del self.image.user_metadata[item]
        else:
            with contextlib.suppress(KeyError):
                del self.image.user_metadata[item]
                pytest.fail("an item that is not there was deleted")

    @rule()
    def flush(self) -> None:
        self.image.flush()
        self.image.flush()

    @rule()
    def reopen(self) -> None:
        content = self._close()
        self._check_closed()
        self._open(content)

    def _trim_and_reopen(self, block: int, mode: TrimMode) -> None:
        start, stop = self.model.span(block % len(self.model.states))
        self.is_visible = True
        self.model.trim(start, stop - start, mode)
        self.image.trim(start, stop - start, mode)
        self.reopen()

    @rule(block=blocks, other=blocks, seed=st.integers(0, 255))
    def write_where_another_was(self, block: int, other: int, seed: int) -> None:
        """A file without free space, but for what a block keeps that has no content."""
        self._trim_and_reopen(block, TrimMode.FILE_SPACE)
        offset = self._place(other, 1000)
        self._write(bytes([seed]) * min(100, self.model.size - offset), offset)

    @rule(block=blocks)
    def release_anchors(self, block: int) -> None:
        """A session of its own in which blocks give up the space that they kept, and nothing reads differently."""
        self._trim_and_reopen(block, TrimMode.FILE_SPACE)
        before = self.image.data_write_guid
        self.image.trim(0, self.model.size, TrimMode.REMOVE_SOFT_ANCHORS)
        assert self.image.trim(0, self.model.size, TrimMode.REMOVE_SOFT_ANCHORS) == 0
        self.reopen()
        assert self.image.data_write_guid == before

    @rule()
    def die_and_reopen(self) -> None:
        """A flush, and the process is killed: the next open replays the log."""
        assert self.watched is not None
        self.image.flush()
        self.watched.die()
        content = self.watched.checker.now
        self._check_closed()
        self._open(content)

    @precondition(lambda self: len(self.paths) < 4)
    @rule(grows=st.sampled_from([-1, 0, 0, 1]), by=st.integers(1, 3 * MIB // 4096), shift=st.integers(-1, 1))
    def make_child(self, grows: int, by: int, shift: int) -> None:
        size = max(MIB, self.model.size + grows * by * 4096)
        block_size = self.model.block_size << shift if shift > 0 else self.model.block_size >> -shift
        self._become_parent(size, max(MIB, min(4 * MIB, block_size)))

    # -- what must hold -----------------------------------------------------------------------

    def teardown(self) -> None:
        try:
            # After a failure the image may be closed already.
            if self.watched is not None and not self.image.closed:
                note(f"at the end: {self.image!r}, {self.model.states}")
                self._check_image(self.image)
                self._close()
                self._check_closed()
        finally:
            if self.watched is not None and not self.image.closed:
                self.watched.image._release()
            shutil.rmtree(self.folder)

    def _check_closed(self) -> None:
        with pyvhdx.open(self.paths[-1], lock=False) as image:
            self._check_image(image)
            assert image.log_pending or not image.warnings

    def _check_image(self, image: pyvhdx.VHDXImage) -> None:
        model = self.model
        content = image.pread(model.size, 0)
        assert content == model.data
        assert dict(image.user_metadata) == {item: value for item, (value, _) in model.items.items()}
        at = 0
        for extent in image.extents():
            assert extent.offset == at
            piece = content[at : at + extent.length]
            if extent.kind == "data":
                assert extent.file_offset is not None
                stored = image.chain[extent.depth]._storage.read_at(extent.length, extent.file_offset)
                assert stored == piece
            else:
                assert extent.file_offset is None
                assert is_zero(piece)
            at += extent.length
        assert at == model.size
        self._check_states(image)

    def _check_states(self, image: pyvhdx.VHDXImage) -> None:
        for block, state in enumerate(self.model.states):
            start, stop = self.model.span(block)
            extents = list(image.extents(start, stop - start))
            if state == FULL:
                assert [(e.kind, e.depth) for e in extents] == [("data", 0)]
            elif state == PARTIAL:
                assert ("data", 0) in {(e.kind, e.depth) for e in extents}
            elif state == ABSENT:
                assert all(e.depth > 0 or len(image.chain) == 1 for e in extents)
            else:
                assert [(e.kind, e.depth) for e in extents] == [("zero", 0)]


TestPrograms = Programs.TestCase
TestPrograms.settings = settings(stateful_step_count=40)
