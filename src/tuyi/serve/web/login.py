"""Signing in to the page with one of the server's tokens."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from hashlib import sha256
from html import escape
from http.cookies import CookieError, SimpleCookie
from importlib.resources import files
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from tuyi.serve.refusals import RefusalError
from tuyi.serve.web.words import LANGUAGE_COOKIE

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

__all__ = ["Login"]

_COOKIE = "tuyi_session"
_SECONDS = 12 * 3600.0
"""How long one stays signed in."""
_MOST = 1000
"""Sessions at a time; the oldest is forgotten first."""
_SLOW_S = 1.0
"""How long the answer to a wrong token is held back."""
_WRONG = 8
"""Wrong tokens that are held back at a time; beyond that nobody is let in for the moment."""

_WORDS = {
    "en": {
        "title": "Sign in", "token": "Token", "go": "Sign in", "other": "中文", "lang": "en", "to": "zh",
        "about": "Whoever runs this server has tokens for it.",
        "wrong": "This is none of the server's tokens.",
        "busy": "Too many wrong tokens at the moment. Try again shortly.",
    },
    "zh": {
        "title": "登录", "token": "令牌", "go": "登录", "other": "English", "lang": "zh-CN", "to": "en",
        "about": "令牌请向部署这个服务的人索取。",
        "wrong": "令牌不正确。",
        "busy": "短时间内错误次数过多，请稍后再试。",
    },
}  # fmt: skip


class Login:
    """ASGI application of the sign-in, and who is signed in.

    A session is a random number in a cookie, of which only the digest is kept; it has nothing of the token in it.

    Args:
        accepts: The digest of a token, where it is one of the server's.
    """

    def __init__(self, accepts: Callable[[bytes], bytes | None]) -> None:
        self._accepts = accepts
        self._sessions: OrderedDict[bytes, tuple[float, bytes]] = OrderedDict()
        self._wrong = 0

    def owner(self, headers: Mapping[str, str]) -> bytes | None:
        """The digest of the token with which whoever sent a request has signed in; None where nobody has."""
        until, owner = self._sessions.get(_session(headers), (0.0, b""))
        return owner if until > time.monotonic() else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        path, headers = scope["path"], request.headers
        if path == "/logout":
            answer = self._logout(headers) if request.method == "POST" else _to("/")
        elif path != "/login":
            if path != "/":
                raise RefusalError(401, "sign in at /login first", code="not_signed_in")
            answer = _to("/login")
        elif request.method == "POST":
            answer = await self._login(request)
        else:
            answer = _to("/") if self.owner(headers) else _form(request, "")
        await answer(scope, receive, send)

    async def _login(self, request: Request) -> Response:
        if self._wrong >= _WRONG:
            return _form(request, "busy", 429)
        try:
            fields = parse_qs((await request.body()).decode(), max_num_fields=8)
        except ValueError:
            fields = {}
        owner = self._accepts(fields.get("token", [""])[0].encode())
        if owner is None:
            self._wrong += 1
            try:
                await asyncio.sleep(_SLOW_S)
            finally:
                self._wrong -= 1
            return _form(request, "wrong", 401)
        session = secrets.token_urlsafe(32)
        while len(self._sessions) >= _MOST:
            self._sessions.popitem(last=False)
        self._sessions[_digest(session)] = (time.monotonic() + _SECONDS, owner)
        answer = _to("/")
        answer.set_cookie(
            _COOKIE, session, max_age=int(_SECONDS), path="/", httponly=True, samesite="strict",
            secure=request.url.scheme == "https",
        )  # fmt: skip
        return answer

    def _logout(self, headers: Mapping[str, str]) -> Response:
        self._sessions.pop(_session(headers), None)
        answer = _to("/login")
        answer.delete_cookie(_COOKIE, path="/", httponly=True, samesite="strict")
        return answer


def _to(path: str) -> RedirectResponse:
    return RedirectResponse(path, 303)


def _digest(session: str) -> bytes:
    return sha256(session.encode()).digest()


def _session(headers: Mapping[str, str]) -> bytes:
    return _digest(_cookie(headers, _COOKIE))


def _cookie(headers: Mapping[str, str], name: str) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(name)
    except CookieError:
        return ""
    return found.value if found else ""


def _form(request: Request, problem: str, status: int = 200) -> Response:
    given = request.query_params.get("lang") or _cookie(request.headers, LANGUAGE_COOKIE)
    language = (given or request.headers.get("accept-language", "")).lower()[:2]
    words = _WORDS["zh" if language == "zh" else "en"]
    room = files("tuyi.serve.web") / "assets"
    page = (room / "login.html").read_text(encoding="utf-8")
    told = {**words, "problem": words[problem] if problem else "", "invalid": json.dumps(bool(problem))}
    for name, text in told.items():
        page = page.replace("{{" + name + "}}", escape(text))
    return HTMLResponse(page.replace("{{style}}", (room / "page.css").read_text(encoding="utf-8")), status)
