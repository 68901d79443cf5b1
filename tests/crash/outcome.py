"""
Opening what power cuts left, and comparing it with what may be there.

`examine` looks at a file with the tests' own parser, `Outcome` opens it with pyvhdx: for reading, which
changes nothing, and for writing, which replays; both must show units that the model allows, and the same.
"""

from __future__ import annotations

import hashlib
import random
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pyvhdx
from pyvhdx.testing import MemoryStorage, PowerCut, RecordingStorage
from tests.crash.programs import ITEM, UNIT, Program, Run, Shape
from tests.writing.checker import Layout, View, current_header, entries_in, parse_header

_NO_GUID = bytes(16)


class _File:
    """A storage as the checker reads it: short at its end, and then zeros."""

    def __init__(self, storage: MemoryStorage) -> None:
        self.storage = storage
        self.size = storage.size()

    def read(self, offset: int, length: int) -> bytes:
        return self.storage.read_at(length, offset).ljust(length, b"\0")


def pages_in_log(storage: MemoryStorage) -> list[int]:
    """Return the places of the pages that a replay writes, in bytes."""
    file = _File(storage)
    _, header = current_header(file)  # type: ignore[arg-type]  # it reads alike
    if header.log_guid == _NO_GUID:
        return []
    return sorted({at for entry in entries_in(file, header) for at in entry.pages})  # type: ignore[arg-type]  # it reads alike


def examine(storage: MemoryStorage, *, is_closed: bool) -> None:
    """Assert what must hold of every file that a power cut leaves, or after a replay of every one."""
    file = _File(storage)
    headers = [parse_header(file.read(at, 4096)) for at in (65536, 131072)]
    _, header = current_header(file)  # type: ignore[arg-type]  # it reads alike
    if header.log_guid != _NO_GUID:
        assert not is_closed, "a closed file names a log"
        entries = entries_in(file, header)  # type: ignore[arg-type]  # it reads alike
        assert entries, "a header names a log without a whole entry"
        last = entries[-1]
        assert last.tail == 0, "a tail is not the log's first entry"
        assert last.flushed_file_offset <= file.size, "the file is shorter than an entry says it was"
        pages = {at: page for entry in entries for at, page in entry.pages.items()}
    else:
        pages = {}
    if is_closed:
        assert headers[0] is not None
        assert headers[1] is not None
        assert headers[0]._replace(sequence_number=0) == headers[1]._replace(sequence_number=0)

    def replayed(offset: int, length: int) -> bytes:
        data = bytearray(file.read(offset, length))
        for at in range(offset - offset % 4096, offset + length, 4096):
            if at in pages:
                start, stop = max(at, offset), min(at + 4096, offset + length)
                data[start - offset : stop - offset] = pages[at][start - at : stop - at]
        return bytes(data)

    layout = Layout(replayed)
    view = View(layout, replayed, header, "after the cut")
    end = max(file.size, entries[-1].last_file_offset) if pages else file.size
    assert view.end <= end, f"the file ends at {end:#x}, and something behind it, up to {view.end:#x}"


