"""What is asked: labels, prompt, answer format and budgets of a task."""

from tuyi.task.answer import AnswerFormat
from tuyi.task.catalog import TaskSet, builtin_names, load_tasks
from tuyi.task.labels import Label, LabelSet, fold
from tuyi.task.prompt import Prompt
from tuyi.task.task import Budget, Task

__all__ = [
    "AnswerFormat",
    "Budget",
    "Label",
    "LabelSet",
    "Prompt",
    "Task",
    "TaskSet",
    "builtin_names",
    "fold",
    "load_tasks",
]
