"""The over-length policy: what a row gives up to fit its token budget, and in which order.

Instruction, label list and the newest turn are kept. Pictures are first held to the pixel budget; then the oldest
turns go, pictures and all; then, if the newest turn alone is still too long, its pictures shrink together; last,
its text is cut at the front. A prompt is never cut through its visual tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tuyi.data.example import Part, Text
from tuyi.errors import BudgetError
from tuyi.task.prompt import Prompt
from tuyi.task.task import Budget

__all__ = ["Fit", "fit"]


@dataclass(frozen=True, slots=True)
class Fit:
    """A prompt that fits its budget.

    Args:
        parts: The user message.
        max_pixels: Pixel budget of each picture.
        notes: What was given up; empty for a row that fits as it is.
    """

    parts: tuple[Part, ...]
    max_pixels: int
    notes: dict[str, Any] = field(default_factory=dict)


def fit(prompt: Prompt, budget: Budget, length: Callable[[tuple[Part, ...], int], int], smallest: int) -> Fit:
    """Shorten a prompt until it fits.

    Args:
        prompt: The prompt, its content cut into turns.
        budget: The task's budget.
        length: Tokens of the whole row (answer included) for a user message and a pixel budget.
        smallest: Fewest pixels that a picture can have: those of one visual token.

    Raises:
        BudgetError: Even the fixed wording with nothing of the content is too long.
    """
    room, pixels = budget.max_tokens, budget.max_pixels
    if length(prompt.parts(), pixels) <= room:
        return Fit(prompt.parts(), pixels)
    notes: dict[str, Any] = {}
    first, last = 0, max(0, len(prompt.turns) - 1)
    while first < last:
        first += 1
        if length(prompt.parts(first), pixels) <= room:
            break
    if first:
        notes["dropped_turns"] = first
    parts = prompt.parts(first)
    shown = [*(part for turn in prompt.history for part in turn.parts), *parts]
    if length(parts, pixels) > room and any(not isinstance(part, Text) for part in shown):
        pixels = _largest(lambda size: length(parts, size) <= room, min(smallest, pixels), pixels)
        notes["shrunk_images"] = pixels
    if length(parts, pixels) > room:
        parts, cut = _cut_front(prompt, first, lambda shorter: length(shorter, pixels) <= room, room)
        notes["cut_characters"] = cut
    return Fit(parts, pixels, notes)


def _largest(fits: Callable[[int], bool], low: int, high: int) -> int:
    """The largest pixel budget that fits, to about 1 %; ``low`` where none does."""
    while high - low > max(1, low // 100):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _cut_front(
    prompt: Prompt, first: int, fits: Callable[[tuple[Part, ...]], bool], room: int
) -> tuple[tuple[Part, ...], int]:
    """The fewest characters cut from the front of the newest turn's text, its speaker kept."""
    turn = prompt.turns[first] if prompt.turns else ()
    texts = "".join(part.text for part in turn if isinstance(part, Text))
    speaker = re.match(r"[^\n:：]{1,12}[:：] *", texts)
    keep = speaker.end() if speaker else 0

    def shorter(cut: int) -> tuple[Part, ...]:
        kept = _without(turn, keep, cut)
        return Prompt(prompt.history, prompt.head, (kept, *prompt.turns[first + 1 :]), prompt.tail).parts()

    low, high = 0, len(texts) - keep
    if not fits(shorter(high)):
        raise BudgetError(
            f"the fixed wording, the labels and the pictures of the newest turn alone exceed max_tokens {room}; "
            "raise budget.max_tokens or lower budget.max_pixels"
        )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(shorter(middle)) else (middle, high)
    return shorter(high), high


def _without(turn: tuple[Part, ...], keep: int, cut: int) -> tuple[Part, ...]:
    """The turn without ``cut`` characters of text after its first ``keep``."""
    out: list[Part] = []
    for part in turn:
        if not isinstance(part, Text):
            out.append(part)
            continue
        kept = part.text[:keep]
        rest = part.text[len(kept) :]
        keep -= len(kept)
        out.append(Text(kept + rest[cut:]))
        cut -= min(cut, len(rest))
    return tuple(out)
