"""What is answered, for those who read ``/openapi.json``; the answers themselves are written without these."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

__all__ = ["Classified", "Completion", "Health", "ModelCard", "ModelList", "Refused"]


class _Told(BaseModel):
    """Base of everything that is answered."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Timing(_Told):
    """Where the time of a request went."""

    read_ms: float
    """Reading it: JSON, pictures, tokens."""
    queued_ms: float
    """Waiting to be read, and for the model."""
    model_ms: float
    """Passing the model."""
    total_ms: float
    """All of it, from the whole body on."""
    rows: int
    """Requests that passed the model together."""


class Classified(_Told):
    """The label of a dialogue with its pictures."""

    id: str
    """The request's, or a new one."""
    model: str
    task: str
    label: str
    """The likeliest, in the task's spelling; of an open task the text."""
    probabilities: dict[str, float]
    """Of all labels, together 1; empty for an open task."""
    logprobs: dict[str, float]
    """Natural logs of what the model gives each label, without calibration."""
    rationale: str | None
    """The reason, of a task that asks for one."""
    notes: dict[str, Any]
    """Tokens, and what had to be given up to fit the task's budget."""
    timing: Timing


class AssistantMessage(_Told):
    """What the model says."""

    role: Literal["assistant"]
    content: str
    refusal: None


class TopLogprob(_Told):
    """A token that might have stood there."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A token of the answer."""

    top_logprobs: list[TopLogprob]


class Logprobs(_Told):
    """The tokens of the answer."""

    content: list[TokenLogprob]
    refusal: None


class CompletionChoice(_Told):
    """The one answer."""

    index: Literal[0]
    message: AssistantMessage
    logprobs: Logprobs | None
    finish_reason: Literal["stop", "length"]
    probabilities: dict[str, float] = {}
    """Of all choices, where the answer is one of some texts."""


class PromptDetails(_Told):
    """Of the tokens of a prompt."""

    cached_tokens: int
    """Those that an answer before had left in the cache."""


class Usage(_Told):
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class Completion(_Told):
    """OpenAI's ``chat.completion``."""

    id: str
    object: Literal["chat.completion"]
    created: int
    """Seconds since 1970."""
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class ModelCard(_Told):
    """OpenAI's ``model``."""

    id: str
    object: Literal["model"]
    created: int
    """Seconds since 1970 at which it was made ready."""
    owned_by: Literal["tuyi"]


class ModelList(_Told):
    """The one model."""

    object: Literal["list"]
    data: list[ModelCard]


class Health(_Told):
    """Whether requests are answered."""

    status: Literal["ok", "not ready"]


class Problem(_Told):
    """What was expected, and what was found."""

    message: str
    type: Literal[
        "invalid_request_error", "authentication_error", "not_found_error", "rate_limit_error", "server_error"
    ]
    param: str | None
    """Dotted name of what is wrong in the request."""
    code: str | None
    """A word for programs."""


class Refused(_Told):
    """OpenAI's error object."""

    error: Problem
