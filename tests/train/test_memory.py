"""What a run needs at rest, and in words."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tuyi.model.load import load_frontend
from tuyi.model.log_probs import MOST_LOGITS
from tuyi.model.tiny import build_weights
from tuyi.train.activations import Kept, tower_weights
from tuyi.train.adamw import AdamW16
from tuyi.train.memory import Need, Sharding, estimate, free_bytes, gigabytes
from tuyi.train.settings import Freeze, TrainSettings

EXAMPLES = Path(__file__).parents[2] / "examples"
G = 10**9
WORKSPACE = 1 << 30


@pytest.fixture(scope="module")
def config() -> Any:
    return copy.deepcopy(load_frontend("builtin:tiny", ["text"]).config)


def settings(**changes: Any) -> TrainSettings:
    return TrainSettings.model_validate({"freeze": Freeze(), "precision": "bf16", "compile": False, **changes})


def resting(config: Any, run: TrainSettings, sharding: Sharding | None = None, learning: int = 4 * G) -> list[float]:
    """Weights, gradients, optimizer and host memory in billions of bytes, of 5 billion weights."""
    need = estimate(config, run, learning=learning, everything=5 * G, sharding=sharding)
    return [round(size / G, 2) for size in (need.weights, need.gradients, need.optimizer, need.host)]


@pytest.mark.parametrize(
    ("precision", "expected"),
    [("bf16", [10, 16, 40, 0]), ("bf16-sr", [10, 16, 32, 0]), ("fp32", [20, 16, 32, 0])],
)
def test_what_rests_on_one_gpu(config: Any, precision: str, expected: list[float]):
    assert resting(config, settings(precision=precision)) == expected


@pytest.mark.parametrize("exact", [True, False])
def test_the_optimizer_holds_what_is_counted(config: Any, exact: bool):
    weight = nn.Parameter(torch.ones(1000, dtype=torch.bfloat16))
    weight.grad_dtype = torch.float32
    optimizer = AdamW16([weight], lr=1e-3, exact=exact)
    weight.float().sum().backward()
    optimizer.step()
    need = estimate(config, settings(precision="bf16" if exact else "bf16-sr"), learning=1000, everything=1000)
    assert weight.grad is not None
    assert (need.weights, need.gradients) == (weight.nbytes, weight.grad.nbytes)
    assert need.optimizer == sum(tensor.nbytes for tensor in optimizer.state[weight].values())


def test_adapters_rest_on_little(config: Any):
    assert resting(config, settings(method="lora"), learning=10**7) == [10, 0.04, 0.1, 0]


def test_four_bits_shrink_the_linear_layers_of_the_language_model(config: Any):
    model = build_weights(copy.deepcopy(config), 0)
    layers = model.model.language_model.layers.modules()
    linears = sum(module.weight.numel() for module in layers if isinstance(module, nn.Linear))
    everything = sum(weight.numel() for weight in model.parameters())
    needs = [estimate(config, settings(method=how), learning=100, everything=everything) for how in ("lora", "qlora")]
    constants = linears // 64 + 4 * (linears // 64) // 256
    assert needs[0].weights - needs[1].weights == pytest.approx(2 * linears - linears // 2 - constants, abs=2)


def test_sharding_divides(config: Any):
    run, whole = settings(), 2.0  # gathered weights and buckets
    zero = {stage: Sharding.of(run, 4, {"zero_optimization": {"stage": stage}}) for stage in (1, 2, 3)}
    assert resting(config, run, zero[1]) == [10 + whole, 16, 12, 0]
    assert resting(config, run, zero[2]) == [10 + whole, 4, 12, 0]
    assert resting(config, run, zero[3]) == [2.5 + whole, 4, 12, 0]


def test_the_example_of_deepspeed_keeps_all_in_host_memory(config: Any):
    zero = json.loads((EXAMPLES / "deepspeed/zero3-offload.json").read_text())
    sharding = Sharding.of(settings(), 4, zero)
    assert resting(config, settings(), sharding) == [2, 0, 0, 2.5 + 4 + 12]


def test_fsdp_leaves_a_frozen_tower_whole(config: Any):
    config = copy.deepcopy(config)
    config.vision_config.depth = 3000
    tower = tower_weights(config) / G
    assert tower > 0.2
    frozen, open_ = settings(fsdp=True), settings(fsdp=True, freeze=Freeze(vision=False))
    assert resting(config, frozen, Sharding.of(frozen, 4)) == pytest.approx(
        [2 * tower + (10 - 2 * tower) / 4 + 2, 4, 10, 0], abs=0.01
    )
    assert resting(config, open_, Sharding.of(open_, 4)) == [4.5, 4, 10, 0]
    offload = settings(fsdp=True, fsdp_offload=True, freeze=Freeze(vision=False))
    assert resting(config, offload, Sharding.of(offload, 4)) == [2, 0, 0, 16.5]


def test_processes_that_hold_everything_divide_nothing(config: Any):
    assert resting(config, settings(), Sharding.of(settings(), 8)) == resting(config, settings())


NEED = Need(
    weights=4_400_000_000, gradients=6_200_000_000, optimizer=15_400_000_000, host=0,
    plain=Kept(2_000_000, 60_000, 0, 60_000), checkpointed=Kept(90_000, 150_000, 0, 60_000),
    head=2_000_000, vocabulary=0, fixed=WORKSPACE,
)  # fmt: skip


def test_it_is_said_in_words():
    assert str(NEED) == (
        "weights 4.4 GB, gradients 6.2 GB, optimizer 15.4 GB; 2.00 MB a token, 0.09 with gradient checkpointing"
    )
    assert gigabytes(139.8e9) == "139.8 GB"


def test_a_tower_that_learns_and_host_memory_are_said(config: Any):
    run = settings(freeze=Freeze(vision=False), fsdp=True, fsdp_offload=True)
    need = estimate(config, run, learning=G, everything=G, sharding=Sharding.of(run, 2))
    assert "optimizer 0.0 GB (8.0 GB more in host memory)" in str(need)
    assert "MB a patch, " in str(need)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_pack_needs_no_more_than_its_rows(checkpointing: bool):
    rng = np.random.default_rng(0)
    need = Need(0, 0, 0, 0, Kept(20, 7, 3, 40), Kept(2, 30, 3, 40), 90, 5_000_000, 0)
    for _ in range(50):
        rows = rng.integers(1, 100, (3, 8))
        together = need.passing(*rows.sum(1), checkpointing=checkpointing)
        assert together <= need.passing(*rows, checkpointing=checkpointing).sum()


def test_the_total_is_the_highest_point():
    # what is kept of 100 tokens and 10 logits' worth, or the tower alone, where that is more
    assert NEED.total(100, 0, 10, checkpointing=False) == NEED.resting + 100 * 2_000_000 + 20_000_000
    assert NEED.total(100, 0, 1, checkpointing=True) == NEED.resting + 100 * 90_000 + 100 * 150_000
    assert NEED.total(1, 400, 1, checkpointing=True) == NEED.resting + 400 * 60_000


def test_only_so_many_logits_are_held_at_a_time():
    need = replace(NEED, vocabulary=150_000)
    few, many, more = (need.total(30_000, 0, kept, checkpointing=True) for kept in (400, 10_000, 20_000))
    assert few == need.resting + 30_000 * (90_000 + 150_000)  # blocks need more, logits are not there with them
    assert many == need.resting + 30_000 * 90_000 + 10_000 * need.head + 8 * MOST_LOGITS
    assert more - many == 10_000 * need.head


def test_free_memory_of_the_host():
    assert 1 << 20 < free_bytes(torch.device("cpu")) < 1 << 50


def test_free_memory_of_a_gpu_counts_what_this_process_has(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 40)
    assert free_bytes(torch.device("cuda")) == 140
