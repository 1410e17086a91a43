"""What the deciding photographs show: faults, pairs, materials, lamps and machines, amounts.

Each drawing takes the y of its middle and the parameters of its variant.
"""

from __future__ import annotations

from tuyi.data.sample.canvas import Canvas, Colour, tint
from tuyi.data.sample.icons import WHITE, parcel
from tuyi.data.sample.products import draw_product, product_colour, shade

__all__ = [
    "bubbles",
    "cloth",
    "lamp",
    "leak",
    "measure",
    "metal",
    "packages",
    "rash",
    "remote",
    "shipment",
    "versions",
    "washer",
]

STEEL: Colour = (176, 182, 190)
WATER: Colour = (88, 164, 226)
GLASS: Colour = (26, 30, 38)


def leak(c: Canvas, y: float, *, body: str, side: int) -> None:
    """A bottle lying in what ran out of it, drops at its lid."""
    col = product_colour(c)
    c.oval(4, y + 12, 92, 30, WATER)
    c.oval(50 + side * 30 - 22, y + 2, 44, 26, WATER)
    width, tall = {"tall": (24.0, 60.0), "wide": (38.0, 44.0), "square": (32.0, 50.0), "jar": (44.0, 36.0)}[body]
    c.box(50 - width / 2, y + 24 - tall, width, tall, col, r=3 if body == "square" else 9)
    c.box(50 - width / 4, y + 24 - tall - 9, width / 2, 10, shade(col, 0.5), r=1.5)
    for drop in range(4):
        x, top = 50 + side * (width / 2 + 4 + drop % 2 * 8), y + 20 - tall + drop * 11
        c.poly([(x, top - 8), (x - 4.5, top + 1), (x + 4.5, top + 1)], WATER)
        c.disc(x, top + 2, 4.8, WATER)


def rash(c: Canvas, y: float, *, limb: str, spots: int) -> None:
    """Skin with red spots."""
    skin = tint(c.rng.uniform(0.055, 0.075), c.rng.uniform(0.28, 0.42), 0.94)
    if limb == "arm":
        c.poly([(-5, y - 24), (105, y - 14), (105, y + 16), (-5, y + 30)], skin)
    elif limb == "leg":
        c.poly([(24, -5), (80, -5), (68, c.height + 5), (32, c.height + 5)], skin)
    elif limb == "hand":
        c.box(22, y - 10, 56, c.height, skin, r=14)
        for finger in range(4):
            c.box(22 + finger * 14.5, y - 38, 12.5, 50, skin, r=6)
    elif limb == "face":
        c.oval(14, y - 46, 72, 92, skin)
        for side in (-16, 16):
            c.oval(46 + side, y - 20, 8, 5, (40, 34, 34))
        c.arc(50, y + 18, 10, (20, 160), (170, 70, 70), 2)
    else:
        c.box(0, 0, 100, c.height, skin)
        c.arc(50, y - 20, 60, (20, 160), shade(skin, 0.85), 3)
    for _ in range(spots):
        spot = (c.rng.uniform(28, 70), y + c.rng.uniform(-16, 22))
        c.disc(*spot, c.rng.uniform(3.5, 5.5), (232, 120, 104))
        c.disc(*spot, 2.6, (204, 40, 44))


def bubbles(c: Canvas, y: float, *, device: str, count: int) -> None:
    """A dark screen under a film full of bubbles."""
    width, tall = {"phone": (50.0, 84.0), "tablet": (78.0, 62.0), "watch": (48.0, 56.0), "wide": (88.0, 46.0)}[device]
    c.box(50 - width / 2, y - tall / 2, width, tall, (70, 72, 78), r=6)
    c.box(50 - width / 2 + 3, y - tall / 2 + 3, width - 6, tall - 6, GLASS, r=3)
    if device == "watch":
        c.box(36, y + tall / 2, 28, c.height, (70, 72, 78))
    for _ in range(count):
        r = c.rng.uniform(5, 8.5)
        x = 50 + c.rng.uniform(-0.5, 0.5) * (width - 20)
        z = y + c.rng.uniform(-0.5, 0.5) * (tall - 20)
        c.disc(x, z, r, (104, 118, 138), edge=(236, 242, 250), pen=1.6)


