"""Agreement of two engines' predictions, with numbers worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from tuyi.errors import DataError
from tuyi.predict.compare import compare_predictions
from tuyi.predict.prediction import Prediction


def said(id: str, label: str, chances: Mapping[str, float], tokens: int = 10) -> Prediction:
    return Prediction(id, "t", label, dict.fromkeys(chances, -1.0), chances, notes={"tokens": tokens})


def test_agreement_and_differences():
    ours = [said(str(n), "a", {"a": 0.75, "b": 0.25}) for n in range(8)]
    theirs = [said(str(n), "a", {"b": 0.25, "a": 0.75}) for n in range(8)]
    theirs[2] = said("2", "b", {"a": 0.25, "b": 0.75}, tokens=11)
    theirs[3] = said("3", "a", {"a": 0.65, "b": 0.35})
    theirs[4] = said("4", "b", {})
    found = compare_predictions(ours, reversed(theirs))
    assert (found.rows, found.agreeing, found.share) == (8, 6, 0.75)
    assert (found.other_tokens, found.compared) == (1, 7)
    assert found.largest_difference == pytest.approx(0.5)
    assert found.mean_difference == pytest.approx((0.5 + 0.1) / 7)
    four, two = found.disagreements
    assert (four.id, four.labels, four.probabilities) == ("4", ("a", "b"), (0.75, None))
    assert (two.id, two.labels, two.probabilities) == ("2", ("a", "b"), (0.75, 0.75))


def test_at_most_five_disagreements_are_kept():
    ours, theirs = ([said(str(n), label, {}) for n in range(9)] for label in "ab")
    found = compare_predictions(ours, theirs)
    assert found.agreeing == 0
    assert [one.id for one in found.disagreements] == list("01234")
    assert found.largest_difference is None
    assert found.mean_difference is None


def test_rows_on_one_side_only():
    one, two = said("1", "a", {}), said("2", "a", {})
    with pytest.raises(DataError, match="1 rows have no prediction of the second engine, the first is '2'"):
        compare_predictions([one, two], [one])
    with pytest.raises(DataError, match="id '2' has no prediction of the first engine"):
        compare_predictions([one], [one, two])
    with pytest.raises(DataError, match="or two of the second"):
        compare_predictions([one], [one, one])
    with pytest.raises(DataError, match="no predictions to compare"):
        compare_predictions([], [])
    with pytest.raises(DataError, match="chose from different labels, 'b' is in one of them only"):
        compare_predictions([said("1", "a", {"a": 0.5, "b": 0.5})], [said("1", "a", {"a": 0.5, "c": 0.5})])
