"""Drawings that come in variants, some for training and others kept for the test."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Part", "Variants", "variants"]

Part = Literal["train", "test"]


@dataclass(frozen=True, slots=True)
class Variants:
    """A drawing function and the keyword arguments that it is called with, by part of the sample."""

    draw: Callable[..., None]
    train: tuple[Mapping[str, Any], ...]
    test: tuple[Mapping[str, Any], ...]

    def of(self, part: Part) -> tuple[Mapping[str, Any], ...]:
        """The variants of one part."""
        return self.train if part == "train" else self.test


def variants(
    draw: Callable[..., None], names: str, train: Sequence[Sequence[Any]], test: Sequence[Sequence[Any]]
) -> Variants:
    """A drawing with one row of values a variant, under ``names`` separated by spaces."""
    keys = names.split()
    return Variants(
        draw,
        tuple(dict(zip(keys, row, strict=True)) for row in train),
        tuple(dict(zip(keys, row, strict=True)) for row in test),
    )
