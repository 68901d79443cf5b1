"""Images whose every event a `Checker` follows."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

import pyvhdx
from pyvhdx.testing import Event, MemoryStorage, RecordingStorage
from tests.writing.checker import Checker, Content, content_of

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from pyvhdx.storage import Storage


class NoBarrier(RecordingStorage):
    """Remembers a flush and spares the medium."""

    def flush(self) -> None:
        with self._gate:
            self.events.append(Event("flush"))


class Watched:
    """
    An image open for writing over *storage*, and the checker that follows it.

    *content* is what the storage holds, where that is known.
    """

    def __init__(self, storage: Storage, *, content: Content | None = None, **how: Any) -> None:
        self.storage = NoBarrier(storage)
        self.checker = Checker(content or content_of(storage.read_at, storage.size()))
        self._fed = self._seen = 0
        self.image = pyvhdx.open(self.storage, "r+", lock=False, **how)

    def operations(self) -> list[str]:
        """Return what happened since the last call, in words; equal neighbours are one."""
        self.follow()
        new = self.checker.operations[self._seen :]
        self._seen = len(self.checker.operations)
        return [word for word, _ in groupby(new)]

    def barriers(self) -> int:
        """Return how many barriers there were since the last call."""
        self.follow()
        new = self.checker.operations[self._seen :]
        self._seen = len(self.checker.operations)
        return new.count("flush")

    def follow(self) -> None:
        """Let the checker look at what is new."""
        new = self.storage.events[self._fed :]
        self._fed += len(new)
        self.checker.feed(new)

    def close(self, *, is_visible: bool = True) -> None:
        """Close the image and let the checker judge the session."""
        self.image.close()
        self.follow()
        self.checker.finish(is_visible=is_visible)

    def die(self) -> None:
        """Leave the image as a killed process does: nothing more is written."""
        for image in self.image._to_close():
            image._release()
        self.follow()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: object, __: TracebackType | None) -> None:
        if kind is None:
            if not self.image.closed:
                self.close()
        elif not self.image.closed:
            self.die()


def made(size: int = 64 << 20, **how: Any) -> MemoryStorage:
    """Return a new image, closed, in memory."""
    storage = MemoryStorage()
    pyvhdx.create(storage, size, seed="made", **how).close()
    return storage
