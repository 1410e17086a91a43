"""Several predictions of a row as one: the mean of their label distributions, or a vote."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np

from tuyi.errors import ConfigError, DataError
from tuyi.evaluate.bootstrap import Floats
from tuyi.predict.prediction import UNSEEN, Prediction, log_chances

__all__ = ["How", "Members", "agreement", "combine", "share_weights"]

How: TypeAlias = Literal["arithmetic", "geometric", "vote"]
Members: TypeAlias = Mapping[str, Mapping[str, Prediction]]
"""For each member its name and its predictions by id."""

_EVEN = 1e-9


def combine(members: Members, how: How = "arithmetic", weights: Sequence[float] | None = None) -> dict[str, Prediction]:
    """One prediction a row.

    ``arithmetic`` is the weighted mean of the probabilities, ``geometric`` that of their logarithms, normalised again.
    ``vote`` takes the label with most weight behind it, of equal ones the one with the higher mean probability, then
    the one that an earlier member named; its probabilities are the shares of the vote.

    Args:
        members: Predictions of the same rows.
        how: How they become one.
        weights: Of each member, above 0; equal where not given.

    Returns:
        In the order of the first member. ``logprobs`` are the logarithms of the combined probabilities; ``tokens``,
        ``calls`` and ``output_tokens`` are sums, and the note ``votes`` says each member's label.

    Raises:
        ConfigError: Fewer than two members, or weights that are not one above 0 for each.
        DataError: Rows that not every member has, other tasks or other labels; no probabilities to average.

    Source: Hinton, Vinyals & Dean, Distilling the Knowledge in a Neural Network (arXiv 1503.02531), section 2:
    arithmetic or geometric mean of an ensemble's predictive distributions.
    """
    if len(members) < 2:
        raise ConfigError(f"an ensemble needs two members or more, found {len(members)}")
    shares_M = share_weights(list(members), weights)
    _check_rows(members)
    names, first = list(members), next(iter(members.values()))
    found = {}
    for id in first:
        rows = [predictions[id] for predictions in members.values()]
        _check_row(rows, names)
        found[id] = _vote(rows, shares_M) if how == "vote" else _mean(rows, names, shares_M, how)
    return found


def share_weights(members: Sequence[str], weights: Sequence[float] | None) -> Floats:
    """Weights that sum to 1, shape (M,).

    Raises:
        ConfigError: Not one weight above 0 for each member.
    """
    if weights is None:
        return np.full(len(members), 1 / len(members))
    if len(weights) != len(members) or not all(math.isfinite(weight) and weight > 0 for weight in weights):
        found = ", ".join(f"{weight:g}" for weight in weights) or "none"
        raise ConfigError(
            f"expected a weight above 0 for each of the {len(members)} members ({', '.join(members)}), found {found}"
        )
    shares = np.asarray(weights, dtype=np.float64)
    return np.asarray(shares / shares.sum(), dtype=np.float64)


def agreement(members: Members) -> Floats:
    """Share of the rows for which two members say the same label, shape (M, M).

    Args:
        members: Predictions of the same rows.
    """
    ids = list(next(iter(members.values())))
    labels_MN = np.array([[predictions[id].label for id in ids] for predictions in members.values()])
    return np.asarray((labels_MN[:, None] == labels_MN[None]).mean(axis=2), dtype=np.float64)


def _check_rows(members: Members) -> None:
    (first, expected), *others = members.items()
    for name, predictions in others:
        missing = [id for id in expected if id not in predictions]
        extra = [id for id in predictions if id not in expected]
        told = [
            f"{len(ids)} {what} (first: {', '.join(ids[:3])})"
            for ids, what in ((missing, "are missing"), (extra, "are not among them"))
            if ids
        ]
        if told:
            raise DataError(
                f"{name}: expected predictions for the {len(expected)} rows of {first}, {' and '.join(told)}; "
                "predict the same data with both"
            )


def _check_row(rows: Sequence[Prediction], names: Sequence[str]) -> None:
    first = rows[0]
    known = next((row.probabilities.keys() for row in rows if row.probabilities), None)
    for row, name in zip(rows, names, strict=True):
        if row.task != first.task:
            raise DataError(f"id {row.id}: {name} answers task {row.task!r}, {names[0]} answers {first.task!r}")
        odd = sorted(known ^ row.probabilities.keys()) if known is not None and row.probabilities else []
        if known is not None and row.label not in known:
            odd = [row.label]
        if odd:
            raise DataError(
                f"id {row.id}: expected the same labels in each, {odd[0]!r} is not among those of all; "
                f"was {name} asked another version of the task?"
            )


def _mean(rows: Sequence[Prediction], names: Sequence[str], shares_M: Floats, how: How) -> Prediction:
    if without := [name for row, name in zip(rows, names, strict=True) if not row.probabilities]:
        raise DataError(f"id {rows[0].id}: {without[0]} gives no probabilities to average; put it to the vote instead")
    labels = list(rows[0].probabilities)
    chances_MK = np.array([[row.probabilities[label] for label in labels] for row in rows])
    if how == "arithmetic":
        chances_K = shares_M @ chances_MK
    else:
        # as the logarithm of 0 would forbid a label that one member alone rules out by rounding
        logs_K = shares_M @ np.log(np.maximum(chances_MK, math.exp(UNSEEN)))
        chances_K = np.exp(logs_K - logs_K.max())
    chances_K = chances_K / chances_K.sum()
    return _prediction(rows, labels[int(chances_K.argmax())], dict(zip(labels, map(float, chances_K))))


def _vote(rows: Sequence[Prediction], shares_M: Floats) -> Prediction:
    votes: dict[str, float] = {}
    for row, share in zip(rows, shares_M, strict=True):
        votes[row.label] = votes.get(row.label, 0.0) + float(share)
    with_chances = [(row, float(share)) for row, share in zip(rows, shares_M, strict=True) if row.probabilities]

    def mean(label: str) -> float:
        return sum(share * row.probabilities[label] for row, share in with_chances)

    most = max(votes.values())
    tied = [label for label, share in votes.items() if share > most - _EVEN]
    chosen = max(tied, key=mean)  # of equal ones the first, which an earlier member named
    if not with_chances:
        return _prediction(rows, chosen, {})
    return _prediction(rows, chosen, {label: votes.get(label, 0.0) for label in with_chances[0][0].probabilities})


def _prediction(rows: Sequence[Prediction], label: str, chances: dict[str, float]) -> Prediction:
    notes: dict[str, Any] = {"votes": [row.label for row in rows]}
    for cost in ("tokens", "calls", "output_tokens"):
        if all(cost in row.notes for row in rows):
            notes[cost] = sum(row.notes[cost] for row in rows)
    return Prediction(rows[0].id, rows[0].task, label, log_chances(chances), chances, notes=notes)
