"""What is checked before processes begin to train together."""

from __future__ import annotations

from array import array
from typing import Any

import pytest
import torch

from tuyi.encode.survey import Survey
from tuyi.errors import ConfigError
from tuyi.train import process
from tuyi.train.plan import Plan
from tuyi.train.settings import TrainSettings


@pytest.fixture
def among(monkeypatch):
    """Lets this process be the first of several, of which the others bring what is given."""

    def make(world: int, theirs=None):
        def gather(everywhere, mine):
            everywhere[:] = [mine] + [mine if theirs is None else theirs(mine)] * (world - 1)

        monkeypatch.setattr(process, "rank_and_world", lambda: (0, world))
        monkeypatch.setattr(torch.distributed, "all_gather_object", gather)

    return make


def survey(count: int) -> Survey:
    """Rows of which only number and sizes are looked at."""
    tokens, none, two = array("l", [10] * count), array("l", [0] * count), array("l", [2] * count)
    rows: Any = range(count)
    return Survey(rows, tokens, none, two, array("d"), ())


def check(count: int, **settings) -> None:
    given = TrainSettings(**settings)
    plan = Plan(
        [10] * count,
        epochs=given.epochs,
        seed=0,
        batch_rows=given.batch_rows,
        batch_tokens=given.batch_tokens,
    )
    process.check_shares(survey(count), plan, given)


def test_every_process_needs_a_row(among):
    among(8)
    with pytest.raises(ConfigError, match=r"6 training rows for 8 processes: expected at least one row each"):
        check(6)
    with pytest.raises(ConfigError, match=r"the largest step has 4 rows for 8 processes.*raise train.batch_rows"):
        check(100, batch_rows=4)
    with pytest.raises(ConfigError, match=r"the largest step has 5 rows for 8 processes"):
        check(100, batch_tokens=59)
    check(17, batch_rows=16)  # the last step has one row: seven processes only keep step
    check(100, batch_tokens=80)


def test_one_process_takes_what_there_is(among):
    among(1)
    check(1, batch_rows=1)


def test_differences_between_processes_are_named(among):
    among(2, theirs=lambda mine: ({**mine[0], "training rows": "90 (sizes 0)"}, "second-machine"))
    with pytest.raises(ConfigError, match=r"training rows differs between processes: 100 \(sizes \w+\) in process 0 on "
        r"\S+, 90 \(sizes 0\) in process 1 on second-machine; give every machine the same data"):  # fmt: skip
        check(100)
    among(2, theirs=lambda mine: ({**mine[0], "train.seed": "7"}, "second-machine"))
    with pytest.raises(ConfigError, match=r"train.seed differs between processes: 42 in process 0"):
        check(100)
    among(2, theirs=lambda mine: ({**mine[0]}, "second-machine"))
    check(100, workers=3)


def test_the_smallest_number_counts(among):
    among(3, theirs=lambda mine: mine - 5)
    assert process.least(12) == 7


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"4 processes on a machine with 2 GPUs.*--nproc-per-node=2"):
        process.join()


def test_without_torchrun_there_is_one(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    process.join()
    assert process.rank_and_world() == (0, 1)
    assert process.least(3) == 3
    process.check_alike({"anything": "at all"}, "nothing to mend")
