"""Answers in a form that a client asks for: one of some texts, or a JSON object of texts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuyi.encode.answer import Chosen, Forced, LabelTokens, Stage, Written
from tuyi.model.sampling import Sampling
from tuyi.serve.refusals import RefusalError
from tuyi.task.answer import Free

__all__ = ["Form", "choice_form", "pick", "schema_form"]

_MOST_CHOICES = 1000
_MOST_PROPERTIES = 100
_IGNORED = frozenset({"title", "description", "default", "examples"})


@dataclass(frozen=True, slots=True)
class Form:
    """The form of an answer in tokens.

    Args:
        opening: What every answer begins with.
        stages: The way from there to its end.
    """

    opening: tuple[int, ...]
    stages: tuple[Stage, ...]

    @property
    def labels(self) -> LabelTokens | None:
        """What may follow the opening, where that is one choice and nothing else."""
        only = self.stages[0]
        return only.labels if len(self.stages) == 1 and isinstance(only, Chosen) else None

    @property
    def choosing(self) -> int:
        """Tokens of all texts of its longest choice, which pass the model together."""
        return max((sum(map(len, one.labels.ids)) for one in self.stages if isinstance(one, Chosen)), default=0)

    @property
    def most(self) -> int:
        """Most tokens of an answer."""
        return len(self.opening) + sum(_most(stage) for stage in self.stages) + 1


def _most(stage: Stage) -> int:
    if isinstance(stage, Written):
        return stage.free.max_tokens
    return len(stage.ids) if isinstance(stage, Forced) else max(map(len, stage.labels.ids))


Tokens = Callable[[str], tuple[int, ...]]


def choice_form(choices: Sequence[str], tokens: Tokens, end: int, param: str) -> Form:
    """One of some texts.

    Args:
        choices: These.
        tokens: Token ids of plain text.
        end: The terminator.
        param: What the client calls them.

    Raises:
        RefusalError: None, too many, an empty one, or one that stands there twice.
    """
    _check(choices, param)
    return Form((), (Chosen(LabelTokens(tuple(choices), tuple((*tokens(one), end) for one in choices))),))


def schema_form(schema: dict[str, Any], most: int, tokens: Tokens, end: int, param: str) -> Form:
    """A JSON object whose properties, in their order, are texts: some of them chosen, some of them written.

    Args:
        schema: JSON Schema; of a property ``enum`` or ``const`` of texts, or ``type: string``.
        most: Most tokens of each text that is written.
        tokens, end, param: As for :func:`choice_form`.

    Raises:
        RefusalError: It asks for something else.
    """
    properties = schema.get("properties")
    if schema.get("type") != "object" or not isinstance(properties, dict) or not properties:
        raise _unknown(param, "expected an object with properties")
    if len(properties) > _MOST_PROPERTIES:
        raise _unknown(param, f"expected at most {_MOST_PROPERTIES} properties, found {len(properties)}")
    known = {"type", "properties", "required", "additionalProperties", "$defs", "$schema", *_IGNORED}
    if odd := sorted(schema.keys() - known):
        raise _unknown(f"{param}.{odd[0]}", "found a keyword that this server has not")
    required = schema.get("required", list(properties))
    if not isinstance(required, list) or set(map(str, required)) != set(properties):
        raise _unknown(f"{param}.required", "expected all properties to be required")
    keys = [json.dumps(key, ensure_ascii=False) for key in properties]
    literals = [f"{', ' if at else '{'}{key}: " for at, key in enumerate(keys)]
    kinds = [_choices(one, schema, f"{param}.properties.{key}") for key, one in properties.items()]
    # what follows a choice is part of every label's tokens; a text that is written brings its own quotation marks
    before = [literal + ('"' if kind is None else "") for literal, kind in zip(literals, kinds)]
    after = [('"' if kind is None else "") + rest for kind, rest in zip(kinds, [*before[1:], "}"])]
    stages: list[Stage] = []
    for at, (kind, behind) in enumerate(zip(kinds, after)):
        is_last = at == len(kinds) - 1
        rest = (*tokens(behind), *((end,) if is_last else ()))
        if kind is None:
            stages += [Written(Free(free="answer", max_tokens=most, in_json=True), behind, False), Forced(rest)]
        else:
            spelled = [json.dumps(one, ensure_ascii=False) for one in kind]
            stages.append(Chosen(LabelTokens(tuple(kind), tuple((*tokens(one), *rest) for one in spelled))))
    return Form(tokens(before[0]), tuple(stages))


def pick(logprobs: NDArray[np.float32], sampling: Sampling | None) -> int:
    """Which label is answered: the likeliest, or one that is drawn."""
    if sampling is None:
        return int(logprobs.argmax())
    below = logprobs.astype(np.float64) - logprobs.max()
    with np.errstate(over="ignore"):  # by the smallest temperatures
        chances = np.exp(below / sampling.temperature)
    return int(np.random.default_rng(abs(sampling.seed)).choice(len(chances), p=chances / chances.sum()))


def _choices(value: Any, schema: dict[str, Any], param: str) -> list[str] | None:
    """The texts of a property; None where it is written freely."""
    if isinstance(value, dict) and isinstance(name := value.get("$ref"), str):
        definitions = schema.get("$defs")
        value = definitions.get(name.removeprefix("#/$defs/")) if isinstance(definitions, dict) else None
    if not isinstance(value, dict) or value.get("type", "string") != "string":
        raise _unknown(param, "expected type string, or an enum of texts")
    if odd := sorted(value.keys() - _IGNORED - {"type", "enum", "const"}):
        raise _unknown(f"{param}.{odd[0]}", "found a keyword that this server has not")
    if "enum" not in value and "const" not in value:
        if "type" not in value:
            raise _unknown(param, "expected type string, or an enum of texts")
        return None
    choices = value.get("enum", [value.get("const")])
    if not isinstance(choices, list):
        raise _unknown(f"{param}.enum", "expected a list of texts")
    _check(choices, f"{param}.enum")
    return choices


def _check(choices: Sequence[Any], param: str) -> None:
    if not 0 < len(choices) <= _MOST_CHOICES:
        raise _unknown(param, f"expected 1 to {_MOST_CHOICES} texts, found {len(choices)}")
    if not all(isinstance(one, str) and one for one in choices):
        raise _unknown(param, "expected texts that are not empty")
    if len(set(choices)) < len(choices):
        raise _unknown(param, "expected each text once, found one twice")


def _unknown(param: str, told: str) -> RefusalError:
    return RefusalError(400, f"{param}: {told}", param=param, code="unsupported_format")
