"""Pictures of the sample as recipes: what is drawn, in which layout and theme, from which seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

from PIL import Image

from tuyi.data.sample.canvas import THEMES, Canvas
from tuyi.data.sample.evidence import EVIDENCE, draw_photo
from tuyi.data.sample.products import PRODUCTS
from tuyi.data.sample.scenes import SCENES, draw_scene
from tuyi.data.sample.variants import Part

__all__ = ["Recipe", "make_recipe"]

_NEUTRAL = "goods"


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that a picture follows from; the same recipe always draws the same picture.

    Args:
        layout: ``scene/LABEL/PART/NUMBER``, ``photo/LABEL/PART/NUMBER`` or ``photo/goods/PART/NUMBER``.
        theme: Name of a colour theme of that part.
        seed: Decides everything else: size, colours of things, texts, small shifts.
    """

    layout: str
    theme: str
    seed: str

    @property
    def part(self) -> Part:
        """The part of the sample that the layout belongs to."""
        return "test" if self.layout.rsplit("/", 2)[1] == "test" else "train"

    def draw(self) -> Image.Image:
        """Draw the picture."""
        rng = random.Random(f"{self.layout}|{self.theme}|{self.seed}")
        kind, rest = self.layout.split("/", 1)
        label, _, number = rest.rsplit("/", 2)
        wide, ratio = (300, rng.uniform(1.62, 2.1)) if kind == "scene" else (250, rng.uniform(0.92, 1.3))
        width = wide + rng.randrange(0, 60)
        theme = next(theme for theme in THEMES[self.part] if theme.name == self.theme)
        canvas = Canvas((width, round(width * ratio)), theme, rng)
        if kind == "scene":
            draw_scene(canvas, label, self.part, int(number))
        else:
            draw_photo(canvas, None if label == _NEUTRAL else label, self.part, int(number))
        return canvas.image


def make_recipe(kind: str, label: str | None, part: Part, rng: random.Random) -> Recipe:
    """A recipe in a layout and a theme of ``part``, chosen at random.

    Args:
        kind: ``scene`` for a page of ``label``, ``photo`` for a photograph of its evidence.
        label: The label; None with ``photo`` for neutral goods.
        part: Whose layouts and themes to choose from.
        rng: Source of the choice.
    """
    if kind == "scene" and label is not None:
        count = len(SCENES[label].of(part))
    else:
        count = len(EVIDENCE[label].of(part)) if label is not None else len(PRODUCTS[part])
    layout = f"{kind}/{label or _NEUTRAL}/{part}/{rng.randrange(count)}"
    return Recipe(layout, rng.choice(THEMES[part]).name, f"{rng.getrandbits(48):012x}")
