"""Log-probabilities of targets, slice by slice of the vocabulary: as all at once, and never all at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tuyi.model import log_probs
from tuyi.model.log_probs import target_log_probs

VOCABULARY, POSITIONS, WIDTH = 501, 40, 16


def inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, head, readers of targets (some positions none, some several), targets, a gradient to pass back."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(POSITIONS, WIDTH, dtype=dtype), torch.randn(VOCABULARY, WIDTH, dtype=dtype)
    read = torch.randint(0, POSITIONS - 5, (70,)).sort().values
    return hidden, weight, read, torch.randint(0, VOCABULARY, (70,)), torch.randn(70)


def at_once(hidden: Tensor, weight: Tensor, read: Tensor, targets: Tensor) -> Tensor:
    return (hidden @ weight.T).float().log_softmax(1)[read, targets]


@pytest.mark.parametrize("most", [1 << 27, 5000, 1], ids=["one slice", "some slices", "a slice a token"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_are_those_of_all_logits_at_once(monkeypatch: Any, most: int, dtype: torch.dtype):
    monkeypatch.setattr(log_probs, "MOST_LOGITS", most)
    hidden, weight, read, targets, given = inputs(dtype)
    results = []
    for compute in (at_once, target_log_probs):
        leaves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
        found = compute(*leaves, read, targets)
        assert found.dtype == torch.float32
        results.append([found.detach(), *torch.autograd.grad(found, leaves, given)])
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for expected, got in zip(*results, strict=True):
        assert got.dtype == expected.dtype
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("learns", ["hidden", "weight"])
def test_only_what_learns_gets_a_gradient(learns: str):
    hidden, weight, read, targets, _ = inputs(torch.float32)
    leaf = {"hidden": hidden, "weight": weight}[learns].requires_grad_()
    target_log_probs(hidden, weight, read, targets).sum().backward()
    assert leaf.grad is not None
    assert [one.grad is None for one in (hidden, weight)].count(True) == 1


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor made inside it."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.most = max(self.most, out.numel())
        return out


def test_logits_of_the_whole_vocabulary_are_never_held(monkeypatch: Any):
    monkeypatch.setattr(log_probs, "MOST_LOGITS", 2 * VOCABULARY * WIDTH)
    hidden = torch.randn(400, WIDTH, requires_grad=True)
    weight = torch.randn(VOCABULARY, WIDTH, requires_grad=True)
    targets = torch.arange(400)
    with Largest() as whole:
        at_once(hidden, weight, targets, targets).sum().backward()
    assert whole.most == 400 * VOCABULARY
    with Largest() as sliced:
        target_log_probs(hidden, weight, targets, targets).sum().backward()
    assert sliced.most <= 2 * VOCABULARY * WIDTH
