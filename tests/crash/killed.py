"""
Kills a process that writes, at random times, and looks for what it was told is safe::

    python -m tests.crash.killed [--rounds 200] [--seed N]

The child reports before each change what it is about to do, and after each flush that it returned.
The file goes on from round to round; the parent keeps a model of it.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import pyvhdx
from pyvhdx.testing import MemoryStorage
from tests.crash.outcome import examine
from tests.crash.programs import MIB, UNIT, Model, patterns

SIZE = 16 * MIB
_REPORT = struct.Struct("<cIII")  # what, number of the write, first unit, units


def write_without_end(path: Path, seed: int, first_number: int, report: int) -> None:
    """What the child does until it is killed; each report is one small write into a pipe, so it is whole."""
    draw = random.Random(seed)
    image = pyvhdx.open(path, "r+")
    number = first_number
    while True:
        number += 1
        choice = draw.random()
        if choice < 0.5:
            count = draw.choice((1, 8, 128, 2048))
            unit = draw.randrange(SIZE // UNIT - count)
            os.write(report, _REPORT.pack(b"w", number, unit, count))
            image.pwrite(patterns(number, unit, count), unit * UNIT)
        elif choice < 0.65:
            unit = draw.randrange(SIZE // MIB) * MIB // UNIT
            os.write(report, _REPORT.pack(b"z", number, unit, MIB // UNIT))
            image.trim(unit * UNIT, MIB)
        elif choice < 0.97:
            os.write(report, _REPORT.pack(b"b", 0, 0, 0))
            image.flush()
            os.write(report, _REPORT.pack(b"f", 0, 0, 0))
        else:
            os.write(report, _REPORT.pack(b"b", 0, 0, 0))
            image.close()
            os.write(report, _REPORT.pack(b"f", 0, 0, 0))
            image = pyvhdx.open(path, "r+")


def one_round(path: Path, content: bytes, seed: int, number: int, counts: Counter[str]) -> tuple[bytes, int]:
    """Let a child write, kill it, and compare; return what the disk holds now, and the last write's number."""
    draw = random.Random(seed)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            write_without_end(path, seed, number, writer)
        finally:
            os._exit(1)
    os.close(writer)
    model = Model(bytearray(content))
    until = None
    turn = 0
    with os.fdopen(reader, "rb") as reports:
        while record := reports.read(_REPORT.size):
            if until is None:
                until = time.monotonic() + draw.uniform(0, 0.3)
            elif time.monotonic() > until:
                os.kill(child, signal.SIGKILL)  # what it said until then is still read
            what, said, unit, count = _REPORT.unpack(record)
            if what == b"w":
                number = said
                model.write(patterns(number, unit, count), unit * UNIT, 0)
            elif what == b"z":
                number = said
                model.write(bytes(count * UNIT), unit * UNIT, 0)
            elif what == b"b":
                turn = model.begin_flush()
            else:
                model.acknowledge(turn, 0)
                counts["flushes"] += 1
            counts["changes"] += what in b"wz"
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"the child ended by itself: {status}"
    examine(MemoryStorage(path.read_bytes()), is_closed=False)
    with pyvhdx.open(path) as image:
        counts["logs"] += image.log_pending
        model.look(image, 0, is_new=True)
    counts["rounds"] += 1
    return bytes(model.content), number


def kill(rounds: int, seed: int, folder: Path) -> Counter[str]:
    """Run *rounds* on a dynamic and on a differencing image in turn; return counts."""
    counts = Counter[str]()
    parent = folder / "parent.vhdx"
    below = patterns(0xFFFF, 0, SIZE // UNIT)
    with pyvhdx.create(parent, SIZE, block_size=MIB, sync=False) as image:
        image.write(below)
    pyvhdx.create(folder / "child.vhdx", parent=parent, sync=False).close()
    pyvhdx.create(folder / "disk.vhdx", SIZE, block_size=MIB, sync=False).close()
    states = {"child.vhdx": (below, 1), "disk.vhdx": (bytes(SIZE), 1)}
    for number in range(rounds):
        name = ("child.vhdx", "disk.vhdx")[number % 2]
        states[name] = one_round(folder / name, states[name][0], seed + number, states[name][1], counts)
    return counts


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parsed = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        counts = kill(parsed.rounds, parsed.seed, Path(folder))
    print(f"seed {parsed.seed}: {dict(counts)}, nothing lost, {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
