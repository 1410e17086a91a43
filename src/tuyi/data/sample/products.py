"""Neutral goods: what a shop sells, drawn so that it tells nothing about the question asked."""

from __future__ import annotations

from collections.abc import Callable

from tuyi.data.sample.canvas import Canvas, Colour, tint

__all__ = ["PRODUCTS", "draw_product", "product_colour", "shade", "thumb"]


def shade(colour: Colour, amount: float) -> Colour:
    """A darker colour; ``amount`` 1 changes nothing, 0 is black."""
    return round(colour[0] * amount), round(colour[1] * amount), round(colour[2] * amount)


def _mug(c: Canvas, x: float, y: float, s: float, col: Colour) -> None:
    c.disc(x + s * 0.3, y, s * 0.22, None, edge=shade(col, 0.7), pen=s * 0.07)
    c.box(x - s * 0.35, y - s * 0.4, s * 0.65, s * 0.8, col, r=s * 0.08)
    c.oval(x - s * 0.35, y - s * 0.48, s * 0.65, s * 0.18, shade(col, 0.7))


def _shoe(c: Canvas, x: float, y: float, s: float, col: Colour) -> None:
    c.poly([(x - s * 0.48, y - s * 0.25), (x - s * 0.1, y - s * 0.28), (x + s * 0.12, y), (x + s * 0.48, y + s * 0.1),
            (x + s * 0.48, y + s * 0.25), (x - s * 0.48, y + s * 0.25)], col)  # fmt: skip
    c.box(x - s * 0.5, y + s * 0.2, s, s * 0.1, (245, 245, 245), r=s * 0.04)


def _chair(c: Canvas, x: float, y: float, s: float, col: Colour) -> None:
    c.box(x - s * 0.28, y - s * 0.48, s * 0.5, s * 0.5, col, r=s * 0.06)
    c.box(x - s * 0.34, y, s * 0.68, s * 0.12, shade(col, 0.75), r=s * 0.04)
    for leg in (-0.3, 0.22):
        c.box(x + s * leg, y + s * 0.1, s * 0.07, s * 0.38, shade(col, 0.5))


def _bear(c: Canvas, x: float, y: float, s: float, col: Colour) -> None:
    for side in (-0.25, 0.25):
        c.disc(x + s * side, y - s * 0.36, s * 0.12, shade(col, 0.75))
    c.disc(x, y + s * 0.22, s * 0.28, col)
    c.disc(x, y - s * 0.16, s * 0.28, col)
    for side in (-0.1, 0.1):
        c.disc(x + s * side, y - s * 0.2, s * 0.04, (30, 30, 30))
    c.oval(x - s * 0.1, y - s * 0.12, s * 0.2, s * 0.14, (245, 230, 210))


def _ball(c: Canvas, x: float, y: float, s: float, col: Colour) -> None:
    c.disc(x, y, s * 0.42, col)
    c.arc(x - s * 0.4, y, s * 0.5, (-50, 50), shade(col, 0.6), s * 0.04)
    c.arc(x + s * 0.4, y, s * 0.5, (130, 230), shade(col, 0.6), s * 0.04)


def _backpack(c: Canvas, x: float, y: float, s: float, col: Colour) -> None:
    c.disc(x, y - s * 0.36, s * 0.12, None, edge=shade(col, 0.5), pen=s * 0.05)
    c.box(x - s * 0.32, y - s * 0.36, s * 0.64, s * 0.8, col, r=s * 0.2)
    c.box(x - s * 0.22, y + s * 0.05, s * 0.44, s * 0.28, shade(col, 0.75), r=s * 0.06)


def _plant(c: Canvas, x: float, y: float, s: float, col: Colour) -> None:
    for dx, dy in [(-0.2, -0.2), (0.2, -0.2), (0, -0.34), (-0.1, -0.1), (0.12, -0.08)]:
        c.disc(x + s * dx, y + s * dy, s * 0.15, (70, 150, 80))
    c.poly([(x - s * 0.26, y + s * 0.08), (x + s * 0.26, y + s * 0.08), (x + s * 0.18, y + s * 0.46),
            (x - s * 0.18, y + s * 0.46)], col)  # fmt: skip


def _cake(c: Canvas, x: float, y: float, s: float, col: Colour) -> None:
    c.box(x - s * 0.4, y - s * 0.02, s * 0.8, s * 0.36, col, r=s * 0.05)
    c.box(x - s * 0.4, y - s * 0.08, s * 0.8, s * 0.14, (255, 246, 232), r=s * 0.07)
    for dx in (-0.2, 0, 0.2):
        c.box(x + s * dx - s * 0.02, y - s * 0.32, s * 0.04, s * 0.26, shade(col, 0.6))


def _book(c: Canvas, x: float, y: float, s: float, col: Colour) -> None:
    c.box(x - s * 0.32, y - s * 0.42, s * 0.64, s * 0.84, col, r=s * 0.03)
    c.box(x - s * 0.32, y - s * 0.42, s * 0.1, s * 0.84, shade(col, 0.6))
    c.box(x - s * 0.12, y - s * 0.22, s * 0.34, s * 0.12, (245, 245, 245))


def _umbrella(c: Canvas, x: float, y: float, s: float, col: Colour) -> None:
    c.wedge(x, y, s * 0.46, (180, 360), col)
    c.box(x - s * 0.02, y, s * 0.04, s * 0.4, (90, 90, 90))
    c.arc(x + s * 0.06, y + s * 0.38, s * 0.08, (0, 180), (90, 90, 90), s * 0.04)


def _cap(c: Canvas, x: float, y: float, s: float, col: Colour) -> None:
    c.wedge(x - s * 0.06, y + s * 0.12, s * 0.36, (180, 360), col)
    c.oval(x + s * 0.0, y + s * 0.02, s * 0.5, s * 0.16, shade(col, 0.7))


def _pillow(c: Canvas, x: float, y: float, s: float, col: Colour) -> None:
    c.box(x - s * 0.45, y - s * 0.3, s * 0.9, s * 0.6, col, r=s * 0.2)
    c.box(x - s * 0.3, y - s * 0.18, s * 0.6, s * 0.36, None, r=s * 0.1, edge=shade(col, 0.7))


PRODUCTS: dict[str, dict[str, Callable[[Canvas, float, float, float, Colour], None]]] = {
    "train": {"mug": _mug, "shoe": _shoe, "chair": _chair, "bear": _bear,
              "ball": _ball, "backpack": _backpack, "plant": _plant, "cake": _cake},
    "test": {"book": _book, "umbrella": _umbrella, "cap": _cap, "pillow": _pillow},
}  # fmt: skip
"""Goods by part of the sample; each takes a centre (x, y), a size and a colour."""


def product_colour(c: Canvas) -> Colour:
    """A colour for a thing, of any hue, never as dark as ink nor as light as paper."""
    return tint(c.rng.random(), c.rng.uniform(0.35, 0.8), c.rng.uniform(0.6, 0.92))


def draw_product(c: Canvas, x: float, y: float, size: float, kinds: str) -> None:
    """One of the goods of a part of the sample, around (x, y)."""
    goods = PRODUCTS[kinds]
    goods[c.rng.choice(sorted(goods))](c, x, y, size, product_colour(c))


def thumb(c: Canvas, x: float, y: float, w: float, h: float, kinds: str) -> None:
    """A product picture on its own ground, as shop pages tile them."""
    c.box(x, y, w, h, tint(c.rng.random(), c.rng.uniform(0.03, 0.18), c.rng.uniform(0.8, 0.97)), r=1.5)
    draw_product(c, x + w / 2, y + h / 2, min(w, h) * 0.8, kinds)
