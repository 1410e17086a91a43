"""The local engine: what it says about a row is the row's own, however rows are packed, ordered and read."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import count, islice
from typing import Any

import numpy as np
import pytest
import torch

from tuyi.data.example import Example, Image, Text
from tuyi.encode.pack import Pack, pack
from tuyi.errors import DataError
from tuyi.model.folder import FolderInfo
from tuyi.predict import lanes as of_lanes
from tuyi.predict.engine import SizedRow
from tuyi.predict.local import LocalEngine
from tuyi.predict.prediction import Prediction
from tuyi.predict.scoring import score_labels
from tuyi.vision.pool import PicturePool


def engine(twin: Any, **options: Any) -> closing[LocalEngine]:
    return closing(LocalEngine(twin.model, twin.encoder, **{"pack_tokens": 700, "workers": 2, **options}))


def sized(twin: Any, rows: list[Example]) -> list[SizedRow]:
    return [(row, twin.encoder.length(row, labelled=False).tokens) for row in rows]


def predicted(twin: Any, rows: list[SizedRow], **options: Any) -> dict[str, Prediction]:
    with engine(twin, **options) as local:
        made = [one for many in local.predict(rows) for one in many]
    found = {one.id: one for one in made}
    assert len(found) == len(made) == len(rows), "each row once"
    return found


def assert_same(found: dict[str, Prediction], expected: dict[str, Prediction]) -> None:
    assert found.keys() == expected.keys()
    for key, one in found.items():
        other = expected[key]
        assert (one.task, one.label, one.notes) == (other.task, other.label, other.notes)
        np.testing.assert_allclose(list(one.logprobs.values()), list(other.logprobs.values()), rtol=1e-5, atol=1e-5)
        assert dict(one.probabilities) == pytest.approx(dict(other.probabilities), abs=1e-5)


@pytest.fixture(scope="module")
def small(twins: Callable[[str], Any]) -> Any:
    return twins("qwen2_vl")


@pytest.fixture(scope="module")
def many(small: Any, mixed_rows: Callable[[int], list[Example]]) -> list[SizedRow]:
    return sized(small, mixed_rows(18))


@pytest.fixture(scope="module")
def alone(small: Any, many: list[SizedRow]) -> dict[str, Prediction]:
    """Each row in a pack of its own, so that nothing is shared."""
    return predicted(small, many, pack_tokens=1, workers=1)


@pytest.mark.parametrize(
    "options",
    [
        {"pack_tokens": 250},
        {"pack_tokens": 100_000},
        {"pack_tokens": 400, "window": 7},
        {"pack_tokens": 400, "window": 1},
        {"pack_tokens": 400, "workers": 5},
        {"pack_tokens": 250, "lanes": 3},
        {"pack_tokens": 400, "window": 7, "lanes": 2},
    ],
    ids=str,
)
def test_predictions_do_not_depend_on_packs_windows_and_workers(
    small: Any, many: list[SizedRow], alone: dict[str, Prediction], options: dict[str, Any]
):
    assert_same(predicted(small, many, **options), alone)
    assert_same(predicted(small, many[::-1], **options), alone)


def test_predictions_do_not_depend_on_who_decodes(small: Any, many: list[SizedRow], alone: dict[str, Prediction]):
    for pack_tokens in (1, 300, 100_000):
        pool = PicturePool(2, 1 << 20)  # less than a run's pictures; closed with the engine
        assert_same(predicted(small, many, pack_tokens=pack_tokens, pool=pool), alone)
        assert not pool.pids or all(worker._ended for worker in pool._workers)


def test_a_window_is_over_before_the_next_begins(small: Any, many: list[SizedRow]):
    with engine(small, pack_tokens=300, window=6) as local:
        order = [one.id for several in local.predict(many) for one in several]
    for begin in (0, 6, 12):
        assert sorted(order[begin : begin + 6]) == sorted(row.id for row, _ in many[begin : begin + 6])
    assert order != [row.id for row, _ in many]


def test_a_prediction_is_the_scores_of_its_row(small: Any, many: list[SizedRow], alone: dict[str, Prediction]):
    row, _ = many[5]
    encoded = small.encoder.encode(row, labelled=False)
    labels = small.encoder.labels(small.encoder.tasks[row.task])
    (scores,) = score_labels(small.model, [encoded], [labels])
    one = alone[row.id]
    assert dict(one.logprobs) == pytest.approx(dict(zip(labels.names, map(float, scores), strict=True)))
    chances = np.exp(scores) / np.exp(scores).sum()
    assert dict(one.probabilities) == pytest.approx(dict(zip(labels.names, chances, strict=True)), abs=1e-6)
    assert one.label == labels.names[int(scores.argmax())]
    assert dict(one.notes) == {"tokens": len(encoded), "calls": 1, "output_tokens": 0}


def test_the_tasks_temperature_is_used(small: Any, many: list[SizedRow], alone: dict[str, Prediction]):
    info = FolderInfo(tasks=small.encoder.tasks, base_model="b", calibration={"colour": {"temperature": 2.0}})
    for key, one in predicted(small, many, info=info).items():
        assert dict(one.logprobs) == pytest.approx(dict(alone[key].logprobs), rel=1e-5, abs=1e-5)
        factor = 2.0 if one.task == "colour" else 1.0
        logits = np.asarray(list(alone[key].logprobs.values())) / factor
        expected = np.exp(logits - logits.max())
        np.testing.assert_allclose(list(one.probabilities.values()), expected / expected.sum(), atol=1e-5)


# --- what rows of a pack share ----------------------------------------------------------------------------------------


def scene_rows(picture: Callable[..., Image], seeds: list[int]) -> list[Example]:
    """Rows that differ in their picture alone, all pictures of one size; and one that differs before its picture."""
    said = "Picture 1: 你是一个识图专家，请看图 "
    rows = [
        Example(id=f"s{index}", content=(Text(said), picture(84, 56, seed=seed), Text(" 这是什么")), task="colour")
        for index, seed in enumerate(seeds)
    ]
    return [*rows, Example(id="other", content=(Text(said[:-4]), picture(84, 56, seed=40)), task="colour")]


def packed(twin: Any, rows: list[Example]) -> Pack:
    encoded = [twin.encoder.encode(row, labelled=False) for row in rows]
    return pack(encoded, [twin.encoder.labels(twin.encoder.tasks.of(row)) for row in rows])


def test_a_shared_prefix_changes_nothing(twin: Any, picture: Callable[..., Image]):
    """Packs of one share nothing; in the others the prefix stands once."""
    rows = sized(twin, [*scene_rows(picture, [1, 2, 3]), *scene_rows(picture, [])])[:4]
    first, all_four = (packed(twin, [row for row, _ in part]) for part in (rows[:2], rows))
    assert first.shared > 16
    assert first.branches is not None
    assert len(first.ids) == sum(map(len, first.rows)) - first.shared + sum(first.branches.row_lengths)
    assert 8 <= all_four.shared < first.shared
    single = predicted(twin, rows, pack_tokens=1)
    assert_same(predicted(twin, rows[:2], pack_tokens=5000), {key: single[key] for key in ("s0", "s1")})
    assert_same(predicted(twin, rows, pack_tokens=5000), single)
    scores = np.asarray([list(single[key].logprobs.values()) for key in ("s0", "s1", "s2")])
    assert np.ptp(scores, axis=0).min() > 0.01, "the pictures count"


def test_equal_pictures_of_a_pack_are_seen_once(
    twin: Any, picture: Callable[..., Image], monkeypatch: pytest.MonkeyPatch
):
    seen: list[int] = []
    visual = twin.model.hf.model.visual
    forward = visual.forward

    def spy(patches: Any, **options: Any) -> Any:
        seen.append(len(patches))
        assert int(options["grid_thw"].prod(1).sum()) == len(patches)
        return forward(patches, **options)

    one, two = picture(84, 56, seed=1), picture(84, 56, seed=2)
    pictures = [(one,), (two,), (one,), (two, one), (two, two, picture(60, 90, seed=3))]
    rows = sized(
        twin, [Example(id=f"e{i}", content=(*shown, Text("what?")), task="shape") for i, shown in enumerate(pictures)]
    )
    monkeypatch.setattr(visual, "forward", spy)
    single = predicted(twin, rows, pack_tokens=1)
    patches = {row.id: twin.encoder.length(row, labelled=False).patches for row, _ in rows}
    assert sorted(seen) == sorted(
        [patches["e0"], patches["e1"], patches["e2"], patches["e0"] * 2, patches["e4"] - patches["e0"]]
    )
    seen.clear()
    together = predicted(twin, rows, pack_tokens=5000)
    assert seen == [patches["e4"]], "two pictures of one size and one of another"
    assert_same(together, single)
    assert single["e0"].logprobs == pytest.approx(single["e2"].logprobs)
    assert single["e0"].logprobs != pytest.approx(single["e1"].logprobs, abs=1e-3)


# --- bad rows and ends ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lanes", [1, 2])
def test_a_damaged_row_stops_the_run(small: Any, many: list[SizedRow], damaged: Callable[..., Example], lanes: int):
    rows = [*many[:9], *sized(small, [damaged()]), *many[9:]]
    with engine(small, pack_tokens=300, lanes=lanes) as local, pytest.raises(DataError, match=r"id bad: .*broken\.jpg"):
        list(local.predict(rows))


@pytest.mark.parametrize("pack_tokens", [1, 300, 5000])
def test_or_it_is_told_of_and_the_others_are_predicted(
    small: Any, many: list[SizedRow], alone: dict[str, Prediction], damaged: Callable[..., Example], pack_tokens: int
):
    told: list[DataError] = []
    rows = [*many[:9], *sized(small, [damaged()]), *many[9:]]
    with engine(small, pack_tokens=pack_tokens, on_bad_row=told.append) as local:
        made = [one for several in local.predict(rows) for one in several]
    assert len(made) == 18
    assert_same({one.id: one for one in made}, alone)
    assert [error.place.id for error in told] == ["bad"]


@pytest.mark.parametrize("lanes", [1, 3])
def test_an_endless_stream_and_an_early_end(small: Any, many: list[SizedRow], alone: dict[str, Prediction], lanes: int):
    pulled = []

    def endless() -> Iterator[SizedRow]:
        for number in count():
            pulled.append(number)
            yield many[number % 18]

    before = set(threading.enumerate())
    with engine(small, pack_tokens=300, window=9, lanes=lanes) as local:
        answers = local.predict(endless())
        found = {one.id: one for several in islice(answers, 4) for one in several}
        answers.close()
        assert len(pulled) <= 8 * 9
        # and the engine serves on
        assert_same({one.id: one for several in local.predict(many) for one in several}, alone)
    local = LocalEngine(small.model, small.encoder, pack_tokens=300, workers=2, lanes=lanes)
    local.close()
    local.close()
    assert_same(found, {key: alone[key] for key in found})
    assert set(threading.enumerate()) <= before


def test_no_rows(small: Any):
    with engine(small) as local:
        assert list(local.predict([])) == []


@pytest.mark.parametrize("lanes", [1, 2])
def test_where_the_time_went(small: Any, many: list[SizedRow], lanes: int):
    with engine(small, pack_tokens=300, lanes=lanes) as local:
        began = time.perf_counter()
        list(local.predict(many))
        whole = time.perf_counter() - began
        spent = local.spent()
    assert list(spent) == ["tower", "language", "labels", "vision wait", "host"]
    host = spent.pop("host")
    assert all(seconds > 0 for seconds in spent.values())
    assert sum(spent.values()) < 1.1 * whole, "lanes that run side by side do not count twice"
    assert host >= 0


# --- side by side -----------------------------------------------------------------------------------------------------


def test_lanes_pass_packs_at_the_same_time(small: Any, many: list[SizedRow], monkeypatch: pytest.MonkeyPatch):
    both = threading.Barrier(2, timeout=30)
    threads: set[int] = set()
    real = of_lanes.score_tokens

    def scored(model: Any, *rest: Any) -> Any:
        if len(threads) < 2:
            threads.add(threading.get_ident())
            both.wait()
        assert model.hf is not small.model.hf
        assert all(one is other for one, other in zip(model.hf.parameters(), small.model.hf.parameters(), strict=True))
        return real(model, *rest)

    monkeypatch.setattr(of_lanes, "score_tokens", scored)
    assert len(predicted(small, many, pack_tokens=300, lanes=2)) == 18
    assert len(threads) == 2
    assert threading.get_ident() not in threads


def test_a_pack_alone_has_all_cores(small: Any, many: list[SizedRow], monkeypatch: pytest.MonkeyPatch):
    threads: list[int] = []
    real = of_lanes.score_tokens

    def scored(model: Any, *rest: Any) -> Any:
        threads.append(threading.get_ident())
        assert model is small.model
        return real(model, *rest)

    monkeypatch.setattr(of_lanes, "score_tokens", scored)
    with engine(small, lanes=2) as local:
        assert len([one for several in local.predict(many[:1]) for one in several]) == 1
        spent = local.spent()
    assert threads == [threading.get_ident()]
    assert spent["language"] > 0


def test_lanes_share_the_cores_out_and_leave_the_others_theirs(small: Any):
    before = torch.get_num_threads()
    torch.set_num_threads(6)
    try:
        with engine(small, lanes=3) as local:
            pool = local._lanes._pool
            assert pool is not None
            assert pool.submit(torch.get_num_threads).result() == 2
            assert torch.get_num_threads() == 6
            with ThreadPoolExecutor(1) as later:
                assert later.submit(torch.get_num_threads).result() == 6
    finally:
        torch.set_num_threads(before)
