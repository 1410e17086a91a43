"""AdamW for 16-bit weights, exact or rounded by chance.

A weight's 16 bits are the upper half of a 32-bit number. Exact: the lower half is kept beside it, so that forward
passes read 2 bytes a weight while every update is made in float32, and nothing smaller than a bfloat16 step is ever
lost. By chance: there is no lower half; an update is rounded up or down with the probability that makes it right on
average (stochastic rounding, arXiv 2010.06192), which saves 2 bytes a weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["AdamW16"]


class AdamW16(Optimizer):
    """AdamW (arXiv 1711.05101) whose running averages are float32 and whose weights are bfloat16.

    Args:
        params: Weights in bfloat16, or groups of them.
        lr, betas, eps, weight_decay: As of :class:`torch.optim.AdamW`.
        exact: Whether the lower half of each weight is kept.
        seed: Of the rounding by chance.

    Attributes:
        scale: Factor on all gradients of the next step, a float32 scalar on their device; None for 1.
    """

    scale: Tensor | None = None

    def __init__(
        self, params: Iterable[Any], *, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0.0, exact: bool = True, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "updates": 0})
        self._exact, self._seed = exact, seed
        for group in self.param_groups:
            wrong = {weight.dtype for weight in group["params"]} - {torch.bfloat16}
            assert not wrong, f"weights are bfloat16, found {wrong}"

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update from the gradients that are there, of any floating type."""
        assert closure is None, "steps are taken from gradients that are there"
        for group in self.param_groups:
            group["updates"] += 1
            for number, weight in enumerate(group["params"]):
                if weight.grad is not None:
                    self._update(weight, group, number)
        self.scale = None

    def _update(self, weight: Tensor, group: dict[str, Any], number: int) -> None:
        state = self.state[weight]
        if not state:
            state["mean"] = torch.zeros_like(weight, dtype=torch.float32)
            state["square"] = torch.zeros_like(weight, dtype=torch.float32)
            if self._exact:
                state["lower"] = torch.zeros_like(weight, dtype=torch.int16)
        assert weight.grad is not None
        beta1, beta2 = group["betas"]
        updates: int = group["updates"]
        numbers = {
            "rate": float(group["lr"]),
            "decay": 1 - float(group["lr"]) * group["weight_decay"],
            "beta1": beta1,
            "beta2": beta2,
            "eps": group["eps"],
            "correction1": 1 - beta1**updates,
            "correction2": (1 - beta2**updates) ** 0.5,
        }
        seed = (self._seed * 1_000_003 + updates * 65_537 + number) % (1 << 31)
        lower = _local(state["lower"]) if self._exact else None
        parts = (_local(weight), _local(weight.grad), self.scale, _local(state["mean"]), _local(state["square"]), lower)
        if parts[0].is_cuda:
            from tuyi.train.adamw_kernel import update

            update(*parts, numbers, seed)
        else:
            _update(*parts, numbers, seed)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As of any optimizer, but for the types: torch would round the running averages to those of the weights."""
        super().load_state_dict(state_dict)
        order = [weight for group in self.param_groups for weight in group["params"]]
        saved = [number for group in state_dict["param_groups"] for number in group["params"]]
        for weight, number in zip(order, saved, strict=True):
            for name, value in state_dict["state"].get(number, {}).items():
                self.state[weight][name] = value.to(weight.device)


def _local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor; any other as it is."""
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local


def _update(
    weight: Tensor, grad: Tensor, scale: Tensor | None, mean: Tensor, square: Tensor, lower: Tensor | None,
    numbers: dict[str, float], seed: int,
) -> None:  # fmt: skip
    """The update in torch's own operations."""
    bits = weight.view(torch.int16).to(torch.int32) << 16
    whole = (bits if lower is None else bits + lower).view(torch.float32)
    grad = grad.float() if scale is None else grad.float() * scale
    mean.lerp_(grad, 1 - numbers["beta1"])
    square.mul_(numbers["beta2"]).addcmul_(grad, grad, value=1 - numbers["beta2"])
    divisor = (square.sqrt() / numbers["correction2"]).add_(numbers["eps"])
    whole = (whole * numbers["decay"]).addcdiv_(mean, divisor, value=-numbers["rate"] / numbers["correction1"])
    bits = whole.view(torch.int32)
    if lower is None:
        chance = torch.Generator(weight.device).manual_seed(seed)
        bits = bits + torch.randint(0, 1 << 16, bits.shape, generator=chance, dtype=torch.int32, device=bits.device)
        upper = bits >> 16
    else:
        upper = (bits + 0x8000) >> 16  # the nearest; the lower half then counts from there, up or down
        lower.copy_(bits - (upper << 16))
    weight.view(torch.int16).copy_(upper)
