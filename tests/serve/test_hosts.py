"""Pictures that are fetched: only from allowed names, never from inside."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tuyi.serve import hosts
from tuyi.serve.hosts import fetch
from tuyi.serve.refusals import RefusalError


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://other.example/a.png", "pictures are not fetched from there"),
        ("http://pictures.example.evil.net/a.png", "pictures are not fetched from there"),
        ("http://pictures.example@evil.net/a.png", "pictures are not fetched from there"),
        ("http://user:pw@pictures.example/a.png", "without user and port"),
        ("http://pictures.example:8080/a.png", "without user and port"),
        ("http://pictures.example:99999/a.png", "is no URL"),
        ("ftp://pictures.example/a.png", "found 'ftp'"),
        ("file:///etc/passwd", "found 'file'"),
        ("/etc/passwd", "found 'none'"),
        ("http://[::1", "is no URL"),
    ],
)
def test_refused_before_anything_is_sent(url: str, told: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("a name was looked up"))
    with pytest.raises(RefusalError, match=r"images\.0: ") as error:
        fetch(url, "images.0", ["pictures.example"], most_bytes=100, seconds=1)
    assert told in error.value.message


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "169.254.169.254",
        "192.168.0.1",
        "::1",
        "fe80::1",
        "0.0.0.0",
        "224.0.0.1",
        "::ffff:10.1.1.1",
        "2002:7f00:1::",
        "64:ff9b::a00:1",
        "::7f00:1",
    ],
)
def test_internal_addresses(address: str, monkeypatch: pytest.MonkeyPatch):
    found = [(0, 0, 0, "", ("93.184.216.34", 0)), (0, 0, 0, "", (address, 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("a connection was made"))
    with pytest.raises(RefusalError, match="has an internal address"):
        fetch("http://pictures.example/a.png", "images.0", ["pictures.example"], most_bytes=100, seconds=1)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, tuple[int, dict[str, str], bytes]]]:
    """A site that names and addresses lead to: path → status, headers, body."""
    pages: dict[str, tuple[int, dict[str, str], bytes]] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = pages[self.path]
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    connect: Callable[..., socket.socket] = socket.create_connection
    monkeypatch.setattr(hosts, "_address", lambda parts, name: "127.0.0.1")
    monkeypatch.setattr(socket, "create_connection", lambda *_, **options: connect(server.server_address, **options))
    yield pages
    server.shutdown()
    thread.join()
    server.server_close()


def test_fetches_and_follows_to_allowed_hosts(site: Any):
    site["/a"] = (302, {"Location": "/b"}, b"")
    site["/b"] = (301, {"Location": "http://more.example/c?d=1"}, b"")
    site["/c?d=1"] = (200, {}, b"picture")
    allowed = ["pictures.example", "More.example"]
    assert fetch("http://pictures.example/a", "images.0", allowed, most_bytes=100, seconds=5) == b"picture"
    with pytest.raises(RefusalError, match="pictures are not fetched from there"):
        fetch("http://pictures.example/a", "images.0", allowed[:1], most_bytes=100, seconds=5)


@pytest.mark.parametrize(
    ("page", "told"),
    [
        ((404, {}, b"nothing"), "cannot be fetched"),
        ((200, {}, b"x" * 101), "cannot be fetched"),
        ((302, {"Location": "/a"}, b""), "redirected more than"),
        ((302, {"Location": "file:///etc/passwd"}, b""), "found 'file'"),
        ((302, {"Location": "http://[::1"}, b""), "what is no URL"),
    ],
)
def test_cannot_be_had(site: Any, page: Any, told: str):
    site["/a"] = page
    with pytest.raises(RefusalError, match=told):
        fetch("http://pictures.example/a", "images.0", ["pictures.example"], most_bytes=100, seconds=5)


@pytest.mark.parametrize("opening", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_a_host_that_sends_a_byte_now_and_then(opening: bytes, monkeypatch: pytest.MonkeyPatch):
    ours, theirs = socket.socketpair()
    over = threading.Event()

    def drip() -> None:
        theirs.sendall(opening)
        while not over.wait(0.05):
            try:
                theirs.sendall(b"H")
            except OSError:
                return

    monkeypatch.setattr(hosts, "_address", lambda parts, name: "127.0.0.1")
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: ours)
    thread = threading.Thread(target=drip)
    thread.start()
    began = time.monotonic()
    try:
        with pytest.raises(RefusalError, match="cannot be fetched"):
            fetch("http://pictures.example/a", "images.0", ["pictures.example"], most_bytes=1000, seconds=0.4)
    finally:
        over.set()
        thread.join()
        theirs.close()
    assert time.monotonic() - began < 2
