"""tuyi: from labelled pictures, video and dialogue to a measured Qwen-VL model that picks the right label.

The verbs, in the order of the work::

    tuyi.read(path)                         examples of any supported format, streamed
    tuyi.check(path, tasks)                 what is wrong with them
    tuyi.train(path, out, task=…)           a model folder
    tuyi.tune(path, out, valid=…)           the settings to train with
    tuyi.predict(model, path, out)          a predictions file
    tuyi.evaluate(predictions, path, out)   scores, calibration, report
    tuyi.ensemble(members, out)             several models' predictions as one
    tuyi.audit(path, out)                   rows whose label is probably wrong
    tuyi.label(path, out, teachers)         labels of a teacher for rows without
    tuyi.rationalize(path, teacher, out)    reasons of a teacher for rows with labels
    tuyi.distill(path, more, valid, out)    rounds of labelling, filtering and training
    tuyi.describe(model, files, ask, out)   a free answer for each picture or video
    tuyi.open_conversation(model)           a talk about pictures and video
    tuyi.serve(model)                       the model over HTTP
    tuyi.export(model, out)                 a whole model folder from an adapter or a checkpoint
    tuyi.load(model)                        a model in this process, for single questions

Importing the package is cheap; what a verb needs is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

# These rooms are called like their verb. They are imported here, once, so that a later import of something inside
# them cannot put the room in the verb's place.
import tuyi.distill
import tuyi.evaluate
import tuyi.predict
import tuyi.serve
import tuyi.train  # noqa: F401

if TYPE_CHECKING:
    from tuyi.config import load_settings
    from tuyi.data.check import check
    from tuyi.data.convert import convert
    from tuyi.data.example import Example, Image, Text, Turn, Video
    from tuyi.data.options import ReadOptions
    from tuyi.data.source import read, scan
    from tuyi.data.split import split
    from tuyi.distill.audit import AuditSettings, audit
    from tuyi.distill.corrected import apply_corrections
    from tuyi.distill.drafts import RationalizeRun
    from tuyi.distill.label import LabelSettings, label
    from tuyi.distill.rationalize import rationalize
    from tuyi.distill.rounds import distill
    from tuyi.distill.settings import DistillSettings
    from tuyi.errors import TuyiError
    from tuyi.evaluate.ensemble import EnsembleSettings, ensemble
    from tuyi.evaluate.judge import Evaluation, evaluate
    from tuyi.model.export import ExportSummary, export
    from tuyi.predict.classifier import Classifier, load
    from tuyi.predict.conversation import Conversation, open_conversation
    from tuyi.predict.describing import describe
    from tuyi.predict.prediction import Prediction, read_predictions
    from tuyi.predict.run import PredictSettings, PredictSummary, predict
    from tuyi.predict.submission import write_submission
    from tuyi.predict.talk import ChatSettings
    from tuyi.serve.run import serve
    from tuyi.serve.settings import ServeSettings
    from tuyi.task.catalog import TaskSet, load_tasks
    from tuyi.task.task import Task
    from tuyi.train.run import TrainSummary, train
    from tuyi.train.settings import TrainSettings
    from tuyi.train.tune import TuneSettings, TuneSummary, tune

_HOMES = {
    "AuditSettings": "tuyi.distill.audit",
    "ChatSettings": "tuyi.predict.talk",
    "Classifier": "tuyi.predict.classifier",
    "Conversation": "tuyi.predict.conversation",
    "DistillSettings": "tuyi.distill.settings",
    "EnsembleSettings": "tuyi.evaluate.ensemble",
    "Evaluation": "tuyi.evaluate.judge",
    "Example": "tuyi.data.example",
    "ExportSummary": "tuyi.model.export",
    "Image": "tuyi.data.example",
    "LabelSettings": "tuyi.distill.label",
    "PredictSettings": "tuyi.predict.run",
    "PredictSummary": "tuyi.predict.run",
    "Prediction": "tuyi.predict.prediction",
    "RationalizeRun": "tuyi.distill.drafts",
    "ReadOptions": "tuyi.data.options",
    "ServeSettings": "tuyi.serve.settings",
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
    "apply_corrections": "tuyi.distill.corrected",
    "audit": "tuyi.distill.audit",
    "check": "tuyi.data.check",
    "convert": "tuyi.data.convert",
    "describe": "tuyi.predict.describing",
    "distill": "tuyi.distill.rounds",
    "ensemble": "tuyi.evaluate.ensemble",
    "evaluate": "tuyi.evaluate.judge",
    "export": "tuyi.model.export",
    "label": "tuyi.distill.label",
    "load": "tuyi.predict.classifier",
    "load_settings": "tuyi.config",
    "load_tasks": "tuyi.task.catalog",
    "open_conversation": "tuyi.predict.conversation",
    "predict": "tuyi.predict.run",
    "rationalize": "tuyi.distill.rationalize",
    "read": "tuyi.data.source",
    "read_predictions": "tuyi.predict.prediction",
    "scan": "tuyi.data.source",
    "serve": "tuyi.serve.run",
    "split": "tuyi.data.split",
    "train": "tuyi.train.run",
    "tune": "tuyi.train.tune",
    "write_submission": "tuyi.predict.submission",
}

__all__ = [
    "AuditSettings",
    "ChatSettings",
    "Classifier",
    "Conversation",
    "DistillSettings",
    "EnsembleSettings",
    "Evaluation",
    "Example",
    "ExportSummary",
    "Image",
    "LabelSettings",
    "PredictSettings",
    "PredictSummary",
    "Prediction",
    "RationalizeRun",
    "ReadOptions",
    "ServeSettings",
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
    "apply_corrections",
    "audit",
    "check",
    "convert",
    "describe",
    "distill",
    "ensemble",
    "evaluate",
    "export",
    "label",
    "load",
    "load_settings",
    "load_tasks",
    "open_conversation",
    "predict",
    "rationalize",
    "read",
    "read_predictions",
    "scan",
    "serve",
    "split",
    "train",
    "tune",
    "write_submission",
]

del globals()["distill"], globals()["evaluate"], globals()["predict"], globals()["serve"], globals()["train"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tuyi' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
