"""What a model says about one row, and the JSON-lines file that keeps it.

A predictions file ``pred.jsonl`` holds one object a line; ``pred.jsonl.run.json`` beside it says how the run was made
(model folder, data, tasks, temperatures, settings).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tuyi.errors import FormatError, Place

__all__ = ["UNSEEN", "Prediction", "log_chances", "read_predictions", "read_run", "run_file"]

UNSEEN = -100.0
"""Log of a probability of 0, or of one too small to tell from it; a file holds no infinity."""

_TEXTS = ("id", "task", "label")
_NUMBERS = ("logprobs", "probabilities")
_KEYS = (*_TEXTS, *_NUMBERS, "rationale", "notes")


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model says about one row.

    Args:
        id: The row's id.
        task: Name of the task that was asked.
        label: The chosen label, in the task's own spelling; of an open task the whole text, which may be empty.
        logprobs: Natural log of the model's probability of each label's full answer (tokens and terminator), before
            normalising over the labels, at temperature 1. Empty where an engine cannot say, and for open tasks.
        probabilities: Normalised over the labels, after the model folder's calibration temperature; same keys.
        rationale: The free text of a reasoned answer.
        notes: What was done to the row and what it cost: ``dropped_turns``, ``shrunk_images``, ``calls``,
            ``output_tokens``, ``cut_free``, ``tokens``, … Plain JSON values.
    """

    id: str
    task: str
    label: str
    logprobs: Mapping[str, float]
    probabilities: Mapping[str, float]
    rationale: str | None = None
    notes: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def to_json(self) -> str:
        """One compact line without its line end; numbers to 8 significant digits, no fewer than a float32 holds.

        Raises:
            FormatError: The prediction is not one that :meth:`from_json` would accept.
        """
        value: dict[str, Any] = {"id": self.id, "task": self.task, "label": self.label}
        value["logprobs"] = {key: float(f"{number:.8g}") for key, number in self.logprobs.items()}
        value["probabilities"] = {key: float(f"{number:.8g}") for key, number in self.probabilities.items()}
        if self.rationale is not None:
            value["rationale"] = self.rationale
        if self.notes:
            value["notes"] = dict(self.notes)
        _check(value)
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str) -> Prediction:
        """The prediction that a line holds; ``logprobs`` and ``probabilities`` may be missing, never just one of them.

        Raises:
            FormatError: The line is not a prediction; without a place, which the reader of the file adds.
        """
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise FormatError(
                f"expected one prediction as a JSON object, found {line.strip()[:60]!r} ({error.msg}, column "
                f"{error.colno}); where a run was stopped while it wrote, `tuyi predict` again goes on from there"
            ) from error
        if not isinstance(value, dict):
            raise FormatError(f"expected one prediction as a JSON object, found a {type(value).__name__}")
        value.setdefault("logprobs", {})
        value.setdefault("probabilities", {})
        _check(value)
        return cls(**{key: value[key] for key in _KEYS if key in value})


def _check(value: dict[str, Any]) -> None:
    if unknown := [key for key in value if key not in _KEYS]:
        raise FormatError(f"unknown key {unknown[0]!r}, expected {', '.join(_KEYS)}")
    for key in _TEXTS:
        if key == "label" and value.get(key) == "" and not value["probabilities"]:
            continue  # an open answer may be empty
        if not isinstance(value.get(key), str) or not value[key]:
            found = repr(value[key]) if key in value else "nothing"
            raise FormatError(f"{key}: expected a text that is not empty, found {found}")
    for key in _NUMBERS:
        if not isinstance(value[key], dict):
            raise FormatError(f"{key}: expected a number for each label, found {type(value[key]).__name__}")
        for label, number in value[key].items():
            if not isinstance(number, int | float) or isinstance(number, bool) or not math.isfinite(number):
                raise FormatError(f"{key}: expected a finite number for {label!r}, found {number!r}")
    if not isinstance(value.get("rationale"), str | None):
        raise FormatError(f"rationale: expected a text, found {value['rationale']!r}")
    if not isinstance(value.get("notes", {}), dict):
        raise FormatError(f"notes: expected an object, found {value['notes']!r}")
    _check_distribution(value["label"], value["logprobs"], value["probabilities"])


def _check_distribution(label: str, logprobs: dict[str, float], probabilities: dict[str, float]) -> None:
    if logprobs.keys() != probabilities.keys():
        odd = sorted(logprobs.keys() ^ probabilities.keys())[0]
        raise FormatError(f"logprobs and probabilities: expected the same labels, found {odd!r} in one of them only")
    if not probabilities:
        return
    if label not in probabilities:
        raise FormatError(f"label: {label!r} is not among the {len(probabilities)} labels of its probabilities")
    low, total = min(probabilities.values()), sum(probabilities.values())
    if low < 0 or not math.isclose(total, 1.0, abs_tol=1e-3):
        raise FormatError(
            f"probabilities: expected none below 0 and a sum of 1, found lowest {low:g} and sum {total:g}"
        )


def log_chances(chances: Mapping[str, float]) -> dict[str, float]:
    """Natural logs of probabilities, none below :data:`UNSEEN`."""
    return {name: max(math.log(chance), UNSEEN) if chance else UNSEEN for name, chance in chances.items()}


def read_predictions(path: Path) -> Iterator[Prediction]:
    """Predictions of a JSON-lines file, one at a time; blank lines are passed over.

    Raises:
        FormatError: No such file, not UTF-8, or a line that is not a prediction; names file and line.
    """
    number = 0
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for line in lines:
                number += 1
                if line.strip():
                    yield Prediction.from_json(line)
    except FileNotFoundError as error:
        raise FormatError(
            f"predictions file {path} does not exist; `tuyi predict MODEL DATA --out {path}` writes it"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"cannot be read as UTF-8 JSON lines: {error}", Place(path, number + 1)) from error
    except FormatError as error:
        raise error.at(Place(path, number)) from error.__cause__


def run_file(path: Path) -> Path:
    """Where the description of the run that made a predictions file lies: ``pred.jsonl.run.json``."""
    return path.with_name(path.name + ".run.json")


def read_run(path: Path) -> dict[str, Any]:
    """How a predictions file was made: ``model``, ``data``, ``tasks``, ``temperature`` and whatever the run added.

    Args:
        path: The predictions file, not the description beside it.

    Returns:
        The description, or ``{}`` where there is none.

    Raises:
        FormatError: The description is there and is not a JSON object.
    """
    file = run_file(path)
    try:
        value = json.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FormatError(f"expected the description of a prediction run as JSON: {error}", Place(file)) from error
    if not isinstance(value, dict):
        raise FormatError(f"expected a JSON object, found a {type(value).__name__}", Place(file))
    return value
