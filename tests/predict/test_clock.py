"""Where the time goes, counted by hand."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tuyi.predict import clock as clock_module
from tuyi.predict.clock import Clock

PARTS = ["tower", "language", "labels", "vision wait", "host"]


class Hands:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


class Takes(nn.Module):
    """A part of a model that takes some seconds."""

    def __init__(self, hands: Hands, seconds: float) -> None:
        super().__init__()
        self.hands, self.seconds, self.fails = hands, seconds, False

    def forward(self, x: Tensor) -> Tensor:
        if self.fails:
            raise RuntimeError("out of memory")
        self.hands.now += self.seconds
        return x


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> Hands:
    hands = Hands()
    monkeypatch.setattr(clock_module, "time", hands)
    return hands


@pytest.fixture
def model(hands: Hands) -> Any:
    parts = SimpleNamespace(visual=Takes(hands, 2.0), language_model=Takes(hands, 5.0))
    return SimpleNamespace(device=torch.device("cpu"), model=parts)


def pass_through(model: Any, clock: Clock, hands: Hands, *, pictures: bool = True) -> None:
    if pictures:
        model.model.visual(torch.zeros(1))
        hands.now += 0.25  # between the towers: nobody's
    model.model.language_model(torch.zeros(1))
    hands.now += 1.0
    clock.scored()


def test_parts_add_up_to_the_whole(model: Any, hands: Hands):
    clock = Clock(model)
    clock.start()
    clock.waited(0.5)
    hands.now += 0.5
    pass_through(model, clock, hands)
    pass_through(model, clock, hands, pictures=False)
    hands.now += 3.0
    spent = clock.spent()
    assert list(spent) == PARTS
    assert spent == pytest.approx({"tower": 2, "language": 10, "labels": 2, "vision wait": 0.5, "host": 3.25})
    assert clock.spent() == spent, "asking changes nothing"


def test_a_start_forgets_what_was_before(model: Any, hands: Hands):
    clock = Clock(model)
    pass_through(model, clock, hands)
    clock.waited(7)
    clock.start()
    assert clock.spent() == dict.fromkeys(PARTS, 0.0)
    pass_through(model, clock, hands, pictures=False)
    assert clock.spent() == pytest.approx({**dict.fromkeys(PARTS, 0.0), "language": 5, "labels": 1})


def test_passes_that_nobody_scored_are_not_counted_later(model: Any, hands: Hands):
    """A warm-up passes the model without the clock; the text that comes after it has seen no tower."""
    clock = Clock(model)
    model.model.visual(torch.zeros(1))
    model.model.language_model(torch.zeros(1))
    clock.start()
    pass_through(model, clock, hands, pictures=False)
    assert clock.spent()["tower"] == 0


def test_a_pass_that_failed_leaves_nothing_behind(model: Any, hands: Hands):
    clock = Clock(model)
    clock.start()
    model.model.visual.fails = True
    with pytest.raises(RuntimeError, match="out of memory"):
        pass_through(model, clock, hands)
    clock.start()
    pass_through(model, clock, hands, pictures=False)
    assert clock.spent() == pytest.approx({**dict.fromkeys(PARTS, 0.0), "language": 5, "labels": 1})


def test_on_a_cpu_it_is_real_time():
    model: Any = SimpleNamespace(
        device=torch.device("cpu"), model=SimpleNamespace(visual=nn.Identity(), language_model=nn.Identity())
    )
    clock = Clock(model)
    clock.start()
    model.model.language_model(torch.zeros(1))
    time.sleep(0.05)
    clock.scored()
    assert 0.05 <= clock.spent()["labels"] < 5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu_it_is_the_devices_time():
    class Work(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            for _ in range(20):
                x = x @ x
            return x

    model: Any = SimpleNamespace(
        device=torch.device("cuda"), model=SimpleNamespace(visual=Work(), language_model=Work())
    )
    clock, x = Clock(model), torch.randn(2048, 2048, device="cuda")
    for warm in (True, False):
        clock.start()
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(3):
            model.model.visual(x)
            model.model.language_model(x)
            clock.scored()
        spent = clock.spent()
        whole = time.perf_counter() - began
        if not warm:
            assert 0 < spent["tower"] < whole
            assert spent["tower"] + spent["language"] > 0.5 * whole, "the device was at work, the host was not"
            assert sum(spent.values()) == pytest.approx(whole, rel=0.2)
