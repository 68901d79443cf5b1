"""
Structures declared once: for construct, for mypy and for the reader.

A `Record` is a frozen dataclass whose fields carry the construct type they have on disk, in the
order of the specification's table::

    @record
    class RegionTableEntry(Record):
        guid: UUID = on_disk(Guid)
        file_offset: int = on_disk(Int64ul)

`Record.parse` and `Record.build` go through construct, which names the field that is wrong.
Where thousands of a kind are read, `Record.packer` is the same layout as a `struct.Struct`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar
from uuid import UUID

from construct import Adapter, Bytes, ConstructError, FormatField, Struct

if TYPE_CHECKING:
    from typing_extensions import Self, dataclass_transform

    from pyvhdx._types import Buffer
else:

    def dataclass_transform(**_kwargs: object) -> object:
        return lambda decorator: decorator


_T = TypeVar("_T")


if TYPE_CHECKING:
    _BytesToUuid = Adapter[bytes, bytes, UUID, UUID]
else:
    _BytesToUuid = Adapter  # generic in its stubs only


class _GuidAdapter(_BytesToUuid):
    def _decode(self, obj: bytes, context: Any, path: Any) -> UUID:  # noqa: ARG002 - construct's signature
        return UUID(bytes_le=bytes(obj))

    def _encode(self, obj: UUID, context: Any, path: Any) -> bytes:  # noqa: ARG002 - construct's signature
        return obj.bytes_le


Guid = _GuidAdapter(Bytes(16))
"""A GUID in Microsoft's mixed-endian form: the first three fields little-endian (MS-VHDX 2)."""

_REQUIRED: Any = object()


def on_disk(subcon: Any, *, default: Any = _REQUIRED) -> Any:
    """Declare a field with its form on disk; without *default* it must be given."""
    metadata = {"subcon": subcon}
    if default is _REQUIRED:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


class TooShortError(ValueError):
    """There are fewer bytes than the structure has."""


class Record:
    """A structure of fixed size; see the module's text."""

    __slots__ = ()
    layout: ClassVar[Any]
    packer: ClassVar[struct.Struct]

    @classmethod
    def parse(cls, data: Buffer) -> Self:
        """Return the structure at the start of *data*; raise `TooShortError` if it is cut."""
        try:
            parsed = cls.layout.parse(data)
        except ConstructError as error:
            raise TooShortError(f"{cls.__name__} needs {cls.packer.size} bytes: {error}") from error
        return cls(**{f.name: parsed[f.name] for f in fields(cls)})  # type: ignore[arg-type]  # a dataclass, see record()

    @classmethod
    def parse_table(cls, data: Buffer) -> list[Self]:
        """Return the structures that make up *data*, past construct: it takes 20 us for each."""
        names = [f.name for f in fields(cls)]  # type: ignore[arg-type]  # a dataclass, see record()
        is_guid = [f.metadata["subcon"] is Guid for f in fields(cls)]  # type: ignore[arg-type]  # the same
        return [
            cls(
                **{
                    name: UUID(bytes_le=value) if guid else value
                    for name, guid, value in zip(names, is_guid, values, strict=True)
                }
            )
            for values in cls.packer.iter_unpack(data)
        ]

    def build(self) -> bytes:
        """Return the structure as it stands on disk."""
        built: bytes = self.layout.build(vars_of(self))
        return built


def vars_of(record: Record) -> dict[str, Any]:
    """Return the fields of a structure by name, in the order of the disk."""
    return {f.name: getattr(record, f.name) for f in fields(record)}  # type: ignore[arg-type]  # a dataclass, see record()


@dataclass_transform(field_specifiers=(on_disk,), kw_only_default=True, frozen_default=True)
def record(cls: type[_T]) -> type[_T]:
    """Make *cls* a frozen dataclass with the layout that its `on_disk` fields declare."""
    made: Any = dataclass(frozen=True, slots=True, kw_only=True)(cls)
    subcons: dict[str, Any] = {f.name: f.metadata["subcon"] for f in fields(made)}
    made.layout = Struct(*(name / subcon for name, subcon in subcons.items()))
    made.packer = struct.Struct("<" + "".join(map(_code, subcons.values())))
    return made  # type: ignore[no-any-return]  # the same class, with slots


def _code(subcon: Any) -> str:
    """Return the struct module's code for a construct field."""
    if isinstance(subcon, FormatField):
        return subcon.fmtstr.lstrip("<").replace("L", "I")
    return f"{subcon.sizeof()}s"
