"""What follows a matrix product, done before its result leaves the chip: quack's kernels, with ends of our own.

Importing this needs quack, which flash-attn-4 brings. Each end is compiled once for any number of rows, which takes a
second or two; quack keeps it on disk.
"""

from __future__ import annotations

from typing import Any

import torch
from quack.activation import dswiglu, gelu_tanh_approx, sigmoid
from quack.activation import swiglu as gated
from quack.epilogue.frontend import gemm_epilogue
from quack.epilogue.math import pack, unpack
from quack.epilogue.ops import ColVecLoad, RowVecLoad
from torch import Tensor

__all__ = [
    "input_gradient", "joined_gradient", "joined_input_gradient", "plain", "scaled", "swiglu", "swiglu_gradient",
    "with_activation",
]  # fmt: skip

_BIAS = RowVecLoad("bias")
_SCALES = {"rows": ColVecLoad("rows"), "columns": RowVecLoad("columns")}
_PLANS = 2000
"""Launches that are remembered by shape, for each end; packs differ in their number of rows."""


@gemm_epilogue()
def _plain(acc):  # type: ignore[no-untyped-def]
    return {"D": acc}


@gemm_epilogue(ops={"bias": _BIAS})
def _bias(acc, bias):  # type: ignore[no-untyped-def]
    return {"D": acc + bias}


@gemm_epilogue()
def _residual(acc, c):  # type: ignore[no-untyped-def]
    return {"D": acc + c}


@gemm_epilogue(ops={"bias": _BIAS})
def _bias_residual(acc, bias, c):  # type: ignore[no-untyped-def]
    return {"D": acc + bias + c}


@gemm_epilogue(ops={"bias": _BIAS})
def _quick_gelu(acc, bias):  # type: ignore[no-untyped-def]
    x = acc + bias
    return {"D": x * sigmoid(x * 1.702)}


@gemm_epilogue(ops={"bias": _BIAS})
def _gelu_tanh(acc, bias):  # type: ignore[no-untyped-def]
    return {"D": gelu_tanh_approx(acc + bias)}


@gemm_epilogue(outputs=("out",), mode="acc_pair")
def _swiglu(acc):  # type: ignore[no-untyped-def]
    gate, up = unpack(acc)
    return {"out": gated(gate, up)}


@gemm_epilogue(outputs=("out",), mode="acc_pair")
def _swiglu_kept(acc):  # type: ignore[no-untyped-def]
    gate, up = unpack(acc)
    return {"D": pack(gate, up), "out": gated(gate, up)}


@gemm_epilogue(outputs=("out",), mode="packed_cd_b16x2")
def _swiglu_gradient(acc, c):  # type: ignore[no-untyped-def]
    gate, up = unpack(c)
    d_gate, d_up, out = dswiglu(gate, up, acc)
    return {"D": pack(d_gate, d_up), "out": out}


@gemm_epilogue(outputs=("out",), mode="acc_pair", ops={"bias": _BIAS})
def _bias_swiglu(acc, bias):  # type: ignore[no-untyped-def]
    gate, up = unpack(acc + bias)
    return {"out": gated(gate, up)}


@gemm_epilogue(ops=_SCALES)
def _scaled_residual(acc, rows, columns, c):  # type: ignore[no-untyped-def]
    return {"D": acc * columns * rows + c}


@gemm_epilogue(outputs=("out",), mode="acc_pair", ops=_SCALES)
def _scaled_swiglu(acc, rows, columns):  # type: ignore[no-untyped-def]
    gate, up = unpack(acc * columns * rows)
    return {"out": gated(gate, up)}


_ENDS = {(False, False): _plain, (True, False): _bias, (False, True): _residual, (True, True): _bias_residual}
_ACTIVATIONS = {"quick_gelu": _quick_gelu, "gelu_tanh": _gelu_tanh}

Scales = tuple[Tensor, Tensor]
"""Factors of the rows of both sides of a product of 8-bit numbers: float32 (M,) and (N,)."""


def plain(x_MK: Tensor, weight_NK: Tensor, out_MN: Tensor, bias_N: Tensor | None, residual_MN: Tensor | None) -> None:
    """``out = x @ weight.T``, then ``+ bias`` and ``+ residual`` where they are given."""
    end = _ENDS[bias_N is not None, residual_MN is not None]
    _launch(end, x_MK, weight_NK.t(), out_MN, residual_MN, {} if bias_N is None else {"bias": bias_N[None]})


def scaled(x_MK: Tensor, weight_NK: Tensor, out_MN: Tensor, residual_MN: Tensor, scales: Scales) -> None:
    """``out = x @ weight.T * rows * columns + residual`` of 8-bit numbers."""
    _launch(_scaled_residual, x_MK, weight_NK.t(), out_MN, residual_MN, _factors(scales))


