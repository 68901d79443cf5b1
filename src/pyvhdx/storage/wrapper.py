"""Storages over storages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyvhdx._types import Buffer
    from pyvhdx.storage.protocol import Storage

_UNIT = 1 << 12
_MAX_FAILED = 100


def is_storage(source: Any) -> bool:
    """Return whether *source* is read and written by position."""
    return hasattr(source, "read_at") and hasattr(source, "write_at")


class Wrapper:
    """A `Storage` that passes everything on to another one."""

    def __init__(self, storage: Storage) -> None:
        self.name = storage.name
        self.storage = storage

    def read_at(self, size: int, offset: int) -> bytes:
        return self.storage.read_at(size, offset)

    def read_into(self, buffer: memoryview, offset: int) -> int:
        return self.storage.read_into(buffer, offset)

    def write_at(self, data: Buffer, offset: int) -> None:
        self.storage.write_at(data, offset)

    def flush(self) -> None:
        self.storage.flush()

    def size(self) -> int:
        return self.storage.size()

    def truncate(self, size: int) -> None:
        self.storage.truncate(size)

    def reserve(self, offset: int, length: int) -> None:
        self.storage.reserve(offset, length)

    def allocated(self) -> int:
        return self.storage.allocated()

    def next_data(self, offset: int) -> tuple[int, int] | None:
        return self.storage.next_data(offset)

    def close(self) -> None:
        self.storage.close()


class Forgiving(Wrapper):
    """
    Reads zeros where the medium gives an error, in units of 4 KiB; only for what a checksum or a look judges.

    `failed` holds the offsets of the first units that could not be read.
    """

    def __init__(self, storage: Storage) -> None:
        super().__init__(storage)
        self.failed: list[int] = []

    def read_at(self, size: int, offset: int) -> bytes:
        try:
            return self.storage.read_at(size, offset)
        except OSError:
            return b"".join(
                self._unit(at, min(at + _UNIT, offset + size)) for at in range(offset, offset + size, _UNIT)
            )

    def _unit(self, start: int, end: int) -> bytes:
        try:
            return self.storage.read_at(end - start, start)
        except OSError:
            if len(self.failed) < _MAX_FAILED:
                self.failed.append(start)
            return bytes(max(0, min(end, self.size()) - start))

    def read_into(self, buffer: memoryview, offset: int) -> int:
        data = self.read_at(len(buffer), offset)
        buffer[: len(data)] = data
        return len(data)


class Lent(Wrapper):
    """A storage of the caller, which is never closed here."""

    def close(self) -> None:
        pass
