"""Made-up screenshots of given sizes and file sizes: bands of text, flat areas and photos, no two alike."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["draw_screenshot", "save_screenshot"]

_TILE = 2048
_QUALITY = 85
_PNG_FROM = 0.5
"""Bytes a pixel from which a picture was surely no JPEG; it is written as PNG."""
_BYTES = {"JPEG": (0.155, 0.016, 0.31), "PNG": (0.34, 0.015, 2.1)}
"""Bytes a pixel of text, flat and photo bands, as measured on the tiles below."""


@cache
def _photo_tile() -> Image.Image:
    """Smooth shapes under finer ones under grain, like a photo; (2048, 2048) RGB."""
    rng = np.random.default_rng(1)
    total_HWC = np.zeros((_TILE, _TILE, 3), np.float32)
    for cells, weight in ((8, 60.0), (64, 30.0), (512, 12.0)):
        noise_HWC = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        smooth = Image.fromarray(noise_HWC).resize((_TILE, _TILE), Image.Resampling.BICUBIC)
        total_HWC += weight * (np.asarray(smooth, np.float32) / 128 - 1)
    total_HWC += rng.standard_normal((_TILE, _TILE, 1), np.float32) * 9
    return Image.fromarray(np.clip(total_HWC + 128, 0, 255).astype(np.uint8))


@cache
def _text_tile() -> Image.Image:
    """Lines of glyph-like strokes, an alpha mask of (2048, 2048)."""
    rng = np.random.default_rng(2)
    lines, glyphs = _TILE // 64, _TILE // 32
    mask_HW = np.zeros((_TILE, _TILE), np.uint8)
    for line in range(lines):
        ink = rng.integers(0, 2, (9, glyphs * 10), dtype=np.uint8) * 255
        ink.reshape(9, glyphs, 10)[:, :, 9] = 0
        ink[:, int(rng.integers(glyphs // 3, glyphs)) * 10 :] = 0
        strip = Image.fromarray(ink).resize((_TILE, 28), Image.Resampling.BICUBIC)
        mask_HW[64 * line + 18 : 64 * line + 46] = np.asarray(strip)
    return Image.fromarray(mask_HW)


def draw_screenshot(width: int, height: int, file_bytes: int, seed: int) -> Image.Image:
    """A page whose bands of text, flat colour and photo compress to about ``file_bytes``."""
    rng = np.random.default_rng(seed)
    kind = "PNG" if file_bytes / (width * height) > _PNG_FROM else "JPEG"
    text, flat, photo = _BYTES[kind]
    page = (text + flat) / 2
    share = float(np.clip((file_bytes / (width * height) - page) / (photo - page), 0, 1))
    picture = Image.new("RGB", (width, height), tuple(int(c) for c in rng.integers(225, 256, 3)))
    bands = max(6, height // 160)
    # the shares are kept over the page as a whole, whatever the order of its bands
    photos = _spread(share, bands, rng)
    texts = _spread(0.5, bands, rng) if share else _spread(file_bytes / (width * height) / text, bands, rng)
    for band in range(bands):
        top, bottom = height * band // bands, height * (band + 1) // bands
        if photos[band] > 0:
            _paste_photo(picture, top, top + round((bottom - top) * photos[band]), rng)
            top += round((bottom - top) * photos[band])
        if texts[band] > 0 and top < bottom:
            _paste_text(picture, top, top + round((bottom - top) * texts[band]), rng)
    return picture


def _spread(share: float, bands: int, rng: np.random.Generator) -> list[float]:
    """How much of each band belongs to a kind: whole bands, one broken one, none."""
    whole = min(share, 1.0) * bands
    parts = np.clip(whole - np.arange(bands), 0, 1)
    return [float(part) for part in rng.permutation(parts)]


def _paste_photo(picture: Image.Image, top: int, bottom: int, rng: np.random.Generator) -> None:
    for left in range(0, picture.width, 1024):
        wide, tall = min(1024, picture.width - left), bottom - top
        if tall > 0:
            x, y = (int(rng.integers(0, _TILE - size + 1)) for size in (wide, tall))
            picture.paste(_photo_tile().crop((x, y, x + wide, y + tall)), (left, top))


def _paste_text(picture: Image.Image, top: int, bottom: int, rng: np.random.Generator) -> None:
    ink = tuple(int(c) for c in rng.integers(0, 90, 3))
    for left in range(0, picture.width, 1024):
        wide, tall = min(1024, picture.width - left), bottom - top
        if tall > 0:
            x, y = (int(rng.integers(0, _TILE - size + 1)) for size in (wide, tall))
            mask = _text_tile().crop((x, y, x + wide, y + tall))
            picture.paste(ink, (left, top, left + wide, top + tall), mask)


def save_screenshot(folder: Path, stem: str, shape: tuple[int, int, int], seed: int) -> str:
    """Write one screenshot of (width, height, bytes); returns its file name."""
    width, height, file_bytes = shape
    picture = draw_screenshot(width, height, file_bytes, seed)
    if file_bytes / (width * height) > _PNG_FROM:
        name = f"{stem}.png"
        picture.save(folder / name, compress_level=1)
    else:
        name = f"{stem}.jpg"
        picture.save(folder / name, quality=_QUALITY)
    return name
