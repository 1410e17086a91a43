"""How large packs are and whether blocks are computed twice, by the memory that there is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tuyi.encode.survey import Survey
from tuyi.errors import ConfigError
from tuyi.train.memory import MOST_LOGIT_BYTES, Need, gigabytes
from tuyi.train.settings import TrainSettings

__all__ = ["Choice", "Rows", "check_host", "choose", "sizes_of"]

Numbers = NDArray[np.int64]

_MOST = {True: 32768, False: 16384}
"""Tokens of the largest pack worth making on a GPU, and on a CPU."""
_FEW = 4096
"""Tokens that a pack should hold before it is worth computing twice to hold more."""
_SHARE = {True: 0.9, False: 1.0}
"""Of the free memory: a GPU's allocator cannot use all; on a CPU only what is clearly too much is refused."""
_BUSY = 12_288
"""Tokens of a pack that keep a GPU busy: one of 23,552 was 1 % faster for LoRA on a 7B, and took 68 % more memory."""
_LEFT = 0.25
"""Share of the free memory, beside what nobody can use, that larger packs leave alone."""
_ROUND = 512
"""Packs are a multiple of this, so that a little more or less free memory chooses the same."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Sizes of the rows of a run.

    Args:
        tokens, patches, kept: int64, shape (N,): tokens, patches, positions whose next token is learned.
        step: Most tokens that a process can meet in one step; packs need not be larger.
        id_of: The id of a row, for messages.
    """

    tokens: Numbers
    patches: Numbers
    kept: Numbers
    step: int
    id_of: Callable[[int], str]


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen.

    Args:
        pack_tokens: Most tokens of a pack; a larger row stands alone.
        checkpointing: Whether blocks are computed twice.
        bytes: What one process needs at most.
        why: All this in words.
    """

    pack_tokens: int
    checkpointing: bool
    bytes: int
    why: str


@dataclass(frozen=True, slots=True)
class _Fit:
    """What fits with or without gradient checkpointing: the pack size, and whether the most demanding row does."""

    checkpointing: bool
    tokens: int
    row_fits: bool
    row: int
    row_bytes: int
    rate: float
    rate_beside_logits: float

    def bytes(self, pack_tokens: int) -> int:
        """Most that a pack of so many tokens needs beside what rests: as if all its rows were the worst."""
        # however many logits there are, only so many are held
        held = int(self.rate_beside_logits * pack_tokens) + MOST_LOGIT_BYTES
        return max(min(int(self.rate * pack_tokens), held), self.row_bytes)


def sizes_of(rows: Survey, tokens: Sequence[int] | Numbers, settings: TrainSettings, *, world: int = 1) -> Rows:
    """The sizes of a run's rows.

    Args:
        rows: The surveyed rows.
        tokens: What each takes up in a pack, label branches included.
        settings: How to train.
        world: Number of processes that share a step.
    """
    whole = np.asarray(tokens, np.int64)
    prompts = np.asarray(rows.tokens, np.int64) - np.asarray(rows.supervised, np.int64)
    longest = int(whole.max())
    if settings.batch_tokens is not None:
        step = max(settings.batch_tokens, longest)
    elif settings.sampling != "plain" or settings.task_weights:  # the longest row may come more than once
        step = settings.batch_rows * longest
    else:
        step = int(np.sort(whole)[-settings.batch_rows :].sum())
    return Rows(
        tokens=whole,
        patches=np.asarray(rows.patches, np.int64),
        kept=whole - prompts + 1,
        step=step if world == 1 else min(step, step // world + longest),
        id_of=lambda row: rows.rows[row].id,
    )


def choose(
    need: Need, free: int, rows: Rows, *, pack_tokens: int | None = None, checkpointing: bool | None = None,
    gpu: bool = True,
) -> Choice:  # fmt: skip
    """Choose the size of packs and whether to compute blocks twice.

    Packs are as large as fits, those that keep a GPU busy anyway within two thirds of its memory, without gradient
    checkpointing; with it where they would be too small, or where a row does not fit alone.

    Args:
        need: What the run needs.
        free: Bytes of the device that the run may use, its weights included where they are there already.
        rows: What it passes.
        pack_tokens, checkpointing: Where they are set.
        gpu: Whether the device is one.

    Raises:
        ConfigError: Even so a row, or a pack of the size that is set, does not fit.
    """
    room = int(free * _SHARE[gpu]) - need.resting
    cap = min(_MOST[gpu], max(rows.step, _ROUND))
    ways = (False, True) if checkpointing is None else (checkpointing,)
    less = room - int(free * _LEFT) if gpu and pack_tokens is None else None
    fits = [_fit(need, room, less, rows, cap if pack_tokens is None else pack_tokens, way) for way in ways]
    for fit in fits:
        enough = 0 if fit is fits[-1] else min(_FEW, cap)
        if fit.row_fits and fit.tokens >= (enough if pack_tokens is None else min(pack_tokens, rows.step)):
            chosen = pack_tokens or fit.tokens
            total = need.resting + fit.bytes(min(chosen, rows.step))
            return Choice(chosen, fit.checkpointing, total, _why(chosen, total, free, fits, fit, rows))
    raise ConfigError(_too_much(need, free, room, rows, fits, pack_tokens))


def _fit(need: Need, room: int, less: int | None, rows: Rows, cap: int, checkpointing: bool) -> _Fit:
    """What fits into a room; packs that keep a GPU busy anyway into less of it, where that is given."""
    bytes_N = need.passing(rows.tokens, rows.patches, rows.kept, checkpointing=checkpointing)
    # no pack needs more than its tokens times this, as no pack needs more than its rows one by one
    rate = float((bytes_N / rows.tokens).max())
    beside_N = replace(need, vocabulary=0).passing(rows.tokens, rows.patches, rows.kept, checkpointing=checkpointing)
    beside = float((beside_N / rows.tokens).max())

    def tokens_in(room: int) -> int:
        tokens = min(cap, int(max(room / rate, (room - MOST_LOGIT_BYTES) / beside, 0)))
        return max(1, tokens - tokens % _ROUND if _ROUND < tokens < cap else tokens)

    tokens = tokens_in(room)
    if less is not None:
        tokens = min(tokens, max(tokens_in(less), _BUSY))
    row = int(bytes_N.argmax())
    return _Fit(checkpointing, tokens, int(bytes_N[row]) <= room, row, int(bytes_N[row]), rate, beside)


def _why(chosen: int, total: int, free: int, fits: list[_Fit], fit: _Fit, rows: Rows) -> str:
    reason = ""
    if fit is not fits[0]:
        first = fits[0]
        alone = f"only {first.tokens} tokens fit" if first.row_fits else f"{_row(rows, first.row)} does not fit"
        reason = f", as without it {alone}"
    how = "with" if fit.checkpointing else "without"
    return (
        f"packs of {chosen} tokens {how} gradient checkpointing{reason}: {gigabytes(total)} of {gigabytes(free)} free"
    )


def _row(rows: Rows, row: int) -> str:
    return f"row {rows.id_of(row)} ({rows.tokens[row]} tokens, {rows.patches[row]} patches)"


def _too_much(need: Need, free: int, room: int, rows: Rows, fits: list[_Fit], pack_tokens: int | None) -> str:
    """Expected, found, fix."""
    last = fits[-1]
    how = f" {'with' if last.checkpointing else 'without'} gradient checkpointing"
    remedies: list[str] = []
    if room <= 0:
        what, total, how = "the model alone, before any row passes it,", need.resting, ""
    elif last.row_fits:
        assert pack_tokens is not None, "any pack size fits where each row does"
        what, total = f"a pack of {pack_tokens} tokens", need.resting + last.bytes(min(pack_tokens, rows.step))
        remedies.append(f"train.pack_tokens={last.tokens}, or leave it out")
    else:
        what, total = _row(rows, last.row), need.resting + last.row_bytes
        remedies.append("lower budget.max_pixels or budget.max_tokens")
    if room > 0 and not last.checkpointing:
        remedies.insert(0, "leave train.gradient_checkpointing out")
    missing = total - need.resting - room
    remedies += [setting for setting, spared in need.remedies if not spared or spared >= missing]
    limit = room + need.resting
    used = "" if limit == free else f", of which {gigabytes(limit)} can be used"
    return (
        f"memory: {what} needs {gigabytes(total)}{how}, {gigabytes(free)} are free{used}\n  {need}\n"
        f"Choose one: {'; '.join(remedies)}"
    )


def check_host(need: Need, free: int, processes: int) -> None:
    """Make sure that host memory holds what is kept there.

    Args:
        need: What one process needs.
        free: Bytes of host memory that are free.
        processes: How many run on this host.

    Raises:
        ConfigError: It does not.
    """
    total = need.host * processes
    if total > free:
        raise ConfigError(
            f"memory: weights, gradients and optimizer need {gigabytes(total)} of host memory for the {processes} "
            f"processes here, {gigabytes(free)} are free; use more hosts, or train.method=lora"
        )
