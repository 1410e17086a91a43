"""Which attention kernel is the fastest on this machine, and right."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from tuyi.errors import first_line
from tuyi.model.kernels import KERNELS, Kernel
from tuyi.model.segments import Segments

__all__ = ["Pick", "fastest"]


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
    shape = (heads, kv_heads, head_size)
    lengths = [1536, 1024, 1536, 1536, 2048] if causal else [4096, 3072, 4096, 4096]
    trials = [_Trial.of(lengths, lengths, shape, device, causal, gradient)]
    if causal:  # rows behind a prefix, and the few tokens of each that ask in the last layer
        trials.append(_Trial.of([1, 24, 300], [1536, 700, 900], shape, device, causal, gradient))
    # the backward pass has five products where the forward pass has two
    flops = sum(4 * n * n * heads * head_size for n in lengths) / (2 if causal else 1) * (3.5 if gradient else 1)
    rates, refused = {}, {}
    for kernel in KERNELS.values():
        if not kernel.present(device) or (gradient and not kernel.has_gradient()):
            continue
        try:
            if any(trial.differs(kernel) for trial in trials):
                refused[kernel.name] = "its results differ from those of fa2"
                continue
            rates[kernel.name] = flops / trials[0].seconds(kernel) / 1e12
        except Exception as error:  # noqa: BLE001 - other people's code on trial: whatever it raises, it is said and not used
            refused[kernel.name] = first_line(error)
    best = max(rates, key=lambda name: rates[name])
    return Pick(KERNELS[best], rates, refused)


@dataclass(frozen=True, slots=True)
class _Trial:
    """Attention that kernels are tried on.

    Args:
        qkv: Queries, keys and values.
        at: Their segments.
        expected: What fa2 makes of them.
    """

    qkv: tuple[Tensor, ...]
    at: Segments
    expected: list[Tensor]

    @classmethod
    def of(
        cls, queries: list[int], keys: list[int], shape: tuple[int, int, int], device: torch.device, causal: bool,
        gradient: bool,
    ) -> _Trial:  # fmt: skip
        heads, kv_heads, size = shape
        qkv = tuple(
            torch.randn(sum(lengths), count, size, device=device, dtype=torch.bfloat16, requires_grad=gradient)
            for lengths, count in ((queries, heads), (keys, kv_heads), (keys, kv_heads))
        )
        cu_q, cu_k = (torch.tensor([0, *n], device=device).cumsum(0).to(torch.int32) for n in (queries, keys))
        at = Segments(cu_q, cu_k, max(queries), max(keys), causal)
        return cls(qkv, at, _tried(KERNELS["fa2"], qkv, at))

    def differs(self, kernel: Kernel) -> bool:
        """Whether the kernel makes something else of it."""
        (out, *gradients), (right, *expected) = _tried(kernel, self.qkv, self.at), self.expected
        wrong = not bool((out - right).abs().max() < 0.05)
        for one, other in zip(gradients, expected):
            wrong |= not bool((one - other).abs().max() < 0.05 * other.abs().max())
        return wrong

    def seconds(self, kernel: Kernel) -> float:
        """The least time that the kernel takes."""
        times: list[float] = []
        for _ in range(5):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            _tried(kernel, self.qkv, self.at)
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 1e3)
        return min(times)


def _tried(kernel: Kernel, qkv: tuple[Tensor, ...], at: Segments) -> list[Tensor]:
    """The output, and where they are asked for the gradients of its sum of squares."""
    q, k, v = qkv
    out, _ = kernel.run(q, k, v, at, q.shape[-1] ** -0.5)
    if not q.requires_grad:
        return [out]
    return [out.detach(), *torch.autograd.grad(out, qkv, 2 * out.detach())]
