"""Signing in to the page, where the server has tokens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from live_server import Running

from tuyi.serve.opening import Served
from tuyi.serve.web import login
from tuyi.serve.web.login import Login

TOKEN = "a-token-of-the-server"


@pytest.fixture(scope="module")
def guarded(
    served: Served, serving_page: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    file: Path = tmp_path_factory.mktemp("tokens") / "tokens"
    file.write_text(f"# whose\n{TOKEN}\n")
    with serving_page(served, token_file=file) as server:
        yield server


def test_without_signing_in(guarded: Running):
    with guarded.client() as client:
        answer = client.get("/")
        assert (answer.status_code, answer.headers["location"]) == (303, "/login")
        for path in ("/theme.css", "/gradio_api/queue/data?session_hash=a", "/gradio_api/heartbeat/a"):
            assert client.get(path).status_code == 401, path
        assert client.post("/gradio_api/queue/join", json={}).status_code == 401
        assert client.post("/v1/classify", json={}).status_code == 401
        assert client.get("/metrics").status_code == 401
        assert client.get("/nothing").status_code == 401
        assert client.get("/healthz").status_code == 200
        form = client.get("/login", headers={"accept-language": "zh-CN,zh;q=0.9"})
        assert form.status_code == 200
        assert "令牌" in form.text
        assert "http" not in form.text
        assert form.headers["x-frame-options"] == "DENY"


def test_a_wrong_token(guarded: Running):
    with guarded.client() as client:
        begun = time.monotonic()
        answer = client.post("/login", data={"token": "<b>wrong"})
        assert answer.status_code == 401
        assert time.monotonic() - begun >= 1
        assert "none of the server&#x27;s tokens" in answer.text
        assert "<b>wrong" not in answer.text
        assert "set-cookie" not in answer.headers
        assert client.get("/").status_code == 303
        assert (
            client.post("/login", data={"token": TOKEN}, headers={"origin": "http://evil.example"}).status_code == 403
        )


def test_the_right_token(guarded: Running):
    with guarded.client() as client:
        answer = client.post("/login", data={"token": TOKEN})
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert "Secure" not in cookie
        assert TOKEN not in cookie
        assert login._digest(TOKEN).hex() not in cookie
        assert client.get("/").status_code == 200
        assert client.get("/login").headers["location"] == "/"
        assert client.post("/v1/classify", json={"text": "x", "task": "shape"}).status_code == 401
        bearer = {"authorization": f"Bearer {TOKEN}"}
        assert client.post("/v1/classify", json={"text": "x", "task": "shape"}, headers=bearer).status_code == 200
        kept = dict(client.cookies)
        assert client.get("/logout").headers["location"] == "/"  # another website's link or picture changes nothing
        assert client.post("/logout").headers["location"] == "/login"
        client.cookies.update(kept)
        assert client.get("/").status_code == 303


def test_over_tls_the_cookie_is_secure(guarded: Running):
    with guarded.client() as client:
        answer = client.post("/login", data={"token": TOKEN}, headers={"x-forwarded-proto": "https"})
    assert "Secure" in answer.headers["set-cookie"]


def test_sessions_end_and_are_few(monkeypatch: pytest.MonkeyPatch):
    now = 100.0
    monkeypatch.setattr(login.time, "monotonic", lambda: now)
    known = Login(lambda token: b"owner")
    known._sessions[login._digest("s")] = (150.0, b"owner")
    assert known.owner({"cookie": "tuyi_session=s"}) == b"owner"
    assert known.owner({"cookie": "tuyi_session=t"}) is None
    assert known.owner({"cookie": "a=\x01;;=broken"}) is None
    now = 200.0
    assert known.owner({"cookie": "tuyi_session=s"}) is None


def test_many_wrong_tokens_at_once_are_turned_away(guarded: Running):
    from concurrent.futures import ThreadPoolExecutor

    def one(_: int) -> int:
        with guarded.client() as client:
            return client.post("/login", data={"token": "wrong"}).status_code

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(one, range(16)))
    assert set(found) == {401, 429}


def test_a_person_signs_in_and_out(guarded: Running, opened: Callable[..., Any]):
    page = opened(guarded.url)
    page.wait_for_url("**/login")
    page.fill("#token", "wrong")
    page.press("#token", "Enter")
    page.wait_for_selector("[role=alert]:not(:empty)")
    page.fill("#token", TOKEN)
    page.get_by_role("button", name="Sign in").click()
    page.fill(".tuyi-editor", "用户: 你好")
    page.press(".tuyi-editor", "Control+Enter")
    page.wait_for_selector(".tuyi-label")
    assert not page.url.endswith("/login")
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url("**/login")
    page.goto(guarded.url)
    page.wait_for_url("**/login")
    assert page.locator("#token").is_visible()
