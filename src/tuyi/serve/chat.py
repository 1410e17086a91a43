"""``POST /v1/chat/completions``: what is asked, as OpenAI's interface and vLLM's additions to it spell it."""

from __future__ import annotations

import secrets
from typing import Any, Literal

from pydantic import Field, model_validator

from tuyi.data.example import Example, Part, Text, Turn
from tuyi.model.sampling import Sampling
from tuyi.serve.asked import Asked
from tuyi.serve.shown import Shown, is_slow

__all__ = ["ChatRequest"]


class _Url(Asked):
    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class _VideoUrl(Asked):
    url: str


class _ChatPart(Asked):
    type: Literal["text", "image_url", "video_url"]
    text: str | None = None
    image_url: _Url | None = None
    video_url: _VideoUrl | None = None

    @model_validator(mode="after")
    def _fits(self) -> _ChatPart:
        given = {"text": self.text, "image_url": self.image_url, "video_url": self.video_url}
        if [key for key, value in given.items() if value is not None] != [self.type]:
            raise ValueError(f"expected {self.type} and nothing else beside type")
        return self

    def part(self, shown: Shown, name: str) -> Part:
        """What it stands for; ``name`` says where it stands."""
        if self.image_url is not None:
            return shown.picture(self.image_url.url, f"{name}.image_url.url")
        if self.video_url is not None:
            return shown.video(self.video_url.url, f"{name}.video_url.url")
        return Text(self.text or "")


class _Message(Asked):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_ChatPart]
    name: str | None = None

    def turn(self, shown: Shown, at: int) -> Turn:
        """The message as a turn."""
        role: Any = "system" if self.role == "developer" else self.role
        if isinstance(self.content, str):
            return Turn(role, (Text(self.content),))
        parts = (part.part(shown, f"messages.{at}.content.{number}") for number, part in enumerate(self.content))
        return Turn(role, tuple(parts))

    @property
    def is_slow(self) -> bool:
        """Whether it takes a while to read what it shows."""
        parts = [] if isinstance(self.content, str) else self.content
        return any(part.video_url or (part.image_url and is_slow(part.image_url.url)) for part in parts)


class _StreamOptions(Asked):
    include_usage: bool = False
    continuous_usage_stats: Literal[False] = False
    include_obfuscation: bool = False


class _JsonSchema(Asked):
    name: str = "answer"
    description: str | None = None
    strict: bool | None = None
    json_schema: dict[str, Any] = Field(alias="schema")


class _Format(Asked):
    type: Literal["text", "json_schema"]
    json_schema: _JsonSchema | None = None


class _Structured(Asked):
    choice: list[str] | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="json")


class ChatRequest(Asked):
    """A conversation to go on with.

    What is known and would change the answer in a way that this server has not, is refused; what changes nothing
    (``user``, ``metadata``, …) is taken and not looked at.
    """

    messages: list[_Message] = Field(min_length=1)
    model: str | None = None
    stream: bool | None = False
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = Field(default=None, gt=0)
    max_completion_tokens: int | None = Field(default=None, gt=0)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    response_format: _Format | None = None
    structured_outputs: _Structured | None = None
    guided_choice: list[str] | None = None
    return_tokens_as_token_ids: bool = False
    n: Literal[1] | None = 1
    presence_penalty: Literal[0] | None = 0
    frequency_penalty: Literal[0] | None = 0
    repetition_penalty: Literal[1] | None = 1
    add_generation_prompt: Literal[True] = True
    continue_final_message: Literal[False] = False
    mm_processor_kwargs: dict[Literal["do_resize"], Literal[False]] | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        """``0.0`` and ``1.0`` are the numbers that they are."""
        keys = ("presence_penalty", "frequency_penalty", "repetition_penalty")
        if not isinstance(value, dict):
            return value
        whole = {key: int(value[key]) for key in keys if isinstance(value.get(key), float) and value[key] % 1 == 0}
        return {**value, **whole}

    @model_validator(mode="after")
    def _together(self) -> ChatRequest:
        if self.messages[-1].role != "user":
            raise ValueError(f"messages: expected the last one to be the user's, found {self.messages[-1].role}")
        if self.response_format and (self.response_format.type == "json_schema") != bool(
            self.response_format.json_schema
        ):
            raise ValueError("response_format: expected json_schema where its type is json_schema, and only there")
        if self.structured_outputs and (self.structured_outputs.choice is None) == (
            self.structured_outputs.schema_ is None
        ):
            raise ValueError("structured_outputs: expected either choice or json")
        if sum(one is not None for one in (self.choices, self.json_schema)) > 1 or (
            self.guided_choice is not None and self.structured_outputs is not None
        ):
            raise ValueError("expected one of response_format, structured_outputs and guided_choice, found several")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: expected logprobs to be true")
        if len(self.stops) > 4 or not all(self.stops):
            raise ValueError("stop: expected at most 4 texts, none of them empty")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end the answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def choices(self) -> list[str] | None:
        """The only texts that may be answered."""
        structured = self.structured_outputs.choice if self.structured_outputs else None
        return structured if self.guided_choice is None else self.guided_choice

    @property
    def json_schema(self) -> dict[str, Any] | None:
        """What the answer is to be valid against."""
        if self.structured_outputs and self.structured_outputs.schema_ is not None:
            return self.structured_outputs.schema_
        return self.response_format.json_schema.json_schema if self._formatted else None  # type: ignore[union-attr]

    @property
    def _formatted(self) -> bool:
        return self.response_format is not None and self.response_format.json_schema is not None

    @property
    def most_tokens(self) -> int | None:
        """Most tokens of the answer, where the client says."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def sampling(self) -> Sampling | None:
        """How tokens are drawn; the likeliest where the client names neither temperature nor ``top_p``."""
        temperature = self.temperature
        if temperature is None and self.top_p is not None and self.top_p < 1:
            temperature = 1.0
        if not temperature:
            return None
        seed = secrets.randbits(63) if self.seed is None else self.seed
        return Sampling(temperature, self.top_p or 1.0, seed)

    @property
    def is_slow(self) -> bool:
        """Whether it takes a while to read what it shows."""
        return any(message.is_slow for message in self.messages)

    def example(self, shown: Shown) -> Example:
        """The conversation, with what ``shown`` makes of its pictures and videos."""
        *history, last = (message.turn(shown, at) for at, message in enumerate(self.messages))
        return Example("chat", last.parts, history=tuple(history))
