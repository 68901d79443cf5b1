"""Targets and streams that are easily taken for something else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import pyvhdx
from tests.ops.test_no_source_is_harmed import MIB, Chain


class TestAnAncestorAsAFileObject:
    @pytest.mark.filterwarnings("ignore:the folder of the new child")
    @pytest.mark.parametrize("target", ["base", "top"])
    def test_as_a_file_object(self, target: str, tmp_path: Path) -> None:
        chain = Chain(tmp_path)
        before = chain.contents()
        with open(getattr(chain, target), "r+b") as file, pytest.raises(pyvhdx.RequestError):
            pyvhdx.create(file, parent=chain.top, exist_ok=True)
        assert chain.contents() == before


def test_for_want_of_bytes_is_no_short_disk(tmp_path: Path) -> None:
    """A pipe set not to block says None where nothing has come yet; that is not its end."""
    source, sink = os.pipe()
    os.set_blocking(source, False)
    os.write(sink, b"x" * 65536)
    with open(source, "rb", buffering=0) as file, pytest.raises(OSError, match="block"):
        pyvhdx.convert(file, tmp_path / "disk.vhdx")
    os.close(sink)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["é" * 120, "猫" * 80, "x" * 250], ids=["two bytes", "three", "one"])
def test_a_name_as_long_as_a_file_system_takes_is_taken(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.vhdx"
    assert len(os.fsencode(path.name)) <= 255
    pyvhdx.create(path, MIB).close()
    pyvhdx.create(path, 2 * MIB, exist_ok=True).close()
    with pyvhdx.open(path) as image:
        assert image.size == 2 * MIB
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("name", ["block_size", "physical_sector_size", "logical_sector_size"])
def test_a_size_of_zero_is_not_taken_for_the_default(name: str, tmp_path: Path) -> None:
    pyvhdx.create(tmp_path / "base.vhdx", MIB).close()
    for make in (
        lambda **how: pyvhdx.create(tmp_path / "new.vhdx", parent=tmp_path / "base.vhdx", **how),
        lambda **how: pyvhdx.convert(tmp_path / "base.vhdx", tmp_path / "new.vhdx", **how),
    ):
        with pytest.raises(pyvhdx.RequestError):
            make(**{name: 0})
    assert os.listdir(tmp_path) == ["base.vhdx"]
