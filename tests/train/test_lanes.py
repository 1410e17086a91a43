"""Passes side by side on a CPU learn what one after the other learns."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tuyi
from tuyi.model.load import load_frontend, load_model
from tuyi.task.catalog import TaskSet
from tuyi.train import lanes
from tuyi.train.plan import Plan
from tuyi.train.progress import Teller, read_log
from tuyi.train.settings import Freeze, TrainSettings
from tuyi.train.steps import Steps


@contextmanager
def cores(count: int) -> Iterator[None]:
    """As on a machine with so many."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def losses(folder: Path) -> list[float]:
    return [entry["loss"] for entry in read_log(folder / "loss.jsonl") if "loss" in entry]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_model(load_frontend(str(folder)), device="cpu").hf.state_dict()
    return found


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[set[int]]:
    """The threads that each step's passes ran in."""
    steps: list[set[int]] = []
    plain_run, plain_lane = lanes.Lanes.run, lanes.Lanes._lane

    def run(self: Any, *arguments: Any) -> Any:
        steps.append(set())
        return plain_run(self, *arguments)

    def lane(self: Any, *arguments: Any) -> Any:
        steps[-1].add(threading.get_ident())
        return plain_lane(self, *arguments)

    monkeypatch.setattr(lanes.Lanes, "run", run)
    monkeypatch.setattr(lanes.Lanes, "_lane", lane)
    return steps


@pytest.mark.parametrize("frozen", [False, True])
def test_the_same_is_learned(
    pictures: Path, colours: TaskSet, quick: dict[str, Any], tmp_path: Path, ran: list[set[int]], frozen: bool
):
    settings = TrainSettings(**quick, freeze=Freeze(vision=frozen, projector=frozen, language=False))
    for count in (1, 3):
        with cores(count):
            tuyi.train(pictures, tmp_path / f"{count}", task=colours, valid=pictures, settings=settings)
            assert not [thread for thread in threading.enumerate() if thread.name.startswith("lane")], "they ended"
    assert len(ran) == 6, "the second run's steps"
    np.testing.assert_allclose(losses(tmp_path / "3"), losses(tmp_path / "1"), rtol=1e-5)
    one, three = weights(tmp_path / "1"), weights(tmp_path / "3")
    for name, weight in one.items():
        torch.testing.assert_close(three[name], weight, rtol=0, atol=2e-4, msg=name)


def test_runs_are_repeated_to_the_last_bit_and_go_on_where_they_stopped(
    pictures: Path, colours: TaskSet, settings: TrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plain = Teller.on_step_end

    def stopping(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
        plain(self, args, state, control, **more)
        if state.global_step == 3:
            raise KeyboardInterrupt

    with cores(3):
        for name in ("a", "b"):
            tuyi.train(pictures, tmp_path / name, task=colours, settings=settings)
        with monkeypatch.context() as patch:
            patch.setattr(Teller, "on_step_end", stopping)
            with pytest.raises(KeyboardInterrupt):
                tuyi.train(pictures, tmp_path / "c", task=colours, settings=settings)
        tuyi.train(pictures, tmp_path / "c", task=colours, settings=settings, resume=True)
    assert losses(tmp_path / "a") == losses(tmp_path / "b") == losses(tmp_path / "c")
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert all(torch.equal(a[name], b[name]) and torch.equal(a[name], c[name]) for name in a)


def test_a_row_that_comes_twice_in_a_step_waits_for_its_features(
    pictures: Path, colours: TaskSet, quick: dict[str, Any], tmp_path: Path, ran: list[set[int]]
):
    """Balanced sampling repeats the one red picture; its features are made by the first of the step's packs."""
    data = tmp_path / "data"
    shutil.copytree(pictures, data)
    for file in sorted((data / "red").iterdir())[1:]:
        file.unlink()
    settings = TrainSettings(
        **quick, sampling="balanced", freeze=Freeze(vision=True, projector=True, language=False), keep_features="device"
    )
    for count in (1, 2):
        with cores(count):
            tuyi.train(data, tmp_path / f"{count}", task=colours, settings=settings)
    np.testing.assert_allclose(losses(tmp_path / "2"), losses(tmp_path / "1"), rtol=1e-5)
    assert {len(threads) for threads in ran} == {1, 2}, "in some steps a pack waits for the other, in some not"


def test_an_error_in_a_lane_ends_the_run(
    pictures: Path, colours: TaskSet, settings: TrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from tuyi.train import trainer

    main = threading.get_ident()

    def fails(*arguments: Any) -> Any:
        assert threading.get_ident() != main
        raise RuntimeError("no memory")

    monkeypatch.setattr(trainer, "answer_loss", fails)
    with cores(2), pytest.raises(RuntimeError, match="no memory"):
        tuyi.train(pictures, tmp_path / "model", task=colours, settings=settings)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lane")]


def test_how_many_lanes():
    assert [lanes.lanes_of(1_000_000, threads) for threads in (1, 2, 16)] == [1, 2, 16]
    assert lanes.lanes_of(1_000_000, 1000) == 67
    assert lanes.lanes_of(2_000_000_000, 16) == 1, "gradients of a large model are held once"


@pytest.mark.parametrize("count", [1, 2, 5])
def test_packs_of_all_lanes_are_the_rows_of_the_step(count: int):
    tokens = np.random.default_rng(0).integers(20, 400, 50).tolist()
    rows: Any = None  # packs are made of their sizes alone
    plan = Plan(tokens, epochs=1, seed=0, batch_rows=8)
    steps = Steps(rows, plan, [1.0] * 50, rank=0, world=1, pack_tokens=1500, lanes=count)
    for step in range(len(steps)):
        packs = steps.packs(step)
        assert sorted(row for pack in packs for row in pack) == sorted(plan.rows(step).tolist())
        assert all(packs), "none is empty"
        assert all(len(pack) == 1 or sum(tokens[row] for row in pack) <= 1500 // count for pack in packs)
        assert len(packs) >= min(count, len(plan.rows(step)))
