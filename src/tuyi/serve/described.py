"""The routes in OpenAPI's words: what each takes and answers, and with which limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from tuyi.serve.answers import Classified, Completion, Health, ModelCard, ModelList, Refused
from tuyi.serve.chat import ChatRequest
from tuyi.serve.classify import ClassifyRequest
from tuyi.serve.opening import Served
from tuyi.serve.settings import ServeSettings

__all__ = ["described"]

Body: TypeAlias = tuple[type[BaseModel], Literal["validation", "serialization"]]

_REFS = "#/components/schemas/"
_REFUSALS = {
    400: "Something in it is wrong: `param` and `message` say what.",
    401: "No token of the server's.",
    404: "A model of another name.",
    408: "It was not sent in time.",
    413: "It is too large.",
    429: "Too many requests wait; try again after `Retry-After` seconds.",
    500: "A mistake of the server.",
    503: "The model is not ready, or has no room for this; try again later.",
    504: "Not answered in time; try again later.",
}
_SENT = (400, 408, 413, 429, 500, 503, 504)
"""What may become of any request that has a body and needs the model."""
_PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAABwAAAAcCAIAAAD9b0jDAAAAKElEQVR42mM8YaPBQG3AxEADMGroqKGjho4aOmro"
    "qKGjho4aOvgMBQDxmQFkQozOYQAAAABJRU5ErkJggg=="
)


def described(served: Served, settings: ServeSettings) -> dict[str, Any]:
    """The OpenAPI document of a server.

    Args:
        served: The model; its name and tasks are told.
        settings: Limits; whether there are tokens is told.

    Source: OpenAPI 3.1.
    """
    schemas = _schemas(served, settings)
    paths: dict[str, Any] = {
        "/v1/classify": {"post": _classify(served, settings)},
        "/v1/chat/completions": {"post": _chat(served, settings)},
        "/v1/models": {"get": _operation("models", "The one model.", {200: _json("ModelList", "It.")})},
        "/v1/models/{name}": {"get": _model(served)},
        "/healthz": {"get": _healthz()},
        "/metrics": {"get": _metrics()},
    }
    components: dict[str, Any] = {"schemas": schemas}
    if settings.token_file is not None:
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        for path, operations in paths.items():
            for operation in operations.values() if path != "/healthz" else ():
                operation["security"] = [{"token": []}]
                operation["responses"]["401"] = _refusal(401)
    return {
        "openapi": "3.1.0",
        "info": {"title": "tuyi", "version": "1", "description": f"Answers of the model {served.name}."},
        "paths": paths,
        "components": components,
    }


def _classify(served: Served, settings: ServeSettings) -> dict[str, Any]:
    text = "Customer: this came today, and it is broken. <image>"
    task = served.tasks.tasks[0].name
    examples = {
        "text": {"text": text, "images": [_PIXEL], "task": task},
        "parts": {"parts": [{"text": text.removesuffix(" <image>")}, {"image": _PIXEL}], "task": task, "id": "17"},
    }
    told = (
        "The label of a dialogue with its pictures and videos. Either `parts`, or `text` with `images` and `videos`. "
        + _limits(settings)
    )
    answers = {200: _json("Classified", "The label."), **_refusals(*_SENT)}
    return _operation("classify", told, answers, _body("ClassifyRequest", examples))


def _chat(served: Served, settings: ServeSettings) -> dict[str, Any]:
    content = [{"type": "image_url", "image_url": {"url": _PIXEL}}, {"type": "text", "text": "Is it broken?"}]
    said = {"model": served.name, "messages": [{"role": "user", "content": "hello"}]}
    examples = {
        "text": {**said, "max_tokens": 2},
        "streamed": {**said, "max_tokens": 2, "stream": True, "stream_options": {"include_usage": True}},
        "choice": {
            "messages": [{"role": "user", "content": content}], "structured_outputs": {"choice": ["yes", "no"]},
        },
    }  # fmt: skip
    told = (
        "An answer to a conversation, as OpenAI's interface has it; the last message is the user's. "
        + _limits(settings)
        + f" At most {settings.max_output_tokens:,} tokens of the answer."
    )
    whole = _json("Completion", "The answer; as server-sent events where `stream` is true, `[DONE]` last.")
    data = {"type": "string", "description": "OpenAI's `chat.completion.chunk` as JSON; `[DONE]` last."}
    event = {"type": "object", "properties": {"data": data}, "required": ["data"]}
    whole["content"]["text/event-stream"] = {"itemSchema": event}
    return _operation("chat", told, {200: whole, **_refusals(*_SENT, 404)}, _body("ChatRequest", examples))


def _limits(settings: ServeSettings) -> str:
    return (
        f"At most {settings.max_body_bytes:,} bytes, {settings.max_characters:,} characters of text, "
        f"{settings.max_pictures} pictures of {settings.max_picture_pixels:,} pixels each, and {settings.max_videos} "
        f"videos of {settings.max_video_seconds:g} seconds and {settings.max_video_pixels:,} pixels a frame."
    )


def _model(served: Served) -> dict[str, Any]:
    operation = _operation("model", "The model, by its name.", {200: _json("ModelCard", "It."), **_refusals(404)})
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}, "example": served.name}
    return {**operation, "parameters": [name]}


def _healthz() -> dict[str, Any]:
    answers = {200: _json("Health", "They are."), 503: _json("Health", "They are not.")}
    return _operation("healthz", "Whether requests are answered.", answers)


def _metrics() -> dict[str, Any]:
    found = {"description": "Prometheus' text format.", "content": {"text/plain": {"schema": {"type": "string"}}}}
    return _operation("metrics", "What the server has counted.", {200: found})


def _operation(
    name: str, told: str, answers: Mapping[int, Any], body: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    responses = {str(status): answers[status] for status in sorted(answers)}
    found: dict[str, Any] = {"operationId": name, "summary": told.partition(".")[0], "description": told}
    return {**found, **({} if body is None else {"requestBody": body}), "responses": responses}


def _body(schema: str, examples: Mapping[str, Any]) -> dict[str, Any]:
    named = {name: {"value": value} for name, value in examples.items()}
    return {"required": True, "content": {"application/json": {"schema": {"$ref": _REFS + schema}, "examples": named}}}


def _json(schema: str, told: str) -> dict[str, Any]:
    return {"description": told, "content": {"application/json": {"schema": {"$ref": _REFS + schema}}}}


def _refusal(status: int) -> dict[str, Any]:
    found = _json("Refused", _REFUSALS[status])
    headers = {429: ("Retry-After", "integer"), 401: ("WWW-Authenticate", "string")}
    if status in headers:
        name, kind = headers[status]
        found["headers"] = {name: {"schema": {"type": kind}}}
    return found


def _refusals(*statuses: int) -> dict[int, Any]:
    return {status: _refusal(status) for status in statuses}


def _schemas(served: Served, settings: ServeSettings) -> dict[str, Any]:
    bodies: list[Body] = [(one, "validation") for one in (ClassifyRequest, ChatRequest)]
    answers: list[Body] = [
        (one, "serialization") for one in (Classified, Completion, Health, ModelCard, ModelList, Refused)
    ]
    _, found = models_json_schema([*bodies, *answers], ref_template=_REFS + "{model}")
    schemas: dict[str, Any] = _public(found["$defs"])
    properties = schemas["ClassifyRequest"]["properties"]
    properties["images"]["maxItems"] = settings.max_pictures
    properties["videos"]["maxItems"] = settings.max_videos
    properties["task"]["anyOf"][0]["enum"] = [task.name for task in served.tasks]
    schemas["ClassifyRequest"]["anyOf"] = [{"required": [one]} for one in ("parts", "text", "images", "videos")]
    for name in ("max_tokens", "max_completion_tokens"):
        schemas["ChatRequest"]["properties"][name]["anyOf"][0]["maximum"] = settings.max_output_tokens
    return schemas


def _public(value: Any) -> Any:
    """Without the underscores of names that are private here."""
    if isinstance(value, dict):
        return {key.removeprefix("_"): _public(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_public(one) for one in value]
    if isinstance(value, str):
        return value.removeprefix("_") if not value.startswith(_REFS) else value.replace(_REFS + "_", _REFS)
    return value
