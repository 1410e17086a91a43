"""The report's sentences: what the numbers say, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tuyi.evaluate.calibration import Calibration
    from tuyi.evaluate.compare import Comparison, McNemar
    from tuyi.evaluate.judge import Cost, Evaluation, TaskEvaluation

__all__ = ["baselines_of", "calibration_sentence", "comparison_sentence", "overall_baselines", "p_value", "verdict"]

MAJORITY = "most frequent label"


def baselines_of(task: TaskEvaluation) -> dict[str, float]:
    """The task's baselines, the majority class among them."""
    return {MAJORITY: task.scores.majority["weighted_f1"], **task.baselines}


def overall_baselines(tasks: Mapping[str, TaskEvaluation]) -> dict[str, float]:
    """Means over the tasks of the baselines that every task has."""
    each = [baselines_of(task) for task in tasks.values()]
    return {name: float(np.mean([one[name] for one in each])) for name in each[0] if all(name in one for one in each)}


def verdict(evaluation: Evaluation) -> list[str]:
    """What the report says at its top: against the baselines, the weakest spot, the confidence."""
    score = evaluation.overall["weighted_f1"]
    baselines = overall_baselines(evaluation.tasks)
    name = max(baselines, key=lambda key: baselines[key])
    best = baselines[name]
    kind = "its best baseline," if len(baselines) > 1 else "always answering the"
    what = f"{kind} {name} ({best:.3f})"
    if score.low > best:
        sentences = [f"It is clearly better than {what}."]
    elif score.value > best:
        sentences = [f"It looks better than {what}, but the rows are too few to be sure."]
    else:
        sentences = [f"It is no better than {what}."]
    confusions = [(pair, task) for task in evaluation.tasks.values() for pair in task.scores.confusions[:1]]
    if confusions:
        pair, task = max(confusions, key=lambda item: item[0].rows)
        inside = f" in {task.name}" if len(evaluation.tasks) > 1 else ""
        rows = f"{pair.rows} row{'s' if pair.rows > 1 else ''}"
        sentences.append(f"Its most frequent confusion{inside} is {pair.gold} taken for {pair.predicted} ({rows}).")
    else:
        sentences.append("It makes no mistake on these rows.")
    return sentences


def calibration_sentence(calibration: Calibration) -> str:
    """Whether the confidence can be believed, and what a temperature does about it."""
    before, after = calibration.before, calibration.after
    gap = before.confidence - before.accuracy
    told = f"On average it is {before.confidence:.0%} sure and {before.accuracy:.0%} right"
    if abs(gap) < 0.02:
        first = f"{told}: on the whole its confidence can be believed."
    else:
        first = f"{told}: {abs(gap) * 100:.0f} points too {'sure' if gap > 0 else 'modest'}."
    if calibration.temperature is None or after is None:
        return f"{first} These rows do not determine a temperature (too few, or too few mistakes), so none is proposed."
    if 0.95 < calibration.temperature < 1.05:
        return f"{first} The fitted temperature, {calibration.temperature:.2f}, hardly changes anything."
    direction = "softens" if calibration.temperature > 1 else "sharpens"
    change = f"the expected calibration error goes from {before.ece:.3f} to {after.ece:.3f}"
    # Judged by the likelihood, which the fit is about and which is less noisy than binned errors.
    effect = change if after.nll < before.nll else f"{change}, and the likelihood does not gain: it does not help here"
    return f"{first} A temperature of {calibration.temperature:.2f} {direction} the model's own distribution; {effect}."


def comparison_sentence(comparison: Comparison) -> str:
    """Which of two models is better, and how sure that is."""
    difference = comparison.difference["weighted_f1"]
    low, value, high = (100 * part for part in (difference.low, difference.value, difference.high))
    points = f"{value:+.1f} points of weighted F1 ({low:+.1f} to {high:+.1f})"
    if difference.low > 0:
        return f"This model is better: {points}."
    if difference.high < 0:
        return f"This model is worse: {points}."
    return f"No clear difference: {points}."


def cost(item: Cost) -> str:
    """What a row took, as text."""
    what = item.what.removesuffix("s") if item.most == 1 else item.what
    if item.mean == item.most:
        return f"{item.most:,.0f} {what}"
    return f"{item.mean:,.0f} {what} on average and {item.most:,.0f} at most"


def p_value(test: McNemar) -> str:
    """A p-value as text."""
    return "p < 0.001" if test.p_value < 0.001 else f"p = {test.p_value:.3f}"
