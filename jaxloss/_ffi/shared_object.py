"""What a shared object says of itself, read before it is loaded: to load one that is cut off ends the process."""

import os
import pathlib
import platform
import struct
import sys

_MACHINES = {"x86_64": 62, "amd64": 62, "aarch64": 183, "arm64": 183}
"""Processors as `platform.machine` names them, and as ELF files number them."""


def fault(path: pathlib.Path) -> str | None:
    """Why this process cannot load that file; None where nothing speaks against it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header = file.read(64)
        if len(header) < 64 or header[:4] != b"\x7fELF":
            return f"it is no shared object of Linux: {size} bytes that begin with {header[:4]!r}"
        if header[4:6] != b"\x02\x01":
            return "it is not for a 64-bit little-endian processor"
        machine = struct.unpack_from("<H", header, 18)[0]
        here = platform.machine()
        if _MACHINES.get(here.lower(), machine) != machine:
            names = [name for name, number in _MACHINES.items() if number == machine]
            return f"it is for another processor ({names[0] if names else machine}), this one is {here}"
        segments, sections = struct.unpack_from("<QQ", header, 32)
        segment_bytes, segment_count, section_bytes, section_count = struct.unpack_from("<HHHH", header, 54)
        wanted = max(segments + segment_bytes * segment_count, sections + section_bytes * section_count)
        if wanted <= size:
            file.seek(segments)
            table = file.read(segment_bytes * segment_count)
            for begin in range(0, len(table), segment_bytes):
                offset, of_file = struct.unpack_from("<Q16xQ", table, begin + 8)
                if of_file:  # linkers give an empty one, such as of variables of threads that are 0, any offset
                    wanted = max(wanted, offset + of_file)
        if wanted > size:
            return f"it is cut off: {size} bytes of {wanted}"
    return None


def loaded_already(name: str, path: pathlib.Path) -> str | None:
    """The path of another file of that name that this process has loaded; None if there is none, or no way to know."""
    maps = pathlib.Path("/proc/self/maps")
    if sys.platform != "linux" or not maps.exists():
        return None
    own = path.stat()
    for line in maps.read_text().splitlines():
        device, inode, *of_file = line.split(maxsplit=5)[3:]
        if not of_file or pathlib.PurePath(of_file[0].removesuffix(" (deleted)")).name != name:
            continue
        major, minor = (int(number, 16) for number in device.split(":"))
        if (os.makedev(major, minor), int(inode)) != (own.st_dev, own.st_ino):
            return of_file[0]
    return None
