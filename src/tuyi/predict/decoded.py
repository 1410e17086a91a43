"""From one decoded answer and its log-probabilities to a distribution over the labels.

A greedy answer constrained to the labels is a path through the tree of their spellings. At each token of it the
decoder's alternatives are known, and a label that leaves the path there has the probability of the path so far times
that of the token by which it leaves. Everything is compared as bytes, so that a label may be cut into tokens in any
way, through a character too; but a token that one label is written with is not counted for longer labels that merely
begin with the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

__all__ = ["END", "LabelMass", "Step", "label_masses"]

END = b"\xff"
"""The terminator as bytes: no UTF-8 text contains it."""


@dataclass(frozen=True, slots=True)
class Step:
    """One token of a decoded answer.

    Args:
        chosen: Its bytes; :data:`END` for the terminator.
        options: Natural log-probability of each token that was considered here, the chosen one among them.
    """

    chosen: bytes
    options: Mapping[bytes, float]


@dataclass(frozen=True, slots=True)
class LabelMass:
    """Probability of each label as far as one decoded answer shows it.

    Args:
        masses: Not normalised; at most 1 in sum.
        known: Labels whose mass is theirs alone; that of the others is an even share of what several have together.
    """

    masses: Mapping[str, float]
    known: frozenset[str]

    @property
    def best(self) -> str:
        """The likeliest label among those whose mass is known.

        A greedy answer can miss it: its first token may be the likeliest for several labels together.
        """
        return max((label for label in self.masses if label in self.known), key=self.masses.__getitem__)


def label_masses(answers: Mapping[str, Sequence[bytes]], decoded: str, steps: Sequence[Step]) -> LabelMass:
    """How the probability spreads over the labels along the path of a decoded answer.

    A label that leaves the path gets the probability of the path so far times that of the token by which it leaves.
    Labels that leave by the same token share it evenly. Labels whose token is not among the options share what the
    options leave over, each at most as much as the least option has; nothing where nothing is left. The path is
    followed until one label is left on it.

    Args:
        answers: Every label's whole answer in the tokens that it is usually written with, without terminator.
        decoded: The label that was decoded.
        steps: The tokens of the decoded answer; the terminator may be missing.
    """
    masses = dict.fromkeys(answers, 0.0)
    shared: set[str] = set()
    usual = {label: _by_start((*answer, END)) for label, answer in answers.items()}
    ahead = {label: b"".join(answer) + END for label, answer in answers.items()}
    path, at = 1.0, 0
    for step in steps:
        if len(ahead) == 1 or decoded not in ahead:
            break
        if not step.chosen:
            continue
        chances = {token: math.exp(logprob) for token, logprob in step.options.items() if token}
        staying = {label: text[len(step.chosen) :] for label, text in ahead.items() if text.startswith(step.chosen)}
        missed = ahead.keys() - staying
        for token in chances.keys() - {step.chosen}:
            leaving = [label for label in ahead if usual[label].get(at) == token]
            leaving = leaving or [label for label, text in ahead.items() if text.startswith(token)]
            for label in leaving:
                masses[label] += path * chances[token] / len(leaving)
            shared.update(leaving if len(leaving) > 1 else ())
            missed -= set(leaving)
        left = max(0.0, 1 - sum(chances.values()))
        for label in missed:
            masses[label] += path * min(left / len(missed), *chances.values())
        shared.update(missed)
        path, at, ahead = path * chances[step.chosen], at + len(step.chosen), staying
    masses[decoded] += path  # where the terminator is not told, longer labels that begin with this one get nothing
    return LabelMass(masses, frozenset(answers.keys() - shared | {decoded}))


def _by_start(tokens: Sequence[bytes]) -> dict[int, bytes]:
    """Tokens by the byte at which they begin."""
    starts = accumulate(map(len, tokens), initial=0)
    return dict(zip(starts, tokens))
