"""Low-rank adapters added into the weights that they were trained beside."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

from tuyi.errors import ModelError, first_line

__all__ = ["ADAPTER", "merge_adapter", "read_adapter"]

ADAPTER = "adapter_config.json"
"""The file that makes a folder an adapter, as peft writes it."""

_OLDER = ((r"\Avisual\.", "model.visual."), (r"\Amodel\.(?!language_model\.|visual\.)", "model.language_model."))
"""Beginnings of modules' names before transformers 4.52 → since."""
_PREFIX = "base_model.model."


def read_adapter(folder: Path) -> dict[str, Any]:
    """What an adapter folder says about itself.

    Raises:
        ModelError: It is broken, or no low-rank adapter.
    """
    try:
        said: dict[str, Any] = json.loads((folder / ADAPTER).read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / ADAPTER} cannot be read: {first_line(error)}") from error
    if said.get("peft_type") != "LORA":
        raise ModelError(f"{folder} is an adapter of type {said.get('peft_type')}; expected LORA, which can be merged")
    if not any((folder / name).is_file() for name in ("adapter_model.safetensors", "adapter_model.bin")):
        raise ModelError(f"{folder} has no adapter_model.safetensors: the adapter's weights are missing")
    return said


def merge_adapter(base: Any, folder: Path, dtype: Any = None) -> Any:
    """Add an adapter into a model's weights, layer by layer, computed in float32 and rounded once.

    Args:
        base: The transformers model that the adapter was trained on, in the dtype that it is stored in, on the CPU; it
            is changed.
        folder: A folder that peft wrote, by tuyi or by any peer.
        dtype: The torch dtype of the result; as ``base`` where not given.

    Returns:
        The plain transformers model.

    Raises:
        ModelError: The adapter does not fit the model, or is broken.
    """
    from peft import LoraConfig, PeftModel, set_peft_model_state_dict
    from peft.utils import load_peft_weights
    from safetensors import SafetensorError

    read_adapter(folder)
    tied = base.get_input_embeddings().weight is base.get_output_embeddings().weight
    try:
        config = LoraConfig.from_pretrained(str(folder), inference_mode=True)
        weights = {_renamed(key): value for key, value in load_peft_weights(str(folder), device="cpu").items()}
        model = PeftModel(base, config)
        report: Any = set_peft_model_state_dict(model, weights)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"the adapter {folder} does not fit the model: {first_line(error)}") from error
    missing = [key for key in report.missing_keys if ".lora_" in key]
    if missing or report.unexpected_keys:
        first = sorted([*missing, *report.unexpected_keys])[0]
        raise ModelError(
            f"the adapter {folder} does not fit the model: {len(missing)} of the layers' adapter weights are not in "
            f"it, {len(report.unexpected_keys)} of its weights have no layer; the first is {first}"
        )
    if tied and any("lm_head" in key or "embed_tokens" in key for key in weights):
        raise ModelError(
            f"the adapter {folder} changes lm_head or the embeddings, which this model shares between input and "
            "output; it cannot be merged"
        )
    return _merge(model, folder, dtype or base.dtype)


def _renamed(key: str) -> str:
    """The name of an adapter's weight, as it is in today's models."""
    name = key.removeprefix(_PREFIX)
    for older, since in _OLDER:
        name = re.sub(older, since, name)
    return name if name == key else _PREFIX + name


def _merge(model: Any, folder: Path, dtype: Any) -> Any:
    from peft.tuners.lora import LoraLayer

    layers: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        layer.float()  # one layer at a time: a whole model in float32 may not fit
        try:
            layer.merge(safe_merge=True)
        except ValueError as error:
            raise ModelError(f"the adapter {folder} is broken: some of its weights are not numbers") from error
        layer.get_base_layer().to(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft finds every layer merged already, and says so for each
        merged = model.merge_and_unload()
    return merged.to(dtype)
