"""Whatever a file holds, each sub-command ends with a status of its own and one sentence."""

from __future__ import annotations

import io
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvhdx.cli import main
from tests.corpus.handmade import (
    BAT_AT,
    FULL,
    LOG_AT,
    METADATA_AT,
    MIB,
    PARTIAL,
    ZERO,
    Block,
    Image,
    guid,
)
from tests.corpus.handmade_logs import GUID, Entry, follow, page, ring

STRUCTURES = ("header", "regions", "metadata", "log", "bat", "locator")


def commands(path: Path) -> Iterator[list[str]]:
    """Yield every way to look at a file, each with its answer for people and for programs."""
    for output in ("human", "json"):
        shown = ["--output", output]
        yield ["info", *shown, str(path)]
        yield ["info", "--chain", "--log", "refuse", *shown, str(path)]
        yield ["map", *shown, str(path)]
        yield ["info", "--no-parent", *shown, str(path)]
        for structure in STRUCTURES:
            yield ["dump", structure, *shown, str(path)]
    yield ["read", "--output", "json", "--no-verify-parent", str(path), "0", "4096"]
    yield ["read", "-o", str(path.with_name("part.raw")), str(path), "0", "1M"]
    yield ["convert", "--force", "-f", "vhdx", str(path), str(path.with_name("new.raw"))]
    yield ["convert", "--force", str(path), str(path.with_name("new.vhdx"))]
    yield ["create", "--force", "-q", "-b", str(path), str(path.with_name("child.vhdx"))]


def look(path: Path, capsys: pytest.CaptureFixture[str]) -> list[int]:
    """Run everything; return the statuses."""
    before = path.read_bytes()
    others = {"new.raw", "new.vhdx", "part.raw", "child.vhdx"}
    statuses = []
    for command in commands(path):
        status = main(command)  # what escapes here is a traceback for its user
        said = capsys.readouterr()
        assert status in (0, 1, 2, 4, 5, 6), command
        if status:
            assert said.err.startswith("pyvhdx: error: "), command
            errors = [line for line in said.err.splitlines() if not line.startswith("pyvhdx: warning: ")]
            assert len(errors) == 1, command
            assert len(errors[0]) < 3000
        elif "json" in command:
            json.loads(said.out)
        made = others & set(os.listdir(path.parent))
        assert not made or status == 0, command
        assert not [name for name in os.listdir(path.parent) if name.endswith(".tmp")]
        for name in made:
            path.with_name(name).unlink()
        statuses.append(status)
    assert path.read_bytes() == before
    return statuses


def subject(kind: str = "differencing", *, log: bool = True) -> Image:
    """A small image that has one of everything."""
    blocks = {0: Block(FULL), 2: Block(ZERO)}
    if kind == "differencing":
        blocks[1] = Block(PARTIAL, frozenset({0, 5, 9}))
    image = Image(4 * MIB, kind=kind, blocks=blocks, items=((guid(9), 3, b"mine"),))
    if kind == "differencing":
        image.parent = Image(4 * MIB, tag=2, blocks={1: Block(FULL), 3: Block(FULL)})
    if log:
        entries = [Entry(5, 0, [(BAT_AT + 8192, page(0)), (BAT_AT + 12288, 4096)]), Entry(6, 0)]
        image.log, image.log_guid = ring(MIB, follow(entries)), GUID
    return image


def written(image: Image, folder: Path) -> Path:
    if image.parent is not None:
        image.parent.write(folder / "parent.vhdx")
    image.write(folder / "disk.vhdx")
    return folder / "disk.vhdx"


def test_an_undamaged_image_is_no_error(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = written(subject(log=False), tmp_path)
    assert set(look(path, capsys)) == {0}
    plain = written(subject("dynamic", log=False), tmp_path)
    statuses = dict(zip((" ".join(c[:2]) for c in commands(plain)), look(plain, capsys), strict=False))
    assert statuses.pop("dump locator") == 2
    assert set(statuses.values()) == {0}


@pytest.mark.parametrize("kind", ["dynamic", "differencing"])
def test_a_file_cut_anywhere(kind: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = written(subject(kind), tmp_path)
    data = path.read_bytes()
    seen = set()
    edges = (0, 1, 8, 0x10000, 0x20000, 0x30000, 0x40000, MIB, LOG_AT + 4096, METADATA_AT, BAT_AT, len(data))
    for edge in edges:
        for length in {max(0, edge - 1), max(0, edge - 4096), edge}:
            path.write_bytes(data[:length])
            seen |= set(look(path, capsys))
    assert seen >= {0, 1}


PLACES = {
    "identifier": (0, 520),
    "first header": (0x10000, 80),
    "second header": (0x20000, 80),
    "region table": (0x30000, 80),
    "its copy": (0x40000, 80),
    "log": (LOG_AT, 8192),
    "metadata table": (METADATA_AT, 32 + 32 * 7),
    "metadata items": (METADATA_AT + 65536, 400),
    "BAT": (BAT_AT, 64),
}


@pytest.mark.slow
@pytest.mark.parametrize("where", PLACES)
def test_bytes_spoilt_in(where: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """What has no checksum can say anything; the rest is noticed, or the other copy counts."""
    path = written(subject(), tmp_path)
    data = path.read_bytes()
    start, length = PLACES[where]
    draw = random.Random(where)
    for number in range(15):
        spoilt = bytearray(data)
        for _ in range(draw.choice((1, 1, 1, 3, 20))):
            spoilt[start + draw.randrange(length)] = draw.choice((0, 0xFF, 0x7F, draw.randrange(256)))
        if number % 2:  # a whole field of ones or zeros
            at = start + draw.randrange(0, length - 8, 4)
            spoilt[at : at + 8] = draw.choice((bytes(8), b"\xff" * 8, b"\xff" * 4 + bytes(4)))
        path.write_bytes(spoilt)
        look(path, capsys)


def test_noise_and_emptiness(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "disk.vhdx"
    noise = random.Random(1).randbytes(5 * MIB)
    for content in (b"", b"vhdxfile", b"vhdxfile" + noise, b"vhdxfile" + bytes(5 * MIB), noise[: 3 * MIB]):
        path.write_bytes(content)
        statuses = look(path, capsys)
        # Only one of all ways succeeds: what is no VHDX is a raw disk to convert, but for its header.
        assert set(statuses) <= {0, 1, 2}
        assert statuses.count(0) <= 3


def test_a_list_in_json_that_cannot_be_finished_fails(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The bad entry comes after good ones: the status tells that the list has no end."""
    image = Image(4 * MIB, blocks={0: Block(FULL), 1: Block(FULL)}, bat={3: 5000 * MIB | 6})
    path = tmp_path / "disk.vhdx"
    image.write(path)
    assert main(["map", "--output", "json", str(path)]) == 1
    said = capsys.readouterr()
    assert "BAT" in said.err
    with pytest.raises(json.JSONDecodeError):
        json.loads(said.out)
    assert main(["dump", "bat", "--output", "json", str(path)]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 3


def test_a_name_that_is_no_text_is_named_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict")
    monkeypatch.setattr("sys.stderr", stream)
    assert main(["info", os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.vhdx")]) == 1
    stream.flush()
    assert b"No such file" in stream.buffer.getvalue()
