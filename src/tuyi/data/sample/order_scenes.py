"""Pages on which an order is paid, sent, followed and accounted for; and the camera's own picture."""

from __future__ import annotations

import math

from tuyi.data.sample.canvas import Canvas, Colour, Point, tint
from tuyi.data.sample.icons import WHITE, check, cross, parcel, pin, radio, truck, warning
from tuyi.data.sample.products import PRODUCTS, product_colour, shade, thumb

__all__ = ["account", "order_fails", "parcels", "payment", "photograph", "tracking"]


def order_fails(c: Canvas, top: float, kinds: str, *, popup: str, sign: str, at: float, buttons: int) -> None:
    """A page gone dark behind a message with a warning sign: the order did not go through."""
    y = top + 2
    while y < c.height - 10:
        if c.rng.random() < 0.5:
            thumb(c, 4, y, 24, 24, kinds)
        c.box(30, y, 66, 24, c.theme.card, r=2)
        c.lines(33, y + 3, 56, 3, c.theme.muted)
        y += 28
    c.dim(c.rng.uniform(0.25, 0.6))
    height = 62.0 + (16 if buttons else 0)
    y = (c.height - height) * at
    ground, ink = ((38, 38, 42), WHITE) if popup == "toast" else (WHITE, (50, 50, 54))
    red = tint(c.rng.uniform(-0.01, 0.11), 0.85, 0.95)
    c.box(12, y, 76, height, ground, r=6)
    warning(c, 50, y + 22, 14, sign, (red, WHITE))
    c.words(50 - 6 * 3, y + 41, 6, 6, ink)
    c.words(50 - 9 * 2, y + 51, 9, 4, c.theme.muted)
    for place in range(buttons):
        width = 68 / buttons - 2
        fill = c.theme.accent if place == buttons - 1 else c.theme.line
        c.box(16 + place * (width + 4), y + height - 16, width, 11, fill, r=5.5)


def payment(c: Canvas, top: float, kinds: str, *, ways: int, boxes: bool, keys: float, shaded: bool) -> None:
    """The sum in large figures, ways to pay, and a number pad at the foot."""
    pad = c.height - 4 * keys
    c.price(50, top + 12, 14, c.theme.ink, anchor="mm")
    y = top + 26
    for place in range(ways):
        c.box(3, y, 94, 13, c.theme.card, r=2)
        c.box(7, y + 2.5, 8, 8, tint(c.rng.random(), 0.7, 0.85), r=2)
        c.words(19, y + 4, c.rng.randint(4, 7), 5, c.theme.ink)
        radio(c, 90, y + 6.5, 3.6, place == 0)
        y += 15
    if boxes:
        for place in range(6):
            c.box(8 + place * 14, min(y + 2, pad - 17), 14, 13, c.theme.card, edge=c.theme.muted)
            if place < c.rng.randint(1, 5):
                c.disc(15 + place * 14, min(y + 2, pad - 17) + 6.5, 2, c.theme.ink)
    else:
        c.box(6, pad - 14, 88, 11, c.theme.accent, r=5.5)
    c.box(0, pad - 1, 100, 4 * keys + 1, c.theme.line if shaded else c.theme.card)
    for key in range(12):
        x, row = key % 3 * 33.3, pad + key // 3 * keys
        if key != 9:
            c.box(x + 1, row + 1, 31.3, keys - 2, c.theme.card, r=1.5, edge=c.theme.line)
            text = "0" if key == 10 else "<" if key == 11 else str(key + 1)
            c.figures(x + 16.6, row + keys / 2, text, keys * 0.5, c.theme.ink, anchor="mm")


def parcels(c: Canvas, top: float, kinds: str, *, side: str, card: bool, dots: int, height: float) -> None:
    """A list of parcels, each with its truck and how far it has come."""
    y = top + 3
    green = tint(c.rng.uniform(0.02, 0.6), 0.7, 0.75)
    while y < c.height - height * 0.7:
        if card:
            c.box(2, y, 96, height - 3, c.theme.card, r=3)
        left = 6.0 if side == "left" else 68.0
        truck(c, left, y + height * 0.2, 26, green)
        text = 38 if side == "left" else 6
        c.lines(text, y + 4, 54, 2, c.theme.ink, 4.5)
        line = y + height * 0.68
        c.box(text, line - 0.6, 54, 1.2, c.theme.line)
        done = c.rng.randint(1, dots)
        for place in range(dots):
            c.disc(text + 2 + place * 50 / (dots - 1), line, 2, green if place < done else c.theme.line)
        y += height


