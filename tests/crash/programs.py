"""
Random programs that write, and what each 512-byte unit of their disk may hold after a power cut.

A unit is written with a pattern that names the write and the unit, so that what is found says where it
comes from.  The model keeps the versions of each unit with the event before which they became possible;
a flush that returned makes the last one before it the only one that may be older.  What a failed
call leaves is in doubt, until it is looked at.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import struct
import tempfile
import uuid
from bisect import bisect_right
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import pyvhdx
from pyvhdx import TrimMode
from pyvhdx.testing import Event, FailingStorage, MemoryStorage, RecordingStorage
from tests.corpus.handmade import sealed

MIB = 1 << 20
UNIT = 512
ITEM = uuid.UUID("0f5f1c6e-5a4e-4f0c-8d0a-2f0b8f0c0001")


def pattern(write: int, unit: int) -> bytes:
    """Return what a write puts into a unit."""
    return struct.pack("<IIQ", 0xC0DE0000 | write & 0xFFFF, write, unit) * (UNIT // 16)


def patterns(write: int, first: int, count: int) -> bytes:
    """Return what a write puts into a run of units."""
    return b"".join(pattern(write, unit) for unit in range(first, first + count))


@dataclass(frozen=True)
class Shape:
    """What kind of file a program runs on."""

    kind: str
    sector: int
    block_size: int
    size: int
    has_reserved_bytes: bool = False  # set in both headers, which may tear then

    @classmethod
    def draw(cls, draw: random.Random) -> Shape:
        sector = draw.choice((512, 512, 4096))
        block_size = draw.choice((1, 1, 2, 4)) * MIB
        size = draw.randrange(3, 7) * block_size + sector * draw.choice((0, 0, 1, 8, 100))
        return cls(
            draw.choice(("dynamic", "dynamic", "differencing", "differencing", "fixed")),
            sector,
            block_size,
            size,
            draw.random() < 0.15,
        )


@dataclass
class Start:
    """A file before the program, its parent, and what its disk reads as."""

    storage: MemoryStorage
    parent: pyvhdx.VHDXImage | None
    content: bytes
    below: bytes  # what a block that shows its parent reads as


@lru_cache(maxsize=4)
def _made(shape: Shape) -> tuple[bytes, bytes | None, bytes]:
    """Return the file, its parent and the parent's content; made once for each shape."""
    how = {"block_size": shape.block_size, "logical_sector_size": shape.sector}
    with tempfile.TemporaryDirectory() as folder:
        path, parent = Path(folder, "disk.vhdx"), Path(folder, "parent.vhdx")
        if shape.kind != "differencing":
            pyvhdx.create(path, shape.size, kind=shape.kind, sync=False, **how).close()  # type: ignore[arg-type]  # numbers all
            return path.read_bytes(), None, bytes(shape.size)
        # Smaller than the child, with data in two of three MiB.
        size = shape.size - shape.sector
        content = bytearray(shape.size)
        with pyvhdx.create(parent, size, sync=False, **how) as image:  # type: ignore[arg-type]  # numbers all
            for at in range(0, size, MIB):
                count = min(MIB, size - at) // UNIT
                if at // MIB % 3 != 2:
                    content[at : at + count * UNIT] = patterns(0xFFFF, at // UNIT, count)
            image.write(content[:size])
        pyvhdx.create(path, shape.size, parent=parent, sync=False).close()
        return path.read_bytes(), parent.read_bytes(), bytes(content)


def start_of(shape: Shape) -> Start:
    """Return a fresh file of a shape."""
    data, parent, below = _made(replace(shape, has_reserved_bytes=False))
    if shape.has_reserved_bytes:
        data = _with_reserved_bytes(data)
    opened = None if parent is None else pyvhdx.open(MemoryStorage(parent), parent=False)
    return Start(MemoryStorage(data), opened, below, below)


def _with_reserved_bytes(data: bytes) -> bytes:
    out = bytearray(data)
    for at in (0x10000, 0x20000):
        out[at + 80 : at + 4096] = b"\xa5" * 4016
        out[at : at + 4096] = sealed(bytes(out[at : at + 4096]))
    return bytes(out)


class Version(NamedTuple):
    """What may be found from some moment on: *turn* orders changes and flushes, *events* came before it."""

    turn: int
    events: int
    what: bytes | None
    is_certain: bool = True


@dataclass
class Model:
    """The versions of each unit, and of the user item."""

    content: bytearray
    versions: dict[int, list[Version]] = field(default_factory=dict)
    items: list[Version] = field(default_factory=lambda: [Version(-1, -1, None)])
    # Of each flush that returned: the events until then, and the turn at which it began.
    acknowledged: list[tuple[int, int]] = field(default_factory=list)
    turn: int = 0

    def write(self, data: bytes, offset: int, events: int) -> None:
        """Note that *data* is being written; the range need not begin or end at a unit."""
        self.turn += 1
        units = range(offset // UNIT, (offset + len(data) - 1) // UNIT + 1)
        for unit in units:
            if unit not in self.versions:
                self.versions[unit] = [Version(-1, -1, self._unit(unit))]
        self.content[offset : offset + len(data)] = data
        for unit in units:
            self.versions[unit].append(Version(self.turn, events, self._unit(unit)))

    def write_item(self, data: bytes | None, events: int) -> None:
        """Note that the user item is being set, or deleted."""
        self.turn += 1
        self.items.append(Version(self.turn, events, data))

    def _unit(self, unit: int) -> bytes:
        return bytes(self.content[unit * UNIT : (unit + 1) * UNIT])

    def doubt(self, turn: int) -> None:
        """Note that what was changed after *turn* failed, as far as no flush returned: it may be there or not."""
        if self.acknowledged:
            turn = max(turn, self.acknowledged[-1][1])
        for versions in (*self.versions.values(), self.items):
            for number, version in enumerate(versions):
                if version.turn > turn:
                    versions[number] = version._replace(is_certain=False)

    def look(self, image: pyvhdx.VHDXImage, events: int, *, is_new: bool) -> None:
        """
        Look at what is there, which settles doubts; *is_new* if the image was opened again.

        Then what was not flushed may be gone, though no power was cut.
        """
        durable = self._durable(events) if is_new else self.turn
        content = image.pread(image.size, 0)
        self.turn += 1
        for unit, versions in self.versions.items():
            found = content[unit * UNIT : (unit + 1) * UNIT]
            assert found in _possible(versions, durable, events + 1), f"unit {unit} is a third thing"
            self._settle(versions, found, events)
        item = image.user_metadata.get(ITEM)
        assert item in _possible(self.items, durable, events + 1), "the item is a third thing"
        self._settle(self.items, item, events)
        assert len(content) == len(self.content)
        self.content[:] = content

    def _settle(self, versions: list[Version], found: bytes | None, events: int) -> None:
        if not versions[-1].is_certain or versions[-1].what != found:
            versions.append(Version(self.turn, events, found))

    def begin_flush(self) -> int:
        """Return the turn that `acknowledge` is to be told when the flush has returned."""
        self.turn += 1
        return self.turn

    def acknowledge(self, turn: int, events: int) -> None:
        """Note that a flush has returned after *events*."""
        self.acknowledged.append((events, turn))

    def allowed(self, cut: int, *, beside: bytes | None) -> dict[int, set[bytes | None]]:
        """
        Return what each unit that was ever written may hold after a cut behind *cut* events.

        *beside* is the user item that was found: what was written before it is not older than it.
        """
        durable = self._durable(cut)
        turns = [version.turn for version in self.items if version.what == beside]
        if len(turns) == 1:  # or it does not tell which one it is
            durable = max(durable, *turns)
        return {unit: _possible(versions, durable, cut) for unit, versions in self.versions.items()}

    def allowed_items(self, cut: int) -> set[bytes | None]:
        """Return what the user item may be."""
        return _possible(self.items, self._durable(cut), cut)

    def _durable(self, cut: int) -> int:
        """Return the turn before which everything is durable at a cut."""
        done = bisect_right(self.acknowledged, (cut, 1 << 60))
        return self.acknowledged[done - 1][1] if done else -1


def _possible(versions: list[Version], durable: int, cut: int) -> set[bytes | None]:
    """Return the last certain version that is durable, and all later ones that had begun."""
    first = max(
        number
        for number, version in enumerate(versions)
        if version.turn <= max(durable, -1) and version.is_certain
    )
    return {versions[first].what} | {
        version.what for version in versions[first + 1 :] if version.events < cut
    }


@dataclass
class Run:
    """A program that ran: what happened, and what may be found."""

    shape: Shape
    start: Start
    before: MemoryStorage
    events: list[Event]
    model: Model


class _Killed(BaseException):
    """The process ends here."""


class Program:
    """Draws and runs operations on one file, over several sessions."""

    def __init__(self, draw: random.Random, shape: Shape, steps: int) -> None:
        self.draw = draw
        self.shape = shape
        self.start = start_of(shape)
        self.before = self.start.storage.copy()
        self.recording = RecordingStorage(self.start.storage)
        self.storage = FailingStorage(self.recording, None)
        self.model = Model(bytearray(self.start.content))
        self.steps = steps
        self.number = 0

    def run(self) -> Run:
        self.open()
        # Each program has its own mind: what it does most.
        weights = [self.draw.random() ** 2 for _ in _OPERATIONS]
        for _ in range(self.steps):
            self.draw.choices(_OPERATIONS, weights)[0](self)
        if self.draw.random() < 0.8:
            self.close()
        else:
            self.die()
        return Run(self.shape, self.start, self.before, self.recording.events, self.model)

    @property
    def events(self) -> int:
        return len(self.recording.events)

    def open(self) -> None:
        self.inherited = self.events  # an image's flush covers what it wrote itself, and no dead process's
        self.image = pyvhdx.open(self.storage, "r+", parent=self.start.parent or "auto")

    def close(self) -> None:
        turn = self.model.begin_flush()
        self.image.close()
        self.acknowledge(turn)

    def reopen(self) -> None:
        self.close()
        self.open()

    def die(self) -> None:
        """The process is killed."""
        self.image._writer = None
        self.image.close()

    def die_and_open_again(self) -> None:
        """
        The process is killed between two calls of the storage, also while it opens the image again.

        What no barrier covered is there, and may still be lost when the power is cut later.
        """
        turn = self.model.turn
        self._kill_soon()
        try:
            if self.draw.random() < 0.7:
                self.draw.choice(_KILLED)(self)
                self.flush()
        except _Killed:
            self.model.doubt(turn)
        self.die()
        self._kill_soon()
        with contextlib.suppress(_Killed):
            self.open()
            self.die()
        self.storage.at = None
        self.open()
        self.model.look(self.image, self.events, is_new=True)

    def _kill_soon(self) -> None:
        storage = self.storage
        storage.error, storage.for_good, storage.short = _Killed, True, False
        storage.at = storage.calls + self.draw.randrange(12)

    def fail_and_repeat(self) -> None:
        """A call of the storage fails inside an operation; what the image says of itself is true."""
        draw, storage, turn = self.draw, self.storage, self.model.turn
        number = draw.choice((errno.EIO, errno.ENOSPC))
        storage.error = lambda: OSError(number, os.strerror(number))
        storage.for_good = draw.random() < 0.2
        storage.short = draw.random() < 0.5
        storage.at = storage.calls + draw.choice((0, 0, 1, 1, 2, 3, 4, 5, 7))
        operation = draw.choice(
            (
                Program.write,
                Program.write_a_block,
                Program.write_zeroes,
                Program.trim,
                Program.set_item,
                Program.flush,
            )
        )
        try:
            operation(self)
            if draw.random() < 0.5:
                self.flush()
        except OSError:
            self.model.doubt(turn)
        storage.at = None
        self.model.look(self.image, self.events, is_new=False)
        try:
            self.flush()
        except pyvhdx.ImageFailedError:
            try:
                self.image.close()
            except pyvhdx.ImageFailedError:
                pass
            else:
                raise AssertionError("a failed image was closed as if nothing were lost")
            self.open()
            self.model.look(self.image, self.events, is_new=True)
        operation(self)

    def flush(self) -> None:
        turn = self.model.begin_flush()
        self.image.flush()
        self.acknowledge(turn)

    def acknowledge(self, turn: int) -> None:
        if self.events > self.inherited:
            self.model.acknowledge(turn, self.events)

    def some_range(self, step: int = UNIT) -> tuple[int, int]:
        """Return an offset and a length, in one place that the program likes or anywhere."""
        draw, size = self.draw, self.shape.size
        length = draw.choice((step, 8 * step, 4096, 16384, 65536, draw.randrange(1, 9) * 65536))
        length = min(size, max(step, length - length % step))
        block = draw.randrange(-(-size // self.shape.block_size)) * self.shape.block_size
        near = block + draw.choice((0, 4096, self.shape.block_size - length, -length // 2))
        offset = min(max(0, near), size - length)
        return offset - offset % step, length

    def write(self) -> None:
        offset, length = self.some_range()
        self.put(offset, length)

    def put(self, offset: int, length: int) -> None:
        self.number += 1
        data = patterns(self.number, offset // UNIT, length // UNIT)
        self.model.write(data, offset, self.events)
        self.image.pwrite(data, offset)

    def write_a_block(self) -> None:
        size = self.shape.block_size
        start = self.draw.randrange(-(-self.shape.size // size)) * size
        self.put(start, min(size, self.shape.size - start))

    def write_some_bytes(self) -> None:
        offset = self.draw.randrange(self.shape.size - 700)
        data = self.draw.randbytes(self.draw.randrange(1, 700))
        self.model.write(data, offset, self.events)
        self.image.pwrite(data, offset)

    def write_zeroes(self) -> None:
        offset, length = self.some_range()
        if self.draw.random() < 0.4:
            size = self.shape.block_size
            offset = offset // size * size
            length = min(2 * size, self.shape.size - offset)
        self.model.write(bytes(length), offset, self.events)
        self.image.write_zeroes(offset, length)

    def trim(self, mode: TrimMode | None = None) -> None:
        draw, shape = self.draw, self.shape
        mode = mode or draw.choice(list(TrimMode))
        if shape.kind == "fixed" and mode is TrimMode.MAKE_TRANSPARENT:
            return
        first = draw.randrange(-(-shape.size // shape.block_size))
        start = first * shape.block_size
        stop = min(shape.size, start + draw.choice((1, 1, 2)) * shape.block_size)
        if shape.kind != "fixed" and mode is not TrimMode.REMOVE_SOFT_ANCHORS:
            for at in range(start, stop, shape.block_size):
                end = min(at + shape.block_size, stop)
                self._model_trim(at, end, mode)
        self.image.trim(start, stop - start, mode)

    def _model_trim(self, start: int, end: int, mode: TrimMode) -> None:
        shows = self.start.below[start:end]
        if mode is TrimMode.MAKE_TRANSPARENT:
            self.model.write(shows, start, self.events)
            return
        is_absent = all(
            extent.kind == "absent" or extent.depth for extent in self.image.extents(start, end - start)
        )
        if mode is TrimMode.ZERO or not is_absent:
            self.model.write(bytes(end - start), start, self.events)

    def trim_and_reuse(self) -> None:
        """What gives other blocks' space to new ones: the classic way to lose data."""
        self.trim(self.draw.choice((TrimMode.ZERO, TrimMode.FREE_SPACE, TrimMode.FILE_SPACE)))
        if self.draw.random() < 0.6:
            self.flush()
        for _ in range(self.draw.randrange(1, 3)):
            self.write()

    def set_item(self) -> None:
        data = self.draw.randbytes(self.draw.choice((1, 100, 5000, 100_000)))
        self._item(data)

    def set_a_large_item(self) -> None:
        """Fills the log: three commits and it restarts."""
        self._item(self.draw.randbytes(self.draw.choice((300_000, 380_000))))

    def _item(self, data: bytes) -> None:
        self.model.write_item(data, self.events)
        try:
            self.image.user_metadata[ITEM] = data
        except pyvhdx.RequestError:  # no room
            self.model.items.pop()

    def delete_item(self) -> None:
        if ITEM in self.image.user_metadata:
            self.model.write_item(None, self.events)
            del self.image.user_metadata[ITEM]

    def many_small_flushes(self) -> None:
        for _ in range(self.draw.randrange(2, 25)):
            self.draw.choice((self.write, self.trim, self.write))()
            self.flush()


_KILLED = [
    Program.write,
    Program.write_a_block,
    Program.write_zeroes,
    Program.trim,
    Program.set_item,
    Program.many_small_flushes,
]

_OPERATIONS = [
    Program.write,
    Program.write,
    Program.write_a_block,
    Program.write_some_bytes,
    Program.write_zeroes,
    Program.trim,
    Program.trim_and_reuse,
    Program.set_item,
    Program.set_a_large_item,
    Program.delete_item,
    Program.many_small_flushes,
    Program.fail_and_repeat,
    Program.die_and_open_again,
    Program.flush,
    Program.reopen,
]
