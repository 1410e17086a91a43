"""tuyi: from labelled pictures, video and dialogue to a measured Qwen-VL model that picks the right label.

The verbs, in the order of the work::

    tuyi.read(path)                         examples of any supported format, streamed
    tuyi.check(path, tasks)                 what is wrong with them
    tuyi.train(path, out, task=…)           a model folder
    tuyi.tune(path, out, valid=…)           the settings to train with
    tuyi.predict(model, path, out)          a predictions file
    tuyi.evaluate(predictions, path, out)   scores, calibration, report
    tuyi.export(model, out)                 a whole model folder from an adapter or a checkpoint
    tuyi.load(model)                        a model in this process, for single questions

Importing the package is cheap; what a verb needs is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

# These rooms are called like their verb. They are imported here, once, so that a later import of something inside
# them cannot put the room in the verb's place.
import tuyi.evaluate
import tuyi.predict
import tuyi.train  # noqa: F401

if TYPE_CHECKING:
    from tuyi.config import load_settings
    from tuyi.data.check import check
    from tuyi.data.convert import convert
    from tuyi.data.example import Example, Image, Text, Turn, Video
    from tuyi.data.options import ReadOptions
    from tuyi.data.source import read, scan
    from tuyi.data.split import split
    from tuyi.errors import TuyiError
    from tuyi.evaluate.judge import Evaluation, evaluate
    from tuyi.model.export import ExportSummary, export
    from tuyi.predict.classifier import Classifier, load
    from tuyi.predict.prediction import Prediction, read_predictions
    from tuyi.predict.run import PredictSettings, PredictSummary, predict
    from tuyi.predict.submission import write_submission
    from tuyi.task.catalog import TaskSet, load_tasks
    from tuyi.task.task import Task
    from tuyi.train.run import TrainSummary, train
    from tuyi.train.settings import TrainSettings
    from tuyi.train.tune import TuneSettings, TuneSummary, tune

_HOMES = {
    "Classifier": "tuyi.predict.classifier",
    "Evaluation": "tuyi.evaluate.judge",
    "Example": "tuyi.data.example",
    "ExportSummary": "tuyi.model.export",
    "Image": "tuyi.data.example",
    "PredictSettings": "tuyi.predict.run",
    "PredictSummary": "tuyi.predict.run",
    "Prediction": "tuyi.predict.prediction",
    "ReadOptions": "tuyi.data.options",
    "Task": "tuyi.task.task",
    "TaskSet": "tuyi.task.catalog",
    "Text": "tuyi.data.example",
    "TrainSettings": "tuyi.train.settings",
    "TrainSummary": "tuyi.train.run",
    "TuneSettings": "tuyi.train.tune",
    "TuneSummary": "tuyi.train.tune",
    "Turn": "tuyi.data.example",
    "TuyiError": "tuyi.errors",
    "Video": "tuyi.data.example",
    "check": "tuyi.data.check",
    "convert": "tuyi.data.convert",
    "evaluate": "tuyi.evaluate.judge",
    "export": "tuyi.model.export",
    "load": "tuyi.predict.classifier",
    "load_settings": "tuyi.config",
    "load_tasks": "tuyi.task.catalog",
    "predict": "tuyi.predict.run",
    "read": "tuyi.data.source",
    "read_predictions": "tuyi.predict.prediction",
    "scan": "tuyi.data.source",
    "split": "tuyi.data.split",
    "train": "tuyi.train.run",
    "tune": "tuyi.train.tune",
    "write_submission": "tuyi.predict.submission",
}

__all__ = [
    "Classifier",
    "Evaluation",
    "Example",
    "ExportSummary",
    "Image",
    "PredictSettings",
    "PredictSummary",
    "Prediction",
    "ReadOptions",
    "Task",
    "TaskSet",
    "Text",
    "TrainSettings",
    "TrainSummary",
    "TuneSettings",
    "TuneSummary",
    "Turn",
    "TuyiError",
    "Video",
    "check",
    "convert",
    "evaluate",
    "export",
    "load",
    "load_settings",
    "load_tasks",
    "predict",
    "read",
    "read_predictions",
    "scan",
    "split",
    "train",
    "tune",
    "write_submission",
]

del globals()["evaluate"], globals()["predict"], globals()["train"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tuyi' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
