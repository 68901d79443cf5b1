"""What `check` finds: exactly the damage that is there, in any file, and it never changes one."""

from __future__ import annotations

import errno
import json
import os
import re
import struct
import subprocess
import sys
from array import array
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

import pyvhdx
from pyvhdx._core.repairs.plan import CHOICES
from pyvhdx._core.rules import RULES
from pyvhdx.cli import main
from pyvhdx.storage import LocalFile
from pyvhdx.testing import MemoryStorage, RecordingStorage
from tests.corpus.broken import SPECIMENS, Specimen, both, child, disk, entry, logged, parent
from tests.corpus.handmade import BAT_AT, FULL, MIB, PARTIAL, Block, Image, guid

ROOT = Path(__file__).parent.parent.parent
LOG_ENTRY = entry((BAT_AT + 4096, bytes(4096)))
TMPFS = "/dev/shm"  # noqa: S108 - a tmpfs is what is wanted

EACH = pytest.mark.parametrize("specimen", SPECIMENS, ids=lambda specimen: specimen.name)


def run(specimen: Specimen, folder: Path) -> tuple[Path, pyvhdx.CheckReport]:
    path = specimen.make(folder)
    how = dict(specimen.how)
    if "search" in how:
        how["search"] = [folder / how["search"]]
    return path, pyvhdx.check(path, **how)


def codes(path: Any, **how: Any) -> dict[str, int]:
    return pyvhdx.check(path, **how).counts


class TestEachRule:
    @EACH
    def test_each_damage_is_named_and_no_other(self, specimen: Specimen, tmp_path: Path) -> None:
        _, report = run(specimen, tmp_path)
        found = [finding for finding in report.findings if finding.code == specimen.code]
        assert set(report.counts) == {specimen.code, *specimen.also}
        assert {finding.severity for finding in found} == {specimen.severity}
        assert {finding.repairable for finding in found} == {specimen.repairable}

    @EACH
    def test_a_finding_says_what_its_rule_says(self, specimen: Specimen, tmp_path: Path) -> None:
        _, report = run(specimen, tmp_path)
        size = report.end_offset + 1200 * MIB
        for finding in report.findings:
            rule = RULES[finding.code]
            assert finding.severity in rule.severities
            assert finding.repairable in {"yes": (True,), "some": (True, False)}.get(
                rule.repairable, (False,)
            )
            assert 0 <= finding.offset < size
            assert re.fullmatch(r"\d(\.\d+){0,4}", finding.section)
            assert "\n" not in finding.message

    @EACH
    def test_no_byte_is_changed_and_nothing_written(self, specimen: Specimen, tmp_path: Path) -> None:
        path = specimen.make(tmp_path)
        before = path.stat()
        with path.open("rb") as file:
            head = file.read(4 * MIB)
            pyvhdx.check(file, parent=False, deep=True)
        with path.open("rb") as file:
            assert file.read(4 * MIB) == head
        assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)

    @EACH
    def test_an_open_says_the_same_of_a_rule(self, specimen: Specimen, tmp_path: Path) -> None:
        """What stops an open is corrupt to `check`; what it tolerates has the same severity."""
        path, report = run(specimen, tmp_path)
        said = {finding.code: finding for finding in report.findings}
        try:
            with pyvhdx.open(path, parent=False) as image:
                for finding in image.warnings:
                    if finding.code != "LOCATOR-LEFTOVER":  # it hangs on the BAT, which an open does not read
                        assert said[finding.code].severity == finding.severity
                        assert said[finding.code].repairable == finding.repairable
                assert not {"HEADER-NONE", "REGION-NONE", "BAT-SIZE"} & set(said)
        except pyvhdx.ImageError as error:
            assert said[error.code].severity == "corrupt"

    def test_every_code_that_can_be_found_has_a_specimen(self) -> None:
        """The rest is found by stubs below, or by whoever reads a file that shrinks."""
        without = set(RULES) - {specimen.code for specimen in SPECIMENS}
        assert without == {"FILE-CUT", "FILE-HOST", "BITMAP-RANGE", "PARENT-MODIFIED", "PAYLOAD-READ"}

    def test_a_right_file_has_no_finding(self, tmp_path: Path) -> None:
        disk().write(tmp_path / "disk.vhdx")
        parent().write(tmp_path / "parent.vhdx")
        child().write(tmp_path / "child.vhdx")
        assert pyvhdx.check(tmp_path / "disk.vhdx", deep=True).findings == []
        report = pyvhdx.check(tmp_path / "child.vhdx", deep=True)
        assert [one.findings for one in report.chain] == [[], []]
        assert [Path(one.name).name for one in report.chain] == ["child.vhdx", "parent.vhdx"]

    @pytest.mark.parametrize("kind", ["dynamic", "fixed"])
    @pytest.mark.parametrize("sector", [512, 4096])
    def test_what_pyvhdx_makes_is_clean(self, kind: str, sector: int, tmp_path: Path) -> None:
        path = tmp_path / "made.vhdx"
        with pyvhdx.create(path, 64 * MIB, kind=kind, logical_sector_size=sector) as image:
            image.pwrite(b"x" * 4096, 5 * MIB)
            image.pwrite(b"y" * 4096, 50 * MIB)
        with pyvhdx.create(tmp_path / "child.vhdx", parent=path) as image:
            image.pwrite(b"z" * 4096, 10 * MIB)
        report = pyvhdx.check(tmp_path / "child.vhdx")
        assert [one.counts for one in report.chain] == [{}, {}]


