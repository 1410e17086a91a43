"""The model that learns: loaded, parts frozen, adapters added, its kernels chosen and its blocks compiled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tuyi.model.load import Frontend, Model, load_model
from tuyi.model.tiny import NAMES
from tuyi.train.settings import TrainSettings
from tuyi.train.zero import release

__all__ = ["Learner", "make_learner"]

_WORTH_COMPILING = 1000
"""Rows, epochs counted, from which on compiling is earned back."""


@dataclass(frozen=True, slots=True, eq=False)
class Learner:
    """A model ready to learn.

    Args:
        model: The adapted model.
        hf: As the trainer gets it: the same, or peft's model around it.
        base: Makes the untouched base model again; None where the weights themselves learn.
        learning, everything: Numbers of weights.
        settings: How to train it, everything filled in.
        told: Lines that say what was chosen.
    """

    model: Model
    hf: Any
    base: Callable[[], Any] | None
    learning: int
    everything: int
    settings: TrainSettings
    told: tuple[str, ...]

    @property
    def tower_learns(self) -> bool:
        """Whether any weight of the vision tower does."""
        return any(weight.requires_grad for weight in self.model.hf.model.visual.parameters())


def make_learner(frontend: Frontend, settings: TrainSettings, device: str, *, rows: int) -> Learner:
    """Load a model to train.

    Args:
        frontend: Of the model.
        settings: How to train it, but for what depends on the loaded model.
        device: Where.
        rows: How many different rows there are; decides whether compiling pays.

    Raises:
        ModelError: The weights cannot be loaded.
    """
    import torch
    from transformers import set_seed

    from tuyi.train.trainable import add_lora, count, freeze_parts

    assert settings.freeze is not None, "settings are resolved first"
    if device.startswith("cuda"):
        # packs differ in size from step to step: without it half of the memory is lost in gaps between them
        torch.cuda.memory._set_allocator_settings("expandable_segments:True")
    adapters = settings.method != "full"
    # DeepSpeed takes 32-bit weights and rounds them itself
    whole = settings.precision == "fp32" or (settings.deepspeed is not None and not adapters)
    dtype = "float32" if whole else "bfloat16"
    if settings.deepspeed is not None and frontend.name in NAMES:
        release()  # random weights are drawn whole, or they would depend on the number of processes
    first = "cpu" if settings.fsdp else device  # no GPU has to hold all of what is spread over several
    model = load_model(frontend, device=first, dtype=dtype, seed=settings.seed, four_bit=settings.method == "qlora")
    model = replace(model, place=torch.device(device))
    freeze_parts(model.hf, settings.freeze)
    set_seed(settings.seed)
    hf = add_lora(model.hf, settings.lora, settings.freeze, dora=settings.method == "dora") if adapters else model.hf
    learning, everything = count(hf)
    if settings.fsdp:
        from tuyi.train.sharded import shard

        shard(model.hf, settings, torch.device(device))

    def base() -> Any:
        return load_model(frontend, device="cpu", dtype=dtype, seed=settings.seed).hf

    settings = settings.model_copy(update={"compile": _is_compiled(settings, device, rows)})
    learner = Learner(model, hf, base if adapters else None, learning, everything, settings, ())
    return Learner(model, hf, learner.base, learning, everything, settings, tuple(_tune(learner, device)))


def _is_compiled(settings: TrainSettings, device: str, rows: int) -> bool:
    if settings.compile is not None:
        return settings.compile
    on_gpu = device.startswith("cuda") and settings.deepspeed is None
    return on_gpu and rows * settings.epochs >= _WORTH_COMPILING


def _tune(learner: Learner, device: str) -> list[str]:
    import torch

    from tuyi.model.fast import compile_blocks, tune

    # weights that are spread over processes wait in another type, maybe elsewhere, than they are computed with
    computed: dict[str, Any] = {
        "device": torch.device(device),
        "dtype": torch.float32 if learner.settings.precision == "fp32" else torch.bfloat16,
    }
    towers = learner.model.hf.model
    spread = learner.settings.fsdp or learner.settings.deepspeed is not None
    told = tune(towers.visual, gradient=learner.tower_learns, spread=spread, **computed)
    told += tune(towers.language_model, gradient=True, spread=spread, **computed)
    if learner.settings.compile:
        compile_blocks(learner.model.hf)
        told.append("blocks are compiled in the first step, which takes a minute longer")
    return told
