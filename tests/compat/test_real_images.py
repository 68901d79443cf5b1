"""Images that Windows and QEMU wrote read as QEMU reads them, and stay as they are."""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import pyvhdx

pytestmark = pytest.mark.images

NAMES = ["iotest-dynamic-1G.vhdx", "iotest-dirtylog-10G-4M.vhdx", "discutils-swap.vhdx"]


@pytest.fixture(params=NAMES)
def real(request: pytest.FixtureRequest, real_images: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    path, said = real_images[request.param]
    return path, said


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return (
            hashlib.file_digest(file, "sha256").hexdigest()
            if hasattr(hashlib, "file_digest")
            else hashlib.sha256(file.read()).hexdigest()
        )


def test_every_image_of_the_folder_is_looked_at(real_images: dict[str, Any]) -> None:
    assert sorted(real_images) == sorted(NAMES)


@pytest.mark.slow
def test_the_sequential_read_has_the_manifests_hash(real: tuple[Path, dict[str, Any]]) -> None:
    path, said = real
    before = file_hash(path)
    with pyvhdx.open(path) as image:
        assert image.size == said["virtual_size"]
        digest, buffer = hashlib.sha256(), memoryview(bytearray(4 << 20))
        while count := image.readinto(buffer):
            digest.update(buffer[:count])
        assert digest.hexdigest() == said["sha256_of_virtual_disk"]
        assert sum(extent.length for extent in image.extents()) == image.size
    assert file_hash(path) == before


@pytest.mark.slow
@pytest.mark.peer("qemu-img")
def test_random_reads_are_what_qemu_reads(real: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """2,000 of random sizes, of a replayed copy where a log is pending; half of them in or near data."""
    path, _ = real
    before = file_hash(path)
    copy, raw = tmp_path / "copy.vhdx", tmp_path / "disk.raw"
    shutil.copy(path, copy)
    with pyvhdx.open(path) as image:
        if image.log_pending:
            subprocess.run(["qemu-img", "check", "-q", "-r", "all", copy], check=True, capture_output=True)
        subprocess.run(["qemu-img", "convert", "-f", "vhdx", "-O", "raw", copy, raw], check=True)
        draw = random.Random(path.name)
        data = [extent for extent in image.extents() if extent.kind == "data"]
        different = 0
        with raw.open("rb") as file:
            for number in range(2000):
                offset = draw.randrange(image.size)
                if number % 2:
                    extent = draw.choice(data)
                    offset = max(0, extent.offset + draw.choice((-700, 0, draw.randrange(extent.length))))
                size = draw.choice((1, 512, 4096, draw.randrange(1 << 20)))
                file.seek(offset)
                expected = file.read(size)
                buffer = bytearray(size)
                count = image.preadinto(buffer, offset)
                assert (count, bytes(buffer[:count])) == (len(expected), expected)
                assert image.pread(size, offset) == expected
                different += any(expected)
        assert different > 100
    assert file_hash(path) == before


def test_what_they_are(real_images: dict[str, Any]) -> None:
    with pyvhdx.open(real_images["iotest-dynamic-1G.vhdx"][0]) as image:
        assert (image.kind, image.block_size, image.creator) == (
            "dynamic",
            32 << 20,
            "Microsoft Windows 6.2.9200.16384",
        )
        assert (image.logical_sector_size, image.physical_sector_size) == (512, 4096)
        assert not image.warnings
    with pyvhdx.open(real_images["iotest-dirtylog-10G-4M.vhdx"][0]) as image:
        assert image.log_pending
        assert [finding.code for finding in image.warnings] == ["LOG-PENDING"]
    with pytest.raises(pyvhdx.LogPendingError):
        pyvhdx.open(real_images["iotest-dirtylog-10G-4M.vhdx"][0], log="refuse")
