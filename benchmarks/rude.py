"""Clients that nobody wants: those of `serve_mixed.py` that hang, vanish, never read, or send what nobody should take.

Each is a coroutine that misbehaves once and returns the status of the answer, or None where it takes none.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import struct
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

__all__ = ["RUDE", "Address", "Rude"]

Address = tuple[str, int]
Rude = Callable[[Address], Awaitable[int | None]]

CLASSIFY, CHAT = b"/v1/classify", b"/v1/chat/completions"
LONG = {
    "messages": [{"role": "user", "content": "Tell a long story."}],
    "max_tokens": 400,
    "stream": True,
    "logprobs": True,
}
PATIENCE = 120
"""Seconds after which a client that waits for its end gives up by itself."""


def _head(path: bytes, length: int | None, more: bytes = b"") -> bytes:
    size = b"Transfer-Encoding: chunked\r\n" if length is None else b"Content-Length: %d\r\n" % length
    return b"POST %s HTTP/1.1\r\nHost: rude\r\n%s%s\r\n" % (path, size, more)


def _request(path: bytes, value: object) -> bytes:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return _head(path, len(body)) + body


@asynccontextmanager
async def _connection(address: Address) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(*address)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def _status(reader: asyncio.StreamReader) -> int | None:
    """Of the answer; None where the connection ends without one."""
    with suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
        async with asyncio.timeout(PATIENCE):
            return int((await reader.readuntil(b"\r\n")).split(b" ", 2)[1])
    return None


async def hangs_in_the_body(address: Address) -> int | None:
    async with _connection(address) as (reader, writer):
        writer.write(_head(CLASSIFY, random.choice((100, 1 << 20, 32 << 20))) + b'{"text": "')
        return await _status(reader)


async def hangs_in_the_head(address: Address) -> int | None:
    async with _connection(address) as (reader, writer):
        writer.write(_head(CLASSIFY, 100)[: random.randrange(1, 50)])
        return await _status(reader)


async def sends_a_byte_a_second(address: Address) -> int | None:
    async with _connection(address) as (reader, writer):
        status = asyncio.create_task(_status(reader))
        data = _request(CLASSIFY, {"text": "x" * 200})
        for at in range(len(data)):
            if status.done():
                break
            with suppress(OSError):
                writer.write(data[at : at + 1])
                await asyncio.sleep(1)
        return await status


async def vanishes(address: Address) -> int | None:
    """In the middle of a streamed answer, or of waiting for one."""
    async with _connection(address) as (reader, writer):
        is_streamed = random.random() < 0.5
        writer.write(_request(CHAT, LONG) if is_streamed else _request(CLASSIFY, {"text": "bye"}))
        if not is_streamed:
            await asyncio.sleep(random.random() * 0.05)
            return None
        status = await _status(reader)
        with suppress(OSError, asyncio.IncompleteReadError):
            await reader.readexactly(random.randrange(1, 4000))
        return status


async def never_reads(address: Address) -> int | None:
    """Asks for far more than any buffer holds, and takes none of it."""
    async with _connection(address) as (reader, writer):
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        many = b"GET /metrics HTTP/1.1\r\nHost: rude\r\n\r\n" * 4000
        writer.write(_request(CHAT, LONG) + many)
        for _ in range(PATIENCE):
            if writer.transport.is_closing():
                break
            await asyncio.sleep(1)
        return None


def _png(width: int, height: int, data: bytes) -> str:
    def chunk(kind: bytes, inner: bytes) -> bytes:
        return struct.pack(">I", len(inner)) + kind + inner + struct.pack(">I", zlib.crc32(kind + inner))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    file = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(file).decode()


HUGE = _png(5000, 5000, bytes(5001 * 5000))
BOMB = _png(60_000, 60_000, bytes(1000))
LYING = _png(40, 40, bytes(64 << 20))
TRUNCATED = _png(400, 400, bytes(100))


async def sends_a_huge_picture(address: Address) -> int | None:
    """As large as is still taken."""
    return await _asks(address, _request(CLASSIFY, {"text": "x", "images": [HUGE]}))


async def sends_bombs(address: Address) -> int | None:
    picture = random.choice((BOMB, LYING, TRUNCATED))
    return await _asks(address, _request(CLASSIFY, {"text": "x", "images": [picture]}))


async def sends_too_much(address: Address) -> int | None:
    """More than is taken, announced or not."""
    async with _connection(address) as (reader, writer):
        status = asyncio.create_task(_status(reader))
        is_told = random.random() < 0.5
        writer.write(_head(CLASSIFY, 64 << 20 if is_told else None))
        piece = b"x" * (1 << 16)
        for _ in range((48 << 20) // len(piece)):
            if status.done():
                break
            with suppress(OSError):
                writer.write(piece if is_told else b"%x\r\n%s\r\n" % (len(piece), piece))
                await writer.drain()
        return await status


def _malformed() -> list[bytes]:
    say = {"messages": [{"role": "user", "content": "x"}]}
    schema = {"type": "object", "properties": {f"k{n}": {"enum": ["a", "b"]} for n in range(500)}}
    broken = [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"text": NaN}',
        b'{"text": "\\ud800"}',
        b'{"images": [' + b"1," * 3_000_000,
    ]
    classify = [
        {},
        [],
        {"text": 1},
        {"text": "x", "images": ["/etc/passwd"]},
        {"parts": [{}] * 10_000},
        {"text": "x" * 10**6},
    ]
    chat = [
        {},
        {**say, "temperature": -1},
        {**say, "max_tokens": 10**30},
        {**say, "n": 2},
        {**say, "stop": ["a"] * 9},
        {**say, "model": "../../etc/passwd"},
        {**say, "guided_choice": ["x" * 3000 + str(n) for n in range(300)]},
        {**say, "structured_outputs": {"json": schema}},
        {"messages": [{"role": "user", "content": "x"}] * 10_000},
    ]
    requests = [_request(CLASSIFY, one) for one in (*broken, *classify)] + [_request(CHAT, one) for one in chat]
    wire = [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x00\xa5",
        b"GET /v1/models/%00%ff HTTP/1.1\r\nHost: [\r\n\r\n",
        b"BREW /v1/classify HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /" + b"a" * 60_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n" + b"a: b\r\n" * 20_000,
        _head(CLASSIFY, None) + b"zz\r\n",
        _head(CLASSIFY, 2, b"Content-Length: 3\r\n"),
    ]
    return requests + wire


MALFORMED = _malformed()


async def sends_nonsense(address: Address) -> int | None:
    return await _asks(address, random.choice(MALFORMED))


async def stays_idle(address: Address) -> int | None:
    async with _connection(address) as (reader, _):
        return await _status(reader)


async def _asks(address: Address, data: bytes) -> int | None:
    async with _connection(address) as (reader, writer):
        status = asyncio.create_task(_status(reader))
        with suppress(OSError):
            writer.write(data)
            await writer.drain()
        return await status


RUDE: tuple[tuple[Rude, int, float], ...] = (
    (hangs_in_the_body, 8, 1.0),
    (hangs_in_the_head, 8, 1.0),
    (sends_a_byte_a_second, 8, 1.0),
    (vanishes, 4, 1.0),
    (never_reads, 2, 5.0),
    (sends_a_huge_picture, 1, 20.0),
    (sends_bombs, 1, 2.0),
    (sends_too_much, 1, 10.0),
    (sends_nonsense, 2, 1.0),
    (stays_idle, 200, 5.0),
)
"""Each kind, how many there are of it at a time, and seconds between one's misbehaviours."""
