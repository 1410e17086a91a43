"""Requests that nobody should send: each is a 4xx that says what was wrong, and tells nothing of the server."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from typing import Any

import pytest
from live_server import Running
from PIL import Image as Pillow


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Pillow.new("RGB", (width, height)).save(file, "PNG")
    return file.getvalue()


def url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def bomb() -> bytes:
    """A PNG whose header says 60000 x 60000."""
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + head
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + png(8, 8)[33:]


GOOD = png(40, 40)
ASK: dict[str, Any] = {"task": "shape"}
CLASSIFY: list[tuple[Any, str]] = [
    (b"", "broken JSON"),
    (b"{", "broken JSON"),
    (b"\xff\xfe", "broken JSON"),
    (b'{"text": "\\ud800"}', "broken JSON"),
    (b"[" * 5000, "broken JSON"),
    ([], "object"),
    ("text", "object"),
    (1, "object"),
    (None, "object"),
    ({}, "expected parts, or text and images"),
    ({"text": 1}, "text: "),
    ({"text": "x", "txt": "y"}, "txt: unknown parameter"),
    ({"text": "x"}, "task: expected one of colour, shape, talk"),
    ({"text": "x", "task": "nope"}, "found 'nope'"),
    ({"text": "x", "task": 5}, "task: "),
    ({"text": "x" * 40_000, **ASK}, "at most 32,768 characters"),
    ({"parts": [], **ASK}, "parts: "),
    ({"parts": {}, **ASK}, "parts: "),
    ({"parts": [{}], **ASK}, "expected either text, image or video"),
    ({"parts": [{"text": "a", "image": "b"}], **ASK}, "expected either text, image or video"),
    ({"parts": [{"video": "x"}], **ASK}, "parts.0.video: expected data:video"),
    ({"parts": [{"audio": "x"}], **ASK}, "audio: unknown parameter"),
    ({"parts": [{"text": "a"}], "text": "b", **ASK}, "found both"),
    ({"text": "<image> <image>", "images": [url(GOOD)], **ASK}, "2 <image> in the text but 1 images"),
    ({"text": "x", "images": "y", **ASK}, "images: "),
    ({"text": "x", "images": [1], **ASK}, "images.0: "),
    ({"text": "x", "images": ["/etc/passwd"], **ASK}, "images.0: expected data:image"),
    ({"text": "x", "images": ["file:///etc/passwd"], **ASK}, "expected data:image"),
    ({"text": "x", "images": ["http://127.0.0.1/a.png"], **ASK}, "expected data:image"),
    ({"text": "x", "images": ["https://example.com/a.png"], **ASK}, "expected data:image"),
    ({"text": "x", "images": ["data:image/png,abc"], **ASK}, "expected data:image"),
    ({"text": "x", "images": ["data:image/png;base64,@@@"], **ASK}, "expected base64"),
    ({"text": "x", "images": ["data:image/png;base64,图"], **ASK}, "expected base64"),
    ({"text": "x", "images": ["data:image/png;base64,"], **ASK}, "expected a picture"),
    ({"text": "x", "images": [url(b"GIF89a")], **ASK}, "expected a picture"),
    ({"text": "x", "images": [url(b"hello world")], **ASK}, "expected a picture"),
    ({"text": "x", "images": [url(GOOD, "text/html")], **ASK}, "expected an image, found text/html"),
    ({"text": "x", "images": [url(GOOD[: len(GOOD) // 2])], **ASK}, "truncated or damaged"),
    ({"text": "x", "images": [url(bomb())], **ASK}, "pixels"),
    ({"text": "x", "images": [url(GOOD)] * 17, **ASK}, "at most 16 pictures"),
    ({"parts": [{"image": url(png(3, 2000))}], **ASK}, ""),
    ({"text": "x", "id": "y" * 300, **ASK}, "id: "),
]
TEXT = {"a": {"type": "string"}}
SAY = {"messages": [{"role": "user", "content": "hello"}]}


def said(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 2}


CHAT: list[tuple[Any, str]] = [
    (b"nope", "broken JSON"),
    ({}, "messages: "),
    ({"messages": []}, "messages: "),
    ({"messages": [{"role": "root", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "user"}]}, "messages.0.content"),
    (said(None), "messages.0.content"),
    (said([{"type": "image_url"}]), "expected image_url and nothing else"),
    (said([{"type": "video_url", "video_url": {"url": "x"}}]), "messages.0.content"),
    (said([{"type": "image_url", "image_url": {"url": "/etc/passwd"}}]), "expected data:image"),
    (said([{"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}}]), "expected data:image"),
    ({**SAY, "model": "/root/model"}, "expected 'small'"),
    ({**SAY, "max_tokens": 0}, "max_tokens"),
    ({**SAY, "max_tokens": "5"}, "max_tokens"),
    ({**SAY, "max_tokens": 10**30}, "max_tokens"),
    ({**SAY, "temperature": -1}, "temperature"),
    ({**SAY, "top_p": 0}, "top_p"),
    ({**SAY, "stop": ["a"] * 5}, "at most 4"),
    ({**SAY, "stop": ""}, "none of them empty"),
    ({**SAY, "seed": 2**70}, "seed"),
    ({**SAY, "stream": "yes"}, "stream"),
    ({**SAY, "logit_bias": {"5": 1}}, "logit_bias: unknown parameter"),
    ({**SAY, "structured_outputs": {}}, "either choice or json"),
    ({**SAY, "structured_outputs": {"regex": "a+"}}, "regex: unknown parameter"),
    ({**SAY, "structured_outputs": {"choice": [1]}}, "structured_outputs.choice.0"),
    ({**SAY, "guided_choice": [""]}, "not empty"),
    ({**SAY, "guided_choice": ["a"], "structured_outputs": {"choice": ["a"]}}, "found several"),
    ({**SAY, "guided_choice": [f"c{n}" for n in range(1001)]}, "1 to 1000"),
    ({**SAY, "structured_outputs": {"json": {}}}, "expected an object with properties"),
    ({**SAY, "structured_outputs": {"json": {"type": "object", "properties": {"a": 1}}}}, "expected type string"),
    ({**SAY, "structured_outputs": {"json": {"type": "object", "properties": {"a": {"$ref": "x"}}}}}, "expected type"),
    ({**SAY, "structured_outputs": {"json": {"type": "object", "properties": TEXT, "required": 5}}}, "required"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("route", "body", "told"),
    [("/v1/classify", *one) for one in CLASSIFY] + [("/v1/chat/completions", *one) for one in CHAT],
)
def test_is_refused_with_a_reason(server: Running, route: str, body: Any, told: str):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    with server.client() as client:
        answer = client.post(route, content=data)
    if not told:
        assert answer.status_code in (200, 400)
        return
    assert 400 <= answer.status_code < 500, answer.text
    error = answer.json()["error"]
    assert told in error["message"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] in ("invalid_request_error", "not_found_error")
    for secret in ("Traceback", "site-packages", "/work", ".py", "tuyi/serve"):
        assert secret not in answer.text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1/classify", 405),
        ("POST", "/v1/models", 405),
        ("GET", "/../../etc/passwd", 404),
        ("GET", "/v1/models/%00", 404),
        ("DELETE", "/v1/chat/completions", 405),
        ("POST", "/v1/classify/", 404),
    ],
)
def test_other_routes(server: Running, method: str, path: str, status: int):
    with server.client() as client:
        answer = client.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"]["type"] in ("invalid_request_error", "not_found_error")
