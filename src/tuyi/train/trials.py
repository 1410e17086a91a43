"""The folder of a search: what was asked, what came of each trial, the best model."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from tuyi.config import Settings, explain_errors
from tuyi.errors import OutputError
from tuyi.train.process import first_process
from tuyi.whole import output_errors, write_whole

__all__ = ["SearchFolder", "Trial", "best_trial", "read_trials", "told"]

_KEPT = {"run.json", "loss.jsonl", "loss.png", "logs"}
"""What stays of a trial that is not the best: how it went, without its weights."""


class Trial(Settings):
    """One training run of a search."""

    number: int
    """Counted from 1."""
    state: Literal["running", "done", "failed"]
    values: dict[str, Any]
    """The searched settings by their dotted names."""
    score: float | None = None
    """Weighted F1 on the validation rows."""
    scores: dict[str, float] = Field(default_factory=dict)
    """All scores on the validation rows."""
    steps: int | None = None
    """Optimizer steps."""
    seconds: float | None = None
    """Time in the training loop since it was last begun."""
    error: str | None = None
    """Why the run failed."""


def read_trials(out: str | Path) -> list[Trial]:
    """The trials of a search, in order; none where it has not begun.

    Raises:
        OutputError: The record is not one of trials.
    """
    file = Path(out) / "trials.jsonl"
    if not file.exists():
        return []
    try:
        return [Trial.model_validate_json(line) for line in file.read_text(encoding="utf-8").splitlines()]
    except ValidationError as error:
        raise OutputError(f"{explain_errors(error, str(file), Trial)}\nchoose another --out") from error


def best_trial(trials: Iterable[Trial]) -> Trial | None:
    """The trial with the highest score, of equal ones the first; None where none is done."""
    done = [trial for trial in trials if trial.score is not None]
    return max(done, key=lambda trial: trial.score or 0.0, default=None)


def told(values: Mapping[str, Any]) -> str:
    """Searched settings in a line."""
    return ", ".join(
        f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}" for key, value in values.items()
    )


class SearchFolder:
    """The folder of a search; only the first process writes.

    Args:
        out: Its place.
        keep_all: Whether every trial keeps its model.
    """

    def __init__(self, out: Path, *, keep_all: bool) -> None:
        self.out, self._keep_all = out, keep_all

    def of(self, trial: Trial) -> Path:
        """Where a trial is trained."""
        return self.out / "trials" / f"{trial.number:03d}"

    def claim(self, record: dict[str, Any], resume: bool) -> None:
        """Take the folder for this search, or make sure that the search in it is this one.

        Raises:
            OutputError: The folder is taken, or holds another search.
        """
        file = self.out / "search.json"
        if resume and file.exists():
            earlier = json.loads(file.read_text(encoding="utf-8"))
            if different := _difference("", earlier, record):
                raise OutputError(f"{self.out} holds another search: {different}; choose another --out")
            return
        if not first_process():
            return
        if file.exists():
            raise OutputError(f"{self.out} holds a search already; go on with it by --resume, or choose another --out")
        if self.out.exists() and not self.out.is_dir():
            raise OutputError(f"{self.out} is a file; expected a folder to search in")
        if self.out.exists() and any(not path.name.startswith(".") for path in self.out.iterdir()):
            raise OutputError(f"{self.out} has something in it; expected a new or empty folder: choose another --out")
        write_whole(file, json.dumps(record, ensure_ascii=False, indent=1))

    def keep(self, trials: Iterable[Trial]) -> None:
        """Write down the trials as they stand."""
        if first_process():
            write_whole(self.out / "trials.jsonl", (f"{trial.model_dump_json()}\n" for trial in trials))

    def tidy(self, trials: Iterable[Trial], best: Trial | None, run_file: Mapping[str, Any]) -> None:
        """Let ``best`` and ``best.yaml`` be the best trial's, and remove what finished trials need no more.

        Args:
            trials: As they stand.
            best: One of them; None where none is done.
            run_file: Its settings, as ``tuyi train --config`` takes them.
        """
        if not first_process():
            return
        if best is not None:
            _point(self.out / "best", self.of(best))
            text = yaml.safe_dump(dict(run_file), allow_unicode=True, sort_keys=False)
            about = f"# trial {best.number}, weighted F1 {best.score:.4f} on {run_file['valid']}"
            write_whole(self.out / "best.yaml", f"{about}\n{text}")
        for trial in trials:
            if trial.state != "running":
                _strip(self.of(trial), keeps_model=trial == best or (self._keep_all and trial.state == "done"))


def _strip(folder: Path, keeps_model: bool) -> None:
    inside = [*folder.glob("*"), *folder.glob("*/checkpoints")]  # those of tasks trained apart lie deeper
    for path in sorted(inside, reverse=True):
        if path.name == "checkpoints" or not (keeps_model or path.name in _KEPT):
            with output_errors(path):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()


def _point(link: Path, folder: Path) -> None:
    """Let a link lead to a folder beside or below it, in one move."""
    part = link.with_name(f".{link.name}.part")
    with output_errors(link):
        part.unlink(missing_ok=True)
        part.symlink_to(folder.relative_to(link.parent), target_is_directory=True)
        os.replace(part, link)


def _difference(key: str, earlier: Any, now: Any) -> str | None:
    """The first thing in which two records differ, in words."""
    if isinstance(earlier, dict) and isinstance(now, dict):
        inner = (_difference(f"{key}.{name}", earlier.get(name), now.get(name)) for name in {**earlier, **now})
        return next(filter(None, inner), None)
    if isinstance(earlier, list) and isinstance(now, list) and len(earlier) == len(now):
        return _difference(key, dict(enumerate(earlier)), dict(enumerate(now)))
    if earlier == now:
        return None
    return f"its {key.removeprefix('.')} is {str(earlier)[:80]!r}, this one's is {str(now)[:80]!r}"
