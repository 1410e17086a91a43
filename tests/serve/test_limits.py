"""What the server does when there is too much, too late, or nobody any more."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from live_server import Running, running

from tuyi.serve.app import create_app
from tuyi.serve.opening import Served
from tuyi.serve.scorer import Scorer, Started
from tuyi.serve.settings import ServeSettings

HELLO = {"text": "hello", "task": "shape"}


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Holds every pass of the model until it is set."""
    go, start = threading.Event(), Scorer.start

    def waiting(self: Scorer, rows: Any) -> Started:
        go.wait(30)
        return start(self, rows)

    monkeypatch.setattr(Scorer, "start", waiting)
    yield go
    go.set()


def until(found: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not found():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


def metric(server: Running, name: str) -> float:
    with server.client() as client:
        lines = client.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def test_a_full_queue_answers_429(serving: Callable[..., Running], held: threading.Event):
    server = serving(max_queue=2, workers=2)
    with server.client() as client, ThreadPoolExecutor(8) as pool:
        first = pool.submit(client.post, "/v1/classify", json=HELLO)
        until(lambda: metric(server, "tuyi_queue_length") == 0)
        time.sleep(0.1)
        waiting = [pool.submit(client.post, "/v1/classify", json=HELLO) for _ in range(2)]
        until(lambda: metric(server, "tuyi_queue_length") == 2)
        refused = client.post("/v1/classify", json=HELLO)
        held.set()
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert [one.result().status_code for one in (first, *waiting)] == [200] * 3
    assert metric(server, 'tuyi_requests_total{route="/v1/classify",status="429"}') == 1


def test_a_deadline_answers_504(serving: Callable[..., Running], held: threading.Event):
    server = serving(deadline_s=0.3)
    with server.client() as client:
        late = client.post("/v1/classify", json=HELLO)
        assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline")
        held.set()
        until(lambda: client.post("/v1/classify", json=HELLO).status_code == 200)


def test_a_broken_engine_refuses_what_waits(served: Served, monkeypatch: pytest.MonkeyPatch):
    def broken(self: Scorer, started: Started) -> Any:
        raise RuntimeError("a kernel failed in /secret/place")

    monkeypatch.setattr(Scorer, "finish", broken)
    told: list[BaseException] = []
    with running(create_app(served, ServeSettings(), failed=told.append)) as server, server.client() as client:
        answer = client.post("/v1/classify", json=HELLO)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine")
        assert "secret" not in answer.text
        assert client.get("/healthz").status_code == 503
        assert client.post("/v1/classify", json=HELLO).status_code == 503
    assert [str(one) for one in told] == ["a kernel failed in /secret/place"]


def test_what_does_not_fit_the_memory_is_tried_in_smaller_packs(
    serving: Callable[..., Running], held: threading.Event, monkeypatch: pytest.MonkeyPatch
):
    start, sizes = Scorer.start, list[int]()

    def short(self: Scorer, rows: Any) -> Started:
        sizes.append(len(rows))
        if len(rows) > 2:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return start(self, rows)

    monkeypatch.setattr(Scorer, "start", short)
    server = serving(workers=2)
    with server.client() as client, ThreadPoolExecutor(8) as pool:
        first = pool.submit(client.post, "/v1/classify", json=HELLO)
        until(lambda: bool(sizes))
        answers = [pool.submit(client.post, "/v1/classify", json=HELLO) for _ in range(7)]
        until(lambda: metric(server, "tuyi_queue_length") == 7)
        held.set()
        assert [one.result().status_code for one in (first, *answers)] == [200] * 8
    assert max(sizes) > 2


def sent(server: Running, path: str, value: Any) -> socket.socket:
    """A connection on which a request was sent."""
    body = json.dumps(value).encode()
    connection = socket.create_connection(server.address)
    connection.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    return connection


def test_who_has_gone_leaves_the_queue(serving: Callable[..., Running], held: threading.Event):
    server = serving(workers=2)
    first = sent(server, "/v1/classify", HELLO)
    time.sleep(0.3)
    others = [sent(server, "/v1/classify", HELLO) for _ in range(3)]
    until(lambda: metric(server, "tuyi_queue_length") == 3)
    for one in others:
        one.close()
    until(lambda: metric(server, 'tuyi_requests_total{route="/v1/classify",status="499"}') == 3)
    held.set()
    assert first.recv(100).startswith(b"HTTP/1.1 200")
    first.close()
    until(lambda: metric(server, "tuyi_queue_length") == 0)
    assert metric(server, "tuyi_pack_rows_sum") == 1


def test_a_stream_that_nobody_reads_blocks_nobody(serving: Callable[..., Running]):
    server = serving()
    asked = {"messages": [{"role": "user", "content": "x"}], "stream": True, "max_tokens": 500}
    gone = [sent(server, "/v1/chat/completions", asked) for _ in range(3)]
    assert gone[0].recv(20).startswith(b"HTTP/1.1 200")
    for one in gone[:2]:
        one.close()
    with server.client() as client:
        assert client.post("/v1/classify", json=HELLO).status_code == 200
        short = {**asked, "stream": False, "max_tokens": 2}
        assert client.post("/v1/chat/completions", json=short).status_code == 200
    gone[2].close()


def test_slow_bodies_answer_408(serving: Callable[..., Running]):
    server = serving(read_s=0.3)
    with contextlib.closing(socket.create_connection(server.address)) as connection:
        connection.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        connection.settimeout(5)
        assert connection.recv(100).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("told", [True, False])
def test_large_bodies_answer_413(serving: Callable[..., Running], told: bool):
    server = serving(max_body_bytes=1000)
    body = b'{"text": "' + b"x" * 2000 + b'"}'
    with server.client() as client:
        answer = client.post("/v1/classify", content=body if told else iter([body[:900], body[900:]]))
    assert answer.status_code == 413
    assert "at most 1,000 bytes" in answer.json()["error"]["message"]


def test_tokens(serving: Callable[..., Running], tmp_path: Path):
    file = tmp_path / "tokens"
    file.write_text("# of the shop\nfirst-token\n\nsecond-token\n")
    server = serving(token_file=file)
    with server.client() as client:
        assert client.get("/healthz").status_code == 200
        none, wrong = client.get("/v1/models"), client.get("/v1/models", headers={"Authorization": "Bearer nonsense"})
        assert (none.status_code, wrong.status_code) == (401, 401)
        assert none.headers["www-authenticate"] == "Bearer"
        assert "nonsense" not in wrong.text
        for token in ("first-token", "second-token"):
            headers = {"Authorization": f"Bearer {token}"}
            assert client.get("/v1/models", headers=headers).status_code == 200
            assert client.post("/v1/classify", json=HELLO, headers=headers).status_code == 200


@pytest.mark.slow
def test_sigterm_finishes_what_runs(tmp_path: Path):
    code = (
        "import time\n"
        "from tuyi.serve.scorer import Scorer\n"
        "start = Scorer.start\n"
        "Scorer.start = lambda self, rows: (time.sleep(1), start(self, rows))[1]\n"
        "from tuyi.cli import main\n"
        "main()\n"
    )
    task = tmp_path / "task.yaml"
    task.write_text("name: shape\nprompt: '{content} Which shape?'\nlabels: [round, square]\n")
    command = [sys.executable, "-c", code, "serve", "builtin:tiny", "--task", str(task), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ})
    assert process.stdout is not None
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "listening on" in line:
                break
        assert lines, "it said nothing"
        assert "listening on" in lines[-1], lines
        server = Running(lines[-1].split()[-1], None, None)  # type: ignore[arg-type]
        with server.client() as client, ThreadPoolExecutor(1) as pool:
            until(lambda: client.get("/healthz").status_code == 200)
            answer = pool.submit(client.post, "/v1/classify", json={"text": "hello"})
            time.sleep(0.5)
            process.send_signal(signal.SIGTERM)
            assert answer.result().status_code == 200
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
