"""Sampling by label and by task, and class weights."""

from __future__ import annotations

from array import array
from collections import Counter

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from tuyi.config import load_settings
from tuyi.data.example import Example, Text
from tuyi.encode.store import RowStore
from tuyi.encode.survey import Survey
from tuyi.errors import ConfigError
from tuyi.task.catalog import parse_tasks
from tuyi.train.mixing import order_of, read_answers, weights_of
from tuyi.train.plan import Plan
from tuyi.train.settings import TrainSettings

TASKS = parse_tasks(
    {
        "name": "three",
        "tasks": [
            {"name": "colour", "labels": ["red", "green", "blue（深）", "never"]},
            {"name": "shape", "labels": ["round", "square", "Red"]},
            {"name": "talk", "answer": "open"},
        ],
    },
    "three",
)
COUNTS = {
    ("colour", "red"): 61,
    ("colour", "Green"): 7,
    ("colour", "blue(深)"): 2,
    ("shape", "round"): 20,
    ("shape", "square"): 6,
    ("shape", "red"): 4,
}
TALK = {("talk", "anything"): 10}


def surveyed(counts):
    """As many rows of each task and label, mixed, of weights 1, 2, 3, …"""
    keys = [key for key, count in counts.items() for _ in range(count)]
    store = RowStore()
    for index, at in enumerate(np.random.default_rng(0).permutation(len(keys))):
        task, label = keys[at]
        store.append(Example(str(index), (Text("?"),), task=task, label=label))
    sizes = array("l", [5] * len(keys))
    return Survey(store, sizes, sizes, sizes, array("d", range(1, len(keys) + 1)), ())


@pytest.fixture(scope="module")
def rows():
    return surveyed(COUNTS)


@pytest.fixture(scope="module")
def talking():
    return surveyed(COUNTS | TALK)


def order(rows, **settings):
    return order_of(read_answers(rows, TASKS), TASKS, TrainSettings(**settings))


def drawn(rows, numbers):
    """How often each task and label comes among rows."""
    return Counter((rows.rows[row].task, rows.rows[row].label) for row in numbers.tolist())


def test_answers_are_the_rows_tasks_and_labels(talking):
    answers = read_answers(talking, TASKS)
    for number, label, row in zip(answers.tasks, answers.labels, talking.rows, strict=True):
        task = TASKS.tasks[number]
        assert task.name == row.task
        assert (label == -1) if task.labels is None else (task.labels.names[label] == task.labels.canonical(row.label))
    assert [task.name for _, task in answers.asked(TASKS)] == ["colour", "shape", "talk"]


def test_plain_sampling_has_no_order_of_its_own(rows):
    assert order(rows) is None


def test_balanced_epochs_have_every_label_of_a_task_equally_often(rows):
    balanced = order(rows, sampling="balanced", seed=3)
    for epoch in range(5):
        numbers = balanced(epoch)
        assert len(numbers) == len(rows) == 100
        counts = drawn(rows, numbers)
        assert counts.keys() == COUNTS.keys()
        for task, total in (("colour", 70), ("shape", 30)):
            each = [count for (name, _), count in counts.items() if name == task]
            assert sum(each) == total
            assert max(each) - min(each) <= 1


def test_rows_of_a_label_come_evenly_over_the_epochs(rows):
    """Rare rows never differ by more than one; of the frequent label all rows are met before one comes again."""
    balanced = order(rows, sampling="balanced", seed=3)
    epochs = [balanced(epoch) for epoch in range(8)]
    met: Counter[int] = Counter()
    for numbers in epochs:
        met.update(numbers.tolist())
        for key in COUNTS:
            each = [met[row] for row in range(100) if (rows.rows[row].task, rows.rows[row].label) == key]
            assert max(each) - min(each) <= 1, key
    assert min(met[row] for row in range(100)) >= 2
    red = [row for numbers in epochs[:2] for row in numbers.tolist() if rows.rows[row].label == "red"]
    assert len(red) > 40, "more than two thirds of an epoch's share"
    assert max(Counter(row for row in red if rows.rows[row].task == "colour").values()) == 1


def test_an_epoch_depends_on_seed_and_number_alone(rows):
    settings = {"sampling": "balanced", "task_weights": {"colour": 1, "shape": 3}}
    one, again, other = (order(rows, seed=seed, **settings) for seed in (1, 1, 2))
    expected = [one(epoch) for epoch in range(4)]
    assert all(np.array_equal(again(epoch), expected[epoch]) for epoch in (3, 0, 2, 1))
    assert not np.array_equal(other(0), expected[0])
    assert not np.array_equal(expected[0], expected[1])
    labels = [rows.rows[row].label for row in expected[0].tolist()]
    assert len(set(labels[:20])) > 3, "labels and tasks are shuffled among each other"


def test_a_plan_resumes_into_the_same_rows(rows):
    for size in ({"batch_rows": 8}, {"batch_rows": 8, "batch_tokens": 35}):
        plans = [
            Plan(rows.tokens, epochs=2.5, seed=1, order=order(rows, sampling="balanced", seed=1), **size)
            for _ in range(2)
        ]
        steps = [plans[0].rows(step) for step in range(plans[0].steps)]
        late = range(plans[1].steps - 1, 10, -1)
        assert len(late) > 10
        assert all(np.array_equal(plans[1].rows(step), steps[step]) for step in late)
        epoch = np.concatenate(steps)[:100]
        np.testing.assert_array_equal(np.sort(epoch), np.sort(order(rows, sampling="balanced", seed=1)(0)))


