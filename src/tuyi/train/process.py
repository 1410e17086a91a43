"""This process among those that ``torchrun`` started."""

from __future__ import annotations

import os

__all__ = ["first_process", "rank_and_world", "wait_for_all"]


def first_process() -> bool:
    """Whether this process is the one that writes shared files; true where it is the only one."""
    return os.environ.get("RANK", "0") == "0"


def rank_and_world() -> tuple[int, int]:
    """Number of this process and how many there are, once the process group stands.

    Asked of torch itself: transformers takes DeepSpeed on CPUs for a single process.
    """
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def wait_for_all() -> None:
    """Go on when every process has come this far."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
