"""Found by an adversary: memory in proportion to a claim, foreign exceptions, what is left behind."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path
from uuid import UUID

import pytest

import pyvhdx
from pyvhdx.cli import main
from tests.corpus.handmade import BAT, METADATA, MIB, Image, guid, sealed
from tests.corpus.handmade_logs import GUID, Entry


def with_a_thousand_items(path: Path) -> Path:
    """A small file whose log makes it long enough for a metadata region of 1 GiB, full of user items."""
    image = Image(8 * MIB, log_guid=GUID)
    items = [(guid(2000 + n), 3, b"") for n in range(1000)]
    region_at, length = 8 * MIB, 1 << 30
    table = bytearray(image.metadata()[:65536])
    count = struct.unpack_from("<H", table, 10)[0]
    struct.pack_into("<H", table, 10, count + len(items))
    for number, (item, flags, _) in enumerate(items):
        at = 32 * (1 + count + number)
        table[at : at + 32] = item.bytes_le + struct.pack("<IIII", MIB * (number + 1), MIB, flags, 0)
    image.log = Entry(7, 0, [], last=region_at + length).build()
    image.write(path)
    bat = (BAT.bytes_le, 3 * MIB, MIB, 1)
    entries = [bat, (METADATA.bytes_le, region_at, length, 1)]
    regions = b"".join(g + struct.pack("<QII", at, size, required) for g, at, size, required in entries)
    regions_table = sealed((b"regi" + bytes(4) + struct.pack("<II", 2, 0) + regions).ljust(65536, b"\0"))
    with path.open("r+b") as file:
        for at in (0x30000, 0x40000):
            file.seek(at)
            file.write(regions_table)
        file.seek(region_at)
        file.write(bytes(table))
        file.write(image.metadata()[65536:])
    return path


def peak_of(code: str, *arguments: object) -> int:
    """Run Python and return the peak of its memory in bytes."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            # Not getrusage: that counts the memory of the process that forked this one, too.
            f"{code}\nprint(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])",
            *map(str, arguments),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout.splitlines()[-1]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="measures as Linux does")
def test_a_thousand_items_of_nothing_fill_no_memory(tmp_path: Path) -> None:
    path = with_a_thousand_items(tmp_path / "disk.vhdx")
    assert path.stat().st_size < 16 * MIB
    dump = (
        "import sys; from pyvhdx.cli import main; main(['dump', 'metadata', '--output', 'json', sys.argv[1]])"
    )
    assert peak_of(dump, path) < 200 * MIB
    create = """
import sys, pyvhdx
try:
    pyvhdx.create(sys.argv[2], parent=sys.argv[1], lock=False)
except pyvhdx.RequestError as error:
    assert "40 MiB" in str(error)
else:
    raise SystemExit("made")
"""
    assert peak_of(create, path, tmp_path / "child.vhdx") < 200 * MIB
    assert not (tmp_path / "child.vhdx").exists()


def test_a_child_that_could_not_be_opened_is_not_left_behind(tmp_path: Path) -> None:
    """A parent with as many system items as there may be, all of which go along."""
    items = tuple((UUID(int=n + 1), 2, b"x") for n in range(1018))
    Image(8 * MIB, items=items).write(tmp_path / "base.vhdx")
    (tmp_path / "old.vhdx").write_bytes(b"old")
    for name in ("new.vhdx", "old.vhdx"):
        with pytest.raises(pyvhdx.CorruptImageError, match="1023"):
            pyvhdx.create(tmp_path / name, parent=tmp_path / "base.vhdx", exist_ok=name == "old.vhdx")
    assert not (tmp_path / "new.vhdx").exists()
    assert (tmp_path / "old.vhdx").read_bytes() == b"old"


def test_a_long_row_of_links_raises_nothing_foreign(tmp_path: Path) -> None:
    parent = Image(8 * MIB).write(tmp_path / "l1500")
    for number in range(1500):
        (tmp_path / f"l{number}").symlink_to(f"l{number + 1}")
    Image(8 * MIB, kind="differencing", tag=2, parent=parent, relative_path=".\\l0").write(
        tmp_path / "child.vhdx"
    )
    # Where Python follows links in depth it gives up, and later versions do not.
    with contextlib.suppress(pyvhdx.ParentNotFoundError):
        pyvhdx.open(tmp_path / "child.vhdx").close()


def test_an_image_comes_back_with_the_parent_that_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pyvhdx.create("base.vhdx", 8 * MIB).close()
    (tmp_path / "elsewhere").mkdir()
    pyvhdx.create("child.vhdx", parent="base.vhdx").close()
    os.rename("base.vhdx", "other.vhdx")
    with pyvhdx.open("child.vhdx", parent="other.vhdx") as image:
        data = pickle.dumps(image)
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pickle.loads(data) as image:
        assert image.parent is not None


def test_names_may_come_as_bytes_from_the_system(tmp_path: Path) -> None:
    pyvhdx.create(tmp_path / "disk.vhdx", 8 * MIB).close()
    (tmp_path / "disk.raw").write_bytes(b"x")
    with os.scandir(os.fsencode(tmp_path)) as entries:
        for entry in entries:
            if entry.name == b"disk.vhdx":
                pyvhdx.open(entry).close()
            else:
                with pytest.raises(pyvhdx.NotVHDXError):
                    pyvhdx.open(entry)


@pytest.mark.parametrize("text", ["9" * 400 + ".5T", "9" * 5000])
def test_a_size_without_end_is_wrong_use(text: str, tmp_path: Path) -> None:
    pyvhdx.create(tmp_path / "disk.vhdx", 8 * MIB).close()
    with pytest.raises(SystemExit) as caught:
        main(["map", "-s", text, str(tmp_path / "disk.vhdx")])
    assert caught.value.code == 2


def test_a_disk_too_large_for_json_is_wrong_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pyvhdx.create(tmp_path / "disk.vhdx", 64 << 40).close()
    assert main(["read", "--output", "json", str(tmp_path / "disk.vhdx")]) == 2
    assert "1 GiB" in capsys.readouterr().err
    assert main(["read", "--output", "json", str(tmp_path / "disk.vhdx"), "0", "4"]) == 0
    assert json.loads(capsys.readouterr().out)["data"] == "AAAAAA=="
