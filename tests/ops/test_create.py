"""New images: what they are, and that a half-made one never looks valid."""

from __future__ import annotations

import io
import ntpath
import os
import posixpath
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

import pyvhdx
from pyvhdx._core.parent_paths import paths_to
from pyvhdx.storage import open_local
from pyvhdx.storage.locks import READER
from tests.corpus.handmade import Block, Image, guid

MIB = 1 << 20


class TestParameters:
    def test_defaults(self, tmp_path: Path) -> None:
        with pyvhdx.create(tmp_path / "disk.vhdx", 10 * MIB) as image:
            assert (image.kind, image.size, image.block_size) == ("dynamic", 10 * MIB, 2 * MIB)
            assert (image.logical_sector_size, image.physical_sector_size) == (512, 4096)
            assert image.creator == f"pyvhdx {pyvhdx.__version__}"
            assert image.mode == "r+"
            assert (
                image.disk_id.version == image.file_write_guid.version == image.data_write_guid.version == 4
            )
            assert image.info().log_length == MIB
            assert not image.warnings

    @pytest.mark.parametrize("kind", ["dynamic", "fixed"])
    @pytest.mark.parametrize("block_mib", [1, 256])
    @pytest.mark.parametrize("sectors", [(512, 512), (512, 4096), (4096, 512), (4096, 4096)])
    def test_every_combination(
        self, kind: str, block_mib: int, sectors: tuple[int, int], tmp_path: Path
    ) -> None:
        logical, physical = sectors
        disk_id = uuid.uuid4()
        with pyvhdx.create(
            tmp_path / "disk.vhdx",
            3 * MIB + logical,
            kind=kind,
            block_size=block_mib * MIB,
            logical_sector_size=logical,
            physical_sector_size=physical,
            log_size=3 * MIB,
            disk_id=disk_id,
            creator="someone",
        ) as image:
            assert (image.kind, image.block_size, image.logical_sector_size) == (
                kind,
                block_mib * MIB,
                logical,
            )
            assert (image.physical_sector_size, image.disk_id, image.creator) == (
                physical,
                disk_id,
                "someone",
            )
            assert image.info().log_length == 3 * MIB
            assert image.read() == bytes(3 * MIB + logical)
            [extent] = image.extents()
            assert extent.kind == ("data" if kind == "fixed" else "absent")

    @pytest.mark.parametrize(
        "how",
        [
            {"size": None},
            {"size": 0},
            {"size": -512},
            {"size": 100},
            {"size": 512, "logical_sector_size": 4096},
            {"size": (64 << 40) + 512},
            {"block_size": 3 * MIB},
            {"block_size": MIB // 2},
            {"block_size": 512 * MIB},
            {"block_size": 0},
            {"block_size": -MIB},
            {"logical_sector_size": 1024},
            {"physical_sector_size": 1024},
            {"log_size": 0},
            {"log_size": MIB + 512},
            {"log_size": 2 << 30},
            {"kind": "differencing"},
            {"kind": "thin"},
            {"creator": "x" * 257},
            {"creator": None},
            {"creator": "me\0"},
            {"disk_id": uuid.UUID(int=0)},
            {"size": 1e9},
            {"size": "10G"},
            {"block_size": 2.0**20},
            {"disk_id": "foo"},
        ],
    )
    def test_that_cannot_be(self, how: dict[str, Any], tmp_path: Path) -> None:
        size = how.pop("size", 8 * MIB)
        with pytest.raises(pyvhdx.RequestError):
            pyvhdx.create(tmp_path / "disk.vhdx", size, **how)
        assert os.listdir(tmp_path) == []

    def test_a_seed_makes_equal_files_of_equal_calls(self, tmp_path: Path) -> None:
        def made(name: str, **how: Any) -> bytes:
            pyvhdx.create(tmp_path / name, 8 * MIB, **how).close()
            return (tmp_path / name).read_bytes()

        assert made("1", seed="s") == made("2", seed=b"s")
        assert made("3", seed="s", kind="fixed")[:MIB] != made("4", seed="s")[:MIB]
        assert made("5") != made("6")
        assert made("7", seed="") != made("8")

    def test_a_child_made_with_its_parents_seed_is_another_file(self, tmp_path: Path) -> None:
        pyvhdx.create(tmp_path / "base.vhdx", 8 * MIB, seed="s").close()
        with pyvhdx.create(tmp_path / "child.vhdx", parent=tmp_path / "base.vhdx", seed="s") as child:
            assert child.parent is not None
            assert child.data_write_guid != child.parent.data_write_guid


class TestChildren:
    def test_take_after_their_parent(self, tmp_path: Path) -> None:
        how = {"block_size": 8 * MIB, "logical_sector_size": 4096, "physical_sector_size": 512}
        pyvhdx.create(tmp_path / "base.vhdx", 20 * MIB, **how).close()  # type: ignore[arg-type]  # numbers all
        with pyvhdx.open(tmp_path / "base.vhdx") as base:
            before = (tmp_path / "base.vhdx").read_bytes()
            with pyvhdx.create(tmp_path / "child.vhdx", parent=base) as child:
                assert child.kind == "differencing"
                assert child.parent is base
                for name in ("size", "block_size", "logical_sector_size", "physical_sector_size", "disk_id"):
                    assert getattr(child, name) == getattr(base, name)
                locator = child.info().parent_locator or {}
                assert locator["parent_linkage"] == f"{{{base.data_write_guid}}}"
                assert locator["parent_linkage2"] == "{00000000-0000-0000-0000-000000000000}"
                assert locator["relative_path"] == ".\\base.vhdx"
            assert not base.closed
        assert (tmp_path / "base.vhdx").read_bytes() == before
        with pyvhdx.create(
            tmp_path / "large.vhdx", 40 * MIB, parent=tmp_path / "base.vhdx", block_size=MIB
        ) as child:
            assert (child.size, child.block_size) == (40 * MIB, MIB)
            assert child.chain[1].closed is False
        with pytest.raises(pyvhdx.RequestError, match="4096"):
            pyvhdx.create(tmp_path / "x.vhdx", parent=tmp_path / "base.vhdx", logical_sector_size=512)
        with pytest.raises(pyvhdx.RequestError, match="fixed"):
            pyvhdx.create(tmp_path / "x.vhdx", parent=tmp_path / "base.vhdx", kind="fixed")

    def test_get_the_items_of_the_virtual_disk_and_no_others(self, tmp_path: Path) -> None:
        """IsVirtualDisk: forking copies what has it, and nothing else. (MS-VHDX 2.6.1.2)"""
        items = (
            (guid(1), 3, b"user, of the disk"),
            (guid(2), 1, b"user, of the file"),
            (guid(3), 2, b"system, of the disk"),
            (guid(4), 0, b"system, of the file"),
            (guid(5), 3, b""),
        )
        Image(8 * MIB, items=items).write(tmp_path / "base.vhdx")
        with pyvhdx.create(tmp_path / "child.vhdx", parent=tmp_path / "base.vhdx") as child:
            assert dict(child.user_metadata) == {guid(1): b"user, of the disk", guid(5): b""}
            assert child.metadata[guid(3)] == b"system, of the disk"
            assert guid(4) not in child.metadata
            assert child.disk_id == guid(77)

    def test_of_a_dirty_parent_remember_the_header_and_replay(self, tmp_path: Path) -> None:
        from tests.corpus.handmade_logs import GUID, Entry, ring  # noqa: PLC0415

        log = ring(MIB, [(0, Entry(1, 0))])
        Image(8 * MIB, blocks={0: Block(6)}, log=log, log_guid=GUID).write(tmp_path / "base.vhdx")
        with (
            pytest.warns(UserWarning, match="QEMU"),
            pyvhdx.create(tmp_path / "child.vhdx", parent=tmp_path / "base.vhdx") as child,
        ):
            assert child.parent is not None
            assert child.parent.log_pending
            assert any(child.pread(16, 0))

    def test_of_a_missing_or_wrong_parent_are_not_made(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            pyvhdx.create(tmp_path / "child.vhdx", parent=tmp_path / "base.vhdx")
        (tmp_path / "base.vhdx").write_bytes(b"x" * 100)
        with pytest.raises(pyvhdx.NotVHDXError):
            pyvhdx.create(tmp_path / "child.vhdx", parent=tmp_path / "base.vhdx")
        assert os.listdir(tmp_path) == ["base.vhdx"]

    def test_of_a_parent_that_is_not_at_its_path_are_not_made(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Another file of that name would be named as the parent."""
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()
        monkeypatch.chdir(tmp_path / "a")
        pyvhdx.create("base.vhdx", 8 * MIB).close()
        with pyvhdx.open("base.vhdx") as base:
            monkeypatch.chdir(tmp_path / "b")
            for _ in range(2):
                with pytest.raises(pyvhdx.RequestError, match="no path"):
                    pyvhdx.create("child.vhdx", parent=base)
                pyvhdx.create("base.vhdx", 8 * MIB, exist_ok=True).close()

    def test_never_replace_a_file_of_their_own_chain(self, tmp_path: Path) -> None:
        pyvhdx.create(tmp_path / "base.vhdx", 8 * MIB).close()
        pyvhdx.create(tmp_path / "child.vhdx", parent=tmp_path / "base.vhdx").close()
        (tmp_path / "link.vhdx").symlink_to(tmp_path / "base.vhdx")
        before = (tmp_path / "base.vhdx").read_bytes()
        for target in ("base.vhdx", "link.vhdx", "child.vhdx"):
            for lock in (True, False):
                with pytest.raises(pyvhdx.RequestError, match="its own chain"):
                    pyvhdx.create(tmp_path / target, parent=tmp_path / "child.vhdx", exist_ok=True, lock=lock)
        assert (tmp_path / "base.vhdx").read_bytes() == before

    def test_in_a_file_object_name_their_parent_as_from_its_folder(self, tmp_path: Path) -> None:
        pyvhdx.create(tmp_path / "base.vhdx", 8 * MIB).close()
        memory = io.BytesIO()
        with (
            pytest.warns(UserWarning, match="folder"),
            pyvhdx.create(memory, parent=tmp_path / "base.vhdx") as child,
        ):
            assert child.parent is not None
        (tmp_path / "child.vhdx").write_bytes(memory.getvalue())
        with pyvhdx.open(tmp_path / "child.vhdx") as child:
            assert child.parent is not None


class TestPathsOnWindows:
    @pytest.mark.parametrize(
        ("parent", "folder", "absolute", "relative"),
        [
            ("C:\\vm\\base.vhdx", "C:\\vm", "\\\\?\\C:\\vm\\base.vhdx", ".\\base.vhdx"),
            ("C:\\vm\\base.vhdx", "C:\\vm\\a\\b", "\\\\?\\C:\\vm\\base.vhdx", "..\\..\\base.vhdx"),
            ("C:\\vm\\a\\base.vhdx", "C:\\vm", "\\\\?\\C:\\vm\\a\\base.vhdx", ".\\a\\base.vhdx"),
            ("\\\\?\\C:\\vm\\base.vhdx", "\\\\?\\C:\\vm", "\\\\?\\C:\\vm\\base.vhdx", ".\\base.vhdx"),
            ("D:\\base.vhdx", "C:\\vm", "\\\\?\\D:\\base.vhdx", None),
            ("\\\\host\\share\\base.vhdx", "C:\\vm", "\\\\?\\UNC\\host\\share\\base.vhdx", None),
            (
                "\\\\host\\share\\base.vhdx",
                "\\\\host\\share\\a",
                "\\\\?\\UNC\\host\\share\\base.vhdx",
                "..\\base.vhdx",
            ),
        ],
    )
    def test_are_written_as_the_format_wants_them(
        self, parent: str, folder: str, absolute: str, relative: str | None
    ) -> None:
        paths = paths_to(parent, folder, ntpath)
        assert paths.get("absolute_win32_path") == absolute
        assert paths.get("relative_path") == relative

    def test_are_not_made_up_elsewhere(self) -> None:
        assert paths_to("/vm/base.vhdx", "/vm/a", posixpath) == {"relative_path": "..\\base.vhdx"}
        assert paths_to("/vm/..base.vhdx", "/vm", posixpath) == {"relative_path": ".\\..base.vhdx"}


class TestTargets:
    def test_an_existing_file_is_refused_or_replaced(self, tmp_path: Path) -> None:
        path = tmp_path / "disk.vhdx"
        path.write_bytes(b"precious")
        with pytest.raises(FileExistsError):
            pyvhdx.create(path, 8 * MIB)
        assert path.read_bytes() == b"precious"
        pyvhdx.create(path, 8 * MIB, exist_ok=True).close()
        assert pyvhdx.is_vhdx(path)

    def test_a_file_in_use_is_not_replaced(self, tmp_path: Path) -> None:
        path = tmp_path / "disk.vhdx"
        pyvhdx.create(path, 8 * MIB).close()
        held = open_local(path)
        held.lock(READER)
        with pytest.raises(pyvhdx.LockedError):
            pyvhdx.create(path, 16 * MIB, exist_ok=True)
        with pyvhdx.open(path) as image:
            assert image.size == 8 * MIB
        pyvhdx.create(path, 16 * MIB, exist_ok=True, lock=False).close()
        held.close()

    def test_a_file_object_must_be_empty(self) -> None:
        memory = io.BytesIO(b"precious")
        with pytest.raises(FileExistsError):
            pyvhdx.create(memory, 8 * MIB)
        assert memory.getvalue() == b"precious"
        with pyvhdx.create(memory, 8 * MIB, exist_ok=True) as image:
            assert image.read() == bytes(8 * MIB)

    def test_a_half_made_image_never_looks_valid(self) -> None:
        """A file object that fails at its n-th write, for every n."""

        class Failing(io.BytesIO):
            left = 0

            def write(self, data: Any, /) -> int:
                self.left -= 1
                if self.left < 0:
                    raise OSError(28, "No space left on device")
                return super().write(data)

        for kind in ("dynamic", "fixed"):
            for number in range(100):
                file = Failing()
                file.left = number
                try:
                    pyvhdx.create(file, 8 * MIB, kind=kind).close()
                except OSError:
                    with pytest.raises((pyvhdx.NotVHDXError, pyvhdx.CorruptImageError)):
                        pyvhdx.open(io.BytesIO(file.getvalue()))
                else:
                    break
            assert 8 < number < 99

    def test_without_sync_there_is_no_barrier(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[int] = []
        for name in ("fdatasync", "fsync"):
            monkeypatch.setattr(os, name, calls.append)
        pyvhdx.create(tmp_path / "1.vhdx", 8 * MIB, sync=False).close()
        assert not calls
        pyvhdx.create(tmp_path / "2.vhdx", 8 * MIB).close()
        assert len(calls) == 2, "the file, and its folder"


class TestLargestImage:
    """64 TiB in blocks of 1 MiB: 67 million entries, a BAT of 513 MiB."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        path = tmp_path / "big.vhdx"
        pyvhdx.create(path, 64 << 40, block_size=MIB).close()
        return path

    def test_is_sparse(self, path: Path) -> None:
        assert path.stat().st_blocks * 512 <= 10 * MIB
        assert path.stat().st_size == (3 + 513) * MIB

    def test_reads_at_its_very_end(self, path: Path) -> None:
        with pyvhdx.open(path) as image:
            assert image.pread(4096, (64 << 40) - 10) == bytes(10)
            image.seek(-5, os.SEEK_END)
            assert image.read() == bytes(5)

    @pytest.mark.skipif(not hasattr(os, "wait4"), reason="no resource usage of a child here")
    def test_info_takes_less_than_40_mib(self, path: Path) -> None:
        # Measured from a small process: a child is charged for what it was forked from.
        measure = (
            "import os, subprocess, sys\n"
            "process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)\n"
            "_, status, usage = os.wait4(process.pid, 0)\n"
            "process.returncode = status\n"
            "print(status, usage.ru_maxrss)"
        )
        info = [sys.executable, "-m", "pyvhdx", "info", str(path)]
        done = subprocess.run(
            [sys.executable, "-c", measure, *info], capture_output=True, text=True, check=True
        )
        status, peak_kib = map(int, done.stdout.split())
        assert status == 0
        assert peak_kib < 40 << 10

    def test_a_fixed_disk_takes_no_time_and_no_space(self, tmp_path: Path) -> None:
        with pyvhdx.create(tmp_path / "fixed.vhdx", 1 << 40, kind="fixed") as image:
            assert image.info().file_size > 1 << 40
            assert image.info().allocated_size < 10 * MIB
            assert image.pread(10, (1 << 40) - 5) == bytes(5)
