"""Pictures that come again pass the tower once, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tuyi.data.example import Example, Text
from tuyi.model.kept import Plan
from tuyi.predict.local import LocalEngine

PICTURES = (0, 1, 0, 2, 1, 0, 0, 3)


@pytest.fixture
def rows(picture: Callable[..., Any]) -> list[Example]:
    """Rows of one task, each with one of four pictures; two sizes."""
    return [
        Example(
            f"{place}", (Text(f"第{place}个：" + "好" * place), picture(70 + 28 * (seed % 2), seed=seed)), task="colour"
        )
        for place, seed in enumerate(PICTURES)
    ]


def predict(
    twin: Any, rows: list[Example], features: int, pack_tokens: int, lanes: int = 1
) -> tuple[dict[str, Any], list[int]]:
    """Log-probabilities by id, and patches of each pass of the tower."""
    seen: list[int] = []
    tower = twin.model.hf.model.visual
    hook = tower.register_forward_pre_hook(lambda _, arguments: seen.append(len(arguments[0])))
    sized = [(row, twin.encoder.length(row).tokens) for row in rows]
    engine = LocalEngine(twin.model, twin.encoder, pack_tokens=pack_tokens, workers=1, features=features, lanes=lanes)
    try:
        found = {one.id: dict(one.logprobs) for many in engine.predict(sized) for one in many}
        again = {one.id: dict(one.logprobs) for many in engine.predict(sized[:2]) for one in many}
    finally:
        hook.remove()
        engine.close()
    assert again == {id: pytest.approx(found[id], abs=1e-4) for id in again}, "nothing is left over for the next run"
    return found, seen


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("pack_tokens", [1, 250, 100_000])
def test_each_picture_passes_the_tower_once(twin: Any, rows: list[Example], pack_tokens: int, lanes: int):
    plain, _ = predict(twin, rows, 0, 1)
    found, seen = predict(twin, rows, 10_000, pack_tokens, lanes)
    assert found.keys() == plain.keys() == {row.id for row in rows}
    for id, scores in found.items():
        assert scores == pytest.approx(plain[id], abs=1e-4), id
    once = {PICTURES[int(row.id)]: twin.encoder.length(row).patches for row in rows}
    of_two = sum(once[seed] for seed in set(PICTURES[:2]))
    assert sum(seen) == sum(once.values()) + of_two, "the second run of two rows begins anew"


def test_a_small_store_forgets_and_stays_right(twin: Any, rows: list[Example]):
    plain, without = predict(twin, rows, 0, 1)
    one_picture = twin.encoder.length(rows[0]).patches // twin.model.spec.merge_size**2
    found, seen = predict(twin, rows, one_picture, 1)
    for id, scores in found.items():
        assert scores == pytest.approx(plain[id], abs=1e-4), id
    assert sum(seen) <= sum(without)


def test_a_plan_drops_what_was_longest_unused():
    plan = Plan(10)
    plan.use([(b"a", 4), (b"b", 4)])
    plan.use([(b"a", 4)])
    plan.use([(b"c", 4)])
    assert set(plan) == {b"a", b"c"}
    plan.use([(b"d", 11)])
    assert not set(plan)
    plan.use([(b"e", 3)])
    assert b"e" in plan
    plan.clear()
    assert b"e" not in plan
