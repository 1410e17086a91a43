"""How fast the stretches of a training run were: its first steps, the rest of the first epoch, later epochs, all."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from floor import Flops, RowWork, training_flops
from step_record import Trained

__all__ = ["Cost", "Stretch", "cost", "show", "show_ratios", "stretches"]


@dataclass(frozen=True, slots=True)
class Cost:
    """What it takes to learn from a row once.

    Args:
        tokens: Its tokens.
        flops: The floor's operations.
        flops_kept: The same where the features of a frozen tower are known already.
    """

    tokens: int
    flops: float
    flops_kept: float


@dataclass(frozen=True, slots=True)
class Stretch:
    """Some steps in a row: how many, how long they took, and the sums over their rows."""

    steps: int
    seconds: float
    rows: int
    tokens: int
    flops: float
    flops_kept: float


def stretches(
    finished: Sequence[tuple[float, list[str]]], costs: Mapping[str, Cost], warm_steps: int
) -> dict[str, Stretch]:
    """The stretches of a run, by name; those that it does not have are left out.

    Args:
        finished: For each step the seconds since the run began and the ids of its rows.
        costs: Of each row of the data, by id.
        warm_steps: How many first steps are warm-up; at least one step comes after them.
    """
    count, seen, epoch = len(finished), 0, 0
    # steps never cross epochs
    while epoch < count and seen < len(costs):
        seen += len(finished[epoch][1])
        epoch += 1
    warm = min(warm_steps, epoch - 1)
    parts = {
        "warm-up": (0, warm),
        "first epoch": (warm, epoch),
        "later epochs": (epoch, count),
        "all after warm-up": (warm, count),
        "all": (0, count),
    }
    if epoch == count:
        del parts["all after warm-up"]  # the first epoch is all
    return {name: _sum(finished, costs, *ends) for name, ends in parts.items() if ends[0] < ends[1]}


def _sum(finished: Sequence[tuple[float, list[str]]], costs: Mapping[str, Cost], begin: int, end: int) -> Stretch:
    rows = [costs[id_] for _, ids in finished[begin:end] for id_ in ids]
    return Stretch(
        steps=end - begin,
        seconds=finished[end - 1][0] - (finished[begin - 1][0] if begin else 0.0),
        rows=len(rows),
        tokens=sum(row.tokens for row in rows),
        flops=sum(row.flops for row in rows),
        flops_kept=sum(row.flops_kept for row in rows),
    )


def cost(work: RowWork, forward: Flops, **learning: Any) -> Cost:
    """What it takes to learn from a row; ``learning`` as :func:`floor.training_flops` takes it."""
    flops = training_flops(forward, **learning)
    known = 0.0
    if not learning.get("tower"):
        known = flops.tower_linears + flops.tower_attention + (0.0 if learning.get("projector") else flops.merger)
    return Cost(work.tokens, flops.sum, flops.sum - known)


def show(name: str, done: Trained, costs: Mapping[str, Cost], speed: float, warm_steps: int) -> dict[str, Any]:
    """Print how fast a run was.

    Args:
        name: Of the run.
        done: The run.
        costs: Of each row of the data, by id.
        speed: Operations a second of the measured matrix product.
        warm_steps: As for :func:`stretches`.

    Returns:
        All that is known of it, for a JSON file.
    """
    if done.skipped:
        print(f"\n{name}: not run: {done.skipped}", flush=True)
        return {**asdict(done), "stretches": {}}
    mean = sum(one.flops for one in costs.values()) / len(costs)
    floors = {
        "floor_rows_per_second": speed / mean,
        "kept_floor_rows_per_second": len(costs) * speed / sum(one.flops_kept for one in costs.values()),
    }
    least, kept = floors.values()
    print(f"\n{name}: floor {least:.1f} rows/s, {kept:.1f} where the tower's features are known")
    print("  | steps | rows | s | rows/s | tokens/s | share of floor")
    found = {}
    for title, one in stretches(done.finished, costs, warm_steps).items():
        rate, share = one.flops / mean / one.seconds, one.flops / one.seconds / speed
        found[title] = {**asdict(one), "rows_per_second": rate, "share": share}
        told = f"{share:.1%}"
        if title == "later epochs":
            told += f" ({one.flops_kept / one.seconds / speed:.1%} of that without the tower)"
        print(
            f"  {title} | {one.steps} | {one.rows} | {one.seconds:.1f} | {rate:.2f} | "
            f"{one.tokens / one.seconds:.0f} | {told}"
        )
    _show_rest(done)
    return {**asdict(done), **floors, "stretches": found}


def _show_rest(done: Trained) -> None:
    ends = [at for at, _ in done.finished]
    slowest = max((at - before for before, at in pairwise(ends)), default=0.0)
    print(
        f"  loss {done.loss[0]:.3f} → {done.loss[-1]:.3f}; {done.learning / 1e6:.0f} M weights learn ({done.dtype}); "
        f"{done.peak_bytes / 2**30:.1f} GiB in tensors, {done.reserved_bytes / 2**30:.1f} taken\n"
        f"  waited for rows {done.waited[0]:.1f} s at first, then {sum(done.waited[1:]):.1f} s; "
        f"first step {ends[0]:.1f} s, slowest later {slowest:.1f} s; load {done.load_seconds:.1f} s, "
        f"checkpoints {done.checkpoint_seconds:.1f} s, model written in {done.write_seconds:.1f} s"
    )
    for line in done.told:
        print(f"  {line}")
    sys.stdout.flush()


def show_ratios(measured: Mapping[str, Mapping[str, Any]]) -> None:
    """Print tuyi's rates over those of LLaMA-Factory's first epoch, and what several GPUs make of one's.

    Args:
        measured: What :func:`show` returned for each run, with its ``method`` and ``gpus``, and ``peer`` for others.
    """
    ran = {name: run for name, run in measured.items() if run["stretches"]}
    for name, run in ran.items():
        for other, base in ran.items():
            if run["peer"] or run["method"] != base["method"]:
                continue
            if base["peer"]:
                rate = base["stretches"]["first epoch"]["rows_per_second"]
                told = (
                    f"{one['rows_per_second'] / rate:.2f} × {title}"
                    for title, one in run["stretches"].items()
                    if title != "warm-up"
                )
                print(f"{name} over the first epoch of {other}: {', '.join(told)}")
            elif base["gpus"] == 1 < run["gpus"]:
                rates = [one["stretches"]["first epoch"]["rows_per_second"] for one in (run, base)]
                print(
                    f"{name} over {run['gpus']} × {other}: {rates[0] / (run['gpus'] * rates[1]):.3f} in the first epoch"
                )
