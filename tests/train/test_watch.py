"""What stops a run, and what does not."""

from __future__ import annotations

from math import inf, nan

import pytest

from tuyi.train.watch import what_is_wrong

CALM = [2.0 - 0.05 * step for step in range(30)]


@pytest.mark.parametrize(
    ("loss", "before", "spike", "said"),
    [
        (nan, [], 3.0, "the loss became nan"),
        (inf, CALM, None, "the loss became inf"),
        (6.1, CALM, 3.0, "the loss rose to 6.100, more than 3 times the 2.000 that the run began with"),
        (5.9, CALM, 3.0, None),
        (6.1, CALM, None, None),
        (90.0, CALM[:19], 3.0, None),
        (1.9, [*CALM[:20], *[1e-4] * 500], 3.0, None),
    ],
)
def test_a_loss_is_wrong_or_not(loss, before, spike, said):
    assert what_is_wrong(loss, before, spike) == said
