"""Comparison against hand-counted tables and a plain loop."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import f1_score

from tuyi.errors import DataError
from tuyi.evaluate.bootstrap import cells_of, resample_cells
from tuyi.evaluate.compare import compare, mcnemar, paired_difference
from tuyi.evaluate.rows import join, load_predictions
from tuyi.evaluate.scores import Sampling


def test_mcnemar_of_a_table_counted_by_hand():
    # 3 both, 1 only this, 9 only other, 2 neither; two-sided exact p = 2 * (C(10,0) + C(10,1)) / 2 ** 10.
    this = np.array([1] * 3 + [1] + [0] * 9 + [0] * 2)
    other = np.array([1] * 3 + [0] + [1] * 9 + [0] * 2)
    found = mcnemar(this, other)
    assert (found.both_right, found.only_this, found.only_other, found.both_wrong) == (3, 1, 9, 2)
    assert found.p_value == pytest.approx(2 * 11 / 1024)


def test_mcnemar_of_models_that_never_differ_is_one():
    assert mcnemar(np.ones(4), np.ones(4)).p_value == 1.0


def test_paired_differences_are_those_of_the_same_rows_drawn_for_both():
    rng = np.random.default_rng(1)
    gold, this, other = (rng.integers(3, size=30) for _ in range(3))
    value, resampled = paired_difference(gold, this, other, 3, Sampling(resamples=100, seed=9), stream=2)

    def difference(gold, this, other):
        each = [f1_score(gold, said, average="weighted", zero_division=0) for said in (this, other)]
        return each[0] - each[1]

    assert value["weighted_f1"] == pytest.approx(difference(gold, this, other))
    columns, counts_C = cells_of(gold, this, other)
    for r, draw_C in enumerate(resample_cells(counts_C, 100, (9, 2))):
        drawn = [np.repeat(column, draw_C) for column in columns]
        assert resampled["weighted_f1"][r] == pytest.approx(difference(*drawn))


def judged(case):
    file = case.write()
    return join(load_predictions(file), file, case.examples, None, 0)


def test_a_better_model_is_better_and_its_changed_rows_are_listed(case, predict):
    better = [
        predict(one.id, one.task, tuple(one.probabilities), example.label, 0.8)
        for one, example in zip(case.predictions, case.examples, strict=True)
    ]
    found = compare(judged(case), case.write(better, "other.jsonl"), Sampling(resamples=200))
    assert found.difference["weighted_f1"].high < 0
    assert [row.id for row in found.tasks["colour"].changed] == ["0", "5", "10", "15"]
    assert [row.id for row in found.tasks["mood"].changed] == ["20", "25"]
    assert all(row.other == row.gold != row.this for row in found.tasks["mood"].changed)
    assert (found.mcnemar.only_this, found.mcnemar.only_other) == (0, 6)


def test_rows_that_the_other_file_lacks_or_answers_as_another_task_are_told(case):
    rows = judged(case)
    with pytest.raises(DataError, match=r"other\.jsonl: .*2 of 20 rows of colour have none \(first: 0, 1\)"):
        compare(rows, case.write(case.predictions[2:], "other.jsonl"), Sampling())
    moved = [replace(case.predictions[0], task="mood"), *case.predictions[1:]]
    with pytest.raises(DataError, match="id 0: answers task 'mood', expected 'colour'"):
        compare(rows, case.write(moved, "other.jsonl"), Sampling())
