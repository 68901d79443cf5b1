"""Share modes, with a stub in place of Windows: this code has never run there."""

from __future__ import annotations

import pytest

from pyvhdx.errors import LockedError
from pyvhdx.storage.windows import open_shared

READ, WRITE = 0x8000_0000, 0x4000_0000


class Kernel:
    """What CreateFileW does with files that are open already: both sides must agree to share."""

    def __init__(self) -> None:
        self.opened: list[tuple[str, int, int]] = []

    def create_file(
        self, name: str, access: int, share: int, disposition: int, _attributes: int
    ) -> tuple[int, int]:
        assert disposition == 3, "OPEN_EXISTING"
        if name == "missing":
            return 0, 2
        for other, other_access, other_share in self.opened:
            if other == name and (_refuses(other_share, access) or _refuses(share, other_access)):
                return 0, 32
        self.opened.append((name, access, share))
        return len(self.opened), 0

    def open(self, name: str, *, write: bool = False, lock: bool = True) -> int:
        return open_shared(name, write=write, lock=lock, create_file=self.create_file)


def _refuses(share: int, access: int) -> bool:
    return bool((access & READ and not share & 1) or (access & WRITE and not share & 2))


class TestShareModes:
    def test_readers_share(self) -> None:
        kernel = Kernel()
        assert kernel.open("disk") != kernel.open("disk")

    @pytest.mark.parametrize("second", [False, True])
    def test_a_writer_lets_nobody_in(self, second: bool) -> None:
        kernel = Kernel()
        kernel.open("disk", write=True)
        with pytest.raises(LockedError, match="disk"):
            kernel.open("disk", write=second)
        kernel.open("other", write=True)

    def test_a_reader_keeps_writers_out(self) -> None:
        kernel = Kernel()
        kernel.open("disk")
        with pytest.raises(LockedError):
            kernel.open("disk", write=True)

    def test_without_locks_everyone_shares_who_can(self) -> None:
        kernel = Kernel()
        kernel.open("disk", write=True, lock=False)
        kernel.open("disk", write=True, lock=False)
        kernel.open("disk", lock=False)
        with pytest.raises(LockedError):
            kernel.open("disk")

    def test_other_errors_are_errors_of_the_system(self) -> None:
        with pytest.raises(OSError, match="Windows error 2") as caught:
            Kernel().open("missing")
        assert caught.value.filename == "missing"