def with_activation(x_MK: Tensor, weight_NK: Tensor, out_MN: Tensor, bias_N: Tensor, activation: str) -> None:
    """``out = activation(x @ weight.T + bias)``; ``quick_gelu`` or ``gelu_tanh``."""
    _launch(_ACTIVATIONS[activation], x_MK, weight_NK.t(), out_MN, None, {"bias": bias_N[None]})


def swiglu(
    x_MK: Tensor, both_2HK: Tensor, out_MH: Tensor, bias_2H: Tensor | None = None, *,
    halves_M2H: Tensor | None = None, scales: Scales | None = None,
) -> None:  # fmt: skip
    """``out = silu(x @ gate.T + bias) * (x @ up.T + bias)``.

    Args:
        both_2HK: The rows of ``gate``, then those of ``up``.
        halves_M2H: Takes what is before the activation.
        bias_2H, halves_M2H, scales: One value of ``gate``, one of ``up``, and so on, as the kernel takes the rows.
    """
    extra = {"out": out_MH}
    if scales is not None:
        end, extra = _scaled_swiglu, extra | _factors(scales)
    elif bias_2H is not None:
        end, extra = _bias_swiglu, extra | {"bias": bias_2H[None]}
    else:
        end = _swiglu if halves_M2H is None else _swiglu_kept
    _launch(end, x_MK, both_2HK.t(), halves_M2H, None, extra, joined=("B",))


def swiglu_gradient(
    d_out_MN: Tensor, down_NH: Tensor, halves_M2H: Tensor, d_halves_M2H: Tensor, inner_MH: Tensor
) -> None:
    """The gradient of the halves, ``d_out @ down`` being that of ``silu(gate) * up``, and that product itself."""
    _launch(_swiglu_gradient, d_out_MN, down_NH, d_halves_M2H, halves_M2H, {"out": inner_MH})


def input_gradient(d_out_MN: Tensor, weight_NK: Tensor, d_x_MK: Tensor) -> None:
    """``d_x = d_out @ weight``."""
    _launch(_plain, d_out_MN, weight_NK, d_x_MK, None, {})


def joined_input_gradient(d_halves_M2H: Tensor, both_2HK: Tensor, d_x_MK: Tensor) -> None:
    """``d_x = d_gate @ gate + d_up @ up``."""
    _launch(_plain, d_halves_M2H, both_2HK, d_x_MK, None, {}, joined=("B",))


def joined_gradient(d_halves_M2H: Tensor, x_MK: Tensor, d_both_2HK: Tensor) -> None:
    """``d_gate.T @ x``, then ``d_up.T @ x``."""
    _launch(_plain, d_halves_M2H.t(), x_MK, d_both_2HK, None, {}, joined=("out",))


def _factors(scales: Scales) -> dict[str, Tensor]:
    return {"rows": scales[0][None], "columns": scales[1][None]}


def _launch(
    end: Any, a_MK: Tensor, b_KN: Tensor, d: Tensor | None, c: Tensor | None, extra: dict[str, Tensor],
    joined: tuple[str, ...] = (),
) -> None:  # fmt: skip
    """One product.

    Args:
        end: What follows it.
        d, c: What it writes and what it adds to, where the end has them.
        extra: Further tensors by the names that the end gives them.
        joined: Which of A, B and out is two in one piece, whose rows or columns are taken in turn.
    """
    if len(end._plan_cache) > _PLANS:
        end._plan_cache.clear()
    rows, columns, alternate = _tile(end, b_KN.shape[1], b_KN.shape[0])
    in_8 = b_KN.element_size() == 1
    with torch.cuda.device_of(a_MK):
        end.gemm(
            a_MK, b_KN.mT if joined else b_KN, d, c, epi_args=extra, b_kn=not joined, concat_layout=joined or None,
            tile_M=rows, tile_N=columns, cluster_M=2, cluster_N=1, pingpong=alternate,
            post_init_attrs=(("fp8_slow_accum", False),) if in_8 else (),
        )  # fmt: skip


def _tile(end: Any, columns: int, inner: int) -> tuple[int, int, bool]:
    """Rows and columns of the part of the result that one multiprocessor makes, and whether its two halves take turns.

    Taking turns hides the end of one half behind the product of the other. Measured on an H200: docs/benchmarks.md.
    """
    if end is _swiglu_gradient:
        return 128, 128, True
    if inner > 8192 or end in (_swiglu, _bias_swiglu):
        return 256, 192, False
    return 128, 160 if columns % 160 == 0 and columns % 192 else 192, True
