"""What stands before every route: tokens, the size of a request and the time to send it, counting."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from tuyi.errors import ConfigError
from tuyi.serve.held import Held
from tuyi.serve.metrics import Metrics
from tuyi.serve.refusals import RefusalError
from tuyi.serve.settings import ServeSettings

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Guard", "owner_of", "read_tokens"]

_OPEN = frozenset({"/healthz"})
"""Routes that need no token: what looks after the server has none."""


def read_tokens(file: Path | None) -> tuple[bytes, ...]:
    """Digests of the bearer tokens in a file, one a line; lines that begin with ``#`` are none.

    Raises:
        ConfigError: The file cannot be read, or holds none.
    """
    if file is None:
        return ()
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"serve.token_file: {file} cannot be read: {error}") from error
    tokens = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not tokens:
        raise ConfigError(f"serve.token_file: {file} holds no token; write one a line, or leave the setting out")
    return tuple(_digest(token.encode()) for token in tokens)


def owner_of(token: bytes, tokens: Sequence[bytes]) -> bytes | None:
    """The digest of a token, where it is one of those whose digests are given."""
    found = _digest(token.strip())
    known = [hmac.compare_digest(found, one) for one in tokens]  # all of them, whichever it is
    return found if any(known) else None


def _digest(token: bytes) -> bytes:
    return sha256(token).digest()  # of one length, so that comparing tells nothing of it


class Guard:
    """ASGI middleware.

    Args:
        app: What it guards.
        settings: Limits.
        tokens: Digests of those that are accepted; everybody is where there is none.
        metrics: Where requests are counted.
        is_open: Whether a path needs no token, as it has a guard of its own.
    """

    def __init__(
        self, app: ASGIApp, settings: ServeSettings, tokens: Sequence[bytes], metrics: Metrics,
        is_open: Callable[[str], bool] = lambda path: False,
    ) -> None:  # fmt: skip
        self._app, self._settings, self._tokens, self._metrics = app, settings, tokens, metrics
        self._is_open = is_open
        self._held = Held(settings.max_held_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = time.monotonic(), 499  # nobody was there to be answered

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            try:
                async with asyncio.timeout(self._settings.read_s):
                    await send(message)
            except TimeoutError as error:
                raise _SlowReaderError from error

        body = _Body(self._settings, receive, self._held)
        try:
            self._admit(scope)
            await self._app(scope, body.receive, counted)
        except RefusalError as refusal:
            await _say(refusal, counted)
        except _SlowReaderError:
            pass  # the connection is closed behind us
        finally:
            self._held.give_back(body.size)
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.answered(route, status, time.monotonic() - begun)

    def _admit(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        if self._tokens and scope["path"] not in _OPEN and not self._is_open(scope["path"]):
            scope["tuyi.owner"] = self._authorise(headers.get(b"authorization", b""))
        length = headers.get(b"content-length", b"")
        if length.isdigit() and (len(length) > 20 or int(length) > self._settings.max_body_bytes):
            raise _too_large(self._settings.max_body_bytes)

    def _authorise(self, header: bytes) -> bytes:
        """Whose request it is: the digest of the token."""
        kind, _, token = header.partition(b" ")
        owner = owner_of(token, self._tokens)
        if kind.lower() != b"bearer" or owner is None:
            message = "expected one of the server's tokens as `Authorization: Bearer TOKEN`, found "
            raise RefusalError(401, message + ("none" if not header else "another"), code="invalid_api_key")
        return owner


class _SlowReaderError(Exception):
    """A client that does not take its answer."""


class _Body:
    """A request's body as it comes, held to its size and time."""

    def __init__(self, settings: ServeSettings, receive: Receive, held: Held) -> None:
        self._most, self._receive, self._held = settings.max_body_bytes, receive, held
        self._seconds, self._until = settings.read_s, time.monotonic() + settings.read_s
        self.size, self._is_whole = 0, False

    async def receive(self) -> Message:
        if self._is_whole:
            return await self._receive()
        try:
            async with asyncio.timeout(self._until - time.monotonic()):
                message = await self._receive()
        except TimeoutError as error:
            message_ = f"expected the whole request within {self._seconds:g} s; send it faster"
            raise RefusalError(408, message_, code="request_timeout") from error
        size = len(message.get("body", b""))
        if self.size + size > self._most:
            raise _too_large(self._most)
        self._held.take(size)  # what is only announced takes no room, or few clients had all of it
        self.size += size
        self._is_whole = not message.get("more_body", False)
        return message


def _too_large(most: int) -> RefusalError:
    return RefusalError(413, f"expected a request of at most {most:,} bytes, found a larger one", code="too_large")


async def _say(refusal: RefusalError, send: Send) -> None:
    body = json.dumps(refusal.body(), ensure_ascii=False).encode()
    told = {"content-type": "application/json", "content-length": str(len(body)), **refusal.headers()}
    if refusal.status in (408, 413):
        told["connection"] = "close"  # what is still to come of the request is not read
    headers = [(key.lower().encode(), value.encode()) for key, value in told.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