def packages(c: Canvas, y: float, *, kind: str, low: bool) -> None:
    """The same thing in two packages: a gift box with its bow, and a bag, tin or plain box."""
    col = product_colour(c)
    other = {"bag": _bag, "tin": _tin, "plain": _plain, "sack": _sack}[kind]
    first, second = (27.0, 74.0) if c.rng.random() < 0.5 else (74.0, 27.0)
    _gift(c, first, y, col)
    other(c, second, y + (8 if low else 0), product_colour(c))


def _gift(c: Canvas, x: float, y: float, col: Colour) -> None:
    ribbon = (245, 205, 70)
    c.box(x - 20, y - 14, 40, 40, col, r=1.5)
    c.box(x - 3.5, y - 14, 7, 40, ribbon)
    c.box(x - 20, y + 2, 40, 7, ribbon)
    for side in (-1, 1):
        c.poly([(x, y - 14), (x + side * 16, y - 26), (x + side * 16, y - 8)], ribbon)


def _bag(c: Canvas, x: float, y: float, col: Colour) -> None:
    c.poly([(x - 17, y - 28), (x + 17, y - 28), (x + 20, y + 28), (x - 20, y + 28)], col)
    c.box(x - 17, y - 28, 34, 6, shade(col, 0.6))
    c.box(x - 12, y - 6, 24, 18, WHITE, r=2)


def _tin(c: Canvas, x: float, y: float, col: Colour) -> None:
    c.box(x - 17, y - 22, 34, 50, col, r=3)
    c.oval(x - 17, y - 28, 34, 12, STEEL)
    c.box(x - 17, y - 6, 34, 18, WHITE)


def _plain(c: Canvas, x: float, y: float, col: Colour) -> None:
    parcel(c, x - 20, y - 16, 40, (176, 130, 80))
    c.box(x - 12, y + 2, 24, 12, WHITE)


def _sack(c: Canvas, x: float, y: float, col: Colour) -> None:
    c.oval(x - 21, y - 16, 42, 46, col)
    c.poly([(x - 12, y - 28), (x + 12, y - 28), (x + 5, y - 12), (x - 5, y - 12)], col)
    c.box(x - 11, y + 0, 22, 14, WHITE, r=2)


def versions(c: Canvas, y: float, *, device: str, gap: float) -> None:
    """Two versions of one device side by side, one larger and with more lenses or keys."""
    for x, scale, lenses in ((28.0, 0.86, 1), (74.0, 1.08, 3)):
        x += -gap if x < 50 else gap
        w, h = {"phone": (34.0, 64.0), "player": (40.0, 58.0), "watch": (36.0, 40.0), "pad": (40.0, 50.0)}[device]
        w, h = w * scale, h * scale
        if device == "watch":
            c.box(x - w * 0.32, y - h, w * 0.64, h * 2, (60, 62, 68), r=3)
        c.box(x - w / 2, y - h / 2, w, h, (52, 56, 66), r=5, edge=(205, 208, 214))
        c.box(x - w / 2 + 3, y - h / 2 + 3, w - 6, h * 0.55, (74, 130, 196), r=2)
        for lens in range(lenses):
            c.disc(x + (lens - (lenses - 1) / 2) * 9, y + h * 0.3, 3.6, (235, 238, 242))


def metal(c: Canvas, y: float, *, thing: str, shine: float) -> None:
    """Something of bare steel."""
    light = shade(STEEL, 1.0 + shine)
    if thing == "pan":
        c.box(58, y - 5, 42, 10, shade(STEEL, 0.7), r=4)
        c.disc(38, y, 31, light)
        c.disc(38, y, 23, shade(STEEL, 0.82))
    elif thing == "knife":
        c.poly([(4, y - 14), (64, y - 16), (64, y + 12), (18, y + 10)], light)
        c.box(62, y - 15, 34, 15, (60, 50, 46), r=4)
    elif thing == "kettle":
        c.disc(48, y - 20, 20, None, edge=shade(STEEL, 0.6), pen=4)
        c.poly([(74, y - 10), (94, y - 22), (94, y - 14), (76, y + 6)], shade(STEEL, 0.8))
        c.box(20, y - 20, 58, 50, light, r=14)
    elif thing == "tap":
        c.box(42, y - 14, 16, 52, light, r=3)
        c.arc(62, y - 14, 24, (180, 360), STEEL, 11)
        c.box(30, y + 30, 40, 8, shade(STEEL, 0.8), r=2)
    elif thing == "pot":
        c.box(6, y - 14, 88, 9, shade(STEEL, 0.6), r=4)
        c.box(16, y - 18, 68, 46, light, r=6)
        c.oval(16, y - 27, 68, 18, shade(STEEL, 0.8))
    else:
        c.poly([(20, y + 30), (36, y - 4), (64, y - 4), (80, y + 30)], light)
        c.box(46, y - 34, 8, 34, shade(STEEL, 0.8), r=3)
    for x, top, r in ((34, y - 8, 11), (60, y + 8, 8)):
        _glint(c, x, top, r)


