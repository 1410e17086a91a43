"""What the engines outside this process share: which labels a row may answer, and an answer as a Prediction."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuyi.encode.encoded import Asked
from tuyi.encode.encoder import LabelTokens
from tuyi.model.folder import FolderInfo
from tuyi.predict.calibrated import calibrated
from tuyi.predict.decoded import END, LabelMass, Step, label_masses
from tuyi.predict.prediction import Prediction
from tuyi.vision.spec import ImagePatches, VisionSpec

__all__ = ["TokenBytes", "predicted", "spread", "unpatchify"]

_UNSEEN = -100.0
"""The log-probability of a label of which the decoded path shows no probability at all; a file holds no infinity."""


class TokenBytes:
    """The bytes that each token of a byte-level tokenizer stands for.

    Args:
        tokenizer: The model's fast tokenizer.

    Source: ``bytes_to_unicode`` of GPT-2's encoder.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
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

    def answers(self, labels: LabelTokens) -> dict[str, tuple[bytes, ...]]:
        """The tokens of each label, terminator left out."""
        return {name: tuple(self[token] for token in ids[:-1]) for name, ids in zip(labels.names, labels.ids)}


def unpatchify(picture: ImagePatches, spec: VisionSpec) -> NDArray[np.uint8]:
    """The resized picture that patches were cut from, shape (height, width, 3)."""
    _, h, w = picture.grid
    merge, side = spec.merge_size, spec.patch_size
    blocks = picture.values.reshape(h // merge, w // merge, merge, merge, 3, side, side)
    return np.ascontiguousarray(blocks.transpose(0, 2, 5, 1, 3, 6, 4).reshape(h * side, w * side, 3))


def spread(
    answers: Mapping[str, Sequence[bytes]], decoded: str, text: str, steps: Sequence[Step], *, in_json: bool = False
) -> LabelMass | None:
    """The probability of each label along a decoded answer, whatever stands around the label in it.

    Args:
        answers: The tokens of each label.
        decoded: The label that was decoded.
        text: The whole decoded answer.
        steps: Its tokens; empty where the engine gave no log-probabilities.
        in_json: Whether the label stands in the answer as a JSON string.

    Returns:
        None where there are no log-probabilities, or the answer spells the label in another way than the task.
    """
    spelled = {name: json.dumps(name, ensure_ascii=False)[1:-1] if in_json else name for name in answers}
    before, found, after = text.partition(spelled[decoded])
    if not steps or not found:
        return None
    whole = {
        name: (before.encode(), *(tokens if spelled[name] == name else (spelled[name].encode(),)), after.encode())
        for name, tokens in answers.items()
    }
    return label_masses(whole, decoded, steps)


def predicted(
    asked: Asked, label: str, masses: LabelMass | None, info: FolderInfo | None, cost: Mapping[str, int]
) -> Prediction:
    """A prediction, calibrated as the model folder says.

    Args:
        asked: The row.
        label: The label.
        masses: Probabilities along the decoded path; None where there are none to be had.
        info: Where the calibration temperature comes from.
        cost: ``tokens``, ``calls`` and ``output_tokens``.
    """
    notes = {**asked.notes, **cost, "probabilities": "from the decoded path" if masses else "none given"}
    if masses is None:
        return Prediction(asked.id, asked.task.name, label, {}, {}, notes=notes)
    logs = {name: max(math.log(mass), _UNSEEN) if mass else _UNSEEN for name, mass in masses.masses.items()}
    chances = calibrated(logs, info, asked.task.name)
    return Prediction(asked.id, asked.task.name, label, logs, chances, notes=notes)
