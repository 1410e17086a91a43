"""Scores against scikit-learn, intervals against a plain loop."""

from __future__ import annotations

import time
import warnings

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

from tuyi.evaluate.bootstrap import METRICS, cells_of, resample_cells, score_cells
from tuyi.evaluate.scores import Sampling, overall, score

LABELS = ["a", "b", "c", "d", "never"]


def rows(n: int, labels: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    gold = rng.integers(labels, size=n)
    return gold, np.where(rng.random(n) < 0.7, gold, rng.integers(labels, size=n))


def by_sklearn(gold: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    found = {"accuracy": accuracy_score(gold, predicted)}
    for average in ("weighted", "macro"):
        precision, recall, f1, _ = precision_recall_fscore_support(gold, predicted, average=average, zero_division=0)
        found |= {f"{average}_precision": precision, f"{average}_recall": recall, f"{average}_f1": f1}
    return found


def test_scores_are_those_of_sklearn():
    gold, predicted = rows(200, 4)
    found = score(gold, predicted, LABELS)
    assert {name: item.value for name, item in found.metrics.items()} == pytest.approx(by_sklearn(gold, predicted))
    each = f1_score(gold, predicted, labels=range(5), average=None, zero_division=0)
    assert [item.f1.value for item in found.labels] == pytest.approx(list(each))
    assert [item.label for item in found.labels] == LABELS
    assert found.right == int((gold == predicted).sum())


def test_confusion_matrix_and_most_frequent_confusion():
    gold, predicted = np.array([0, 0, 0, 0, 1, 2]), np.array([0, 1, 1, 2, 1, 0])
    found = score(gold, predicted, ["x", "y", "z"])
    assert found.matrix_KK.tolist() == [[1, 2, 1], [0, 1, 0], [1, 0, 0]]
    assert (found.labels[0].confused_with, found.labels[0].confused) == ("y", 2)
    assert found.labels[1].confused_with is None
    assert [(pair.gold, pair.predicted, pair.rows) for pair in found.confusions] == [
        ("x", "y", 2),
        ("x", "z", 1),
        ("z", "x", 1),
    ]


def test_majority_answers_the_most_frequent_label():
    gold, predicted = np.array([1, 1, 1, 0]), np.array([1, 0, 1, 0])
    found = score(gold, predicted, ["x", "y"])
    assert found.majority_label == "y"
    assert found.majority == pytest.approx(by_sklearn(gold, np.array([1, 1, 1, 1])))


def test_resampled_scores_are_those_of_sklearn_on_the_resampled_rows():
    gold, predicted = rows(40, 5, seed=3)
    (gold_C, predicted_C), counts_C = cells_of(gold, predicted)
    draws_RC = resample_cells(counts_C, 50, (7,))
    found = score_cells(draws_RC, gold_C, predicted_C, 5)
    assert (draws_RC.sum(axis=1) == 40).all()
    for r, draw_C in enumerate(draws_RC):
        drawn_gold, drawn_predicted = np.repeat(gold_C, draw_C), np.repeat(predicted_C, draw_C)
        expected = by_sklearn(drawn_gold, drawn_predicted)
        assert {name: found.metrics[name][r] for name in METRICS} == pytest.approx(expected)


def test_intervals_are_those_of_resampling_the_rows():
    gold, predicted = rows(60, 4, seed=5)
    found = score(gold, predicted, LABELS[:4], Sampling(resamples=4000, seed=1)).metrics["weighted_f1"]
    rng = np.random.default_rng(2)
    values = []
    for _ in range(400):
        drawn = rng.integers(60, size=60)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values.append(f1_score(gold[drawn], predicted[drawn], average="weighted", zero_division=0))
    low, high = np.quantile(values, [0.025, 0.975])
    # Both ends of a 400-resample interval scatter by about 0.01 here.
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.03)
    assert found.low < found.value < found.high


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    gold, predicted = rows(80, 4)
    one, again, other = (score(gold, predicted, LABELS, Sampling(seed=seed)).metrics["macro_f1"] for seed in (0, 0, 1))
    assert one == again
    assert one.value == other.value
    assert (one.low, one.high) != (other.low, other.high)


def test_overall_is_the_plain_mean_of_the_tasks():
    small, large = score(*rows(20, 4), LABELS), score(*rows(400, 4, seed=1), LABELS, stream=1)
    found = overall([small, large])["weighted_f1"]
    mean = (small.metrics["weighted_f1"].value + large.metrics["weighted_f1"].value) / 2
    assert found.value == pytest.approx(mean)
    both = np.stack([small.resampled["weighted_f1"], large.resampled["weighted_f1"]]).mean(axis=0)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(both, [0.025, 0.975])))


def test_ten_thousand_rows_are_scored_in_seconds():
    gold, predicted = rows(10_000, 25)
    began = time.perf_counter()
    score(gold, predicted, [str(k) for k in range(25)])
    assert time.perf_counter() - began < 5