def _glint(c: Canvas, x: float, y: float, r: float) -> None:
    """A gleam with four rays."""
    slim = r * 0.2
    rays = [(x, y - r), (x + slim, y - slim), (x + r, y), (x + slim, y + slim)]
    c.poly([*rays, (x, y + r), (x - slim, y + slim), (x - r, y), (x - slim, y - slim)], WHITE)


def cloth(c: Canvas, y: float, *, thing: str, pattern: str) -> None:
    """Clothes or cloth of one strong colour."""
    col, other = tint(c.rng.random(), 0.85, 0.85), tint(c.rng.random(), 0.3, 0.98)
    if thing in ("shirt", "coat"):
        long = 26 if thing == "coat" else 8
        c.poly([(28, y - 30), (2, y - 12 + long), (16, y + 2 + long), (30, y - 8)], col)
        c.poly([(72, y - 30), (98, y - 12 + long), (84, y + 2 + long), (70, y - 8)], col)
        c.box(27, y - 30, 46, 68, col, r=2)
        c.wedge(50, y - 30, 9, (0, 180), shade(col, 0.55))
    elif thing == "trousers":
        c.poly([(26, y - 38), (74, y - 38), (84, y + 38), (58, y + 38), (50, y - 12), (42, y + 38), (16, y + 38)], col)
    elif thing == "dress":
        c.poly([(38, y - 38), (62, y - 38), (64, y - 10), (90, y + 38), (10, y + 38), (36, y - 10)], col)
    elif thing == "scarf":
        c.box(18, y - 40, 24, 78, col, r=3)
        c.box(52, y - 40, 24, 60, shade(col, 0.85), r=3)
        c.arc(47, y - 36, 22, (180, 360), col, 15)
    else:
        c.box(10, y - 30, 80, 62, col, r=4)
        c.poly([(62, y + 32), (90, y + 6), (90, y + 32)], shade(col, 0.6))
    for step in range(3):
        if pattern == "stripes":
            c.box(31, y - 4 + step * 12, 38, 4, other)
        elif pattern == "dots":
            c.disc(38 + step * 12, y + (step % 2) * 10 + 2, 3.2, other)


def lamp(c: Canvas, y: float, *, kind: str, cone: float) -> None:
    """A lamp that shines."""
    glow, metal = (255, 240, 150), (84, 80, 84)
    c.box(0, 0, 100, c.height, tint(c.rng.uniform(0.55, 0.75), 0.3, 0.3))
    if kind == "ring":
        c.disc(50, y - 6, 32, None, edge=glow, pen=9)
        c.box(48, y + 26, 4, c.height, metal)
        return
    top = {"ceiling": -30.0, "desk": -22.0, "floor": -34.0, "bulb": -14.0, "wall": -18.0}[kind] + y
    c.poly([(38, top + 10), (62, top + 10), (62 + cone, top + 66), (38 - cone, top + 66)], glow)
    if kind in ("ceiling", "bulb"):
        c.box(48.5, -5, 3, top + 8, metal)
    elif kind == "desk":
        c.path([(56, top + 4), (82, top + 26), (70, y + 40)], metal, 4)
        c.box(56, y + 38, 30, 6, metal, r=2)
    elif kind == "floor":
        c.box(48.5, top + 8, 3, c.height, metal)
    else:
        c.path([(50, top + 4), (98, top - 6)], metal, 4)
    if kind == "bulb":
        c.disc(50, top + 8, 15, (255, 250, 205))
    else:
        c.poly([(40, top - 8), (60, top - 8), (70, top + 14), (30, top + 14)], product_colour(c))


