"""This process among those that ``torchrun`` started."""

from __future__ import annotations

import os

__all__ = ["first_process"]


def first_process() -> bool:
    """Whether this process is the one that writes shared files; true where it is the only one."""
    return os.environ.get("RANK", "0") == "0"
