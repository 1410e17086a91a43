"""What stands before the page: which of Gradio's routes are open, for whom, and from where."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import socket
from types import SimpleNamespace
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse

from tuyi.serve.refusals import RefusalError
from tuyi.serve.web.document import HEADERS
from tuyi.serve.web.visitors import KEY, Visitors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from tuyi.serve.web.login import Login

__all__ = ["Gate", "is_of_page"]

_STILL = re.compile(r"/(assets|static|svelte)/[\w./@-]+|/theme\.css|/favicon\.ico")
_ASKED = re.compile(r"/gradio_api/(queue/join|cancel|component_server/?)")
_HEARD = re.compile(r"/gradio_api/(queue/data|heartbeat/\w+)")
_AGAIN = "/gradio_api/app_id"  # asked where the connection was lost, until it is there again
_LOGIN = ("/login", "/logout")

_log = logging.getLogger(__name__)
_ROUTE = SimpleNamespace(path="page")
"""What requests of the page are counted as: one route, however many there are of them."""


def is_of_page(path: str) -> bool:
    """Whether a path is one of the page's, which are few: all others of Gradio's stay closed."""
    return path in ("/", _AGAIN, *_LOGIN) or any(one.fullmatch(path) for one in (_STILL, _ASKED, _HEARD))


class Gate:
    """ASGI middleware: answers the page's paths, and leaves all others to the application behind it.

    Args:
        app: The application with the API.
        page: Gradio's application.
        login: Who is let in; everybody where None.
        hosts: Names under which the page may be reached, beside addresses, localhost and this machine's own.
        write: Makes our document of Gradio's.
        visitors: Tabs that wait for answers.
    """

    def __init__(
        self, app: ASGIApp, page: ASGIApp, login: Login | None, hosts: Sequence[str], write: Callable[[str], str],
        visitors: Visitors,
    ) -> None:  # fmt: skip
        self._app, self._page, self._login, self._write, self._visitors = app, page, login, write, visitors
        self._hosts = {one.lower() for one in (*hosts, "localhost", socket.gethostname())}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not is_of_page(scope["path"]):
            await self._app(scope, receive, send)
            return
        scope["route"] = _ROUTE

        async def dressed(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": _dressed(message["headers"], scope["path"])}
            await send(message)

        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        self._admit(scope, headers)
        owner = b"" if self._login is None else self._login.owner(headers)
        if self._login is not None and (scope["path"] in _LOGIN or owner is None):
            await self._login(scope, receive, dressed)
        elif scope["path"] in _LOGIN:
            await RedirectResponse("/", 303)(scope, receive, dressed)
        else:
            await self._answer({**scope, "tuyi.owner": owner}, receive, dressed)

    def _admit(self, scope: Scope, headers: dict[str, str]) -> None:
        """Refuse what other websites have a browser send: by its origin, or under a name that is none of ours."""
        host = headers.get("host", "")
        if self._login is None and not self._is_ours(host):
            message = (
                "this name is none of the server's: open the page by its address, or allow the name by serve.page_hosts"
            )
            raise RefusalError(403, message, code="foreign_host")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            raise RefusalError(403, "the page is used from its own address alone", code="foreign_origin")
        if scope["path"] != "/" and headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            raise RefusalError(403, "the page is used from its own address alone", code="foreign_origin")
        is_asked = bool(_ASKED.fullmatch(scope["path"]))
        methods = ("POST",) if is_asked else ("GET", "HEAD", "POST") if scope["path"] in _LOGIN else ("GET", "HEAD")
        if scope["method"] not in methods:
            raise RefusalError(405, f"expected {' or '.join(methods)}, found {scope['method']}", code="wrong_method")
        if is_asked and headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise RefusalError(415, "expected application/json", code="wrong_content_type")  # so no file is written

    def _is_ours(self, host: str) -> bool:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self._hosts or name.endswith(".localhost")
        return True  # no foreign website has an address for its name

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        inner = {**scope, KEY: self._visitors, "query_string": b""}
        if scope["path"] == "/":
            await self._document(inner, receive, send)
        elif _HEARD.fullmatch(scope["path"]):
            await self._stream({**inner, "query_string": scope["query_string"]}, receive, send)
        elif _ASKED.fullmatch(scope["path"]):
            await self._ask(inner, receive, send)
        else:
            await self._page(inner, receive, send)

    async def _ask(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What Gradio stumbles over is the asker's fault, if it is not ours: the log tells."""
        has_failed = False

        async def sound(message: Message) -> None:
            nonlocal has_failed
            has_failed = has_failed or message.get("status", 0) >= 500
            if not has_failed:
                await send(message)

        refusal = RefusalError(400, "expected what the page asks, found something else", code="invalid_request")
        try:
            await self._page(scope, receive, sound)
        except (RefusalError, OSError):
            raise
        except Exception as error:
            if not has_failed:
                raise
            _log.warning("the page could not be answered", exc_info=error)
            raise refusal from error
        if has_failed:
            raise refusal

    async def _document(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Gradio's document with ours in it."""
        kept = [(key, value) for key, value in scope["headers"] if key != b"accept-encoding"]
        parts: list[bytes] = []
        begun: list[Message] = []

        async def hold(message: Message) -> None:
            if message["type"] == "http.response.start":
                begun.append(message)
            else:
                parts.append(message.get("body", b""))

        await self._page({**scope, "headers": kept}, receive, hold)
        body = b"".join(parts)
        if scope["method"] == "GET":
            body = self._write(body.decode()).encode()
        headers = [(key, value) for key, value in begun[0]["headers"] if key != b"content-length"]
        await send({**begun[0], "headers": [*headers, (b"content-length", str(len(body)).encode())]})
        await send({"type": "http.response.body", "body": body})

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers as they come, until the tab is gone, or the server ends and nobody waits any more."""
        name = parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [""])[0]
        listens = bool(name) and scope["path"].endswith("/data")
        has_begun = has_ended = False

        async def watched(message: Message) -> None:
            nonlocal has_begun, has_ended
            has_begun = True
            has_ended = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        task = asyncio.ensure_future(self._page(scope, receive, watched))
        if listens:
            await self._visitors.came(name)
        ended = asyncio.ensure_future(self._visitors.ended())
        try:
            await asyncio.wait((task, ended), return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
            if listens:
                await self._visitors.left(name)
            if not task.done():
                task.cancel()
            await asyncio.wait((task,))
        error = None if task.cancelled() else task.exception()
        if error is not None and not (has_begun and _is_refused(error)):
            raise error
        if has_begun and not has_ended:
            await send({"type": "http.response.body", "body": b""})


def _is_refused(error: BaseException) -> bool:
    """Whether Gradio refuses a stream that it has begun, such as one of a tab that it does not know."""
    return isinstance(error, HTTPException) or isinstance(error.__cause__, HTTPException)


def _dressed(headers: list[tuple[bytes, bytes]], path: str) -> list[tuple[bytes, bytes]]:
    own = {key.encode(): value.encode() for key, value in HEADERS.items()}
    own[b"cache-control"] = b"private, max-age=86400" if _STILL.fullmatch(path) else b"no-store"
    kept = [(key, value) for key, value in headers if key.lower() not in own and not key.lower().startswith(b"access-")]
    return [*kept, *own.items()]
