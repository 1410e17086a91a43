"""`tuyi ensemble`: predictions files or models as one predictions file, and each of them against labelled rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from tuyi.config import Settings
from tuyi.data.options import ReadOptions
from tuyi.encode.survey import OnBadRow
from tuyi.errors import ConfigError, OutputError
from tuyi.evaluate.bootstrap import Floats, Interval
from tuyi.evaluate.combine import How, Members, agreement, combine, share_weights
from tuyi.evaluate.compare import Comparison, compare
from tuyi.evaluate.page import PageTable, render_page
from tuyi.evaluate.rows import JudgedTask, join, load_predictions
from tuyi.evaluate.scores import Sampling, overall, score
from tuyi.predict.prediction import read_run, run_file
from tuyi.predict.settings import PredictSettings
from tuyi.task.catalog import TaskSet, parse_tasks
from tuyi.whole import write_whole

__all__ = ["EnsembleSettings", "EnsembleSummary", "MemberScore", "ensemble"]


class EnsembleSettings(Settings):
    """How members are asked, and how an ensemble is judged."""

    predict: PredictSettings = PredictSettings()
    """How models among the members predict."""
    read: ReadOptions = ReadOptions()
    """How to read data."""
    resamples: int = Field(default=2000, ge=100)
    """Bootstrap resamples."""
    level: float = Field(default=0.95, gt=0, lt=1)
    """Share of resamples inside an interval."""
    seed: int = Field(default=0, ge=0)
    """Of the resamples."""


@dataclass(frozen=True, slots=True, eq=False)
class MemberScore:
    """How good one member, or the ensemble, is on labelled rows.

    Args:
        weighted_f1, accuracy: Means over the tasks.
        gain: The ensemble's weighted F1 minus this one's, on the same resamples; None for the ensemble itself.
    """

    weighted_f1: Interval
    accuracy: Interval
    gain: Comparison | None


@dataclass(frozen=True, slots=True, eq=False)
class EnsembleSummary:
    """What `ensemble` made.

    Args:
        out: The predictions file.
        rows: Predictions that it holds.
        tasks: The tasks that were asked, where the members say them.
        members: Predictions file of each member, by name.
        agreement: Share of rows for which two members, the ensemble last, say the same, shape (M + 1, M + 1).
        scores: By name, the ensemble last; empty without labelled rows.
        tables: The same for people.
        report: The page with the tables.
    """

    out: Path
    rows: int
    tasks: TaskSet | None
    members: Mapping[str, Path]
    agreement: Floats
    scores: Mapping[str, MemberScore]
    tables: tuple[PageTable, ...]
    report: Path


def ensemble(
    members: Sequence[str | Path],
    out: str | Path,
    *,
    how: How = "arithmetic",
    weights: Sequence[float] | None = None,
    data: str | Path | None = None,
    against: str | Path | None = None,
    settings: EnsembleSettings | None = None,
    on_bad_row: OnBadRow = "stop",
    progress: Callable[[int, int], None] = lambda done, total: None,
    tell: Callable[[str], None] = lambda line: None,
) -> EnsembleSummary:
    """Combine predictions of the same rows into one predictions file, with a page that compares them.

    Args:
        members: Predictions files, or model folders and hub ids, which predict ``data`` first, into a folder beside
            ``out``; a run that was stopped asks no row twice.
        out: The JSON-lines file to write, not there yet; ``out`` + ``.run.json`` says how it was made.
        how: Mean of the probabilities, of their logarithms, or a vote.
        weights: Of each member; equal where not given.
        data: Rows for models among the members; ``against`` where not given.
        against: The same rows with labels, to judge members and ensemble by.
        settings: How to predict, read and resample.
        on_bad_row: Whether a row that cannot be used stops a model among the members, or is left out.
        progress: Called with rows done and rows in all while a model predicts.
        tell: Called with lines that say what is done.

    Raises:
        ConfigError: Fewer than two members, weights that do not fit, a model without ``data``.
        DataError: Members that do not answer the same rows with the same labels; rows that cannot be judged.
        OutputError: ``out`` is there already or cannot be written.
    """
    settings, out = settings or EnsembleSettings(), Path(out)
    if out.exists():
        raise OutputError(f"{out} is already there; choose another --out or remove it")
    names = [str(member) for member in members]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"the member {twice[0]} is named twice; to count it more, give it a weight")
    shares = share_weights(names, weights)
    files = _files(names, out, data or against, settings, on_bad_row, progress, tell)
    predictions = {name: load_predictions(file) for name, file in files.items()}
    combined = combine(predictions, how, weights)
    run = _run(files, how, shares)
    write_whole(run_file(out), json.dumps(run, ensure_ascii=False, indent=1))
    write_whole(out, (prediction.to_json() + "\n" for prediction in combined.values()))
    tasks = parse_tasks(run["tasks"], "the members' .run.json") if run["tasks"] else None
    everyone = {**predictions, "ensemble": combined}
    agreeing = agreement(everyone)
    scores = _scores(everyone, {**files, "ensemble": out}, against, tasks, settings) if against else {}
    tables = _tables(agreeing, scores, list(everyone), settings)
    report = out.with_name(f"{out.stem}.report.html")
    write_whole(report, _page(out, len(combined), scores, tables, run))
    return EnsembleSummary(out, len(combined), tasks, files, agreeing, scores, tables, report)


def _files(
    names: Sequence[str],
    out: Path,
    data: str | Path | None,
    settings: EnsembleSettings,
    on_bad_row: OnBadRow,
    progress: Callable[[int, int], None],
    tell: Callable[[str], None],
) -> dict[str, Path]:
    """The predictions file of each member; models predict into one first."""
    files = {}
    for number, name in enumerate(names, 1):
        if Path(name).is_file():
            files[name] = Path(name)
            continue
        if data is None:
            raise ConfigError(
                f"{name} is no predictions file; as a model it needs rows to predict: name them with --data"
            )
        from tuyi.predict.run import predict

        tell(f"member {number}: {name} predicts {data}")
        files[name] = out.with_name(f"{out.stem}.members") / f"{number}.jsonl"
        predict(
            name,
            data,
            files[name],
            settings=settings.predict,
            options=settings.read,
            on_bad_row=on_bad_row,
            progress=progress,
            tell=tell,
        )
    return files


def _run(files: Mapping[str, Path], how: How, shares: Floats) -> dict[str, Any]:
    """How the ensemble was made; data and tasks where the members say them and say the same."""
    runs = {name: read_run(file) for name, file in files.items()}
    said = [run.get("data") for run in runs.values()]
    tasks = [run.get("tasks") for run in runs.values()]
    return {
        "ensemble": {"how": how, "weights": {name: round(float(share), 6) for name, share in zip(files, shares)}},
        "members": {name: {"predictions": str(files[name]), "model": run.get("model")} for name, run in runs.items()},
        "data": said[0] if all(one == said[0] for one in said) else None,
        "tasks": next((one for one in tasks if one), None),
    }


def _scores(
    everyone: Members, files: Mapping[str, Path], against: str | Path, tasks: TaskSet | None, settings: EnsembleSettings
) -> dict[str, MemberScore]:
    from tuyi.data import read

    sampling = Sampling(settings.resamples, settings.level, settings.seed)
    gold = list(read(against, settings.read))
    judged = {
        name: _labelled(join(predictions, files[name], gold, tasks, mistakes=0))
        for name, predictions in everyone.items()
    }
    found = {}
    for name, rows in judged.items():
        each = [
            score(task.gold_N, task.predicted_N, task.labels.names, sampling, stream)
            for stream, task in enumerate(rows.values())
        ]
        scores = overall(each, settings.level)
        gain = None if name == "ensemble" else compare(judged["ensemble"], files[name], sampling)
        found[name] = MemberScore(scores["weighted_f1"], scores["accuracy"], gain)
    return found


def _labelled(judged: Mapping[str, JudgedTask]) -> dict[str, JudgedTask]:
    """Tasks with labelled rows, in an order that all members share."""
    return {name: judged[name] for name in sorted(judged) if judged[name].ids}


def _tables(
    agreeing: Floats, scores: Mapping[str, MemberScore], names: Sequence[str], settings: EnsembleSettings
) -> tuple[PageTable, ...]:
    rows = []
    for name, one in scores.items():
        gain = one.gain.difference["weighted_f1"] if one.gain else None
        test = one.gain.mcnemar if one.gain else None
        rows.append(
            (
                name,
                _told(one.weighted_f1),
                _told(one.accuracy),
                f"{gain.value * 100:+.1f} ({gain.low * 100:+.1f} – {gain.high * 100:+.1f})" if gain else "–",
                f"{test.only_this} : {test.only_other}" if test else "–",
            )
        )
    columns = ("", "weighted F1", "accuracy", "ensemble gains, points", "rows right alone, ensemble : member")
    matrix = tuple((name, *(f"{share:.3f}" for share in row)) for name, row in zip(names, agreeing))
    return (
        PageTable(
            "Against labelled rows", columns, tuple(rows),
            f"In brackets {settings.level:.0%} bootstrap intervals; gains are on the same resampled rows.",
        ),
        PageTable("Share of rows with the same label", ("", *names), matrix),
    )  # fmt: skip


def _told(value: Interval) -> str:
    return f"{value.value:.3f} ({value.low:.3f}–{value.high:.3f})"


def _page(
    out: Path, rows: int, scores: Mapping[str, MemberScore], tables: Iterable[PageTable], run: Mapping[str, Any]
) -> str:
    title = f"{rows:,} rows, {len(run['members'])} members"
    if scores:
        title = f"{scores['ensemble'].weighted_f1.value:.3f} weighted F1 of {len(run['members'])} members together"
    made = {
        "Predictions": str(out),
        "Combined by": run["ensemble"]["how"],
        "Weights": ", ".join(f"{name} {share:g}" for name, share in run["ensemble"]["weights"].items()),
        "Data": str(run["data"]),
    }
    lead = "The members beside what they say together." if scores else "How far the members agree."
    return render_page("tuyi ensemble", title, lead, list(tables), made)
