"""Memory of a CPU that computes: what was freed stays with the process."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

__all__ = ["reuse_freed_memory"]

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_LARGEST = 2**31 - 1


@cache
def reuse_freed_memory() -> bool:
    """Let large arrays use memory that earlier ones gave back.

    By default glibc takes each array of over 32 MB anew from the system and gives it back, which then clears it page
    by page: a pass over a pack on a CPU spends half of its time on that. It needs no more memory than before at its
    highest point, but gives less of it back while the process lives.

    Returns:
        Whether this system's C library can do it; glibc can.

    Source: mallopt(3).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library, such as musl
        return False
    wanted = {_MMAP_THRESHOLD: 1 << 30, _TRIM_THRESHOLD: _LARGEST, _TOP_PAD: 1 << 28}
    return all(mallopt(key, value) == 1 for key, value in wanted.items())
