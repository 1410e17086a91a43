"""Passes side by side on a CPU: threads that share its cores out, and models that share their weights.

The products of a small model are over too soon to be shared out between cores, and between them it runs on one core
anyhow.
"""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import torch
from torch import Tensor, nn

__all__ = ["core_threads", "twin"]

M = TypeVar("M", bound=nn.Module)


def core_threads(count: int) -> ThreadPoolExecutor:
    """Threads in which torch uses an equal share of this thread's cores; other threads keep theirs.

    Args:
        count: How many threads.
    """
    cores = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, "lane", _take, (max(1, cores // count),))
    started = Barrier(count + 1)
    for _ in range(count):
        pool.submit(started.wait)
    started.wait()
    torch.set_num_threads(cores)  # what a thread sets is also what later threads begin with
    return pool


def _take(cores: int) -> None:
    """Let this thread use so many cores."""
    torch.get_num_threads()  # a thread's first look at the number sets it to what was last set anywhere
    torch.set_num_threads(cores)


def twin(model: M, *, learns: bool = False) -> M:
    """The same model with modules of its own, since a pass leaves things at them, and the same memory for weights.

    Args:
        model: The model; compiled parts of it stay its own.
        learns: Whether the twin has gradients of its own.
    """

    def own(weight: Tensor) -> Tensor:
        return nn.Parameter(weight.detach(), requires_grad=weight.requires_grad) if learns else weight

    memo: dict[int, Tensor] = {id(weight): own(weight) for weight in model.parameters()}
    memo |= {id(buffer): buffer for buffer in model.buffers()}
    return copy.deepcopy(model, memo)
