"""Puts into a wheel the software bill of materials (PEP 770, CycloneDX) of what is linked into its library.

    python tools/sbom.py path/to/jaxloss.whl

THIRD_PARTY.md says the same in words. `tools/wheel.py` calls this; what it finds in a wheel is checked by
`tools/try_wheel.py` where the wheel is installed.
"""

# CycloneDX's classes are made by a decorator that hides their types, where they are installed.
# pyright: reportMissingImports=false, reportCallIssue=false, reportAttributeAccessIssue=false, reportArgumentType=false

import contextlib
import ctypes
import datetime
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

from cyclonedx.model import ExternalReference, ExternalReferenceType, XsUri
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import LicenseExpression
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

OF_GCC = "GPL-3.0-or-later WITH GCC-exception-3.1"
OF_LLVM = "Apache-2.0 WITH LLVM-exception"
NAME = "jaxloss.cdx.json"


def add(wheel: Path) -> None:
    """The wheel with the list in it, in place."""
    with tempfile.TemporaryDirectory() as folder:
        _wheel("unpack", "--dest", folder, str(wheel))
        (content,) = Path(folder).iterdir()
        (info,) = content.glob("*.dist-info")
        machine = "aarch64" if wheel.stem.endswith("aarch64") else "x86_64"
        listed = materials(content.name.partition("-")[2], machine, content / "jaxloss" / "libjaxloss.so")
        (info / "sboms").mkdir(exist_ok=True)
        (info / "sboms" / NAME).write_text(listed, encoding="utf-8")
        packed = Path(folder) / "packed"
        packed.mkdir()
        _wheel("pack", "--dest-dir", str(packed), str(content))
        (made,) = packed.iterdir()
        shutil.copyfile(made, wheel)


def materials(version: str, machine: str, library: Path) -> str:
    """The list, in JSON; the same for the same library and commit."""
    bom = Bom()
    bom.metadata.component = _component("jaxloss", version, "Apache-2.0", ComponentType.LIBRARY)
    found = [_component(*part) for part in parts(machine, cuda_runtime(library))]
    bom.components.update(found)
    bom.register_dependency(bom.metadata.component, found)
    of_commit = datetime.datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH", "0")), datetime.UTC)
    bom.metadata.timestamp = of_commit
    names = " ".join(sorted(str(component.bom_ref) for component in found))
    bom.serial_number = uuid.uuid5(uuid.NAMESPACE_URL, f"jaxloss {version} {machine} {of_commit} {names}")
    text = JsonV1Dot6(bom).output_as_string(indent=1)
    if errors := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        sys.exit(f"error: the bill of materials is not CycloneDX: {errors}")
    return text + "\n"


def parts(machine: str, runtime: str) -> list[tuple[str, str, str]]:
    """Name, version and licence of what is in the library of a wheel for that processor; `runtime` of CUDA, if any."""
    found = [
        ("XLA FFI headers of jaxlib", _pinned("jaxlib"), "Apache-2.0"),
        ("zig compiler-rt", importlib.metadata.version("ziglang"), "MIT"),
    ]
    if machine == platform.machine():
        gcc = _output(os.environ.get("CXX", "g++"), "-dumpfullversion")
        found += [("libstdc++ headers", gcc, OF_GCC), ("libgcc", gcc, OF_GCC)]
    else:  # compiled by zig, which brings LLVM's
        clang = _output(sys.executable, "-m", "ziglang", "c++", "-dumpversion")
        found += [(name, clang, OF_LLVM) for name in ("libc++", "libc++abi", "libunwind")]
    if runtime:
        found.append(("CUDA runtime, static", runtime, "LicenseRef-NVIDIA-CUDA-EULA"))
    return found


def cuda_runtime(library: Path) -> str:
    """The version of the CUDA runtime in it, or "" if it has none; one for another processor has none."""
    with contextlib.suppress(OSError):
        number = ctypes.CDLL(str(library)).jaxloss_cuda_runtime
        number.restype = ctypes.c_int64
        if found := number():
            return f"{found // 1000}.{found % 1000 // 10}"
    return ""


def _component(name: str, version: str, licence: str, kind: ComponentType = ComponentType.LIBRARY) -> Component:
    references = []
    if licence.startswith("LicenseRef"):
        url = XsUri("https://docs.nvidia.com/cuda/eula/")
        references = [ExternalReference(type=ExternalReferenceType.LICENSE, url=url)]
    return Component(
        name=name,
        version=version,
        type=kind,
        bom_ref=f"{name}@{version}",
        licenses=[LicenseExpression(licence)],
        external_references=references,
    )


def _pinned(name: str) -> str:
    """The version that pyproject.toml builds with."""
    text = Path("pyproject.toml").read_text(encoding="utf-8")
    return text.partition(f'"{name}==')[2].partition('"')[0]


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _wheel(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "wheel", *arguments], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    add(Path(sys.argv[1]))
