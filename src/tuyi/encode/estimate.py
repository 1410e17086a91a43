"""Token counts without a model: exact for pictures, estimated for text."""

from __future__ import annotations

import math
import unicodedata

from tuyi.data.example import Example, Image, Text, Turn
from tuyi.task.catalog import TaskSet
from tuyi.vision.spec import VisionSpec

__all__ = ["estimate_tokens"]

_FRAME = 5  # tokens around a message in Qwen's chat template


def estimate_tokens(example: Example, tasks: TaskSet, spec: VisionSpec | None = None) -> int:
    """Tokens of a row before it is shortened, for a model that nobody has named yet.

    Visual tokens are those of the family of ``spec`` (Qwen2-VL where not given). Text is counted at 0.7 tokens a wide
    character and 0.3 a narrow one, which is what Qwen's tokenizer makes of Chinese and English prose.

    Raises:
        MediaError: Media that cannot be read.
    """
    from tuyi.vision.image import probe_image
    from tuyi.vision.patches import image_grid
    from tuyi.vision.video import probe_video, video_grid

    spec = spec or VisionSpec("qwen2_vl")
    task = tasks.of(example)
    prompt, budget = task.ask(example), task.budget
    total = 0.0
    for turn in (*prompt.history, Turn("user", prompt.parts())):
        total += _FRAME
        for part in turn.parts:
            if isinstance(part, Text):
                total += sum(0.7 if unicodedata.east_asian_width(one) in "WF" else 0.3 for one in part.text)
                continue
            if isinstance(part, Image):
                info = probe_image(part)
                grid = image_grid(info.width, info.height, spec, budget.min_pixels, budget.max_pixels)
            else:
                grid = video_grid(probe_video(part), spec, budget)
            total += math.prod(grid) / spec.merge_size**2 + 2
    return math.ceil(total)
