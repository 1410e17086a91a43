"""Pack sizes from a model's sizes and the memory that is free."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from tuyi.model.load import load_frontend
from tuyi.predict.room import bytes_per_token, cpu_lanes, pack_tokens, tokens_in

NAMES = ["builtin:tiny", "builtin:tiny-qwen2.5", "builtin:tiny-qwen3"]


@pytest.fixture(params=NAMES)
def config(request: pytest.FixtureRequest) -> Any:
    return copy.deepcopy(load_frontend(request.param, ["text"]).config)


def test_a_larger_model_needs_more_for_a_token(config: Any):
    sizes = [bytes_per_token(config)]
    text, vision = config.text_config, config.vision_config
    for part, name in (
        (vision, "embed_dim" if hasattr(vision, "embed_dim") else "hidden_size"),
        (vision, "intermediate_size" if getattr(vision, "intermediate_size", None) else "mlp_ratio"),
        (text, "hidden_size"),
        (text, "intermediate_size"),
    ):
        setattr(part, name, getattr(part, name) * (16 if part is vision else 4096))
        sizes.append(bytes_per_token(config))
    assert sizes == sorted(set(sizes)), "each makes it larger"


def test_the_wider_tower_counts(config: Any):
    text, vision = config.text_config, config.vision_config
    text.intermediate_size, text.hidden_size = 10, 10
    width = 96
    inner = 288
    assert bytes_per_token(config) == 2 * (3 * inner + 12 * width) * 4, "four patches a token"
    text.intermediate_size, text.hidden_size = 100_000, 10_000
    assert bytes_per_token(config) == 2 * (300_000 + 120_000)
    assert vision.spatial_merge_size == 2


def test_tokens_grow_with_the_free_memory_within_bounds(config: Any):
    each = bytes_per_token(config)
    found = [tokens_in(free, config) for free in (0, 1 << 20, 2000 * each, 8000 * each, 16_000 * each, 1 << 50)]
    assert found == sorted(found)
    assert found[:2] == [1024, 1024]
    assert found[2] == 1400, "seven tenths of it"
    assert found[3] == 5600
    assert found[-1] == 32768


def test_a_cpu_takes_a_fixed_number(config: Any):
    assert pack_tokens(None, torch.device("cpu")) == 16384
    assert [pack_tokens(None, torch.device("cpu"), lanes=lanes) for lanes in (2, 4, 16)] == [8192, 4096, 4096]


def test_small_models_pass_side_by_side_on_a_cpu(config: Any):
    assert [cpu_lanes(config, threads) for threads in (1, 2, 16)] == [1, 2, 16]
    each = 2 * 4096 * bytes_per_token(config)
    assert cpu_lanes(config, 10_000) == (4 << 30) // each
    config.text_config.intermediate_size = 1_000_000
    assert cpu_lanes(config, 16) == 1


def test_a_gpu_is_asked_what_is_free(config: Any, monkeypatch: pytest.MonkeyPatch):
    each = bytes_per_token(config)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10_000 * each, 1 << 60))
    model: Any = torch.nn.Module()
    model.config = config
    assert pack_tokens(model, torch.device("cuda")) == 7000
