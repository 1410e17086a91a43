"""Requests of any shape: none is answered 5xx, and every refusal has OpenAI's form."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from live_server import Running

SAID = [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]}]
SCHEMA = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}, "b": {"type": "string"}}, "required": ["a", "b"]}
VALID: dict[str, list[dict[str, Any]]] = {
    "/v1/classify": [
        {"text": "hello", "task": "shape", "id": "1", "images": []},
        {"parts": [{"text": "a"}, {"image": "data:image/png;base64,AAAA"}], "task": "colour"},
    ],
    "/v1/chat/completions": [
        {"messages": SAID, "max_tokens": 2, "temperature": 0.5, "top_p": 0.9, "seed": 1, "stop": ["a"], "stream": True},
        {"messages": SAID, "max_tokens": 2, "guided_choice": ["a", "b"], "logprobs": True, "top_logprobs": 2},
        {"messages": SAID, "max_tokens": 2, "structured_outputs": {"json": SCHEMA}, "n": 1},
    ],
}
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a JSON value."""
    yield at
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*at, key))


@st.composite
def changed(draw: st.DrawFn, values: list[dict[str, Any]]) -> Any:
    """A request with something in it replaced, taken out or added."""
    value: Any = copy.deepcopy(draw(st.sampled_from(values)))
    *path, last = draw(st.sampled_from([place for place in places(value) if place]))
    inner = value
    for key in path:
        inner = inner[key]
    how = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
    if how == "remove":
        del inner[last]
    elif how == "add" and isinstance(inner, dict):
        inner[draw(st.text(max_size=8))] = draw(anything)
    else:
        inner[last] = draw(anything)
    return value


@pytest.mark.parametrize("route", list(VALID))
def test_no_request_is_answered_5xx(server: Running, route: str):
    with server.client() as client:

        @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
        @given(changed(VALID[route]) | anything)
        def check(value: Any) -> None:
            answer = client.post(route, content=json.dumps(value).encode())
            _check(answer)

        check()
        assert client.get("/healthz").status_code == 200


def _check(answer: httpx.Response) -> None:
    assert answer.status_code == 200 or 400 <= answer.status_code < 500, answer.text
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert error["message"]
        assert "Traceback" not in answer.text
