from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as Pillow
from transformers import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tuyi.data.example import Image
from tuyi.vision.image import probe_image
from tuyi.vision.patches import image_grid, image_patches
from tuyi.vision.spec import VisionSpec

QWEN2 = VisionSpec("qwen2_vl")
QWEN3 = VisionSpec("qwen3_vl", patch_size=16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
BUDGET = (3136, 1_003_520)
SIZES = [(28, 28), (29, 57), (1, 1), (13, 200), (333, 77), (640, 480), (720, 1560)]


def picture(width: int, height: int) -> Image:
    """Smooth shapes with some noise: neither flat, where any resize agrees, nor white noise, unlike any photo."""
    rng = np.random.default_rng(width * 10_000 + height)
    coarse = rng.integers(0, 256, (max(2, height // 24), max(2, width // 24), 3), dtype=np.uint8)
    smooth = np.asarray(Pillow.fromarray(coarse).resize((width, height), Pillow.Resampling.BICUBIC), np.int16)
    noisy = np.clip(smooth + rng.integers(-8, 9, smooth.shape), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Pillow.fromarray(noisy).save(file, "PNG", compress_level=1)
    return Image(file.getvalue())


def reference(
    cls: type, image: Image, spec: VisionSpec, min_pixels: int, max_pixels: int
) -> tuple[NDArray[np.float32], tuple[int, ...]]:
    """transformers' patches with one frame, on the 0–255 scale."""
    processor = cls(
        size={"shortest_edge": min_pixels, "longest_edge": max_pixels},
        patch_size=spec.patch_size,
        image_mean=list(spec.mean),
        image_std=list(spec.std),
    )
    assert isinstance(image.source, bytes)
    out = processor(images=[Pillow.open(io.BytesIO(image.source))], return_tensors="np")
    both = out["pixel_values"].reshape(-1, 3, 2, spec.patch_size**2)
    assert (both[:, :, 0] == both[:, :, 1]).all()
    values = (both[:, :, 0] * np.array(spec.std)[:, None] + np.array(spec.mean)[:, None]) * 255
    return values.reshape(len(both), -1), tuple(out["image_grid_thw"][0].tolist())


@pytest.mark.parametrize("size", [(3000, 2000)], ids=str)
def test_equal_to_transformers_at_photo_size(size: tuple[int, int]) -> None:
    assert_equal(size, QWEN2)


@pytest.mark.parametrize("spec", [QWEN2, QWEN3], ids=["patch14", "patch16"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equal_to_transformers(size: tuple[int, int], spec: VisionSpec) -> None:
    assert_equal(size, spec)


def assert_equal(size: tuple[int, int], spec: VisionSpec) -> None:
    image = picture(*size)
    ours = image_patches(image, spec, *BUDGET)
    assert ours.values.dtype == np.uint8
    assert ours.values.flags.c_contiguous

    exact, grid = reference(Qwen2VLImageProcessorPil, image, spec, *BUDGET)
    assert ours.grid == grid
    np.testing.assert_allclose(ours.values, exact, atol=1e-3)

    near, grid = reference(Qwen2VLImageProcessor, image, spec, *BUDGET)
    assert ours.grid == grid
    assert (np.abs(ours.values - near) <= 1.5).mean() >= 0.995


@pytest.mark.parametrize("budget", [(3136, 50_176), (200_704, 200_704), (1_605_632, 1_605_632)], ids=str)
def test_equal_under_other_budgets(budget: tuple[int, int]) -> None:
    image = picture(500, 400)
    ours = image_patches(image, QWEN2, *budget)
    exact, grid = reference(Qwen2VLImageProcessorPil, image, QWEN2, *budget)
    assert ours.grid == grid
    np.testing.assert_allclose(ours.values, exact, atol=1e-3)


@pytest.mark.parametrize("size", [*SIZES, (2000, 1), (1, 2000)], ids=str)
def test_grid_is_known_without_opening(size: tuple[int, int]) -> None:
    image = picture(*size)
    info = probe_image(image)
    ours = image_patches(image, QWEN2, *BUDGET)
    assert image_grid(info.width, info.height, QWEN2, *BUDGET) == ours.grid
    assert ours.values.shape == (ours.grid[1] * ours.grid[2], 588)


def test_threads_do_not_disturb_each_other() -> None:
    pictures = [picture(100 + 30 * index, 200) for index in range(8)]
    alone = [image_patches(image, QWEN2, *BUDGET) for image in pictures]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda image: image_patches(image, QWEN2, *BUDGET), pictures * 4))
    assert len(together) == 32
    for number, ours in enumerate(together):
        assert (ours.values == alone[number % 8].values).all()
