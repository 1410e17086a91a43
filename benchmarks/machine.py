"""What numbers are measured on."""

from __future__ import annotations

import platform
from importlib import metadata

__all__ = ["begin", "machine"]


def begin(device: str | None) -> tuple[str, dict[str, str]]:
    """Choose the device, and print what the numbers are measured on.

    Args:
        device: Torch device; the GPU where there is one, where None.

    Returns:
        The device, and the facts.
    """
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    facts = machine(device)
    print("; ".join(f"{name} {value}" for name, value in facts.items()), flush=True)
    return device, facts


def machine(device: str) -> dict[str, str]:
    """What the numbers were measured on."""
    import torch

    from tuyi.cores import cpu_cores

    found = {"cpu": f"{cpu_cores()} cores, {platform.processor() or platform.machine()}"}
    if device.startswith("cuda"):
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        found["gpu"] = f"{len(names)} × {names[0]}, CUDA {torch.version.cuda}"
    found["python"] = platform.python_version()
    for name in ("tuyi", "torch", "transformers", "pillow"):
        found[name] = metadata.version(name)
    return found
