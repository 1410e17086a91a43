"""Photographs that decide what an ambiguous question is about: one subject for each intent.

Every subject has variants for training and others for the test; what makes it recognisable is in all of them.
"""

from __future__ import annotations

from tuyi.data.sample import subjects
from tuyi.data.sample.canvas import Canvas
from tuyi.data.sample.order_scenes import surface
from tuyi.data.sample.products import PRODUCTS, product_colour
from tuyi.data.sample.variants import Part, Variants, variants

__all__ = ["EVIDENCE", "GROUNDS", "draw_photo"]


EVIDENCE: dict[str, Variants] = {
    "反馈密封性不好": variants(
        subjects.leak, "body side",
        [("tall", 1), ("wide", -1), ("square", 1), ("tall", -1), ("wide", 1)], [("jar", 1), ("square", -1)],
    ),
    "反馈用后症状": variants(
        subjects.rash, "limb spots",
        [("arm", 12), ("leg", 14), ("hand", 10), ("back", 16), ("arm", 20)], [("face", 13), ("leg", 18)],
    ),
    "气泡": variants(
        subjects.bubbles, "device count",
        [("phone", 9), ("tablet", 14), ("watch", 7), ("phone", 14)], [("wide", 11), ("tablet", 9)],
    ),
    "包装区别": variants(
        subjects.packages, "kind low",
        [("bag", False), ("tin", True), ("plain", False), ("bag", True)], [("sack", False), ("tin", False)],
    ),
    "版本款型区别": variants(
        subjects.versions, "device gap",
        [("phone", 0.0), ("player", 1.0), ("watch", 0.0), ("phone", 2.0)], [("pad", 1.0), ("player", -1.0)],
    ),
    "是否会生锈": variants(
        subjects.metal, "thing shine",
        [("pan", 0.1), ("knife", 0.2), ("kettle", 0.15), ("tap", 0.1)], [("pot", 0.15), ("spatula", 0.12)],
    ),
    "是否易褪色": variants(
        subjects.cloth, "thing pattern",
        [("shirt", "none"), ("trousers", "stripes"), ("dress", "dots"), ("sheet", "stripes"), ("coat", "none")],
        [("scarf", "none"), ("shirt", "dots")],
    ),
    "能否调光": variants(
        subjects.lamp, "kind cone",
        [("ceiling", 24.0), ("desk", 18.0), ("floor", 26.0), ("ring", 0.0), ("bulb", 20.0)],
        [("wall", 20.0), ("desk", 26.0)],
    ),
    "控制方式": variants(
        subjects.remote, "shape keys",
        [("long", 3), ("panel", 3), ("white", 2), ("wide", 5)], [("round", 3), ("panel", 4)],
    ),
    "排水方式": variants(
        subjects.washer, "front hose door",
        [(True, 1, 20.0), (False, 1, 24.0), (False, -1, 20.0), (True, -1, 17.0)], [(True, -1, 22.0), (False, 1, 18.0)],
    ),
    "商品规格": variants(
        subjects.measure, "tool tall",
        [("scale", 0.0), ("ruler", 0.0), ("cup", 24.0), ("cup", 40.0)], [("balance", 0.0), ("tape", 0.0)],
    ),
    "发货数量": variants(
        subjects.shipment, "boxes opened",
        [(1, True), (2, False), (3, True), (4, False)], [(5, True), (3, False)],
    ),
}  # fmt: skip
"""Labels of ``www2025-intent`` that the sample uses, with the photograph that gives each away."""

GROUNDS = {"train": ("wood", "tiles", "cloth", "wall"), "test": ("stone", "weave")}
"""Grounds on which things are photographed, by part."""


def draw_photo(c: Canvas, label: str | None, part: Part, number: int) -> None:
    """Photograph the evidence for ``label``, or neutral goods where ``label`` is None, in a variant of ``part``."""
    surface(c, c.rng.choice(GROUNDS[part]))
    y = c.height / 2 + c.rng.uniform(-4, 4)
    if label is None:
        thing = PRODUCTS[part][sorted(PRODUCTS[part])[number]]
        thing(c, c.rng.uniform(42, 58), y, c.rng.uniform(60, 80), product_colour(c))
    else:
        EVIDENCE[label].draw(c, y, **EVIDENCE[label].of(part)[number])
    c.grain(((255, 252, 240), (206, 200, 190)))
