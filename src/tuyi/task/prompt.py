"""From an example to what the model is shown: the task's wording around the example's content."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tuyi.data.example import Part, Text, Turn

__all__ = ["Prompt", "between", "split_turns"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model is shown for one example, before tokens.

    Args:
        history: Earlier chat messages, oldest first.
        head: The fixed wording before the content.
        turns: The content, oldest turn first; a row over budget loses turns from the front.
        tail: The fixed wording after the content.
    """

    history: tuple[Turn, ...]
    head: str
    turns: tuple[tuple[Part, ...], ...]
    tail: str

    def parts(self, first_turn: int = 0) -> tuple[Part, ...]:
        """The user message: head, the turns from ``first_turn`` on, tail; neighbouring texts joined."""
        inner = [part for turn in self.turns[first_turn:] for part in turn]
        return join_texts([Text(self.head), *inner, Text(self.tail)])


def join_texts(parts: Sequence[Part]) -> tuple[Part, ...]:
    """The same parts with neighbouring texts joined and empty ones gone."""
    joined: list[Part] = []
    for part in parts:
        if isinstance(part, Text) and joined and isinstance(joined[-1], Text):
            joined[-1] = Text(joined[-1].text + part.text)
        elif not (isinstance(part, Text) and not part.text):
            joined.append(part)
    return tuple(joined)


def between(parts: Sequence[Part], after: str, before: str) -> tuple[Part, ...] | None:
    """What stands after the first ``after`` and before the last ``before``; None unless both are there in order."""
    texts = [part.text if isinstance(part, Text) else "" for part in parts]
    start = next((i for i, text in enumerate(texts) if after in text), None)
    end = next((i for i in reversed(range(len(texts))) if before in texts[i]), None)
    if start is None or end is None or start > end:
        return None
    begin_at = texts[start].index(after) + len(after)
    end_at = texts[end].rindex(before)
    if start == end:
        return (Text(texts[start][begin_at:end_at]),) if begin_at <= end_at else None
    return join_texts([Text(texts[start][begin_at:]), *parts[start + 1 : end], Text(texts[end][:end_at])])


def split_turns(parts: Sequence[Part], start: re.Pattern[str] | None) -> tuple[tuple[Part, ...], ...]:
    """Content cut into turns, each beginning where ``start`` matches at the start of a line.

    Joining the turns again gives the content unchanged.
    """
    if start is None:
        return (tuple(parts),) if parts else ()
    turns: list[list[Part]] = [[]]
    line_start = True
    for part in parts:
        if not isinstance(part, Text):
            turns[-1].append(part)
            line_start = False
            continue
        cuts = [
            match.start() for match in start.finditer(part.text) if _starts_line(part.text, match.start(), line_start)
        ]
        for begin, end in zip([0, *cuts], [*cuts, len(part.text)]):
            if begin in cuts and turns[-1]:
                turns.append([])
            if begin < end:
                turns[-1].append(Text(part.text[begin:end]))
        line_start = part.text.endswith("\n") or (line_start and not part.text)
    return tuple(tuple(turn) for turn in turns if turn)


def _starts_line(text: str, at: int, line_start: bool) -> bool:
    return text[at - 1] == "\n" if at else line_start
