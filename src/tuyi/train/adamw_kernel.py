"""The update of :mod:`tuyi.train.adamw` in one pass over memory, for GPUs."""

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

__all__ = ["update"]

_BLOCK = 1024


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(weight_ptr, grad_ptr, scale_ptr, mean_ptr, square_ptr, lower_ptr, count, rate, decay, beta1, beta2, eps, correction1, correction2, seed, SCALED: tl.constexpr, EXACT: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # fmt: skip  # noqa: E501
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    bits = tl.load(weight_ptr + at, mask=inside, other=0).to(tl.int32) << 16
    if EXACT:
        bits += tl.load(lower_ptr + at, mask=inside, other=0).to(tl.int32)
    whole = bits.to(tl.float32, bitcast=True)
    grad = tl.load(grad_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if SCALED:
        grad *= tl.load(scale_ptr)
    mean = tl.load(mean_ptr + at, mask=inside, other=0.0)
    square = tl.load(square_ptr + at, mask=inside, other=0.0)
    mean = mean + (grad - mean) * (1 - beta1)
    square = square * beta2 + grad * grad * (1 - beta2)
    divisor = tl.sqrt(square) / correction2 + eps
    whole = whole * decay - rate / correction1 * mean / divisor
    tl.store(mean_ptr + at, mean, mask=inside)
    tl.store(square_ptr + at, square, mask=inside)
    bits = whole.to(tl.int32, bitcast=True)
    if EXACT:
        upper = (bits + 0x8000) >> 16
        tl.store(lower_ptr + at, (bits - (upper << 16)).to(tl.int16), mask=inside)
    else:
        upper = (bits + (tl.randint(seed, at.to(tl.int32)).to(tl.int32) & 0xFFFF)) >> 16
    tl.store(weight_ptr + at, upper.to(tl.int16), mask=inside)


def update(
    weight: Tensor, grad: Tensor, scale: Tensor | None, mean: Tensor, square: Tensor, lower: Tensor | None,
    numbers: dict[str, float], seed: int,
) -> None:  # fmt: skip
    """Update a weight in place; all tensors of one shape, contiguous, on one GPU.

    Args:
        weight: bfloat16. grad: any floating type. mean, square: float32. lower: int16, None to round by chance.
        scale: Factor on the gradient, one float32; None for 1.
        numbers: rate, decay, beta1, beta2, eps, correction1, correction2.
        seed: Of the chance.
    """
    assert weight.is_contiguous() and mean.is_contiguous() and square.is_contiguous()  # noqa: PT018 - one condition
    count = weight.numel()
    with torch.cuda.device(weight.device):
        _kernel[(triton.cdiv(count, _BLOCK),)](
            weight.view(torch.int16), grad.contiguous(), mean if scale is None else scale, mean, square,
            weight if lower is None else lower, count, numbers["rate"], numbers["decay"], numbers["beta1"],
            numbers["beta2"], numbers["eps"], numbers["correction1"], numbers["correction2"], seed,
            SCALED=scale is not None, EXACT=lower is not None, BLOCK=_BLOCK,
        )  # fmt: skip
