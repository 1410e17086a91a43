"""Tokens and positions of encoded rows against transformers' processors and models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

SHAPES = ["text", "image", "image-first", "image-last", "images", "history", "system", "video", "mixed"]


def test_every_shape_is_tested(rows: dict[str, Any]):
    assert list(rows) == SHAPES


@pytest.mark.parametrize("name", SHAPES)
def test_token_ids_are_those_of_the_processor(twin: Any, rows: dict[str, Any], name: str):
    example = rows[name]
    for labelled in (False, True):
        ours = twin.encoder.encode(example, labelled=labelled).ids
        theirs = twin.inputs(example, example.label if labelled else None)["input_ids"][0]
        np.testing.assert_array_equal(ours, theirs.numpy(), twin.processor.tokenizer.decode(ours))


@pytest.mark.parametrize("name", SHAPES)
def test_positions_are_those_of_get_rope_index(twin: Any, rows: dict[str, Any], name: str):
    example = rows[name]
    ours = twin.encoder.encode(example, labelled=True)
    inputs = twin.inputs(example, example.label)
    kept = {key: value for key, value in inputs.items() if not key.startswith("pixel_values")}
    theirs, _ = twin.reference.model.get_rope_index(**kept)
    np.testing.assert_array_equal(ours.positions, theirs[:, 0].numpy())


@pytest.mark.parametrize("name", SHAPES)
def test_pixels_are_those_of_the_processor(twin: Any, rows: dict[str, Any], name: str):
    from tuyi.vision.spec import ImagePatches

    spec, inputs = twin.model.spec, twin.inputs(rows[name])
    media = twin.encoder.encode(rows[name], labelled=False).media
    mean, std = (np.asarray(x, np.float32)[:, None, None] for x in (spec.mean, spec.std))
    for key, pixels, wanted in (
        ("image_grid_thw", "pixel_values", True),
        ("video_grid_thw", "pixel_values_videos", False),
    ):
        found = [item.patches for item in media if isinstance(item.patches, ImagePatches) is wanted]
        assert len(found) == len(inputs.get(key, []))
        if not found:
            continue
        assert [patches.grid for patches in found] == [tuple(grid) for grid in inputs[key].tolist()]
        raw = np.concatenate([patches.values for patches in found]).astype(np.float32)
        frames = raw.reshape(len(raw), 3, -1, spec.patch_size**2)
        doubled = np.broadcast_to(frames, (len(raw), 3, spec.temporal_patch_size, spec.patch_size**2))
        ours = (doubled / 255 - mean) / std
        np.testing.assert_allclose(ours.reshape(len(raw), -1), inputs[pixels].numpy(), atol=2e-6)
