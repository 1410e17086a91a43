"""What clients send: read strictly, and refused with a reason."""

from __future__ import annotations

import re
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from tuyi.data.example import Example, Text
from tuyi.serve.refusals import RefusalError

__all__ = ["Asked", "held", "parsed"]

A = TypeVar("A", bound="Asked")

_MOST_VALUES = 50_000
"""Values of a request, by its commas and brackets; millions of tiny ones would be read into gigabytes."""

_FORM = re.compile(r"str|list\[.*\]")
"""What pydantic puts into the place of a value that may have several forms."""


class Asked(BaseModel):
    """Base of everything that a client sends: unknown keys are refused, nothing is turned into another type."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


def parsed(kind: type[A], body: bytes) -> A:
    """A request from its body.

    Raises:
        RefusalError: It is no JSON, or not of the form; the first problem is named.
    """
    if sum(body.count(sign) for sign in (b",", b"[", b"{")) > _MOST_VALUES:
        message = f"expected at most {_MOST_VALUES:,} values, by commas and brackets, found more"
        raise RefusalError(400, message, code="too_many_values")
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise _unfit(error) from error


def _unfit(error: ValidationError) -> RefusalError:
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    first = max(problems, key=lambda one: len(one["loc"]))  # of several forms, the one that came furthest was meant
    param = ".".join(str(one) for one in first["loc"] if not _FORM.fullmatch(str(one)))[:200] or None
    if first["type"] == "json_invalid":
        return RefusalError(400, f"expected a JSON object, found broken JSON: {first['msg']}", code="invalid_json")
    told = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        told = "unknown parameter, or one that this server has not"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return RefusalError(400, f"{param}: {told}{more}" if param else told + more, param=param, code="invalid_request")


def held(example: Example, characters: int, beside: int = 0) -> None:
    """Hold the text of a request to its limit.

    Args:
        example: Its content.
        characters: The limit.
        beside: Characters of what is said about the answer.

    Raises:
        RefusalError: There is more.
    """
    length = beside + sum(len(part.text) for part in example.parts if isinstance(part, Text))
    if length > characters:
        message = f"expected at most {characters:,} characters of text, found {length:,}"
        raise RefusalError(400, message, code="context_length_exceeded")
