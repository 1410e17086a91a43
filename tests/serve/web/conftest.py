"""A server with its page, and a headless Chromium that opens it."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from live_server import Running, running

from tuyi.serve.app import create_app
from tuyi.serve.opening import Served
from tuyi.serve.settings import ServeSettings

LONG = 3500
"""Tokens of an answer that takes seconds."""


@contextlib.contextmanager
def _serving(served: Served, extras: Any = None, **settings: Any) -> Iterator[Running]:
    """A server whose open pages let it end."""
    pytest.importorskip("gradio")
    from tuyi.serve.web.page import PageExtras

    started: list[Running] = []
    app = create_app(
        served,
        ServeSettings(workers=2, **settings),
        extras=extras or PageExtras(),
        is_stopping=lambda: any(one.server.should_exit for one in started),
    )
    with running(app) as server:
        started.append(server)
        yield server


@pytest.fixture(scope="session")
def serving_page() -> Callable[..., contextlib.AbstractContextManager[Running]]:
    """Starts servers with a page."""
    return _serving


@pytest.fixture(scope="module")
def page_server(served: Served) -> Iterator[Running]:
    """A server with a page."""
    with _serving(served, max_output_tokens=LONG) as server:
        yield server


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser; not for longer than a module, as its loop runs in this thread and would be in others' way."""
    sync = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium on this machine: install one, and have `chromium` on the PATH")
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Opens pages, in a browser of their own; what they ask of other hosts fails the test, as do their errors."""
    problems: list[str] = []
    with contextlib.ExitStack() as stack:

        def open_page(url: str, before: Callable[[Any], None] = lambda page: None, **options: Any) -> Any:
            context = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, "locale": "en-US", **options})
            stack.callback(context.close)
            page = context.new_page()
            page.set_default_timeout(20_000)
            host = urlsplit(url).netloc

            def look(request: Any) -> None:
                if urlsplit(request.url).scheme not in ("data", "blob") and urlsplit(request.url).netloc != host:
                    problems.append(f"asked {request.url}")

            page.on("request", look)
            page.on("pageerror", lambda error: problems.append(f"error: {error}"))
            page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
            before(page)
            page.goto(url)
            return page

        yield open_page
    assert not [one for one in problems if "Failed to load resource" not in one]
