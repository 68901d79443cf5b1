"""How parents are found, what keeps them from being wrong, and what keeps a reader's machine safe."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import pyvhdx
from pyvhdx.format.constants import PARENT_LOCATOR
from pyvhdx.format.locator import build_parent_locator, format_linkage

MARK = b"the parent's own bytes".ljust(512, b".")


def make_base(path: Path, mark: bytes = MARK, **how: Any) -> Path:
    raw = path.with_suffix(".raw")
    raw.write_bytes(mark.ljust(2 << 20, b"\0"))
    pyvhdx.convert(raw, path, **how)
    return path


def make_child(path: Path, parent: Path) -> Path:
    pyvhdx.create(path, parent=parent).close()
    return path


def set_locator(path: Path, **pairs: str | None) -> None:
    """Rewrite the locator in place; the metadata region has room behind its last item."""
    with pyvhdx.open(path, parent=False) as image:
        system = image._file.metadata.system
        old = image.info().parent_locator or {}
        place = system.place(PARENT_LOCATOR)
        region = image._file.regions.metadata.file_offset
        index = list(system).index(PARENT_LOCATOR)
    item = build_parent_locator({key: value for key, value in {**old, **pairs}.items() if value is not None})
    with path.open("r+b") as file:
        file.seek(place)
        file.write(item)
        file.seek(region + 32 + 32 * index + 20)
        file.write(len(item).to_bytes(4, "little"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """base/base.vhdx and work/child.vhdx, which names it by a relative path."""
    (tmp_path / "base").mkdir()
    (tmp_path / "work").mkdir()
    make_child(tmp_path / "work" / "child.vhdx", make_base(tmp_path / "base" / "base.vhdx"))
    return tmp_path


def read_mark(path: Path, **how: Any) -> bytes:
    with pyvhdx.open(path, **how) as image:
        return image.pread(512, 0)


class TestFinding:
    def test_follows_the_relative_path(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        child = folder / "work" / "child.vhdx"
        assert read_mark(child) == MARK
        monkeypatch.chdir(folder / "work")
        assert read_mark(Path("child.vhdx")) == MARK
        with pyvhdx.open(child) as image:
            assert image.parent is not None
            assert image.parent.name == os.path.realpath(folder / "base" / "base.vhdx")
            assert [member.kind for member in image.chain] == ["differencing", "dynamic"]
            parent = image.parent
        assert parent.closed

    def test_follows_it_from_where_a_link_leads(self, folder: Path) -> None:
        (folder / "elsewhere").mkdir()
        link = folder / "elsewhere" / "link.vhdx"
        link.symlink_to(folder / "work" / "child.vhdx")
        assert read_mark(link) == MARK

    def test_follows_it_from_a_file_object_with_a_name(self, folder: Path) -> None:
        with (folder / "work" / "child.vhdx").open("rb") as file, pyvhdx.open(file) as image:
            assert image.pread(512, 0) == MARK

    def test_a_nameless_file_object_needs_help(self, folder: Path) -> None:
        memory = io.BytesIO((folder / "work" / "child.vhdx").read_bytes())
        with pytest.raises(pyvhdx.ParentNotFoundError, match="folder of the child is not known"):
            pyvhdx.open(memory)
        with pyvhdx.open(memory, search=[folder / "base"]) as image:
            assert image.pread(512, 0) == MARK

    def test_searches_folders_for_the_name(self, folder: Path) -> None:
        moved = folder / "moved"
        (folder / "base").rename(moved)
        child = folder / "work" / "child.vhdx"
        with pytest.raises(pyvhdx.ParentNotFoundError) as caught:
            pyvhdx.open(child)
        [(what, why)] = caught.value.tried
        assert what.endswith("base.vhdx")
        assert why == "No such file or directory"
        assert str(child) in str(caught.value)
        assert read_mark(child, search=[folder / "nowhere", moved]) == MARK

    def test_takes_the_next_candidate_where_the_first_does_not_match(self, folder: Path) -> None:
        shutil.move(folder / "base" / "base.vhdx", folder / "right.vhdx")
        make_base(folder / "base" / "base.vhdx", b"another disk")
        child = folder / "work" / "child.vhdx"
        (folder / "second").mkdir()
        shutil.move(folder / "right.vhdx", folder / "second" / "base.vhdx")
        with pytest.raises(pyvhdx.ParentMismatchError):
            pyvhdx.open(child)
        assert read_mark(child, search=[folder / "second"]) == MARK

    def test_takes_what_the_caller_names(self, folder: Path) -> None:
        child, base = folder / "work" / "child.vhdx", folder / "base" / "base.vhdx"
        elsewhere = shutil.copy(base, folder / "copy.vhdx")
        base.unlink()
        assert read_mark(child, parent=elsewhere) == MARK
        with pyvhdx.open(elsewhere) as opened:
            assert read_mark(child, parent=opened) == MARK
            assert not opened.closed
        with pytest.raises(ValueError, match="closed"):
            pyvhdx.open(child, parent=opened)

    def test_asks_a_callable_for_each_parent(self, folder: Path) -> None:
        grandchild = make_child(folder / "work" / "grandchild.vhdx", folder / "work" / "child.vhdx")
        asked = []

        def find(locator: pyvhdx.ParentLocator) -> Any:
            asked.append(locator.relative_path)
            name = (locator.relative_path or "").rpartition("\\")[2]
            return io.BytesIO(next(folder.rglob(name)).read_bytes())

        assert read_mark(grandchild, parent=find) == MARK
        assert asked == [".\\child.vhdx", "..\\base\\base.vhdx"]
        with pytest.raises(pyvhdx.ParentNotFoundError, match="none to give"):
            pyvhdx.open(grandchild, parent=lambda _: None)

    def test_takes_an_open_image_from_a_callable_and_leaves_it_open(self, folder: Path) -> None:
        with pyvhdx.open(folder / "base" / "base.vhdx") as base:
            assert read_mark(folder / "work" / "child.vhdx", parent=lambda _: base) == MARK
            assert not base.closed

    def test_one_folder_is_as_good_as_a_list(self, folder: Path) -> None:
        (folder / "base").rename(folder / "moved")
        assert read_mark(folder / "work" / "child.vhdx", search=str(folder / "moved")) == MARK
        assert read_mark(folder / "work" / "child.vhdx", search=folder / "moved") == MARK

    def test_opens_a_child_alone(self, folder: Path) -> None:
        (folder / "base" / "base.vhdx").unlink()
        with pyvhdx.open(folder / "work" / "child.vhdx", parent=False) as image:
            assert image.parent is None
            assert image.info().kind == "differencing"
            with pytest.raises(pyvhdx.ParentNotFoundError, match="parent=False"):
                image.pread(512, 0)
            with pytest.raises(pyvhdx.ParentNotFoundError):
                list(image.extents())

    def test_backslashes_and_case_of_the_linkage_are_read_as_windows_writes_them(self, folder: Path) -> None:
        child = folder / "work" / "child.vhdx"
        with pyvhdx.open(folder / "base" / "base.vhdx") as base:
            linkage = str(base.data_write_guid).upper()
        set_locator(child, parent_linkage=linkage, relative_path="../base/base.vhdx")
        assert read_mark(child) == MARK
        set_locator(child, relative_path=".\\..\\base\\.\\base.vhdx")
        assert read_mark(child) == MARK

    def test_a_locator_without_a_path_finds_nothing(self, folder: Path) -> None:
        child = folder / "work" / "child.vhdx"
        set_locator(child, relative_path=None)
        with pytest.raises(pyvhdx.ParentNotFoundError) as caught:
            pyvhdx.open(child, search=[folder / "base"])
        assert caught.value.tried == ()


class TestVerifying:
    def test_a_changed_parent_is_refused(self, folder: Path) -> None:
        base = folder / "base" / "base.vhdx"
        with pyvhdx.open(base) as image:
            expected = image.data_write_guid
        base.unlink()
        make_base(base, b"changed")
        with pytest.raises(pyvhdx.ParentMismatchError) as caught:
            pyvhdx.open(folder / "work" / "child.vhdx")
        assert caught.value.expected == expected
        with pyvhdx.open(base) as image:
            assert caught.value.actual == image.data_write_guid
        assert len(caught.value.tried) == 1
        assert read_mark(folder / "work" / "child.vhdx", verify_parent=False).startswith(b"changed")
        with pytest.raises(pyvhdx.ParentMismatchError):
            pyvhdx.open(folder / "work" / "child.vhdx", parent=base)

    def test_the_second_linkage_counts_too(self, folder: Path) -> None:
        child = folder / "work" / "child.vhdx"
        with pyvhdx.open(folder / "base" / "base.vhdx") as base:
            right = format_linkage(base.data_write_guid)
        wrong = "{11111111-2222-4333-8444-555555555555}"
        set_locator(child, parent_linkage=wrong, parent_linkage2=right)
        assert read_mark(child) == MARK
        set_locator(child, parent_linkage2=wrong)
        with pytest.raises(pyvhdx.ParentMismatchError):
            pyvhdx.open(child)

    def test_a_zero_second_linkage_matches_nothing(self, folder: Path) -> None:
        """Windows writes one into every child."""
        base = folder / "base" / "base.vhdx"
        data = bytearray(base.read_bytes())
        from pyvhdx.format.checksum import seal  # noqa: PLC0415

        for offset in (0x10000, 0x20000):
            data[offset + 32 : offset + 48] = bytes(16)
            data[offset : offset + 4096] = seal(bytes(data[offset : offset + 4096]))
        base.write_bytes(data)
        with pytest.raises(pyvhdx.ParentMismatchError):
            pyvhdx.open(folder / "work" / "child.vhdx")

    def test_sectors_of_another_size_are_refused(self, folder: Path) -> None:
        base = make_base(folder / "base" / "4k.vhdx", logical_sector_size=4096)
        with pytest.raises(pyvhdx.ParentMismatchError) as caught:
            pyvhdx.open(folder / "work" / "child.vhdx", parent=base, verify_parent=False)
        assert (caught.value.expected, caught.value.actual) == (512, 4096)

    def test_a_parent_that_is_no_vhdx_is_not_found(self, folder: Path) -> None:
        (folder / "base" / "base.vhdx").write_bytes(b"QFI\xfb" + bytes(100))
        with pytest.raises(pyvhdx.ParentNotFoundError, match="qcow2"):
            pyvhdx.open(folder / "work" / "child.vhdx")


class TestCycles:
    def test_a_file_that_is_its_own_parent(self, folder: Path) -> None:
        child = folder / "work" / "child.vhdx"
        with pyvhdx.open(child, parent=False) as image:
            own = format_linkage(image.data_write_guid)
        set_locator(child, parent_linkage=own, relative_path=".\\child.vhdx")
        with pytest.raises(pyvhdx.ParentCycleError):
            pyvhdx.open(child)

    def test_two_files_that_name_each_other_through_a_link(self, folder: Path) -> None:
        child, base = folder / "work" / "child.vhdx", folder / "base" / "base.vhdx"
        other = make_child(folder / "work" / "other.vhdx", child)
        (folder / "work" / "link.vhdx").symlink_to(other)
        with pyvhdx.open(other, parent=False) as image:
            set_locator(
                child, parent_linkage=format_linkage(image.data_write_guid), relative_path="link.vhdx"
            )
        base.unlink()
        with pytest.raises(pyvhdx.ParentCycleError):
            pyvhdx.open(child)
        with pytest.raises(pyvhdx.ParentCycleError):
            pyvhdx.open(other)

    @pytest.mark.slow
    @pytest.mark.usefixtures("recursion_limit")
    def test_a_chain_of_256_parents_is_read_and_a_deeper_one_refused(self, tmp_path: Path) -> None:
        last = make_base(tmp_path / "0.vhdx")
        for number in range(1, 258):
            child = tmp_path / f"{number}.vhdx"
            pyvhdx.create(child, parent=last).close() if number < 3 else _chain_by_copy(child, last, tmp_path)
            last = child
        with pyvhdx.open(tmp_path / "256.vhdx") as image:
            assert len(image.chain) == 257
            assert image.pread(512, 0) == MARK
            assert next(image.extents()).depth == 256
        with pytest.raises(pyvhdx.ParentCycleError, match="256"):
            pyvhdx.open(tmp_path / "257.vhdx")


def _chain_by_copy(child: Path, parent: Path, folder: Path) -> None:
    """As create does, but without opening the whole chain each time."""
    with pyvhdx.open(parent, parent=False) as image:
        linkage = format_linkage(image.data_write_guid)
    pyvhdx.create(child, parent=folder / "0.vhdx").close()
    set_locator(child, parent_linkage=linkage, relative_path=f".\\{parent.name}")


@pytest.fixture
def recursion_limit() -> Any:
    """A deep chain must not need a deep stack."""
    import sys  # noqa: PLC0415

    before = sys.getrecursionlimit()
    sys.setrecursionlimit(250)
    yield
    sys.setrecursionlimit(before)


class TestHostileLocators:
    """A locator names no file of the reader's machine that the caller did not allow."""

    @pytest.mark.parametrize("key", ["relative_path", "absolute_win32_path", "volume_path"])
    def test_an_absolute_path_needs_leave(self, folder: Path, key: str) -> None:
        child, base = folder / "work" / "child.vhdx", folder / "base" / "base.vhdx"
        set_locator(child, relative_path=None)
        set_locator(child, **{key: str(base)})
        with pytest.raises(pyvhdx.ParentNotFoundError, match="allow_absolute"):
            pyvhdx.open(child)
        with pytest.raises(pyvhdx.ParentNotFoundError, match="allow_absolute"):
            pyvhdx.open(child, allow_absolute=[folder / "work"])
        assert read_mark(child, allow_absolute=[folder / "base"]) == MARK
        assert read_mark(child, allow_absolute=[folder]) == MARK

    @pytest.mark.parametrize(
        "path",
        [
            "\\\\?\\C:\\vm\\base.vhdx",
            "C:\\vm\\base.vhdx",
            "C:base.vhdx",
            "\\\\server\\share\\base.vhdx",
            "\\\\?\\UNC\\server\\share\\base.vhdx",
            "\\\\?\\Volume{12345678-1234-1234-1234-123456789abc}\\base.vhdx",
            "//server/share/base.vhdx",
        ],
    )
    @pytest.mark.parametrize("key", ["relative_path", "absolute_win32_path", "volume_path"])
    @pytest.mark.skipif(os.name == "nt", reason="these mean something on Windows")
    def test_windows_paths_mean_nothing_here(self, folder: Path, key: str, path: str) -> None:
        child = folder / "work" / "child.vhdx"
        set_locator(child, relative_path=None)
        set_locator(child, **{key: path})
        with pytest.raises(pyvhdx.ParentNotFoundError, match=r"Windows|allow_absolute") as caught:
            pyvhdx.open(child, allow_absolute=[folder])
        assert len(caught.value.tried) == 1
        assert read_mark(child, search=[folder / "base"]) == MARK

    def test_within_keeps_every_parent_in_a_folder(self, folder: Path) -> None:
        child = folder / "work" / "child.vhdx"
        assert read_mark(child, within=folder) == MARK
        with pytest.raises(pyvhdx.ParentNotFoundError, match="outside"):
            pyvhdx.open(child, within=folder / "work")
        (folder / "work" / "link.vhdx").symlink_to(folder / "base" / "base.vhdx")
        set_locator(child, relative_path=".\\link.vhdx")
        assert read_mark(child) == MARK
        with pytest.raises(pyvhdx.ParentNotFoundError, match="outside"):
            pyvhdx.open(child, within=folder / "work")
        (folder / "wor").mkdir()
        with pytest.raises(pyvhdx.ParentNotFoundError, match="outside"):
            pyvhdx.open(child, within=folder / "wor")

    def test_only_regular_files_are_opened(self, folder: Path) -> None:
        child, base = folder / "work" / "child.vhdx", folder / "base" / "base.vhdx"
        base.unlink()
        for make in (
            os.mkfifo,
            os.mkdir,
            lambda p: os.symlink(os.devnull, p),
            lambda p: os.symlink("/dev/zero", p),
        ):
            make(base)
            with pytest.raises(pyvhdx.ParentNotFoundError):
                pyvhdx.open(child)
            base.rmdir() if base.is_dir() else base.unlink()

    @pytest.mark.parametrize(
        "path",
        [
            "..",
            ".",
            "\\",
            "x" * 5000,
            "a\\" * 3000,
            "\u202e",
            "\ud7ff\U0010ffff",
            " ",
            "..\\..\\..\\..\\..\\..\\..\\..\\..\\..\\..\\etc\\passwd",
        ],
    )
    def test_odd_paths_are_not_found(self, folder: Path, path: str) -> None:
        child = folder / "work" / "child.vhdx"
        set_locator(child, relative_path=path)
        with pytest.raises(pyvhdx.ParentNotFoundError):
            pyvhdx.open(child, search=[folder])
