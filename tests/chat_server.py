"""A chat server on this machine that misbehaves in every way that servers do."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["Server", "completion", "fails", "hangs", "pick", "reply", "resets", "says", "shown"]


class Server:
    """Answers chat requests as ``script`` says, one entry a request, then in order; keeps what it was asked."""

    def __init__(self) -> None:
        self.script: list[Callable[[Any, dict[str, Any]], None]] = []
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.models = ["tuyi-model"]
        self.answer: Callable[[dict[str, Any]], str] = lambda request: pick(request["structured_outputs"]["choice"])
        self.dead = False
        self.logprobs: Callable[[dict[str, Any], str], Any] = lambda request, answer: None
        self.busy = self.busiest = 0
        self.lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                reply(
                    self, 200, {"object": "list", "data": [{"id": name, "object": "model"} for name in server.models]}
                )

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server.lock:
                    server.asked.append(request)
                    server.keys.append(self.headers["Authorization"])
                    act = server.script.pop(0) if server.script else right
                    server.busy += 1
                    server.busiest = max(server.busiest, server.busy)
                try:
                    act(self, request)
                finally:
                    with server.lock:
                        server.busy -= 1

        def right(handler: Any, request: dict[str, Any]) -> None:
            if server.dead:
                resets(handler, request)
                return
            text = server.answer(request)
            reply(handler, 200, completion(text, server.logprobs(request, text)))

        self.right = right
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()


def pick(labels: list[str]) -> str:
    return labels[3 % len(labels)]


def reply(handler: Any, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    handler.send_response(status)
    for name, text in {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}.items():
        handler.send_header(name, text)
    handler.end_headers()
    handler.wfile.write(body)


def completion(text: str | None, logprobs: Any = None, usage: Any = None, finish: str = "stop") -> dict[str, Any]:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": finish,
        "logprobs": logprobs,
    }
    return {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}


def says(text: str | None, finish: str = "stop") -> Callable[[Any, dict[str, Any]], None]:
    return lambda handler, request: reply(handler, 200, completion(text, finish=finish))


def shown(request: dict[str, Any]) -> str:
    """The text of a request's last message."""
    content = request["messages"][-1]["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def fails(status: int, **headers: str) -> Callable[[Any, dict[str, Any]], None]:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler, request: reply(handler, status, {"error": {"message": f"no {request['model']}"}}, names)


def resets(handler: Any, request: Any) -> None:
    """The connection breaks in the middle of the answer."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"id": "x", "choi')
    handler.wfile.flush()
    handler.close_connection = True
    handler.connection.shutdown(2)


def hangs(handler: Any, request: Any) -> None:
    time.sleep(1.5)
    handler.close_connection = True
