"""`tuyi distill`: rounds of label → filter → train → evaluate, until the validation score stops rising."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tuyi.distill.rounds_page import Round, rounds_page, rounds_table
from tuyi.distill.settings import DistillRun, DistillSettings
from tuyi.distill.stages import StageName, Stages
from tuyi.distill.student import Outcome, Student, place_model
from tuyi.encode.survey import OnBadRow
from tuyi.errors import ConfigError
from tuyi.evaluate.bootstrap import Interval
from tuyi.evaluate.page import PageTable
from tuyi.model.tasks import choose_tasks, with_budget
from tuyi.task.catalog import TaskSet
from tuyi.train.process import launched
from tuyi.whole import write_whole

__all__ = ["DistillRun", "DistillSettings", "Distilled", "distill"]


@dataclass(frozen=True, slots=True, eq=False)
class Distilled:
    """What `distill` made.

    Args:
        out: The best student's model folder.
        rounds: Every round, in order.
        best: The one with the highest weighted F1; of equal ones the first.
        tables: The rounds for people.
        report: The page with the tables.
    """

    out: Path
    rounds: tuple[Round, ...]
    best: Round
    tables: tuple[PageTable, ...]
    report: Path


def distill(
    labelled: str | Path,
    unlabelled: str | Path,
    valid: str | Path,
    out: str | Path,
    *,
    task: str | TaskSet | None = None,
    model: str = "builtin:tiny",
    teacher: str | None = None,
    settings: DistillSettings | None = None,
    on_bad_row: OnBadRow = "stop",
    progress: Callable[[int, int], None] = lambda done, total: None,
    console: Any = None,
) -> Distilled:
    """Train a student on labelled rows and on rows that a teacher labels, round after round, and keep the best one.

    Round 0 learns from the labelled rows alone. In each later round a teacher labels the unlabelled rows (``teacher``
    in the first, then the student of the round before), and a new student learns from the labelled rows and the kept
    ones. Started again after a stop, however hard, the run goes on at the stage where it was.

    Args:
        labelled, unlabelled, valid: Anything that ``tuyi.read`` reads.
        out: The model folder to write; the rounds lie in ``rounds`` in it.
        task: A task set, built-in name or YAML file; not needed where ``model`` brings its own.
        model: The base model of every round's student.
        teacher: A model folder or hub id; where there is none, round 1 is labelled by the student of round 0.
        settings: How to train, predict and select.
        on_bad_row: Whether one bad row stops the run, or is left out and named.
        progress: Called with rows done and rows in all during prediction.
        console: A rich console; none to stay silent.

    Raises:
        ConfigError: Settings that do not go together, or several processes.
        OutputError: ``out`` is taken, holds another run, or a finished stage's files have changed.
        DataError, TaskError, ModelError, TrainingError: As in training and prediction.

    Source: self-training with a fresh student each round, Xie et al., Self-training with Noisy Student (arXiv
    1911.04252), algorithm 1.
    """
    from rich.console import Console

    from tuyi.model.load import peek

    if launched():
        raise ConfigError("tuyi distill runs in one process; start it without torchrun, or use label and train by hand")
    settings, out, console = settings or DistillSettings(), Path(out), console or Console(quiet=True)
    tasks = choose_tasks(model, peek(model), task)
    with_budget(tasks, settings.budget)  # what is wrong with it shows before anything is trained
    given = {"labelled": labelled, "unlabelled": unlabelled, "valid": valid, "model": model, "on_bad_row": on_bad_row}

    def tell(line: str) -> None:
        console.print(line, style="dim", markup=False, highlight=False, soft_wrap=True)

    student = Student(
        labelled=labelled,
        unlabelled=unlabelled,
        valid=valid,
        tasks=tasks,
        model=model,
        settings=settings,
        on_bad_row=on_bad_row,
        progress=progress,
        tell=tell,
        console=console,
    )
    stages = Stages(out, _record(given, teacher, tasks, settings), tell)
    return _Rounds(stages, out, student, teacher).go_on()


def _record(
    given: Mapping[str, str | Path], teacher: str | None, tasks: TaskSet, settings: DistillSettings
) -> dict[str, Any]:
    """What must not change when a run goes on; the number of rounds, patience and speed may."""
    groups = {name: getattr(settings, name).model_dump(mode="json") for name in ("train", "select", "views", "read")}
    return {
        **{name: str(value) for name, value in given.items()},
        "teacher": teacher,
        "tasks": tasks.model_dump(mode="json"),
        **groups,
        "budget": settings.budget,
    }


@dataclass(frozen=True, slots=True, eq=False)
class _Rounds:
    """Rounds that may begin or go on.

    Args:
        stages: What is done.
        out: The model folder.
        student: How students are made.
        teacher: Who labels in round 1.
    """

    stages: Stages
    out: Path
    student: Student
    teacher: str | None

    def go_on(self) -> Distilled:
        """Do what is missing."""
        settings = self.student.settings.distill
        rounds: list[Round] = []
        for number in range(settings.rounds + 1):
            one = self._round(number)
            if one is None:
                self.student.tell(f"round {number}: the filter keeps no row, so there is nothing more to learn from")
                break
            rounds.append(one)
            best = _best(rounds)
            if not settings.keep_all:
                for other in rounds[:-1]:  # the last one may be the next teacher
                    if other.number != best.number:
                        self.stages.remove_weights(other.number)
            self._say(one, best)
            if number - best.number >= settings.patience:
                break
        best = _best(rounds)
        if self.stages.result(best.number, "place") is None:
            place_model(self.stages.of(best.number) / "model", self.out)
            self.stages.done(best.number, "place", (), {})
        tables = (rounds_table(rounds, best),)
        report = self.stages.folder / "report.html"
        student = self.student
        made_of = [str(one) for one in (student.labelled, student.unlabelled, student.valid, student.model)]
        write_whole(report, rounds_page(self.out, rounds, best, tables, made_of))
        return Distilled(self.out, tuple(rounds), best, tables, report)

    def _round(self, number: int) -> Round | None:
        """One round; None where the filter keeps no row."""
        folder, student = self.stages.of(number), self.student
        labelling = None
        if number:
            teacher = self.teacher if number == 1 else None
            labelling = self._stage(
                number, "label", partial(student.label, folder, teacher, self.stages.of(number - 1))
            )
            if not labelling["kept"]:
                return None
        rows = self._stage(number, "rows", partial(student.rows, folder))
        self._stage(number, "train", partial(student.train, folder))
        shutil.rmtree(folder / "model" / "checkpoints", ignore_errors=True)
        self._stage(number, "predict", partial(student.predict, folder))
        scores = self._stage(number, "judge", partial(student.judge, folder))
        return Round(
            number=number,
            teacher=labelling["teacher"] if labelling else None,
            labelled=rows["labelled"],
            kept=rows["kept"],
            unlabelled=labelling["rows"] if labelling else None,
            agreement=labelling["agreement"] if labelling else None,
            weighted_f1=Interval(*scores["weighted_f1"]),
        )

    def _stage(self, number: int, name: StageName, do: Callable[[], Outcome]) -> dict[str, Any]:
        """The result of a stage, which is done now unless it was before."""
        found = self.stages.result(number, name)
        if found is not None:
            return found
        self.student.tell(f"round {number}, {name}")
        return self.stages.done(number, name, *do())

    def _say(self, one: Round, best: Round) -> None:
        self.student.console.print(
            f"round {one.number}: weighted F1 {one.weighted_f1.value:.4f}, best so far {best.weighted_f1.value:.4f} in "
            f"round {best.number}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


def _best(rounds: list[Round]) -> Round:
    return max(rounds, key=lambda one: one.weighted_f1.value)  # of equal ones the first
