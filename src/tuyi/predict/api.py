"""The api engine: rows to any OpenAI-compatible server, many requests in flight."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tuyi.config import Settings
from tuyi.data.example import Example
from tuyi.encode.encoded import Asked
from tuyi.encode.encoder import Encoder
from tuyi.errors import AnswerError, ConfigError, EngineError, TuyiError
from tuyi.model.folder import FolderInfo
from tuyi.predict.asked import Cost, TokenBytes, Written, answered, predicted, spread
from tuyi.predict.chat import chat_messages
from tuyi.predict.decoded import END, Step
from tuyi.predict.engine import SizedRow
from tuyi.predict.in_flight import answers_as_they_come, cancelled
from tuyi.predict.prediction import Prediction
from tuyi.predict.written import AnswerForm, WrongAnswerError, label_object

if TYPE_CHECKING:
    import openai
    from openai import AsyncOpenAI
    from openai.types.chat import ChatCompletion

__all__ = ["ApiEngine", "ApiSettings"]

_ROW_REFUSED = (400, 413, 422)  # too long, an unwanted picture: the next row may be taken
_SLACK = 32  # tokens for spaces and line ends of servers that are not told the form to the letter
_OPTIONS = 20  # the most alternatives a token that the interface allows to ask for


class ApiSettings(Settings):
    """How to reach an OpenAI-compatible server, and how to ask it."""

    url: str = "http://127.0.0.1:8000/v1"
    """Base address, as the openai client takes it."""
    model: str | None = None
    """Name of the model there; the only one that the server lists where not given."""
    key_file: Path | None = None
    """File that holds the key; the key itself is written nowhere."""
    key_env: str | None = None
    """Environment variable that holds the key."""
    choice: Literal["structured_outputs", "response_format", "none"] = "structured_outputs"
    """How the server is told the labels: vLLM's parameter, a JSON schema, or not at all but by the prompt."""
    logprobs: bool = True
    """Whether to ask for log-probabilities, from which label probabilities are made."""
    in_flight: int = Field(default=32, gt=0)
    """Requests that are under way together; twice as many rows are prepared."""
    retries: int = Field(default=6, ge=0)
    """Further tries after a timeout, a broken connection, 429 or 5xx, with growing pauses or as Retry-After says."""
    answer_retries: int = Field(default=2, ge=0)
    """Further tries after an answer that is no label, or is not of the task's form."""
    timeout_s: float = Field(default=120, gt=0)
    """Seconds that one request may take."""
    workers: int = Field(default=4, gt=0)
    """Threads that read and resize pictures."""


