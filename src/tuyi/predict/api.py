"""The api engine: rows to any OpenAI-compatible server, many requests in flight."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tuyi.config import Settings
from tuyi.data.example import Example
from tuyi.encode.encoded import Asked
from tuyi.encode.encoder import Encoder
from tuyi.errors import ConfigError, EngineError, LabelError
from tuyi.model.folder import FolderInfo
from tuyi.predict.asked import TokenBytes, predicted, spread
from tuyi.predict.chat import chat_messages, label_schema
from tuyi.predict.decoded import END, Step
from tuyi.predict.engine import SizedRow, closed_labels
from tuyi.predict.in_flight import answers_as_they_come, cancelled
from tuyi.predict.prediction import Prediction
from tuyi.task.labels import LabelSet

if TYPE_CHECKING:
    import openai
    from openai import AsyncOpenAI
    from openai.types.chat import ChatCompletion

__all__ = ["ApiEngine", "ApiSettings"]

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
    """Further tries after an answer that is no label."""
    timeout_s: float = Field(default=120, gt=0)
    """Seconds that one request may take."""
    workers: int = Field(default=4, gt=0)
    """Threads that read and resize pictures."""


class ApiEngine:
    """Asks a server for the label of each row.

    Args:
        encoder: Shortens rows and sizes their pictures as the model folder says.
        tokenizer: Of the same model; reads token numbers that a vLLM server answers with.
        settings: Where the server is and how to ask it.
        info: Where the calibration temperatures come from.

    Raises:
        ConfigError: The key is not where the settings say, or the server lists not just one model.
        EngineError: The server cannot be reached or refuses.
    """

    def __init__(
        self, encoder: Encoder, tokenizer: Any, settings: ApiSettings, *, info: FolderInfo | None = None
    ) -> None:
        self._encoder, self._settings, self._info = encoder, settings, info
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
            EngineError: The server fails for longer than the retries, refuses a row, or answers with no label.
            ModelError: A row's task asks for more than a label.
        """
        return answers_as_they_come(self._loop, rows, self._answer, 2 * self._settings.in_flight)

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

        asked, request = await self._loop.run_in_executor(self._pool, self._prepare, row)
        labels = closed_labels(asked.task)
        async with self._requests:
            tries = 1 + self._settings.answer_retries
            wrong = ""
            for calls in range(1, tries + 1):
                try:
                    reply = await self._client.chat.completions.create(**request)
                    return self._read(asked, labels, reply, calls)
                except openai.APIError as error:
                    raise self._failed(error, f"id {row.id}") from error
                except (json.JSONDecodeError, UnicodeDecodeError) as error:  # the client does not translate these
                    wrong = f"expected a chat completion, found broken JSON ({error})"
                except _NoLabelError as error:
                    wrong = str(error)
            raise EngineError(f"{self._settings.url}, id {row.id}: {wrong}; tried {tries} times")

    def _prepare(self, row: Example) -> tuple[Asked, dict[str, Any]]:
        asked = self._encoder.ask(row)
        labels = closed_labels(asked.task)
        messages, broken = chat_messages(asked, self._encoder.spec, self._marks)
        if broken:
            asked = replace(asked, notes={**asked.notes, "broken_marks": broken})
        longest = max(len(name.encode()) for name in labels.names)
        request: dict[str, Any] = {
            "model": self.model,
            "messages": messages,
            "temperature": 0,
            "max_tokens": longest + 32,
        }
        if self._settings.logprobs:
            request |= {"logprobs": True, "top_logprobs": _OPTIONS}
        if self._settings.choice == "structured_outputs":
            request["extra_body"] = {
                "structured_outputs": {"choice": list(labels.names)},
                "mm_processor_kwargs": {"do_resize": False},  # pictures come at their size
                "repetition_penalty": 1.0,  # else the model's generation_config.json sets one, 1.05 for Qwen2-VL
                "return_tokens_as_token_ids": True,  # a token may be half a character, which has no text
            }
        elif self._settings.choice == "response_format":
            request["response_format"] = label_schema(labels)
        return asked, request

    def _read(self, asked: Asked, labels: LabelSet, reply: ChatCompletion, calls: int) -> Prediction:
        choices = getattr(reply, "choices", None)
        if not choices:
            raise _NoLabelError(f"expected a chat completion, found {str(reply)[:200]!r}")
        text = choices[0].message.content or ""
        in_json = self._settings.choice == "response_format"
        label = _label(labels, text, in_json)
        steps = self._steps(choices[0].logprobs)
        answers = self._bytes.answers(self._encoder.labels(asked.task))
        masses = spread(answers, label, text, steps, in_json=in_json)
        if masses is not None and self._settings.choice != "none":
            label = masses.best
        cost = {"tokens": asked.tokens, "calls": calls, "output_tokens": len(steps)}
        if reply.usage is not None:
            cost |= {"tokens": reply.usage.prompt_tokens, "output_tokens": reply.usage.completion_tokens}
            if reply.usage.prompt_tokens != asked.tokens:
                cost["tokens_expected"] = asked.tokens
        return predicted(asked, label, masses, self._info, cost)

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

    def _failed(self, error: openai.APIError, what: str) -> EngineError:
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
        return EngineError(f"{where}: the server refused the request ({status}): {said}")


class _NoLabelError(Exception):
    """An answer that is no label."""


def _label(labels: LabelSet, text: str, in_json: bool) -> str:
    try:
        said = json.loads(text)["label"] if in_json else text
        return labels.canonical(said)
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise _NoLabelError(f'expected {{"label": …}}, found {text[:200]!r}') from error
    except LabelError as error:
        raise _NoLabelError(f"expected one of {len(labels)} labels, found {text[:200]!r}") from error


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
