from __future__ import annotations

import random

import pytest
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize as reference

from tuyi.vision.resize import smart_resize


@pytest.mark.parametrize("factor", [28, 32])
def test_equals_transformers_up_to_200_to_1(factor: int) -> None:
    rng = random.Random(factor)
    compared = 0
    while compared < 5000:
        height, width = (int(2 ** rng.uniform(0, 13)) for _ in range(2))
        if max(height, width) > 200 * min(height, width):
            continue
        low = rng.choice([1, 784, 3136, 100_352])
        high = low + rng.choice([0, 784, 602_112, 1_003_520, 12_845_056])
        assert smart_resize(height, width, factor, low, high) == reference(height, width, factor, low, high)
        compared += 1


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (1, 2000, (28, 1988)),
        (2000, 1, (1988, 28)),
        (1, 201, (28, 196)),
        (10, 4000, (28, 4004)),
        (1, 1_000_000, (28, 35_840)),
        (20, 100_000, (28, 35_840)),
    ],
)
def test_longer_pictures_keep_a_row_of_patches(height: int, width: int, expected: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="aspect ratio"):
        reference(height, width, 28, 3136, 1_003_520)
    assert smart_resize(height, width, 28, 3136, 1_003_520) == expected


def test_longer_pictures_stay_in_the_budget() -> None:
    rng = random.Random(0)
    for _ in range(2000):
        short = rng.randint(1, 60)
        long = short * rng.randint(201, 4000)
        height, width = rng.sample([short, long], 2)
        tall, wide = smart_resize(height, width, 28, 3136, 1_003_520)
        assert tall % 28 == wide % 28 == 0
        assert 3136 <= tall * wide <= 1_003_520
