"""Whether a model's confidence can be believed: reliability, errors, a fitted temperature.

Sources: Guo et al., On Calibration of Modern Neural Networks, ICML 2017 (equal-width reliability bins, expected
calibration error with 15 bins, temperature scaling); Brier, Verification of forecasts, 1950 (the sum over labels, 0–2).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tuyi.errors import ModelError
from tuyi.evaluate.bootstrap import Floats, Ints
from tuyi.whole import write_whole

__all__ = [
    "Calibration",
    "CalibrationErrors",
    "ReliabilityBin",
    "calibrate",
    "calibration_errors",
    "fit_temperature",
    "keep_temperature",
    "reliability",
    "softmax",
]

LOWEST, HIGHEST = 0.05, 20.0


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Rows whose confidence lies in (low, high]: how many, how confident on average, how often right."""

    low: float
    high: float
    rows: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class CalibrationErrors:
    """Expected calibration error, Brier score and negative log likelihood (nats a row; infinite where a true label
    was given probability 0), mean confidence, accuracy."""

    ece: float
    brier: float
    nll: float
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """Confidence of one task's predictions.

    Args:
        before: Errors of the probabilities as the predictions file has them.
        after: Errors at a fitted temperature, cross-validated in two halves: each half is measured at the temperature
            fitted on the other, because fitting and measuring on the same rows flatters. None without a temperature.
        bins, bins_after: Reliability of the two.
        temperature: The temperature fitted on all rows, relative to ``logprobs`` (so it replaces one that the model
            already keeps); None where the rows, or one of the halves, do not determine one (all right, say: any sharper
            is better).
        rows: Rows that were measured.
    """

    before: CalibrationErrors
    after: CalibrationErrors | None
    bins: tuple[ReliabilityBin, ...]
    bins_after: tuple[ReliabilityBin, ...]
    temperature: float | None
    rows: int


def softmax(logprobs_NK: Floats, temperature: float) -> Floats:
    """Probabilities normalised over the labels at a temperature."""
    scaled = logprobs_NK / temperature
    raised = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True), dtype=np.float64)


def reliability(confidence_N: Floats, right_N: Floats, bins: int = 15) -> tuple[ReliabilityBin, ...]:
    """Equal-width bins (low, high] over 0–1, the first one with its 0; empty bins are left out. Source: Guo et al."""
    index_N = np.clip(np.ceil(confidence_N * bins).astype(np.int64) - 1, 0, bins - 1)
    return tuple(
        ReliabilityBin(
            low=b / bins,
            high=(b + 1) / bins,
            rows=int(inside.sum()),
            confidence=float(confidence_N[inside].mean()),
            accuracy=float(right_N[inside].mean()),
        )
        for b in range(bins)
        if (inside := index_N == b).any()
    )


def calibration_errors(probabilities_NK: Floats, gold_N: Ints, predicted_N: Ints, bins: int = 15) -> CalibrationErrors:
    """Errors of a set of label distributions.

    Args:
        probabilities_NK: Normalised over the labels.
        gold_N, predicted_N: Label indices.
        bins: Equal-width bins of the expected calibration error (equation 3 of Guo et al.).
    """
    rows = np.arange(len(gold_N))
    confidence_N = probabilities_NK[rows, predicted_N]
    right_N = (gold_N == predicted_N).astype(np.float64)
    filled = reliability(confidence_N, right_N, bins)
    truth_N = probabilities_NK[rows, gold_N]
    return CalibrationErrors(
        ece=sum(item.rows * abs(item.accuracy - item.confidence) for item in filled) / len(gold_N),
        brier=float((probabilities_NK**2).sum(axis=1).mean() - 2 * truth_N.mean() + 1),
        nll=math.inf if (truth_N == 0).any() else float(-np.log(truth_N).mean()),
        confidence=float(confidence_N.mean()),
        accuracy=float(right_N.mean()),
    )


