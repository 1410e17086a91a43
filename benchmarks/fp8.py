"""Products of a 7B's two towers in 16 and in 8 bits, and what rounding to 8 bits takes around them.

    python benchmarks/fp8.py

Sizes are those of a pack of 24,576 tokens and 98,304 patches. Each line is the mean over a quarter of a second of
calls one after the other, so that the GPU's power limit counts, as it does in a model. "By torch" is the formula in
torch, compiled for any number of rows; the kernels are those of ``tuyi.model.rounding``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from machine import begin

TOKENS, PATCHES = 24_576, 98_304
PRODUCTS = {
    "language q, o": (TOKENS, 3584, 3584),
    "language k, v": (TOKENS, 3584, 512),
    "language gate, up": (TOKENS, 3584, 18_944),
    "language down": (TOKENS, 18_944, 3584),
    "tower qkv": (PATCHES, 1280, 3840),
    "tower proj": (PATCHES, 1280, 1280),
    "tower fc1": (PATCHES, 1280, 5120),
    "tower fc2": (PATCHES, 5120, 1280),
}
"""Rows, inputs and outputs of each."""


def ms(call: Callable[[], Any], seconds: float = 0.25) -> float:
    """Milliseconds of a call among many."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(3):
        call()
    begin.record()
    call()
    end.record()
    end.synchronize()
    count = max(5, int(seconds * 1e3 / begin.elapsed_time(end)))
    begin.record()
    for _ in range(count):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / count


def products() -> None:
    """Print the rate of each product."""
    from tuyi.model.fp8 import rounded_by_torch

    print("product | bf16 TFLOP/s | fp8 TFLOP/s")
    for name, (rows, inside, out) in PRODUCTS.items():
        x, weight = _random(rows, inside), _random(out, inside)
        (x_8, x_scale), (weight_8, weight_scale) = rounded_by_torch(x), rounded_by_torch(weight)
        in_8 = partial(
            torch._scaled_mm, x_8, weight_8.t(), scale_a=x_scale, scale_b=weight_scale.t().contiguous(),
            out_dtype=torch.bfloat16, use_fast_accum=True,
        )  # fmt: skip
        tera = 2 * rows * inside * out / 1e9
        rates = [tera / ms(call) for call in (partial(F.linear, x, weight), in_8)]
        print(f"{name} {rows} x {inside} x {out} | {rates[0]:.0f} | {rates[1]:.0f}", flush=True)


def roundings() -> None:
    """Print what rounding takes, by torch and by our kernels."""
    from tuyi.model.fp8 import rounded_by_torch
    from tuyi.model.rounding import rounded, swiglu_rounded

    by_torch = torch.compile(rounded_by_torch, dynamic=True)
    gated = torch.compile(lambda gate, up: rounded_by_torch(F.silu(gate) * up), dynamic=True)
    print("\nrounding | by torch, ms | kernel, ms")
    for rows, width in ((TOKENS, 3584), (PATCHES, 1280)):
        x = _random(rows, width)
        print(f"rows {rows} x {width} | {ms(partial(by_torch, x)):.3f} | {ms(partial(rounded, x)):.3f}", flush=True)
    gate, up = _random(TOKENS, 18_944), _random(TOKENS, 18_944)
    one, other = ms(partial(gated, gate, up)), ms(partial(swiglu_rounded, gate, up))
    print(f"silu(gate) * up {TOKENS} x 18944 | {one:.3f} | {other:.3f}")


def _random(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, device="cuda", dtype=torch.bfloat16)


def main() -> None:
    """Print the tables."""
    device, _ = begin("cuda")
    assert device == "cuda"
    with torch.inference_mode():
        products()
        roundings()


if __name__ == "__main__":
    main()
