"""What a file is that is not VHDX, and what opens it."""

from __future__ import annotations

_PREFIXES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"conectix", "a VHD (version 1) disk; open it with qemu-img (format vpc) or libvhdi"),
    (0, b"QFI\xfb", "a qcow2 disk; open it with qemu-img (format qcow2)"),
    (0, b"QED\0", "a QED disk; open it with qemu-img (format qed)"),
    (0, b"KDMV", "a VMDK disk; open it with qemu-img (format vmdk)"),
    (0, b"COWD", "a VMDK (ESX) disk; open it with qemu-img (format vmdk)"),
    (0, b"# Disk DescriptorFile", "the descriptor of a VMDK disk; open it with qemu-img (format vmdk)"),
    (64, b"\x7f\x10\xda\xbe", "a VDI disk; open it with qemu-img (format vdi) or VirtualBox"),
    (0, b"WithoutFreeSpace", "a Parallels disk; open it with qemu-img (format parallels)"),
    (0, b"WithouFreSpacExt", "a Parallels disk; open it with qemu-img (format parallels)"),
    (0, b"\x1f\x8b", "gzip data; decompress it with gunzip, or pass gzip.open(...) as a file object"),
    (0, b"\xfd7zXZ\0", "xz data; decompress it with unxz, or pass lzma.open(...) as a file object"),
    (0, b"PK\x03\x04", "a zip archive; extract it first"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive; extract it with 7-Zip first"),
    (0, b"BZh", "bzip2 data; decompress it with bunzip2, or pass bz2.open(...) as a file object"),
    (0, b"\x28\xb5\x2f\xfd", "zstd data; decompress it with unzstd first"),
    (0, b"MSWIM\0\0\0", "a WIM archive; open it with wimlib or 7-Zip"),
    (0, b"EVF\x09\x0d\x0a\xff\0", "an EWF (EnCase) image; open it with libewf"),
)

HEAD_SIZE = 8192
FOOTER_SIZE = 512

_RAW_ADVICE = "; read it as it is, or make a VHDX of it with `pyvhdx convert`"


def recognise(head: bytes, footer: bytes, name: str) -> tuple[str, bool] | None:
    """
    Tell what a file is by its first 8192 and last 512 bytes, its name as a last resort.

    Returns a phrase with the advice, and whether it is a raw disk; None where nothing is known.
    """
    for offset, magic, phrase in _PREFIXES:
        if head.startswith(magic, offset):
            return phrase, False
    if footer.startswith(b"conectix") or footer[1:].startswith(b"conectix"):
        return "a fixed VHD (version 1) disk; open it with qemu-img (format vpc) or libvhdi", False
    if footer.startswith(b"koly"):
        return "an Apple disk image; open it with qemu-img (format dmg)", False
    if name.lower().endswith(".vhds"):
        return "a VHD set; open the .avhdx file that it names, which lies beside it", False
    if head.startswith(b"EFI PART", 512) or head.startswith(b"EFI PART", 4096):
        return "a raw disk with a GPT partition table" + _RAW_ADVICE, True
    if head[510:512] == b"\x55\xaa":
        return "a raw disk with a boot sector or MBR partition table" + _RAW_ADVICE, True
    return None