def tracking(c: Canvas, top: float, kinds: str, *, share: float, rail: float, steps: str, low: bool) -> None:
    """A map with the way from pin to pin, and the stations on a rail."""
    tall = (c.height - top) * share
    start = c.height - tall if low else top
    _map(c, start, tall)
    y = top + 6 if low else start + tall + 6
    end = start - 4 if low else c.height
    c.box(rail - 0.5, y, 1, max(0, end - y - 8), c.theme.line)
    first = True
    while y < end - 8:
        if steps == "check" or first:
            check(c, rail, y + 2, 3.4, c.theme.accent)
        else:
            c.disc(rail, y + 2, 2.4, c.theme.muted)
        c.lines(rail + 8, y, 84 - rail, 2, c.theme.ink if first else c.theme.muted)
        y, first = y + 19, False


def _map(c: Canvas, top: float, tall: float) -> None:
    night = c.rng.random() < 0.35
    land = tint(c.rng.random(), 0.12, 0.25 if night else 0.92)
    road: Colour = (96, 98, 106) if night else (252, 252, 248)
    c.box(0, top, 100, tall, land)
    for _ in range(3):
        x, y = c.rng.uniform(0, 70), top + c.rng.uniform(0, tall * 0.7)
        c.box(
            x, y, c.rng.uniform(14, 30), tall * 0.2, tint(c.rng.choice([0.3, 0.57]), 0.25, 0.4 if night else 0.94), r=3
        )
    for place in range(1, 4):
        shift = c.rng.uniform(-12, 12)
        c.path([(0, top + tall * place / 4 + shift / 2), (100, top + tall * place / 4 - shift / 2)], road, 2.5)
        c.path([(100 * place / 4 + shift, top), (100 * place / 4 - shift, top + tall)], road, 2.5)
    ends = [(c.rng.uniform(10, 25), top + tall * c.rng.uniform(0.55, 0.9)),
            (c.rng.uniform(72, 90), top + tall * c.rng.uniform(0.3, 0.5))]  # fmt: skip
    middle: list[Point] = [(ends[0][0] + 22, ends[0][1] - tall * 0.1), (ends[1][0] - 22, ends[1][1] + tall * 0.2)]
    c.path([ends[0], *middle, ends[1]], c.theme.accent, 3.2)
    pin(c, *ends[0], 4.5, (40, 170, 90))
    pin(c, *ends[1], 4.5, (225, 60, 50))


def account(c: Canvas, top: float, kinds: str, *, chart: str, low: bool, row: float, discs: bool) -> None:
    """Money in and out: a chart, and a list of amounts with sign."""
    size = 58.0
    _chart(c, c.height - size - 2 if low else top + 2, size, chart)
    y = top + 3 if low else top + size + 5
    end = c.height - size - 4 if low else c.height
    while y < end - row * 0.8:
        fill = tint(c.rng.random(), 0.6, 0.85)
        if discs:
            c.disc(10, y + row / 2, row * 0.3, fill)
            c.figures(10, y + row / 2, "¥", row * 0.34, WHITE, anchor="mm")
        else:
            c.box(4, y + row * 0.2, 2, row * 0.6, fill)
        c.words(20, y + row * 0.2, c.rng.randint(4, 8), 4.5, c.theme.ink)
        c.words(20, y + row * 0.58, c.rng.randint(5, 8), 3.5, c.theme.muted)
        sign = c.rng.choice("+--")
        ink: Colour = (36, 160, 90) if sign == "+" else c.theme.ink
        c.figures(96, y + row / 2, f"{sign}{c.rng.randint(5, 980)}.{c.rng.randint(10, 99)}", 7, ink, anchor="rm")
        c.box(4, y + row - 0.4, 92, 0.4, c.theme.line)
        y += row


