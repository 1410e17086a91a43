"""Checks that keep bad reasons out of the training data."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tuyi.config import Settings

__all__ = ["CHECKS", "Alike", "ReasonChecks", "Rejection", "look_at", "trimmed"]

_HASHES = 200
_MISSED = 1e-3
"""Highest probability with which two texts that are just alike enough meet in no band of their signatures."""
_HEADS = re.compile(r"^(理由|原因|分析|reason)\s*[:：]\s*", re.IGNORECASE)
_QUOTES = {'"': '"', "'": "'", "「": "」", "“": "”", "『": "』", "`": "`"}


class ReasonChecks(Settings):
    """Which reasons are kept out."""

    empty: bool = True
    """Reasons without a letter or digit."""
    too_long: bool = True
    """Reasons with more characters than the template asks for, or that were cut at its ``max_tokens``."""
    repeats_label: bool = True
    """Reasons that say the label or its definition and hardly anything else."""
    repeats_at: float = Field(default=0.75, gt=0, le=1)
    """Share of a reason's pairs of neighbouring characters that stand in label and definition, from which on it
    repeats them."""
    alike: bool = True
    """Reasons that many rows have almost word for word."""
    alike_at: float = Field(default=0.7, ge=0.5, le=1)
    """Similarity (Jaccard, over runs of three characters) from which on two reasons are alike."""
    alike_kept: int = Field(default=3, ge=1)
    """How many of the reasons that are alike are kept, the first ones of the data."""
    not_supported: bool = True
    """Reasons with which the teacher picks another label, when it is shown row and reason without the label."""


CHECKS = ("no_answer", "empty", "too_long", "repeats_label", "alike", "not_supported")
"""Names of what can keep a reason out, in the order in which it is looked for."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a reason is kept out.

    Args:
        check: Name of the check, as in :class:`ReasonChecks`; ``no_answer`` where the teacher gave none.
        detail: What was found.
    """

    check: str
    detail: str


def trimmed(answer: str) -> str:
    """A teacher's answer without what chat models put around a reason: spaces, ``理由：``, quotes around the whole."""
    text = _HEADS.sub("", answer.strip())
    if len(text) > 1 and _QUOTES.get(text[0]) == text[-1] and text[-1] not in text[1:-1]:
        text = text[1:-1].strip()
    return text


def look_at(reason: str, label: str, definition: str, max_characters: int, checks: ReasonChecks) -> Rejection | None:
    """What is wrong with a reason by itself.

    Args:
        reason: It.
        label, definition: Of its row.
        max_characters: The longest that was asked for.
        checks: Which checks are made.
    """
    core = _core(reason)
    if not core:
        return Rejection("empty", "no letter and no digit") if checks.empty else None
    if checks.too_long and len(reason) > max_characters:
        return Rejection("too_long", f"{len(reason)} characters, expected at most {max_characters}")
    if checks.repeats_label:
        said = {pair for text in (label, definition) for pair in _pieces(_core(text), 2)}
        pairs = _pieces(core, 2)
        share = sum(pair in said for pair in pairs) / len(pairs)
        if core in _core(label) or share >= checks.repeats_at:
            return Rejection("repeats_label", f"{share:.0%} of it stands in the label and its definition")
    return None


class Alike:
    """Groups of reasons that are alike, one reason after the other.

    A reason joins the first group to whose first reason it is alike. Candidates come from a MinHash index, so time
    grows with the number of reasons, not with its square; each candidate is then compared exactly.

    Args:
        at: Jaccard similarity of the sets of three-character runs from which on two reasons are alike.

    Source: Broder, "On the resemblance and containment of documents", 1997; banding after Indyk and Motwani, 1998.
    """

    def __init__(self, at: float) -> None:
        self._at = at
        # the more hashes a band has, the fewer texts meet in it that are not alike
        self._rows = max((n for n in range(1, 9) if (1 - at**n) ** (_HASHES // n) <= _MISSED), default=1)
        rng = np.random.default_rng(0)
        self._factors = rng.integers(1, 1 << 63, _HASHES, np.uint64) | np.uint64(1)
        self._shifts = rng.integers(0, 1 << 63, _HASHES, np.uint64)
        self._groups: list[tuple[str, frozenset[str], int]] = []
        self._bands: dict[tuple[int, bytes], list[int]] = {}

    def add(self, id: str, reason: str) -> tuple[int, str]:
        """Put a reason into its group.

        Returns:
            How many reasons the group has now, and the id of its first.
        """
        pieces = frozenset(_pieces(_core(reason), 3))
        keys = self._keys(pieces)
        for number in sorted({number for key in keys for number in self._bands.get(key, ())}):
            first, others, size = self._groups[number]
            if len(pieces & others) >= self._at * len(pieces | others):
                self._groups[number] = (first, others, size + 1)
                return size + 1, first
        for key in keys:
            self._bands.setdefault(key, []).append(len(self._groups))
        self._groups.append((id, pieces, 1))
        return 1, id

    def _keys(self, pieces: Iterable[str]) -> list[tuple[int, bytes]]:
        """The bands of a signature: smallest hashes, a few at a time."""
        hashes_P = np.array([_hash(piece) for piece in pieces], np.uint64)
        mixed_PH: NDArray[np.uint64] = (hashes_P[:, None] * self._factors + self._shifts) >> np.uint64(32)
        lowest_H = mixed_PH.min(axis=0)
        starts = range(0, _HASHES - self._rows + 1, self._rows)
        return [(start, lowest_H[start : start + self._rows].tobytes()) for start in starts]


def _hash(piece: str) -> int:
    return int.from_bytes(blake2b(piece.encode(), digest_size=8).digest(), "little")


def _core(text: str) -> str:
    """The letters and digits of a text, width and case folded."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(sign for sign in folded if sign.isalnum())


def _pieces(text: str, length: int) -> list[str]:
    """All runs of so many characters; a shorter text whole."""
    return [text[at : at + length] for at in range(max(1, len(text) - length + 1))]
