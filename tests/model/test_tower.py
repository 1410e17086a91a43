"""What a tower is given ready-made against what transformers computes itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tuyi.data.example import Example
from tuyi.encode.pack import Pack, pack
from tuyi.model.forward import to_device
from tuyi.model.tower import grid_inputs, seen_by

CPU = torch.device("cpu")
GRIDS = {
    "one": [[1, 4, 6]],
    "pictures": [[1, 4, 6], [1, 10, 2], [1, 8, 8], [1, 14, 22], [1, 2, 2]],
    "videos": [[3, 4, 6], [2, 6, 4]],
    "both": [[1, 6, 10], [4, 4, 6], [1, 2, 8]],
}


def patches(twin: Any, grids: torch.Tensor, frames: int) -> torch.Tensor:
    size = 3 * frames * twin.model.spec.patch_size**2
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (int(grids.prod(1).sum()), size), generator=generator).to(torch.uint8)


@pytest.mark.parametrize("case", GRIDS)
@torch.inference_mode()
def test_the_tower_sees_the_same_with_what_is_made_ready(twin: Any, case: str):
    visual, grids = twin.model.hf.model.visual, torch.tensor(GRIDS[case])
    values = patches(twin, grids, 1 if case in ("one", "pictures") else 2)
    expected = visual(values, grid_thw=grids)
    inputs = grid_inputs(twin.model.spec, grids)
    # grids without values: whatever is still taken from them fails
    found = visual(values, grid_thw=grids.to("meta"), **inputs)
    assert found.pooler_output.shape == (len(values) // 4, 128)
    torch.testing.assert_close(found.pooler_output, expected.pooler_output, rtol=0, atol=0)
    deep, expected_deep = (getattr(out, "deepstack_features", None) or [] for out in (found, expected))
    assert len(deep) == len(expected_deep) == (2 if twin.model.spec.family == "qwen3_vl" else 0)
    for one, other in zip(deep, expected_deep, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_wrong_input_would_show(twin: Any):
    """So that the test above is one of these inputs, not of what transformers makes of the grids anyway."""
    visual, grids = twin.model.hf.model.visual, torch.tensor(GRIDS["pictures"])
    values = patches(twin, grids, 1)
    inputs = grid_inputs(twin.model.spec, grids)
    with torch.inference_mode():
        base = visual(values, grid_thw=grids, **inputs).pooler_output
        for name, value in inputs.items():
            if not isinstance(value, torch.Tensor):
                continue
            if name == "window_index":
                order = value.roll(1)
            elif name.startswith("cu_"):
                order = torch.cat([value[:1], value[2:]])
            else:
                order = value.flip(0)
            changed = visual(values, grid_thw=grids, **{**inputs, name: order}).pooler_output
            assert (changed - base).abs().max() > 1e-3, name


def test_the_facts_are_the_models(twin: Any):
    spec, visual = twin.model.spec, twin.model.hf.model.visual
    if spec.family == "qwen2_5_vl":
        assert spec.window_size == visual.window_size == 56
    if spec.family == "qwen3_vl":
        assert spec.position_side == visual.num_grid_per_side == 16
        assert visual.interpolation_align_corners
        assert visual.interpolation_mode == "bilinear"


def packed(twin: Any, rows: dict[str, Example], *names: str) -> Pack:
    examples = [rows[name] for name in names]
    return pack(
        [twin.encoder.encode(row, labelled=False) for row in examples],
        [twin.encoder.labels(twin.encoder.tasks.of(row)) for row in examples],
    )


def test_pictures_alone_keep_one_frame(twin: Any, rows: dict[str, Example]):
    seen = seen_by(packed(twin, rows, "images", "image-last"), twin.model.spec)
    assert seen is not None
    assert {values.shape[1] for values in seen.patches} == {3 * twin.model.spec.patch_size**2}
    assert [len(values) for values in seen.patches] == seen.grids.prod(1).tolist()
    assert len(seen.patches) == 3, "image-last shows a picture of images"
    assert len(seen.at) == len(seen.features)
    assert len(set(seen.at.tolist())) == len(seen.at)
    assert len(set(seen.features.tolist())) == seen.grids.prod(1).sum() // 4 < len(seen.at)


def test_pictures_beside_a_video_are_doubled(twin: Any, rows: dict[str, Example]):
    spec = twin.model.spec
    both = packed(twin, rows, "video", "image")
    assert both.images is not None
    assert both.videos is not None
    seen = seen_by(both, spec)
    assert seen is not None
    assert {values.shape[1] for values in seen.patches} == {3 * 2 * spec.patch_size**2}
    still = seen.patches[0].reshape(-1, 3, 2, spec.patch_size**2)
    np.testing.assert_array_equal(still[:, :, 0], still[:, :, 1])
    np.testing.assert_array_equal(still[:, :, 0].reshape(len(still), -1), both.images.patches[0])
    assert seen.features.min() == 0
    assert sorted(seen.features.tolist()) == list(range(int(seen.grids.prod(1).sum()) // 4))


def test_text_is_seen_by_none_or_by_a_black_picture(twin: Any, rows: dict[str, Example]):
    text, spec = packed(twin, rows, "text"), twin.model.spec
    assert seen_by(text, spec) is None
    assert to_device(text, spec, CPU).tower is None
    black = seen_by(text, spec, always=True)
    assert black is not None
    assert black.grids.tolist() == [[1, 2, 2]]
    assert not black.patches[0].any()
    assert len(black.at) == len(black.features) == 0
    with torch.inference_mode():
        scores = [twin.model.hf(batch=to_device(text, spec, CPU, always_see=see)) for see in (False, True)]
    torch.testing.assert_close(scores[0], scores[1], rtol=0, atol=0)


def test_features_that_are_in_order_are_not_looked_up(twin: Any, rows: dict[str, Example]):
    spec = twin.model.spec
    alone = to_device(packed(twin, rows, "images"), spec, CPU).tower
    equal = to_device(packed(twin, rows, "image", "image-first"), spec, CPU).tower
    assert alone is not None
    assert alone.features is None
    assert equal is not None
    assert equal.features is not None
    assert len(equal.features) == 2 * len(equal.patches) // 4, "one picture, used twice"
