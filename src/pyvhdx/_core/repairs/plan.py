"""What a repair may do: the choices for ambiguous damage, and what was lost by those that were made."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pyvhdx._core.rules import RULES
from pyvhdx.errors import RequestError

# For each code the choices and what each of them does, the safest first.
CHOICES: dict[str, dict[str, str]] = {
    "IDENTIFIER": {"rewrite": "the signature is written, though no region table is right"},
    "HEADER-TIE": {"first": "the first header counts", "second": "the second header counts"},
    "HEADER-GUID": {"new": "the file gets a new DataWriteGuid; children that name the zero one lose it"},
    "LOG-NO-SEQUENCE": {"drop": "the log is given up, with all that stands in it and nowhere else"},
    "LOG-FILE-TRUNCATED": {
        "extend": "the file gets its length back, zeros where it was cut, and the log is replayed",
        "drop": "the log is given up, with all that stands in it and nowhere else",
    },
    "REGION-COPIES": {
        "first": "the first copy of the region table is written over the second",
        "second": "the second copy of the region table is written over the first",
    },
    "METADATA-SIZE": {"round": "the size is rounded down to whole sectors"},
    "LOCATOR-LEFTOVER": {
        "parent": "HasParent is set again: the file is a child",
        "remove": "the locator is removed: the file is no child, and its partial blocks show no parent",
    },
    "LOCATOR-LINKAGE": {"relink": "the child names the parent that is given (parent=, --parent)"},
    "PARENT-MISMATCH": {
        "relink": "the child names the parent that is given (parent=, --parent), whatever has happened to it"
    },
    "BAT-STATE": {
        "present": "the block is present with what lies at its place",
        "zero": "the block reads as zeros",
        "absent": "the block is NOT_PRESENT: it shows the parent, or zeros",
    },
    "BAT-OFFSET": {
        "zero": "the block reads as zeros",
        "absent": "the block is NOT_PRESENT: it shows the parent, or zeros",
    },
    "BAT-RANGE": {
        "extend": "the file is made longer, so that the block keeps what is left of it and goes on with zeros",
        "zero": "the block reads as zeros",
        "absent": "the block is NOT_PRESENT: it shows the parent, or zeros",
    },
    "BAT-OVERLAP": {
        "copy": "the second one gets a copy of its own, so that both have what lies there",
        "first": "the first one keeps the place, and the second reads as zeros",
        "second": "the second one keeps the place, and the first reads as zeros",
        "zero": "both read as zeros",
    },
    "BAT-PADDING": {"clear": "the entry is zeroed, though it names a place that nothing else uses"},
    "BITMAP-SLOT": {"clear": "the slots are zeroed, though something else says that the file was a child"},
    "BITMAP-ENTRY": {
        "present": "the partial blocks of the chunk are present with all that lies at their places",
        "zero": "the partial blocks of the chunk read as zeros",
        "absent": "the partial blocks of the chunk are NOT_PRESENT: they show the parent",
    },
}
CHOICES["BAT-SHIFT"] = CHOICES["BAT-OVERLAP"]

MAX_OFFERS = 1000


@dataclass(frozen=True)
class Loss:
    """
    Something that a repair gives up.

    `offset` and `length` are the range of the virtual disk in bytes, None and 0 for what is no data of it.
    """

    code: str
    offset: int | None
    length: int
    message: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Choices:
    """What the caller decided, by code, or by code and file offset."""

    def __init__(self, choices: Any) -> None:
        self._chosen: dict[tuple[str, int | None], str] = {}
        self._unused: set[tuple[str, int]] = set()
        self._codes: set[str] = set()
        if choices is not None and not isinstance(choices, Mapping):
            raise RequestError(f"choices is {choices!r}, and must be a mapping")
        given: dict[Any, Any] = dict(choices or {})
        for key, choice in given.items():
            code, offset = key if isinstance(key, tuple) and len(key) == 2 else (key, None)
            if not isinstance(code, str) or not (offset is None or isinstance(offset, int)):
                raise RequestError(f"{key!r} is neither a code nor a pair of a code and an offset")
            if code not in CHOICES:
                what = "leaves no choice" if code in RULES else "is no code"
                raise RequestError(f"{code} {what}; there are choices for {', '.join(sorted(CHOICES))}")
            if not isinstance(choice, str) or choice not in CHOICES[code]:
                raise RequestError(
                    f"{choice!r} is no choice for {code}; there are {', '.join(map(repr, CHOICES[code]))}"
                )
            self._chosen[code, offset] = choice
            self._codes.add(code)
            if offset is not None:
                self._unused.add((code, offset))

    @property
    def has_any(self) -> bool:
        """Whether anything was chosen at all."""
        return bool(self._chosen)

    def has(self, code: str) -> bool:
        """Return whether anything was chosen for a code."""
        return code in self._codes

    def is_chosen(self, code: str, choice: str | None = None) -> bool:
        """Return whether a choice, or any, was made for all findings of a code."""
        chosen = self._chosen.get((code, None))
        return chosen is not None and choice in (None, chosen)

    def is_for(self, code: str, offset: int) -> bool:
        """Return whether a choice was made for this finding alone."""
        return (code, offset) in self._chosen

    def for_place(self, code: str, offset: int) -> str | None:
        """Return the choice for a finding; one for its place goes before one for its code."""
        self._unused.discard((code, offset))
        return self._chosen.get((code, offset), self._chosen.get((code, None)))

    def check_all_used(self, found: Collection[tuple[str, int]]) -> None:
        """
        Raise `RequestError` where a choice was made for a place where there was nothing to choose.

        What was *found* there, by code and offset, may have been settled by another choice.
        """
        for code, offset in sorted(self._unused.difference(found)):
            raise RequestError(f"there is no {code} at {offset:#x} that leaves a choice")


@dataclass
class Plan:
    """
    What comes together while the structures are planned.

    `offers` are the choices that were not made, by code and file offset; `notes` say what was done where
    the rule alone does not tell; `is_visible` is whether a read can return something else afterwards
    (MS-VHDX 2.2.2).
    """

    choices: Choices
    offers: dict[tuple[str, int], tuple[str, ...]] = field(default_factory=dict)
    notes: dict[tuple[str, int], str] = field(default_factory=dict)
    reasons: dict[tuple[str, int], str] = field(default_factory=dict)
    lost: list[Loss] = field(default_factory=list)
    is_visible: bool = False
    _counts: dict[str, int] = field(default_factory=dict)

    def aside(self) -> Plan:
        """Return a plan with the same choices and offers, and nothing done: it may come to nothing."""
        return replace(self, notes={}, lost=[], is_visible=False)

    def adopt(self, aside: Plan) -> None:
        """Let what was planned aside be done."""
        self.notes |= aside.notes
        self.is_visible = self.is_visible or aside.is_visible
        self.lost += aside.lost

    def choose(self, code: str, offset: int, possible: tuple[str, ...] | None = None) -> str | None:
        """
        Return what was chosen for a finding, None where nothing was.

        Raises `RequestError` for a choice for this finding that there is for its code only.
        """
        possible = tuple(CHOICES[code]) if possible is None else possible
        choice = self.choices.for_place(code, offset)
        if choice not in possible and not self.choices.is_for(code, offset):
            choice = None  # what was chosen for all of a code is for those that have it
        if choice is None:
            if self._is_among_the_first(code):
                self.offers[code, offset] = possible
        elif choice not in possible:
            there = f"; there are {', '.join(map(repr, possible))}" if possible else ""
            raise RequestError(f"{choice!r} is no choice for the {code} at {offset:#x}{there}")
        else:
            self.offers.pop((code, offset), None)
        return choice

    def is_moot(self, code: str) -> bool:
        """Return whether nothing was chosen for a code, and no more of it need be offered."""
        return self._counts.get(code, 0) > MAX_OFFERS and not self.choices.has(code)

    def note(self, code: str, offset: int, sentence: str) -> None:
        """Remember in words what is done about a finding."""
        if self._is_among_the_first(code):
            self.notes[code, offset] = sentence

    def take_back(self, code: str, offset: int, reason: str) -> None:
        """Take back that something is done about a finding, and say why it cannot be."""
        self.notes.pop((code, offset), None)
        self.reasons[code, offset] = reason

    def lose(self, code: str, offset: int | None, length: int, message: str) -> None:
        """Name what is given up; neighbours that are given up for the same reason become one."""
        last = self.lost[-1] if self.lost else None
        if (
            last is not None
            and offset is not None
            and (last.code, last.message) == (code, message)
            and last.offset is not None
            and last.offset + last.length == offset
        ):
            self.lost[-1] = Loss(code, last.offset, last.length + length, message)
        else:
            self.lost.append(Loss(code, offset, length, message))

    def _is_among_the_first(self, code: str) -> bool:
        self._counts[code] = self._counts.get(code, 0) + 1
        return self._counts[code] <= MAX_OFFERS
