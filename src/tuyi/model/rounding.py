"""Rounding to 8 bits in one pass over memory, for prediction on a GPU; with it what stands before a matrix product."""

from __future__ import annotations

from typing import Any

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from tuyi.model.fp8 import LARGEST, LEAST, TYPE

__all__ = ["rounded", "rounded_mlp", "swiglu_rounded"]

_LARGEST, _LEAST = tl.constexpr(LARGEST), tl.constexpr(LEAST)


@triton.jit
def _scale(most, row, scale_ptr):  # type: ignore[no-untyped-def]
    scale = tl.maximum(tl.max(most, 0), _LEAST) / _LARGEST
    tl.store(scale_ptr + row, scale)
    return scale


@triton.jit
def _store_rounded(value, scale, to_ptr, inside):  # type: ignore[no-untyped-def]
    value = tl.clamp(value / scale, -_LARGEST, _LARGEST)
    tl.store(to_ptr, value.to(to_ptr.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _round_kernel(x_ptr, out_ptr, scale_ptr, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    most = tl.zeros((BLOCK,), tl.float32)
    for begin in range(0, width, BLOCK):
        x = tl.load(x_ptr + row * width + begin + at, mask=begin + at < width, other=0.0)
        most = tl.maximum(most, tl.abs(x.to(tl.float32)))
    scale = _scale(most, row, scale_ptr)
    for begin in range(0, width, BLOCK):  # a second time out of the cache
        place, inside = row * width + begin + at, begin + at < width
        x = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
        _store_rounded(x, scale, out_ptr + place, inside)


@triton.jit  # type: ignore[untyped-decorator]
def _swiglu_kernel(gate_ptr, up_ptr, out_ptr, scale_ptr, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    place, inside = row * width + at, at < width
    gate = tl.load(gate_ptr + place, mask=inside, other=0.0)
    up = tl.load(up_ptr + place, mask=inside, other=0.0)
    wide = gate.to(tl.float32)
    gated = (wide / (1 + tl.exp(-wide))).to(gate.dtype).to(tl.float32) * up.to(tl.float32)
    gated = gated.to(gate.dtype).to(tl.float32)
    _store_rounded(gated, _scale(tl.abs(gated), row, scale_ptr), out_ptr + place, inside)


def _launch(kernel: Any, most: int, *inputs: Tensor) -> tuple[Tensor, Tensor]:
    """One program for each row; ``most`` values of it at a time."""
    out, scale = _like(inputs[0])
    rows, width = out.shape
    block = min(triton.next_power_of_2(width), most)
    warps = 4 if block <= 4096 else 8 if block <= 8192 else 16
    with torch.cuda.device_of(out):
        kernel[(rows,)](*(one.contiguous() for one in inputs), out, scale, width, BLOCK=block, num_warps=warps)
    return out, scale


@torch.library.custom_op("tuyi::rounded", mutates_args=())
def rounded(rows_RK: Tensor) -> tuple[Tensor, Tensor]:
    """Rows in e4m3, and the float32 factor of each, (R, 1).

    Args:
        rows_RK: 16-bit or float32 rows.
    """
    return _launch(_round_kernel, 8192, rows_RK)


@torch.library.custom_op("tuyi::swiglu_rounded", mutates_args=())
def swiglu_rounded(gate_RK: Tensor, up_RK: Tensor) -> tuple[Tensor, Tensor]:
    """``silu(gate) * up`` as :func:`rounded` gives it; in between rounded to the type of its inputs, as torch does.

    Args:
        gate_RK, up_RK: Rows of equal shape and type.
    """
    return _launch(_swiglu_kernel, 1 << 20, gate_RK, up_RK)


@rounded.register_fake
def _(rows_RK: Tensor) -> tuple[Tensor, Tensor]:
    return _like(rows_RK)


@swiglu_rounded.register_fake
def _(gate_RK: Tensor, up_RK: Tensor) -> tuple[Tensor, Tensor]:
    return _like(gate_RK)


def _like(rows_RK: Tensor) -> tuple[Tensor, Tensor]:
    return rows_RK.new_empty(rows_RK.shape, dtype=TYPE), rows_RK.new_empty(rows_RK.shape[0], 1, dtype=torch.float32)


def rounded_mlp(self: Any, x: Tensor) -> Tensor:
    """The forward pass of a gated MLP whose three layers are :class:`~tuyi.model.fp8.Fp8Linear`."""
    values, scale = rounded(x.reshape(-1, x.shape[-1]))
    gate = self.gate_proj.product(values, scale, x.dtype)
    up = self.up_proj.product(values, scale, x.dtype)
    values, scale = swiglu_rounded(gate, up)
    out: Tensor = self.down_proj.product(values, scale, x.dtype)
    return out.view(*x.shape[:-1], -1)
