"""Follow-ups over HTTP go on from what is in the cache, and say what they would say without it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from live_server import Running, data_url, running

from tuyi.data.example import Image
from tuyi.serve.app import create_app
from tuyi.serve.opening import Served
from tuyi.serve.settings import ServeSettings
from tuyi.vision import patches

QUESTIONS = ["What is it, and which colour has it? Say it in one word.", "Why?", "你好，这个红色的能用吗？", "And now?"]


def ask(client: Any, messages: list[Any], **more: Any) -> tuple[str, int]:
    """The answer, and the tokens of the prompt that were known."""
    answer = client.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 10, **more})
    assert answer.status_code == 200, answer.text
    value = answer.json()
    cached: int = value["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert 0 <= cached <= value["usage"]["prompt_tokens"]
    return value["choices"][0]["message"]["content"], cached


def looked_at(url: str, question: str) -> dict[str, Any]:
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    return {"role": "user", "content": content}


def talk(client: Any, url: str, turns: int = 4, **more: Any) -> list[tuple[str, int]]:
    messages: list[Any] = []
    said = []
    for question in QUESTIONS[:turns]:
        messages.append({"role": "user", "content": question} if messages else looked_at(url, question))
        said.append(ask(client, messages, **more))
        messages.append({"role": "assistant", "content": said[-1][0]})
    return said


@pytest.fixture(scope="module")
def url(picture: Callable[..., Image]) -> str:
    return data_url(picture(120, 120, seed=4))


@pytest.fixture(scope="module")
def forgetful(served: Served) -> Any:
    """A server that keeps nothing."""
    with running(create_app(served, ServeSettings(workers=2, keep_tokens=0))) as one:
        yield one


def test_follow_ups_say_the_same_and_compute_only_what_is_new(
    server: Running, forgetful: Running, twins: Any, url: str
):
    passed: list[int] = []
    visual = twins("qwen2_vl").model.hf.model.visual
    hook = visual.register_forward_pre_hook(lambda module, args: passed.append(len(args[0])))
    with server.client() as client:
        said = talk(client, url)
        seen, passed[:] = len(passed), []
    with forgetful.client() as client:
        plain = talk(client, url)
    hook.remove()
    assert (seen, len(passed)) == (1, 4), "the picture passes the tower once"
    assert [text for text, _ in said] == [text for text, _ in plain]
    assert [known for _, known in plain] == [0] * 4
    cached = [known for _, known in said]
    assert cached[0] == 0
    assert 32 <= cached[1] < cached[2] < cached[3]


def test_pictures_are_decoded_once(server: Running, picture: Callable[..., Image], monkeypatch: pytest.MonkeyPatch):
    cut: list[Image] = []
    plain = patches.image_patches
    monkeypatch.setattr(patches, "image_patches", lambda part, *more: cut.append(part) or plain(part, *more))
    with server.client() as client:
        talk(client, data_url(picture(130, 130, seed=40)), 2)
        assert len(cut) == 1
        talk(client, data_url(picture(130, 130, seed=41)), 1)
    assert len(cut) == 2


def test_many_talks_at_once(server: Running, forgetful: Running, picture: Callable[..., Image]):
    urls = [data_url(picture(90, 60 + 7 * seed, seed=seed % 2)) for seed in range(6)]
    with server.client() as client, ThreadPoolExecutor(6) as pool:
        said = list(pool.map(lambda url: talk(client, url, 3), urls))
    with forgetful.client() as client:
        plain = [talk(client, url, 3) for url in urls]
    assert [[text for text, _ in one] for one in said] == [[text for text, _ in one] for one in plain]
    assert all(one[2][1] > one[1][1] for one in said)


def test_one_beginning_serves_several(server: Running, picture: Callable[..., Image]):
    system = {"role": "system", "content": "You are asked about pictures of goods. " * 6}
    url = data_url(picture(80, 80, seed=11))
    with server.client() as client:
        _, first = ask(client, [system, looked_at(url, "What is it?")])
        _, second = ask(client, [system, looked_at(url, "Which colour is it?")])
        _, third = ask(client, [system, looked_at(url, "Which colour is it?")], temperature=1.0, seed=1)
        _, other = ask(client, [system, looked_at(data_url(picture(80, 80, seed=12)), "What is it?")])
    assert first < 32 < other < second < third, "system prompt, picture, question"


def test_another_picture_in_the_same_place_is_looked_at(
    server: Running, forgetful: Running, picture: Callable[..., Image]
):
    urls = [data_url(picture(100, 100, seed=seed)) for seed in (21, 22)]
    with server.client() as client:
        first, second = talk(client, urls[0], 1), talk(client, urls[1], 1)
    with forgetful.client() as client:
        assert second[0][0] == talk(client, urls[1], 1)[0][0]
    assert first[0][1] == 0


def test_forms_are_as_without(server: Running, forgetful: Running, url: str):
    properties = {"why": {"type": "string"}, "colour": {"enum": ["red", "blue"]}, "ok": {"const": "yes"}}
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    form = {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}}
    with server.client() as client:
        found = [talk(client, url, 3, **form) for _ in range(2)]
        choice = [talk(client, url, 2, structured_outputs={"choice": ["yes", "no"]})]
    with forgetful.client() as client:
        plain = talk(client, url, 3, **form)
        assert choice == [talk(client, url, 2, structured_outputs={"choice": ["yes", "no"]})]
    assert [text for text, _ in found[0]] == [text for text, _ in found[1]] == [text for text, _ in plain]
    assert found[0][2][1] > 32


def test_owners_share_nothing(serving: Callable[..., Running], tmp_path: Path, url: str):
    file = tmp_path / "tokens"
    file.write_text("one\ntwo\n")
    server = serving(workers=1, token_file=file)
    cached = []
    for token in ("one", "two", "one"):
        with server.client(headers={"Authorization": f"Bearer {token}"}) as client:
            cached.append([known for _, known in talk(client, url, 2)])
    assert cached[0] == cached[1]
    assert cached[0][0] == 0
    assert cached[2][0] > 32


def test_kept_rows_make_room(served: Served, picture: Callable[..., Image]):
    small = replace(served, cache_tokens=400)
    urls = [data_url(picture(100, 100, seed=30 + seed)) for seed in range(5)]
    with running(create_app(small, ServeSettings(workers=2))) as server, server.client() as client:
        assert all(talk(client, url, 2)[1][1] > 32 for url in urls), "the newest is kept"
        with ThreadPoolExecutor(5) as pool:
            assert len(list(pool.map(lambda url: talk(client, url, 2), urls))) == 5
        assert talk(client, urls[0], 1)[0][0]
