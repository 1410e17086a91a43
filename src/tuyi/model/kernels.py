"""The variable-length attention kernels of this machine, and which of them is the fastest here."""

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

from tuyi.errors import first_line
from tuyi.model.cudnn import cudnn_attention
from tuyi.model.segments import Segments

__all__ = ["KERNELS", "Kernel", "Pick", "attend", "fastest", "varlen_available"]


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


@dataclass(frozen=True, slots=True)
class Pick:
    """The kernel chosen for one tower.

    Args:
        kernel: The fastest.
        rates: Measured TFLOP/s of each that ran.
        refused: Why others that are installed did not run, or were wrong.
    """

    kernel: Kernel
    rates: dict[str, float]
    refused: dict[str, str]

    def __str__(self) -> str:
        shown = ", ".join(f"{name} {rate:.0f}" for name, rate in sorted(self.rates.items(), key=lambda item: -item[1]))
        failed = "".join(f"; {name} cannot be used: {why}" for name, why in self.refused.items())
        return f"{self.kernel.name} (TFLOP/s here: {shown}{failed})"


@cache
def fastest(
    device: torch.device, heads: int, kv_heads: int, head_size: int, causal: bool, gradient: bool = False
) -> Pick:
    """The fastest kernel for a tower's shape, by trying each on rows of this shape; about half a second.

    Args:
        device: The GPU.
        heads, kv_heads, head_size: Of the tower's attention.
        causal: Whether queries see only what is before them.
        gradient: Whether it has to have gradients; they are then part of the trial.
    """
    lengths = [4096, 3072, 4096, 4096] if not causal else [1536, 1024, 1536, 1536, 2048]
    qkv = tuple(
        torch.randn(sum(lengths), count, head_size, device=device, dtype=torch.bfloat16, requires_grad=gradient)
        for count in (heads, kv_heads, kv_heads)
    )
    cu = torch.tensor([0, *lengths], device=device).cumsum(0).to(torch.int32)
    at = Segments(cu, cu, max(lengths), max(lengths), causal)
    # the backward pass has five products where the forward pass has two
    flops = sum(4 * n * n * heads * head_size for n in lengths) / (2 if causal else 1) * (3.5 if gradient else 1)
    expected = _tried(KERNELS["fa2"], qkv, at)
    rates, refused = {}, {}
    for kernel in KERNELS.values():
        if not kernel.present(device) or (gradient and not kernel.has_gradient()):
            continue
        try:
            seconds, wrong = _timed(kernel, qkv, at, expected)
        except Exception as error:  # noqa: BLE001 - other people's code on trial: whatever it raises, it is said and not used
            refused[kernel.name] = first_line(error)
            continue
        if wrong:
            refused[kernel.name] = "its results differ from those of fa2"
        else:
            rates[kernel.name] = flops / seconds / 1e12
    best = max(rates, key=lambda name: rates[name])
    return Pick(KERNELS[best], rates, refused)


def _tried(kernel: Kernel, qkv: tuple[Tensor, ...], at: Segments) -> list[Tensor]:
    """The output, and where they are asked for the gradients of its sum of squares."""
    q, k, v = qkv
    out, _ = kernel.run(q, k, v, at, q.shape[-1] ** -0.5)
    if not q.requires_grad:
        return [out]
    return [out.detach(), *torch.autograd.grad(out, qkv, 2 * out.detach())]


def _timed(kernel: Kernel, qkv: tuple[Tensor, ...], at: Segments, expected: list[Tensor]) -> tuple[float, bool]:
    (out, *gradients), (right, *expected_gradients) = _tried(kernel, qkv, at), expected
    wrong = not bool((out - right).abs().max() < 0.05)
    for one, other in zip(gradients, expected_gradients):
        wrong |= not bool((one - other).abs().max() < 0.05 * other.abs().max())
    times = []
    for _ in range(5):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        _tried(kernel, qkv, at)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return min(times), wrong


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