def _chart(c: Canvas, top: float, size: float, chart: str) -> None:
    c.box(3, top, 94, size, c.theme.card, r=4)
    if chart in ("ring", "pie"):
        angle, middle = c.rng.uniform(0, 360), top + size / 2
        c.disc(32, middle, size * 0.42, tint(0.8 + c.rng.random() / 9, 0.6, 0.9))
        for part in range(4):
            turn = c.rng.uniform(40, 85)
            c.wedge(32, middle, size * 0.42, (angle, angle + turn), tint(part / 5 + c.rng.random() / 9, 0.6, 0.9))
            angle += turn
        if chart == "ring":
            c.disc(32, middle, size * 0.22, c.theme.card)
        for part in range(4):
            c.words(64, top + 10 + part * 11, 6, 4.5, c.theme.ink)
        return
    count = 7 if chart == "bars" else 5
    for bar in range(count):
        tall = c.rng.uniform(0.25, 0.85) * size
        width = 84 / count
        c.box(8 + bar * width, top + size - 4 - tall, width * 0.62, tall, tint(bar / count, 0.6, 0.9), r=1)


def photograph(c: Canvas, top: float, kinds: str, *, ground: str, harm: str, tilt: float) -> None:
    """A camera's picture of goods at home, some of them damaged: no page around it."""
    surface(c, ground)
    x, y = c.rng.uniform(40, 60), c.height * c.rng.uniform(0.4, 0.62)
    c.oval(x - 34, y + 22, 74, 14, (70, 62, 56))
    col = product_colour(c)
    goods = PRODUCTS[kinds]
    goods[c.rng.choice(sorted(goods))](c, x, y, 72, col)
    if harm == "crack":
        points: list[Point] = [(x - 22 + step * 9, y - 18 + c.rng.uniform(-6, 6) + step * 6) for step in range(6)]
        c.path(points, (25, 22, 22), 1.4)
    elif harm == "stain":
        for _ in range(5):
            c.disc(x + c.rng.uniform(-15, 15), y + c.rng.uniform(-10, 20), c.rng.uniform(2, 6), (92, 70, 40))
    elif harm == "box":
        parcel(c, c.rng.uniform(2, 60), c.height * 0.7, 36, (176, 130, 80))
    elif harm == "hole":
        c.disc(x + 4, y + 4, 8, (30, 26, 26))
        cross(c, x + 4, y + 4, 8, (60, 50, 46), 1.2)
    c.turn(tilt)
    c.grain(((255, 252, 240), (196, 190, 180)))


def surface(c: Canvas, ground: str) -> None:
    """What a photographed thing stands on: ``wood``, ``tiles``, ``cloth``, ``wall``, ``stone`` or ``weave``."""
    wood = tint(c.rng.uniform(0.06, 0.1), c.rng.uniform(0.3, 0.5), c.rng.uniform(0.5, 0.75))
    grey = tint(c.rng.random(), 0.1, c.rng.uniform(0.55, 0.8))
    c.box(0, 0, 100, c.height, wood if ground in ("wood", "weave") else grey)
    if ground == "wood":
        for place in range(8):
            c.path([(0, c.height * place / 8), (100, c.height * place / 8 + c.rng.uniform(-3, 3))], shade(wood, 0.7), 1)
    elif ground == "tiles":
        for place in range(0, math.ceil(c.height), 30):
            c.path([(0, place), (100, place)], shade(grey, 0.8), 1.2)
            c.path([(place, 0), (place, c.height)], shade(grey, 0.8), 1.2)
    elif ground == "wall":
        c.box(0, c.height * 0.62, 100, c.height, shade(wood, 0.8))
    elif ground in ("cloth", "stone"):
        for _ in range(10):
            x, y = c.rng.uniform(-10, 100), c.rng.uniform(0, c.height)
            c.oval(x, y, c.rng.uniform(15, 50), c.rng.uniform(5, 18), shade(grey, c.rng.uniform(0.85, 1.0)))
    else:
        for place in range(-int(c.height), 100, 12):
            c.path([(place, 0), (place + c.height, c.height)], shade(wood, 0.85), 1)
