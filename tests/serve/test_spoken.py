"""Text as it is told: whole characters, and nothing that could still become a stop."""

from __future__ import annotations

import pytest

from tuyi.serve.spoken import Spoken


def told(parts: list[bytes], *stop: str) -> tuple[list[str], Spoken]:
    spoken, out = Spoken(stop), []
    for part in parts:
        spoken.add(part)
        out.append(spoken.new())
        if spoken.is_stopped:
            break
    out.append(spoken.new(is_over=True))
    return out, spoken


def test_characters_are_told_whole():
    data = "红色 a".encode()
    assert told([bytes([one]) for one in data])[0] == ["", "", "红", "", "", "色", " ", "a", ""]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("stop", [("END",), ("xENDx", "EN"), ("nothing",)])
def test_stops(size: int, stop: tuple[str, ...]):
    text = "some text ENx and END and more"
    parts = [text[at : at + size].encode() for at in range(0, len(text), size)]
    out, spoken = told(parts, *stop)
    expected = text[: min((text.find(one) for one in stop if one in text), default=len(text))]
    assert "".join(out) == spoken.text == expected
    assert spoken.is_stopped == (expected != text)
