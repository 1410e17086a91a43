"""What of the page is open, and from where."""

from __future__ import annotations

import time
from typing import Any

import pytest
from live_server import Running

from tuyi.serve.opening import Served

CLOSED = [
    "/config", "/monitoring", "/monitoring/summary", "/manifest.json", "/robots.txt", "/pwa_icon", "/svelte",
    "/gradio_api/info", "/gradio_api/openapi.json", "/gradio_api/upload", "/gradio_api/upload_progress",
    "/gradio_api/file=/etc/passwd", "/gradio_api/file/etc/passwd", "/gradio_api/proxy=https://example.com",
    "/gradio_api/queue/status", "/gradio_api/call/ask", "/gradio_api/run/ask", "/gradio_api/api/ask",
    "/gradio_api/runs", "/gradio_api/deep_link", "/gradio_api/startup-events",
    "/gradio_api/user", "/gradio_api/token", "/gradio_api/vibe-code", "/gradio_api/mcp/", "/gradio_api/stream/x",
    "/gradio_api/process_recording", "/gradio_api/dev/reload", "/gradio_api/custom_component/a/client/b/c",
    "/gradio_api/queue/join/", "//gradio_api/info", "/assets/../gradio_api/info",
]  # fmt: skip


@pytest.mark.parametrize("path", CLOSED)
def test_all_else_of_gradio_is_closed(page_server: Running, path: str):
    with page_server.client() as client:
        for method in ("GET", "POST"):
            answer = client.request(method, page_server.url + path)
            assert answer.status_code == 404, (method, path)
            assert answer.json()["error"]["code"] == "not_found"


@pytest.mark.parametrize(
    "path", ["/assets/..%2f..%2f..%2froutes.py", "/static/%2e%2e/%2e%2e/index.html", "/assets/%2fetc/passwd"]
)
def test_no_file_beside_the_pages_own_is_given(page_server: Running, path: str):
    with page_server.client() as client:
        assert client.get(path).status_code in (403, 404)


def test_the_document_names_no_other_host(page_server: Running):
    with page_server.client() as client:
        answer = client.get("/", headers={"accept-encoding": "br, gzip"})
        assert answer.status_code == 200
        for word in ("gradio.app", "githubusercontent", "fonts.google", "og:image", "twitter"):
            assert word not in answer.text, word
        theme = client.get("/theme.css").text
    assert "http" not in theme.replace("http://www.w3.org", "")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "connect-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "http" not in policy
    assert answer.headers["cache-control"] == "no-store"


def ask(client: Any, **headers: str) -> Any:
    body = {"data": [], "fn_index": 10_000, "session_hash": "x"}
    return client.post("/gradio_api/queue/join", json=body, headers=headers)


def test_other_websites_are_refused(page_server: Running):
    host = page_server.url.removeprefix("http://")
    with page_server.client() as client:
        for headers in (
            {"host": "evil.example"},
            {
                "host": f"evil.example:{host.rpartition(':')[2]}",
                "origin": f"http://evil.example:{host.rpartition(':')[2]}",
            },
            {"origin": "http://evil.example"},
            {"origin": "null"},
            {"origin": f"http://{host}1"},
            {"sec-fetch-site": "cross-site"},
            {"sec-fetch-site": "same-site"},
        ):
            answer = ask(client, **headers)
            assert answer.status_code == 403, headers
            assert answer.json()["error"]["code"] in ("foreign_host", "foreign_origin")
        assert client.get("/", headers={"host": "evil.example"}).status_code == 403
        assert client.get("/", headers={"host": "localhost"}).status_code == 200
        assert client.get("/", headers={"host": "10.1.2.3:8000"}).status_code == 200
        assert client.get("/", headers={"sec-fetch-site": "cross-site"}).status_code == 200  # a link to the page
        plain = client.post("/gradio_api/queue/join", content=b"{}", headers={"content-type": "text/plain"})
        assert plain.status_code == 415
        assert client.get("/gradio_api/queue/join").status_code == 405
        assert client.put("/", json={}).status_code == 405


def test_hostile_questions_are_no_mistakes_of_the_server(page_server: Running):
    deep = b'{"data": ' + b"[" * 50_000 + b"]" * 50_000 + b', "fn_index": 0, "session_hash": "x"}'
    bodies = [
        b"", b"[]", b"{", b"\xff", deep, b'{"data": [], "session_hash": "x", "fn_index": -1}',
        b'{"data": [], "session_hash": null, "fn_index": 0}', b'{"data": {}, "session_hash": "x", "fn_index": 0}',
        b'{"data": [1, 2, 3], "session_hash": "x", "fn_index": 0, "event_data": 7}',
        b'{"data": [], "session_hash": "x", "fn_name": "label_row", "component_id": 99999}',
        b'{"data": [], "session_hash": "x", "fn_name": "__init__", "component_id": 1}',
        b'{"data": [{"path": "/etc/hosts", "meta": {"_type": "gradio.FileData"}}], "session_hash": "x", "fn_index": 0}',
        b'{"session_hash": "x", "event_id": "y", "fn_index": 0}',
    ]  # fmt: skip
    with page_server.client(headers={"content-type": "application/json"}) as client:
        for path in ("queue/join", "cancel", "component_server", "component_server/"):
            for body in bodies:
                answer = client.post(f"/gradio_api/{path}", content=body)
                assert answer.status_code < 500, (path, body[:80], answer.text)
                assert "Traceback" not in answer.text
                assert "site-packages" not in answer.text


def test_the_api_is_as_without_a_page(page_server: Running):
    with page_server.client() as client:
        assert client.get("/v1/classify").status_code == 405
        assert client.get("/nothing").json()["error"]["message"] == "GET /nothing: Not Found"
        assert client.get("/healthz", headers={"host": "evil.example"}).status_code == 200
        assert client.get("/v1/models").json()["data"][0]["id"] == "small"


def test_the_page_is_counted_as_one_route(page_server: Running):
    with page_server.client() as client:
        for path in ("/", "/theme.css", "/assets/none.js", "/gradio_api/queue/data?session_hash=a"):
            client.get(path)
        told = client.get("/metrics").text
    routes = {line.partition('route="')[2].partition('"')[0] for line in told.splitlines() if 'route="' in line}
    assert "page" in routes
    assert routes <= {"page", "other", "/healthz", "/metrics", "/v1/classify", "/v1/chat/completions", "/v1/models"}


def test_an_open_page_does_not_keep_a_server_that_is_to_end(served: Served, serving_page: Any):
    with serving_page(served) as server, server.client() as client:
        with client.stream("GET", "/gradio_api/heartbeat/abc") as stream:
            lines = stream.iter_lines()
            assert next(lines) == "data: ALIVE"
            begun = time.monotonic()
            server.server.should_exit = True
            assert not any(lines)
        assert time.monotonic() - begun < 3


def test_too_large_a_question_is_refused_before_it_is_read(served: Served, serving_page: Any):
    with serving_page(served, max_body_bytes=2000) as server, server.client() as client:
        body = {"data": ["x" * 3000], "fn_index": 0, "session_hash": "x"}
        answer = client.post("/gradio_api/queue/join", json=body)
        assert answer.status_code == 413
