"""`tuyi tune`: a small search over training settings, each trial a training run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field

from tuyi.config import Settings
from tuyi.data.options import ReadOptions
from tuyi.encode.survey import OnBadRow
from tuyi.errors import ConfigError, TrainingError
from tuyi.extras import need
from tuyi.model.tasks import choose_tasks, with_budget
from tuyi.model.tiny import NAMES
from tuyi.task.catalog import TaskSet
from tuyi.train.process import first_process, wait_for_all
from tuyi.train.run import TrainSummary, train
from tuyi.train.settings import TrainRun, TrainSettings
from tuyi.train.single import free_memory
from tuyi.train.space import Space, check_space, default_space, parse_space, placed, starting_values
from tuyi.train.suggest import suggest
from tuyi.train.trials import SearchFolder, Trial, best_trial, read_trials, told

__all__ = ["TuneRun", "TuneSettings", "TuneSummary", "tune"]


class TuneSettings(Settings):
    """What to search, and how long."""

    trials: int = Field(default=12, gt=0)
    """Training runs in all; a resumed search may be given more."""
    space: dict[str, Any] = Field(default_factory=dict)
    """Settings to search, each with a range or choices; learning rate, epochs and pixels where not given."""
    keep_all: bool = False
    """Whether every trial's model is kept, not only the best one."""


class TuneRun(TrainRun):
    """A whole search, as a run file says it."""

    out: Path
    """Folder of the search."""
    tune: TuneSettings = TuneSettings()
    """What to search, and how long."""


@dataclass(frozen=True, slots=True)
class TuneSummary:
    """What a search found.

    Args:
        out: Folder of the search; ``best`` in it leads to the best trial's model, ``best.yaml`` is its run file.
        trials: Every trial, in order.
        best: The trial with the highest weighted F1; of equal ones the first.
    """

    out: Path
    trials: tuple[Trial, ...]
    best: Trial


def tune(
    data: str | Path,
    out: str | Path,
    *,
    task: str | TaskSet | None = None,
    model: str = "builtin:tiny",
    valid: str | Path | None = None,
    search: TuneSettings | None = None,
    settings: TrainSettings | None = None,
    budget: Mapping[str, Any] | None = None,
    options: ReadOptions | None = None,
    on_bad_row: OnBadRow = "stop",
    resume: bool = False,
    console: Any = None,
) -> TuneSummary:
    """Search for the training settings with the best weighted F1 on the validation rows.

    The first trial has the settings as they are given. A trial whose loss stops being a number has failed, and counts
    as a score of 0.

    Args:
        data, task, model, settings, budget, options, on_bad_row: As for :func:`tuyi.train.run.train`.
        out: Folder of the search; the trials lie in it.
        valid: Labelled rows that decide; none of those that the best model will be judged by.
        search: What to search, and how long.
        resume: Go on with the search in ``out``, also with a trial that was cut short.
        console: A rich console for progress; none to stay silent.

    Raises:
        ConfigError: No validation rows, no Optuna, or a search space that does not fit the settings.
        OutputError: ``out`` is taken, or holds another search.
        TrainingError: Every trial failed.
        DataError, TaskError, ModelError: As in training.
    """
    from rich.console import Console

    from tuyi.model.load import peek

    need("optuna", "tuyi tune needs", extra="tune")
    if valid is None:
        raise ConfigError(
            "a search needs validation rows to choose by, found none: pass --valid FILE; "
            f"`tuyi split {data} PARTS --parts train=0.8,valid=0.2` divides one file into two"
        )
    search, settings, options = search or TuneSettings(), settings or TrainSettings(), options or ReadOptions()
    budget = dict(budget or {})
    tasks, builtin, console = choose_tasks(model, peek(model), task), model in NAMES, console or Console(quiet=True)
    budgeted = with_budget(tasks, budget)
    space = parse_space(search.space) or default_space(settings, budgeted, builtin=builtin)
    check_space(space, settings, budgeted)
    run = {
        "data": str(data),
        "valid": str(valid),
        "model": model,
        "read": options.model_dump(mode="json", exclude_defaults=True),
    }
    record = {
        **run,
        "tasks": tasks.model_dump(mode="json"),
        "budget": budget,
        "train": settings.model_dump(mode="json"),
        "space": {key: str(what) for key, what in space.items()},
    }
    folder = SearchFolder(Path(out), keep_all=search.keep_all)
    folder.claim(record, resume)
    return _Search(
        folder=folder,
        space=space,
        start=starting_values(space, settings, budgeted, builtin=builtin),
        trials=search.trials,
        settings=settings,
        budget=budget,
        fit=partial(
            train, data, task=tasks, model=model, valid=valid, options=options, on_bad_row=on_bad_row, console=console
        ),
        run_file=run | ({"task": task} if isinstance(task, str) else {}),
        console=console,
    ).go_on(read_trials(out) if resume else [])


