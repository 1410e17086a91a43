"""The packed attention against one big masked softmax."""

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

LENGTHS = {
    "one": [7],
    "equal": [5, 5, 5],
    "mixed": [3, 8, 1, 3, 8],
    "nearly equal": [8, 7, 8],
    "sorted": [5, 6, 6, 7],
}
BRANCHES = {
    "one": [(2, 3, 1)],
    "equal": [(1, 1), (4, 2), (3,)],
    "mixed": [(1, 0, 2), (3, 3), (0, 5), (2,), (1, 1, 1)],
    "nearly equal": [(2, 1), (3,), (1,)],
    "sorted": [(1,), (2, 2), (3,), (1, 4)],
}


TAILS = {"one": [2], "equal": [1, 1, 1], "mixed": [1, 8, 1, 2, 3], "nearly equal": [3, 1, 2], "sorted": [1, 2, 1, 7]}


def heads(tokens: int, count: int, size: int, seed: int, **options: Any) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, count, tokens, size, generator=generator).to(**options)


def naive(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(groups, 1).double() for x in (k, v))
    scores = (q.double() @ k.transpose(2, 3) * scale).masked_fill(~mask, float("-inf"))
    return (scores.softmax(-1) @ v).transpose(1, 2)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("case", LENGTHS)
@pytest.mark.parametrize("kind", ["text", "vision", "branches", "prefix", "prefix and branches"])
def test_dense_attention_is_the_masked_one(case: str, kind: str, kv_heads: int):
    check(case, kind, kv_heads, torch.device("cpu"), torch.float32, 1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("case", LENGTHS)
@pytest.mark.parametrize("kind", ["text", "vision", "branches", "prefix", "prefix and branches"])
def test_the_kernel_is_the_masked_one(case: str, kind: str, kv_heads: int):
    check(case, kind, kv_heads, torch.device("cuda"), torch.bfloat16, 2e-2)


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("case", LENGTHS)
@pytest.mark.parametrize("kind", ["text", "branches", "prefix", "prefix and branches"])
def test_only_what_is_read_asks(monkeypatch: pytest.MonkeyPatch, case: str, kind: str, kv_heads: int):
    check(case, kind, kv_heads, torch.device("cpu"), torch.float32, 1e-5, TAILS[case])
    monkeypatch.setattr(layouts, "varlen_available", lambda *_: True)
    kernel = Kernel("dense", "a test", (), (0, 0), dense_kernel)
    check(case, kind, kv_heads, torch.device("cpu"), torch.float32, 1e-5, TAILS[case], kernel)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("case", LENGTHS)
@pytest.mark.parametrize("kind", ["text", "branches", "prefix", "prefix and branches"])
def test_only_what_is_read_asks_kernels(case: str, kind: str, kv_heads: int):
    check(case, kind, kv_heads, torch.device("cuda"), torch.bfloat16, 2e-2, TAILS[case])


def check(
    case: str, kind: str, kv_heads: int, device: torch.device, dtype: torch.dtype, tolerance: float,
    tails: list[int] | None = None, kernel: Kernel | None = None,
) -> None:  # fmt: skip
    lengths = LENGTHS[case]
    branches = BRANCHES[case] if "branches" in kind else None
    shared = 6 if "prefix" in kind else 0
    tokens = shared + sum(lengths) + sum(map(sum, branches or ()))
    options: dict[str, Any] = {"device": device, "dtype": dtype}
    q, k, v = (heads(tokens, n, 16, seed, **options) for seed, n in enumerate((4, kv_heads, kv_heads)))
    causal = kind != "vision"
    layer: Any = SimpleNamespace(is_causal=causal, tuyi_kernel=kernel)
    read = torch.arange(tokens)
    if kind == "vision":
        cu = torch.tensor([0, *lengths], dtype=torch.int32, device=device).cumsum(0, dtype=torch.int32)
        out, weights = packed_attention(
            layer, q, k, v, scaling=0.3, cu_seq_lens_q=cu, max_length_q=max(lengths), cu_seq_lens_k=cu, dropout=0.0
        )
    else:
        keep = None if tails is None else kept_of(lengths, shared, tokens, tails)
        layout = Layout.of(lengths, device, Branches(tuple(branches)) if branches else None, shared, keep)
        read = layout.asking(read[None].to(device))[0].cpu()
        if keep is not None:
            assert layout.leaving(read[None].to(device))[0].tolist() == keep.tolist()
        out, weights = packed_attention(layer, q[:, :, read.to(device)], k, v, scaling=0.3, layout=layout)
    assert weights is None
    if tails:
        assert len(read) == sum(tails) + sum(map(sum, branches or ()))
    assert out.shape == (1, len(read), 4, 16)
    expected = naive(q.cpu(), k.cpu(), v.cpu(), visible(lengths, causal, branches, shared), 0.3)[:, read]
    torch.testing.assert_close(out.double().cpu(), expected, atol=tolerance, rtol=0)


def test_the_usual_scale_is_taken_where_none_is_given():
    q, k, v = (heads(6, 2, 16, seed) for seed in range(3))
    layout = Layout.of([6], torch.device("cpu"))
    out, _ = packed_attention(SimpleNamespace(is_causal=True), q, k, v, layout=layout)  # type: ignore[arg-type]
    torch.testing.assert_close(out.double(), naive(q, k, v, visible([6], True), 0.25), atol=1e-6, rtol=0)
