"""Gradients of packed attention with label branches, where kernels give none to the normalisers they merge by."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tuyi.encode.pack import Branches
from tuyi.model import attention
from tuyi.model.attention import Layout, packed_attention
from tuyi.model.kernels import Kernel
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


def dense_kernel(q: Tensor, k: Tensor, v: Tensor, at: Segments, scale: float) -> tuple[Tensor, Tensor]:
    """What a kernel computes, segment by segment; its log-sum-exp has no gradient, as with torch's."""
    k, v = (Uncovered.apply(x, int(at.cu_k[0]), int(at.cu_k[-1])) for x in (k, v))
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    outs, sums = [], []
    queries, keys = (zip(cu.tolist(), cu.tolist()[1:]) for cu in (at.cu_q, at.cu_k))
    for (begin, end), (first, last) in zip(queries, keys, strict=True):
        scores = torch.einsum("qhd,khd->hqk", q[begin:end], k[first:last]) * scale
        if at.causal:
            seen = torch.ones(scores.shape[1:], dtype=torch.bool).tril(scores.shape[2] - scores.shape[1])
            scores = scores.masked_fill(~seen, float("-inf"))
        outs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[first:last]))
        sums.append(scores.logsumexp(-1).detach().float())
    return torch.cat(outs), torch.cat(sums, 1)


def visible(shared: int) -> Tensor:
    """bool (T, T), written out token by token: who sees whom."""
    owner: list[tuple[int | None, int | None]] = [(None, None)] * shared
    owner += [(row, None) for row, length in enumerate(LENGTHS) for _ in range(length)]
    owner += [(row, at) for row, sizes in enumerate(BRANCHES) for at, size in enumerate(sizes) for _ in range(size)]
    mask = torch.zeros(len(owner), len(owner), dtype=torch.bool)
    for query, (row, branch) in enumerate(owner):
        for key, (other_row, other_branch) in enumerate(owner[: query + 1]):
            mask[query, key] = other_row is None or (row == other_row and other_branch in (None, branch))
    return mask


def gradients(kv_heads: int, shared: int, device: str, dtype: torch.dtype, kernel: Kernel | None) -> Any:
    """Gradients to q, k and v of the packed attention, and of one masked softmax in float64."""
    mask = visible(shared)
    generator = torch.Generator().manual_seed(0)
    sizes = [(1, heads, len(mask), 16) for heads in (4, kv_heads, kv_heads)]
    values = [torch.randn(size, generator=generator).to(dtype) for size in sizes]
    up = torch.randn(1, len(mask), 4, 16, generator=generator)

    ours = [value.to(device).requires_grad_() for value in values]
    layer: Any = SimpleNamespace(is_causal=True, tuyi_kernel=kernel)
    layout = Layout.of(LENGTHS, torch.device(device), Branches(BRANCHES), shared)
    out, _ = packed_attention(layer, *ours, scaling=SCALE, layout=layout)
    found = torch.autograd.grad((out * up.to(device)).sum(), ours)

    exact = [value.double().requires_grad_() for value in values]
    q, k, v = (exact[0], *(x.repeat_interleave(4 // kv_heads, 1) for x in exact[1:]))
    scores = (q @ k.transpose(2, 3) * SCALE).masked_fill(~mask, float("-inf"))
    expected = torch.autograd.grad(((scores.softmax(-1) @ v).transpose(1, 2) * up).sum(), exact)
    return found, expected


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("shared", [0, 4])
def test_the_merge_has_the_gradient_of_one_softmax(monkeypatch: pytest.MonkeyPatch, kv_heads: int, shared: int):
    monkeypatch.setattr(attention, "varlen_available", lambda *_: True)
    kernel = Kernel("dense", "this file", (), (0, 0), dense_kernel)
    found, expected = gradients(kv_heads, shared, "cpu", torch.float32, kernel)
    for ours, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), exact, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shared", [0, 4])
def test_dense_branches_have_it_too(shared: int):
    found, expected = gradients(2, shared, "cpu", torch.float32, None)
    for ours, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), exact, atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("shared", [0, 4])
def test_kernels_have_it_too(kv_heads: int, shared: int):
    found, expected = gradients(kv_heads, shared, "cuda", torch.bfloat16, None)
    for ours, exact in zip(found, expected, strict=True):
        difference = (ours.cpu().double() - exact).norm()
        assert difference < 0.02 * exact.norm()
