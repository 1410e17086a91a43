from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageFilter

from tuyi.config import load_settings
from tuyi.data.example import Image
from tuyi.errors import ConfigError, MediaError
from tuyi.train.settings import TrainSettings
from tuyi.vision.augment import Augment
from tuyi.vision.change import Change
from tuyi.vision.patches import image_patches, resized
from tuyi.vision.resample import resample
from tuyi.vision.spec import VisionSpec

QWEN2 = VisionSpec("qwen2_vl")
QWEN3 = VisionSpec("qwen3_vl", patch_size=16)
BUDGET = (3136, 100_352)
OPTIONS: dict[str, Any] = {
    "jpeg_quality": (40, 95),
    "blur": 0.7,
    "scale": 0.6,
    "brightness": 0.2,
    "contrast": 0.2,
}
ALL = Augment(**OPTIONS)
EACH = [pytest.param(Augment(**{name: value}), id=name) for name, value in OPTIONS.items()]


def encoded(values_HW3: NDArray[np.uint8], form: str = "PNG") -> Image:
    file = io.BytesIO()
    Pillow.fromarray(values_HW3).save(file, form)
    return Image(file.getvalue())


def noise(width: int = 300, height: int = 200, form: str = "PNG") -> Image:
    return encoded(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8), form)


def grey(value: int, width: int = 56, height: int = 56) -> Image:
    return encoded(np.full((height, width, 3), value, np.uint8))


def seen(image: Image, change: Change | None = None) -> NDArray[np.int16]:
    """What the model is shown, as a picture."""
    return np.asarray(resized(image, QWEN2, *BUDGET, change=change)[0], np.int16)


# --- off -----------------------------------------------------------------------------------------------------------


def test_without_augment_nothing_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    image = noise()
    plain = image_patches(image, QWEN2, *BUDGET)
    monkeypatch.setattr(np.random, "default_rng", lambda _: pytest.fail("drawn"))
    monkeypatch.setattr(Change, "resample", lambda *_: pytest.fail("changed"))
    off = image_patches(image, QWEN2, *BUDGET, augment=None, seed=5)
    assert off.values.tobytes() == plain.values.tobytes()


def test_options_that_are_off_change_nothing() -> None:
    assert TrainSettings().augment is None
    assert Augment().draw(3) == Change()
    assert (seen(noise(), Change()) == seen(noise())).all()


# --- one picture ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("augment", EACH)
def test_a_seed_decides_everything(augment: Augment) -> None:
    image = noise()
    plain = image_patches(image, QWEN2, *BUDGET).values
    once, again, other = (image_patches(image, QWEN2, *BUDGET, augment=augment, seed=seed) for seed in (7, 7, 8))
    assert once.values.tobytes() == again.values.tobytes()
    assert (once.values != other.values).any()
    assert (once.values != plain).any()


@pytest.mark.parametrize("spec", [QWEN2, QWEN3], ids=["patch14", "patch16"])
@pytest.mark.parametrize("size", [(1, 1), (28, 28), (13, 200), (333, 77), (640, 480), (2000, 1), (1, 6000)], ids=str)
def test_the_grid_stays(size: tuple[int, int], spec: VisionSpec) -> None:
    image = noise(*size, form="JPEG")
    for draft in (False, True):
        plain = image_patches(image, spec, *BUDGET, draft=draft)
        for seed in range(3):
            harder = image_patches(image, spec, *BUDGET, draft=draft, augment=ALL, seed=seed)
            assert harder.grid == plain.grid
            assert harder.values.shape == plain.values.shape


def test_jpeg_is_pillows() -> None:
    plain = Pillow.fromarray(seen(noise()).astype(np.uint8))
    distances = []
    for quality in (20, 50, 90):
        file = io.BytesIO()
        plain.save(file, "JPEG", quality=quality)
        ours = seen(noise(), Change(jpeg_quality=quality))
        assert (ours == np.asarray(Pillow.open(file))).all()
        distances.append(np.abs(ours - seen(noise())).mean())
    assert distances[0] > distances[1] > distances[2] > 0


