"""Pages on which goods are shown, chosen and collected."""

from __future__ import annotations

from tuyi.data.sample.canvas import Canvas, Colour, tint
from tuyi.data.sample.icons import WHITE, avatar, check, star, stepper
from tuyi.data.sample.products import product_colour, shade, thumb

__all__ = ["cart", "coupons", "head_picture", "options", "reviews", "shop"]


def _button(c: Canvas, x: float, y: float, w: float, h: float, fill: Colour) -> None:
    c.box(x, y, w, h, fill, r=h / 2)
    c.words(x + w / 2 - h * 0.6, y + h * 0.3, 3, h * 0.4, WHITE)


def options(c: Canvas, top: float, kinds: str, *, sheet: float, chips: str, columns: int, groups: int) -> None:
    """A sheet of colour swatches and size chips over a dimmed product page."""
    thumb(c, 0, top, 100, c.height * sheet, kinds)
    c.dim(c.rng.uniform(0.25, 0.6))
    top = max(top, c.height * sheet)
    c.box(0, top, 100, c.height - top, c.theme.card, r=4)
    thumb(c, 5, top + 5, 24, 24, kinds)
    c.price(34, top + 8, 8, c.theme.accent)
    c.lines(34, top + 19, 50, 2, c.theme.muted)
    y, height = top + 35, {"disc": 21.0, "tile": 26.0, "pill": 15.0}[chips]
    rows = max(1, int((c.height - 18 - y) / groups - 9) // int(height))
    for _ in range(groups):
        c.words(5, y, 4, 4.5, c.theme.ink)
        y += 8
        chosen = c.rng.randrange(rows * columns)
        for place in range(rows * columns):
            x, width = 5 + place % columns * 90 / columns, 90 / columns - 4
            _chip(c, (x, y + place // columns * height), (width, height - 4), chips, place == chosen)
        y += rows * height + 1
    _button(c, 5, c.height - 14, 90, 11, c.theme.accent)


def _chip(c: Canvas, at: tuple[float, float], size: tuple[float, float], style: str, chosen: bool) -> None:
    (x, y), (w, h) = at, size
    edge = c.theme.accent if chosen else c.theme.line
    if style == "pill":
        c.box(x, y, w, h, c.theme.page, r=h / 2, edge=edge)
        c.disc(x + h / 2 + 1, y + h / 2, h * 0.34, product_colour(c))
        c.words(x + h + 2, y + h * 0.32, int((w - h - 3) / 4), 4, c.theme.ink)
        return
    radius = min(w, h) / 2
    if style == "disc":
        c.disc(x + w / 2, y + h / 2, radius, product_colour(c))
    else:
        c.box(x + w / 2 - radius, y, radius * 2, h - 1, product_colour(c), r=2)
    if chosen:
        c.disc(x + w / 2, y + h / 2, radius + 1.5, None, edge=edge, pen=1.6)


def head_picture(
    c: Canvas, top: float, kinds: str, *, aspect: float, strip: bool, ribbon: str, price_first: bool
) -> None:
    """A product page: one large picture with page dots, price and title below, two buttons at the foot."""
    start = top if price_first else 0.0
    height = min(100 * aspect, c.height - 52)
    thumb(c, 0, start, 100, height, kinds)
    if ribbon == "foot":
        c.box(0, start + height - 13, 100, 13, c.theme.accent)
        c.price(5, start + height - 11, 9, WHITE)
    elif ribbon == "corner":
        c.poly([(0, start), (32, start), (0, start + 32)], c.theme.accent)
    c.box(82, start + height - 22, 14, 7, (90, 90, 90), r=3.5)
    c.figures(89, start + height - 18.5, "1/5", 4.5, WHITE, anchor="mm")
    y = start + height + 3
    if strip:
        for place in range(5):
            thumb(c, 4 + place * 19, y, 16, 16, kinds)
        y += 20
    if ribbon != "foot":
        c.price(5, y, 10, c.theme.accent)
        y += 14
    c.lines(5, y, 85, 2, c.theme.ink, 5)
    c.box(0, c.height - 15, 100, 15, c.theme.card)
    _button(c, 30, c.height - 13, 32, 10, c.theme.second)
    _button(c, 64, c.height - 13, 33, 10, c.theme.accent)


def reviews(c: Canvas, top: float, kinds: str, *, summary: bool, stars: str, photos: int, card: bool) -> None:
    """Round portraits, rows of five stars, what people wrote and their pictures."""
    gold = tint(c.rng.uniform(0.10, 0.13), 0.85, 0.98)
    y = top + 3
    if summary:
        c.figures(6, y + 2, f"{c.rng.randint(40, 50) / 10}", 13, c.theme.ink)
        for row in range(5):
            c.box(42, y + 1 + row * 4, 50, 2, c.theme.line, r=1)
            c.box(42, y + 1 + row * 4, 50 * c.rng.random() / (row + 1), 2, gold, r=1)
        y += 25
    while y < c.height - 30:
        block = 34 + (22 if photos else 0)
        if card:
            c.box(2, y - 1, 96, block, c.theme.card, r=3)
        avatar(c, 11, y + 8, 6.5, product_colour(c))
        c.words(21, y + 3, c.rng.randint(3, 5), 4, c.theme.muted)
        left, line = {"side": (55.0, y + 6), "below": (24.0, y + 12), "left": (9.0, y + 20)}[stars]
        full = c.rng.choice([2, 3, 4, 5, 5, 5])
        for place in range(5):
            star(c, left + place * 8.5, line, 4.4, gold if place < full else c.theme.line)
        text = c.lines(6, y + (25 if stars == "left" else 19), 86, 2, c.theme.ink)
        for place in range(photos):
            thumb(c, 6 + place * 30, text + 1, 27, 20, kinds)
        y += block + 3


def cart(c: Canvas, top: float, kinds: str, *, thumb_width: float, square: bool, grouped: bool, foot: float) -> None:
    """Ticked goods with price and count, and a bar with the sum at the foot."""
    y = top + 3
    row = thumb_width + 7
    while y < c.height - foot - row * 0.7:
        if grouped:
            check(c, 7, y + 4, 3.6, c.theme.accent, square=square)
            c.words(14, y + 2, 7, 4.5, c.theme.ink)
            y += 10
        c.box(1, y - 1, 98, row - 2, c.theme.card, r=2)
        check(c, 7, y + thumb_width / 2, 4.4, c.rng.choice([c.theme.accent, c.theme.accent, None]), square=square)
        thumb(c, 14, y + 1, thumb_width - 2, thumb_width - 2, kinds)
        left = 16 + thumb_width
        c.lines(left, y + 2, 80 - thumb_width, 2, c.theme.ink)
        c.price(left, y + thumb_width - 8, 6, c.theme.accent)
        stepper(c, 73, y + thumb_width - 9, 24)
        y += row
    c.box(0, c.height - foot, 100, foot, c.theme.card)
    check(c, 8, c.height - foot / 2, 4.4, c.theme.accent, square=square)
    c.price(64, c.height - foot / 2, 7, c.theme.accent, anchor="rm")
    _button(c, 68, c.height - foot + 2.5, 29, foot - 5, c.theme.accent)


def shop(c: Canvas, top: float, kinds: str, *, banner: float, logo: str, columns: int, tabs: bool) -> None:
    """A shop's front: banner with its round sign and a follow button, then a grid of goods."""
    c.box(0, 0, 100, top + banner, c.theme.accent)
    c.disc(80, top, 34, shade(c.theme.accent, 0.86))
    sign = 50.0 if logo == "middle" else 16.0
    c.disc(sign, top + banner * 0.45, 11, WHITE)
    star(c, sign, top + banner * 0.45, 7, c.theme.second)
    if logo == "left":
        c.words(31, top + banner * 0.45 - 6, 6, 5.5, WHITE)
        c.words(31, top + banner * 0.45 + 2, 5, 4, WHITE)
    c.box(76, top + banner * 0.45 - 5, 20, 10, WHITE, r=5)
    c.words(80, top + banner * 0.45 - 2, 3, 4, c.theme.accent)
    y = top + banner + 2
    if tabs:
        for place in range(4):
            c.words(6 + place * 24, y + 2, 3, 5, c.theme.accent if place == 0 else c.theme.ink)
        c.box(6, y + 9, 15, 1.2, c.theme.accent)
        y += 13
    width = 100 / columns
    while y < c.height - 12:
        for place in range(columns):
            x = place * width + 1.5
            c.box(x, y, width - 3, width + 13, c.theme.card, r=2)
            thumb(c, x, y, width - 3, width - 3, kinds)
            c.words(x + 2, y + width - 1, int((width - 8) / 4), 4, c.theme.ink)
            c.price(x + 2, y + width + 5, 5.5, c.theme.accent)
        y += width + 16


def coupons(c: Canvas, top: float, kinds: str, *, side: str, height: float, columns: int, poster: bool) -> None:
    """Tickets with notched edges: the amount on a coloured part, a button to take each."""
    y = top + 3
    if poster:
        c.box(0, top, 100, 34, c.theme.second)
        c.words(16, top + 9, 6, 11, WHITE)
        y = top + 38
    width = 96 / columns
    while y < c.height - height * 0.6:
        for place in range(columns):
            _ticket(c, (2 + place * width, y), (width - 2, height - 4), side)
        y += height


def _ticket(c: Canvas, at: tuple[float, float], size: tuple[float, float], side: str) -> None:
    (x, y), (w, h) = at, size
    ground = c.theme.page
    c.box(x, y, w, h, c.theme.card, r=2)
    if side == "top":
        c.box(x, y, w, h * 0.58, c.theme.accent, r=2)
        c.figures(x + w / 2, y + h * 0.3, f"¥{c.rng.choice([5, 8, 10, 20, 50])}", 13, WHITE, anchor="mm")
        _button(c, x + w * 0.2, y + h * 0.7, w * 0.6, h * 0.2, c.theme.accent)
        notches = [(x, y + h * 0.58), (x + w, y + h * 0.58)]
    else:
        cut = 0.34 * w
        left = x if side == "left" else x + w - cut
        c.box(left, y, cut, h, c.theme.accent, r=2)
        c.figures(left + cut / 2, y + h / 2, f"¥{c.rng.choice([5, 8, 10, 20, 50])}", 13, WHITE, anchor="mm")
        text = x + cut + 4 if side == "left" else x + 4
        c.lines(text, y + h * 0.2, w * 0.3, 2, c.theme.ink)
        _button(c, text + w * 0.36, y + h * 0.34, w * 0.22, h * 0.34, c.theme.accent)
        edge = x + cut if side == "left" else x + w - cut
        notches = [(edge, y), (edge, y + h)]
        for step in range(1, 6):
            c.disc(edge, y + h * step / 6, 0.8, ground)
    for notch in notches:
        c.disc(notch[0], notch[1], 4.2, ground)