def fit_temperature(logprobs_NK: Floats, gold_N: Ints) -> float | None:
    """The temperature at which the true labels are likeliest; None where it would run off the range 0.05–20.

    Args:
        logprobs_NK: Log probabilities of the labels, normalised or not: the softmax over labels normalises them.
        gold_N: True label indices.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    gold_logprob_N = logprobs_NK[np.arange(len(gold_N)), gold_N]
    if (gold_logprob_N == logprobs_NK.max(axis=1)).all():
        return None  # any sharper is likelier, until the loss underflows into a plateau that looks like a minimum

    def nll(log_temperature: float) -> float:
        temperature = math.exp(log_temperature)
        return float((logsumexp(logprobs_NK / temperature, axis=1) - gold_logprob_N / temperature).mean())

    found = minimize_scalar(
        nll, bounds=(math.log(LOWEST), math.log(HIGHEST)), method="bounded", options={"xatol": 1e-6}
    )
    temperature, edge = math.exp(found.x), 1.01
    return temperature if LOWEST * edge < temperature < HIGHEST / edge else None


def calibrate(
    logprobs_NK: Floats, probabilities_NK: Floats, gold_N: Ints, predicted_N: Ints, *, bins: int = 15, seed: int = 0
) -> Calibration:
    """Measure the confidence of one task's predictions and fit a temperature.

    Args:
        logprobs_NK, probabilities_NK: As in the predictions, labels in the task's order.
        gold_N, predicted_N: Label indices.
        bins: Reliability bins.
        seed: Of the two halves.
    """
    right_N = (gold_N == predicted_N).astype(np.float64)
    rows = np.arange(len(gold_N))
    before = calibration_errors(probabilities_NK, gold_N, predicted_N, bins)
    held_NK = _cross_fitted(logprobs_NK, gold_N, seed)
    return Calibration(
        before=before,
        after=None if held_NK is None else calibration_errors(held_NK, gold_N, predicted_N, bins),
        bins=reliability(probabilities_NK[rows, predicted_N], right_N, bins),
        bins_after=() if held_NK is None else reliability(held_NK[rows, predicted_N], right_N, bins),
        temperature=None if held_NK is None else fit_temperature(logprobs_NK, gold_N),
        rows=len(gold_N),
    )


def _cross_fitted(logprobs_NK: Floats, gold_N: Ints, seed: int) -> Floats | None:
    """Each row's probabilities at the temperature fitted on the half that does not hold it; None where a half
    determines no temperature."""
    if len(gold_N) < 2:
        return None
    order = np.random.default_rng(seed).permutation(len(gold_N))
    halves = order[: len(order) // 2], order[len(order) // 2 :]
    probabilities_NK = np.empty_like(logprobs_NK)
    for fitted, measured in (halves, halves[::-1]):
        temperature = fit_temperature(logprobs_NK[fitted], gold_N[fitted])
        if temperature is None:
            return None
        probabilities_NK[measured] = softmax(logprobs_NK[measured], temperature)
    return probabilities_NK


def keep_temperature(model_folder: Path, calibrations: Mapping[str, Calibration]) -> dict[str, Any]:
    """Write fitted temperatures into the model folder's ``tuyi.json``; later predictions use them.

    The file is replaced whole or not at all; its other keys, and other tasks' calibration, stay as they are. A task
    whose rows do not determine a temperature is left out. A folder with a model for each task keeps them with these.

    Args:
        model_folder: A folder that `tuyi train` wrote.
        calibrations: By task name.

    Returns:
        What was written: task → temperature, rows, ece_before, ece_after (cross-validated).

    Raises:
        ModelError: No readable ``tuyi.json`` in the folder.
    """
    file = model_folder / "tuyi.json"
    try:
        value = json.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise ModelError(
            f"{model_folder} has no tuyi.json to keep a temperature in; expected a folder that `tuyi train` wrote "
            "(predictions of other models: leave out --keep-calibration)"
        ) from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict) or not isinstance(value.get("calibration") or {}, dict):
        raise ModelError(f"{file}: expected a JSON object whose `calibration`, if any, is one too")
    if members := value.get("members"):
        own = (keep_temperature(model_folder / members[name], {name: item}) for name, item in calibrations.items())
        return {name: kept for one in own for name, kept in one.items()}
    kept = {
        name: {
            "temperature": item.temperature,
            "rows": item.rows,
            "ece_before": item.before.ece,
            "ece_after": item.after.ece if item.after else None,
        }
        for name, item in calibrations.items()
        if item.temperature is not None
    }
    if kept:
        value["calibration"] = {**(value.get("calibration") or {}), **kept}
        write_whole(file, json.dumps(value, ensure_ascii=False, indent=2) + "\n")
    return kept
