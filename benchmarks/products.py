"""Matrix products of a block with what follows them: torch's, and fused ones.

    python benchmarks/products.py
    python benchmarks/products.py --size 2b --learning

Sizes are those of a pack of 24,576 tokens and 98,304 patches. Each line is the mean over a quarter of a second of
calls one after the other, so that the GPU's power limit counts, as it does in a model. torch's products are cuBLAS's,
what follows them is compiled; the fused ones are those of ``tuyi.model.products`` and ``tuyi.model.gated``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fp8 import PATCHES, TOKENS, ms
from machine import begin

SIZES = {"7b": (3584, 18_944), "2b": (1536, 8960)}
"""Hidden and inner values of a token."""


def prediction(width: int, inner: int) -> None:
    """Print both ways of each product of a block that ends in more than a product."""
    from tuyi.model.products import join, linear, linear_activation, linear_swiglu

    x, wide, patches, middle = (
        _random(rows, size) for rows, size in ((TOKENS, width), (TOKENS, inner), (PATCHES, 1280), (PATCHES, 5120))
    )
    gate, up, down, out = _random(inner, width), _random(inner, width), _random(width, inner), _random(width, width)
    join(gate, up)
    qkv, proj, fc1, fc2 = (_random(n, k) for n, k in ((3840, 1280), (1280, 1280), (5120, 1280), (1280, 5120)))
    biases = {size: _random(1, size)[0] for size in (1280, 3840, 5120)}
    added, gelu, gated = (torch.compile(one) for one in (torch.add, _quick_gelu, _gated))
    _table(
        {
            "language gate, up, SwiGLU": (
                lambda: gated(F.linear(x, gate), F.linear(x, up)),
                partial(linear_swiglu, x, gate, up, None, None),
            ),
            "language down, sum": (lambda: added(F.linear(wide, down), x), partial(linear, wide, down, None, x)),
            "language o, sum": (lambda: added(F.linear(x, out), x), partial(linear, x, out, None, x)),
            "tower qkv": (
                partial(F.linear, patches, qkv, biases[3840]),
                partial(linear, patches, qkv, biases[3840], None),
            ),
            "tower proj, sum": (
                lambda: added(F.linear(patches, proj, biases[1280]), patches),
                partial(linear, patches, proj, biases[1280], patches),
            ),
            "tower fc1, quick GELU": (
                lambda: gelu(F.linear(patches, fc1, biases[5120])),
                partial(linear_activation, patches, fc1, biases[5120], "quick_gelu"),
            ),
            "tower fc2, sum": (
                lambda: added(F.linear(middle, fc2, biases[1280]), patches),
                partial(linear, middle, fc2, biases[1280], patches),
            ),
        }
    )


def learning(width: int, inner: int) -> None:
    """Print both ways of a gated MLP there and back, all of whose weights learn."""
    from tuyi.model.gated import gated_mlp
    from tuyi.model.products import join

    x = _random(TOKENS, width).requires_grad_()
    weights = [_random(*shape).requires_grad_() for shape in ((inner, width), (inner, width), (width, inner))]
    join(*weights[:2])
    gate, up, down = weights

    def plain(x: Tensor) -> Tensor:
        return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)

    def fused(x: Tensor) -> Tensor:
        out: Tensor = gated_mlp(x, gate, up, down)[0]
        return out

    back = torch.randn_like(x)

    def there_and_back(way: Callable[[Tensor], Tensor]) -> Any:
        return torch.autograd.grad(way(x), (x, *weights), back)

    ways = [partial(there_and_back, torch.compile(way)) for way in (plain, fused)]
    _table({"gated MLP, there and back": (ways[0], ways[1])})


def _quick_gelu(y: Tensor) -> Tensor:
    return y * torch.sigmoid(1.702 * y)


def _gated(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def _random(rows: int, size: int) -> Tensor:
    return torch.randn(rows, size, device="cuda", dtype=torch.bfloat16) * size**-0.5


def _table(ways: dict[str, tuple[Callable[[], Any], Callable[[], Any]]]) -> None:
    print("product | torch, ms | fused, ms | torch again")
    for name, (plain, fused) in ways.items():
        print(f"{name} | {ms(plain):.3f} | {ms(fused):.3f} | {ms(plain):.3f}", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="matrix products of a block with what follows them")
    parser.add_argument("--size", choices=tuple(SIZES), default="7b")
    parser.add_argument("--learning", action="store_true", help="a gated MLP whose weights learn")
    chosen = parser.parse_args()
    device, _ = begin("cuda")
    from tuyi.model.products import refused

    if why := refused(torch.device(device)):
        raise SystemExit(f"fused products cannot be used here: {why}")
    with torch.inference_mode(not chosen.learning):
        (learning if chosen.learning else prediction)(*SIZES[chosen.size])


if __name__ == "__main__":
    main()
