"""A request on its way through the server, and what becomes of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tuyi.encode.answer import Stage
from tuyi.encode.encoded import Encoded
from tuyi.encode.encoder import LabelTokens
from tuyi.model.sampling import Sampling

__all__ = ["Answered", "Event", "Failed", "Job", "Labelled", "Mail", "Piece", "Read", "Row", "Script", "Token"]


@dataclass(frozen=True, eq=False, slots=True)
class Script:
    """How an answer is written.

    Args:
        stages: What is certain, written and chosen, in order.
        most: Most tokens of the answer.
        sampling: How tokens are drawn; the likeliest where None.
        stop: Texts that end what is written, and are not part of it.
        options: Likeliest tokens that are told with each token that is written; none of the tokens' where None.
        is_streamed: Whether pieces are told as they are written.
    """

    stages: tuple[Stage, ...]
    most: int
    sampling: Sampling | None = None
    stop: tuple[str, ...] = ()
    options: int | None = None
    is_streamed: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class Row:
    """What the model is asked.

    Args:
        encoded: The prompt, with what every answer begins with.
        task: Whose model answers, where there is one for each task.
        labels: What may follow; scored whole, without anything being written.
        script: How the answer is written, where there are no such labels.
        opening: The last so many tokens of the prompt are what every answer begins with.
        owner: Whose it is.
        marks: Digests of its blocks, by which an earlier one is found that begins alike.
    """

    encoded: Encoded
    task: str
    labels: LabelTokens | None = None
    script: Script | None = None
    opening: int = 0
    owner: bytes = b""
    marks: tuple[bytes, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens that pass the model for it at once."""
        return len(self.encoded) + (sum(self.labels.branch_lengths) if self.labels else 0)

    @property
    def choice(self) -> LabelTokens:
        """The labels, of a row that is scored."""
        assert self.labels is not None, "the row is scored"
        return self.labels

    @property
    def writes(self) -> Script:
        """The script, of a row that is written."""
        assert self.script is not None, "the row is written"
        return self.script


@dataclass(frozen=True, eq=False, slots=True)
class Labelled:
    """The scores of all labels of a row.

    Args:
        tokens: For each label float64 log-probabilities of its tokens.
        rows: Rows that passed the model together.
        seconds: From the pack's start to its end.
    """

    tokens: list[NDArray[np.float64]]
    rows: int
    seconds: float

    @property
    def logprobs(self) -> NDArray[np.float32]:
        """Of whole labels, float32, shape (labels,)."""
        return np.asarray([one.sum() for one in self.tokens], np.float32)


@dataclass(frozen=True, slots=True)
class Token:
    """A token of an answer.

    Args:
        id: Which.
        logprob: Natural log of its probability.
        options: The same of the likeliest tokens at its place.
    """

    id: int
    logprob: float
    options: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of an answer that is being written; may be empty where its tokens are no whole character yet."""

    text: str
    tokens: Sequence[Token] = ()


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer that was written.

    Args:
        text: All of it.
        texts: Its free texts by name.
        label: The label that was chosen, where one was.
        logprobs: Of all labels.
        output_tokens: Tokens of the answer.
        cached: Tokens of the prompt that had passed the model before.
        is_cut: Whether free text came to its limit.
        tokens: Those that were written, where they are to be told.
        rows: Rows that were written together in the last step.
        seconds: From the prompt's pass to the end.
    """

    text: str
    texts: Mapping[str, str]
    label: str | None
    logprobs: Mapping[str, float]
    output_tokens: int
    cached: int
    is_cut: bool
    tokens: Sequence[Token]
    rows: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Failed:
    """The request is not answered, or no longer worth answering."""

    error: BaseException


Event: TypeAlias = Labelled | Piece | Answered | Failed


class Mail(Protocol):
    """Where the events of a request go; asyncio's queues are such, in their loop's thread."""

    def put_nowait(self, item: Any, /) -> None: ...


Read: TypeAlias = Callable[["Job"], Row | Callable[[], Row]]


@dataclass(eq=False, slots=True)
class Job:
    """A request.

    Args:
        read: Makes its row: decodes pictures, encodes; runs in a thread of its own. Where that takes a while, what
            goes on with it, in a thread where nothing quicker waits behind it.
        mail: Where its events go.
        row: What ``read`` made.
        is_gone: Whether nobody waits for it any more.
        arrived, begun, read_at: When it came, when it began to be read and when that was done; monotonic seconds.
    """

    read: Read
    mail: Mail
    row: Row | None = None
    is_gone: bool = False
    arrived: float = field(default_factory=time.monotonic)
    begun: float = 0.0
    read_at: float = 0.0

    @property
    def asked(self) -> Row:
        """Its row, once it is read."""
        assert self.row is not None, "the request is read"
        return self.row
