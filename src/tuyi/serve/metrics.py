"""What the server counts, as Prometheus reads it."""

from __future__ import annotations

import os
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

__all__ = ["Metrics"]

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters of one server; of several that share a port, of all of them together.

    These are told by ``PROMETHEUS_MULTIPROC_DIR``, a folder in which they count.
    """

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        self._is_shared = "PROMETHEUS_MULTIPROC_DIR" in os.environ
        self._length: Callable[[], float] = float
        self._registry = CollectorRegistry()
        registry = None if self._is_shared else self._registry
        self._requests = Counter("tuyi_requests", "Requests answered.", ["route", "status"], registry=registry)
        self._seconds = Histogram(
            "tuyi_request_seconds", "From a request's head to the end of its answer.", ["route"],
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._queue = Gauge(
            "tuyi_queue_length", "Requests that are read or wait for the model.", registry=registry,
            multiprocess_mode="livesum",
        )  # fmt: skip
        self._rows = Histogram(
            "tuyi_pack_rows", "Requests that passed the model together.", buckets=_ROWS, registry=registry
        )
        self._tokens = Counter("tuyi_tokens", "Tokens that passed the model.", ["kind"], registry=registry)

    def watch_queue(self, length: Callable[[], float]) -> None:
        """Read the length of the queue from here."""
        self._length = length

    def passed(self, rows: int, tokens: int) -> None:
        """A pack has passed the model."""
        self._rows.observe(rows)
        self._tokens.labels("prompt").inc(tokens)

    def wrote(self, tokens: int, known: int = 0) -> None:
        """Tokens were written, behind prompts of which so many were in the cache."""
        self._tokens.labels("output").inc(tokens)
        self._tokens.labels("cached").inc(known)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """A request is over."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)
        self._queue.set(self._length())

    def text(self) -> bytes:
        """All of it."""
        self._queue.set(self._length())
        if not self._is_shared:
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)
