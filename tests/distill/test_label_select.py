"""The filter: thresholds, quotas, agreement; the threshold that reaches a precision against brute force."""

from __future__ import annotations

import numpy as np
import pytest

from tuyi.config import load_settings
from tuyi.distill.select import Candidate, SelectSettings, pick_threshold, select
from tuyi.errors import ConfigError


def row(id: str, label: str = "a", sure: float = 0.9, **more) -> Candidate:
    return Candidate(id, more.pop("task", "t"), label, sure, **more)


ROWS = [row("1", sure=0.95), row("2", sure=0.6), row("3", sure=0.85), row("4", "b", 0.5), row("5", "b", 0.7)]


@pytest.mark.parametrize(
    ("settings", "least", "kept"),
    [
        ({}, 0.8, "13"),
        ({}, 0.0, "12345"),
        ({}, 0.95, "1"),
        ({"at_most": 1}, 0.0, "15"),
        ({"at_least": 1}, 0.9, "15"),
        ({"at_least": 2}, 0.99, "1345"),
        ({"at_least": 9}, 0.99, "12345"),
        ({"at_least": 1, "at_most": 1}, 0.0, "15"),
    ],
)
def test_the_most_confident_rows_of_each_label_stay(settings, least, kept):
    found = select(ROWS, SelectSettings(**settings), {"t": least})
    assert "".join(sorted(found.kept)) == kept
    assert sorted([*found.kept, *found.left_out]) == [one.id for one in ROWS]


def test_what_is_left_out_says_why():
    rows = [
        *ROWS,
        row("6", votes=("a", "b")),
        row("7", views={"pixels": "b"}),
    ]
    found = select(rows, SelectSettings(unanimous=True, at_most=1), {"t": 0.65})
    told = {id: (one.kind, one.why) for id, one in found.left_out.items()}
    assert told == {
        "2": ("not confident", "confidence 0.600, at least 0.650 is asked for"),
        "3": ("label is full", "1 rows of a have at least 0.850"),
        "4": ("not confident", "confidence 0.500, at least 0.650 is asked for"),
        "6": ("teachers disagree", "a / b"),
        "7": ("views disagree", "a, but b as seen with pixels"),
    }
    assert "6" in select(rows, SelectSettings(), {"t": 0.65}).kept, "teachers may disagree unless told otherwise"


def test_quotas_and_thresholds_are_each_task_s_own():
    rows = [row("1", task="t", sure=0.6), row("2", task="u", sure=0.6)]
    found = select(rows, SelectSettings(at_most=1), {"t": 0.5, "u": 0.7})
    assert list(found.kept) == ["1"]


def test_quotas_never_bring_back_a_row_that_teachers_disagree_on():
    rows = [row("1", votes=("a", "b")), row("2", sure=0.1, votes=("a", "a"))]
    found = select(rows, SelectSettings(unanimous=True, at_least=2), {"t": 0.8})
    assert list(found.kept) == ["2"]


@pytest.mark.parametrize("seed", range(20))
def test_the_threshold_is_the_lowest_that_reaches_the_precision(seed):
    rng = np.random.default_rng(seed)
    confidence = np.round(rng.random(30), 1)  # many ties
    right = rng.random(30) < confidence
    expected = [least for least in np.unique(confidence) if right[confidence >= least].mean() >= 0.8]
    assert pick_threshold(confidence, right, 0.8) == (min(expected) if expected else None)


def test_no_threshold_where_the_precision_is_never_reached():
    assert pick_threshold([0.9, 0.8], [False, True], 0.6) is None
    assert pick_threshold([0.9, 0.8], [True, False], 0.6) == 0.9
    assert pick_threshold([0.9, 0.9], [True, False], 0.6) is None, "equal confidence, kept together or not at all"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["confidence=0.9", "precision=0.9"], "confidence and precision both set the lowest confidence"),
        (["at_most=2", "at_least=3"], "at_least 3 is more than at_most 2"),
        (["confidence=1.2"], "less than or equal to 1"),
        (["confidnce=0.2"], "did you mean 'confidence'"),
    ],
)
def test_settings_that_do_not_go_together(changes, message):
    with pytest.raises(ConfigError, match=message):
        load_settings(SelectSettings, None, changes)
