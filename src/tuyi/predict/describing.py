"""`tuyi describe`: one question about each of many pictures and videos, each answered exactly once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field

from tuyi.config import Settings
from tuyi.data.example import Example, Image, Video
from tuyi.data.formats.folder import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from tuyi.encode.encoder import Encoder
from tuyi.encode.survey import OnBadRow
from tuyi.errors import ConfigError, DataError, Place
from tuyi.model.folder import FolderInfo, need_one_model
from tuyi.predict.limits import keep_limits
from tuyi.predict.resume import resume, run_record
from tuyi.predict.run import Answering, answer_rows
from tuyi.predict.settings import PredictSettings
from tuyi.predict.talk import chat_budget, talk_task
from tuyi.task.catalog import TaskSet

__all__ = ["DescribeRun", "Described", "describe"]


class DescribeRun(Settings):
    """What ``--set`` can change of a description."""

    predict: PredictSettings = PredictSettings()
    """How to predict."""
    budget: dict[str, Any] = Field(default_factory=dict)
    """Budget settings to use instead of the model's, such as ``max_pixels``."""


@dataclass(frozen=True, slots=True)
class Described:
    """What a run did.

    Args:
        out: The file of answers.
        answers: How many it holds.
        resumed: How many of them an earlier run had made.
        cut: Answers made now that were cut at their number of tokens.
        skipped: What is wrong with each file that was left out.
    """

    out: Path
    answers: int
    resumed: int
    cut: int
    skipped: tuple[str, ...]


def describe(
    model: str | Path, files: Iterable[str | Path], question: str, out: str | Path, *,
    max_tokens: int = 512,
    run: DescribeRun | None = None,
    on_bad_row: OnBadRow = "stop",
    progress: Callable[[int, int], None] = lambda done, total: None,
    tell: Callable[[str], None] = lambda line: None,
) -> Described:  # fmt: skip
    """Ask a model the same about every picture and video; a run that was stopped goes on when it is started again.

    ``out`` is a predictions file: ``id`` is the file as it was named, ``label`` the answer.

    Args:
        model: A model folder, hub id or built-in name; of a folder with a task, the budget is that of its first task.
        files: Pictures and videos; folders stand for those directly inside.
        question: What is asked about each.
        out: The JSONL file to write; ``out`` + ``.run.json`` beside it says how it was made.
        max_tokens: Most tokens of an answer.
        run: Speed, place and budget.
        on_bad_row: Whether one file that cannot be used stops the run, or is left out and named.
        progress: Called with files done and files in all.
        tell: Called with lines that say what was taken over from the model.

    Raises:
        DataError: Files that cannot be used, all counted.
        ModelError: The model cannot be loaded.
        ConfigError: No question, or settings that do not go together.
        OutputError: ``out`` holds answers of another model or to another question.
    """
    from tuyi.model.load import load_frontend

    run, out = run or DescribeRun(), Path(out)
    if not question.strip():
        raise ConfigError("expected a question, found an empty one; say what to ask about each file with --ask")
    frontend = load_frontend(str(model), [question])
    need_one_model(str(model), frontend.info)
    tasks = _asked_task(question, frontend.info, run.budget, max_tokens, tell)
    frontend = replace(frontend, info=None)  # the question is no task that it was calibrated for
    encoder = Encoder(frontend.tokenizer, frontend.spec, tasks)
    tasks = keep_limits(tasks, encoder, run.predict)
    encoder = Encoder(frontend.tokenizer, frontend.spec, tasks)
    done = resume(out, run_record(str(model), "files", tasks, None, run.predict))
    how = Answering(str(model), frontend, encoder, run.predict, on_bad_row, progress, tell)
    found = answer_rows(_rows(files), how, out, done, lambda prediction: "cut_free" in prediction.notes)
    return Described(out, len(done) + found.made, len(done), found.counted, found.skipped)


def _asked_task(
    question: str, info: FolderInfo | None, budget: Mapping[str, Any], max_tokens: int, tell: Callable[[str], None]
) -> TaskSet:
    """An open task that shows a file and asks the question."""
    tasks = talk_task("describe", chat_budget(info, budget, tell), max_tokens)
    prompt = "{content}" + question.replace("{", "{{").replace("}", "}}")
    return tasks.model_copy(update={"tasks": (tasks.tasks[0].model_copy(update={"prompt": prompt}),)})


def _rows(files: Iterable[str | Path]) -> Iterator[Example]:
    """A row for each file."""
    number = 0
    for file in files:
        path = Path(file)
        inner = sorted(one for one in path.iterdir() if _is_medium(one)) if path.is_dir() else [path]
        if not inner:
            raise DataError(f"expected pictures or videos in {file}, found none; name files, or the folder they are in")
        for one in inner:
            if not _is_medium(one):
                known = ", ".join(sorted(IMAGE_SUFFIXES | VIDEO_SUFFIXES))
                raise DataError(f"expected a picture or video ({known}), found {one}; rename it or leave it out")
            number += 1
            media = Image(one, str(one)) if one.suffix.lower() in IMAGE_SUFFIXES else Video(one, str(one))
            yield Example(str(one), (media,), place=Place(row=number))


def _is_medium(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES and not path.name.startswith(".")
