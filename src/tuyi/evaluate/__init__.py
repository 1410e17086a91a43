"""Scores, calibration, comparison, report."""

from tuyi.evaluate.bootstrap import Interval
from tuyi.evaluate.calibration import Calibration, keep_temperature
from tuyi.evaluate.compare import Comparison, compare
from tuyi.evaluate.judge import EvaluateSettings, Evaluation, TaskEvaluation, evaluate
from tuyi.evaluate.scores import TaskScores, score

__all__ = [
    "Calibration",
    "Comparison",
    "EvaluateSettings",
    "Evaluation",
    "Interval",
    "TaskEvaluation",
    "TaskScores",
    "compare",
    "evaluate",
    "keep_temperature",
    "score",
]
