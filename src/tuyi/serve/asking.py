"""From a chat request to what the model is asked."""

from __future__ import annotations

from dataclasses import dataclass

from tuyi.data.example import Example
from tuyi.encode.answer import Written
from tuyi.model.decode import extended
from tuyi.serve.asked import held
from tuyi.serve.chat import ChatRequest
from tuyi.serve.choices import Form, choice_form, schema_form
from tuyi.serve.jobs import Row, Script
from tuyi.serve.refusals import RefusalError
from tuyi.serve.seeing import Seeing
from tuyi.serve.settings import ServeSettings
from tuyi.task.answer import AnswerFormat, Free
from tuyi.task.catalog import TaskSet
from tuyi.task.task import Budget, Task

__all__ = ["Chats", "chat_tasks"]


def chat_tasks(tasks: TaskSet, context: int) -> TaskSet:
    """The open task that a conversation is.

    Args:
        tasks: Of the model; pictures of a conversation may be as large as in any of them.
        context: Most tokens of a conversation with its answer.
    """
    widest = max((task.budget for task in tasks), key=lambda budget: budget.max_pixels)
    budget = Budget(**{**widest.model_dump(), "max_tokens": context})
    answer = AnswerFormat(segments=(Free(free="answer", max_tokens=1),))
    return TaskSet(name="chat", tasks=(Task(name="chat", answer=answer, budget=budget),))


@dataclass(frozen=True, eq=False, slots=True)
class Chats:
    """Makes rows of conversations.

    Args:
        encoder: With the task of :func:`chat_tasks`.
        model: Task whose model answers.
        end: The terminator.
        settings: Limits.
    """

    encoder: Seeing
    model: str
    end: int
    settings: ServeSettings

    @property
    def context(self) -> int:
        """Most tokens of a conversation with its answer."""
        return self.encoder.tasks.tasks[0].budget.max_tokens

    def row(self, request: ChatRequest, example: Example) -> Row:
        """What the model is asked.

        Raises:
            RefusalError: The conversation is longer than the context, or is to be answered in a form that this server
                has not.
            DataError: A picture cannot be used.
        """
        beside = sum(map(len, request.choices or ())) + len(str(request.json_schema or ""))
        held(example, self.settings.max_characters, beside)
        most = request.most_tokens
        if most is not None and most > self.settings.max_output_tokens:
            message = f"max_tokens: expected at most {self.settings.max_output_tokens}, found {most}"
            raise RefusalError(400, message, param="max_tokens", code="max_tokens_too_large")
        prompt = self.encoder.unshortened(example) - 2  # less the answer of the open task
        form = self._form(request, most or self.settings.max_output_tokens, prompt)
        if form.choosing > self.context:
            message = f"expected choices of at most {self.context} tokens together, found {form.choosing}"
            raise RefusalError(400, message, code="context_length_exceeded")
        if prompt + form.most > self.context:
            message = f"expected at most {self.context} tokens, found {prompt} of messages and {form.most} of answer"
            raise RefusalError(400, message, param="messages", code="context_length_exceeded")
        encoded = extended(self.encoder.encode(example, labelled=False), form.opening)
        if form.labels is not None:
            return Row(encoded, self.model, labels=form.labels, opening=len(form.opening))
        options = (request.top_logprobs or 0) if request.logprobs else None
        script = Script(form.stages, form.most, request.sampling, request.stops, options, bool(request.stream))
        return Row(encoded, self.model, script=script, opening=len(form.opening))

    def _form(self, request: ChatRequest, most: int, prompt: int) -> Form:
        tokens = self.encoder.tokens
        if request.choices is not None:
            return choice_form(request.choices, tokens, self.end, "choice")
        if request.json_schema is not None:
            return schema_form(request.json_schema, most, tokens, self.end, "schema")
        if request.most_tokens is None:
            most = max(1, min(most, self.context - prompt - 1))
        return Form((), (Written(Free(free="answer", max_tokens=most), "", True),))
