"""This process among those that ``torchrun`` started."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from hashlib import blake2b
from typing import Any

from tuyi.encode.survey import Survey
from tuyi.errors import ConfigError
from tuyi.train.plan import Plan
from tuyi.train.settings import TrainSettings

__all__ = [
    "check_alike",
    "check_shares",
    "first_process",
    "join",
    "launched",
    "least",
    "rank_and_world",
    "wait_for_all",
]

_PATIENCE = timedelta(hours=1)
"""How long a process waits for the others; the first one writes the model while they do."""


def first_process() -> bool:
    """Whether this process is the one that writes shared files; true where it is the only one."""
    return os.environ.get("RANK", "0") == "0"


def launched() -> bool:
    """Whether ``torchrun`` started this process."""
    return "RANK" in os.environ


def rank_and_world() -> tuple[int, int]:
    """Number of this process and how many there are, once the process group stands.

    Asked of torch itself: transformers takes DeepSpeed on CPUs for a single process.
    """
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def join() -> None:
    """Form a group with the other processes that ``torchrun`` started, if it did.

    Raises:
        ConfigError: This machine has fewer GPUs than processes.
    """
    import torch
    from torch import distributed

    if not launched() or distributed.is_initialized():
        return
    gpus, processes = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if gpus and processes > gpus:
        raise ConfigError(
            f"{processes} processes on a machine with {gpus} GPU{'s' if gpus > 1 else ''}: expected one GPU each; "
            f"start torchrun with --nproc-per-node={gpus}"
        )
    if gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # weights that are saved, or that wait in CPU memory, pass between processes without a GPU
    distributed.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=_PATIENCE)


def wait_for_all() -> None:
    """Go on when every process has come this far."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()


def check_shares(rows: Survey, plan: Plan, settings: TrainSettings) -> None:
    """Make sure that every process reads the same rows under the same settings, and gets rows in a full step.

    In the last step of an epoch there may be fewer rows than processes: those without one keep step and add nothing.

    Raises:
        ConfigError: There are not enough rows, or the processes differ.
    """
    _, world = rank_and_world()
    sizes = blake2b(b"".join(part.tobytes() for part in (rows.tokens, rows.patches, rows.supervised)), digest_size=6)
    same = {f"train.{key}": str(value) for key, value in settings.model_dump(exclude={"workers"}).items()}
    same["training rows"] = f"{len(rows)} (sizes {sizes.hexdigest()})"
    check_alike(same, "give every machine the same data and settings")
    if len(rows) < world:
        raise ConfigError(
            f"{len(rows)} training rows for {world} processes: expected at least one row each; "
            "start fewer processes, or give more rows"
        )
    if not any(len(plan.rows(step)) >= world for step in range(plan.steps)):
        most = max(len(plan.rows(step)) for step in range(plan.steps))
        raise ConfigError(
            f"the largest step has {most} row{'s' if most > 1 else ''} for {world} processes: some would have none in "
            "every step; raise train.batch_rows (or train.batch_tokens), or start fewer processes"
        )


def check_alike(found: Mapping[str, str], fix: str) -> None:
    """Make sure that every process found the same; a run in which they differ would hang.

    Args:
        found: What is compared, by name.
        fix: How to mend a difference.

    Raises:
        ConfigError: They differ.
    """
    import socket

    from torch import distributed

    _, world = rank_and_world()
    if world == 1:
        return
    everywhere: list[Any] = [None] * world
    distributed.all_gather_object(everywhere, (dict(found), socket.gethostname()))
    first, host = everywhere[0]
    for number, (other, its_host) in enumerate(everywhere):
        for name in sorted(first.keys() | other.keys()):
            if other.get(name) != first.get(name):
                raise ConfigError(
                    f"{name} differs between processes: {first.get(name)} in process 0 on {host}, {other.get(name)} "
                    f"in process {number} on {its_host}; {fix}"
                )


def least(number: int) -> int:
    """The smallest of the numbers that the processes bring."""
    from torch import distributed

    _, world = rank_and_world()
    if world == 1:
        return number
    everywhere: list[Any] = [None] * world
    distributed.all_gather_object(everywhere, number)
    return int(min(everywhere))
