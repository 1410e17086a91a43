"""Two sets of predictions for the same rows: how far engines agree."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tuyi.errors import DataError
from tuyi.predict.prediction import Prediction

__all__ = ["Agreement", "Disagreement", "compare_predictions"]

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A row with two labels.

    Args:
        id: The row.
        labels: The first engine's label and the second's.
        probabilities: Of each label in its own engine; None where an engine gave none.
    """

    id: str
    labels: tuple[str, str]
    probabilities: tuple[float | None, float | None]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far two engines agree.

    Args:
        rows: Rows compared.
        agreeing: Rows with the same label.
        disagreements: The first rows with two labels, at most five.
        other_tokens: Rows of which the engines counted different numbers of prompt tokens, so they saw different input.
        compared: Rows for which both gave probabilities; the differences are over these.
        largest_difference: Of any label's probability in any row; None where nothing was compared.
        mean_difference: Mean over the rows of the largest difference in each.
    """

    rows: int
    agreeing: int
    disagreements: tuple[Disagreement, ...]
    other_tokens: int
    compared: int
    largest_difference: float | None
    mean_difference: float | None

    @property
    def share(self) -> float:
        """Share of the rows with the same label."""
        return self.agreeing / self.rows


def compare_predictions(first: Iterable[Prediction], second: Iterable[Prediction]) -> Agreement:
    """Lay two engines' predictions beside each other, by id.

    Args:
        first: All predictions of one engine; held in memory.
        second: Those of the other, in any order.

    Raises:
        DataError: A row is missing on one side or stands twice, or there is none.
    """
    waiting = {one.id: one for one in first}
    rows = agreeing = other_tokens = 0
    disagreements: list[Disagreement] = []
    differences: list[float] = []
    for theirs in second:
        ours = waiting.pop(theirs.id, None)
        if ours is None:
            raise DataError(f"id {theirs.id!r} has no prediction of the first engine, or two of the second")
        rows += 1
        agreeing += ours.label == theirs.label
        if ours.label != theirs.label and len(disagreements) < _SHOWN:
            disagreements.append(_disagreement(ours, theirs))
        other_tokens += ours.notes.get("tokens") != theirs.notes.get("tokens")
        if ours.probabilities and theirs.probabilities:
            differences.append(_difference(ours, theirs))
    if waiting:
        raise DataError(
            f"{len(waiting)} rows have no prediction of the second engine, the first is {next(iter(waiting))!r}"
        )
    if not rows:
        raise DataError("there are no predictions to compare")
    largest, mean = (max(differences), sum(differences) / len(differences)) if differences else (None, None)
    return Agreement(rows, agreeing, tuple(disagreements), other_tokens, len(differences), largest, mean)


def _disagreement(ours: Prediction, theirs: Prediction) -> Disagreement:
    chances = (ours.probabilities.get(ours.label), theirs.probabilities.get(theirs.label))
    return Disagreement(ours.id, (ours.label, theirs.label), chances)


def _difference(ours: Prediction, theirs: Prediction) -> float:
    if ours.probabilities.keys() != theirs.probabilities.keys():
        odd = min(ours.probabilities.keys() ^ theirs.probabilities.keys())
        raise DataError(f"id {ours.id!r}: the engines chose from different labels, {odd!r} is in one of them only")
    return max(abs(chance - theirs.probabilities[label]) for label, chance in ours.probabilities.items())
