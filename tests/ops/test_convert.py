"""Raw to VHDX and back is the identity, and whatever goes wrong leaves nothing behind."""

from __future__ import annotations

import gzip
import io
import os
import random
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pyvhdx
from pyvhdx.ops import source as source_module

MIB = 1 << 20


class Stream(io.RawIOBase):
    """A file object that cannot seek, and gives a little at a time."""

    def __init__(self, content: bytes = b"") -> None:
        self.inner = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        return self.inner.read(min(size, 100_000) if size >= 0 else -1)

    def write(self, data: Any, /) -> int:
        return self.inner.write(bytes(data)[:70_000])


def there_and_back(folder: Path, content: bytes, **how: Any) -> None:
    """Through files and through streams, both ways."""
    raw, back = folder / "disk.raw", folder / "back.raw"
    raw.write_bytes(content)
    sector = how.get("logical_sector_size", 512)
    padded = content + bytes(-len(content) % sector)
    for name, source in (("file.vhdx", raw), ("stream.vhdx", Stream(content))):
        report = pyvhdx.convert(source, folder / name, overwrite=True, source_format="raw", **how)
        assert (report.virtual_size, report.padded) == (len(padded), len(padded) - len(content))
        with pyvhdx.open(folder / name) as image:
            assert image.size == len(padded)
            assert image.read() == padded
        pyvhdx.convert(folder / name, back, overwrite=True)
        assert back.read_bytes() == padded
        out = Stream()
        pyvhdx.convert(folder / name, out, format="raw")
        assert out.inner.getvalue() == padded


