"""Low-rank adapters beside a linear layer, added to its product where that is made."""

from __future__ import annotations

from types import MethodType
from typing import Any

from torch import Tensor, nn

from tuyi.model.products import linear

__all__ = ["fuse_adapters"]


def fuse_adapters(part: nn.Module) -> int:
    """Let plain linear layers with one plain peft adapter each run so; for one GPU, or several with whole weights each.

    Returns:
        How many do.
    """
    layers: list[Any] = [module for module in part.modules() if _is_plain(module)]
    for layer in layers:
        (layer.tuyi_adapter,) = layer.active_adapters
        layer.forward = MethodType(_forward, layer)
    return len(layers)


def _is_plain(module: Any) -> bool:
    kind = type(module)
    if (kind.__module__, kind.__name__) != ("peft.tuners.lora.layer", "Linear"):
        return False
    return (
        type(module.base_layer) is nn.Linear
        and len(module.active_adapters) == 1
        and not module.lora_variant  # DoRA, say
        and not module.merged
        and module.lora_B[module.active_adapters[0]].bias is None
    )


def _forward(self: Any, x: Tensor) -> Tensor:
    name = self.tuyi_adapter
    low = self.lora_A[name](self.lora_dropout[name](x)) * self.scaling[name]  # scaled where it is small
    out: Tensor = linear(x, self.base_layer.weight, self.base_layer.bias, self.lora_B[name](low))
    return out
