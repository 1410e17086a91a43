from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image as Pillow
from transformers import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tuyi.data.example import Image
from tuyi.vision.image import load_rgb, probe_image
from tuyi.vision.patches import image_grid, image_patches
from tuyi.vision.resample import resample, resampler
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


def assert_near(image: Image, spec: VisionSpec, budget: tuple[int, int] = BUDGET) -> None:
    """transformers' grid; values nearly always those of its default backend, never further off than its two are."""
    ours = image_patches(image, spec, *budget)
    assert ours.values.dtype == np.uint8
    assert ours.values.flags.c_contiguous
    default, grid = reference(Qwen2VLImageProcessor, image, spec, *budget)
    assert ours.grid == grid
    other, grid = reference(Qwen2VLImageProcessorPil, image, spec, *budget)
    assert ours.grid == grid
    off, apart = np.abs(ours.values - default), np.abs(default - other).max() + 1e-3
    assert (off <= 1.5).mean() >= 0.995
    assert off.max() <= apart
    assert np.abs(ours.values - other).max() <= apart


@pytest.mark.parametrize("spec", [QWEN2, QWEN3], ids=["patch14", "patch16"])
@pytest.mark.parametrize("size", [*SIZES, (200, 13), (1, 28), (5600, 28), (28, 5572)], ids=str)
def test_near_transformers(size: tuple[int, int], spec: VisionSpec) -> None:
    assert_near(picture(*size), spec)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "max_pixels"),
    [((1080, 2400), 1_003_520), ((1080, 2400), 12_845_056), ((3456, 4608), 1_003_520), ((4608, 3456), 12_845_056)],
    ids=str,
)
def test_near_transformers_at_photo_size(size: tuple[int, int], max_pixels: int) -> None:
    assert_near(picture(*size), QWEN2, (3136, max_pixels))


@pytest.mark.parametrize("budget", [(3136, 50_176), (200_704, 200_704), (1_605_632, 1_605_632)], ids=str)
def test_near_under_other_budgets(budget: tuple[int, int]) -> None:
    assert_near(picture(500, 400), QWEN2, budget)


@pytest.mark.parametrize("form", ["JPEG", "WEBP"])
def test_near_transformers_from_lossy_files(form: str) -> None:
    file = io.BytesIO()
    load_rgb(picture(540, 1170)).save(file, form, quality=85)
    assert_near(Image(file.getvalue()), QWEN2, (3136, 250_880))


@pytest.mark.skipif(resampler().startswith("Pillow"), reason="cykooz_resizer is absent")
@pytest.mark.skipif("AVX2" not in torch.backends.cpu.get_cpu_capability(), reason="torchvision resizes otherwise here")
@pytest.mark.parametrize("size", [(29, 57), (333, 77), (640, 480), (1280, 1170)], ids=str)
def test_equal_to_transformers_with_simd(size: tuple[int, int]) -> None:
    image = picture(*size)
    exact, _ = reference(Qwen2VLImageProcessor, image, QWEN2, *BUDGET)
    np.testing.assert_allclose(image_patches(image, QWEN2, *BUDGET).values, exact, atol=1e-3)


@pytest.mark.parametrize("size", [(29, 57), (333, 77), (1280, 1170)], ids=str)
def test_pillow_alone_is_nearly_the_same(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    image = picture(*size)
    present = image_patches(image, QWEN2, *BUDGET).values
    monkeypatch.setattr("tuyi.vision.resample._cykooz", lambda: None)
    assert resampler().startswith("Pillow")
    assert_near(image, QWEN2)
    alone = image_patches(image, QWEN2, *BUDGET).values
    assert np.abs(alone.astype(int) - present).max() <= 2
    assert (alone == present).mean() >= 0.99


def test_a_line_of_pixels_is_resized_without_a_huge_step_between() -> None:
    small = resample(Pillow.new("RGB", (1, 10_000_000), (9, 8, 7)), (28, 448))
    assert small.size == (28, 448)
    assert small.getextrema() == ((9, 9), (8, 8), (7, 7))


@pytest.mark.parametrize("orientation", [1, 6])
def test_draft_keeps_grid_and_motif(orientation: int) -> None:
    file, exif = io.BytesIO(), Pillow.Exif()
    exif[0x0112] = orientation
    load_rgb(picture(1600, 1200)).save(file, "JPEG", quality=90, exif=exif)
    image = Image(file.getvalue())
    whole, draft = (image_patches(image, QWEN2, 3136, 200_704, draft=draft) for draft in (False, True))
    assert draft.grid == whole.grid
    assert (draft.values != whole.values).any()
    assert np.abs(draft.values.astype(int) - whole.values).mean() < 3


def test_draft_changes_nothing_where_nothing_is_to_gain() -> None:
    image = picture(300, 200)
    assert (
        image_patches(image, QWEN2, *BUDGET, draft=True).values == image_patches(image, QWEN2, *BUDGET).values
    ).all()


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
