"""Which weights learn: frozen parts, low-rank adapters."""

from __future__ import annotations

from typing import Any

from tuyi.train.settings import Freeze, LoraSettings

__all__ = ["add_lora", "count", "freeze_parts", "merge_lora"]


def freeze_parts(model: Any, freeze: Freeze) -> None:
    """Let only the parts that are not frozen learn."""
    tower = model.model.visual
    projector = {id(weight) for module in _projectors(tower) for weight in module.parameters()}
    for weight in tower.parameters():
        weight.requires_grad_(not (freeze.projector if id(weight) in projector else freeze.vision))
    language = {id(weight) for weight in tower.parameters()}
    for weight in model.parameters():
        if id(weight) not in language:
            weight.requires_grad_(not freeze.language)


def _projectors(tower: Any) -> list[Any]:
    return [tower.merger, *getattr(tower, "deepstack_merger_list", [])]


def add_lora(model: Any, settings: LoraSettings, freeze: Freeze) -> Any:
    """Put adapters beside every linear layer of the parts that are not frozen; nothing else learns.

    Returns:
        The peft model around ``model``.
    """
    from peft import LoraConfig, get_peft_model
    from torch import nn

    open_ids = {id(weight) for weight in model.parameters() if weight.requires_grad}
    targets = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and id(module.weight) in open_ids and name != "lm_head"
    ]
    config = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, target_modules=targets, bias="none"
    )
    return get_peft_model(model, config)


def merge_lora(model: Any) -> Any:
    """The plain model with its adapters added into its weights; a model without adapters as it is."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


def count(model: Any) -> tuple[int, int]:
    """(weights that learn, weights in all)."""
    sizes = [(weight.numel(), weight.requires_grad) for weight in model.parameters()]
    return sum(size for size, learns in sizes if learns), sum(size for size, _ in sizes)