class TestIdentity:
    @given(st.data())
    @settings(max_examples=60)
    def test_for_disks_of_any_number_of_sectors(self, data: st.DataObject) -> None:
        sectors = data.draw(st.integers(1, 6500))
        content = bytearray(512 * sectors)
        draw = random.Random(data.draw(st.integers(0, 99)))
        for _ in range(data.draw(st.integers(0, 4))):
            at, length = draw.randrange(len(content)), draw.choice((1, 512, 70_000, 2 * MIB))
            content[at : at + length] = draw.randbytes(min(length, len(content) - at))
        with tempfile.TemporaryDirectory() as folder:
            there_and_back(
                Path(folder),
                bytes(content),
                block_size=MIB,
                kind=data.draw(st.sampled_from(("dynamic", "fixed"))),
            )

    @pytest.mark.parametrize("sector", [512, 4096])
    @pytest.mark.parametrize("kind", ["dynamic", "fixed"])
    @pytest.mark.parametrize("content", ["dense", "zero", "end", "one"])
    def test_for_dense_and_empty_disks(self, content: str, kind: str, sector: int, tmp_path: Path) -> None:
        data = {
            "dense": random.Random(1).randbytes(5 * MIB + sector),
            "zero": bytes(5 * MIB),
            "end": bytes(5 * MIB - 1) + b"\1",
            "one": b"\1" * sector,
        }[content]
        there_and_back(tmp_path, data, kind=kind, logical_sector_size=sector)

    @pytest.mark.parametrize("size", [1, 511, 513, 3 * MIB + 1])
    def test_a_size_that_is_no_sector_multiple_is_padded_with_a_warning(
        self, size: int, tmp_path: Path
    ) -> None:
        content = random.Random(2).randbytes(size)
        with pytest.warns(UserWarning, match="zeros are added"):
            there_and_back(tmp_path, content)
        with pytest.warns(UserWarning, match="4096"):
            there_and_back(tmp_path, content, logical_sector_size=4096)

    def test_for_a_vhdx_into_another(self, tmp_path: Path) -> None:
        """Flattened through its chain, and its sector sizes kept."""
        from tests.corpus.simple import three_levels  # noqa: PLC0415

        top, content = three_levels(tmp_path, 6)
        pyvhdx.convert(top, tmp_path / "flat.vhdx", kind="fixed", block_size=4 * MIB)
        with pyvhdx.open(tmp_path / "flat.vhdx") as image:
            assert (image.kind, image.block_size, image.read()) == ("fixed", 4 * MIB, content)
        with pyvhdx.open(top) as image:
            assert pyvhdx.convert(image, tmp_path / "again.raw").source_format == "vhdx"
        assert (tmp_path / "again.raw").read_bytes() == content
        pyvhdx.create(tmp_path / "4k.vhdx", MIB, logical_sector_size=4096, physical_sector_size=4096).close()
        pyvhdx.convert(tmp_path / "4k.vhdx", tmp_path / "4k2.vhdx")
        with pyvhdx.open(tmp_path / "4k2.vhdx") as image:
            assert image.logical_sector_size == 4096

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="a loop device needs root")
    def test_from_a_block_device(self, tmp_path: Path) -> None:
        content = random.Random(3).randbytes(3 * MIB) + bytes(2 * MIB)
        (tmp_path / "disk.bin").write_bytes(content)
        if not shutil.which("losetup"):
            pytest.skip("losetup is missing")
        made = subprocess.run(
            ["losetup", "-f", "--show", "-r", tmp_path / "disk.bin"],
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode:
            pytest.skip(f"no loop device: {made.stderr}")
        device = made.stdout.strip()
        try:
            report = pyvhdx.convert(device, tmp_path / "disk.vhdx")
            assert (report.source_format, report.virtual_size) == ("raw", 5 * MIB)
            with pyvhdx.open(tmp_path / "disk.vhdx") as image:
                assert image.read() == content
        finally:
            subprocess.run(["losetup", "-d", device], check=True)


class TestSparseness:
    def test_holes_stay_holes_both_ways(self, tmp_path: Path) -> None:
        raw, path, back = tmp_path / "disk.raw", tmp_path / "disk.vhdx", tmp_path / "back.raw"
        with raw.open("wb") as file:
            for at in (0, 300 * MIB, 700 * MIB):
                file.seek(at)
                file.write(b"data" * 1024)
            file.truncate(1 << 30)
        report = pyvhdx.convert(raw, path)
        assert report.data == 3 * 4096
        assert path.stat().st_size == (4 + 3 * 2) * MIB
        assert path.stat().st_blocks * 512 < 2 * MIB
        pyvhdx.convert(path, back)
        assert back.stat().st_size == 1 << 30
        assert back.stat().st_blocks * 512 <= raw.stat().st_blocks * 512

    def test_zeros_in_a_dense_source_take_no_space(self, tmp_path: Path) -> None:
        raw = tmp_path / "disk.raw"
        raw.write_bytes(b"x" * 512 + bytes(32 * MIB))
        assert pyvhdx.convert(raw, tmp_path / "disk.vhdx").data == 65536
        assert (tmp_path / "disk.vhdx").stat().st_size == 6 * MIB


class TestFormats:
    def test_the_suffix_of_the_target_decides(self, tmp_path: Path) -> None:
        (tmp_path / "disk.raw").write_bytes(bytes(512))
        for name in ("a.vhdx", "a.AVHDX"):
            assert pyvhdx.convert(tmp_path / "disk.raw", tmp_path / name).target_format == "vhdx"
        for name in ("a.raw", "a.img"):
            assert pyvhdx.convert(tmp_path / "a.vhdx", tmp_path / name).target_format == "raw"
        for name in ("a.bin", "a.vhd", "a"):
            with pytest.raises(pyvhdx.RequestError, match="format"):
                pyvhdx.convert(tmp_path / "disk.raw", tmp_path / name)
            assert (
                pyvhdx.convert(tmp_path / "disk.raw", tmp_path / name, format="vhdx").target_format == "vhdx"
            )

    def test_the_content_of_the_source_decides_unless_its_name_says_raw(self, tmp_path: Path) -> None:
        pyvhdx.create(tmp_path / "a.vhdx", MIB).close()
        data = (tmp_path / "a.vhdx").read_bytes()
        (tmp_path / "anything").write_bytes(data)
        assert pyvhdx.convert(tmp_path / "anything", tmp_path / "b.raw").source_format == "vhdx"
        (tmp_path / "c.img").write_bytes(data)
        with pytest.warns(UserWarning, match="holds a VHDX"):
            assert pyvhdx.convert(tmp_path / "c.img", tmp_path / "d.vhdx").source_format == "raw"
        (tmp_path / "damaged").write_bytes(b"VHDXFILE" + data[8:])
        with pytest.raises(pyvhdx.CorruptImageError, match="a header follows"):
            pyvhdx.convert(tmp_path / "damaged", tmp_path / "x.raw")
        assert pyvhdx.convert(
            tmp_path / "anything", tmp_path / "e.vhdx", source_format="raw"
        ).virtual_size == len(data)
        with pytest.raises(pyvhdx.NotVHDXError):
            pyvhdx.convert(tmp_path / "b.raw", tmp_path / "f.raw", source_format="vhdx")

    def test_other_formats_are_refused_with_advice(self, tmp_path: Path) -> None:
        (tmp_path / "disk.gz").write_bytes(gzip.compress(bytes(5000)))
        for source in (tmp_path / "disk.gz", Stream((tmp_path / "disk.gz").read_bytes())):
            with pytest.raises(pyvhdx.NotVHDXError, match="gunzip"):
                pyvhdx.convert(source, tmp_path / "disk.vhdx")
        with gzip.open(tmp_path / "disk.gz") as file, pytest.warns(UserWarning, match="added"):
            assert pyvhdx.convert(file, tmp_path / "disk.vhdx", source_format="raw").virtual_size == 5120

    def test_a_vhdx_cannot_come_through_a_pipe(self, tmp_path: Path) -> None:
        pyvhdx.create(tmp_path / "a.vhdx", MIB).close()
        with pytest.raises(pyvhdx.RequestError, match="seek"):
            pyvhdx.convert(Stream((tmp_path / "a.vhdx").read_bytes()), tmp_path / "b.raw")
        with pytest.raises(pyvhdx.RequestError, match="seek"):
            pyvhdx.convert(Stream(b"x"), tmp_path / "b.raw", source_format="vhdx")

    @pytest.mark.parametrize(
        "how",
        [
            {"source_format": "qcow2"},
            {"format": "qcow2"},
            {"kind": "differencing"},
            {"kind": "thin"},
            {"block_size": 3},
            {"logical_sector_size": 520},
            {"log_size": 5},
            {"format": "raw", "kind": "fixed"},
            {"format": "raw", "seed": "x"},
            {"parent": "x.vhdx"},
        ],
    )
    def test_parameters_that_cannot_be(self, how: dict[str, Any], tmp_path: Path) -> None:
        (tmp_path / "disk.raw").write_bytes(bytes(512))
        with pytest.raises(pyvhdx.RequestError):
            pyvhdx.convert(tmp_path / "disk.raw", tmp_path / "disk.vhdx", **how)
        assert os.listdir(tmp_path) == ["disk.raw"]


class TestTargets:
    @pytest.fixture
    def raw(self, tmp_path: Path) -> Path:
        (tmp_path / "disk.raw").write_bytes(b"x" * 4096)
        return tmp_path / "disk.raw"

    def test_an_existing_one_is_refused_or_replaced_with_its_mode(self, raw: Path, tmp_path: Path) -> None:
        target = tmp_path / "disk.vhdx"
        target.write_bytes(b"precious")
        target.chmod(0o600)
        with pytest.raises(FileExistsError):
            pyvhdx.convert(raw, target)
        assert target.read_bytes() == b"precious"
        pyvhdx.convert(raw, target, overwrite=True)
        assert pyvhdx.is_vhdx(target)
        assert stat.S_IMODE(target.stat().st_mode) == 0o600

    def test_the_source_or_a_file_of_its_chain_is_never_the_target(self, raw: Path, tmp_path: Path) -> None:
        with pytest.raises(pyvhdx.RequestError, match="source itself"):
            pyvhdx.convert(raw, raw, overwrite=True)
        pyvhdx.convert(raw, tmp_path / "base.vhdx")
        pyvhdx.create(tmp_path / "child.vhdx", parent=tmp_path / "base.vhdx").close()
        (tmp_path / "link.raw").symlink_to(tmp_path / "base.vhdx")
        before = (tmp_path / "base.vhdx").read_bytes()
        with (tmp_path / "base.vhdx").open("r+b") as same, pytest.raises(pyvhdx.RequestError, match="chain"):
            pyvhdx.convert(tmp_path / "child.vhdx", same, format="raw", overwrite=True)
        memory = io.BytesIO(before)
        with pytest.raises(pyvhdx.RequestError, match="source itself"):
            pyvhdx.convert(memory, memory, format="raw", overwrite=True)
        assert memory.getvalue() == before
        for target in ("base.vhdx", "child.vhdx", "link.raw"):
            with pytest.raises(pyvhdx.RequestError, match="chain"):
                pyvhdx.convert(tmp_path / "child.vhdx", tmp_path / target, overwrite=True)
        assert (tmp_path / "base.vhdx").read_bytes() == before

    def test_a_file_object(self, raw: Path) -> None:
        memory = io.BytesIO()
        pyvhdx.convert(raw, memory, format="vhdx")
        with pyvhdx.open(memory) as image:
            assert image.read() == raw.read_bytes()
        with pytest.raises(FileExistsError):
            pyvhdx.convert(raw, memory, format="vhdx")
        pyvhdx.convert(raw, memory, format="raw", overwrite=True)
        assert memory.getvalue() == raw.read_bytes()
        with pytest.raises(pyvhdx.RequestError, match="seek"):
            pyvhdx.convert(raw, Stream(), format="vhdx")

    @pytest.mark.parametrize("format", ["raw", "vhdx"])
    def test_a_file_opened_for_writing_only(self, format: str, raw: Path, tmp_path: Path) -> None:
        with (tmp_path / "new").open("wb") as file:
            pyvhdx.convert(raw, file, format=format)
        pyvhdx.convert(tmp_path / "new", tmp_path / "back.raw")
        assert (tmp_path / "back.raw").read_bytes() == raw.read_bytes()

    def test_an_empty_source_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "disk.raw").write_bytes(b"")
        for source in (tmp_path / "disk.raw", Stream()):
            for target in ("a.vhdx", "a.raw"):
                with pytest.raises(pyvhdx.RequestError, match="empty"):
                    pyvhdx.convert(source, tmp_path / target)
        assert os.listdir(tmp_path) == ["disk.raw"]


