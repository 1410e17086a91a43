"""What the engines outside this process share: how a row's answer is written to its end, and becomes a Prediction."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuyi.encode.encoded import Asked
from tuyi.encode.template import ChatTemplate
from tuyi.model.folder import FolderInfo
from tuyi.predict.calibrated import calibrated
from tuyi.predict.decoded import END, LabelMass, Step, label_masses
from tuyi.predict.prediction import Prediction, log_chances
from tuyi.predict.written import AnswerForm, Said, WrongAnswerError
from tuyi.vision.spec import ImagePatches, VisionSpec

__all__ = ["Answer", "Cost", "TokenBytes", "Written", "answered", "predicted", "spread", "unpatchify"]


class TokenBytes:
    """The bytes that each token of a byte-level tokenizer stands for.

    Args:
        tokenizer: The model's fast tokenizer.

    Source: ``bytes_to_unicode`` of GPT-2's encoder.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.tokens = ChatTemplate(tokenizer).tokens
        self._spelling = lru_cache(maxsize=None)(self._bytes_of)
        self._end: int = tokenizer.convert_tokens_to_ids("<|im_end|>")
        self._added = frozenset(tokenizer.get_added_vocab().values())
        shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
        hidden = [byte for byte in range(256) if byte not in shown]
        self._byte = {chr(byte): byte for byte in shown} | {chr(256 + n): byte for n, byte in enumerate(hidden)}

    def __getitem__(self, token: int) -> bytes:
        if token == self._end:
            return END
        text = self._tokenizer.convert_ids_to_tokens(token)
        if text is None or token in self._added:
            return (text or "").encode()
        return bytes(self._byte[sign] for sign in text)

    def answers(self, form: AnswerForm) -> dict[str, tuple[bytes, ...]]:
        """The tokens of each label as it is spelled in an answer, terminator left out."""
        return {name: self._spelling(text) for name, text in form.spelled.items()}

    def _bytes_of(self, text: str) -> tuple[bytes, ...]:
        return tuple(self[token] for token in self.tokens(text))


def unpatchify(picture: ImagePatches, spec: VisionSpec) -> NDArray[np.uint8]:
    """The resized picture that patches were cut from, shape (height, width, 3)."""
    _, h, w = picture.grid
    merge, side = spec.merge_size, spec.patch_size
    blocks = picture.values.reshape(h // merge, w // merge, merge, merge, 3, side, side)
    return np.ascontiguousarray(blocks.transpose(0, 2, 5, 1, 3, 6, 4).reshape(h * side, w * side, 3))


@dataclass(frozen=True, slots=True)
class Written:
    """What an engine wrote in one call.

    Args:
        text: It.
        steps: Its tokens, each with its alternatives; empty where the engine does not tell.
        tokens: Tokens of the prompt; None where nobody counted them.
        output_tokens: Tokens of the text.
        is_cut: Whether it ended for want of room.
    """

    text: str
    steps: Sequence[Step]
    tokens: int | None
    output_tokens: int
    is_cut: bool


@dataclass(slots=True)
class Cost:
    """What a row has cost so far.

    Args:
        tokens: Tokens of the prompt, as the engine counted them last; None where it never did.
        calls, output_tokens: Of all calls together, those with a wrong answer among them.
    """

    tokens: int | None = None
    calls: int = 0
    output_tokens: int = 0

    def count(self, one: Written) -> None:
        """Add what a call brought; :attr:`calls` goes up before, for one that brings nothing."""
        self.tokens = self.tokens if one.tokens is None else one.tokens
        self.output_tokens += one.output_tokens


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer.

    Args:
        said: What it says.
        steps: Tokens of its last call, in which the label stands.
        start: Characters of the answer before that call.
        is_cut: Whether free text came to its limit.
    """

    said: Said
    steps: Sequence[Step]
    start: int
    is_cut: bool


async def answered(
    form: AnswerForm, write: Callable[[str, AnswerForm], Awaitable[Written]], *, can_go_on: bool = True
) -> Answer:
    """Have an answer written: in one call, or where free text leaves no room for the rest, in one more from there on.

    Args:
        form: The form of the answer.
        write: Writes what follows the start of an answer, in the form of the rest.
        can_go_on: Whether ``write`` can start elsewhere than at the beginning.

    Raises:
        WrongAnswerError: The answer is not of the form.
    """
    start, left, is_cut = "", form, False
    while True:
        one = await write(start, left)
        cut = left.cut(one.text, one.steps if can_go_on else (), is_cut=one.is_cut)
        if cut is None:
            return Answer(form.read(start + one.text), one.steps, len(start), is_cut)
        is_cut |= cut.is_free
        start += cut.start
        fixed = "" if cut.rest is None else cut.rest.fixed
        if fixed is not None:
            return Answer(form.read(start + fixed), (), 0, is_cut)
        assert cut.rest is not None
        if not can_go_on:
            raise WrongAnswerError(
                f"expected {form.shown}, found {one.text[:200]!r}, cut off after {one.output_tokens} tokens; "
                "raise max_tokens of the task's answer, or ask for less"
            )
        left = cut.rest


def spread(answers: Mapping[str, Sequence[bytes]], answer: Answer) -> LabelMass | None:
    """The probability of each label along a decoded answer, whatever stands around the label in it.

    Given everything that was written before the label, that is: its probability is none of the label's.

    Args:
        answers: The tokens of each label, as it is spelled in the answer.
        answer: The answer.

    Returns:
        None where there are no log-probabilities, or the answer spells the label in another way than the task.
    """
    said = answer.said
    if said.before is None or said.after is None or not answer.steps:
        return None
    before = said.before[answer.start :].encode()
    decoded = b"".join(answers[said.label])
    begins = list(accumulate((len(step.chosen) for step in answer.steps), initial=0))
    first = bisect_right(begins, len(before)) - 1  # the token in which the label begins
    steps = answer.steps[first:]
    written, expected = b"".join(step.chosen for step in answer.steps).rstrip(END), before + decoded
    if not (written.startswith(expected) or expected.startswith(written)):
        return None
    ahead = before[begins[first] :]
    whole = {name: (ahead, *tokens, said.after.encode()) for name, tokens in answers.items()}
    return label_masses(whole, said.label, steps)


def predicted(
    asked: Asked,
    answer: Answer,
    masses: LabelMass | None,
    cost: Cost,
    info: FolderInfo | None,
    *,
    is_bound: bool = True,
) -> Prediction:
    """A prediction, calibrated as the model folder says.

    Args:
        asked: The row.
        answer: The answer.
        masses: Probabilities along the decoded path; None where there are none to be had.
        cost: What it cost.
        info: Where the calibration temperature comes from.
        is_bound: Whether only labels could be written, so that the likeliest counts and not the one that was decoded.
    """
    said, task = answer.said, asked.task
    tokens = asked.tokens if cost.tokens is None else cost.tokens
    notes = {**asked.notes, "tokens": tokens, "calls": cost.calls, "output_tokens": cost.output_tokens}
    if tokens != asked.tokens:
        notes["tokens_expected"] = asked.tokens
    if answer.is_cut:
        notes["cut_free"] = True
    if task.labels is None:
        return Prediction(asked.id, task.name, said.label, {}, {}, said.rationale, notes)
    notes["probabilities"] = "from the decoded path" if masses else "none given"
    if masses is None:
        return Prediction(asked.id, task.name, said.label, {}, {}, said.rationale, notes)
    logs = log_chances(masses.masses)
    chances = calibrated(logs, info, task.name)
    label = masses.best if is_bound else said.label
    return Prediction(asked.id, task.name, label, logs, chances, said.rationale, notes)
