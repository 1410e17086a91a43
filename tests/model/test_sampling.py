"""Draws against the probabilities that they are made from."""

from __future__ import annotations

import pytest
import torch

from tuyi.model.sampling import Sampler, Sampling, ranked

CPU = torch.device("cpu")
LOGITS = torch.tensor([2.0, 0.5, 1.5, -1.0, -30.0])


def drawn(sampling: Sampling, count: int = 4000) -> torch.Tensor:
    """How often each token comes first."""
    sampler = Sampler(sampling, CPU)
    first = [int(sampler.scores(LOGITS).argmax()) for _ in range(count)]
    return torch.bincount(torch.tensor(first), minlength=5) / count


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_come_as_often_as_they_are_likely(temperature: float):
    expected = (LOGITS / temperature).softmax(0)
    torch.testing.assert_close(drawn(Sampling(temperature, seed=3)), expected, atol=0.03, rtol=0)


@pytest.mark.parametrize(("top_p", "inside"), [(0.5, [0]), (0.6, [0, 2]), (0.9, [0, 2, 1]), (0.01, [0])])
def test_only_the_likeliest_are_drawn(top_p: float, inside: list[int]):
    """As transformers' TopPLogitsWarper keeps them."""
    from transformers import TopPLogitsWarper

    kept = TopPLogitsWarper(top_p)(torch.zeros(1, 1, dtype=torch.long), LOGITS[None])[0]
    assert sorted(inside) == kept.isfinite().nonzero()[:, 0].tolist()
    torch.testing.assert_close(drawn(Sampling(top_p=top_p)), kept.softmax(0), atol=0.03, rtol=0)
    order = Sampler(Sampling(top_p=top_p), CPU).scores(LOGITS).argsort(descending=True).tolist()
    assert set(order[: len(inside)]) == set(inside), "the others only after all of these"


def test_equal_seeds_draw_equal_and_rows_go_by_themselves():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    one, other = (ranked(logits, [None, Sampler(Sampling(seed=7), CPU), None]) for _ in range(2))
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(one[[0, 2]], logits[[0, 2]])
    assert not torch.equal(one[1], logits[1])
    assert ranked(logits, [None] * 3) is logits
