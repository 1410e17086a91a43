"""cuDNN's fused attention over packed segments, through NVIDIA's own Python package.

torch's own call into cuDNN plans anew on every call for packed rows (50 ms, torch 2.11); here a plan is kept for each
shape, with the longest segment rounded up so that there are few shapes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from tuyi.model.segments import Segments

__all__ = ["cudnn_attention"]

_ROUND = 1024  # the longest segment is rounded up to this; only the number of plans depends on it


@dataclass(frozen=True, slots=True)
class _Shape:
    """What a plan depends on: segments, query and key heads, longest segments, head size, token strides."""

    segments: int
    heads: int
    kv_heads: int
    max_q: int
    max_k: int
    size: int
    strides: tuple[int, int, int]
    causal: bool
    scale: float
    device: torch.device


@dataclass(frozen=True, slots=True)
class _Plan:
    graph: Any
    slots: dict[str, Any]
    workspace: int


@lru_cache(maxsize=8)
def _handle(device: torch.device) -> Any:
    import cudnn

    with torch.cuda.device(device):
        return cudnn.create_handle()


@lru_cache(maxsize=512)
def _plan(shape: _Shape) -> _Plan:
    import cudnn

    kind, number = cudnn.data_type, shape.segments
    graph = cudnn.pygraph(
        handle=_handle(shape.device),
        io_data_type=kind.BFLOAT16,
        intermediate_data_type=kind.FLOAT,
        compute_data_type=kind.FLOAT,
    )

    def rows(name: str, heads: int, longest: int, stride: int) -> Any:
        dim, strides = [number, heads, longest, shape.size], [stride * longest, shape.size, stride, 1]
        return graph.tensor(name=name, dim=dim, stride=strides, data_type=kind.BFLOAT16)

    def numbers(name: str, count: int, data_type: Any) -> Any:
        return graph.tensor(name=name, dim=[count, 1, 1, 1], stride=[1, 1, 1, 1], data_type=data_type)

    slots = {
        "q": rows("q", shape.heads, shape.max_q, shape.strides[0]),
        "k": rows("k", shape.kv_heads, shape.max_k, shape.strides[1]),
        "v": rows("v", shape.kv_heads, shape.max_k, shape.strides[2]),
    }
    for name in ("q", "k", "v", "out", "stats"):
        slots[f"at_{name}"] = numbers(f"at_{name}", number + 1, kind.INT64)
    for name in ("q", "k", "v"):
        slots[name].set_ragged_offset(slots[f"at_{name}"])
    for name in ("len_q", "len_k"):
        slots[name] = numbers(name, number, kind.INT32)
    causal: dict[str, Any] = {}
    if shape.causal:  # a query's last key is counted from the end of both, as the other kernels do
        causal = {"diagonal_alignment": cudnn.diagonal_alignment.BOTTOM_RIGHT, "diagonal_band_right_bound": 0}
    out, stats = graph.sdpa(
        name="attention", q=slots["q"], k=slots["k"], v=slots["v"], generate_stats=True, attn_scale=shape.scale,
        use_padding_mask=True, seq_len_q=slots["len_q"], seq_len_kv=slots["len_k"], **causal,
    )  # fmt: skip
    width = shape.heads * shape.size
    out.set_output(True).set_dim([number, shape.heads, shape.max_q, shape.size])
    out.set_stride([width * shape.max_q, shape.size, width, 1]).set_ragged_offset(slots["at_out"])
    stats.set_output(True).set_data_type(kind.FLOAT).set_dim([number, shape.heads, shape.max_q, 1])
    stats.set_stride([shape.heads * shape.max_q, 1, shape.heads, 1]).set_ragged_offset(slots["at_stats"])
    graph.build([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    return _Plan(graph, {**slots, "out": out, "stats": stats}, graph.get_workspace_size())


def cudnn_attention(q: Tensor, k: Tensor, v: Tensor, at: Segments, scale: float) -> tuple[Tensor, Tensor]:
    """As :class:`~tuyi.model.kernels.Kernel` says of ``run``; bfloat16, head sizes that 8 divides, up to 128."""
    import cudnn

    tokens, heads, size = q.shape
    strides = (q.stride(0), k.stride(0), v.stride(0))
    longest = (-(-at.max_q // _ROUND) * _ROUND, -(-at.max_k // _ROUND) * _ROUND)
    plan = _plan(_Shape(len(at.cu_q) - 1, heads, k.shape[1], *longest, size, strides, at.causal, scale, q.device))
    out = torch.empty(tokens, heads, size, device=q.device, dtype=q.dtype)
    stats = torch.empty(tokens, heads, device=q.device, dtype=torch.float32)
    cu_q, cu_k = at.cu_q.long(), at.cu_k.long()
    values = {
        "q": q, "k": k, "v": v, "out": out, "stats": stats,
        "at_q": cu_q * strides[0], "at_k": cu_k * strides[1], "at_v": cu_k * strides[2],
        "at_out": cu_q * (heads * size), "at_stats": cu_q * heads,
        "len_q": at.cu_q.diff(), "len_k": at.cu_k.diff(),
    }  # fmt: skip
    workspace = torch.empty(max(1, plan.workspace), device=q.device, dtype=torch.uint8)
    handle = _handle(q.device)
    cudnn.set_stream(handle=handle, stream=torch.cuda.current_stream(q.device).cuda_stream)
    plan.graph.execute({plan.slots[name]: value for name, value in values.items()}, workspace, handle=handle)
    return out, stats.transpose(0, 1)
