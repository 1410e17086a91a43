"""How a teacher is asked why a label is right, and whether a reason leads back to it: the wording, task by task."""

from __future__ import annotations

import string
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, model_validator

from tuyi.config import Settings, explain_errors
from tuyi.data.example import Example, Text
from tuyi.errors import ConfigError, TaskError
from tuyi.task.answer import AnswerFormat, Free
from tuyi.task.catalog import TaskSet
from tuyi.task.task import Task

__all__ = ["ReasonTemplate", "reason_row", "reason_task", "reason_templates", "support_row", "support_task"]

_ANYWHERE = ("content", "labels", "definitions", "max_characters")


class ReasonTemplate(Settings):
    """The wording for one task.

    All that differs between rows stands behind ``{content}``: a row over its budget loses turns in front of that.
    """

    ask: str
    """Asks for the reason: ``{content}``, ``{label}``, ``{definition}``, ``{labels}``, ``{definitions}``,
    ``{max_characters}``."""
    check: str
    """Asks for the label with a reason at hand: ``{content}``, ``{reason}``, ``{labels}``, ``{definitions}``."""
    max_characters: int = Field(default=50, gt=0)
    """The longest reason; what is asked for and checked."""
    max_tokens: int = Field(default=128, gt=0)
    """The longest answer of the teacher, in its tokens."""

    @model_validator(mode="after")
    def _consistent(self) -> ReasonTemplate:
        for name, text, own in (("ask", self.ask, ("label", "definition")), ("check", self.check, ("reason",))):
            try:
                fields = [field for _, field, _, _ in string.Formatter().parse(text) if field is not None]
            except ValueError as error:
                raise ValueError(f"{name}: {error}; write a literal brace twice: {{{{ }}}}") from error
            if unknown := sorted(set(fields) - {*_ANYWHERE, *own}):
                known = ", ".join(f"{{{field}}}" for field in (*_ANYWHERE, *own))
                raise ValueError(f"{name}: unknown field {{{unknown[0]}}}, expected {known}")
            for field in ("content", own[0]):
                if fields.count(field) != 1:
                    raise ValueError(f"{name}: expected {{{field}}} once, found it {fields.count(field)} times")
            if any(field in own for field in fields[: fields.index("content")]):
                raise ValueError(f"{name}: expected {{{own[0]}}} behind {{content}}, found it in front")
        return self

    def wording(self, text: str, task: Task, values: Mapping[str, str]) -> tuple[str, str]:
        """What stands before and behind the content in ``ask`` or ``check``, filled in for a task and a row."""
        assert task.labels is not None
        listed = "[" + ",".join(f'"{name}"' for name in task.labels.names) + "]"
        defined = "\n".join(
            f"{one.name}：{one.definition}" if one.definition else one.name for one in task.labels.labels
        )
        every = {"labels": listed, "definitions": defined, "max_characters": self.max_characters}
        before, behind = text.format(content="\0", **every, **values).split("\0", 1)
        return before, behind


def reason_templates(tasks: TaskSet, file: Path | None = None) -> dict[str, ReasonTemplate]:
    """The wording for each task: of the file, else built in for the task, else built in for its language.

    Args:
        tasks: The tasks, by whose names the templates are known.
        file: YAML of templates by task name; what one leaves out is taken from the built-in one.

    Raises:
        ConfigError: The file cannot be read, or is wrong; every problem with its dotted path.
        TaskError: A task has no labels.
    """
    own = {} if file is None else _read(file)
    names = [task.name for task in tasks]
    if unknown := sorted(set(own) - set(names)):
        raise ConfigError(f"{file}: expected templates for {', '.join(names)}; found one for {unknown[0]!r}")
    builtin = yaml.safe_load(resources.files("tuyi.distill").joinpath("reasons.yaml").read_text(encoding="utf-8"))
    templates = {}
    for task in tasks:
        if task.labels is None:
            raise TaskError(f"task {task.name} answers with open text; reasons are given for labels of a closed set")
        base = builtin[task.name if task.name in builtin else _language(task)]
        try:
            templates[task.name] = ReasonTemplate.model_validate({**base, **own.get(task.name, {})})
        except ValidationError as error:
            raise ConfigError(explain_errors(error, f"{file}: {task.name}", ReasonTemplate)) from error
    return templates


def _read(file: Path) -> dict[str, Any]:
    try:
        value = yaml.safe_load(file.read_text(encoding="utf-8-sig")) or {}
    except FileNotFoundError as error:
        raise ConfigError(f"reason templates {file} do not exist") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"reason templates {file} cannot be read as YAML: {error}") from error
    if not isinstance(value, dict) or not all(isinstance(item, dict) for item in value.values()):
        raise ConfigError(f"{file}: expected a mapping of task names to templates (ask, check, max_characters)")
    return value


def _language(task: Task) -> str:
    """``zh`` where labels or wording hold Chinese, else ``en``."""
    texts = (*task.wording, *(task.labels.names if task.labels else ()))
    return "zh" if any("\u4e00" <= sign <= "\u9fff" for text in texts for sign in text) else "en"


def reason_task(task: Task, template: ReasonTemplate) -> Task:
    """The open task that asks for the reason of a label; named after its own, budget and turns kept."""
    before, _ = template.wording(template.ask, task, {"label": "", "definition": ""})
    answer = AnswerFormat(segments=(Free(free="answer", max_tokens=template.max_tokens),))
    return Task(name=f"{task.name}.reason", prompt=_literal(before), answer=answer, turn=task.turn, budget=task.budget)


def support_task(task: Task, template: ReasonTemplate) -> Task:
    """The closed task that asks for the label with a reason at hand."""
    before, _ = template.wording(template.check, task, {"reason": ""})
    assert task.labels is not None
    labels = [one.model_dump() for one in task.labels.labels]
    asked = {"name": f"{task.name}.support", "labels": labels, "prompt": _literal(before), "turn": task.turn}
    return Task.model_validate({**asked, "budget": task.budget})


def reason_row(task: Task, template: ReasonTemplate, row: Example, label: str) -> Example:
    """A row of :func:`reason_task`: the row's own content, then the question for its label."""
    assert task.labels is not None
    definition = next(one.definition for one in task.labels.labels if one.name == label)
    _, behind = template.wording(template.ask, task, {"label": label, "definition": definition})
    return _asked(task, row, f"{task.name}.reason", behind)


def support_row(task: Task, template: ReasonTemplate, row: Example, reason: str) -> Example:
    """A row of :func:`support_task`: the row's own content, then the reason."""
    _, behind = template.wording(template.check, task, {"reason": reason})
    return _asked(task, row, f"{task.name}.support", behind)


def _asked(task: Task, row: Example, name: str, behind: str) -> Example:
    prompt = task.ask(row)
    inner = tuple(part for turn in prompt.turns for part in turn)
    return Example(row.id, (*inner, Text(behind)), task=name, history=prompt.history, place=row.place)


def _literal(text: str) -> str:
    """A prompt that is a text and then the content."""
    return text.replace("{", "{{").replace("}", "}}") + "{content}"
