"""Small drawings that phone pages share: signs, vehicles, controls."""

from __future__ import annotations

import math

from tuyi.data.sample.canvas import Canvas, Colour, Point

__all__ = ["WHITE", "avatar", "check", "cross", "parcel", "pin", "radio", "star", "stepper", "truck", "warning"]

WHITE: Colour = (255, 255, 255)


def star(c: Canvas, x: float, y: float, r: float, fill: Colour) -> None:
    """A five-pointed star around (x, y)."""
    points: list[Point] = []
    for step in range(10):
        radius = r if step % 2 == 0 else r * 0.42
        angle = math.pi * (step / 5 - 0.5)
        points.append((x + radius * math.cos(angle), y + radius * math.sin(angle)))
    c.poly(points, fill)


def truck(c: Canvas, x: float, y: float, w: float, fill: Colour) -> None:
    """A delivery truck, ``w`` wide, with its upper left corner at (x, y)."""
    c.box(x, y, w * 0.62, w * 0.46, fill)
    c.poly([(x + w * 0.66, y + w * 0.14), (x + w * 0.86, y + w * 0.14), (x + w, y + w * 0.3), (x + w, y + w * 0.46),
            (x + w * 0.66, y + w * 0.46)], fill)  # fmt: skip
    for wheel in (0.2, 0.8):
        c.disc(x + w * wheel, y + w * 0.5, w * 0.11, fill, edge=WHITE, pen=w * 0.04)


def parcel(c: Canvas, x: float, y: float, w: float, fill: Colour) -> None:
    """A taped cardboard box, ``w`` wide."""
    dark = (fill[0] * 3 // 4, fill[1] * 3 // 4, fill[2] * 3 // 4)
    c.poly([(x, y + w * 0.25), (x + w * 0.2, y), (x + w * 0.8, y), (x + w, y + w * 0.25)], dark)
    c.box(x, y + w * 0.25, w, w * 0.6, fill)
    c.box(x + w * 0.42, y, w * 0.16, w * 0.5, (235, 225, 190))


def warning(c: Canvas, x: float, y: float, r: float, shape: str, colours: tuple[Colour, Colour]) -> None:
    """A warning sign around (x, y); ``shape`` is ``triangle``, ``disc`` or ``cross``, colours are ground and mark."""
    ground, mark = colours
    if shape == "triangle":
        c.poly([(x, y - r), (x + r * 1.1, y + r * 0.85), (x - r * 1.1, y + r * 0.85)], ground)
    else:
        c.disc(x, y, r, ground)
    if shape == "cross":
        cross(c, x, y, r * 0.42, mark, r * 0.22)
        return
    c.box(x - r * 0.12, y - r * 0.5, r * 0.24, r * 0.75, mark)
    c.box(x - r * 0.12, y + r * 0.4, r * 0.24, r * 0.24, mark)


def cross(c: Canvas, x: float, y: float, r: float, fill: Colour, pen: float) -> None:
    """Two crossing strokes."""
    c.path([(x - r, y - r), (x + r, y + r)], fill, pen)
    c.path([(x - r, y + r), (x + r, y - r)], fill, pen)


def check(c: Canvas, x: float, y: float, r: float, fill: Colour | None, *, square: bool = False) -> None:
    """A ticked box around (x, y); without ``fill`` an empty one."""
    edge = fill or c.theme.muted
    if square:
        c.box(x - r, y - r, 2 * r, 2 * r, fill, r=r * 0.3, edge=edge)
    else:
        c.disc(x, y, r, fill, edge=edge, pen=max(0.8, r * 0.18))
    if fill:
        c.path([(x - r * 0.5, y), (x - r * 0.1, y + r * 0.4), (x + r * 0.5, y - r * 0.4)], WHITE, r * 0.28)


def radio(c: Canvas, x: float, y: float, r: float, chosen: bool) -> None:
    """A radio button around (x, y)."""
    c.disc(x, y, r, None, edge=c.theme.accent if chosen else c.theme.muted, pen=0.9)
    if chosen:
        c.disc(x, y, r * 0.55, c.theme.accent)


def avatar(c: Canvas, x: float, y: float, r: float, fill: Colour) -> None:
    """A person's round picture around (x, y)."""
    c.disc(x, y, r, fill)
    c.disc(x, y - r * 0.25, r * 0.36, WHITE)
    c.wedge(x, y + r * 0.85, r * 0.62, (180, 360), WHITE)


def pin(c: Canvas, x: float, y: float, r: float, fill: Colour) -> None:
    """A map pin whose tip is at (x, y)."""
    c.poly([(x - r * 0.85, y - r * 1.6), (x + r * 0.85, y - r * 1.6), (x, y)], fill)
    c.disc(x, y - r * 2, r, fill)
    c.disc(x, y - r * 2, r * 0.4, WHITE)


def stepper(c: Canvas, x: float, y: float, w: float) -> None:
    """Minus, count, plus; ``w`` wide."""
    h = w * 0.32
    c.box(x, y, w, h, None, r=1, edge=c.theme.muted)
    c.path([(x + w * 0.08, y + h / 2), (x + w * 0.24, y + h / 2)], c.theme.ink, 0.9)
    c.path([(x + w * 0.76, y + h / 2), (x + w * 0.92, y + h / 2)], c.theme.ink, 0.9)
    c.path([(x + w * 0.84, y + h * 0.22), (x + w * 0.84, y + h * 0.78)], c.theme.ink, 0.9)
    c.figures(x + w / 2, y + h / 2, str(c.rng.randint(1, 3)), h * 0.85, c.theme.ink, anchor="mm")
