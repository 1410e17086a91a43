"""When a browser tab counts as gone, and how much all of them may ask."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tuyi.serve.refusals import RefusalError
from tuyi.serve.web import visitors
from tuyi.serve.web.visitors import Visitors


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visitors, "_COME_S", 0.3)
    monkeypatch.setattr(visitors, "_BACK_S", 0.2)
    monkeypatch.setattr(visitors, "_LOOK_S", 0.02)


def in_a_loop(one: Coroutine[Any, Any, None]) -> None:
    """Run it in a thread of its own: a browser's loop may be under way in this one."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, one).result()


async def taken(waiting: asyncio.Future[None]) -> float:
    begun = time.monotonic()
    await asyncio.wait_for(waiting, 2)
    return time.monotonic() - begun


def test_a_tab_that_leaves_is_gone_a_little_later():
    async def run() -> None:
        known = Visitors(100)
        await known.came("a")
        await known.came("b")
        waiting = asyncio.ensure_future(known.gone("a"))
        await asyncio.sleep(0.5)
        assert not waiting.done()
        await known.left("a")
        await asyncio.sleep(0.1)
        await known.came("a")  # the stream of its next question
        await asyncio.sleep(0.3)
        assert not waiting.done()
        await known.left("a")
        assert 0.15 < await taken(waiting) < 1

    in_a_loop(run())


def test_a_tab_that_never_listens_is_gone_too():
    async def run() -> None:
        assert 0.25 < await taken(asyncio.ensure_future(Visitors(100).gone("a"))) < 1

    in_a_loop(run())


def test_waiting_can_be_cancelled():
    async def run() -> None:
        known = Visitors(100)
        await known.came("a")
        waiting = asyncio.ensure_future(known.gone("a"))
        await asyncio.sleep(0.05)
        waiting.cancel()
        await known.left("a")
        with pytest.raises(asyncio.CancelledError):
            await waiting

    in_a_loop(run())


def test_streams_end_once_the_server_is_to_end_and_nobody_waits():
    async def run() -> None:
        is_stopping = False
        known = Visitors(100, lambda: is_stopping)
        ended = asyncio.ensure_future(known.ended())
        with known.asking(b"x"):
            is_stopping = True
            await asyncio.sleep(0.2)
            assert not ended.done()
        assert await taken(ended) < 1

    in_a_loop(run())


def test_all_that_is_asked_together_has_a_limit():
    async def run() -> None:
        known = Visitors(10)
        with known.asking(b"x" * 6):
            with pytest.raises(RefusalError, match="too much is being sent at once"), known.asking(b"x" * 6):
                pass
            with known.asking(b"x" * 4):
                pass
        with known.asking(b"x" * 10):
            pass

    in_a_loop(run())