@dataclass
class Outcome:
    """Judges the files that one program's power cuts left."""

    run: Run
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.cuts = PowerCut(self.run.before, self.run.events)
        self._seen: set[bytes] = set()

    def judge(self, cut: int, draw: random.Random, *, by_qemu: bool = False) -> None:
        """Cut behind *cut* events, and look at what is left in every way; counts what was not seen yet."""
        left = self.cuts.after(cut, draw)
        digest = _digest(cut, left)
        if digest in self._seen:
            return
        self._seen.add(digest)
        items = self.run.model.allowed_items(cut)
        examine(left, is_closed=False)
        recording = RecordingStorage(left.copy())
        with pyvhdx.open(recording, parent=self.run.start.parent or "auto") as image:
            self.counts["dirty"] += image.log_pending
            content = self._compare(image, cut, items)
        assert not recording.events, "a read-only open changed the file"
        if by_qemu and self.run.shape.kind != "differencing" and self.run.shape.sector == UNIT:
            self._compare_with_qemu(left, content)
            self._interrupt_qemu(left, draw, content)
        # The replay is cut short, again and again.
        before = left
        while draw.random() < 0.3:
            recording = RecordingStorage(before.copy())
            pyvhdx.open(recording, "r+", parent=self.run.start.parent or "auto").close()
            if not recording.events:
                break
            self.counts["replays"] += 1
            before = PowerCut(before, recording.events).after(draw.randrange(len(recording.events) + 1), draw)
            examine(before, is_closed=False)
        recording = RecordingStorage(before)
        with pyvhdx.open(recording, "r+", parent=self.run.start.parent or "auto") as image:
            assert image.pread(image.size, 0) == content, "a replay shows other bytes than the overlay did"
        examine(before, is_closed=bool(recording.events))  # without a log to replay it stays as it is
        with pyvhdx.open(before, parent=self.run.start.parent or "auto") as image:
            assert not image.log_pending
            assert image.pread(image.size, 0) == content
        self.counts["images"] += 1

    def _compare(self, image: pyvhdx.VHDXImage, cut: int, items: set[bytes | None]) -> bytes:
        content = image.pread(image.size, 0)
        item = image.user_metadata.get(ITEM)
        assert item in items, "the user item is a third thing"
        allowed = self.run.model.allowed(cut, beside=item)
        at = 0
        for unit in sorted(allowed):
            start = unit * UNIT
            assert content[at:start] == self.run.start.content[at:start], (
                f"units before {unit} were never written"
            )
            found = content[start : start + UNIT]
            if found not in allowed[unit]:
                raise AssertionError(
                    f"unit {unit} holds {found[:16].hex()}, none of the {len(allowed[unit])} it may"
                )
            at = start + UNIT
        assert content[at:] == self.run.start.content[at:]
        return content

    def _compare_with_qemu(self, left: MemoryStorage, content: bytes) -> None:
        """QEMU replays in our place, and reads the same."""
        with _as_file(left) as path:
            raw = path.with_suffix(".raw")
            subprocess.run(["qemu-img", "check", "-q", "-r", "all", path], check=True, capture_output=True)
            subprocess.run(["qemu-img", "convert", "-f", "vhdx", "-O", "raw", path, raw], check=True)
            assert raw.read_bytes() == content, "QEMU replays to other bytes"
        self.counts["qemu"] += 1

    def _interrupt_qemu(self, left: MemoryStorage, draw: random.Random, content: bytes) -> None:
        """QEMU gets an I/O error in the middle of its replay; we finish it, and read the same."""
        pages = pages_in_log(left)
        if not pages:
            return
        sector = draw.choice(pages) // UNIT
        with _as_file(left) as path:
            options = (
                f"driver=vhdx,file.driver=blkdebug,file.image.driver=file,file.image.filename={path},"
                "file.inject-error.0.event=none,file.inject-error.0.iotype=write,"
                f"file.inject-error.0.sector={sector}"
            )
            found = subprocess.run(
                ["qemu-io", "--image-opts", "-c", "read 0 512", options], capture_output=True, check=False
            )
            assert b"Input/output error" in found.stderr, found.stderr
            with pyvhdx.open(path) as image:
                assert image.log_pending
                assert image.pread(image.size, 0) == content, "what QEMU left shows other bytes"
            with pyvhdx.open(path, "r+", sync=False) as image:
                assert image.pread(image.size, 0) == content
        self.counts["qemu interrupted"] += 1


def _digest(cut: int, storage: MemoryStorage) -> bytes:
    """Return what tells a file from others that the same program left."""
    seen = hashlib.blake2b(b"%d %d" % (cut, storage.size()), digest_size=16)
    at = 0
    while (run := storage.next_data(at)) is not None:
        seen.update(b"%d" % run[0])
        seen.update(storage.read_at(run[1] - run[0], run[0]))
        at = run[1]
    return seen.digest()


@contextmanager
def _as_file(storage: MemoryStorage) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "left.vhdx")
        with path.open("wb") as file:
            at = 0
            while (run := storage.next_data(at)) is not None:
                file.seek(run[0])
                file.write(storage.read_at(run[1] - run[0], run[0]))
                at = run[1]
            file.truncate(storage.size())
        yield path


def cuts_of(run: Run, count: int, draw: random.Random) -> Iterator[int]:
    """Yield *count* moments in ascending order; half of them around flushes, where most can go wrong."""
    ends = [number for number, event in enumerate(run.events) if event.kind == "flush"]
    moments = []
    for _ in range(count):
        if ends and draw.random() < 0.5:
            moments.append(min(len(run.events), max(0, draw.choice(ends) + draw.choice((-1, 0, 0, 0, 1)))))
        else:
            moments.append(draw.randrange(len(run.events) + 1))
    return iter(sorted(moments))


def try_program(seed: int, images: int, *, qemu_each: int = 0) -> Counter[str]:
    """
    Run the program of *seed*, cut the power *images* times, and judge; return the counts.

    Equal files that were left by the same cut count once; a short program cannot leave many.
    """
    draw = random.Random(seed)
    run = Program(draw, Shape.draw(draw), draw.randrange(3, 26)).run()
    outcome = Outcome(run)
    for number, cut in enumerate(cuts_of(run, images, draw)):
        by_qemu = bool(qemu_each) and number % qemu_each == qemu_each // 2
        try:
            outcome.judge(cut, draw, by_qemu=by_qemu)
        except BaseException as error:
            if hasattr(error, "add_note"):  # not in Python 3.10
                error.add_note(f"program {seed}, {run.shape}, cut {cut} of {len(run.events)}")
            raise
    if run.start.parent is not None:
        run.start.parent.close()
    return outcome.counts