class TestTheTableInTheDocs:
    ROWS = re.compile(r"^\| (\d+) \| (.+) \| (.+) \| (.+) \| (.+) \| (.+) \|$", re.MULTILINE)

    def rows(self) -> dict[int, tuple[str, ...]]:
        found = self.ROWS.findall((ROOT / "docs" / "check.md").read_text())
        return {int(number): cells for number, *cells in found}

    def test_it_has_all_validations(self) -> None:
        assert sorted(self.rows()) == list(range(1, 131))

    def test_what_repair_offers_a_choice_for_is_called_one(self) -> None:
        for rule in RULES.values():
            allowed: tuple[str, ...] = ("choice", "some") if rule.code in CHOICES else ("yes", "some", "no")
            if rule.code == "REGION-COPIES":  # mended, but for what is a hint at more
                allowed = ("yes",)
            assert rule.repairable in allowed, rule.code

    def test_it_says_what_the_rules_say(self) -> None:
        for number, (_, named, severities, sections, repair) in self.rows().items():
            rules = [rule for rule in RULES.values() if number in rule.rows]
            assert re.findall(r"`([A-Z-]+)`", named) == [rule.code for rule in rules]
            if rules:
                assert set(severities.split(", ")) == {s for rule in rules for s in rule.severities}
                assert set(sections.split(", ")) == {rule.section for rule in rules}
                assert set(repair.split(", ")) == {rule.repairable for rule in rules}
            else:
                assert number in (38, 77, 124)


class TestTheFiveOfPractice:
    """Damages that people met; each is named."""

    def test_a_bad_header_with_a_huge_sequence_number(self, tmp_path: Path) -> None:
        disk(headers=({}, {"sequence": 1 << 63, "crc": 0})).write(tmp_path / "disk.vhdx")
        assert codes(tmp_path / "disk.vhdx") == {"HEADER-COPY": 1}

    def test_the_first_region_table_bad_and_the_second_good(self, tmp_path: Path) -> None:
        disk(patches=[(0x30010, b"\xff" * 64)]).write(tmp_path / "disk.vhdx")
        assert codes(tmp_path / "disk.vhdx") == {"REGION-COPY": 1}

    @pytest.mark.peer("qemu-img")
    def test_two_blocks_at_one_place(self, tmp_path: Path) -> None:
        """QEMU sees no error there."""
        path = disk(bat={5: 5 * MIB | FULL}).write(tmp_path / "disk.vhdx").path
        report = pyvhdx.check(path)
        assert report.counts == {"BAT-OVERLAP": 1}
        assert report.findings[0].structure == "BAT entry of block 5"
        assert report.findings[0].offset == BAT_AT + 5 * 8
        assert "block 2" in report.findings[0].message
        done = subprocess.run(["qemu-img", "check", path], capture_output=True, text=True, check=False)
        assert "No errors" in done.stdout

    def test_a_file_cut_short(self, tmp_path: Path) -> None:
        path = disk(blocks={n: Block(FULL) for n in range(6)}).write(tmp_path / "disk.vhdx").path
        os.truncate(path, path.stat().st_size - 3 * MIB)
        report = pyvhdx.check(path)
        assert report.counts == {"BAT-RANGE": 3}
        assert [finding.structure for finding in report.findings] == [
            f"BAT entry of block {n}" for n in (3, 4, 5)
        ]

    def test_both_headers_destroyed(self, tmp_path: Path) -> None:
        path = (
            disk(patches=[(0x10000, b"\xff" * 4096), (0x20000, b"\xff" * 4096), (BAT_AT + 8, b"\4")])
            .write(tmp_path / "disk.vhdx")
            .path
        )
        found = codes(path)
        assert found["HEADER-NONE"] == 1
        assert found["BAT-STATE"] == 1  # and it goes on