@dataclass(frozen=True, slots=True, eq=False)
class _Search:
    """A search that may begin.

    Args:
        folder: Where it lies.
        space, start: What is tried, and what first.
        trials: How many.
        settings, budget: What the trials have in common.
        fit: Trains a model, given its folder, settings, budget, and whether to go on with the run in that folder.
        run_file: What ``best.yaml`` says beside settings and budget.
        console: For progress.
    """

    folder: SearchFolder
    space: Space
    start: dict[str, Any]
    trials: int
    settings: TrainSettings
    budget: dict[str, Any]
    fit: Callable[..., TrainSummary]
    run_file: dict[str, Any]
    console: Any

    def go_on(self, trials: list[Trial]) -> TuneSummary:
        """Run the trials that are missing."""
        self._say(f"{self.trials} trials of {', '.join(f'{key} {what}' for key, what in self.space.items())}")
        self._tidy(trials)
        while (trial := self._next(trials)) is not None:
            before = [one for one in trials if one.number != trial.number]
            self.folder.keep([*before, trial])
            self._say(f"\ntrial {trial.number} of {self.trials}: {told(trial.values)}", style="bold")
            trials = [*before, self._run(trial)]
            self.folder.keep(trials)
            self._tidy(trials)
            wait_for_all()
            trials = read_trials(self.folder.out)  # what the first process saw counts for all
            self._say(_outcome(trials))
        if len(trials) < self.trials:
            self._say(f"nothing left to try: {len(trials)} trials are all that the search space has")
        best = best_trial(trials)
        if best is None:
            raise TrainingError(f"all {len(trials)} trials failed, the last one: {trials[-1].error}")
        return TuneSummary(out=self.folder.out, trials=tuple(trials), best=best)

    def _next(self, trials: list[Trial]) -> Trial | None:
        """The trial that was cut short, else a new one; None when the search is over."""
        if trials and trials[-1].state == "running":
            return trials[-1]
        if len(trials) >= self.trials:
            return None
        tried = [(trial.values, trial.score or 0.0) for trial in trials]
        values = suggest(self.space, tried, self.start, self.settings.seed)
        return None if values is None else Trial(number=len(trials) + 1, state="running", values=values)

    def _run(self, trial: Trial) -> Trial:
        out = self.folder.of(trial)
        settings, budget = placed(trial.values, self.settings, self.budget)
        known: dict[str, Any]
        try:
            done = self.fit(out, settings=settings, budget=budget, resume=out.exists())
            known = {"state": "done", "scores": done.scores, "steps": done.steps, "seconds": round(done.seconds, 1)}
            if first_process():  # which alone is sure to have read the whole log
                known["score"] = done.scores["weighted_f1"]
        except TrainingError as error:
            known = {"state": "failed", "error": str(error)}
        free_memory()
        return trial.model_copy(update=known)

    def _tidy(self, trials: list[Trial]) -> None:
        best = best_trial(trials)
        settings, budget = placed(best.values if best else {}, self.settings, self.budget)
        chosen = settings.model_dump(mode="json", exclude_defaults=True)
        run_file = {**self.run_file, "budget": budget, "train": chosen}
        self.folder.tidy(trials, best, {key: value for key, value in run_file.items() if value})

    def _say(self, text: str, style: str | None = None) -> None:
        self.console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def _outcome(trials: list[Trial]) -> str:
    """The last trial in a line."""
    last, best = trials[-1], best_trial(trials)
    if last.score is None:
        return f"trial {last.number} failed: {last.error}"
    better = "the best so far" if last == best else f"best so far {best.score:.4f}, trial {best.number}" if best else ""
    return f"trial {last.number}: weighted F1 {last.score:.4f} after {last.seconds:.0f} s, {better}"
