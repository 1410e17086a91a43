"""What ends a server."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["told_to_end"]


@contextmanager
def told_to_end(what: Callable[[], None]) -> Iterator[None]:
    """A SIGTERM or Ctrl-C does this and no more.

    Args:
        what: Called in the main thread.
    """
    known = (signal.SIGTERM, signal.SIGINT)
    before = {one: signal.signal(one, lambda *_: what()) for one in known}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