def test_what_is_too_long_for_a_jpeg_is_left_as_it_is() -> None:
    image, budget = noise(65_520, 28, form="BMP"), (3136, 2_000_000)
    plain, jpeg = (
        image_patches(image, QWEN2, *budget, augment=augment) for augment in (None, Augment(jpeg_quality=(50, 50)))
    )
    assert plain.grid == (1, 2, 65_520 // 14)
    assert (jpeg.values == plain.values).all()


def test_blur_is_pillows() -> None:
    plain = Pillow.fromarray(seen(noise()).astype(np.uint8))
    assert (seen(noise(), Change(blur=0.6)) == np.asarray(plain.filter(ImageFilter.GaussianBlur(0.6)))).all()


@pytest.mark.parametrize("size", [(112, 112), (1120, 1120)], ids=["its own size", "shrunk for the model"])
def test_scale_loses_what_the_model_would_see(size: tuple[int, int]) -> None:
    stripes = np.zeros((112, 112, 3), np.uint8)
    stripes[:, ::4] = stripes[:, 1::4] = 255  # two columns white, two black
    large = np.asarray(Pillow.fromarray(stripes).resize(size, Pillow.Resampling.NEAREST))
    budget = (3136, 112 * 112)
    spread = []
    for factor in (1.0, 0.75, 0.4):
        picture, grid = resized(encoded(large), QWEN2, *budget, change=Change(scale=factor))
        assert (picture.size, grid) == ((112, 112), (1, 8, 8))
        spread.append(np.asarray(picture)[8:-8, 8:-8].std())
    assert spread[0] > 100
    assert spread[0] > spread[1] > spread[2]
    assert spread[2] < 40


def test_scale_shrinks_a_small_picture_from_its_own_size() -> None:
    image = noise(30, 30)
    small = Pillow.fromarray(np.asarray(Pillow.open(io.BytesIO(image.source)))).convert("RGB")  # type: ignore[arg-type]
    size = (56, 56)
    expected = resample(resample(small, (15, 15)), size)
    assert (seen(image, Change(scale=0.5)) == np.asarray(expected)).all()


def test_brightness_moves_to_white_or_black_and_burns_nothing_out() -> None:
    assert (seen(grey(200), Change(brightness=0.2)) == 211).all()
    assert (seen(grey(200), Change(brightness=-0.2)) == 160).all()
    for share in (0.2, -0.2):
        text, paper = (int(seen(grey(value), Change(brightness=share)).max()) for value in (190, 255))
        assert paper - text == pytest.approx(0.8 * 65, abs=1)


def test_contrast_scales_the_distance_from_the_mean() -> None:
    half = np.full((56, 56, 3), 100, np.uint8)
    half[:, 28:] = 140
    for factor, expected in ((0.8, {104, 136}), (1.2, {96, 144})):
        assert set(np.unique(seen(encoded(half), Change(contrast=factor)))) == expected


def test_a_damaged_picture_is_the_same_error() -> None:
    with pytest.raises(MediaError, match="expected a picture"):
        image_patches(Image(b"text"), QWEN2, *BUDGET, augment=ALL)


# --- what is drawn -------------------------------------------------------------------------------------------------


def test_draws_fill_their_ranges_evenly() -> None:
    drawn = [change for seed in range(2000) if (change := ALL.draw(seed))]
    assert len(drawn) == 2000
    ranges = {"scale": (0.6, 1.0), "blur": (0, 0.7), "brightness": (-0.2, 0.2), "contrast": (0.8, 1.2)}
    for name, (low, high) in ranges.items():
        values = np.array([getattr(change, name) for change in drawn])
        assert low <= values.min() < low + 0.01
        assert high - 0.01 < values.max() <= high
        assert values.mean() == pytest.approx((low + high) / 2, abs=0.02)
    qualities, counts = np.unique([change.jpeg_quality for change in drawn], return_counts=True)
    assert qualities.tolist() == list(range(40, 96))
    assert counts.min() > 10


def test_a_draw_does_not_depend_on_the_other_options() -> None:
    together = ALL.draw(11)
    alone = Augment(blur=OPTIONS["blur"]).draw(11)
    assert together is not None
    assert alone == Change(blur=together.blur)


def test_share_leaves_the_others_as_they_are() -> None:
    changes = [Augment(blur=1.0, share=0.3).draw(seed) for seed in range(2000)]
    assert sum(change is not None for change in changes) == pytest.approx(600, abs=60)
    left = changes.index(None)
    values = image_patches(noise(), QWEN2, *BUDGET, augment=Augment(blur=1.0, share=0.3), seed=left).values
    assert (values == image_patches(noise(), QWEN2, *BUDGET).values).all()


# --- settings ------------------------------------------------------------------------------------------------------


def test_settings_are_read_and_written() -> None:
    line = "augment={jpeg_quality: [40, 95], blur: 0.7, scale: 0.6, brightness: 0.2, contrast: 0.2}"
    settings = load_settings(TrainSettings, None, [line])
    assert settings.augment == ALL
    assert TrainSettings.model_validate_json(settings.model_dump_json()) == settings


def test_wrong_settings_are_all_named() -> None:
    wrong = ["jpeg_quality=[90, 40]", "blur=-1", "scale=1", "brightness=1.5", "contrast=.inf", "share=0", "blurr=1"]
    with pytest.raises(ConfigError) as error:
        load_settings(TrainSettings, None, [f"augment.{one}" for one in wrong])
    lines = str(error.value).splitlines()
    assert lines[0] == "settings: 7 problems"
    assert lines[1:] == [
        "  augment.jpeg_quality: expected the lowest quality first, found [90, 40]; write [40, 90]",
        "  augment.blur: Input should be greater than 0; found -1",
        "  augment.scale: Input should be less than 1; found 1",
        "  augment.brightness: Input should be less than 1; found 1.5",
        "  augment.contrast: Input should be less than 1; found inf",
        "  augment.share: Input should be greater than 0; found 0",
        "  augment.blurr: unknown setting; did you mean 'blur'?",
    ]


@pytest.mark.parametrize("quality", ["0", "[0, 95]", "[40, 101]", "[40]", "high"])
def test_qualities_are_those_of_jpeg(quality: str) -> None:
    with pytest.raises(ConfigError, match=r"augment\.jpeg_quality"):
        load_settings(TrainSettings, None, [f"augment.jpeg_quality={quality}"])
