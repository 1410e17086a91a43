"""Open questions: how a model talks, the task that asks nothing but the question, and the budget it has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import Field

from tuyi.config import Settings
from tuyi.errors import ConfigError
from tuyi.model.folder import FolderInfo
from tuyi.model.tasks import with_budget
from tuyi.task.answer import AnswerFormat, Free
from tuyi.task.catalog import TaskSet
from tuyi.task.task import Budget, Task

__all__ = ["ChatRun", "ChatSettings", "chat_budget", "talk_task"]

CONTEXT = 32_768
"""Tokens of a talk with a model that has no task of its own: the length that Qwen2-VL was taught at."""


class ChatSettings(Settings):
    """How a model talks."""

    temperature: float = Field(default=0.0, ge=0)
    """0 takes the likeliest token each time; above, tokens are drawn, higher is more even."""
    max_tokens: int = Field(default=512, gt=0)
    """Most tokens of one answer."""
    seed: int = 0
    """Equal seeds draw the same talk."""
    device: str | None = None
    """Torch device; the first GPU where there is one, else the CPU."""
    precision: Literal["bfloat16", "float32"] | None = None
    """Numbers that are multiplied; bfloat16 on a GPU, float32 on a CPU where not given."""


class ChatRun(Settings):
    """What ``--set`` can change of a talk."""

    chat: ChatSettings = ChatSettings()
    """How the model talks."""
    budget: dict[str, Any] = Field(default_factory=dict)
    """Budget settings to use instead of the model's, such as ``max_pixels``."""


def talk_task(name: str, budget: Budget, max_tokens: int) -> TaskSet:
    """A task set of one open task, which shows the model what it is asked and nothing else.

    Args:
        name: Of the task.
        budget: Of pictures, video and tokens.
        max_tokens: Most tokens of an answer.

    Raises:
        ConfigError: The answer alone fills the budget.
    """
    if max_tokens >= budget.max_tokens:
        raise ConfigError(
            f"an answer of at most {max_tokens} tokens does not fit budget.max_tokens {budget.max_tokens}, which the "
            "question shares; lower --max-tokens, or raise it with --set budget.max_tokens=…"
        )
    answer = AnswerFormat(segments=(Free(free="answer", max_tokens=max_tokens),))
    return TaskSet(name=name, tasks=(Task(name=name, answer=answer, budget=budget),))


def chat_budget(info: FolderInfo | None, budget: Mapping[str, Any] | None, tell: Callable[[str], None]) -> Budget:
    """The budget of open questions: that of the model's first task, else one with a long context.

    Args:
        info: What the model's ``tuyi.json`` says, if it has one.
        budget: Settings to use instead.
        tell: Called with what was taken over.
    """
    if info is None:
        tasks = TaskSet(name="chat", tasks=(Task(name="chat", answer="open", budget=Budget(max_tokens=CONTEXT)),))
    else:
        first = info.tasks.tasks[0]
        tasks = info.tasks.model_copy(update={"tasks": (first,)})
        own = first.budget
        tell(f"budget of the model's task {first.name}: max_pixels {own.max_pixels}, max_tokens {own.max_tokens}")
    return with_budget(tasks, budget).tasks[0].budget
