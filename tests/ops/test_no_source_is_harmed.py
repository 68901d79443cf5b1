"""Whatever the target is called, no file that is read, and no file of a chain, is written."""

from __future__ import annotations

import io
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pyvhdx
from pyvhdx.ops.convert import convert

MIB = 1 << 20


class Chain:
    """base.vhdx, its child middle.vhdx, the child's child top.vhdx."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "disk.raw").write_bytes(random.Random(1).randbytes(3 * MIB))
        pyvhdx.convert(folder / "disk.raw", folder / "base.vhdx")
        pyvhdx.create(folder / "middle.vhdx", parent=folder / "base.vhdx").close()
        pyvhdx.create(folder / "top.vhdx", parent=folder / "middle.vhdx").close()

    def __getattr__(self, name: str) -> Path:
        return self.folder / f"{name}.vhdx"

    def contents(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(self.folder.iterdir())}


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Chain]:
    """A chain that is byte for byte the same afterwards, with nothing new beside it."""
    chain = Chain(tmp_path)
    before = chain.contents()
    yield chain
    assert {name: len(data) for name, data in chain.contents().items()} == {
        name: len(data) for name, data in before.items()
    }
    assert chain.contents() == before


class TestAChildIsNotMadeInItsAncestorsPlace:
    @pytest.mark.parametrize("lock", [True, False])
    @pytest.mark.parametrize("target", ["base", "middle", "top"])
    def test_by_its_name(self, target: str, lock: bool, chain: Chain) -> None:
        with pytest.raises(pyvhdx.RequestError):
            pyvhdx.create(getattr(chain, target), parent=chain.top, exist_ok=True, lock=lock)

    @pytest.mark.parametrize("target", ["base", "top"])
    def test_beside_an_open_parent(self, target: str, chain: Chain) -> None:
        with (
            pyvhdx.open(chain.top, lock=False) as parent,
            pytest.raises(pyvhdx.RequestError),
        ):
            pyvhdx.create(getattr(chain, target), parent=parent, exist_ok=True, lock=False)

    @pytest.mark.parametrize("link", [os.symlink, os.link])
    def test_through_a_link(self, link: Callable[[Path, Path], None], chain: Chain, tmp_path: Path) -> None:
        alias = tmp_path / "alias.vhdx"
        link(chain.base, alias)
        try:
            with pytest.raises(pyvhdx.RequestError):
                pyvhdx.create(alias, parent=chain.top, exist_ok=True)
            assert alias.samefile(chain.base)
        finally:
            alias.unlink()

    def test_though_any_other_file_is_replaced(self, chain: Chain, tmp_path: Path) -> None:
        other = tmp_path / "other.vhdx"
        pyvhdx.create(other, 8 * MIB).close()
        with pyvhdx.create(other, parent=chain.top, exist_ok=True) as child:
            assert len(child.chain) == 4
        other.unlink()


class TestTheSourceIsNotTheTarget:
    @pytest.mark.parametrize("format", ["raw", "vhdx"])
    @pytest.mark.parametrize("member", ["base", "middle", "top"])
    def test_as_a_file_object_of_a_member(self, member: str, format: str, chain: Chain) -> None:
        for buffering in (0, -1):
            with (
                open(getattr(chain, member), "r+b", buffering=buffering) as file,
                pytest.raises(pyvhdx.RequestError),
            ):
                pyvhdx.convert(chain.top, file, format=format, overwrite=True)

    def test_as_a_file_object_of_an_open_image(self, chain: Chain) -> None:
        with pyvhdx.open(chain.top) as image, open(chain.base, "r+b") as file:
            with pytest.raises(pyvhdx.RequestError):
                pyvhdx.convert(image, file, format="raw", overwrite=True)
            assert image.pread(MIB, 0) == (chain.folder / "disk.raw").read_bytes()[:MIB]

    @pytest.mark.parametrize("link", [os.symlink, os.link])
    def test_through_a_link(self, link: Callable[[Path, Path], None], chain: Chain, tmp_path: Path) -> None:
        alias = tmp_path / "alias.raw"
        link(chain.base, alias)
        try:
            for target, how in ((alias, {}), (alias, {"format": "vhdx"})):
                with pytest.raises(pyvhdx.RequestError):
                    convert(chain.top, target, overwrite=True, **how)  # type: ignore[arg-type]  # strings all
        finally:
            alias.unlink()

    @pytest.mark.parametrize("format", ["raw", "vhdx"])
    def test_as_one_object_in_memory(self, format: str, chain: Chain) -> None:
        for content in (chain.base.read_bytes(), (chain.folder / "disk.raw").read_bytes()):
            memory = io.BytesIO(content)
            with pytest.raises(pyvhdx.RequestError):
                pyvhdx.convert(memory, memory, format=format, overwrite=True)
            assert memory.getvalue() == content

    def test_by_a_raw_disks_own_name(self, chain: Chain) -> None:
        raw = chain.folder / "disk.raw"
        for target in (raw, str(raw), chain.folder / "." / "disk.raw"):
            with pytest.raises(pyvhdx.RequestError):
                pyvhdx.convert(raw, target, format="vhdx", overwrite=True)


class TestAStreamThatStops:
    @pytest.mark.parametrize("suffix", [".vhdx", ".raw"])
    @pytest.mark.parametrize("after", [0, 1, 9])
    def test_with_an_error_leaves_nothing(self, after: int, suffix: str, tmp_path: Path) -> None:
        class Broken(io.RawIOBase):
            calls = 0

            def readable(self) -> bool:
                return True

            def read(self, size: int = -1, /) -> bytes:
                if self.calls == after:
                    raise OSError(5, "Input/output error")
                self.calls += 1
                return b"x" * min(size, 300_000)

        with pytest.raises(OSError, match="Input/output"):
            pyvhdx.convert(Broken(), tmp_path / f"disk{suffix}")
        assert os.listdir(tmp_path) == []


def test_a_target_in_a_missing_folder_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "disk.raw").write_bytes(bytes(512))
    calls: tuple[Callable[[Path], Any], ...] = (
        lambda path: pyvhdx.create(path, MIB),
        lambda path: pyvhdx.convert(tmp_path / "disk.raw", path),
    )
    for call in calls:
        with pytest.raises(FileNotFoundError):
            call(tmp_path / "none" / "disk.vhdx")
    assert os.listdir(tmp_path) == ["disk.raw"]
