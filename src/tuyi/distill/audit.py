"""`tuyi audit`: the rows of a labelled data set whose label is probably wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from tuyi.config import Settings, load_settings
from tuyi.data.options import ReadOptions
from tuyi.distill.audit_folder import Asked, AuditSummary, claim_audit, write_audit
from tuyi.distill.audit_tasks import check_not_learned, tasks_to_ask
from tuyi.distill.audited_rows import AuditedRows, given_predictions, judge_rows, read_rows
from tuyi.distill.folds import FoldJob, divide_folds, predict_folds
from tuyi.distill.label_issues import Method, find_issues
from tuyi.errors import ConfigError
from tuyi.extras import need
from tuyi.predict.settings import PredictSettings
from tuyi.train.settings import TrainSettings
from tuyi.whole import write_whole

if TYPE_CHECKING:
    from tuyi.predict.prediction import Prediction
    from tuyi.task.catalog import TaskSet

__all__ = ["AuditSettings", "AuditSummary", "audit", "audit_settings"]

_FROM_SCRATCH = ("epochs=6", "weight_decay=0.01")
"""How a built-in model learns in a fold; few epochs, so that it does not come to believe wrong labels."""


class AuditSettings(Settings):
    """How to audit."""

    folds: int = Field(default=5, ge=2)
    """Each row is judged by a model that was trained on the other folds."""
    seed: int = 0
    """Of the division into folds."""
    method: Method = "prune_by_class"
    """Which rows confident learning takes; the names are cleanlab's."""
    near_pictures: bool = True
    """Whether pictures that were saved, scaled or compressed again count as the same; each is opened for it."""
    keep_models: bool = False
    """Whether the folds' models stay in the folder."""
    page_rows: int = Field(default=2000, gt=0)
    """Most issues that the page shows, the worst first; the files have all."""
    page_megabytes: float = Field(default=24.0, ge=0)
    """Most megabytes of pictures in the page; the issues after that are shown without."""
    train: TrainSettings = TrainSettings(tensorboard=False)
    """How the folds' models are trained."""
    predict: PredictSettings = PredictSettings()
    """How the held-out rows are predicted."""
    budget: dict[str, Any] = Field(default_factory=dict)
    """Budget settings to use instead of the task's, such as ``max_pixels``."""
    read: ReadOptions = ReadOptions()
    """How to read the data."""


def audit_settings(model: str = "builtin:tiny", overrides: Sequence[str] = ()) -> AuditSettings:
    """Settings that fit a model: one that is built in learns from scratch, all others as `tuyi train` has it.

    Args:
        model: What the folds' models start from.
        overrides: ``KEY=VALUE`` strings with dotted keys.

    Raises:
        ConfigError: Every problem, each with its dotted path.
    """
    from tuyi.model.tiny import NAMES

    scratch = _FROM_SCRATCH if model in NAMES else ()
    return load_settings(
        AuditSettings, None, ["train.tensorboard=false", *(f"train.{item}" for item in scratch), *overrides]
    )


def audit(
    data: str | Path,
    out: str | Path,
    *,
    task: str | TaskSet | None = None,
    model: str = "builtin:tiny",
    predictions: str | Path | None = None,
    settings: AuditSettings | None = None,
    console: Any = None,
) -> AuditSummary:
    """Find the rows whose label is probably wrong.

    The labelled rows are divided into folds; each fold is predicted by a model that was trained on the others, and
    confident learning ranks the labels that its distributions speak against. Rows that show the same with different
    labels are issues too. A run that was stopped goes on where it was.

    Args:
        data: Anything that ``tuyi.read`` reads.
        out: Folder to write.
        task: A task set, built-in name or YAML file; not needed where ``model`` or ``predictions`` bring their own.
        model: What the folds' models start from; it must not have been trained on ``data``.
        predictions: Out-of-sample predictions of the rows that are there already; nothing is trained then.
        settings: How; :func:`audit_settings` of the model where not given.
        console: A rich console for progress; none to stay silent.

    Raises:
        ConfigError: cleanlab is not installed, or settings that cannot be used.
        DataError: Rows that cannot be used, or predictions that do not fit them.
        TaskError: No task, or none with labels.
        ModelError: The model was trained on these rows.
        OutputError: ``out`` is taken.
    """
    from rich.console import Console

    need("cleanlab", "tuyi audit needs", extra="audit")
    settings, out = settings or audit_settings(model), Path(out)
    given = Path(predictions) if predictions is not None else None
    tasks = tasks_to_ask(task, model, given)
    check_not_learned(model, given, data)
    audited = read_rows(data, tasks, settings.read, settings.near_pictures)
    asked = Asked(str(data), audited.fingerprint, tasks, model, given, settings)
    claim_audit(out, asked)
    if given is not None:
        file, found = given, given_predictions(given, audited)
    else:
        file = out / "predictions.jsonl"
        found = _predict(audited, tasks, model, settings, out, console or Console(quiet=True))
        write_whole(file, (f"{one.to_json()}\n" for one in found.values()))
    judged = judge_rows(audited, found, file, tasks, settings.folds)
    issues = find_issues(judged, {one.name: one.labels.names for one in tasks if one.labels}, settings.method)
    return write_audit(out, asked, audited, judged, issues)


def _predict(
    audited: AuditedRows, tasks: TaskSet, model: str, settings: AuditSettings, out: Path, console: Any
) -> dict[str, Prediction]:
    from tuyi.train.process import launched

    if launched():
        raise ConfigError("tuyi audit runs as one process; for several, predict the folds and pass --predictions")
    folds = divide_folds(audited.strata, audited.groups, settings.folds, settings.seed)
    job = FoldJob(
        out=out / "folds",
        model=model,
        tasks=tasks,
        train=settings.train,
        predict=settings.predict,
        budget=settings.budget,
        keep_models=settings.keep_models,
        console=console,
    )
    return predict_folds(audited.rows, folds, job)