class TestItGoesOn:
    def test_many_damages_are_all_named(self, tmp_path: Path) -> None:
        image = disk(
            headers=({"crc": 0}, {"file_guid": 0}),
            bat={3: 4, 4: FULL, 5: 64 * MIB | FULL, 6: 5 * MIB | FULL, 7: 0x80},
            patches=[(0x30000, b"????"), (0x60000, b"x"), (2 * MIB + 12, b"x")],
            without=(),
        )
        found = codes(image.write(tmp_path / "disk.vhdx").path)
        assert set(found) == {
            "HEADER-COPY",
            "HEADER-GUID",
            "REGION-COPY",
            "FILE-RESERVED",
            "METADATA-RESERVED",
            "BAT-STATE",
            "BAT-OFFSET",
            "BAT-RANGE",
            "BAT-OVERLAP",
            "BAT-RESERVED",
        }

    def test_two_faults_of_one_structure_are_both_named(self, tmp_path: Path) -> None:
        image = disk(
            regions=((guid(1), 6 * MIB, 512, 0), (guid(2), 6 * MIB, 0, 1)),
            items=((guid(3), 4, b"x"), (guid(4), 4, b"x")),
        )
        found = codes(image.write(tmp_path / "disk.vhdx").path)
        assert found == {"REGION-RANGE": 2, "REGION-UNKNOWN": 1, "METADATA-UNKNOWN": 2}

    def test_behind_the_thousandth_of_a_code_only_the_number_grows(self, tmp_path: Path) -> None:
        image = disk(size=3000 * MIB, blocks={}, bat=dict.fromkeys(range(2500), 4 | 128) | {2600: FULL})
        report = pyvhdx.check(image.write(tmp_path / "disk.vhdx").path)
        assert report.counts == {"BAT-STATE": 2500, "BAT-RESERVED": 2500, "BAT-OFFSET": 1}
        assert sum(finding.code == "BAT-STATE" for finding in report.findings) == 1000
        assert (report.corruptions, report.warnings) == (2501, 2500)

    def test_many_blocks_at_one_place_are_counted(self, tmp_path: Path) -> None:
        image = disk(
            size=3000 * MIB, blocks={0: Block(FULL)}, bat=dict.fromkeys(range(1, 2500), 4 * MIB | FULL)
        )
        report = pyvhdx.check(image.write(tmp_path / "disk.vhdx").path)
        assert report.counts == {"BAT-OVERLAP": 2499}
        assert len(report.findings) == 1000
        assert all("on the block" in finding.message for finding in report.findings)

    @pytest.mark.parametrize("block_size", [1, 2, 4, 8, 32, 256])
    def test_overlaps_of_blocks_of_any_size(self, block_size: int, tmp_path: Path) -> None:
        """Blocks need only be aligned to 1 MiB, so they may overlap in a part."""
        size = block_size * MIB
        image = Image(size=9 * size, block_size=size, blocks={n: Block(FULL) for n in (0, 3, 4, 8)})
        path = image.write(tmp_path / "disk.vhdx").path
        assert codes(path) == {}
        first, last = image.places[0], image.places[8]
        image.bat = {5: first + size // 2 // MIB * MIB | FULL, 7: last | FULL}
        report = pyvhdx.check(image.write(path).path)
        assert report.counts == {"BAT-OVERLAP": 2}
        assert sorted(finding.structure for finding in report.findings) in (
            ["BAT entry of block 5", "BAT entry of block 8"],
            ["BAT entry of block 5", "BAT entry of block 7"],
        )

    def test_shuffled_blocks_are_no_damage(self, tmp_path: Path) -> None:
        image = Image(
            size=64 * MIB, kind="dynamic", blocks={n: Block(FULL) for n in range(0, 64, 2)}, shuffle=5
        )
        assert set(codes(image.write(tmp_path / "disk.vhdx").path)) == {"SPACE-UNOWNED"}

    def test_a_file_without_any_trace_is_not_vhdx(self, tmp_path: Path) -> None:
        (tmp_path / "zeros").write_bytes(bytes(2 * MIB))
        with pytest.raises(pyvhdx.NotVHDXError):
            pyvhdx.check(tmp_path / "zeros")

    @pytest.mark.parametrize("left", ["identifier", "header", "regions"])
    def test_one_trace_is_enough(self, left: str, tmp_path: Path) -> None:
        patches = [
            (0, bytes(8)),
            (0x10000, bytes(4096)),
            (0x20000, bytes(4096)),
            (0x30000, bytes(4)),
            (0x40000, bytes(4)),
        ]
        keep = {"identifier": 0, "header": 2, "regions": 4}[left]
        path = (
            disk(patches=[p for n, p in enumerate(patches) if n != keep]).write(tmp_path / "disk.vhdx").path
        )
        assert not pyvhdx.check(path).ok

    @pytest.mark.parametrize(
        "size", [8, 520, 0x10000, 0x11000, 0x2FFFF, 0x40001, MIB, 2 * MIB + 7, 3 * MIB + 20]
    )
    def test_a_file_cut_anywhere(self, size: int, tmp_path: Path) -> None:
        path = disk().write(tmp_path / "disk.vhdx").path
        os.truncate(path, size)
        assert not pyvhdx.check(path, deep=True).ok

    @pytest.mark.slow
    def test_every_byte_of_a_file_may_be_wrong(self, tmp_path: Path) -> None:
        """Nothing but our own errors, whatever a byte of a structure is."""
        child().write(tmp_path / "child.vhdx")
        parent().write(tmp_path / "parent.vhdx")
        data = (tmp_path / "child.vhdx").read_bytes()
        places = [
            *range(64),
            *range(0x10000, 0x10060),
            *range(0x30000, 0x30060),
            *range(2 * MIB, 2 * MIB + 256),
        ]
        places += [*range(2 * MIB + 65536, 2 * MIB + 65536 + 200), *range(3 * MIB, 3 * MIB + 64)]
        storage = MemoryStorage(data)
        for at in places:
            for value in (0, 0xFF, data[at] ^ 1):
                storage.write_at(bytes([value]), at)
                pyvhdx.check(storage, parent=False)
            storage.write_at(data[at : at + 1], at)


class TestChain:
    def family(self, folder: Path, **changes: Any) -> tuple[Path, Path]:
        base = replace(parent(), **changes).write(folder / "parent.vhdx").path
        return child().write(folder / "child.vhdx").path, base

    def test_what_is_wrong_with_a_parent_makes_the_chain_corrupt(self, tmp_path: Path) -> None:
        path, _ = self.family(tmp_path, bat={5: 4})
        report = pyvhdx.check(path)
        assert (report.counts, report.ok, report.corruptions) == ({}, False, 1)
        assert report.parent is not None
        assert report.parent.counts == {"BAT-STATE": 1}
        assert pyvhdx.check(path, parent=False).ok

    def test_a_parent_that_cannot_be_opened_is_not_found_and_why_is_said(self, tmp_path: Path) -> None:
        path, _ = self.family(tmp_path, headers=({"crc": 0}, {"crc": 0}))
        report = pyvhdx.check(path)
        assert report.counts == {"PARENT-NOT-FOUND": 1}
        assert "HEADER-NONE" in report.findings[0].message

    def test_the_log_of_a_parent_is_replayed(self, tmp_path: Path) -> None:
        from tests.corpus.broken import entry, logged  # noqa: PLC0415 - for this test only

        logged(entry((BAT_AT + 4096, bytes(4096))), tag=9).write(tmp_path / "parent.vhdx")
        report = pyvhdx.check(child().write(tmp_path / "child.vhdx").path)
        assert report.parent is not None
        assert report.parent.counts == {"LOG-PENDING": 1}

    def test_the_child_is_checked_though_the_header_is_gone_and_so_is_its_parent(
        self, tmp_path: Path
    ) -> None:
        parent().write(tmp_path / "parent.vhdx")
        image = child(headers=({"crc": 0}, {"crc": 0}))
        report = pyvhdx.check(image.write(tmp_path / "child.vhdx").path)
        assert "HEADER-NONE" in report.counts
        assert report.parent is not None

    def test_a_parent_that_is_given(self, tmp_path: Path) -> None:
        path, base = self.family(tmp_path)
        moved = tmp_path / "moved.vhdx"
        base.rename(moved)
        assert codes(path) == {"PARENT-NOT-FOUND": 1}
        assert codes(path, parent=moved) == {"PARENT-PATH": 1}
        with pyvhdx.open(moved) as image:
            report = pyvhdx.check(path, parent=image)
            assert report.counts == {"PARENT-PATH": 1}
            assert image.pread(4, 0)  # it is not closed

    def test_three_files(self, tmp_path: Path) -> None:
        pyvhdx.create(tmp_path / "a.vhdx", 8 * MIB).close()
        pyvhdx.create(tmp_path / "b.vhdx", parent=tmp_path / "a.vhdx").close()
        pyvhdx.create(tmp_path / "c.vhdx", parent=tmp_path / "b.vhdx").close()
        report = pyvhdx.check(tmp_path / "c.vhdx")
        assert [Path(one.name).name for one in report.chain] == ["c.vhdx", "b.vhdx", "a.vhdx"]
        os.unlink(tmp_path / "a.vhdx")
        report = pyvhdx.check(tmp_path / "c.vhdx")
        assert [one.counts for one in report.chain] == [{}, {"PARENT-NOT-FOUND": 1}]

    def test_an_unverified_parent_is_no_finding(self, tmp_path: Path) -> None:
        path, _ = self.family(tmp_path, tag=10)
        assert codes(path) == {"PARENT-MISMATCH": 1}
        assert codes(path, verify_parent=False) == {}

    def test_a_parent_that_is_given_for_a_locator_that_names_none(self, tmp_path: Path) -> None:
        _, base = self.family(tmp_path)
        image = child(locator={"relative_path": ".\\parent.vhdx"})
        path = image.write(tmp_path / "child.vhdx").path
        report = pyvhdx.check(path, parent=base, verify_parent=False)
        assert report.counts == {"LOCATOR-LINKAGE": 1}
        assert report.parent is not None

    def test_a_parent_written_after_its_child(self, tmp_path: Path) -> None:
        path, base = self.family(tmp_path)
        os.utime(base, (2_000_000_000, 2_000_000_000))
        assert codes(path) == {"PARENT-MODIFIED": 1}

    def test_a_log_that_may_not_be_replayed(self, tmp_path: Path) -> None:
        specimen = next(one for one in SPECIMENS if one.code == "LOG-PENDING")
        with pytest.raises(pyvhdx.LogPendingError):
            pyvhdx.check(specimen.make(tmp_path), log="refuse")


class TestDeep:
    def test_what_cannot_be_read_is_found_only_when_it_is_read(self, tmp_path: Path) -> None:
        path = disk().write(tmp_path / "disk.vhdx").path

        class Bad(MemoryStorage):
            def read_at(self, size: int, offset: int) -> bytes:
                if offset <= 5 * MIB < offset + size:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                return super().read_at(size, offset)

        storage = Bad(path.read_bytes())
        assert codes(storage) == {}
        report = pyvhdx.check(storage, deep=True)
        assert report.counts == {"PAYLOAD-READ": 1}
        assert report.findings[0].structure == "block 2"
        assert not report.ok

    def test_only_the_sectors_that_a_bitmap_claims_are_read(self, tmp_path: Path) -> None:
        path = child().write(tmp_path / "child.vhdx").path
        storage = RecordingReads(path.read_bytes())
        pyvhdx.check(storage, parent=False, deep=True)
        in_block = [(at - 4 * MIB, size) for size, at in storage.reads if 4 * MIB <= at < 5 * MIB]
        assert in_block == [(512, 1024)]

    def test_blocks_at_one_place_are_read_once(self, tmp_path: Path) -> None:
        """Or a small file with a large table would be read for days."""
        image = disk(
            size=4000 * MIB, blocks={0: Block(FULL)}, bat=dict.fromkeys(range(1, 4000), 4 * MIB | FULL)
        )
        storage = RecordingReads(image.write(tmp_path / "disk.vhdx").path.read_bytes())
        assert pyvhdx.check(storage, deep=True).counts == {"BAT-OVERLAP": 3999}
        assert sum(size for size, at in storage.reads if at >= 4 * MIB) <= 2 * MIB

    def test_zero_blocks_count_what_could_be_given_back(self, tmp_path: Path) -> None:
        with pyvhdx.create(tmp_path / "disk.vhdx", 64 * MIB) as image:
            for data in (b"x", b"\0"):
                for at in range(0, 8 * MIB, 2 * MIB):
                    image.pwrite(data, at if data == b"x" or at else MIB)
        report = pyvhdx.check(tmp_path / "disk.vhdx", deep=True)
        assert report.counts == {"PAYLOAD-ZERO": 1}
        assert "3 FULLY_PRESENT blocks" in report.findings[-1].message
        assert str(6 * MIB) in report.findings[-1].message
        assert "PAYLOAD-ZERO" not in pyvhdx.check(tmp_path / "disk.vhdx").counts

    def test_a_partition_table_that_fits(self, tmp_path: Path) -> None:
        entry = bytes([0, 0, 0, 0, 7, 0, 0, 0]) + struct.pack("<II", 2048, 8 * 2048 - 2048)
        sector = (bytes(446) + entry).ljust(510, b"\0") + b"\x55\xaa"
        path = disk(patches=[(4 * MIB, sector)]).write(tmp_path / "disk.vhdx").path
        assert codes(path, deep=True) == {}


class Unreadable(MemoryStorage):
    def read_at(self, size: int, offset: int) -> bytes:  # noqa: ARG002 - whatever is asked for
        raise OSError(errno.EIO, "no more")


class RecordingReads(MemoryStorage):
    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.reads: list[tuple[int, int]] = []

    def read_at(self, size: int, offset: int) -> bytes:
        self.reads.append((size, offset))
        return super().read_at(size, offset)


class TestHost:
    def test_what_ntfs_does_with_a_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Windows attaches no sparse, compressed or encrypted file."""
        path = disk().write(tmp_path / "disk.vhdx").path
        status = LocalFile.status

        def on_ntfs(self: LocalFile) -> Any:
            real = status(self)
            return SimpleNamespace(
                st_mode=real.st_mode, st_mtime_ns=real.st_mtime_ns, st_file_attributes=0x20 | 0x200 | 0x800
            )

        monkeypatch.setattr(LocalFile, "status", on_ntfs)
        report = pyvhdx.check(path, lock=False)
        assert report.counts == {"FILE-HOST": 1}
        assert "sparse and compressed" in report.findings[0].message

    def test_a_file_of_over_256_tebibytes(self, tmp_path: Path) -> None:
        class Huge(MemoryStorage):
            def size(self) -> int:
                return (256 << 40) + MIB

            def next_data(self, offset: int) -> tuple[int, int] | None:
                return (offset, 6 * MIB) if offset < 6 * MIB else None

        path = disk().write(tmp_path / "disk.vhdx").path
        assert codes(Huge(path.read_bytes())) == {"FILE-SIZE": 1, "SPACE-SLACK": 1}

    def test_an_unreadable_file_is_an_error(self, tmp_path: Path) -> None:
        path = disk().write(tmp_path / "disk.vhdx").path
        with pytest.raises(OSError, match="no more"):
            pyvhdx.check(Unreadable(path.read_bytes()))


class TestReport:
    def test_amounts(self, tmp_path: Path) -> None:
        image = disk(bat={3: 6 * MIB | 3})
        path = image.write(tmp_path / "disk.vhdx").path
        os.truncate(path, 9 * MIB)
        report = pyvhdx.check(path)
        assert report.counts == {"SPACE-SLACK": 1, "SPACE-ANCHORS": 1}
        assert (report.notes, report.warnings, report.corruptions, report.ok) == (2, 0, 0, True)
        assert report.reclaimable == 3 * MIB
        assert report.end_offset == 7 * MIB
        assert (report.total_blocks, report.allocated_blocks) == (8, 2)

    def test_it_is_plain_for_json(self, tmp_path: Path) -> None:
        parent().write(tmp_path / "parent.vhdx")
        report = pyvhdx.check(child(bat={5: 4}).write(tmp_path / "child.vhdx").path)
        plain = json.loads(json.dumps(report.to_dict()))
        assert plain["ok"] is False
        assert plain["corruptions"] == 1
        assert plain["findings"][0]["code"] == "BAT-STATE"
        assert plain["findings"][0]["repairable"] is False
        assert plain["parent"]["findings"] == []

    def test_progress_ends_at_its_total_and_can_cancel(self, tmp_path: Path) -> None:
        parent().write(tmp_path / "parent.vhdx")
        path = child().write(tmp_path / "child.vhdx").path
        seen: list[tuple[int, int]] = []
        pyvhdx.check(path, deep=True, progress=lambda done, total: seen.append((done, total)))
        assert all(0 <= done <= total for done, total in seen)
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)
        assert seen[-1][0] == seen[-1][1]

        def stop(_done: int, _total: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            pyvhdx.check(path, progress=stop)

    def test_a_held_file_is_not_checked(self, tmp_path: Path) -> None:
        path = disk().write(tmp_path / "disk.vhdx").path
        with pyvhdx.open(path, "r+"):
            with pytest.raises(pyvhdx.LockedError):
                pyvhdx.check(path)
            assert pyvhdx.check(path, lock=False).ok

    @pytest.mark.usefixtures("descriptors")
    def test_nothing_stays_open(self, tmp_path: Path) -> None:
        parent().write(tmp_path / "parent.vhdx")
        pyvhdx.check(child().write(tmp_path / "child.vhdx").path)
        (tmp_path / "parent.vhdx").unlink()
        pyvhdx.check(tmp_path / "child.vhdx")

    def test_no_event_but_reads(self, tmp_path: Path) -> None:
        storage = RecordingStorage(
            MemoryStorage(disk(bat={3: 4}).write(tmp_path / "disk.vhdx").path.read_bytes())
        )
        pyvhdx.check(storage, deep=True)
        assert storage.events == []

    def test_nothing_is_called_free_while_something_is_corrupt(self, tmp_path: Path) -> None:
        """Block 0, which its entry does not name any more, is what lies in the hole."""
        report = pyvhdx.check(disk(bat={0: 64 * MIB | FULL}).write(tmp_path / "disk.vhdx").path)
        hole = next(finding for finding in report.findings if finding.code == "SPACE-UNOWNED")
        assert report.counts == {"BAT-RANGE": 1, "SPACE-UNOWNED": 1}
        assert report.reclaimable == 0
        assert hole.offset == 4 * MIB
        assert hole.message == "1048576 bytes between structures belong to nothing: 0x400000 to 0x500000"

    def test_of_many_holes_ten_are_named(self, tmp_path: Path) -> None:
        blocks = {number: Block(FULL) for number in range(40)}
        image = disk(size=40 * MIB, blocks=blocks, bat=dict.fromkeys(range(0, 38, 2), 0))
        (finding,) = pyvhdx.check(image.write(tmp_path / "disk.vhdx").path).findings
        assert finding.message.count(" to 0x") == 10
        assert finding.message.endswith(", and more")
        assert finding.message.startswith(f"{19 * MIB} bytes")

    def test_findings_of_one_code_come_in_the_order_of_their_places(self, tmp_path: Path) -> None:
        bat = {1: 5 * MIB | FULL, 3: 5 * MIB | FULL, 5: MIB | FULL, 4: 4 * MIB | FULL}
        report = pyvhdx.check(disk(bat=bat).write(tmp_path / "disk.vhdx").path)
        places = [finding.offset for finding in report.findings if finding.code == "BAT-OVERLAP"]
        assert len(places) == 4
        assert places == sorted(places)


class TestWhatIsLost:
    def test_a_wiped_start_is_no_reason_to_give_up(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = disk().write(tmp_path / "disk.vhdx").path
        with path.open("r+b") as file:
            file.write(bytes(MIB))
        for command in ("check", "info", "map"):
            assert main([command, str(path)]) == 1
            assert "pyvhdx salvage may still find its contents" in capsys.readouterr().err

    def test_what_stops_a_command_names_check(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = str(disk(headers=both(crc=0)).write(tmp_path / "disk.vhdx").path)
        for command in (["info", path], ["map", path], ["convert", path, str(tmp_path / "out.raw")]):
            assert main(command) == 1
            assert capsys.readouterr().err.endswith("; pyvhdx check says what else is wrong\n")

    def test_a_zeroed_bat_is_seen_by_what_it_leaves(self, tmp_path: Path) -> None:
        path = disk().write(tmp_path / "disk.vhdx").path
        with path.open("r+b") as file:
            file.seek(BAT_AT)
            file.write(bytes(4096))
        assert pyvhdx.check(path).counts == {"SPACE-SLACK": 1, "SPACE-DATA": 1}
        seen: list[tuple[int, int]] = []
        report = pyvhdx.check(path, deep=True, progress=lambda done, total: seen.append((done, total)))
        assert report.counts == {"SPACE-SLACK": 1, "SPACE-DATA": 1}
        assert report.reclaimable == 0
        assert all(done <= total for done, total in seen)
        assert seen[-1][0] == seen[-1][1]
        with path.open("r+b") as file:
            file.truncate(4 * MIB)
            file.seek(4 * MIB)
            file.write(bytes(65 * MIB))  # zeros now, as far as a glance goes
            file.write(b"x")
            file.truncate(70 * MIB)
        assert pyvhdx.check(path).counts == {"SPACE-SLACK": 1}
        assert pyvhdx.check(path, deep=True).counts == {"SPACE-SLACK": 1, "SPACE-DATA": 1}
        os.truncate(path, 69 * MIB)
        assert pyvhdx.check(path, deep=True).counts == {"SPACE-SLACK": 1}

    def test_a_writer_that_was_killed_leaves_a_pending_log_and_nothing_else(self, tmp_path: Path) -> None:
        path = tmp_path / "killed.vhdx"
        program = (
            "import os, sys, pyvhdx\n"
            "image = pyvhdx.create(sys.argv[1], 64 << 20)\n"
            "for number in range(3):\n"
            "    image.pwrite(b'x' * 4096, number << 24)\n"
            "    image.flush()\n"
            "os._exit(0)\n"
        )
        subprocess.run([sys.executable, "-c", program, path], check=True)
        report = pyvhdx.check(path, deep=True)
        assert {finding.code for finding in report.findings if finding.severity != "note"} == {"LOG-PENDING"}

    @pytest.mark.parametrize("other", ["guid", "number"])
    def test_an_old_entry_behind_the_newest_is_no_torn_one(self, other: str, tmp_path: Path) -> None:
        old = replace(LOG_ENTRY, sequence=6, changes={"crc": 0})
        old = replace(old, guid=guid(77)) if other == "guid" else replace(old, sequence=4)
        path = logged(LOG_ENTRY, old).write(tmp_path / "disk.vhdx").path
        assert codes(path) == {"LOG-PENDING": 1}


class TestCommand:
    def run(self, capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
        status = main(["check", *map(str, arguments)])
        said = capsys.readouterr()
        return status, said.out, said.err

    def test_statuses(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        clean = disk().write(tmp_path / "clean.vhdx").path
        warned = disk(bat={9: 5}).write(tmp_path / "warned.vhdx").path
        corrupt = disk(bat={3: 4}).write(tmp_path / "corrupt.vhdx").path
        orphan = child().write(tmp_path / "orphan.vhdx").path
        (tmp_path / "raw").write_bytes(bytes(2 * MIB))
        assert self.run(capsys, clean)[0] == 0
        assert self.run(capsys, warned)[0] == 0
        assert self.run(capsys, corrupt)[0] == 2
        assert self.run(capsys, orphan)[0] == 2
        assert self.run(capsys, orphan, "--no-parent")[0] == 0
        assert self.run(capsys, tmp_path / "raw")[0] == 1
        assert self.run(capsys, tmp_path / "none")[0] == 1
        assert self.run(capsys, clean, "--within", tmp_path / "none")[0] == 1
        with pyvhdx.open(clean, "r+"):
            assert self.run(capsys, clean)[0] == 1
            assert self.run(capsys, "-U", clean)[0] == 0

    @pytest.mark.parametrize("arguments", [[], ["--bogus", "x"], ["x", "y"], ["x", "--output", "xml"]])
    def test_wrong_use_is_not_corrupt(self, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as caught:
            main(["check", *arguments])
        assert caught.value.code == 1
        assert "usage: pyvhdx check" in capsys.readouterr().err

    def test_text(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = disk(size=3000 * MIB, bat=dict.fromkeys(range(5, 1505), 4)).write(tmp_path / "disk.vhdx").path
        status, out, err = self.run(capsys, path)
        assert (status, err) == (2, "")
        assert out.startswith(
            f"{path}:\n  corrupt: BAT entry of block 5 at 0x300028: its state 4 is reserved"
        )
        assert "and 500 more of BAT-STATE\n" in out
        assert out.endswith("corrupt: 1500 corruptions, 0 warnings, 0 notes\n")
        assert self.run(capsys, "-q", path) == (2, "", "")

    @pytest.mark.peer("qemu-img")
    def test_json_has_the_keys_of_qemu(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = disk().write(tmp_path / "disk.vhdx").path
        status, out, _ = self.run(capsys, "--output", "json", "--deep", path)
        said = json.loads(out)
        done = subprocess.run(
            ["qemu-img", "check", "--output", "json", path], capture_output=True, text=True, check=True
        )
        theirs = json.loads(done.stdout)
        assert status == 0
        assert {key: said[key] for key in theirs} == theirs
        assert "leaks" not in said
        assert (said["corruptions"], said["image-end-offset"], said["allocated-clusters"]) == (0, 6 * MIB, 2)

    @pytest.mark.peer("qemu-img")
    def test_where_qemu_refuses_a_file_it_is_corrupt_or_quirk(self, tmp_path: Path) -> None:
        """QEMU refuses these; none of them is clean here."""
        for specimen in SPECIMENS:
            folder = tmp_path / specimen.name
            folder.mkdir()
            path = specimen.make(folder)
            if specimen.code.startswith(("LOCATOR", "PARENT", "BITMAP")) or path.stat().st_size > 1 << 30:
                continue  # QEMU knows no differencing files
            done = subprocess.run(["qemu-img", "info", path], capture_output=True, text=True, check=False)
            if done.returncode:
                assert pyvhdx.check(path).counts, specimen.name


@pytest.mark.images
class TestRealImages:
    EXPECTED: ClassVar = {
        "iotest-dynamic-1G.vhdx": {"GUID-FORM": 1},
        "iotest-dirtylog-10G-4M.vhdx": {
            "LOG-PENDING": 1,
            "GUID-FORM": 4,
            "HEADER-FIELDS": 1,
            "REGION-REQUIRED": 2,
            "SPACE-UNOWNED": 1,
        },
        "discutils-swap.vhdx": {},
    }

    def test_they_are_clean_but_for_what_their_makers_do(self, real_images: dict[str, Any]) -> None:
        found = {name: pyvhdx.check(path, deep=True) for name, (path, _) in real_images.items()}
        assert {name: report.counts for name, report in found.items()} == self.EXPECTED
        assert all(report.ok for report in found.values())


@pytest.mark.peer("qemu-img")
class TestWhatQemuMakes:
    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ("subformat=dynamic", {"SPACE-SLACK"}),
            ("subformat=fixed", {"BAT-FIXED", "FILE-ALIGNMENT", "SPACE-SLACK"}),
            ("subformat=fixed,block_state_zero=off", {"FILE-ALIGNMENT", "BAT-LAST-BLOCK"}),
        ],
    )
    def test_its_habits_are_warnings(self, options: str, expected: set[str], tmp_path: Path) -> None:
        path = tmp_path / "qemu.vhdx"
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "vhdx", "-o", options, path, str(20 * MIB + 512 * 1024)],
            check=True,
        )
        report = pyvhdx.check(path)
        habits = {"GUID-FORM", "HEADER-FIELDS", "REGION-REQUIRED", "SPACE-UNOWNED"}
        assert report.ok
        assert set(report.counts) - habits == expected


@pytest.mark.skipif(not os.path.isdir(TMPFS), reason="needs a file system that takes files of 64 TiB")
class TestTheLargestImage:
    """64 TiB in blocks of 1 MiB, all of them present: 67 million entries."""

    CODE = """
import sys, time, pyvhdx
started = time.process_time()
report = pyvhdx.check(sys.argv[1])
assert report.counts == {}, report.counts
assert report.allocated_blocks == 1 << 26
peak = open("/proc/self/status").read().split("VmHWM:")[1].split()[0]
print(time.process_time() - started, peak)
"""

    @pytest.mark.slow
    @pytest.mark.parametrize("order", ["in order", "shuffled"])
    def test_a_full_table(self, order: str) -> None:
        if os.environ.get("PYVHDX_TEST_PROFILE") != "long":
            pytest.skip("takes a minute; PYVHDX_TEST_PROFILE=long runs it")
        path = Path(TMPFS, f"pyvhdx-{os.getpid()}.vhdx")
        blocks = 1 << 26
        try:
            pyvhdx.create(path, 64 << 40, block_size=MIB, sync=False).close()
            with pyvhdx.open(path) as image:
                region = image._file.regions.bat
            factor = 1 if order == "in order" else 2654435761
            with path.open("r+b") as file:
                file.truncate(region.end + (64 << 40))
                file.seek(region.file_offset)
                for first in range(0, blocks, 4096):
                    places = (block * factor & blocks - 1 for block in range(first, first + 4096))
                    entries = array("Q", (region.end + (place << 20) | FULL for place in places))
                    entries.append(0)
                    file.write(entries.tobytes())
            done = subprocess.run(
                [sys.executable, "-c", self.CODE, path], capture_output=True, text=True, check=True
            )
        finally:
            path.unlink()
        seconds, kibibytes = map(float, done.stdout.split())
        print(f"{order}: {seconds:.1f} s of CPU, {kibibytes / 1024:.0f} MiB")
        assert kibibytes < 300 * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="measures as Linux does")
def test_a_wide_file_takes_little_memory(tmp_path: Path) -> None:
    """A log can claim a file of 256 TiB, and a BAT entry can point to its end."""
    code = """
import sys, pyvhdx
pyvhdx.check(sys.argv[1])
# Not getrusage: that counts the memory of the process that forked this one, too.
print(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
"""
    from tests.corpus.broken import entry, logged  # noqa: PLC0415 - for this test only

    path = logged(entry(last=256 << 40), bat={3: (256 << 40) - MIB | FULL}).write(tmp_path / "disk.vhdx").path
    report = pyvhdx.check(path)
    assert set(report.counts) == {"LOG-PENDING", "LOG-LAST-OFFSET", "SPACE-UNOWNED"}
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert int(done.stdout) >> 10 < 200


def test_bits_of_a_child_with_many_chunks(tmp_path: Path) -> None:
    """A chunk of which the file holds no payload entry, and one in a hole, keep their bitmaps."""
    image = Image(
        size=9 << 30,
        block_size=32 * MIB,
        kind="differencing",
        parent=parent(),
        blocks={0: Block(PARTIAL, frozenset({5})), 270: Block(PARTIAL, frozenset({7}))},
    )
    path = image.write(tmp_path / "child.vhdx").path
    assert codes(path, parent=False) == {}
    image.stale_bits = True
    assert codes(image.write(path).path, parent=False) == {"BITMAP-STALE": 2}
