"""Connections of which nothing comes are ended; those of which something comes are not."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator

import pytest
from live_server import Running, running

from tuyi.serve.app import create_app
from tuyi.serve.connections import impatient
from tuyi.serve.opening import Served
from tuyi.serve.scorer import Scorer
from tuyi.serve.settings import ServeSettings

SECONDS = 0.4
HEAD = b"POST /v1/classify HTTP/1.1\r\nHost: x\r\n"
WHOLE = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module")
def server(served: Served) -> Iterator[Running]:
    app = create_app(served, ServeSettings(workers=2, read_s=SECONDS))
    with running(app, http=impatient(SECONDS), timeout_keep_alive=60) as one:
        yield one


@pytest.mark.parametrize(
    "sent", [b"", HEAD[:20], HEAD, WHOLE, WHOLE + HEAD], ids=["idle", "line", "head", "after", "next"]
)
def test_waits_for_no_head_for_ever(server: Running, sent: bytes):
    with contextlib.closing(socket.create_connection(server.address)) as connection:
        connection.settimeout(10 * SECONDS)
        connection.sendall(sent)
        began = time.monotonic()
        with contextlib.suppress(ConnectionResetError):
            while connection.recv(1000):
                pass
    assert SECONDS < time.monotonic() - began < 5 * SECONDS


def test_an_answer_may_take_longer(server: Running, monkeypatch: pytest.MonkeyPatch):
    start = Scorer.start
    monkeypatch.setattr(Scorer, "start", lambda self, rows: (time.sleep(4 * SECONDS), start(self, rows))[1])
    with server.client() as client:
        assert client.post("/v1/classify", json={"text": "x", "task": "shape"}).status_code == 200


def test_what_is_only_announced_takes_no_room(serving: Callable[..., Running]):
    server = serving(max_held_bytes=100_000)
    with contextlib.ExitStack() as stack, server.client() as client:
        for length in (b"Content-Length: 90000", b"Transfer-Encoding: chunked") * 5:
            connection = stack.enter_context(contextlib.closing(socket.create_connection(server.address)))
            connection.sendall(HEAD + length + b"\r\n\r\n")
        time.sleep(0.2)
        assert client.post("/v1/classify", json={"text": "x", "task": "shape"}).status_code == 200
        full = client.post("/v1/classify", content=b"x" * 100_001)
        assert (full.status_code, full.json()["error"]["code"]) == (429, "busy")


def test_who_takes_no_answer_is_let_go(server: Running):
    """A closed connection whose client takes nothing would stay for ever, with what is left to send."""
    connections = server.server.server_state.connections
    _wait(lambda: not connections)
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    connection.connect(server.address)
    connection.settimeout(0.2)
    with contextlib.closing(connection):
        _wait(lambda: bool(connections))
        with contextlib.suppress(TimeoutError, ConnectionError):  # it may be let go while we still send
            for _ in range(1000):  # 20 MB of answers, more than any buffer between us
                connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n")
        _wait(lambda: not connections)


def _wait(until: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not until():
        assert time.monotonic() < end
        time.sleep(0.01)
