from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow
from PIL import ImageFile
from PIL.PngImagePlugin import PngInfo

from tuyi.data.example import Image
from tuyi.errors import MediaError
from tuyi.vision.image import MAX_PICTURE_PIXELS, ImageInfo, load_rgb, probe_image

RED, GREEN, WHITE = (255, 0, 0), (0, 255, 0), (255, 255, 255)


def encoded(picture: Pillow.Image, form: str = "PNG", **options: Any) -> Image:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return Image(file.getvalue(), name=f"test.{form.lower()}")


def colours(image: Image) -> set[Any]:
    return {tuple(pixel) for pixel in np.asarray(load_rgb(image)).reshape(-1, 3).tolist()}


def noise(width: int = 60, height: int = 40) -> Pillow.Image:
    return Pillow.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


# --- files that can be used -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "PPM"])
def test_every_format_is_probed_and_loaded(form: str, tmp_path: Path) -> None:
    image = encoded(noise(), form)
    assert isinstance(image.source, bytes)
    assert probe_image(image) == ImageInfo(60, 40, form)
    file = tmp_path / "picture"
    file.write_bytes(image.source)
    assert probe_image(Image(file)) == ImageInfo(60, 40, form)
    assert load_rgb(Image(file)).tobytes() == load_rgb(image).tobytes()
    assert load_rgb(image).mode == "RGB"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(form: str, orientation: int) -> None:
    shown = Pillow.new("RGB", (64, 32))
    shown.paste(RED, (0, 0, 32, 16))  # only the upper left quarter is red when shown
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the inverse transpose of each orientation
    stored = shown.transpose(Pillow.Transpose(undo[orientation])) if orientation > 1 else shown
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    image = encoded(stored, form, exif=exif)
    info, loaded = probe_image(image), load_rgb(image)
    assert (info.width, info.height) == loaded.size == (64, 32)
    red = np.asarray(loaded)[:, :, 0] > 128
    assert red[2:14, 2:30].all()
    assert not red[18:].any()
    assert not red[:, 34:].any()


def test_orientation_after_the_pixels_of_a_png() -> None:
    image = encoded(Pillow.new("RGB", (64, 32)))
    exif = Pillow.Exif()
    exif[0x0112] = 6
    data = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(data)) + b"eXIf" + data + struct.pack(">I", zlib.crc32(b"eXIf" + data))
    assert isinstance(image.source, bytes)
    late = Image(image.source[:-12] + chunk + image.source[-12:])
    assert probe_image(late) == ImageInfo(32, 64, "PNG")
    assert load_rgb(late).size == (32, 64)


def test_broken_exif_is_shown_as_stored() -> None:
    image = encoded(noise(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert probe_image(image) == ImageInfo(60, 40, "JPEG")
    assert load_rgb(image).size == (60, 40)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation(form: str) -> None:
    frames = [Pillow.new("RGB", (20, 10), colour) for colour in (GREEN, RED, (0, 0, 255))]
    options = {"lossless": True} if form == "WEBP" else {}
    image = encoded(frames[0], form, save_all=True, append_images=frames[1:], **options)
    assert probe_image(image) == ImageInfo(20, 10, form)
    assert colours(image) == {GREEN}


def test_grey_bilevel_and_palette() -> None:
    assert colours(encoded(Pillow.new("L", (4, 4), 77))) == {(77, 77, 77)}
    assert colours(encoded(Pillow.new("1", (4, 4), 1))) == {WHITE}
    assert colours(encoded(Pillow.new("RGB", (4, 4), RED).convert("P"))) == {RED}


def test_transparency_is_laid_over_white() -> None:
    assert colours(encoded(Pillow.new("RGBA", (4, 4), (255, 0, 0, 0)))) == {WHITE}
    assert colours(encoded(Pillow.new("RGBA", (4, 4), (255, 0, 0, 255)))) == {RED}
    assert colours(encoded(Pillow.new("RGBA", (4, 4), (1, 1, 1, 128)))) <= {(127, 127, 127), (128, 128, 128)}
    assert colours(encoded(Pillow.new("LA", (4, 4), (0, 0)))) == {WHITE}
    palette = Pillow.new("P", (4, 4), 0)
    palette.putpalette([*RED, *GREEN])
    assert colours(encoded(palette, transparency=0)) == {WHITE}
    assert colours(encoded(palette, transparency=1)) == {RED}
    assert colours(encoded(Pillow.new("RGB", (4, 4), RED), transparency=RED)) == {WHITE}
    assert colours(encoded(Pillow.new("L", (4, 4), 9), transparency=9)) == {WHITE}


def test_transparency_survives_rotation() -> None:
    exif = Pillow.Exif()
    exif[0x0112] = 6
    assert colours(encoded(Pillow.new("RGB", (4, 4), RED), transparency=RED, exif=exif)) == {WHITE}


def test_cmyk_jpeg_is_not_inverted() -> None:
    # Pillow, like Photoshop, writes CMYK JPEG with an Adobe mark and inverted values.
    ink = encoded(Pillow.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100)
    assert isinstance(ink.source, bytes)
    assert b"Adobe" in ink.source
    assert np.abs(np.asarray(load_rgb(ink), int) - RED).max() <= 2
    assert colours(encoded(Pillow.new("CMYK", (16, 16), (0, 255, 255, 0)), "TIFF")) == {RED}


def test_deep_grey_is_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None]
    for form in ("PNG", "TIFF"):
        shown = np.asarray(load_rgb(encoded(Pillow.fromarray(ramp), form)))
        assert shown.shape == (1, 256, 3)
        np.testing.assert_allclose(shown[0, :, 0], np.arange(256), atol=1)
    long = Pillow.fromarray(np.array([[0, 32768, 65535]], np.int32))
    assert np.asarray(load_rgb(encoded(long, "TIFF")))[0, :, 0].tolist() == [0, 128, 255]
    beyond = Pillow.fromarray(np.array([[-100_000, 0, 100_000]], np.int32))
    assert np.asarray(load_rgb(encoded(beyond, "TIFF")))[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.0, 255.0], [0, 100, 255]),
        ([0.0, 32768.0, 65535.0], [0, 128, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
    ],
    ids=str,
)
def test_float_grey(values: list[float], shown: list[int]) -> None:
    picture = Pillow.fromarray(np.array([values], np.float32))
    assert np.asarray(load_rgb(encoded(picture, "TIFF")))[0, :, 0].tolist() == shown


