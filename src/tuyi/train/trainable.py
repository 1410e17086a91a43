"""Which weights learn: frozen parts, low-rank adapters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tuyi.errors import TrainingError, first_line
from tuyi.train.settings import Freeze, LoraSettings

__all__ = ["add_lora", "count", "freeze_parts", "restore_adapters"]


def freeze_parts(model: Any, freeze: Freeze) -> None:
    """Let only the parts that are not frozen learn; weights in 4 bits never do."""
    for module, learns in _parts(model, freeze):
        for weight in module.parameters(recurse=False):
            weight.requires_grad_(learns and weight.is_floating_point())


def _parts(model: Any, freeze: Freeze) -> Iterator[tuple[Any, bool]]:
    """Every module, and whether the part that it belongs to learns."""
    tower = model.model.visual
    projectors = [tower.merger, *getattr(tower, "deepstack_merger_list", [])]
    projector = {id(module) for whole in projectors for module in whole.modules()}
    vision = {id(module) for module in tower.modules()} - projector
    for module in model.modules():
        frozen = freeze.projector if id(module) in projector else freeze.vision
        yield module, not (frozen if id(module) in vision | projector else freeze.language)


def add_lora(model: Any, settings: LoraSettings, freeze: Freeze, *, dora: bool = False) -> Any:
    """Put adapters beside every linear layer of the parts that are not frozen; nothing else learns.

    The adapters take the dtype that their layer computes in, so that no forward pass casts anything.

    Args:
        model: The transformers model; its weights may be in 4 bits.
        settings: The adapters' form.
        freeze: Parts that get none.
        dora: Whether each adapter also learns the length of its layer's rows (arXiv 2402.09353).

    Returns:
        The peft model around ``model``.
    """
    from peft import LoraConfig, get_peft_model
    from torch import nn

    names = {id(module): name for name, module in model.named_modules()}
    head = model.get_output_embeddings()
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        use_rslora=settings.rslora,
        use_dora=dora,
        target_modules=[
            names[id(module)]
            for module, learns in _parts(model, freeze)
            if learns and isinstance(module, nn.Linear) and module is not head
        ],
        bias="none",
    )
    adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
    if dora:
        from tuyi.train.dora import sharpen

        sharpen(adapted)
    return adapted


def restore_adapters(model: Any, checkpoint: Path) -> None:
    """Load a checkpoint's adapters into a peft model: all of them, in place, in the dtype that they have there.

    peft's own ``load_adapter`` would turn 16-bit adapters into float32 ones, and put new parameters in place of those
    that the optimizer holds.

    Args:
        model: What :func:`add_lora` returned.
        checkpoint: A folder with ``adapter_config.json``.

    Raises:
        TrainingError: The adapters are missing, broken, or of another form than the model's.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        theirs = json.loads((checkpoint / "adapter_config.json").read_bytes())
        weights = load_file(checkpoint / "adapter_model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise TrainingError(f"the adapters of {checkpoint} cannot be read: {first_line(error)}") from error
    ours = model.peft_config["default"].to_dict()
    for key in ("peft_type", "r", "lora_alpha", "use_dora", "use_rslora"):
        if theirs.get(key) != ours[key]:
            raise TrainingError(
                f"{checkpoint} has adapters with {key} {theirs.get(key)}, this run's have {ours[key]}; "
                "resume with the settings that they were trained with, or choose another --out"
            )
    mine = get_peft_model_state_dict(model, save_embedding_layers=False)
    wrong = sorted(key for key in mine.keys() | weights.keys() if _shape(mine, key) != _shape(weights, key))
    if wrong:
        raise TrainingError(
            f"{checkpoint} has adapters for other layers than this run: {len(wrong)} differ, the first is {wrong[0]}; "
            "resume with the model and the frozen parts that they were trained with, or choose another --out"
        )
    set_peft_model_state_dict(model, weights)


def _shape(weights: dict[str, Any], key: str) -> Any:
    return weights[key].shape if key in weights else None


def count(model: Any) -> tuple[int, int]:
    """(weights that learn, weights in all)."""
    # a byte holds two weights of 4 bits; ZeRO-3 leaves empty tensors where weights were
    sizes = [
        (getattr(weight, "ds_numel", weight.numel()) * (1 if weight.is_floating_point() else 2), weight.requires_grad)
        for weight in model.parameters()
    ]
    return sum(size for size, learns in sizes if learns), sum(size for size, _ in sizes)
