"""A file that is not VHDX is named, and the error says what opens it."""

from __future__ import annotations

import gzip
import io
import lzma
import subprocess
import zipfile
from pathlib import Path

import pytest

import pyvhdx


def _gpt() -> bytes:
    return bytes(510) + b"\x55\xaa" + b"EFI PART" + bytes(4096)


def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("disk.raw", bytes(100))
    return buffer.getvalue()


MADE_HERE = {
    "gzip": (gzip.compress(bytes(100)), "gunzip"),
    "xz": (lzma.compress(bytes(100)), "unxz"),
    "zip": (_zip(), "extract"),
    "gpt": (_gpt(), "GPT"),
    "mbr": (bytes(510) + b"\x55\xaa" + bytes(512), "MBR"),
    "fixed vhd": (bytes(2048) + b"conectix" + bytes(504), "qemu-img"),
    "empty": (b"", "empty"),
    "text": (b"hello", "nothing else is recognised"),
}


@pytest.mark.parametrize("name", MADE_HERE)
def test_what_it_is_and_what_opens_it(name: str, tmp_path: Path) -> None:
    content, advice = MADE_HERE[name]
    path = tmp_path / "thing"
    path.write_bytes(content)
    assert not pyvhdx.is_vhdx(path)
    with pytest.raises(pyvhdx.NotVHDXError, match=advice) as caught:
        pyvhdx.open(path)
    assert str(path) in str(caught.value)
    assert caught.value.code == "NOT-VHDX"
    assert path.read_bytes() == content


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize(
    ("format", "advice"),
    [
        ("qcow2", "qcow2"),
        ("vmdk", "vmdk"),
        ("vdi", "vdi"),
        ("vpc", "VHD"),
        ("qed", "qed"),
        ("parallels", "parallels"),
    ],
)
def test_disks_of_other_formats_are_recognised(format: str, advice: str, tmp_path: Path) -> None:
    path = tmp_path / "disk"
    subprocess.run(["qemu-img", "create", "-q", "-f", format, path, "4M"], check=True)
    with pytest.raises(pyvhdx.NotVHDXError, match=advice):
        pyvhdx.open(path)


def test_a_vhd_set_is_known_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "shared.VHDS"
    path.write_bytes(bytes(4096))
    with pytest.raises(pyvhdx.NotVHDXError, match=r"\.avhdx"):
        pyvhdx.open(path)


def test_a_damaged_signature_before_a_right_header_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhdx"
    pyvhdx.create(path, 1 << 20).close()
    with path.open("r+b") as file:
        file.write(b"VHDX")
    with pytest.raises(pyvhdx.CorruptImageError, match="a header follows"):
        pyvhdx.open(path)
