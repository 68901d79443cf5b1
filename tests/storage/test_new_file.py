"""A new file gets its name when it is complete, and leaves nothing behind when it is not."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pyvhdx.errors import LockedError, RequestError
from pyvhdx.storage import new_file, open_local
from pyvhdx.storage.locks import READER


def test_it_appears_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "new"
    with new_file(path) as file:
        file.write_at(b"content", 0)
        assert not path.exists()
    assert path.read_bytes() == b"content"
    assert os.listdir(tmp_path) == ["new"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_when_the_block_raises(error: type[BaseException], tmp_path: Path) -> None:
    with pytest.raises(error), new_file(tmp_path / "new") as file:
        file.write_at(b"content", 0)
        raise error
    assert os.listdir(tmp_path) == []


def test_an_existing_file_is_refused_or_replaced_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "old"
    path.write_bytes(b"old")
    path.chmod(0o640)
    with pytest.raises(FileExistsError), new_file(path):
        pass
    assert path.read_bytes() == b"old"
    with new_file(path, overwrite=True) as file:
        file.write_at(b"new", 0)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "new"
    with pytest.raises(FileExistsError), new_file(path) as file:
        file.write_at(b"ours", 0)
        path.write_bytes(b"theirs")
    assert path.read_bytes() == b"theirs"
    assert os.listdir(tmp_path) == ["new"]


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    link = tmp_path / "link"
    link.symlink_to(Path("folder", "real"))
    with new_file(link) as file:
        file.write_at(b"content", 0)
    assert link.is_symlink()
    assert (tmp_path / "folder" / "real").read_bytes() == b"content"


def test_a_file_in_use_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "old"
    path.write_bytes(b"old")
    held = open_local(path)
    held.lock(READER)
    with pytest.raises(LockedError), new_file(path, overwrite=True):
        pass
    held.close()
    with new_file(path, overwrite=True):
        pass
    assert path.read_bytes() == b""


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RequestError, match="no regular file"), new_file(tmp_path / "pipe", overwrite=True):
        pass
    with pytest.raises(IsADirectoryError), new_file(tmp_path, overwrite=True):
        pass


def test_without_hard_links_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    with new_file(tmp_path / "new") as file:
        file.write_at(b"content", 0)
    assert os.listdir(tmp_path) == ["new"]
    with pytest.raises(FileExistsError), new_file(tmp_path / "other"):
        (tmp_path / "other").write_bytes(b"theirs")
    assert (tmp_path / "other").read_bytes() == b"theirs"
