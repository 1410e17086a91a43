"""Layer and root-mean-square normalisation in one pass over memory, for prediction on a GPU."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

__all__ = ["fuse_norms", "layer_norm", "rms_norm"]


@triton.jit  # type: ignore[untyped-decorator]
def _norm_kernel(x_ptr, weight_ptr, bias_ptr, out_ptr, width, eps, CENTRE: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < width
    x = tl.load(x_ptr + row * width + at, mask=inside, other=0.0).to(tl.float32)
    if CENTRE:
        x = tl.where(inside, x - tl.sum(x, 0) / width, 0.0)
    x = x * tl.rsqrt(tl.sum(x * x, 0) / width + eps)
    weight = tl.load(weight_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if CENTRE:
        bias = tl.load(bias_ptr + at, mask=inside, other=0.0).to(tl.float32)
        x = x * weight + bias
    else:
        x = x.to(out_ptr.dtype.element_ty).to(tl.float32) * weight
    tl.store(out_ptr + row * width + at, x.to(out_ptr.dtype.element_ty), mask=inside)


def _launch(x: Tensor, weight: Tensor, bias: Tensor, eps: float, centre: bool) -> Tensor:
    width = x.shape[-1]
    x = x.contiguous()
    out = torch.empty_like(x)
    block = triton.next_power_of_2(width)
    warps = 4 if block <= 2048 else 8
    grid = (x.numel() // width,)
    with torch.cuda.device_of(x):
        _norm_kernel[grid](x, weight, bias, out, width, eps, CENTRE=centre, BLOCK=block, num_warps=warps)
    return out


@torch.library.custom_op("tuyi::layer_norm", mutates_args=())
def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer normalisation over the last axis, computed in float32.

    Args:
        x: (…, D). weight, bias: (D,).
        eps: Added to the variance.
    """
    return _launch(x, weight, bias, eps, True)


@torch.library.custom_op("tuyi::rms_norm", mutates_args=())
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square normalisation over the last axis, computed in float32 and rounded before the weight.

    Args:
        x: (…, D). weight: (D,).
        eps: Added to the mean square.

    Source: ``Qwen2RMSNorm`` of transformers, the same order of rounding.
    """
    return _launch(x, weight, weight, eps, False)


@layer_norm.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@rms_norm.register_fake
def _(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _layer_forward(self: Any, x: Tensor) -> Tensor:
    out: Tensor = layer_norm(x, self.weight, self.bias, self.eps)
    return out


def _rms_forward(self: Any, x: Tensor) -> Tensor:
    out: Tensor = rms_norm(x, self.weight, self.variance_epsilon)
    return out


def fuse_norms(model: torch.nn.Module) -> None:
    """Let every normalisation of a model run as one kernel; its results are those of the same formula in float32."""
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm) and module.bias is not None:
            module.forward = MethodType(_layer_forward, module)  # type: ignore[method-assign]
        elif hasattr(module, "variance_epsilon") and hasattr(module, "weight"):
            module.forward = MethodType(_rms_forward, module)