def test_tasks_take_their_shares_of_an_epoch(rows):
    mixed = order(rows, task_weights={"shape": 0.3, "colour": 0.1})
    met: Counter[int] = Counter()
    for epoch in range(4):
        numbers = mixed(epoch)
        counts = drawn(rows, numbers)
        shape = sum(count for (task, _), count in counts.items() if task == "shape")
        assert (len(numbers), shape) == (100, 75)
        met.update(numbers.tolist())
        for task in ("shape", "colour"):
            each = [met[row] for row in range(100) if rows.rows[row].task == task]
            assert max(each) - min(each) <= 1
    assert min(met[row] for row in range(100) if rows.rows[row].task == "colour") == 1
    assert drawn(rows, mixed(0))[("shape", "round")] > 40, "within a task the rows are as they are"


def test_shares_and_balance_combine(rows):
    counts = drawn(rows, order(rows, task_weights={"shape": 2, "colour": 1}, sampling="balanced")(0))
    colour = sorted(count for (task, _), count in counts.items() if task == "colour")
    shape = sorted(count for (task, _), count in counts.items() if task == "shape")
    assert (sum(colour), sum(shape)) == (33, 67)
    assert (colour, shape) == ([11, 11, 11], [22, 22, 23])


def test_open_tasks_take_shares_but_have_no_labels(talking):
    counts = drawn(talking, order(talking, task_weights={"talk": 2, "colour": 1, "shape": 1})(0))
    assert counts[("talk", "anything")] == 55
    with pytest.raises(ConfigError, match="sampling: balanced goes by label, and task talk is open: it has none"):
        order(talking, sampling="balanced")
    for weights in ("balanced", {"round": 2}):
        with pytest.raises(ConfigError, match="class_weights goes by label, and task talk is open: it has none"):
            weights_of(talking, read_answers(talking, TASKS), TASKS, TrainSettings(class_weights=weights))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"colours": 1, "shape": 1}, r"expected the tasks that have rows, colour, shape; found 'colours'"),
        ({"colour": 1, "shape": 1, "talk": 1}, r"expected the tasks that have rows, colour, shape; found 'talk'"),
        ({"colour": 1}, "task shape has rows and no weight"),
        ({"colour": 1, "shape": 1e-4}, "task shape gets less than one of an epoch's 100 rows"),
    ],
)
def test_task_weights_name_the_tasks_that_have_rows(rows, weights, message):
    with pytest.raises(ConfigError, match=message):
        order(rows, task_weights=weights)


def test_balanced_class_weights_are_those_of_scikit_learn(rows):
    weights = weights_of(rows, read_answers(rows, TASKS), TASKS, TrainSettings(class_weights="balanced"))
    checked = 0
    for task in ("colour", "shape"):
        mine = [index for index in range(100) if rows.rows[index].task == task]
        labels = np.asarray([rows.rows[index].label for index in mine])
        classes = np.unique(labels)
        expected = dict(zip(classes, compute_class_weight("balanced", classes=classes, y=labels), strict=True))
        for index, label in zip(mine, labels, strict=True):
            assert weights[index] == pytest.approx((index + 1) * expected[label])
            checked += 1
    assert checked == 100


def test_class_weights_are_found_as_labels_are(rows):
    """Width and case do not matter; a label of two tasks weighs in both; labels not named keep their weight."""
    settings = TrainSettings(class_weights={"BLUE(深)": 5, "red": 0.5})
    weights = weights_of(rows, read_answers(rows, TASKS), TASKS, settings)
    factors = {"blue(深)": 5, "red": 0.5}
    expected = [(index + 1) * factors.get(rows.rows[index].label, 1) for index in range(100)]
    assert list(weights) == pytest.approx(expected)
    assert weights_of(rows, read_answers(rows, TASKS), TASKS, TrainSettings()) == rows.weights


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"sqare": 2}, "'sqare' is no label of colour, shape; the nearest is 'square'"),
        ({"完全不同": 2}, "'完全不同' is no label of colour, shape$"),
        ({"red": 2, "RED": 3}, "'RED' weighs 'red' a second time"),
    ],
)
def test_class_weights_of_no_label(rows, weights, message):
    with pytest.raises(ConfigError, match=message):
        weights_of(rows, read_answers(rows, TASKS), TASKS, TrainSettings(class_weights=weights))


def test_weights_are_positive_numbers():
    for wrong in ("task_weights.a=0", "class_weights.a=-1", "class_weights.a=.inf", "class_weights=even"):
        with pytest.raises(ConfigError, match=wrong.partition("=")[0].partition(".")[0]):
            load_settings(TrainSettings, None, [wrong])
    found = load_settings(TrainSettings, None, ["sampling=balanced", "class_weights.a=2", "task_weights={b: 1e-3}"])
    assert (found.sampling, found.class_weights, found.task_weights) == ("balanced", {"a": 2.0}, {"b": 1e-3})