def test_float_grey_that_is_no_number() -> None:
    picture = Pillow.fromarray(np.array([[0.0, np.nan]], np.float32))
    with pytest.raises(MediaError, match=r"test\.tiff: .*not finite numbers"):
        load_rgb(encoded(picture, "TIFF"))


@pytest.mark.parametrize("size", [(1, 2000), (2000, 1), (1, 1)])
def test_extreme_sizes(size: tuple[int, int]) -> None:
    image = encoded(noise(*size))
    assert probe_image(image) == ImageInfo(*size, "PNG")
    assert load_rgb(image).size == size


def test_a_jpeg_with_bytes_after_its_end_is_decoded_to_be_sure() -> None:
    image = encoded(noise(), "JPEG")
    assert isinstance(image.source, bytes)
    assert probe_image(Image(image.source + b"\0" * 64)) == ImageInfo(60, 40, "JPEG")


# --- files that cannot ------------------------------------------------------------------------------------------------

Check = Callable[[Image], Any]
CHECKS = pytest.mark.parametrize("check", [probe_image, load_rgb])


@CHECKS
def test_missing_folder_empty_and_no_picture(check: Check, tmp_path: Path) -> None:
    missing, empty, text = tmp_path / "missing.jpg", tmp_path / "empty.jpg", tmp_path / "text.jpg"
    empty.touch()
    text.write_text("a picture of a cat\n" * 50)
    for path, found in [
        (missing, "expected a file, found none there; check"),
        (tmp_path, "expected a file, found a folder; name"),
        (empty, "expected a picture, found an empty file; replace"),
        (text, r"expected a picture \(JPEG, PNG, .*found something else; replace"),
    ]:
        with pytest.raises(MediaError, match=f"{path}: {found}"):
            check(Image(path))


@CHECKS
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "PPM"])
@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_truncated(check: Check, form: str, kept: float) -> None:
    whole = encoded(noise(), form).source
    assert isinstance(whole, bytes)
    with pytest.raises(MediaError, match=r"expected a whole picture, found a truncated or damaged one .*; fetch"):
        check(Image(whole[: int(len(whole) * kept)]))


@CHECKS
def test_pillows_switches_are_left_alone(check: Check) -> None:
    before = (Pillow.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    check(encoded(noise(), "JPEG"))
    with pytest.raises(MediaError):
        check(Image(b"no picture"))
    assert before == (Pillow.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)


def test_flipped_bits_of_a_png_are_found_by_the_probe() -> None:
    whole = encoded(noise(), "PNG").source
    assert isinstance(whole, bytes)
    half = len(whole) // 2
    with pytest.raises(MediaError, match="damaged"):
        probe_image(Image(whole[:half] + bytes([whole[half] ^ 1]) + whole[half + 1 :]))


def bomb(width: int, height: int) -> Image:
    """A PNG whose header claims a size that no pixels follow."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return Image(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b""), name="bomb.png")


@CHECKS
@pytest.mark.parametrize("pillow_limit", [Pillow.MAX_IMAGE_PIXELS, None])
def test_bomb_is_refused_by_its_header(check: Check, pillow_limit: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pillow, "MAX_IMAGE_PIXELS", pillow_limit)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("pixels were allocated"))
    with pytest.raises(MediaError, match=r"bomb\.png: expected at most 178,956,970 pixels, found .*; scale it down"):
        check(bomb(20_000, 10_000))
    assert pillow_limit == Pillow.MAX_IMAGE_PIXELS
    assert MAX_PICTURE_PIXELS == 178_956_970


def test_text_bomb_in_a_png() -> None:
    text = PngInfo()
    text.add_text("comment", "a" * 70_000_000, zip=True)
    with pytest.raises(MediaError, match="truncated or damaged one"):
        probe_image(encoded(noise(), "PNG", pnginfo=text))
