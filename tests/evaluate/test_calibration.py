"""Calibration against hand-computed cases and a grid search."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import log_loss

from tuyi.errors import ModelError
from tuyi.evaluate.calibration import (
    calibrate,
    calibration_errors,
    fit_temperature,
    keep_temperature,
    reliability,
    softmax,
)


def over_confident(n: int = 600, labels: int = 5, by: float = 2.5) -> tuple[np.ndarray, np.ndarray]:
    """Log probabilities ``by`` times too sharp, and labels drawn from the true distribution."""
    rng = np.random.default_rng(4)
    logits_NK = rng.normal(0, 1.5, (n, labels))
    gold_N = np.array([rng.choice(labels, p=row) for row in softmax(logits_NK, 1.0)])
    return np.log(softmax(logits_NK * by, 1.0)), gold_N


def test_errors_of_a_case_counted_by_hand():
    # Two bins of five: confidences 0.9 (right, wrong) and 0.6 (right, right).
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6]])
    gold, predicted = np.array([0, 1, 0, 1]), np.array([0, 0, 0, 1])
    found = calibration_errors(probabilities, gold, predicted, bins=5)
    assert found.ece == pytest.approx((2 * abs(0.5 - 0.9) + 2 * abs(1 - 0.6)) / 4)
    assert found.brier == pytest.approx((0.02 + 1.62 + 0.32 + 0.32) / 4)
    assert found.nll == pytest.approx(log_loss(gold, probabilities))
    assert (found.confidence, found.accuracy) == pytest.approx((0.75, 0.75))


def test_bins_are_open_below_and_closed_above():
    bins = reliability(np.array([0.0, 0.2, 0.2000001, 1.0]), np.array([1.0, 0.0, 1.0, 1.0]), bins=5)
    assert [(item.rows, round(item.low, 1)) for item in bins] == [(2, 0.0), (1, 0.2), (1, 0.8)]


def test_a_true_label_at_probability_zero_costs_infinitely_much():
    assert calibration_errors(np.array([[1.0, 0.0]]), np.array([1]), np.array([0])).nll == math.inf


def test_temperature_is_that_of_a_grid_search():
    logprobs, gold = over_confident()
    grid = np.exp(np.linspace(math.log(0.2), math.log(10), 2001))
    losses = [-np.log(softmax(logprobs, t)[np.arange(len(gold)), gold]).mean() for t in grid]
    found = fit_temperature(logprobs, gold)
    assert found == pytest.approx(grid[int(np.argmin(losses))], rel=3e-3)
    assert found == pytest.approx(2.5, rel=0.15)


def test_temperature_does_not_depend_on_a_rows_normaliser():
    logprobs, gold = over_confident(200)
    shifted = logprobs - np.linspace(0, 9, 200)[:, None]
    assert fit_temperature(shifted, gold) == pytest.approx(fit_temperature(logprobs, gold), rel=1e-4)


def test_no_temperature_where_every_row_is_right():
    logprobs, _ = over_confident(50)
    assert fit_temperature(logprobs, logprobs.argmax(axis=1)) is None


def test_no_temperature_where_a_right_model_is_so_sharp_that_its_loss_underflows():
    logprobs = np.log(np.array([[0.9, 0.1]] * 20))
    assert fit_temperature(logprobs, np.zeros(20, dtype=np.int64)) is None


def test_no_temperature_where_one_half_has_no_mistake():
    logprobs = np.log(np.array([[0.9, 0.1]] * 20))
    gold, said = np.zeros(20, dtype=np.int64), np.zeros(20, dtype=np.int64)
    gold[3] = 1
    found = calibrate(logprobs, softmax(logprobs, 1.0), gold, said)
    assert (found.temperature, found.after, found.bins_after) == (None, None, ())


def test_calibration_after_is_cross_validated_and_better_on_an_over_confident_model():
    logprobs, gold = over_confident()
    found = calibrate(logprobs, softmax(logprobs, 1.0), gold, logprobs.argmax(axis=1))
    assert found.after is not None
    assert found.after.ece < found.before.ece / 2
    assert found.after.nll < found.before.nll
    flattering = softmax(logprobs, found.temperature)
    best = calibration_errors(flattering, gold, logprobs.argmax(axis=1)).nll
    assert found.after.nll > best
    assert sum(item.rows for item in found.bins) == found.rows == 600


def folder(tmp_path: Path) -> Path:
    text = json.dumps({"task": "意图", "calibration": {"old": {"temperature": 1.5}}}, ensure_ascii=False)
    (tmp_path / "tuyi.json").write_text(text, encoding="utf-8")
    return tmp_path


def test_kept_temperature_leaves_everything_else_of_the_model_folder(tmp_path):
    logprobs, gold = over_confident()
    found = calibrate(logprobs, softmax(logprobs, 1.0), gold, logprobs.argmax(axis=1))
    kept = keep_temperature(folder(tmp_path), {"new": found})
    value = json.loads((tmp_path / "tuyi.json").read_text(encoding="utf-8"))
    assert value["task"] == "意图"
    assert value["calibration"]["old"] == {"temperature": 1.5}
    assert value["calibration"]["new"] == kept["new"]
    assert kept["new"] == {
        "temperature": found.temperature,
        "rows": 600,
        "ece_before": found.before.ece,
        "ece_after": found.after.ece,
    }
    assert [path.name for path in tmp_path.iterdir()] == ["tuyi.json"]


def test_nothing_is_kept_where_the_rows_determine_no_temperature(tmp_path):
    logprobs, _ = over_confident(50)
    right = logprobs.argmax(axis=1)
    before = (folder(tmp_path) / "tuyi.json").read_text(encoding="utf-8")
    assert keep_temperature(tmp_path, {"new": calibrate(logprobs, softmax(logprobs, 1.0), right, right)}) == {}
    assert (tmp_path / "tuyi.json").read_text(encoding="utf-8") == before


def test_a_folder_without_tuyi_json_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"has no tuyi\.json to keep a temperature in; expected a folder that"):
        keep_temperature(tmp_path, {})
