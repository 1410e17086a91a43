"""The memory that a training run needs, told from sizes before it starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tuyi.model.log_probs import MOST_LOGITS
from tuyi.train.activations import Kept, activations, language_block, tower_weights
from tuyi.train.settings import TrainSettings

__all__ = ["MOST_LOGIT_BYTES", "Need", "Sharding", "estimate", "free_bytes", "gigabytes"]

_WORKSPACE = 1 << 30
"""What libraries take for themselves: cuBLAS, cuDNN, NCCL, compiled kernels."""
_GATHERED = 1_000_000_000
"""Most weights that lie whole at a time where they are spread, buckets included (DeepSpeed's defaults)."""
_FOUR_BITS = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a weight in NF4 with quantised constants: one byte for 64 weights, four for 256 of these bytes."""
_LOGIT = 8
"""Bytes of a logit that is held: itself in float32, and its exponential while they are added up."""
MOST_LOGIT_BYTES = _LOGIT * MOST_LOGITS
"""Most bytes of logits that are held at a time."""
_SPREAD = (
    "several GPUs with train.fsdp=true, or host memory too with train.deepspeed=examples/deepspeed/zero3-offload.json"
)


@dataclass(frozen=True, slots=True)
class Sharding:
    """How weights and what belongs to them lie over processes.

    Args:
        stage: 0: each process holds everything; 1: the optimizer is spread, 2: gradients too, 3: weights too (FSDP).
        world: Number of processes.
        masters: Whether float32 weights are held beside 16-bit ones, as DeepSpeed does; FSDP has them instead.
        weights_on_host, optimizer_on_host: Whether weights, or gradients and optimizer, lie in host memory.
    """

    stage: int = 0
    world: int = 1
    masters: bool = False
    weights_on_host: bool = False
    optimizer_on_host: bool = False

    @classmethod
    def of(cls, settings: TrainSettings, world: int, zero: dict[str, Any] | None = None) -> Sharding:
        """The sharding of a run.

        Args:
            settings: How to train.
            world: Number of processes.
            zero: DeepSpeed's settings, where it is used.
        """
        if zero is not None:
            group = zero.get("zero_optimization", {})
            on_host = [
                group.get(key, {}).get("device", "none") != "none" for key in ("offload_param", "offload_optimizer")
            ]
            return cls(group.get("stage", 0), world, True, *on_host)
        if settings.fsdp:
            return cls(3, world, False, settings.fsdp_offload, settings.fsdp_offload)
        return cls(world=world)


@dataclass(frozen=True, slots=True)
class Need:
    """What one process of a run needs, in bytes.

    Args:
        weights, gradients, optimizer: On the device.
        host: Of these, what lies in host memory instead.
        plain, checkpointed: Activations without and with gradient checkpointing.
        head: Of a position whose next token is learned, logits left out.
        vocabulary: Logits of such a position.
        fixed: The rest.
        remedies: Settings that would make the first three smaller, each with the bytes that it spares; 0 where that
            depends on what is not known here.
    """

    weights: int
    gradients: int
    optimizer: int
    host: int
    plain: Kept
    checkpointed: Kept
    head: int
    vocabulary: int
    fixed: int
    remedies: tuple[tuple[str, int], ...] = ()

    @property
    def resting(self) -> int:
        """What is there whatever passes the model."""
        return self.weights + self.gradients + self.optimizer + self.fixed

    def passing(self, tokens: Any, patches: Any, kept: Any, *, checkpointing: bool) -> Any:
        """What a pack needs beyond that; never more than the sum over its rows.

        Args:
            tokens, patches: Of the pack; arrays for many.
            kept: Positions whose next token is learned.
            checkpointing: Whether blocks are computed twice.
        """
        part = self.checkpointed if checkpointing else self.plain
        head = self.head * kept + _LOGIT * np.minimum(self.vocabulary * kept, MOST_LOGITS)
        language = part.token * tokens + np.maximum(part.token_passing * tokens, head)
        # while patches pass, the language model's activations are not there yet, or there no more
        return part.patch * patches + np.maximum(language, part.patch_passing * patches)

    def total(self, tokens: int, patches: int, kept: int, *, checkpointing: bool) -> int:
        """Bytes at the highest point of a step whose largest pack is this."""
        return self.resting + int(self.passing(tokens, patches, kept, checkpointing=checkpointing))

    def __str__(self) -> str:
        host = f" ({gigabytes(self.host)} more in host memory)" if self.host else ""
        parts = [_by("token", self.plain.token, self.checkpointed.token)]
        if self.plain.patch != self.checkpointed.patch:  # a tower that learns
            parts.append(_by("patch", self.plain.patch, self.checkpointed.patch))
        return (
            f"weights {gigabytes(self.weights)}, gradients {gigabytes(self.gradients)}, optimizer "
            f"{gigabytes(self.optimizer)}{host}; {', '.join(parts)}"
        )


def _by(what: str, plain: int, checkpointed: int) -> str:
    return f"{plain / 1e6:.2f} MB a {what}, {checkpointed / 1e6:.2f} with gradient checkpointing"


def gigabytes(size: float) -> str:
    """A number of bytes as people read it."""
    return f"{size / 1e9:.1f} GB"


def estimate(
    config: Any, settings: TrainSettings, *, learning: int, everything: int, sharding: Sharding | None = None,
    branches: bool = False,
) -> Need:  # fmt: skip
    """The memory that one process of a run needs.

    Args:
        config: transformers' configuration of the model.
        settings: How to train, everything filled in.
        learning, everything: Numbers of weights.
        sharding: How they lie over processes; whole on each where not given.
        branches: Whether label branches stand behind prompts.
    """
    assert settings.freeze is not None, "settings are resolved first"
    assert settings.precision is not None, "settings are resolved first"
    sharding = sharding or Sharding()
    size = 4 if settings.precision == "fp32" else 2
    text = config.text_config
    weights, gradients, optimizer, host = _resting(config, settings, learning, everything, sharding)
    head_learns = settings.method == "full" and not settings.freeze.language
    return Need(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        host=host,
        plain=activations(config, settings, size, checkpointing=False, branches=branches),
        checkpointed=activations(config, settings, size, checkpointing=True, branches=branches),
        # the last MLP; hidden states, their gradient in float32, and a slice's part of it
        head=3 * size * text.intermediate_size + (2 * size + 4) * text.hidden_size,
        vocabulary=text.vocab_size,
        # the head's gradient is the largest, and there before the activations are gone
        fixed=_WORKSPACE + (size * text.vocab_size * text.hidden_size if head_learns else 0),
        remedies=_remedies(config, settings, learning, sharding),
    )


def _resting(
    config: Any, settings: TrainSettings, learning: int, everything: int, sharding: Sharding
) -> tuple[int, int, int, int]:
    """Weights, gradients and optimizer on the device, and what of them lies in host memory."""
    assert settings.freeze is not None, "settings are resolved first"
    size = 4 if settings.precision == "fp32" else 2
    weights = size * everything
    if settings.method == "qlora":
        weights -= _spared_by_four_bits(config, size)
    # gradients and both averages are float32, and beside exact 16-bit weights lies their lower half
    beside = 4 if sharding.masters and size == 2 else 2 if settings.precision == "bf16" else 0
    gradients, optimizer, host, whole = 4 * learning, (8 + beside) * learning, 0, 0
    if sharding.stage >= 1:
        optimizer, whole = optimizer // sharding.world, size * min(everything, _GATHERED)
    if sharding.stage >= 2:
        gradients //= sharding.world
    apart = 0  # FSDP leaves a tower that is frozen whole on every device
    if settings.fsdp and settings.freeze.vision and settings.freeze.projector:
        apart = size * tower_weights(config)
    if sharding.stage >= 3:
        weights = apart + (weights - apart) // sharding.world
    if sharding.weights_on_host:
        weights, host = apart, weights - apart
    if sharding.optimizer_on_host:
        gradients, optimizer, host = 0, 0, host + gradients + optimizer
    return weights + whole, gradients, optimizer, host


def _spared_by_four_bits(config: Any, size: int) -> int:
    linears = config.text_config.num_hidden_layers * language_block(config).weights
    return int((size - _FOUR_BITS) * linears)


def _remedies(config: Any, settings: TrainSettings, learning: int, sharding: Sharding) -> tuple[tuple[str, int], ...]:
    if sharding.stage >= 3:
        found = [("more GPUs", 0)]
        if not (sharding.weights_on_host and sharding.optimizer_on_host):
            found.append(
                ("host memory: train.fsdp_offload=true, or offload_param and offload_optimizer of DeepSpeed", 0)
            )
        return tuple(found)
    found, adapters = [], 0
    if settings.method == "full":
        adapters = int(0.99 * 12 * learning)  # what remains to learn is under a hundredth
        if settings.precision == "bf16" and not sharding.stage:
            found.append(("train.precision=bf16-sr", 2 * learning))
        found.append(("train.method=lora", adapters))
    if settings.method != "qlora" and not sharding.stage:
        found.append(("train.method=qlora", adapters + _spared_by_four_bits(config, 2)))
    if settings.method != "qlora":
        found.append((_SPREAD, 0))
    return tuple(found)


def free_bytes(device: Any) -> int:
    """Memory of a device that this process has or can get.

    Args:
        device: A torch device.
    """
    import torch

    from tuyi.predict.machine import host_memory

    if device.type != "cuda":
        return host_memory()[0]
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
