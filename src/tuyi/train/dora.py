"""DoRA as peft keeps it, with row lengths that 16-bit weights do not blur.

DoRA (arXiv 2402.09353) splits a layer's weight into the direction and the length of its rows and learns both: W' =
m (W + s B A) / ‖W + s B A‖. peft keeps and computes the lengths in the weights' own dtype. In bfloat16 that is 8 bits:
whole rows are wrong by up to 0.4 %, and differently in every step. Here the change is what learns, m = ‖W‖ + d, and
lengths are float32. All that learns has one dtype still, the matrix products stay as they are, and files hold m as
peft's do.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn import functional as F

__all__ = ["sharpen"]


def sharpen(model: Any) -> None:
    """Let a fresh DoRA model learn changes of length; call it before training and before adapters are loaded.

    Args:
        model: A peft model whose adapters are new (B = 0).
    """
    from peft.tuners.lora.dora import DoraLinearLayer
    from peft.tuners.lora.layer import Linear

    layers: list[Any] = [module for module in model.modules() if isinstance(module, Linear)]
    for layer in layers:
        (dora,) = layer.lora_magnitude_vector.values()
        assert isinstance(dora, DoraLinearLayer)
        _sharpen(dora, layer.get_base_layer().weight.detach())


def _sharpen(dora: Any, weight_OI: Tensor) -> None:
    square_O = weight_OI.float().square().sum(1)
    dora.register_buffer("square", square_O, persistent=False)  # of rows that do not learn
    dora.weight = nn.Parameter(torch.zeros_like(dora.weight))
    dora.forward = MethodType(_forward, dora)
    dora.register_state_dict_post_hook(_to_length)
    dora.register_load_state_dict_pre_hook(_from_length)


def _to_length(dora: Any, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    change_O = state[f"{prefix}weight"]
    state[f"{prefix}weight"] = _length_of_base(dora, change_O) + change_O


def _from_length(dora: Any, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    if (length_O := state.get(f"{prefix}weight")) is not None:
        state[f"{prefix}weight"] = length_O.float() - _length_of_base(dora, length_O)


def _length_of_base(dora: Any, like: Tensor) -> Tensor:
    """Lengths of the base's rows, float32, where and how ``like`` lies."""
    length_O: Tensor = dora.square.sqrt().to(like.device)
    if isinstance(like, DTensor):
        return distribute_tensor(length_O, like.device_mesh, like.placements, src_data_rank=None)
    return length_O


def _forward(
    self: Any,
    x: Tensor,
    *,
    lora_A: nn.Linear,
    lora_B: nn.Linear,
    scaling: float,
    base_layer: nn.Linear,
    base_result: Tensor | None = None,
    **_: Any,
) -> Tensor:
    """What DoRA adds to the base layer's output, as peft's ``DoraLinearLayer.forward``.

    The length of W + s B A follows from ‖W‖, W Aᵀ and A Aᵀ, so that the sum is never formed; as in section 4.3 of the
    paper it counts as a constant in the backward pass.
    """
    if base_result is None:  # with dropout, x is not what the base layer saw
        base_result = F.linear(x, base_layer.weight)
    elif base_layer.bias is not None:
        base_result = base_result - base_layer.bias
    length_O = _length(self.square, base_layer.weight.detach(), lora_A.weight.detach(), lora_B.weight.detach(), scaling)
    factor_O = (self.square.sqrt() + self.weight) / length_O
    low: Tensor = lora_B(lora_A(x))
    # 1 is taken off before the factor is rounded: what was learned keeps all its bits
    added: Tensor = (factor_O - 1).to(x.dtype) * base_result + (factor_O * scaling).to(x.dtype) * low
    return added


@torch.no_grad()
def _length(square_O: Tensor, weight_OI: Tensor, a_RI: Tensor, b_OR: Tensor, scaling: float) -> Tensor:
    """Lengths of the rows of W + s B A, float32."""
    b = b_OR.float()
    cross_O = (F.linear(weight_OI, a_RI).float() * b).sum(1)
    own_O = (b @ (a_RI.float() @ a_RI.float().T) * b).sum(1)
    length_O: Tensor = (square_O + 2 * scaling * cross_O + scaling**2 * own_O).sqrt()
    return length_O
