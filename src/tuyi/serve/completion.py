"""Chat completions as OpenAI's interface spells them: whole, or in chunks."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import uuid4

from tuyi.predict.calibrated import normalise
from tuyi.predict.writing import Vocabulary
from tuyi.serve.chat import ChatRequest
from tuyi.serve.choices import pick
from tuyi.serve.jobs import Answered, Labelled, Piece, Row, Token

__all__ = ["Completion", "sent"]

_LEAST = -9999.0
"""What OpenAI's interface says of tokens that are as good as impossible; JSON has no infinity."""


class Completion:
    """The answer to one request.

    Args:
        request: It.
        row: What the model was asked.
        model: What clients call the model.
        vocabulary: Of the model.
        end: The terminator.
    """

    def __init__(self, request: ChatRequest, row: Row, model: str, vocabulary: Vocabulary, end: int) -> None:
        self._request, self._row, self._vocabulary, self._end = request, row, vocabulary, end
        self._sampling = request.sampling
        self._head = {"id": f"chatcmpl-{uuid4().hex}", "created": int(time.time()), "model": model}

    def whole(self, found: Labelled | Answered) -> dict[str, Any]:
        """A ``chat.completion``."""
        content, tokens, reason, more = self._said(found)
        message = {"role": "assistant", "content": content, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": self._logprobs(tokens), "finish_reason": reason, **more}
        return {**self._head, "object": "chat.completion", "choices": [choice], "usage": self._usage(found)}

    def chunks(self, found: Labelled | Answered | Piece) -> Iterator[bytes]:
        """Server-sent events of ``chat.completion.chunk``; the last ones with :class:`Answered` or its like."""
        if isinstance(found, Piece):
            yield self._chunk({"content": found.text}, logprobs=self._logprobs(found.tokens))
            return
        content, tokens, reason, more = self._said(found)
        if isinstance(found, Labelled):
            yield self._chunk({"content": content}, logprobs=self._logprobs(tokens))
        yield self._chunk({}, reason=reason, **more)
        if self._request.stream_options is not None and self._request.stream_options.include_usage:
            usage = {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": self._usage(found)}
            yield sent(usage)
        yield b"data: [DONE]\n\n"

    def opening(self) -> bytes:
        """The first event: who speaks."""
        return self._chunk({"role": "assistant", "content": ""})

    def _chunk(self, delta: dict[str, Any], *, reason: str | None = None, logprobs: Any = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason, **more}
        return sent({**self._head, "object": "chat.completion.chunk", "choices": [choice]})

    def _said(self, found: Labelled | Answered) -> tuple[str, Sequence[Token], str, dict[str, Any]]:
        """Text, tokens, why it ended, and what else there is to tell."""
        if isinstance(found, Answered):
            return found.text, found.tokens, "length" if found.is_cut else "stop", {}
        labels = self._row.choice
        best = pick(found.logprobs, self._sampling)
        content = labels.names[best]
        if self._request.choices is None:
            content = self._text(self._prompt_opening()) + self._text(labels.ids[best])
        chances = dict(zip(labels.names, map(float, normalise(found.logprobs))))
        return content, self._path(found, best), "stop", {"probabilities": chances}

    def _path(self, found: Labelled, best: int) -> list[Token]:
        """The tokens of a label, each beside those by which other labels leave it."""
        if not self._request.logprobs:
            return []
        ids, steps = self._row.choice.ids, list[Token]()
        for at, token in enumerate(ids[best]):
            if token == self._end and not self._request.return_tokens_as_token_ids:
                break  # no part of the text
            options: dict[int, float] = {}
            for other, logprobs in zip(ids, found.tokens):
                if other[:at] == ids[best][:at]:
                    options[other[at]] = float(logprobs[at])
            likeliest = sorted(options.items(), key=lambda one: -one[1])[: self._request.top_logprobs or 0]
            steps.append(Token(token, options[token], tuple(likeliest)))
        return steps

    def _prompt_opening(self) -> list[int]:
        """What stands in the prompt of the answer to a schema."""
        ids = self._row.encoded.ids
        return [int(one) for one in ids[len(ids) - self._row.opening :]]

    def _text(self, ids: Sequence[int]) -> str:
        return b"".join(self._vocabulary[token] for token in ids).decode()

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not self._request.logprobs:
            return None
        told = [
            {
                **self._token(one.id, one.logprob),
                "top_logprobs": [self._token(other, logprob) for other, logprob in one.options],
            }
            for one in tokens
        ]
        return {"content": told, "refusal": None}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        data = self._vocabulary[token]
        text = f"token_id:{token}" if self._request.return_tokens_as_token_ids else data.decode(errors="replace")
        return {"token": text, "logprob": max(logprob, _LEAST), "bytes": list(data)}

    def _usage(self, found: Labelled | Answered) -> dict[str, Any]:
        prompt = len(self._row.encoded) - self._row.opening
        if isinstance(found, Answered):
            written, cached = found.output_tokens, found.cached
        else:
            cached = 0
            written = self._row.opening + len(self._row.choice.ids[pick(found.logprobs, self._sampling)])
        return {
            "prompt_tokens": prompt,
            "completion_tokens": written,
            "total_tokens": prompt + written,
            "prompt_tokens_details": {"cached_tokens": min(cached, prompt)},
        }


def sent(value: Any) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
