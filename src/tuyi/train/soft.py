"""What a pack's rows are taught of a teacher's distribution over the labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tuyi.encode.pack import Pack
from tuyi.train.settings import SoftSettings

__all__ = ["SoftTargets", "soft_targets"]


@dataclass(frozen=True, eq=False, slots=True)
class SoftTargets:
    """The teacher's side of a pack of R rows with at most L labels, N targets.

    Args:
        slots: int64, shape (N,): for each target row * L + label, R * L where its row has no teacher.
        counts: int64, shape (R,): labels of each row.
        teacher: float32, shape (R, L): the teacher's distribution at the temperature; 0 behind a row's labels.
        weights: float32, shape (R,): what each row's divergence weighs; 0 where it has no teacher.
        temperature: T.
    """

    slots: Tensor
    counts: Tensor
    teacher: Tensor
    weights: Tensor
    temperature: float


def soft_targets(
    packed: Pack, teachers: Sequence[NDArray[np.float32] | None], settings: SoftSettings, device: torch.device
) -> SoftTargets | None:
    """The teacher's side of a pack; None where none of its rows has one.

    Args:
        packed: The pack, every row with branches.
        teachers: For each row the distribution over its labels at the temperature, float32, shape (L,), or None.
        settings: Weight of the divergence, into which a row's own is multiplied, and temperature.
        device: Where to.
    """
    if all(one is None for one in teachers):
        return None
    assert packed.branches is not None, "rows with teachers have their labels behind them"
    counts = [len(lengths) for lengths in packed.branches.lengths]
    rows, most = len(counts), max(counts)
    slots, teacher, weights = [], np.zeros((rows, most), np.float32), np.zeros(rows, np.float32)
    for at, (row, lengths, one) in enumerate(zip(packed.rows, packed.branches.lengths, teachers, strict=True)):
        sizes = np.asarray(lengths) + 1
        own = at * most + np.repeat(np.arange(len(sizes)), sizes)
        slots.append(own if one is not None else np.full_like(own, rows * most))
        slots.append(np.full(int(row.supervised.sum()), rows * most))
        if one is not None:
            teacher[at, : len(one)], weights[at] = one, settings.weight * row.weight
    in_order = np.concatenate(slots)[packed.order]
    arrays = (in_order, np.asarray(counts), teacher, weights)
    slots_N, counts_R, teacher_RL, weights_R = (torch.from_numpy(array).to(device) for array in arrays)
    return SoftTargets(slots_N, counts_R, teacher_RL, weights_R, settings.temperature)