def remote(c: Canvas, y: float, *, shape: str, keys: int) -> None:
    """A remote control or wall panel: rows of keys and a signal."""
    w, h, body = {"long": (32.0, 80.0, (44, 46, 52)), "panel": (66.0, 64.0, (238, 238, 240)),
                  "white": (30.0, 76.0, (236, 236, 238)), "wide": (74.0, 46.0, (50, 52, 60)),
                  "round": (40.0, 72.0, (70, 76, 92))}[shape]  # fmt: skip
    c.box(50 - w / 2, y - h / 2, w, h, body, r=16 if shape == "round" else 6, edge=(120, 120, 126))
    columns = 5 if shape == "wide" else keys
    rows = max(2, int((h - 14) // (w / columns)))
    step = (w - 6) / columns
    for row in range(min(rows, 6)):
        for column in range(columns):
            ink: Colour = (228, 60, 56) if row == 0 and column == 0 else (150, 190, 230)
            c.disc(50 - w / 2 + 3 + (column + 0.5) * step, y - h / 2 + 9 + row * step, step * 0.36, ink)
    for ring in (10, 17, 24):
        c.arc(50, y - h / 2 - 1, ring, (225, 315), (60, 140, 240), 3)


def washer(c: Canvas, y: float, *, front: bool, hose: int, door: float) -> None:
    """A washing machine whose hose lets water out."""
    x = 50 - hose * 12
    c.box(x - 30, y - 40, 60, 74, (240, 242, 245), r=4, edge=(150, 154, 160))
    c.box(x - 30, y - 40, 60, 12, (200, 206, 214), r=3)
    if front:
        c.disc(x, y + 4, door, (110, 150, 190), edge=(90, 94, 100), pen=4)
    else:
        c.oval(x - door - 3, y - 26, 2 * door + 6, door, (110, 150, 190), edge=(90, 94, 100), pen=4)
    c.path([(x + hose * 30, y + 8), (x + hose * 42, y + 10), (x + hose * 44, y + 34)], (90, 94, 100), 6)
    c.oval(x + hose * 44 - 22, y + 34, 44, 14, WATER)
    for drop in range(3):
        c.disc(x + hose * 44 - 8 + drop * 8, y + 33, 3.6, WATER)


def measure(c: Canvas, y: float, *, tool: str, tall: float) -> None:
    """Goods on a scale, beside a ruler or in a measuring cup."""
    yellow, ink = (250, 214, 70), (40, 40, 44)
    kinds = "train" if tool in ("scale", "ruler", "cup") else "test"
    if tool in ("scale", "balance"):
        draw_product(c, 50, y - 18, 44, kinds)
        c.box(14, y + 4, 72, 7, STEEL, r=2)
        c.box(20, y + 11, 60, 26, yellow, r=4)
        c.box(34, y + 16, 32, 15, (214, 236, 214))
        c.figures(50, y + 23.5, f"{c.rng.randint(50, 990)}g", 12, ink, anchor="mm")
        return
    if tool == "cup":
        c.box(18, y - 34, 44, 68, (225, 236, 244), r=4, edge=ink)
        c.box(20, y - 34 + tall, 40, 66 - tall, yellow)
    else:
        draw_product(c, 36, y, 58, kinds)
    left = 68.0 if tool != "cup" else 66.0
    c.box(left, y - 40, 22, 80, yellow, r=1)
    for mark in range(10):
        c.box(left, y - 37 + mark * 8, 15 if mark % 2 == 0 else 9, 2.4, ink)


def shipment(c: Canvas, y: float, *, boxes: int, opened: bool) -> None:
    """What the courier brought: cardboard boxes, taped."""
    for number in range(boxes):
        size = 44.0 if boxes < 4 else 36.0
        x, top = 6 + number % 2 * (size + 6), y + 6 - number // 2 * (size * 0.9)
        card = shade((186, 138, 84), c.rng.uniform(0.85, 1.05))
        parcel(c, x, top, size, card)
        c.box(x + 4, top + size * 0.5, size * 0.3, size * 0.22, WHITE)
        if opened and number == 0:
            c.poly([(x, top + 11), (x - 8, top), (x + 6, top)], card)
