"""AdamW on 16-bit weights does what torch's does on 32-bit ones."""

from __future__ import annotations

import pytest
import torch

from tuyi.train.adamw import AdamW16

OPTIONS = {"lr": 3e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def whole(optimizer: AdamW16, weight: torch.Tensor) -> torch.Tensor:
    """The 32-bit weight."""
    lower = optimizer.state[weight]["lower"].to(torch.int32)
    return ((weight.detach().view(torch.int16).to(torch.int32) << 16) + lower).view(torch.float32)


def gradients(steps: int, device: str) -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.randn(37, 53, device=device) * 10 ** torch.randn(1, device=device) for _ in range(steps)]


@pytest.mark.parametrize("device", DEVICES)
def test_exact_updates_are_those_of_torch_in_32_bits(device):
    torch.manual_seed(0)
    start = torch.randn(37, 53, device=device).bfloat16()
    ours, theirs = start.clone().requires_grad_(), start.float().requires_grad_()
    ours.grad_dtype = torch.float32
    mine, reference = AdamW16([ours], **OPTIONS), torch.optim.AdamW([theirs], **OPTIONS)
    for grad in gradients(30, device):
        ours.grad, theirs.grad = grad.clone(), grad.clone()
        mine.step()
        reference.step()
    torch.testing.assert_close(whole(mine, ours), theirs.detach(), rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(ours.detach(), theirs.detach().bfloat16(), rtol=0.008, atol=0)


@pytest.mark.parametrize("device", DEVICES)
def test_a_scale_is_a_factor_on_the_gradients(device):
    start = torch.randn(8, 8, device=device).bfloat16()
    scaled, plain = start.clone().requires_grad_(), start.clone().requires_grad_()
    one, other = AdamW16([scaled], **OPTIONS), AdamW16([plain], **OPTIONS)
    grad = torch.randn(8, 8, device=device).bfloat16()
    scaled.grad, plain.grad = grad.clone(), grad * 0.25
    one.scale = torch.tensor(0.25, device=device)
    one.step()
    other.step()
    assert torch.equal(scaled, plain)
    assert one.scale is None, "a scale is for one step"


@pytest.mark.parametrize("device", DEVICES)
def test_updates_too_small_for_16_bits_are_not_lost(device):
    """One weight at 1.0 moves by 1e-4 a step, a 78th of what bfloat16 can tell apart there."""
    options = {"lr": 1e-4, "betas": (0.0, 0.0), "eps": 0.0}
    exact, chance = (torch.ones(4096, device=device).bfloat16().requires_grad_() for _ in range(2))
    one, other = AdamW16([exact], **options), AdamW16([chance], exact=False, seed=3, **options)
    for _ in range(100):
        exact.grad = chance.grad = torch.ones_like(exact)
        one.step()
        other.step()
    assert torch.allclose(whole(one, exact), torch.full((4096,), 0.99, device=device), atol=1e-5)
    assert torch.equal(exact, torch.full_like(exact, 0.99))
    assert abs(float(chance.float().mean()) - 0.99) < 5e-4
    assert "lower" not in other.state[chance]


def test_going_on_from_a_saved_state_changes_nothing(tmp_path):
    start = torch.randn(16, 16).bfloat16()

    def run(stop: int | None) -> torch.Tensor:
        weight = start.clone().requires_grad_()
        weight.grad_dtype = torch.float32
        optimizer = AdamW16([weight], **OPTIONS)
        for step, grad in enumerate(gradients(6, "cpu")):
            if step == stop:
                torch.save((optimizer.state_dict(), weight.detach()), tmp_path / "state")
                saved, values = torch.load(tmp_path / "state")
                weight = values.clone().requires_grad_()
                weight.grad_dtype = torch.float32
                optimizer = AdamW16([weight], **{**OPTIONS, "lr": 1.0})
                optimizer.load_state_dict(saved)
            weight.grad = grad[:16, :16].clone()
            optimizer.step()
        assert optimizer.state[weight]["mean"].dtype == torch.float32
        return whole(optimizer, weight)

    assert torch.equal(run(None), run(3))


def test_rounding_by_chance_follows_from_the_seed():
    def run(seed: int) -> torch.Tensor:
        weight = torch.ones(64).bfloat16().requires_grad_()
        optimizer = AdamW16([weight], lr=1e-3, exact=False, seed=seed)
        for _ in range(5):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        return weight.detach()

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


def test_weights_of_other_types_are_refused():
    with pytest.raises(AssertionError, match=r"weights are bfloat16, found \{torch.float32\}"):
        AdamW16([torch.ones(3, requires_grad=True)], lr=1.0)
