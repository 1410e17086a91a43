"""Matrix products together with what follows them, as operators that compiled blocks can hold.

With many rows a kernel does both at once (:mod:`tuyi.model.epilogues`); with few, as when text is written token by
token, torch does them one after the other.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tuyi.errors import first_line
from tuyi.model.fp8 import scaled_product

__all__ = [
    "MANY", "is_gated", "join", "linear", "linear_8", "linear_activation", "linear_swiglu", "many", "one_piece",
    "refused", "rows_of", "swiglu_8",
]  # fmt: skip

MANY = 1024
"""Rows from which on a kernel fills the GPU."""


@torch.library.custom_op("tuyi::linear", mutates_args=())
def linear(x: Tensor, weight_NK: Tensor, bias_N: Tensor | None, residual: Tensor | None) -> Tensor:
    """``x @ weight.T``, then ``+ bias`` and ``+ residual`` where they are given, rounded once.

    Args:
        x: (…, K), 16-bit. residual: (…, N).
    """
    if not many(x, weight_NK):
        out = F.linear(x, weight_NK, bias_N)
        return out if residual is None else out + residual
    from tuyi.model.epilogues import plain

    out = _columns(x, weight_NK.shape[0])
    plain(rows_of(x), weight_NK, rows_of(out), bias_N, None if residual is None else rows_of(residual))
    return out


@torch.library.custom_op("tuyi::input_gradient", mutates_args=())
def _input_gradient(d_out: Tensor, weight_NK: Tensor) -> Tensor:
    """``d_out @ weight``, of (…, N)."""
    if not many(d_out, weight_NK):
        return d_out @ weight_NK
    from tuyi.model.epilogues import input_gradient

    d_x = _columns(d_out, weight_NK.shape[1])
    input_gradient(rows_of(d_out), weight_NK, rows_of(d_x))
    return d_x


@_input_gradient.register_fake
def _(d_out: Tensor, weight_NK: Tensor) -> Tensor:
    return _columns(d_out, weight_NK.shape[1])


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None, Tensor | None], output: Tensor) -> None:
    x, weight_NK, _, _ = inputs
    ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight_NK)


def _back(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
    x, weight_NK = ctx.saved_tensors
    of_x, of_weight, of_bias, of_residual = ctx.needs_input_grad
    return (
        _input_gradient(d_out, weight_NK) if of_x else None,
        rows_of(d_out).t() @ rows_of(x) if of_weight else None,
        rows_of(d_out).sum(0) if of_bias else None,
        d_out if of_residual else None,
    )


linear.register_autograd(_back, setup_context=_keep)


@torch.library.custom_op("tuyi::linear_activation", mutates_args=())
def linear_activation(x: Tensor, weight_NK: Tensor, bias_N: Tensor, activation: str) -> Tensor:
    """``activation(x @ weight.T + bias)``, rounded once.

    Args:
        x: (…, K), 16-bit.
        activation: ``quick_gelu`` or ``gelu_tanh``.
    """
    if not many(x, weight_NK):
        wide = F.linear(x, weight_NK, bias_N)
        return wide * torch.sigmoid(1.702 * wide) if activation == "quick_gelu" else F.gelu(wide, approximate="tanh")
    from tuyi.model.epilogues import with_activation

    out = _columns(x, weight_NK.shape[0])
    with_activation(rows_of(x), weight_NK, rows_of(out), bias_N, activation)
    return out


@torch.library.custom_op("tuyi::linear_swiglu", mutates_args=())
def linear_swiglu(
    x: Tensor, gate_HK: Tensor, up_HK: Tensor, gate_bias_H: Tensor | None, up_bias_H: Tensor | None
) -> Tensor:
    """``silu(x @ gate.T + gate_bias) * (x @ up.T + up_bias)``, rounded once.

    Args:
        x: (…, K), 16-bit.
        gate_HK, up_HK: Joined.
        gate_bias_H, up_bias_H: Both or none.
    """
    if not many(x, gate_HK):
        return F.silu(F.linear(x, gate_HK, gate_bias_H)) * F.linear(x, up_HK, up_bias_H)
    from tuyi.model.epilogues import swiglu

    out = _columns(x, gate_HK.shape[0])
    bias_2H = None if gate_bias_H is None or up_bias_H is None else _in_turn(gate_bias_H, up_bias_H)
    swiglu(rows_of(x), one_piece(gate_HK, up_HK), rows_of(out), bias_2H)
    return out


@torch.library.custom_op("tuyi::linear_8", mutates_args=())
def linear_8(x_MK: Tensor, rows_M1: Tensor, weight_NK: Tensor, columns_1N: Tensor, residual_MN: Tensor) -> Tensor:
    """``x @ weight.T`` of 8-bit numbers times the factors of both, then ``+ residual``, in bfloat16.

    Args:
        rows_M1, columns_1N: float32 factors of the rows of ``x`` and of ``weight``.
    """
    if not many(x_MK, weight_NK):
        return scaled_product(x_MK, rows_M1, weight_NK, columns_1N) + residual_MN
    from tuyi.model.epilogues import scaled

    out = torch.empty_like(residual_MN)
    scaled(x_MK, weight_NK, out, residual_MN, (rows_M1[:, 0], columns_1N[0]))
    return out


@torch.library.custom_op("tuyi::swiglu_8", mutates_args=())
def swiglu_8(
    x_MK: Tensor, rows_M1: Tensor, gate_HK: Tensor, up_HK: Tensor, gate_columns_1H: Tensor, up_columns_1H: Tensor
) -> Tensor:
    """:func:`linear_swiglu` of 8-bit numbers, in bfloat16.

    Args:
        gate_columns_1H, up_columns_1H: float32 factors of the rows of ``gate`` and of ``up``.
    """
    if not many(x_MK, gate_HK):
        gate = scaled_product(x_MK, rows_M1, gate_HK, gate_columns_1H)
        return F.silu(gate) * scaled_product(x_MK, rows_M1, up_HK, up_columns_1H)
    from tuyi.model.epilogues import swiglu

    out = _columns(x_MK, gate_HK.shape[0], torch.bfloat16)
    columns = _in_turn(gate_columns_1H[0], up_columns_1H[0])
    swiglu(x_MK, one_piece(gate_HK, up_HK), out, scales=(rows_M1[:, 0], columns))
    return out


@linear.register_fake
def _(x: Tensor, weight_NK: Tensor, bias_N: Tensor | None, residual: Tensor | None) -> Tensor:
    return _columns(x, weight_NK.shape[0])


@linear_activation.register_fake
def _(x: Tensor, weight_NK: Tensor, bias_N: Tensor, activation: str) -> Tensor:
    return _columns(x, weight_NK.shape[0])


@linear_swiglu.register_fake
def _(x: Tensor, gate_HK: Tensor, up_HK: Tensor, gate_bias_H: Tensor | None, up_bias_H: Tensor | None) -> Tensor:
    return _columns(x, gate_HK.shape[0])


@linear_8.register_fake
def _(x_MK: Tensor, rows_M1: Tensor, weight_NK: Tensor, columns_1N: Tensor, residual_MN: Tensor) -> Tensor:
    return torch.empty_like(residual_MN)


@swiglu_8.register_fake
def _(
    x_MK: Tensor, rows_M1: Tensor, gate_HK: Tensor, up_HK: Tensor, gate_columns_1H: Tensor, up_columns_1H: Tensor
) -> Tensor:
    return _columns(x_MK, gate_HK.shape[0], torch.bfloat16)


def _columns(x: Tensor, count: int, dtype: torch.dtype | None = None) -> Tensor:
    """Room for a result with the rows of ``x``."""
    return x.new_empty(*x.shape[:-1], count, dtype=dtype)


def _in_turn(one: Tensor, other: Tensor) -> Tensor:
    """One value of each, and so on, as the kernel takes the rows of joined weights."""
    return torch.stack([one, other], dim=1).flatten()


def many(x: Tensor, weight: Tensor) -> bool:
    """Whether a kernel pays for these rows (…, K), and can fetch them and the weight: 16 bytes at a time."""
    apart = 16 // weight.element_size()
    return x.is_cuda and x.numel() >= MANY * x.shape[-1] and not any(size % apart for size in weight.shape)


def rows_of(x: Tensor) -> Tensor:
    """(…, K) as (R, K), one behind the other."""
    return x.reshape(-1, x.shape[-1]).contiguous()


def join(one: Tensor, other: Tensor) -> None:
    """Let the weights of two layers lie in one piece of memory."""
    both = torch.cat([one.data.view(torch.uint8), other.data.view(torch.uint8)]).view(one.dtype)
    one.data, other.data = both.chunk(2)


def one_piece(one_HK: Tensor, other_HK: Tensor) -> Tensor:
    """Both (2 H, K): as they lie where they were joined, else a copy."""
    follows = other_HK.data_ptr() == one_HK.data_ptr() + one_HK.numel() * one_HK.element_size()
    if follows and one_HK.untyped_storage().data_ptr() == other_HK.untyped_storage().data_ptr():
        return one_HK.as_strided((2 * one_HK.shape[0], one_HK.shape[1]), (one_HK.shape[1], 1))
    return torch.cat([one_HK.view(torch.uint8), other_HK.view(torch.uint8)]).view(one_HK.dtype)


def is_gated(module: Any, kind: type[nn.Module]) -> bool:
    """Whether it is ``down_proj(silu(gate_proj(x)) * up_proj(x))``, of exactly this kind of layers."""
    has_layers = all(type(getattr(module, name, None)) is kind for name in ("gate_proj", "up_proj", "down_proj"))
    return has_layers and type(getattr(module, "act_fn", None)).__name__ in ("SiLU", "SiLUActivation")


@cache
def refused(device: torch.device) -> str | None:
    """Why the kernels cannot be used on this device; None where a small product came out right."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] != 9:
        return "they are measured on Hopper GPUs alone"
    try:
        return None if _is_right(device) else "their results are wrong"
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed: pip install 'tuyi[fa4]'"
    except Exception as error:  # noqa: BLE001 - other people's compiler on trial: whatever it raises, it is said and not used
        return first_line(error)


def _is_right(device: torch.device) -> bool:
    from tuyi.model.epilogues import plain

    shapes = ((384, 256), (320, 256), (320,), (384, 320))
    x, weight, bias, more = (torch.randn(shape, device=device, dtype=torch.bfloat16) for shape in shapes)
    out = torch.empty_like(more)
    plain(x, weight, out, bias, more)
    right = x.float() @ weight.float().t() + bias + more
    return bool((out - right).abs().max() < 0.01 * right.abs().max())
