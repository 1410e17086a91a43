"""The variable-length attention kernels that there are, each in one form."""

from __future__ import annotations

import importlib.util
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tuyi.model.cudnn import cudnn_attention
from tuyi.model.segments import Segments

__all__ = ["KERNELS", "Kernel", "attend", "varlen_available"]


Run = Callable[[Tensor, Tensor, Tensor, Segments, float], "tuple[Tensor, Tensor]"]


def varlen_available(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> bool:
    """Whether a kernel runs here: on CUDA (Ampere or newer), in 16-bit types."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return False
    return _is_ampere(device)


@cache
def _is_ampere(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (8, 0)


def _fa2(q: Tensor, k: Tensor, v: Tensor, at: Segments, scale: float) -> tuple[Tensor, Tensor]:
    from torch.nn.attention.varlen import AuxRequest, varlen_attn

    extra: dict[str, Any] = {}
    if q.shape[1] != k.shape[1]:
        if _groups_heads():
            extra["enable_gqa"] = True
        elif k.requires_grad or v.requires_grad:  # torch 2.11's kernel groups heads, its gradient formula does not know
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    window = (-1, 0) if at.causal else (-1, -1)
    out, lse = varlen_attn(
        q, k, v, at.cu_q, at.cu_k, at.max_q, at.max_k,
        scale=scale, window_size=window, return_aux=AuxRequest(lse=True), **extra,
    )  # fmt: skip
    return out, lse


@cache
def _groups_heads() -> bool:
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in inspect.signature(varlen_attn).parameters


def _fa3(q: Tensor, k: Tensor, v: Tensor, at: Segments, scale: float) -> tuple[Tensor, Tensor]:
    if importlib.util.find_spec("flash_attn_interface"):
        from flash_attn_interface import flash_attn_varlen_func

        out, lse = flash_attn_varlen_func(
            q, k, v, at.cu_q, at.cu_k, at.max_q, at.max_k,
            softmax_scale=scale, causal=at.causal, return_attn_probs=True,
        )  # fmt: skip
        return out, lse
    from vllm.vllm_flash_attn import flash_attn_varlen_func as of_vllm

    out, lse = of_vllm(
        q, k, v, max_seqlen_q=at.max_q, cu_seqlens_q=at.cu_q, max_seqlen_k=at.max_k, cu_seqlens_k=at.cu_k,
        softmax_scale=scale, causal=at.causal, return_softmax_lse=True, fa_version=3,
    )  # fmt: skip
    return out, lse


def _fa4(q: Tensor, k: Tensor, v: Tensor, at: Segments, scale: float) -> tuple[Tensor, Tensor]:
    from flash_attn.cute import flash_attn_varlen_func

    out, lse = flash_attn_varlen_func(
        q, k, v, cu_seqlens_q=at.cu_q, cu_seqlens_k=at.cu_k, max_seqlen_q=at.max_q, max_seqlen_k=at.max_k,
        softmax_scale=scale, causal=at.causal, return_lse=True,
    )  # fmt: skip
    return out, lse


@dataclass(frozen=True, slots=True)
class Kernel:
    """One implementation of attention over packed segments.

    Args:
        name: What it is called in messages.
        comes_with: The package that brings it.
        modules: Any one of these must be importable.
        capability: Least compute capability of the GPU.
        run: q (T_q, H, D), k and v (T_k, H or fewer, D), segments, scale → out (T_q, H, D), log-sum-exp of the scores
            (H, T_q), float32.
        gradient: A module whose presence gives it gradients with respect to q, k and v; None where nothing does.
    """

    name: str
    comes_with: str
    modules: tuple[str, ...]
    capability: tuple[int, int]
    run: Run
    gradient: str | None = None

    def present(self, device: torch.device) -> bool:
        """Whether it can be tried on this device."""
        if device.type != "cuda" or torch.cuda.get_device_capability(device) < self.capability:
            return False
        return any(_importable(name) for name in self.modules)

    def has_gradient(self) -> bool:
        """Whether a model can learn through it."""
        return self.gradient is not None and _importable(self.gradient)


@cache
def _importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # a parent package is missing
        return False


KERNELS: dict[str, Kernel] = {
    kernel.name: kernel
    for kernel in (
        Kernel("fa2", "torch", ("torch.nn.attention.varlen",), (8, 0), _fa2, "torch"),
        Kernel("cudnn", "nvidia-cudnn-frontend", ("cudnn",), (9, 0), cudnn_attention),
        Kernel(
            "fa3",
            "flash-attn-3 or vllm",
            ("flash_attn_interface", "vllm.vllm_flash_attn"),
            (9, 0),
            _fa3,
            "flash_attn_interface",
        ),
        Kernel("fa4", "flash-attn-4", ("flash_attn.cute",), (9, 0), _fa4, "flash_attn.cute"),
    )
}


def attend(
    q: Tensor, k: Tensor, v: Tensor, at: Segments, scale: float | None, kernel: Kernel | None = None
) -> tuple[Tensor, Tensor]:
    """Attention over segments with a kernel; fa2 where none is named, as every GPU here has it.

    Args:
        q: (T_q, H, D); k and v: (T_k, H or fewer, D).
        at: The segments.
        scale: Factor on the scores; the usual one where None.
        kernel: Which one.

    Returns:
        (T_q, H, D), and the log-sum-exp of the scores, float32, shape (H, T_q).
    """
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    return (kernel or KERNELS["fa2"]).run(q, k, v, at, scale)