class TestSeed:
    def test_the_same_seed_and_input_give_the_same_bytes(self, tmp_path: Path) -> None:
        (tmp_path / "disk.raw").write_bytes(random.Random(1).randbytes(5 * MIB))
        made: list[Path] = []
        for seed in ("one", b"one", "two", None, None):
            made.append(tmp_path / f"{len(made)}.vhdx")
            pyvhdx.convert(tmp_path / "disk.raw", made[-1], seed=seed)
        one, same, other, *random_ones = [path.read_bytes() for path in made]
        assert one == same
        assert len({one, other, *random_ones}) == 4


class TestWhatGoesWrong:
    """Cancelled or failed, no target is left under its name and no source is harmed."""

    @pytest.fixture
    def raw(self, tmp_path: Path) -> Iterator[Path]:
        folder = tmp_path / "only"
        folder.mkdir()
        raw = folder / "disk.raw"
        raw.write_bytes(random.Random(1).randbytes(8 * MIB))
        before = raw.read_bytes()
        yield raw
        assert os.listdir(folder) == ["disk.raw"]
        assert raw.read_bytes() == before

    @pytest.mark.parametrize("suffix", [".vhdx", ".raw"])
    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    def test_progress_cancels_by_raising(self, raw: Path, error: type[BaseException], suffix: str) -> None:
        calls = []

        def progress(done: int, total: int) -> None:
            calls.append((done, total))
            if done >= 4 * MIB:
                raise error

        with pytest.raises(error):
            pyvhdx.convert(raw, raw.with_name("new" + suffix), progress=progress)
        assert calls == [(n * MIB, 8 * MIB) for n in range(1, 5)]

    def test_progress_of_a_stream_has_no_total(self, raw: Path) -> None:
        calls = []
        target = raw.with_name("new.vhdx")
        pyvhdx.convert(
            Stream(raw.read_bytes()), target, progress=lambda done, total: calls.append((done, total))
        )
        assert calls == [(n * MIB, 0) for n in range(1, 9)]
        target.unlink()

    @pytest.mark.parametrize("suffix", [".vhdx", ".raw"])
    def test_a_full_disk(self, raw: Path, suffix: str) -> None:
        def limit() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (6 * MIB, 6 * MIB))

        done = subprocess.run(
            [sys.executable, "-m", "pyvhdx", "convert", raw, raw.with_name("new" + suffix)],
            preexec_fn=limit, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert "File too large" in done.stderr
        assert "Traceback" not in done.stderr

    def test_a_full_file_system(self, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from pyvhdx.storage import LocalFile  # noqa: PLC0415

        count = 0

        def refuse(*_: object) -> None:
            raise OSError(28, "No space left on device")

        real = LocalFile.write_at
        for number in range(20):
            count = 0

            def write_at(self: LocalFile, data: bytes, offset: int, number: int = number) -> None:
                nonlocal count
                count += 1
                if count > number:
                    refuse()
                real(self, data, offset)

            monkeypatch.setattr(LocalFile, "write_at", write_at)
            try:
                pyvhdx.convert(raw, raw.with_name("new.vhdx"))
            except OSError as error:
                assert error.errno == 28
                assert os.listdir(raw.parent) == ["disk.raw"]
            else:
                raw.with_name("new.vhdx").unlink()
                assert number > 10
                break
        else:
            pytest.fail("it never came to an end")

    def test_a_source_that_shrinks(self, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(source_module._RawSource, "runs", lambda _: iter([(0, 9 * MIB)]))
        with pytest.raises(OSError, match="ended before"):
            pyvhdx.convert(raw, raw.with_name("new.vhdx"))

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_ends_the_command_with_130(self, raw: Path, number: signal.Signals) -> None:
        """The source is a pipe that never ends, so the command is surely under way."""
        command = [sys.executable, "-m", "pyvhdx", "convert", "-", str(raw.with_name("new.vhdx"))]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdin
            assert process.stderr
            process.stdin.write(bytes(3 * MIB))
            process.stdin.flush()
            until = time.monotonic() + 30
            while len(os.listdir(raw.parent)) < 2 and time.monotonic() < until:
                time.sleep(0.01)
            process.send_signal(number)
            _, said = process.communicate()
        assert process.returncode == 130
        assert said == b"pyvhdx: interrupted\n"


def test_warnings_are_none_where_nothing_is_odd(tmp_path: Path) -> None:
    (tmp_path / "disk.raw").write_bytes(bytes(1024))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pyvhdx.convert(tmp_path / "disk.raw", tmp_path / "disk.vhdx").to_dict()["padded"] == 0