class ApiEngine:
    """Asks a server for the answer to each row.

    Args:
        encoder: Shortens rows and sizes their pictures as the model folder says.
        tokenizer: Of the same model; reads token numbers that a vLLM server answers with.
        settings: Where the server is and how to ask it.
        info: Where the calibration temperatures come from.
        skip: Called with what is wrong with a row that cannot be asked or is not answered; such a row stops everything
            where not given.

    Raises:
        ConfigError: The key is not where the settings say, or the server lists not just one model.
        EngineError: The server cannot be reached or refuses.
    """

    def __init__(
        self, encoder: Encoder, tokenizer: Any, settings: ApiSettings, *, info: FolderInfo | None = None,
        skip: Callable[[TuyiError], None] | None = None,
    ) -> None:  # fmt: skip
        self._encoder, self._settings, self._info, self._skip = encoder, settings, info, skip
        self._bytes = TokenBytes(tokenizer)
        marks = sorted(map(re.escape, tokenizer.get_added_vocab()), key=len, reverse=True)
        self._marks = re.compile("|".join(marks))
        self._key = _read_key(settings)
        self._loop = asyncio.new_event_loop()
        self._pool = ThreadPoolExecutor(settings.workers)
        self._client = _client(settings, self._key)
        self._requests = asyncio.Semaphore(settings.in_flight)
        try:
            self.model = settings.model or self._loop.run_until_complete(self._only_model())
        except BaseException:
            self.close()
            raise

    def predict(self, rows: Iterable[SizedRow]) -> Generator[list[Prediction], None, None]:
        """Predictions of a stream of rows, as the answers come.

        Raises:
            DataError: A row shows a video, which cannot be sent.
            AnswerError: The server refuses a row, or does not answer it as its task asks.
            EngineError: The server fails for longer than the retries.
        """
        return answers_as_they_come(self._loop, rows, self._answer, 2 * self._settings.in_flight, self._skip)

    def close(self) -> None:
        """Close connections and threads."""
        if not self._loop.is_closed():
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._loop.run_until_complete(cancelled())
            self._loop.run_until_complete(self._client.close())
            self._loop.close()

    async def _only_model(self) -> str:
        import openai

        try:
            names = [model.id async for model in self._client.models.list()]
        except openai.APIError as error:
            raise self._failed(error, "listing its models") from error
        if len(names) != 1:
            found = ", ".join(names) or "none"
            raise ConfigError(f"{self._settings.url} lists {len(names)} models ({found}); name one as api.model")
        return names[0]

    async def _answer(self, row: Example) -> Prediction:
        import openai

        asked, request, form = await self._loop.run_in_executor(self._pool, self._prepare, row)
        cost = Cost()

        async def write(start: str, left: AnswerForm) -> Written:
            cost.calls += 1
            reply = await self._client.chat.completions.create(**self._starting(request, start, left))
            one = self._read(reply)
            cost.count(one)
            return one

        async with self._requests:
            tries = 1 + self._settings.answer_retries
            wrong = ""
            for _ in range(tries):
                try:
                    answer = await answered(form, write, can_go_on=self._settings.choice == "structured_outputs")
                except openai.APIError as error:
                    raise self._failed(error, f"id {row.id}", row.id) from error
                except (json.JSONDecodeError, UnicodeDecodeError) as error:  # the client does not translate these
                    wrong = f"expected a chat completion, found broken JSON ({error})"
                except WrongAnswerError as error:
                    wrong = str(error)
                else:
                    masses = spread(self._bytes.answers(form), answer) if form.labels else None
                    is_bound = self._settings.choice != "none"
                    return predicted(asked, answer, masses, cost, self._info, is_bound=is_bound)
            raise AnswerError(f"{self._settings.url}, id {row.id}: {wrong}; tried {tries} times", row.id)

    def _prepare(self, row: Example) -> tuple[Asked, dict[str, Any], AnswerForm]:
        asked = self._encoder.ask(row)
        form = AnswerForm.of(asked.task)
        if self._settings.choice == "response_format" and asked.task.answer.is_plain and form.labels:
            form = label_object(form.labels)
        messages, broken = chat_messages(asked, self._encoder.spec, self._marks)
        if broken:
            asked = replace(asked, notes={**asked.notes, "broken_marks": broken})
        request: dict[str, Any] = {"model": self.model, "messages": messages, "temperature": 0}
        if self._settings.logprobs and form.labels:
            request |= {"logprobs": True, "top_logprobs": _OPTIONS}
        if self._settings.choice == "response_format" and form.schema:
            request["response_format"] = form.schema
        return asked, request, form

    def _starting(self, request: dict[str, Any], start: str, left: AnswerForm) -> dict[str, Any]:
        """The request for what follows the start of an answer."""
        if self._settings.choice != "structured_outputs":
            return {**request, "max_tokens": left.room - 1 if left.is_open else left.room + _SLACK}
        request = {**request, "max_tokens": left.first_room(self._bytes.tokens)}
        body: dict[str, Any] = {
            "mm_processor_kwargs": {"do_resize": False},  # pictures come at their size
            "repetition_penalty": 1.0,  # else the model's generation_config.json sets one, 1.05 for Qwen2-VL
        }
        if left.labels:
            body["return_tokens_as_token_ids"] = True  # a token may be half a character, which has no text
        if not left.is_open:
            plain = left.answer.is_plain
            body["structured_outputs"] = {"choice": list(left.spelled)} if plain else {"regex": left.regex}
        if start:
            request["messages"] = [*request["messages"], {"role": "assistant", "content": start}]
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        return {**request, "extra_body": body}

    def _read(self, reply: ChatCompletion) -> Written:
        choices = getattr(reply, "choices", None)
        if not choices:
            raise WrongAnswerError(f"expected a chat completion, found {str(reply)[:200]!r}")
        steps, usage, text = self._steps(choices[0].logprobs), reply.usage, choices[0].message.content or ""
        return Written(
            text=text,
            steps=steps,
            tokens=usage.prompt_tokens if usage else None,
            output_tokens=usage.completion_tokens if usage else len(steps or self._bytes.tokens(text)),
            is_cut=choices[0].finish_reason == "length",
        )

    def _steps(self, logprobs: Any) -> list[Step]:
        steps = []
        for token in (logprobs.content if logprobs else None) or ():
            options = {self._token_bytes(item): item.logprob for item in token.top_logprobs}
            chosen = self._token_bytes(token)
            steps.append(Step(chosen, {**options, chosen: token.logprob}))
        return steps

    def _token_bytes(self, token: Any) -> bytes:
        kind, _, number = token.token.partition("token_id:")
        if not kind and number.isdecimal():
            return self._bytes[int(number)]
        if token.token == "<|im_end|>":
            return END
        return bytes(token.bytes) if token.bytes else token.token.encode()

    def _failed(self, error: openai.APIError, what: str, row: str | None = None) -> EngineError:
        status = getattr(error, "status_code", None)
        where = f"{self._settings.url}, {what}"
        if status in (401, 403):
            return EngineError(
                f"{where}: the server refused the key ({status}); name its place as api.key_file or api.key_env"
            )
        # some servers repeat what they were sent
        said = " ".join(error.message.replace(self._key, "***").split())[:300]
        if status == 429 or status is None or status >= 500:
            return EngineError(f"{where}: {said}, still so after {self._settings.retries} retries; is the server well?")
        refused = f"{where}: the server refused the request ({status}): {said}"
        return AnswerError(refused, row) if row is not None and status in _ROW_REFUSED else EngineError(refused)


def _read_key(settings: ApiSettings) -> str:
    """The key, ``none`` where the settings name no place of one."""
    if settings.key_file is not None:
        try:
            key = settings.key_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"api.key_file: {settings.key_file} cannot be read: {error}") from error
        if not key:
            raise ConfigError(f"api.key_file: {settings.key_file} is empty, expected a key")
        return key
    if settings.key_env is not None:
        if not (key := os.environ.get(settings.key_env, "").strip()):
            raise ConfigError(f"api.key_env: the environment variable {settings.key_env} is not set, expected a key")
        return key
    return "none"


def _client(settings: ApiSettings, key: str) -> AsyncOpenAI:
    try:
        from openai import AsyncOpenAI
    except ImportError as error:
        raise ConfigError("--engine api needs the openai package: pip install 'tuyi[api]'") from error
    # the client itself waits and tries again: exponential pauses with jitter, Retry-After up to two minutes
    return AsyncOpenAI(base_url=settings.url, api_key=key, max_retries=settings.retries, timeout=settings.timeout_s)
