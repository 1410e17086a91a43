"""What the machine has: processor, memory, GPUs, and a torch that works or does not."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tuyi.errors import first_line

__all__ = [
    "Gpu",
    "Torch",
    "find_gpus",
    "find_torch",
    "host_memory",
    "torchvision_misfit",
    "unmet_requirements",
]

_MIB = 2**20
_QUERY = "name,driver_version,memory.free,memory.total,compute_cap"
_BROKEN = (ImportError, OSError, RuntimeError, AttributeError)
"""What a binary package raises that was built for another one: missing symbols, operators or modules."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU: memory in bytes, compute capability as (major, minor)."""

    name: str
    driver: str
    free: int
    total: int
    capability: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Torch:
    """torch as it is here.

    Args:
        module: The module, or None where it cannot be imported.
        version: As installed.
        cuda: The CUDA that it was built for, None for a CPU build.
        devices: GPUs that it can use.
        error: Why it cannot be imported.
    """

    module: Any
    version: str
    cuda: str | None = None
    devices: int = 0
    error: str = ""

    def gpus(self) -> tuple[Gpu, ...]:
        """The GPUs as torch sees them, for a machine without ``nvidia-smi``."""
        found = []
        for index in range(self.devices):
            facts = self.module.cuda.get_device_properties(index)
            free, total = self.module.cuda.mem_get_info(index)
            found.append(Gpu(facts.name, "", free, total, (facts.major, facts.minor)))
        return tuple(found)


def find_torch() -> Torch:
    """Import torch and say what went wrong if something did."""
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        version = "not installed"
    try:
        torch = import_module("torch")
    except _BROKEN as error:
        return Torch(None, version, error=first_line(error))
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return Torch(torch, str(torch.__version__), torch.version.cuda, devices)


def torchvision_misfit(torch_version: str) -> str:
    """Why the installed torchvision does not fit torch, told without importing it; empty where it does.

    A torchvision of another torch, or for another CUDA, breaks the import of transformers.

    Args:
        torch_version: ``torch.__version__``, build tag included, such as ``2.11.0+cpu``.
    """
    from packaging.requirements import Requirement
    from packaging.version import Version

    spec = find_spec("torchvision")
    if spec is None or spec.origin is None:
        return ""
    torch = Version(torch_version)
    for wanted in map(Requirement, metadata.requires("torchvision") or ()):
        if wanted.name == "torch" and not wanted.specifier.contains(torch.base_version, prereleases=True):
            return f"it needs torch {wanted.specifier}"
    text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    own = re.search(r"__version__ = '([^']+)'", text)
    tag = Version(own[1]).local if own else None
    if tag and torch.local and tag != torch.local:
        return f"it is built for {tag}"
    return ""


def find_gpus() -> tuple[Gpu, ...]:
    """The NVIDIA GPUs that the driver knows, asked without torch; none where there is no ``nvidia-smi``."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return ()
    try:
        done = subprocess.run(
            [command, f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ()  # a driver that does not answer has no GPU for anybody; torch is asked next
    return tuple(_gpu(line) for line in done.stdout.splitlines() if line.count(",") == _QUERY.count(","))


def _gpu(line: str) -> Gpu:
    name, driver, free, total, capability = (item.strip() for item in line.split(","))
    return Gpu(name, driver, int(free) * _MIB, int(total) * _MIB, tuple(int(part) for part in capability.split(".")))


def host_memory() -> tuple[int, int]:
    """(free, total) bytes of memory, within the limit of the container where there is one.

    Source: Linux proc(5) meminfo, and memory.max and memory.current of control groups version 2.
    """
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = (line.split(":") for line in meminfo.read_text(encoding="ascii").splitlines())
        known = {name: int(value.split()[0]) * 1024 for name, value in lines}
        free, total = known["MemAvailable"], known["MemTotal"]
    else:  # macOS has no count of what is free
        total = free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    group = Path("/sys/fs/cgroup")
    limit = _read(group / "memory.max")
    if limit.isdigit() and int(limit) < total:
        total = int(limit)
        free = min(free, total - int(_read(group / "memory.current") or 0))
    return free, total


def _read(path: Path) -> str:
    return path.read_text(encoding="ascii").strip() if path.exists() else ""


def unmet_requirements() -> Iterator[tuple[str, str, str]]:
    """(package, wanted versions, version found or "") of each dependency of tuyi that is missing or another one."""
    from packaging.requirements import Requirement

    for text in metadata.requires("tuyi") or ():
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            found = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            found = ""
        if not found or not wanted.specifier.contains(found, prereleases=True):
            yield wanted.name, str(wanted.specifier), found
