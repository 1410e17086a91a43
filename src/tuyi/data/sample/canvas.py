"""A drawing surface measured in hundredths of its width, with colour themes and greeked text."""

from __future__ import annotations

import colorsys
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFont

__all__ = ["THEMES", "Canvas", "Colour", "Point", "Theme", "tint"]

Colour = tuple[int, int, int]
Point = tuple[float, float]


def tint(hue: float, saturation: float, value: float) -> Colour:
    """An RGB colour from hue, saturation and value, each 0–1."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


@dataclass(frozen=True, slots=True)
class Theme:
    """The colours of one app skin: its accents, page and card backgrounds, and ink."""

    name: str
    accent: Colour
    second: Colour
    page: Colour
    card: Colour
    ink: Colour
    muted: Colour
    line: Colour


def _theme(hue: float, dark: bool) -> Theme:
    name = f"{'dark' if dark else 'light'}-{round(hue * 360)}"
    accent, second = tint(hue, 0.78, 0.92), tint(hue + 0.09, 0.55, 0.96)
    if dark:
        page, card, ink = tint(hue, 0.15, 0.12), tint(hue, 0.14, 0.22), (236, 236, 238)
        return Theme(name, accent, second, page, card, ink, (150, 150, 156), (74, 74, 80))
    page, ink = tint(hue, 0.05, 0.95), tint(hue, 0.3, 0.18)
    return Theme(name, accent, second, page, (255, 255, 255), ink, (158, 158, 164), (216, 216, 220))


_HUES = {
    "train": ([0.01, 0.08, 0.14, 0.36, 0.50, 0.58, 0.75, 0.92], [0.04, 0.20, 0.45, 0.62, 0.80]),
    "test": ([0.045, 0.11, 0.43, 0.66, 0.84], [0.12, 0.55, 0.70]),
}
THEMES: dict[str, tuple[Theme, ...]] = {
    part: (*(_theme(hue, False) for hue in light), *(_theme(hue, True) for hue in dark))
    for part, (light, dark) in _HUES.items()
}
"""Colour themes; no theme of one part is in the other."""


class Canvas:
    """A picture being drawn: x runs from 0 to 100, y from 0 to :attr:`height`, in hundredths of the width.

    Args:
        size: Width and height in pixels.
        theme: Colours that the drawing functions take.
        rng: Source of every random choice, so that the same seed draws the same picture.
    """

    def __init__(self, size: tuple[int, int], theme: Theme, rng: random.Random) -> None:
        self.image = Image.new("RGB", size, theme.page)
        self.theme = theme
        self.rng = rng
        self.unit = size[0] / 100
        self.height = size[1] / self.unit
        self._draw = ImageDraw.Draw(self.image)

    def _scaled(self, points: Sequence[Point]) -> list[Point]:
        return [(x * self.unit, y * self.unit) for x, y in points]

    def _pen(self, width: float) -> int:
        return max(1, round(width * self.unit))

    def box(
        self, x: float, y: float, w: float, h: float, fill: Colour | None, *, r: float = 0, edge: Colour | None = None
    ) -> None:
        """A rectangle with rounded corners of radius ``r``, filled, outlined or both."""
        if w <= 0 or h <= 0:
            return
        corners = self._scaled([(x, y), (x + w, y + h)])
        pen = self._pen(0.7) if edge else 1
        if r:
            self._draw.rounded_rectangle(corners, min(r, w / 2, h / 2) * self.unit, fill, edge, pen)
        else:
            self._draw.rectangle(corners, fill, edge, pen)

    def disc(
        self, x: float, y: float, r: float, fill: Colour | None, *, edge: Colour | None = None, pen: float = 0.7
    ) -> None:
        """A circle around (x, y)."""
        self.oval(x - r, y - r, 2 * r, 2 * r, fill, edge=edge, pen=pen)

    def oval(
        self,
        x: float, y: float, w: float, h: float,
        fill: Colour | None, *, edge: Colour | None = None, pen: float = 0.7,
    ) -> None:  # fmt: skip
        """An ellipse inside a rectangle."""
        self._draw.ellipse(self._scaled([(x, y), (x + w, y + h)]), fill, edge, self._pen(pen) if edge else 1)

    def poly(self, points: Sequence[Point], fill: Colour) -> None:
        """A filled polygon."""
        self._draw.polygon(self._scaled(points), fill)

    def path(self, points: Sequence[Point], fill: Colour, pen: float = 1.0) -> None:
        """A line through points."""
        self._draw.line(self._scaled(points), fill, self._pen(pen), joint="curve")

    def arc(self, x: float, y: float, r: float, turn: tuple[float, float], fill: Colour, pen: float = 1.0) -> None:
        """Part of a circle, from one angle in degrees to another."""
        self._draw.arc(self._scaled([(x - r, y - r), (x + r, y + r)]), turn[0], turn[1], fill, self._pen(pen))

    def wedge(self, x: float, y: float, r: float, turn: tuple[float, float], fill: Colour) -> None:
        """A slice of a disc, from one angle in degrees to another."""
        self._draw.pieslice(self._scaled([(x - r, y - r), (x + r, y + r)]), turn[0], turn[1], fill)

    def words(self, x: float, y: float, count: int, size: float, fill: Colour) -> None:
        """Greeked text: ``count`` square characters of ``size``, made of strokes that spell nothing."""
        strip = _glyphs(max(4, round(size * self.unit)))
        cell = strip.height
        first = self.rng.randrange(_GLYPHS - 1)
        count = min(count, _GLYPHS - first, max(1, int((99 - x) / size)))
        mask = strip.crop((first * cell, 0, (first + count) * cell, cell))
        self.image.paste(fill, (round(x * self.unit), round(y * self.unit)), mask)

    def lines(self, x: float, y: float, w: float, rows: int, fill: Colour, size: float = 4.0) -> float:
        """A greeked paragraph; returns the y below it."""
        for row in range(rows):
            full = int(w / size)
            count = full if row + 1 < rows else max(2, round(full * self.rng.uniform(0.4, 0.95)))
            self.words(x, y + row * size * 1.5, count, size, fill)
        return y + rows * size * 1.5

    def figures(self, x: float, y: float, text: str, size: float, fill: Colour, *, anchor: str = "la") -> None:
        """Digits and Latin letters; the built-in font has no ``¥``, so that one is a crossed-out Y."""
        at, font, plain = (x * self.unit, y * self.unit), _font(round(size * self.unit)), text.replace("¥", "Y")
        self._draw.text(at, plain, fill, font, anchor=anchor)
        if (place := text.find("¥")) >= 0:
            left, top, right, bottom = self._draw.textbbox(at, plain, font, anchor=anchor)
            begin = left + (right - left) * place / len(text)
            wide, tall = (bottom - top) * 0.75, bottom - top
            for share in (0.5, 0.75):
                self._draw.line(
                    [begin, top + tall * share, begin + wide, top + tall * share], fill, self._pen(size / 14)
                )

    def price(self, x: float, y: float, size: float, fill: Colour, *, anchor: str = "la") -> None:
        """A random price."""
        self.figures(x, y, f"¥{self.rng.randint(9, 899)}.{self.rng.choice('0589')}0", size, fill, anchor=anchor)

    def dim(self, amount: float) -> None:
        """Darken everything drawn so far; 1 is black."""
        self.image = self.image.point([round(value * (1 - amount)) for value in range(256)] * 3)
        self._draw = ImageDraw.Draw(self.image)

    def turn(self, degrees: float) -> None:
        """Hold the camera askew: rotate the picture and keep its middle."""
        width, height = self.image.size
        turned = self.image.rotate(degrees, Image.Resampling.BILINEAR)
        edge = (width * 0.11, height * 0.11, width * 0.89, height * 0.89)
        self.image = turned.resize((width, height), Image.Resampling.BILINEAR, box=edge)
        self._draw = ImageDraw.Draw(self.image)

    def grain(self, shade: tuple[Colour, Colour]) -> None:
        """Sensor noise, and light falling from one corner, as a camera gives."""
        width, height = self.image.size
        left, top = self.rng.randrange(_TILE // 4), self.rng.randrange(_TILE // 4)
        noise = _noise().crop((left, top, left + width, top + height))
        light = Image.new("RGB", (2, 2))
        light.putdata([self.rng.choice(shade) for _ in range(4)])
        lit = ImageChops.multiply(self.image, light.resize(self.image.size, Image.Resampling.BILINEAR))
        self.image = ImageChops.add(lit, noise, 1, -128)
        self._draw = ImageDraw.Draw(self.image)


_GLYPHS = 64
_TILE = 1024


@lru_cache(maxsize=64)
def _glyphs(cell: int) -> Image.Image:
    """A strip of made-up square characters, ``cell`` pixels high, as a mask."""
    return _master_glyphs().resize((cell * _GLYPHS, cell), Image.Resampling.BOX)


@lru_cache(maxsize=1)
def _master_glyphs() -> Image.Image:
    side, rng = 24, random.Random("glyphs")
    strip = Image.new("L", (side * _GLYPHS, side))
    draw = ImageDraw.Draw(strip)
    for number in range(_GLYPHS):
        left = number * side
        for _ in range(rng.randint(2, 4)):
            y = rng.choice([3, 8, 12, 17, 20])
            draw.line([left + rng.randint(2, 6), y, left + rng.randint(15, 21), y], 255, 3)
        for _ in range(rng.randint(1, 3)):
            x = left + rng.choice([4, 8, 12, 16, 19])
            draw.line([x, rng.randint(2, 7), x + rng.choice([-3, 0, 0, 3]), rng.randint(15, 21)], 255, 3)
    return strip


@lru_cache(maxsize=32)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(max(6, size))


@lru_cache(maxsize=1)
def _noise() -> Image.Image:
    values = np.random.Generator(np.random.PCG64(0)).normal(128, 3, (_TILE, _TILE, 1)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(np.repeat(values, 3, axis=2))
