"""How many processor cores there are for this process, which may be far fewer than the machine has."""

from __future__ import annotations

import math
import os
from pathlib import Path

__all__ = ["cpu_cores", "reading_workers"]

_LIMIT = Path("/sys/fs/cgroup/cpu.max")


def cpu_cores(limit: Path = _LIMIT) -> int:
    """Cores that this process may use, at least 1: those it is bound to, within the limit of the container.

    Args:
        limit: Microseconds of processor time within a period, or ``max``, and the period.

    Source: Linux sched(7), and cpu.max of control groups version 2.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not limit.exists():
        return cores
    quota, _, period = limit.read_text(encoding="ascii").partition(" ")
    return cores if quota == "max" else max(1, min(cores, math.ceil(int(quota) / int(period))))


def reading_workers(processes: int = 1) -> int:
    """Workers that read pictures beside a process, which needs a core itself.

    Args:
        processes: How many such processes share the cores.
    """
    return max(2, min(16, cpu_cores() // processes - 1))
