"""Steps are known from seed and lengths alone; every row comes once an epoch; processes stay in step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuyi.train.plan import Plan, spread

LENGTHS = [10 + 7 * (index % 13) for index in range(50)]


@pytest.mark.parametrize("size", [{"batch_rows": 8}, {"batch_rows": 8, "batch_tokens": 300}])
def test_each_epoch_has_every_row_once_in_an_order_of_its_own(size):
    plan = Plan(LENGTHS, epochs=3, seed=1, **size)
    order = np.concatenate([plan.rows(step) for step in range(plan.steps)])
    epochs = order.reshape(3, 50)
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs.tolist())
    assert not np.array_equal(epochs[0], epochs[1])
    again = Plan(LENGTHS, epochs=3, seed=1, **size)
    assert all(np.array_equal(plan.rows(step), again.rows(step)) for step in range(plan.steps))
    other = Plan(LENGTHS, epochs=3, seed=2, **size)
    assert not np.array_equal(plan.rows(0), other.rows(0))


def test_a_step_holds_the_rows_or_tokens_asked_for():
    rows = Plan(LENGTHS, epochs=1, seed=0, batch_rows=8)
    assert [len(rows.rows(step)) for step in range(rows.steps)] == [8] * 6 + [2]
    tokens = Plan([*LENGTHS, 5000], epochs=1, seed=0, batch_rows=8, batch_tokens=300)
    sizes = [tokens.tokens[tokens.rows(step)].tolist() for step in range(tokens.steps)]
    assert all(sum(size) <= 300 or size == [5000] for size in sizes)
    assert [5000] in sizes


def test_epochs_may_end_early():
    assert Plan(LENGTHS, epochs=0.5, seed=0, batch_rows=10).steps == 3
    assert Plan(LENGTHS, epochs=2.2, seed=0, batch_rows=10).steps == 11
    assert Plan(LENGTHS, epochs=9, seed=0, batch_rows=10, max_steps=4).steps == 4
    plan = Plan(LENGTHS, epochs=2, seed=0, batch_rows=10)
    assert [plan.epoch_at(step) for step in (0, 5, 7, 10)] == [0, 1, 1.4, 2]


def test_an_order_of_its_own_is_cut_into_steps():
    plan = Plan(LENGTHS, epochs=2, seed=0, batch_rows=20, order=lambda epoch: np.full(50, epoch))
    assert [plan.rows(step).tolist() for step in (0, 2, 3)] == [[0] * 20, [0] * 10, [1] * 20]
    by_tokens = Plan(LENGTHS, epochs=1, seed=0, batch_rows=1, batch_tokens=45, order=lambda epoch: np.full(50, 1))
    assert LENGTHS[1] == 17
    assert [len(by_tokens.rows(step)) for step in range(by_tokens.steps)] == [2] * 25


@given(
    sizes=st.lists(st.integers(1, 120), min_size=1, max_size=40),
    world=st.integers(1, 4),
    budget=st.integers(20, 200),
)
def test_spreading_keeps_rows_budget_and_step(sizes, world, budget):
    rows = np.arange(100, 100 + len(sizes))
    shares = spread(rows, sizes, world, budget)
    assert len(shares) == world
    assert len({len(packs) for packs in shares}) == 1, "every process runs the same number of passes"
    placed = [row for packs in shares for pack in packs for row in pack]
    assert sorted(placed) == rows.tolist()
    for packs in shares:
        for pack in packs:
            assert len(pack) <= 1 or sum(sizes[row - 100] for row in pack) <= budget
