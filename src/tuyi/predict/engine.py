"""What every engine is: rows in, predictions out."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Protocol, TypeAlias

from tuyi.data.example import Example
from tuyi.predict.prediction import Prediction

__all__ = ["Engine", "SizedRow"]

SizedRow: TypeAlias = tuple[Example, int]
"""A row, and its tokens with room for the longest label, as :func:`~tuyi.encode.survey.survey` counts them."""


class Engine(Protocol):
    """Labels rows; the run around it reads data, resumes and writes."""

    def predict(self, rows: Iterable[SizedRow]) -> Generator[list[Prediction], None, None]:
        """Predictions as they become ready, each row's exactly once, in any order.

        Closing the iterator early stops what is under way and waits for nothing.
        """
        ...

    def close(self) -> None:
        """Give back processes, memory and connections; safe to call twice."""
        ...
