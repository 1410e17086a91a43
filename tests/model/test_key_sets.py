"""Gradients of packed attention with label branches, where kernels give none to the normalisers they merge by."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from dense_kernel import dense_kernel, kept_of, visible
from torch import Tensor

from tuyi.encode.pack import Branches
from tuyi.model import layout as layouts
from tuyi.model.attention import packed_attention
from tuyi.model.kernels import Kernel
from tuyi.model.layout import Layout
from tuyi.model.segments import Segments

LENGTHS, BRANCHES, SCALE = [5, 3, 8], ((2, 3, 1), (1, 1), (0, 4)), 0.6


class Uncovered(torch.autograd.Function):
    """As kernels do, leaves the gradients of keys that no segment has as it finds them: as anything."""

    @staticmethod
    def forward(context: Any, keys: Tensor, begin: int, end: int) -> Tensor:
        context.span = slice(begin, end)
        return keys.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        found = torch.full_like(gradient, float("nan"))
        found[context.span] = gradient[context.span]
        return found, None, None


def uncovering_kernel(q: Tensor, k: Tensor, v: Tensor, at: Segments, scale: float) -> tuple[Tensor, Tensor]:
    k, v = (Uncovered.apply(x, int(at.cu_k[0]), int(at.cu_k[-1])) for x in (k, v))
    return dense_kernel(q, k, v, at, scale)


def gradients(
    kv_heads: int, shared: int, device: str, dtype: torch.dtype, kernel: Kernel | None, tails: list[int] | None = None
) -> Any:
    """Gradients to q, k and v of the packed attention, and of one masked softmax in float64."""
    mask = visible(LENGTHS, True, BRANCHES, shared)
    generator = torch.Generator().manual_seed(0)
    sizes = [(1, heads, len(mask), 16) for heads in (4, kv_heads, kv_heads)]
    values = [torch.randn(size, generator=generator).to(dtype) for size in sizes]
    up = torch.randn(1, len(mask), 4, 16, generator=generator)

    ours = [value.to(device).requires_grad_() for value in values]
    layer: Any = SimpleNamespace(is_causal=True, tuyi_kernel=kernel)
    keep = None if tails is None else kept_of(LENGTHS, shared, len(mask), tails)
    layout = Layout.of(LENGTHS, torch.device(device), Branches(BRANCHES), shared, keep)
    up = layout.asking(up.to(device))
    q = layout.asking(ours[0].transpose(1, 2)).transpose(1, 2)
    out, _ = packed_attention(layer, q, *ours[1:], scaling=SCALE, layout=layout)
    found = torch.autograd.grad((out * up).sum(), ours)

    exact = [value.double().requires_grad_() for value in values]
    q, k, v = (exact[0], *(x.repeat_interleave(4 // kv_heads, 1) for x in exact[1:]))
    scores = (q @ k.transpose(2, 3) * SCALE).masked_fill(~mask, float("-inf"))
    right = layout.asking((scores.softmax(-1) @ v).transpose(1, 2).to(device))
    expected = torch.autograd.grad((right * up).sum(), exact)
    return found, expected


TAILS = [None, [1, 3, 2]]
"""All tokens ask, or only so many of each row's last ones and the branches."""


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("shared", [0, 4])
@pytest.mark.parametrize("tails", TAILS)
def test_the_merge_has_the_gradient_of_one_softmax(
    monkeypatch: pytest.MonkeyPatch, kv_heads: int, shared: int, tails: list[int] | None
):
    monkeypatch.setattr(layouts, "varlen_available", lambda *_: True)
    kernel = Kernel("dense", "this file", (), (0, 0), uncovering_kernel)
    found, expected = gradients(kv_heads, shared, "cpu", torch.float32, kernel, tails)
    for ours, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), exact, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shared", [0, 4])
@pytest.mark.parametrize("tails", TAILS)
def test_dense_branches_have_it_too(shared: int, tails: list[int] | None):
    found, expected = gradients(2, shared, "cpu", torch.float32, None, tails)
    for ours, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), exact, atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("shared", [0, 4])
@pytest.mark.parametrize("tails", TAILS)
def test_kernels_have_it_too(kv_heads: int, shared: int, tails: list[int] | None):
    found, expected = gradients(kv_heads, shared, "cuda", torch.bfloat16, None, tails)
    for ours, exact in zip(found, expected, strict=True):
        difference = (ours.cpu().double() - exact).norm()
        assert difference < 0.02 * exact.norm()
