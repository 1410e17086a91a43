"""A closed set of labels, and how a spelling found in data is matched to one of them."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, PrivateAttr, model_validator

from tuyi.errors import LabelError

__all__ = ["Label", "LabelSet", "fold"]


def fold(text: str) -> str:
    """The form in which spellings are compared: NFKC (full-width to half-width), case and spaces folded.

    Source: Unicode Standard Annex 15, normalisation form KC.
    """
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


class Label(BaseModel):
    """One possible answer: the text the model writes, and what it means."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    definition: str = ""


class LabelSet(BaseModel):
    """The possible answers of a task, in the order in which a prompt lists them.

    In a task file it is a mapping ``name: definition`` or a list of names.
    """

    model_config = ConfigDict(frozen=True)

    labels: tuple[Label, ...]
    _by_fold: dict[str, str] = PrivateAttr(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _from_yaml(cls, value: Any) -> Any:
        if isinstance(value, dict) and set(value) != {"labels"}:
            return {"labels": [{"name": str(name), "definition": text or ""} for name, text in value.items()]}
        if isinstance(value, list | tuple):
            return {"labels": [item if isinstance(item, dict | Label) else {"name": str(item)} for item in value]}
        return value

    @model_validator(mode="after")
    def _distinct(self) -> LabelSet:
        if len(self.labels) < 2:
            raise ValueError(f"a task needs at least 2 labels, found {len(self.labels)}")
        for label in self.labels:
            key = fold(label.name)
            if not key:
                raise ValueError("a label is empty")
            if key in self._by_fold:
                raise ValueError(
                    f"{label.name!r} and {self._by_fold[key]!r} are the same label but for width, case or spaces"
                )
            self._by_fold[key] = label.name
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The labels as they are written in answers."""
        return tuple(label.name for label in self.labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __contains__(self, text: str) -> bool:
        return fold(text) in self._by_fold

    def canonical(self, text: str) -> str:
        """The task's own spelling of a label.

        Raises:
            LabelError: ``text`` is none of the labels; the nearest one is named.
        """
        found = self._by_fold.get(fold(text))
        if found is not None:
            return found
        near = self.nearest(text)
        hint = f"; the nearest is {near!r}" if near else ""
        raise LabelError(f"label {text!r} is not one of the task's {len(self)} labels{hint}")

    def distribution(self, soft: Mapping[str, float]) -> tuple[float, ...]:
        """Probabilities of all labels, in their order, brought to a sum of 1.

        Args:
            soft: Labels in any spelling with their probabilities; those that are missing count 0.

        Raises:
            LabelError: A label is none of the set, or stands there in two spellings.
        """
        found = dict.fromkeys(self.names, 0.0)
        given: set[str] = set()
        for text, share in soft.items():
            label = self.canonical(text)
            if label in given:
                raise LabelError(f"soft labels: {label!r} stands there twice, as {text!r} too; give it one probability")
            given.add(label)
            found[label] = share
        total = sum(found.values())
        return tuple(share / total for share in found.values())

    def nearest(self, text: str) -> str | None:
        """The label most like ``text``, or None where nothing is alike."""
        match = difflib.get_close_matches(fold(text), self._by_fold, n=1, cutoff=0.4)
        return self._by_fold[match[0]] if match else None
