"""A talk with a model about pictures and video: follow-ups go on where the last answer ended."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tuyi.data.example import Example, Image, Part, Text, Turn, Video
from tuyi.encode.answer import Written
from tuyi.encode.encoded import Encoded
from tuyi.errors import ModelError, first_line
from tuyi.model.decode import Decoder, Live
from tuyi.model.load import Model
from tuyi.model.sampling import Sampler, Sampling, ranked
from tuyi.predict.remembering import RememberingEncoder
from tuyi.predict.talk import ChatSettings, chat_budget, talk_task
from tuyi.predict.writing import Vocabulary, Writing, take_likeliest
from tuyi.task.answer import Free
from tuyi.task.task import Budget

__all__ = ["Conversation", "open_conversation"]

_FOR_MEDIA = 0.75
"""Share of the context that one question with its pictures may take, so that there is room for follow-ups."""


class Conversation:
    """A talk that remembers what was said and shown; every token passes the model once.

    Args:
        model: The model.
        budget: Of pictures, video and of the tokens of the whole talk.
        settings: How it talks.
        tell: Called with lines that say what was shortened or forgotten.
    """

    def __init__(
        self, model: Model, budget: Budget, settings: ChatSettings | None = None,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:  # fmt: skip
        self.settings = settings or ChatSettings()
        self.budget, self._tell = budget, tell
        tasks = talk_task("chat", budget, self.settings.max_tokens)
        self._encoder = RememberingEncoder(model.frontend, tasks)
        self._vocabulary = Vocabulary(model.frontend.tokenizer)
        self._decoder = Decoder(model, budget.max_tokens)
        self._sampler: Sampler | None = None
        if self.settings.temperature > 0:
            self._sampler = Sampler(Sampling(self.settings.temperature, seed=self.settings.seed), model.device)
        self._row: Live | None = None
        self._shown = 0
        self._pending: list[Image | Video] = []
        self.turns: tuple[Turn, ...] = ()
        """What was said so far, oldest first."""
        self.was_cut = False
        """Whether the last answer was ended by its number of tokens."""

    def show(self, part: Image | Video) -> int:
        """Put a picture or video before the next question.

        Returns:
            Its visual tokens.

        Raises:
            MediaError: It cannot be used; the talk is as before.
        """
        self._shown += 1
        part = replace(part, name=f"{part.name}#{self._shown}")  # a file that has changed since is another picture
        tokens = self._encoder.tokens_of(part, self.budget)
        self._pending.append(part)
        return tokens

    def ask(self, question: str) -> Iterator[str]:
        """The answer, in pieces of whole characters as they are written; what was written is remembered in any case.

        Args:
            question: What the user says.

        Raises:
            DataError: The question cannot be asked; the talk is as before, without what was shown for it.
            ModelError: It does not fit the GPU's memory; likewise.
        """
        parts, self._pending = (*self._pending, Text(question)), []
        example = self._fitted(parts)
        encoded = self._encoder.encode(example, labelled=False)
        if cut := encoded.notes.get("cut_characters"):
            self._tell(f"the first {cut} characters of the question were cut to stay within {self._limit}")
        logits_RV = self._pass(encoded)
        self.turns = (*example.history, Turn("user", parts))
        answer: list[str] = []
        try:
            for piece in self._write(logits_RV):
                answer.append(piece)
                yield piece
        finally:
            self.turns = (*self.turns, Turn("assistant", (Text("".join(answer)),)))

    def reset(self) -> None:
        """Begin a new talk."""
        self._forget()
        self.turns, self._pending = (), []
        self._encoder.forget_but(())

    @property
    def _limit(self) -> str:
        return f"budget.max_tokens {self.budget.max_tokens}"

    def _fitted(self, parts: tuple[Part, ...]) -> Example:
        """The question behind as much of the talk as fits, its pictures as large as they may be."""
        alone = Example("question", parts)
        if any(not isinstance(part, Text) for part in parts):
            self._shrink(alone)
        history = self.turns
        while history and self._encoder.unshortened(replace(alone, history=history)) > self.budget.max_tokens:
            history = history[2:]
        if forgotten := len(self.turns) - len(history):
            self._tell(f"the oldest {forgotten // 2} questions and answers were forgotten to stay within {self._limit}")
        example = replace(alone, history=history)
        self._encoder.forget_but(example.parts)
        return example

    def _shrink(self, alone: Example) -> None:
        """Pin the size of pictures that leave too little room for what follows."""
        room = max(int(self.budget.max_tokens * _FOR_MEDIA), self.settings.max_tokens + 1)
        if self._encoder.unshortened(alone) <= room:
            return
        budget = self.budget.model_copy(update={"max_tokens": room})
        pixels = self._encoder.shrunk(alone, talk_task("chat", budget, self.settings.max_tokens))
        if pixels is not None:
            self._encoder.most_pixels.update({part: pixels for part in alone.parts if not isinstance(part, Text)})
            share = pixels / self.budget.max_pixels
            self._tell(f"pictures and frames are shown at {share:.0%} of their pixels, to stay within {self._limit}")

    def _pass(self, encoded: Encoded) -> Tensor:
        """Logits behind the question; of the talk before it nothing passes the model again."""
        done = False
        try:
            if self._row is None:
                joined = self._decoder.join([encoded], [self.budget.max_tokens - len(encoded)])
                assert joined is not None, "the cache has room for the whole budget"
                (self._row,), logits_RV = joined
            else:
                found = self._decoder.append([self._row], [encoded], [0])
                assert found is not None, "the row's room is all of the cache"
                logits_RV = found
            done = True
        except torch.cuda.OutOfMemoryError as error:
            raise ModelError(
                f"{len(encoded)} tokens do not fit the GPU's memory ({first_line(error)}); "
                "lower budget.max_tokens or budget.max_pixels with --set"
            ) from error
        finally:
            if not done:  # also where a user stopped it halfway
                self._forget()
        return logits_RV

    def _write(self, logits_RV: Tensor) -> Iterator[str]:
        assert self._row is not None, "a question has passed"
        written = Written(Free(free="answer", max_tokens=self.settings.max_tokens), "", True)
        writing = Writing(written, self._vocabulary, self._encoder.tokens)
        characters = codecs.getincrementaldecoder("utf-8")()
        while not writing.is_over:
            (token,) = take_likeliest([writing], ranked(logits_RV, [self._sampler]))
            if token is not None:
                if piece := characters.decode(self._vocabulary[token]):
                    yield piece
                if not writing.is_over:
                    logits_RV = self._decoder.extend([self._row], [[token]])
        self.was_cut = len(writing.tokens) == self.settings.max_tokens

    def _forget(self) -> None:
        if self._row is not None:
            self._decoder.leave([self._row])
            self._row = None


def open_conversation(
    model: str | Path,
    settings: ChatSettings | None = None,
    *,
    budget: Mapping[str, Any] | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Conversation:
    """Load a model to talk with.

    Args:
        model: A model folder, hub id or built-in name; of a folder with a task, the budget is that of its first task.
        settings: How it talks.
        budget: Budget settings to use instead of the model's.
        tell: Called with lines that say what was taken over, shortened or forgotten.

    Raises:
        ModelError: The model cannot be loaded, or there is one for each task.
        TaskError: An unknown or wrong budget setting.
        ConfigError: The answer alone fills the budget.
    """
    from tuyi.model.fast import load_tuned
    from tuyi.model.load import load_frontend

    settings = settings or ChatSettings()
    frontend = load_frontend(str(model))
    kept = chat_budget(frontend.info, budget, tell)
    talk_task("chat", kept, settings.max_tokens)  # a setting that cannot work is told before weights are loaded
    loaded = load_tuned(frontend, settings.device, settings.precision, tell)
    return Conversation(loaded, kept, settings, tell)
