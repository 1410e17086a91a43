"""How many tokens may pass the model together, and be kept: what fits the memory that is free beside its weights."""

from __future__ import annotations

from typing import Any

import torch

from tuyi.model.cache import cache_bytes

__all__ = ["bytes_per_token", "cache_tokens", "cpu_lanes", "kept_features", "pack_tokens", "tokens_in"]

_MOST = 32768
"""Beyond this a larger pack gains nothing (measured on an H200: matrix products are as fast as they get)."""
_ON_CPU = 16384
_LEAST_OF_A_LANE = 4096
_LANES_BYTES = 4 << 30
"""What packs that pass side by side on a CPU may take together."""
_LEAST = 1024
_SHARE = 0.7
"""Of the free memory; the rest is for logits, packs that wait and what the allocator cannot use."""
_PACKS = 16
"""Packs of rows that are answered together at most: a step reads all weights, and with some hundred rows in it reading
them is no longer what it takes."""
_PACKS_ON_CPU = 2
_KEPT_SHARE = 0.05
_KEPT_ON_CPU = 256 << 20


def bytes_per_token(config: Any) -> int:
    """Memory that a token of a pack takes while it passes the larger of the two towers, in 16 bits.

    The widest point of a block holds the MLP's gate, up and product beside a dozen vectors of the hidden size; every
    token may be a picture's, with the patches that it was merged from.

    Args:
        config: transformers' configuration of the model.
    """
    text, vision = config.text_config, config.vision_config
    width = getattr(vision, "embed_dim", vision.hidden_size)
    inner = getattr(vision, "intermediate_size", None) or int(width * vision.mlp_ratio)
    language: int = 2 * (3 * text.intermediate_size + 12 * text.hidden_size)
    tower: int = 2 * (3 * inner + 12 * width) * vision.spatial_merge_size**2
    return max(language, tower)


def pack_tokens(model: Any, device: torch.device, *, writes: bool = False, lanes: int = 1) -> int:
    """The token budget of a pack for a model whose weights are on the device.

    Args:
        model: The transformers model.
        device: Where it is.
        writes: Whether answers have free text, so that half of the memory is left to a cache.
        lanes: Packs that pass side by side on a CPU.
    """
    if device.type != "cuda":
        return max(_LEAST_OF_A_LANE, _ON_CPU // lanes)
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return tokens_in(free // 2 if writes else free, model.config)


def cpu_lanes(config: Any, threads: int) -> int:
    """How many packs pass a model side by side on a CPU: one for each thread, as far as memory allows.

    Args:
        config: transformers' configuration of the model.
        threads: That the model may use.
    """
    of_a_pack = 2 * bytes_per_token(config) * _LEAST_OF_A_LANE  # in 32 bits
    return max(1, min(threads, _LANES_BYTES // of_a_pack))


def cache_tokens(model: Any, device: torch.device, pack: int) -> int:
    """Tokens of rows under way that a cache has room for, two packs at least.

    Args:
        model: The transformers model, its weights on the device.
        device: Where it is.
        pack: Tokens of a pack, for which memory is left.
    """
    least = _PACKS_ON_CPU * pack
    if device.type != "cuda":
        return least
    free, _ = torch.cuda.mem_get_info(device)
    left = int(free * _SHARE) - pack * bytes_per_token(model.config)
    return max(least, min(_PACKS * pack, left // cache_bytes(model.config, model.dtype)))


def tokens_in(free: int, config: Any) -> int:
    """The token budget that ``free`` bytes of a GPU allow, its weights already there."""
    return max(_LEAST, min(_MOST, int(free * _SHARE) // bytes_per_token(config)))


def kept_features(config: Any, device: torch.device) -> int:
    """Visual tokens whose features are kept for pictures that come again: a twentieth of a GPU's memory, or 256 MiB.

    Args:
        config: transformers' configuration of the model.
        device: Where it is.
    """
    levels = 1 + len(getattr(config.vision_config, "deepstack_visual_indexes", ()))
    width: int = levels * config.text_config.hidden_size
    if device.type != "cuda":
        return _KEPT_ON_CPU // (4 * width)
    total: int = torch.cuda.get_device_properties(device).total_memory
    return int(total * _KEPT_SHARE) // (2 * width)
