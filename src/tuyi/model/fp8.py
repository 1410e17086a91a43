"""8-bit floating point for the language model's linear layers: twice the matrix rate of bfloat16 on Ada and Hopper."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from tuyi.errors import ModelError

__all__ = ["LARGEST", "LEAST", "TYPE", "Fp8Linear", "rounded_by_torch", "scaled_product", "use_fp8"]

TYPE = torch.float8_e4m3fn
LARGEST = 448.0
"""Of that type."""
LEAST = 1e-12
"""What a row holds at least, so that one of zeros has a scale."""

Rounded = Callable[[Tensor], "tuple[Tensor, Tensor]"]


def rounded_by_torch(rows_RK: Tensor) -> tuple[Tensor, Tensor]:
    """Rows in e4m3, and the float32 factor of each, (R, 1)."""
    scale_R1 = rows_RK.abs().amax(1, keepdim=True).float().clamp(min=LEAST) / LARGEST
    return (rows_RK.float() / scale_R1).clamp(-LARGEST, LARGEST).to(TYPE), scale_R1


def scaled_product(
    x_MK: Tensor, rows_M1: Tensor, weight_NK: Tensor, columns_1N: Tensor, dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """``x @ weight.T`` of 8-bit numbers times the float32 factors of the rows of both."""
    return torch._scaled_mm(
        x_MK, weight_NK.t(), scale_a=rows_M1, scale_b=columns_1N, out_dtype=dtype, use_fast_accum=True
    )


class Fp8Linear(nn.Module):
    """A linear layer whose weight is kept, and whose input is rounded as it runs, in e4m3.

    Each row of the weight (an output) and each row of the input (a token) has its own scale, so that one large value
    costs only its own row precision.

    Args:
        linear: The layer to replace; both its sizes must be multiples of 16.
        rounded: Rounds the rows of its input.
    """

    weight_8: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear, rounded: Rounded = rounded_by_torch) -> None:
        super().__init__()
        self.rounded = rounded
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight, scale = rounded_by_torch(linear.weight.data)
        self.register_buffer("weight_8", weight, persistent=False)
        self.register_buffer("scale", scale.t().contiguous(), persistent=False)  # (1, out)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        values, scale = self.rounded(x.reshape(-1, self.in_features))
        return self.product(values, scale, x.dtype).view(*x.shape[:-1], self.out_features)

    def product(self, values_RK: Tensor, scale_R1: Tensor, dtype: torch.dtype) -> Tensor:
        """The layer's output (R, out) for rows that are rounded already."""
        out = scaled_product(values_RK, scale_R1, self.weight_8, self.scale, dtype)
        return out if self.bias is None else out + self.bias


def use_fp8(model: Any) -> int:
    """Replace the linear layers of a language model's blocks; cannot be undone.

    Those of the vision tower stay: at its sizes rounding costs what it gains (measured on an H200).

    Args:
        model: The adapted transformers model, on a GPU, in bfloat16.

    Returns:
        How many layers were replaced.

    Raises:
        ModelError: The GPU has no 8-bit matrix unit, or the sizes of the layers do not fit it.
    """
    device = next(model.parameters()).device
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        raise ModelError("precision fp8 needs a GPU of compute capability 8.9 or more (Ada, Hopper); use bfloat16")
    found = [
        (parent, name, child)
        for parent in model.model.language_model.layers.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear)
    ]
    for _, name, linear in found:
        if linear.in_features % 16 or linear.out_features % 16:
            raise ModelError(
                f"precision fp8 needs layer sizes that are multiples of 16; {name} is "
                f"{linear.in_features} x {linear.out_features}; use bfloat16"
            )
    from tuyi.model.blocks import fuse_products
    from tuyi.model.products import is_gated, refused
    from tuyi.model.rounding import rounded, rounded_mlp

    for parent, name, linear in found:
        setattr(parent, name, Fp8Linear(linear, rounded))
    layers = model.model.language_model.layers
    if refused(device) is None:
        fuse_products(layers)
        return len(found)
    for module in layers.modules():
        if is_gated(module, Fp8Linear):
            module.forward = MethodType(rounded_mlp, module)
    return len(found)
