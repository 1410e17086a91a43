"""The scenes of the sample: for each label its layouts, those of training and those kept for the test."""

from __future__ import annotations

from tuyi.data.sample import order_scenes as order
from tuyi.data.sample import shop_scenes as shop
from tuyi.data.sample.canvas import Canvas
from tuyi.data.sample.icons import WHITE
from tuyi.data.sample.variants import Part, Variants, variants

__all__ = ["SCENES", "draw_scene"]

SCENES: dict[str, Variants] = {
    "商品分类选项": variants(
        shop.options, "sheet chips columns groups",
        [(0.25, "disc", 4, 1), (0.3, "pill", 2, 2), (0.2, "tile", 3, 1), (0.15, "disc", 5, 2), (0.35, "tile", 4, 1),
         (0.2, "pill", 3, 1), (0.28, "disc", 3, 1)],
        [(0.18, "tile", 5, 2), (0.24, "pill", 2, 1), (0.33, "disc", 6, 1)],
    ),
    "商品头图": variants(
        shop.head_picture, "aspect strip ribbon price_first",
        [(1.0, False, "none", False), (1.15, True, "none", False), (1.0, True, "foot", True),
         (1.25, False, "foot", False), (0.9, True, "corner", True), (1.1, False, "corner", False)],
        [(1.05, True, "foot", False), (1.3, False, "none", True), (0.95, False, "corner", True)],
    ),
    "下单过程中出现异常（显示购买失败浮窗）": variants(
        order.order_fails, "popup sign at buttons",
        [("toast", "triangle", 0.5, 0), ("dialog", "disc", 0.45, 1), ("toast", "cross", 0.4, 0),
         ("dialog", "cross", 0.55, 2), ("dialog", "triangle", 0.5, 1), ("toast", "disc", 0.6, 1)],
        [("toast", "triangle", 0.55, 2), ("dialog", "disc", 0.5, 0), ("dialog", "cross", 0.42, 1)],
    ),
    "支付页面": variants(
        order.payment, "ways boxes keys shaded",
        [(0, True, 16.0, True), (2, True, 14.0, False), (3, False, 15.0, True), (1, True, 17.0, True),
         (2, False, 18.0, False), (1, False, 15.0, True)],
        [(2, True, 16.5, True), (0, False, 17.5, False), (3, False, 14.5, False)],
    ),
    "评论区截图页面": variants(
        shop.reviews, "summary stars photos card",
        [(True, "side", 3, True), (False, "below", 0, False), (False, "side", 2, True), (True, "below", 0, True),
         (False, "left", 3, False), (True, "left", 1, True)],
        [(False, "below", 2, True), (True, "side", 0, False), (False, "left", 0, True)],
    ),
    "物流页面-物流列表页面": variants(
        order.parcels, "side card dots height",
        [("left", True, 4, 34.0), ("left", False, 3, 30.0), ("right", True, 4, 36.0), ("left", True, 3, 42.0),
         ("right", False, 3, 32.0), ("right", True, 5, 44.0)],
        [("left", True, 5, 38.0), ("right", True, 3, 33.0), ("left", False, 4, 40.0)],
    ),
    "物流页面-物流跟踪页面": variants(
        order.tracking, "share rail steps low",
        [(0.45, 8.0, "disc", False), (0.6, 12.0, "check", False), (0.5, 10.0, "disc", True),
         (0.7, 8.0, "disc", False), (0.4, 14.0, "check", False), (0.55, 7.0, "check", True)],
        [(0.5, 9.0, "check", False), (0.65, 15.0, "disc", False), (0.6, 12.0, "disc", True)],
    ),
    "购物车页面": variants(
        shop.cart, "thumb_width square grouped foot",
        [(26.0, False, False, 15.0), (30.0, False, True, 16.0), (24.0, True, False, 14.0), (34.0, False, False, 17.0),
         (28.0, True, True, 15.0), (22.0, False, True, 18.0)],
        [(25.0, False, False, 17.0), (32.0, True, False, 15.0), (29.0, False, True, 14.0)],
    ),
    "店铺页面": variants(
        shop.shop, "banner logo columns tabs",
        [(36.0, "left", 2, True), (46.0, "middle", 2, False), (32.0, "left", 3, False), (50.0, "middle", 3, True),
         (42.0, "left", 2, False), (38.0, "middle", 2, True)],
        [(40.0, "left", 3, True), (34.0, "middle", 3, False), (48.0, "left", 2, True)],
    ),
    "优惠券领取页面": variants(
        shop.coupons, "side height columns poster",
        [("left", 30.0, 1, False), ("left", 36.0, 1, True), ("right", 32.0, 1, False), ("top", 46.0, 2, False),
         ("top", 40.0, 3, True), ("right", 28.0, 1, True)],
        [("left", 33.0, 1, True), ("right", 37.0, 1, False), ("top", 43.0, 2, True)],
    ),
    "账单/账户页面": variants(
        order.account, "chart low row discs",
        [("ring", False, 18.0, True), ("bars", False, 16.0, False), ("pie", False, 20.0, False),
         ("ring", True, 17.0, False), ("columns", False, 19.0, True), ("bars", True, 18.0, True)],
        [("ring", False, 16.0, False), ("columns", True, 18.0, False), ("pie", False, 17.0, True)],
    ),
    "实物拍摄(含售后)": variants(
        order.photograph, "ground harm tilt",
        [("wood", "crack", 8.0), ("tiles", "stain", -10.0), ("cloth", "box", 5.0), ("wall", "none", -4.0),
         ("wood", "box", -12.0), ("tiles", "none", 14.0), ("cloth", "crack", -7.0)],
        [("stone", "hole", 10.0), ("weave", "stain", -6.0), ("wood", "none", 4.0)],
    ),
}  # fmt: skip
"""Labels of ``www2025-scene`` that the sample draws; no layout of one part is in the other."""


def draw_scene(c: Canvas, label: str, part: Part, number: int) -> None:
    """Draw a page of ``label`` in the given layout of ``part``."""
    scene = SCENES[label]
    top = 0.0 if scene.draw is order.photograph else _chrome(c)
    scene.draw(c, top, part, **scene.of(part)[number])


def _chrome(c: Canvas) -> float:
    """Status bar and one of four headers, none of which depends on the label; returns the y below them."""
    c.figures(4, 1.5, f"{c.rng.randint(7, 23)}:{c.rng.randint(10, 59)}", 4, c.theme.ink)
    c.box(88, 2, 8, 3.5, c.theme.ink, r=1)
    header = c.rng.choice(["title", "search", "band", "none"])
    if header == "none":
        return 7.0
    fill = c.theme.accent if header == "band" else c.theme.card
    c.box(0, 7, 100, 13, fill)
    ink = WHITE if header == "band" else c.theme.ink
    c.path([(7, 10), (4, 13.5), (7, 17)], ink, 1.0)
    if header == "search":
        c.box(12, 9, 72, 9, c.theme.page, r=4.5, edge=c.theme.line)
        c.words(17, 11.5, c.rng.randint(3, 8), 4, c.theme.muted)
    else:
        c.words(36, 11, c.rng.randint(4, 6), 5.5, ink)
    return 21.0
