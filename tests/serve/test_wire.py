"""Bytes that are no proper HTTP, or HTTP that nobody should speak: refused or answered, never a 5xx, nothing told."""

from __future__ import annotations

import contextlib
import json
import socket

import pytest
from live_server import Running

BODY = json.dumps({"text": "hello", "task": "shape"}).encode()
POST = b"POST /v1/classify HTTP/1.1\r\nHost: x\r\n"
WHOLE = POST + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
CHUNK = b"%x\r\n%s\r\n" % (len(BODY), BODY)
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


def get(path: bytes, more: bytes = b"", method: bytes = b"GET", version: bytes = b"1.1") -> bytes:
    return b"%s %s HTTP/%s\r\nHost: x\r\n%s\r\n" % (method, path, version, more)


# what is sent, and the status: 0 where it depends on how the bytes come
CASES: dict[str, tuple[bytes, int]] = {
    "whole": (WHOLE, 200),
    "without host": (b"GET /healthz HTTP/1.1\r\n\r\n", 400),
    "host is a bracket": (b"GET /nope HTTP/1.1\r\nHost: [\r\n\r\n", 404),
    "host is no name": (b"GET /nope HTTP/1.1\r\nHost: a b@c:99999999\r\n\r\n", 404),
    "HTTP/1.0": (WHOLE.replace(b"HTTP/1.1", b"HTTP/1.0"), 200),
    "HTTP/0.9": (b"GET /\r\n\r\n", 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 404),
    "HTTP/9": (get(b"/healthz", version=b"9.9"), 200),
    "TLS": (b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03" + bytes(range(160)) + b"\r\n\r\n", 400),
    "bytes in the path": (get(b"/caf\xc3\xa9"), 400),
    "broken UTF-8 in the path": (get(b"/%ff%fe%00"), 404),
    "no UTF-8 as a model": (get(b"/v1/models/%ff%00%0d%0a"), 404),
    "dots": (get(b"/../../etc/passwd"), 404),
    "escaped dots": (get(b"/v1/models/..%2f..%2f..%2fetc%2fpasswd"), 404),
    "a whole URL": (get(b"http://evil.example/v1/models"), 404),
    "two slashes": (get(b"//v1/models"), 404),
    "a long path": (get(b"/" + b"a" * 10_000), 404),
    "too long a path": (get(b"/" + b"a" * 70_000), 0),
    "a long query": (get(b"/v1/models?" + b"a=b&" * 10_000), 200),
    "star": (get(b"*", method=b"OPTIONS"), 404),
    "connect": (get(b"example.com:443", method=b"CONNECT"), 404),
    "trace": (get(b"/healthz", method=b"TRACE"), 405),
    "head": (get(b"/healthz", method=b"HEAD"), 405),
    "no method at all": (get(b"/v1/classify", method=b"FOO%BAR"), 405),
    "a thousand headers": (get(b"/healthz", b"".join(b"a%d: b\r\n" % n for n in range(1000))), 200),
    "a flood of headers": (get(b"/healthz", b"a: b\r\n" * 12_000), 0),
    "a zero in a header": (get(b"/healthz", b"a: \x00\r\n"), 400),
    "a giant token": (get(b"/healthz", b"Authorization: Bearer " + b"a" * 12_000 + b"\r\n"), 200),
    "a negative length": (POST + b"Content-Length: -5\r\n\r\n" + BODY, 400),
    "a length that is none": (POST + b"Content-Length: abc\r\n\r\n" + BODY, 400),
    "two lengths": (POST + b"Content-Length: 3\r\nContent-Length: 5\r\n\r\n" + BODY, 400),
    "a giant length": (POST + b"Content-Length: 99999999999999999999999\r\n\r\n" + BODY, 400),
    "too large a length": (POST + b"Content-Length: 99999999999\r\n\r\n" + BODY, 413),
    "too short a length": (POST + b"Content-Length: 5\r\n\r\n" + BODY, 400),
    "length and chunks": (CHUNKED.replace(b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\n") + CHUNK + b"0\r\n\r\n", 200),
    "chunks": (CHUNKED + CHUNK + b"0\r\n\r\n", 200),
    "a chunk of no size": (CHUNKED + b"zz\r\n" + BODY, 400),
    "a later chunk of no size": (CHUNKED + CHUNK + b"zz\r\n\r\n", 400),
    "an unknown encoding": (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
    "no gzip": (WHOLE.replace(b"Host: x\r\n", b"Host: x\r\nContent-Encoding: gzip\r\n"), 200),
    "a websocket": (get(b"/v1/models", b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: AAAA\r\n"), 0),
    "another protocol": (get(b"/v1/models", b"Upgrade: h2c\r\nConnection: Upgrade\r\n"), 200),
    "a body where none belongs": (get(b"/v1/models", b"Content-Length: 5\r\n") + b"hello", 200),
    "a form": (WHOLE.replace(b"Host: x\r\n", b"Host: x\r\nContent-Type: application/x-www-form-urlencoded\r\n"), 200),
}  # fmt: skip


@pytest.mark.parametrize("case", list(CASES))
def test_bytes(server: Running, case: str):
    sent, status = CASES[case]
    answer = answered(server, sent)
    found = int(answer.split(b" ", 2)[1])
    assert answer.startswith(b"HTTP/1.1 ")
    assert found == status if status else found < 500, answer[:300]
    for secret in (b"Traceback", b"site-packages", b".py", b"root:"):
        assert secret not in answer


def test_what_is_expected_to_go_on_does(server: Running):
    answer = answered(server, WHOLE.replace(b"Host: x\r\n", b"Host: x\r\nExpect: 100-continue\r\n"))
    assert answer.startswith(b"HTTP/1.1 100 ")
    assert answered(server, POST + b"Expect: 100-continue\r\nContent-Length: 999999999\r\n\r\n")[9:12] == b"413"


def test_requests_in_a_row_are_answered_in_a_row(server: Running):
    bodies = [json.dumps({"text": "x", "task": "shape", "id": f"n{n}"}).encode() for n in range(20)]
    with contextlib.closing(socket.create_connection(server.address)) as connection:
        connection.settimeout(20)
        connection.sendall(b"".join(POST + b"Content-Length: %d\r\n\r\n%s" % (len(one), one) for one in bodies))
        found = b""
        while found.count(b'"total_ms"') < 20:
            piece = connection.recv(1 << 16)
            assert piece, found[-300:]
            found += piece
    assert [found.index(b'"id":"n%d"' % n) for n in range(20)] == sorted(
        found.index(b'"id":"n%d"' % n) for n in range(20)
    )


def answered(server: Running, sent: bytes) -> bytes:
    """The first answer, head and body."""
    found = b""
    with contextlib.closing(socket.create_connection(server.address)) as connection, contextlib.suppress(OSError):
        connection.settimeout(10)
        connection.sendall(sent)
        while b"\r\n\r\n" not in found and (piece := connection.recv(1 << 16)):
            found += piece
        connection.settimeout(0.05)
        while piece := connection.recv(1 << 16):
            found += piece
    return found
